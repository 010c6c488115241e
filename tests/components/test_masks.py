"""The claim: padding at the end of a row changes nothing. The layers after `masking`, or after an
embedding with `mask_zero`, compute what they compute for the row without its padding."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from runner import dispatcher, load_run
from runner.data.source import Batch
from runner.errors import ConfigError
from runner.evaluation import evaluate
from runner.spec import Measured
from tests.command_line import forked
from tests.rows import long_but, slow_rows
from tests.training import Trained, apart, difference, prepare, train

OUTPUTS = "{layer: dense, units: outputs}"
BODIES = {
    "gru": "{layer: gru, units: 4}",
    "gru_bidirectional": (
        "{layer: gru, units: 4, return_sequences: true, bidirectional: true},"
        "{layer: layer_norm},{layer: gru, units: 3, bidirectional: true}"
    ),
    "lstm_bidirectional": (
        "{layer: lstm, units: 4, return_sequences: true, bidirectional: true},"
        "{layer: lstm, units: 3, bidirectional: true}"
    ),
    "conv1d": (
        "{layer: conv1d, filters: 4, kernel_size: 4},{layer: activation, function: relu},"
        "{layer: conv1d, filters: 4, kernel_size: 2, padding: causal, dilation: 2},"
        "{layer: global_max_pool}"
    ),
    "attention": (
        "{layer: dense, units: 4},{layer: residual, layers: [{layer: rms_norm},"
        "{layer: attention, num_heads: 2}]},{layer: attention, num_heads: 2, causal: true},"
        "{layer: global_average_pool}"
    ),
    "grouped_attention": (
        "{layer: dense, units: 4},{layer: sinusoidal_positions},{layer: gated_dense, units: 4},"
        "{layer: attention, num_heads: 2, num_kv_heads: 1, positions: rotary, causal: true},"
        "{layer: global_average_pool}"
    ),
    "residual": (
        "{layer: residual, layers: [{layer: gru, units: 4, return_sequences: true}], "
        "shortcut: [{layer: conv1d, filters: 4, kernel_size: 3}]},{layer: global_average_pool}"
    ),
}
FIRST = {
    "numbers": "{layer: masking}",
    "tokens": "{layer: embedding, features: 3, num_embeddings: 8, mask_zero: true}",
}
# the Keras rows are few: tests/parity and tests/exact compare the frameworks with masks
_QUICK = [("lightning", body, "tokens") for body in ("gru_bidirectional", "attention")]
_KERAS = [("keras", body, "tokens") for body in ("conv1d", "attention", "residual")]
FLOAT64 = slow_rows(
    [*(("lightning", body, kind) for body in BODIES for kind in FIRST), *_KERAS], _QUICK
)
EXACT = slow_rows(
    [
        *((name, body, kind) for name in ("witness", "lightning") for body in BODIES
          for kind in FIRST),
        _KERAS[1],
    ],
    _QUICK,
)  # fmt: skip
NUM_ROWS, LONGEST = 64, 9
LENGTHS = np.random.default_rng(0).integers(1, LONGEST + 1, NUM_ROWS)


def rows(kind: str, num_steps: int) -> np.ndarray:
    """Return the same rows padded by zeros to a length. Some have a zero between other values."""
    rng = np.random.default_rng(1)
    if kind == "tokens":
        values = rng.integers(0, 8, (NUM_ROWS, LONGEST)).astype(np.int32)
        values[np.arange(NUM_ROWS), LENGTHS - 1] = 5  # the last token is not the padding's
    else:
        values = rng.normal(size=(NUM_ROWS, LONGEST, 3))
        values[:, 1] *= (LENGTHS == 2)[:, None]
    values[np.arange(LONGEST) >= LENGTHS[:, None]] = 0
    padded = np.zeros((NUM_ROWS, num_steps, *values.shape[2:]), values.dtype)
    padded[:, :LONGEST] = values[:, :num_steps]
    return padded


def overrides(folder: Path, x: np.ndarray, layers: str, precision: str) -> list[str]:
    path = folder / f"{len(list(folder.iterdir()))}.npz"
    np.savez(path, x=x, y=np.arange(len(x)) % 3)
    return [
        "data=npz", f"data.path={path}", "data.val_fraction=0", "data.test_fraction=0",
        "trainer.monitor=train/loss",
        f"model.layers=[{layers},{OUTPUTS}]", "optimizer.lr=0.01",
        f"trainer.precision={precision}", "trainer.batch_size=16",
    ]  # fmt: skip


def trained(
    folder: Path,
    body: str,
    kind: str,
    backends: tuple[str, str],
    precision: str,
    num_updates: int,
) -> list[Trained]:
    """Train on the rows of 9 steps with the first backend, and of 14 steps with the second."""
    layers, steps = f"{FIRST[kind]},{BODIES[body]}", f"trainer.max_steps={num_updates}"
    return [
        train(backend, [steps, *overrides(folder, rows(kind, num_steps), layers, precision)])
        for backend, num_steps in zip(backends, (LONGEST, 14), strict=True)
    ]


@pytest.mark.parametrize("kind", FIRST)
@pytest.mark.parametrize("body", BODIES)
def test_the_outputs_are_those_of_the_row_without_its_padding(
    tmp_path: Path, body: str, kind: str
) -> None:
    """The same layers without a mask, on the truncated row, are the expected value. The tolerance:
    sums over more zeros may be in another order, which changes the last bits of float64."""
    x = rows(kind, LONGEST)
    plain = FIRST[kind].replace("{layer: masking}", "").replace("mask_zero: true", "init: uniform")
    for length in (1, 4, LONGEST):
        chosen = np.flatnonzero(length == LENGTHS)[:1].repeat(3)  # a row for each of three labels
        outputs = [
            train("lightning", ["trainer.max_steps=1", *config]).outputs
            for config in (
                overrides(tmp_path, x[chosen], f"{FIRST[kind]},{BODIES[body]}", "float64"),
                overrides(
                    tmp_path, x[chosen, :length], f"{plain},{BODIES[body]}".lstrip(","), "float64"
                ),
            )
        ]
        np.testing.assert_allclose(*outputs, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("backend", "body", "kind"), FLOAT64)
def test_the_length_of_the_padding_changes_no_run(
    tmp_path: Path, body: str, kind: str, backend: str
) -> None:
    """Losses and weights agree within 1e-12 after 20 updates, as for parity. The short rows are
    Lightning's, so this is parity too."""
    runs = trained(tmp_path, body, kind, ("lightning", backend), "float64", 20)
    np.testing.assert_allclose(runs[1].losses, runs[0].losses, rtol=0, atol=1e-12)
    assert difference(runs[1].state.weights, runs[0].state.weights) < 1e-12


@pytest.mark.parametrize(("backend", "body", "kind"), EXACT)
def test_the_length_of_the_padding_changes_no_bit_in_exact_mode(
    tmp_path: Path, body: str, kind: str, backend: str
) -> None:
    """The sums over 9 and over 14 steps of 16 rows have up to 2^8 terms, so the bits are equal."""
    runs = trained(tmp_path, body, kind, ("witness", backend), "exact", 10)
    np.testing.assert_array_equal(runs[1].losses, runs[0].losses)
    assert difference(runs[1].state.weights, runs[0].state.weights) == 0


# Every layer that a masked sequence may have, side by side: the gradients say which one is wrong
_TO_STEPS = (
    "{layer: parallel, branches: [[{layer: gru, units: 4, return_sequences: true}],"
    "[{layer: gru, units: 3, return_sequences: true, bidirectional: true}],"
    "[{layer: lstm, units: 3, return_sequences: true}],"
    "[{layer: lstm, units: 2, return_sequences: true, bidirectional: true}],"
    "[{layer: conv1d, filters: 4, kernel_size: 4}],"
    "[{layer: conv1d, filters: 4, kernel_size: 2, padding: causal, dilation: 2}],"
    "[{layer: dense, units: 4},{layer: attention, num_heads: 2}],"
    "[{layer: gated_dense, units: 4},{layer: sinusoidal_positions},{layer: attention, "
    "num_heads: 2, num_kv_heads: 1, positions: rotary, causal: true}],"
    "[{layer: dense, units: 4},{layer: layer_norm},{layer: dropout, rate: 0.2},"
    "{layer: rms_norm}]]}"
)
_TO_ROWS = (
    "{layer: parallel, branches: [[{layer: global_average_pool}],[{layer: global_max_pool}],"
    "[{layer: gru, units: 3}],[{layer: lstm, units: 3, bidirectional: true}]]}"
)
_AT_STEPS = "accuracy,top_2_accuracy,bits_per_token,perplexity,mean_iou,f1_macro"
# first layer, the others, metrics, and other keys; exact mode has no CTC
TASKS: dict[str, tuple[str, str, str, list[str]]] = {
    "numbers": ("numbers", f"{_TO_STEPS},{_TO_ROWS}", "accuracy,top_2_accuracy,f1_macro", []),
    "tokens": ("tokens", f"{_TO_STEPS},{_TO_ROWS}", "accuracy,top_2_accuracy,f1_macro", []),
    "labels at steps": ("numbers", _TO_STEPS, _AT_STEPS, ["data.no_label=-7"]),
    "hidden tokens": ("tokens", _TO_STEPS, _AT_STEPS, ["data.no_label=-7"]),
    "transcription": (
        "numbers", _TO_STEPS, "token_error_rate,word_error_rate",
        ["data.no_label=-7", "data.task=transcription"],
    ),
}  # fmt: skip
# the number of bits of sums over 36 rows of 9 steps is not that of 17; heads of 2 times 17 queries
# have more than 32, too
_WHERE = [
    ("lightning", "float64"), ("keras", "float64"), ("witness", "exact"), ("lightning", "exact"),
    ("keras", "exact"),
]  # fmt: skip
_ALL = [
    (*where, task)
    for where, task in product(_WHERE, TASKS)
    if where[1] != "exact" or task != "transcription"
]
_SLOW = [row for row in _ALL if row[0] != "keras" or row[1:] == ("float64", "hidden tokens")]


def labels(task: str, num_steps: int) -> np.ndarray:
    """A label of each row, of each step, of a third of the steps, or one or two in their order."""
    rng = np.random.default_rng(2)
    if task in ("numbers", "tokens"):
        return np.arange(NUM_ROWS) % 3
    y = np.full((NUM_ROWS, num_steps if task != "transcription" else 2), -7)
    drawn = rng.integers(0, 3, (NUM_ROWS, LONGEST))
    y[:, :LONGEST] = drawn[:, : y.shape[1]]
    if task == "transcription":
        y[:, 1] = np.where(LENGTHS < 3, -7, (y[:, 0] + 1) % 3)
        return y
    y[np.arange(num_steps) >= LENGTHS[:, None]] = -7
    if task == "hidden tokens":
        y[:, np.arange(num_steps) % 3 > 0] = -7
    return y


def one_update(
    folder: Path, task: str, backend: str, precision: str, num_steps: int, padding: float
) -> tuple[Trained, dict[str, float]]:
    """Train for one update on rows of so many steps, with `padding` at their end. The momentum of
    plain SGD is then the gradient. Also return the loss and the metrics of the validation rows."""
    kind, layers, names, more = TASKS[task]
    x, first_layer = rows(kind, num_steps), FIRST[kind]
    if kind == "numbers":
        x[np.arange(num_steps) >= LENGTHS[:, None]] = padding
        first_layer = first_layer.replace("masking", f"masking, mask_value: {padding}")
    config = overrides(folder, x, f"{first_layer},{layers}", precision)
    replaced = {
        "data.val_fraction=0": "data.val_fraction=0.25",
        "trainer.batch_size=16": "trainer.batch_size=36",
    }
    config = [replaced.get(key, key) for key in config]
    np.savez(config[1].partition("=")[2], x=x, y=labels(task, num_steps))
    if task == "transcription":
        blanks = f"{OUTPUTS},{{layer: blank_padding}}]"
        config = [key.replace(f"{OUTPUTS}]", blanks) for key in config]
    sgd = ["optimizer=sgd", "optimizer.momentum=0.5", "trainer.max_steps=1"]
    config += [*sgd, *more, f"metrics=[{names}]"]
    done, prepared = train(backend, config), prepare(config)

    def predict(batch: Batch) -> np.ndarray:
        return dispatcher.load(backend).predict(prepared.model, done.state, batch)

    return done, evaluate(prepared, prepared.data.val, predict, lambda *_: Measured({}), "val/")


@pytest.mark.parametrize(
    ("backend", "precision", "task"),
    long_but(_ALL, _SLOW, [("lightning", "float64", "tokens"), ("witness", "exact", "numbers")]),
)
def test_padding_changes_no_loss_gradient_or_metric(
    backend: str, precision: str, task: str, tmp_path: Path
) -> None:
    """Rows of 9 steps that are padded with 0, and of 17 with 0 or another number. 1e-12 in float64,
    since sums over more zeros may be in another order; no bit in exact mode."""
    limit = 0 if precision == "exact" else 1e-12
    (short, of_short), (long, of_long) = (
        one_update(tmp_path, task, backend, precision, num_steps, padding)
        for num_steps, padding in ((LONGEST, 0.0), (17, 9.0))
    )
    assert abs(short.losses[0] - long.losses[0]) <= limit
    gradients = [run.state.slots["momentum"] for run in (short, long)]
    assert all(np.abs(gradient).max() > 0 for gradient in gradients[0].values())
    assert {
        name: apart(gradient, gradients[1][name])
        for name, gradient in gradients[0].items()
        if apart(gradient, gradients[1][name]) > limit
    } == {}
    assert len(of_short) == 1 + len(TASKS[task][2].split(","))
    assert of_long == pytest.approx(of_short, rel=0, abs=limit)


def test_padding_that_standardization_would_move_is_refused(tmp_path: Path) -> None:
    layers = f"{FIRST['numbers']},{BODIES['conv1d']}"
    config = overrides(tmp_path, rows("numbers", LONGEST), layers, "float32")
    words = (
        "data.standardize must be false for a model with masking: it scales each step by itself, "
        "and padding would have other values than mask_value; scale the values in the file, before "
        "the padding"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        prepare([*config, "data.standardize=true"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_an_export_ignores_the_padding_too(tmp_path: Path, backend: str) -> None:
    """The tolerance: in float32, another order of sums changes the last of 24 bits."""
    body = "conv1d" if backend == "lightning" else "attention"
    layers = f"{FIRST['tokens']},{BODIES['residual'].rpartition(',')[0]},{BODIES[body]}"
    config = overrides(tmp_path, rows("tokens", 14), layers, "float32")
    (done,) = forked(tmp_path, (*config, f"backend={backend}", "trainer.max_steps=2"))
    assert (done.status, done.err) == (0, "")
    x = rows("tokens", 14)[:5]
    name = {"lightning": "torch", "keras": "keras"}[backend]
    (exported,) = forked(tmp_path, ("task=export", f"run={done.folder}", f"format={name}"))
    assert (exported.status, exported.err) == (0, "")
    folder = tmp_path / done.folder
    if backend == "lightning":
        import torch

        model = torch.export.load(folder / "model.pt2").module()
        outputs = model(torch.from_numpy(x)).detach().numpy()
    else:
        dispatcher.load("keras")  # with the threads that tests use
        import keras

        outputs = np.asarray(keras.models.load_model(folder / "model.keras")(x))
    expected = load_run(folder).predict(x)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)
