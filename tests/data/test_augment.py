"""Random changes of training images: a function of (seed, epoch, row), so both backends, every
length of a chunk and a resumed run see the same pixels."""

from pathlib import Path

import numpy as np
import pytest

from runner.data.augment import Augment, augmented
from runner.errors import ConfigError
from runner.random import uniform
from tests.command_line import BACKENDS
from tests.rows import slow_but
from tests.training import difference, in_two_parts, prepare, train

IMAGES = np.random.default_rng(0).random((30, 7, 5, 3))
BLACK = np.array([-1.0, -2.0, -3.0])
DIGITS = ["data=digits", "data.images=true"]
ALL = ["data.augment.flip=true", "data.augment.crop=2", "data.augment.shift=1"]
SHORT = ["model=cnn", "trainer.precision=float64", "trainer.batch_size=100", "device=cpu"]


def settings(flip: bool = False, crop: int = 0, shift: int = 0) -> Augment:
    return Augment(flip=flip, crop=crop, shift=shift)


def change(augment: Augment, rows: np.ndarray, seed: int = 3, epoch: int = 4) -> np.ndarray:
    return augmented(IMAGES[rows], augment, BLACK, rows, len(IMAGES), seed, epoch)


@pytest.mark.parametrize(
    "augment",
    [
        settings(flip=True),
        settings(crop=2),
        settings(shift=3),
        settings(flip=True, crop=4, shift=2),
    ],
)
def test_images_are_mirrored_then_shifted_then_cut_out(augment: Augment) -> None:
    """np.pad does it for one image at a time. Five numbers of an epoch's stream belong to a row."""
    draws = uniform((len(IMAGES), 5), 3, "augment/4")
    crop, shift = augment.crop, augment.shift
    sides = ((0, 0), (crop, crop), (crop, crop))
    for i, found in enumerate(change(augment, np.arange(30))):
        image = IMAGES[i][:, ::-1] if augment.flip and draws[i, 0] < 0.5 else IMAGES[i]
        corner, moved = (
            [int(draw * (2 * most + 1)) for draw in draws[i, j : j + 2]]
            for j, most in ((1, crop), (3, shift))
        )
        wide = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
        y, x = (2 * shift - move for move in moved)
        image = wide[y : y + 7, x : x + 5]
        channels = [np.pad(image[..., c], sides[1:], constant_values=BLACK[c]) for c in range(3)]
        y, x = corner
        np.testing.assert_array_equal(found, np.stack(channels, -1)[y : y + 7, x : x + 5])


def test_a_row_depends_on_the_seed_and_the_epoch_and_not_on_the_other_rows() -> None:
    augment, rows = settings(flip=True, crop=2, shift=1), np.array([7, 0, 7, 29])
    whole = change(augment, np.arange(30))
    np.testing.assert_array_equal(change(augment, rows), whole[rows])
    for other in ({"seed": 4}, {"epoch": 5}):
        assert not np.array_equal(change(augment, np.arange(30), **other), whole)


def test_half_of_the_images_are_mirrored_and_every_position_is_as_frequent() -> None:
    """Row i is 1 at the pixel in the middle, so its place is the move; 5,000 rows."""
    num, rows = 5000, np.arange(5000)
    images = np.zeros((num, 5, 5, 1))
    images[:, 2, 2] = 1
    for augment in (settings(crop=2), settings(shift=2)):
        found = augmented(images, augment, np.zeros(1), rows, num, 0, 0)[..., 0]
        assert (found.sum(axis=(1, 2)) >= 1).all()
        inner = found[:, 1:4, 1:4].sum(axis=0)  # at the edge, a shift repeats pixels
        # 200 expected at each of 25 places; 5 standard deviations of a binomial count.
        assert np.abs(inner - 200).max() < 5 * 200**0.5
    images[:] = np.arange(5)[:, None]
    found = augmented(images, settings(flip=True), np.zeros(1), rows, num, 0, 0)
    mirrored = (found[:, 0, 0, 0] == 4).sum()
    assert abs(mirrored - 2500) < 5 * 1250**0.5  # of a binomial count with p = 1/2


@pytest.mark.parametrize("accumulate", [1, 3])
def test_chunks_of_every_length_and_from_every_step_have_the_same_pixels(accumulate: int) -> None:
    """1,280 rows; 30 updates are more than two epochs."""
    common = [*DIGITS, *ALL, *SHORT, f"trainer.accumulate_grad_batches={accumulate}"]
    by_length = []
    for length in (1, 7, 1000):
        prepared = prepare([*common, "trainer.max_steps=30", f"trainer.steps_per_call={length}"])
        chunks = [*prepared.chunks(0, None, adapt=False)]
        by_length.append(np.concatenate([chunk.fields["x"] for chunk in chunks]))
    assert np.array_equal(by_length[0], by_length[1])
    assert np.array_equal(by_length[0], by_length[2])
    prepared = prepare([*common, "trainer.max_steps=30"])
    late = np.concatenate([c.fields["x"] for c in prepared.chunks(17, None, adapt=False)])
    assert np.array_equal(late, by_length[0][-len(late) :])
    epoch = len(prepared.data.train)
    assert not np.array_equal(
        by_length[0][:epoch].sum(axis=0), by_length[0][epoch : 2 * epoch].sum(axis=0)
    )


def test_only_training_rows_are_changed() -> None:
    plain, prepared = prepare([*DIGITS, *SHORT]), prepare([*DIGITS, *ALL, *SHORT])
    (batch,) = prepared.batches(prepared.data.val)
    assert np.array_equal(batch["x"], plain.data.val.x)
    assert prepared.data.description() == plain.data.description()


def test_without_it_rows_stay_in_memory() -> None:
    spec = prepare([*DIGITS, *SHORT]).run_spec()
    assert set(spec.fields) == {"x", "y"}
    assert not spec.streamed
    spec = prepare([*DIGITS, *ALL, *SHORT]).run_spec()
    assert set(spec.fields) == {"y"}
    assert set(spec.streamed) == {"x"}


@pytest.mark.slow
def test_both_backends_train_on_the_same_pixels() -> None:
    """1e-12: float64, sums in another order."""
    overrides = [*DIGITS, *ALL, *SHORT, "trainer.max_epochs=2"]
    runs = [train(backend, overrides) for backend in BACKENDS]
    np.testing.assert_allclose(runs[0].losses, runs[1].losses, rtol=0, atol=1e-12)
    plain = train(BACKENDS[0], [*DIGITS, *SHORT, "trainer.max_epochs=2"])
    assert np.abs(plain.losses - runs[0].losses).max() > 0.01


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_run_that_goes_on_from_a_state_ends_with_the_same_bits(backend: str) -> None:
    overrides = [*DIGITS, *ALL, *SHORT, "trainer.max_steps=30", "trainer.steps_per_call=5"]
    whole, joined = in_two_parts(backend, overrides, at=18)
    np.testing.assert_array_equal(joined.losses, whole.losses)
    assert difference(joined.state.weights, whole.state.weights) == 0


def test_black_is_the_scaled_value_of_0(tmp_path: Path) -> None:
    """Standardized pixels, so 0 is not black. Every corner is black in some image."""
    image = pytest.importorskip("PIL.Image")
    for i in range(20):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        image.fromarray(np.full((6, 6), 100 + i, np.uint8)).save(path)
    read = ["data=image_folder", f"data.path={tmp_path}", "data.scaling=standardize"]
    prepared = prepare([*read, "data.augment.crop=3", *SHORT])
    (chunk,) = prepared.chunks(0, None, adapt=False, end=1)
    assert prepared.data.x_scaling is not None
    black = prepared.data.x_scaling.apply(np.zeros(1))[0]
    assert chunk.fields["x"].min() == black
    assert set(np.unique(chunk.fields["x"])) == {black, *np.unique(prepared.data.train.x)}


def test_pixels_with_a_scale_each_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.arange(30) % 3)
    read = ["data=npz", f"data.path={tmp_path / 'a.npz'}", "data.augment.flip=true"]
    with pytest.raises(
        ConfigError,
        match=r"data\.augment needs one scale for all pixels, got data\.standardize=true",
    ):
        prepare([*read, "data.standardize=true"])
    assert prepare(read).augment == settings(flip=True)
