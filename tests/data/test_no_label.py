"""Labels at each step of rows of different lengths: positions without a label have no loss, no
gradient and no metric."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from runner.errors import ConfigError
from runner.evaluation import evaluate
from runner.spec import Measured
from tests.rows import long_but, slow_but, slow_rows
from tests.training import difference, prepare, train

NUM = 40
LENGTHS = np.random.default_rng(0).integers(2, 9, NUM)
LAYERS = (
    "model.layers=[{layer: masking, mask_value: 9.0},{layer: conv1d, filters: 4, kernel_size: 3},"
    "{layer: attention, num_heads: 2},{layer: dense, units: outputs}]"
)
LOSS = ["loss=cross_entropy", "loss.label_smoothing=0.1", "loss.class_weights=[1,2,3]"]


def rows(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y, padded with 9 and -7."""
    rng = np.random.default_rng(1)
    x, y = np.full((NUM, steps, 2), 9.0), np.full((NUM, steps), -7)
    for i, num in enumerate(LENGTHS):
        x[i, :num] = rng.normal(size=(num, 2))
        y[i, :num] = 3 + (x[i, :num, 0] > 0) + (x[i, :num, 1] > 0.5)
    return x, y


def keys(folder: Path, steps: int = 9, **more: np.ndarray) -> list[str]:
    path = folder / f"rows_{steps}.npz"
    x, y = rows(steps)
    np.savez(path, **{"x": x, "y": y, **more})
    return ["data=npz", f"data.path={path}", "data.no_label=-7", LAYERS, "trainer.batch_size=8"]


def test_the_number_for_no_label_is_no_class(tmp_path: Path) -> None:
    data = prepare(keys(tmp_path)).data
    assert data.classes == ("3", "4", "5")
    y = np.concatenate([data.train.y, data.val.y, data.test.y])
    assert sorted((y >= 0).sum(axis=1)) == sorted(LENGTHS)
    assert set(np.unique(y)) == {-1, 0, 1, 2}


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_the_loss_is_the_mean_over_a_row_s_labels(backend: str, tmp_path: Path) -> None:
    """torch's cross_entropy, one row without its padding at a time. 1e-12: sums in another
    order."""
    overrides = [*keys(tmp_path), *LOSS, "trainer.precision=float64", "trainer.max_steps=1"]
    run, prepared = train(backend, overrides), prepare(overrides)
    (chunk,) = prepared.chunks(0, None, adapt=False)
    y = prepared.data.train.y[chunk.rows]
    expected, accuracies = [], []
    for z, labels in zip(run.outputs, y, strict=True):
        z, labels = torch.tensor(z[labels >= 0]), torch.tensor(labels[labels >= 0])
        values = functional.cross_entropy(z, labels, reduction="none", label_smoothing=0.1)
        expected.append(float((values * (labels + 1)).mean()))  # the weights are 1, 2, 3
        accuracies.append(float((z.argmax(1) == labels).double().mean()))
    assert run.losses[0] == pytest.approx(np.mean(expected), rel=1e-12)
    found = evaluate(
        prepare([*overrides, "metrics=[accuracy]"]),
        prepared.data.train.__class__(prepared.data.train.x[chunk.rows], y),
        lambda batch: run.outputs,
        lambda batches, keeps: Measured({}),
        "val/",
    )
    assert found["val/loss"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert found["val/accuracy"] == pytest.approx(np.mean(accuracies), rel=1e-12)


ROWS = [
    ("lightning", "float64"),
    ("keras", "float64"),
    ("witness", "exact"),
    ("lightning", "exact"),
]


@pytest.mark.parametrize(("backend", "precision"), slow_rows(ROWS, [ROWS[0], ROWS[2]]))
def test_longer_padding_changes_nothing(backend: str, precision: str, tmp_path: Path) -> None:
    """1e-12 in float64, and no bit in exact mode; with weights of rows and micro-batches."""
    common = [f"trainer.precision={precision}", "trainer.max_steps=9", "data.weight=w"]
    common += [
        "loss=cross_entropy",
        "loss.label_smoothing=0.1",
        "trainer.accumulate_grad_batches=2",
    ]
    weight = np.arange(NUM) % 3
    runs = [train(backend, [*keys(tmp_path, steps, w=weight), *common]) for steps in (9, 14)]
    weights = [run.state.weights for run in runs]
    assert difference(*weights) <= (0 if precision == "exact" else 1e-12)
    assert np.abs(runs[0].losses - runs[1].losses).max() <= (0 if precision == "exact" else 1e-12)


@pytest.mark.parametrize(
    ("precision", "num_updates"),
    long_but([("float64", 9), ("exact", 9), ("float64", 300)], slow=[("float64", 9), ("exact", 9)]),
)
def test_both_backends_agree(precision: str, num_updates: int, tmp_path: Path) -> None:
    """1e-12 in float64; to the bit in exact mode, as the witness."""
    length = [f"trainer.max_steps={num_updates}", "trainer.max_epochs=null"]
    overrides = [*keys(tmp_path), f"trainer.precision={precision}", *length]
    a, b = (train(backend, overrides) for backend in ("lightning", "keras"))
    limit = 0 if precision == "exact" else 1e-12
    assert difference(a.state.weights, b.state.weights) <= limit
    if precision == "exact":
        assert difference(a.state.weights, train("witness", overrides).state.weights) == 0


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (
            {"y": np.arange(NUM) % 2},
            ["data.no_label=0"],
            "data.no_label must be null unless PATH has a label at each position, got 0",
        ),
        ({"y": np.full((NUM, 9), -7)}, [], "PATH: row 0 of y has no label; leave it out"),
        (
            {},
            ["loss=custom", "loss._target_=torch.nn.CrossEntropyLoss"],
            "data.no_label must be null with a loss of your own, which gets no weights of "
            "positions, got -7",
        ),
        (
            {"y": np.abs(rows(9)[1])},
            ["data.no_label=null"],
            "model.layers must end the mask, because the padding has labels, too; data.no_label of "
            "data=npz or arrays is the number in y that stands for none",
        ),
    ],
)
def test_what_has_no_gaps_is_refused(
    change: dict[str, np.ndarray], more: list[str], words: str, tmp_path: Path
) -> None:
    given = {override.partition("=")[0] for override in more}
    settings = [key for key in keys(tmp_path, **change) if key.partition("=")[0] not in given]
    words = words.replace("PATH", str(tmp_path / "rows_9.npz"))
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        prepare([*settings, *more])
