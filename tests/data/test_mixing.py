"""Mixup and CutMix: a function of (seed, epoch, row), so both backends, every length of a chunk and
a resumed run see the same rows and targets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from runner.components.losses import CrossEntropy, SoftCrossEntropy, soft_targets
from runner.data.mixing import Mixed, Mixing, mixed
from runner.errors import ConfigError
from runner.random import uniform
from tests.rows import slow_but
from tests.training import difference, in_two_parts, prepare

NUM = 40
IMAGES = np.random.default_rng(0).random((NUM, 7, 5, 3))
ROWS = np.arange(NUM)
BOTH = ["data.mixup=0.4", "data.cutmix=1"]
SHORT = ["model=linear", "data.images=true", "trainer.precision=float64", "trainer.batch_size=100"]


def how(mixing: Mixing, rows: np.ndarray = ROWS, seed: int = 3, epoch: int = 4) -> Mixed:
    return mixed(mixing, IMAGES.shape[1:], rows, NUM, seed, epoch)


def draws() -> np.ndarray:
    """The five numbers of each row in this epoch's stream."""
    return uniform((NUM, 5), 3, "mixing/4")


def test_mixup_is_the_paper_s_with_a_share_of_beta() -> None:
    """1e-12: another function for the quantile of Beta."""
    found = how(Mixing(0.4, None))
    partners = (draws()[:, 0] * NUM).astype(int)
    shares = stats.beta.ppf(draws()[:, 2], 0.4, 0.4)[:, None, None, None]
    expected = shares * IMAGES + (1 - shares) * IMAGES[partners]
    np.testing.assert_allclose(found.of(IMAGES, IMAGES[found.partners]), expected, atol=1e-12)
    y = np.eye(NUM)
    expected = shares[:, :, 0, 0] * y + (1 - shares[:, :, 0, 0]) * y[partners]
    np.testing.assert_allclose(found.targets(y, y[found.partners]), expected, atol=1e-12)


def test_cutmix_cuts_the_rectangle_of_the_authors_code() -> None:
    """`rand_bbox` of Yun et al.: one image at a time, with loops over its pixels."""
    found = how(Mixing(None, 1.0))
    images = found.of(IMAGES, IMAGES[found.partners])
    targets = found.targets(np.eye(NUM), np.eye(NUM)[found.partners])
    for i, (partner, _, draw, y, x) in enumerate(draws()):
        cut = np.sqrt(1 - draw)  # Beta(1, 1) is uniform
        ends = []
        for size, centre in ((7, int(y * 7)), (5, int(x * 5))):
            half = int(size * cut) // 2
            ends.append((max(centre - half, 0), min(centre + half, size)))
        j, image, num_cut = int(partner * NUM), IMAGES[i].copy(), 0
        for row in range(*ends[0]):
            for column in range(*ends[1]):
                image[row, column] = IMAGES[j][row, column]
                num_cut += 1
        np.testing.assert_array_equal(images[i], image)
        target = np.zeros(NUM)
        target[i] += 1 - num_cut / 35
        target[j] += num_cut / 35
        np.testing.assert_allclose(targets[i], target, atol=1e-15)


def test_with_both_half_of_the_rows_have_one_each() -> None:
    """5 standard deviations of a binomial count; each kind is the same as without the other."""
    both, num = Mixing(0.4, 1.0), 2000
    found = mixed(both, (7, 5, 3), np.arange(num), num, 0, 0)
    assert abs(found.is_cut.sum() - num / 2) < 5 * (num / 4) ** 0.5
    found = how(both)
    images = found.of(IMAGES, IMAGES[found.partners])
    for mixing, rows in ((Mixing(0.4, None), ~found.is_cut), (Mixing(None, 1.0), found.is_cut)):
        one = how(mixing)
        np.testing.assert_array_equal(images[rows], one.of(IMAGES, IMAGES[one.partners])[rows])
        np.testing.assert_array_equal(found.shares[rows], one.shares[rows])


def test_a_row_depends_on_the_seed_and_the_epoch_and_not_on_the_other_rows() -> None:
    both, rows = Mixing(0.4, 1.0), np.array([7, 0, 7, 29])
    whole, some = how(both), how(both, rows)
    np.testing.assert_array_equal(some.partners, whole.partners[rows])
    np.testing.assert_array_equal(some.shares, whole.shares[rows])
    for other in ({"seed": 4}, {"epoch": 5}):
        assert not np.array_equal(how(both, **other).shares, whole.shares)


def test_the_loss_of_a_mixed_target_is_the_mixed_loss() -> None:
    """torch's cross_entropy of the labels, with class weights and label smoothing as this project
    has them. 1e-14: a few roundings of float64."""
    rng = np.random.default_rng(0)
    z, y, partner = rng.normal(size=(9, 4)), rng.integers(4, size=9), rng.integers(4, size=9)
    share, weights = rng.random((9, 1)), [0.5, 1.0, 2.0, 3.0]
    loss = CrossEntropy(name="cross_entropy", label_smoothing=0.1, class_weights=weights)
    of_labels = [soft_targets(loss, labels, 4, np.dtype(float)) for labels in (y, partner)]
    targets = share * of_labels[0] + (1 - share) * of_labels[1]
    expected = 0.0
    for labels, part in ((y, share[:, 0]), (partner, 1 - share[:, 0])):
        rows = functional.cross_entropy(
            torch.tensor(z), torch.tensor(labels), reduction="none", label_smoothing=0.1
        )
        expected = expected + part * np.array(weights)[labels] * rows.numpy()
    found = SoftCrossEntropy(name="soft_cross_entropy").rows(z, targets)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_chunks_of_every_length_have_the_same_rows_and_only_training_rows_are_mixed() -> None:
    """1,280 rows; 20 updates are more than one epoch."""
    by_length = []
    for length in (1, 1000):
        common = [*SHORT, *BOTH, "trainer.max_steps=20", f"trainer.steps_per_call={length}"]
        prepared = prepare(common)
        chunks = [*prepared.chunks(0, None, adapt=False)]
        by_length.append(
            [np.concatenate([chunk.fields[name] for chunk in chunks]) for name in ("x", "y")]
        )
    for a, b in zip(*by_length, strict=True):
        np.testing.assert_array_equal(a, b)
    plain = prepare(SHORT)
    (batch,), (expected,) = (p.batches(p.data.val) for p in (prepared, plain))
    for name in ("x", "y"):
        np.testing.assert_array_equal(batch[name], expected[name])
    assert prepared.train_columns() == ["train/loss"]
    assert prepared.val_columns() == plain.val_columns() == ["val/loss", "val/accuracy"]


@pytest.mark.parametrize("backend", slow_but(["keras", "lightning"], "lightning"))
def test_a_run_that_goes_on_from_a_state_ends_with_the_same_bits(backend: str) -> None:
    overrides = [*SHORT, *BOTH, "trainer.max_steps=20", "trainer.steps_per_call=5"]
    whole, joined = in_two_parts(backend, overrides, at=10)
    np.testing.assert_array_equal(joined.losses, whole.losses)
    assert difference(joined.state.weights, whole.state.weights) == 0


def test_targets_of_a_regression_are_mixed(tmp_path: Path) -> None:
    """Zhang et al. mix inputs and targets alike, so a linear relation stays one."""
    x = np.random.default_rng(0).normal(size=(50, 3))
    path = tmp_path / "rows.npz"
    np.savez(path, x=x, y=x @ [1.0, 2.0, 3.0])
    read = ["data=npz", f"data.path={path}", "data.task=regression", "data.mixup=1"]
    prepared = prepare([*read, "model=linear", "trainer.precision=float64"])
    (chunk,) = prepared.chunks(0, None, adapt=False, end=1)
    assert not np.isin(chunk.fields["x"][:, 0], x[:, 0]).all()
    expected = chunk.fields["x"] @ [[1.0], [2.0], [3.0]]
    np.testing.assert_allclose(chunk.fields["y"], expected, atol=1e-14)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"y": np.zeros((30, 7, 5), int) + np.arange(5)},
            "data.mixup must be null for data=npz, which has a label at each position",
        ),
        (
            {"y": np.arange(30) % 3, "w": np.ones(30)},
            "data.mixup must be null for data=npz, which has weights of rows",
        ),
        (
            {"x": np.arange(60).reshape(30, 2) % 4, "y": np.arange(30) % 3},
            "data.mixup must be null for data=npz, which has token ids or categories, which cannot "
            "be mixed",
        ),
    ],
)
def test_rows_that_cannot_be_mixed_are_refused(
    keys: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, **{"x": IMAGES[:30], **keys})
    more = ["data.weight=w"] if "w" in keys else []
    if "x" in keys:
        embedding = "{layer: embedding, features: 2},{layer: flatten}"
        more = [f"model.layers=[{embedding},{{layer: dense, units: outputs}}]"]
    with pytest.raises(ConfigError, match=f"^{words}$"):
        prepare(["data=npz", f"data.path={path}", "data.mixup=0.2", *more])
