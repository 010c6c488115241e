"""The claim: padding at the end of a row changes nothing. The layers after `masking`, or after an
embedding with `mask_zero`, compute what they compute for the row without its padding."""

from pathlib import Path

import numpy as np
import pytest

from runner import dispatcher, load_run
from tests.command_line import forked
from tests.rows import slow_rows
from tests.training import Trained, difference, train

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
