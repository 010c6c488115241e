"""Layers of transformers and residual nets against formulas written with other functions, on both
backends, and their exports."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runner import dispatcher
from runner.components.positions import rotations
from runner.data.order import Chunk
from runner.plan import Plan
from runner.spec import Live, Report, TrainState
from tests.parity.test_parity import TEXT
from tests.rows import slow_but
from tests.training import first, prepare, train

BACKENDS = ("lightning", "keras")
# Sums of some ten float64 values near 1 in another order differ by some 1e-16
ROUNDING = 1e-13


def drawn(layers: str, *overrides: str) -> tuple[Plan, TrainState, np.ndarray]:
    """A model of these layers in float64, its first weights with biases that are not 0, and rows
    of the test data."""
    prepared = prepare(["trainer.precision=float64", f"model.layers=[{layers}]", *overrides])
    state, rng = first(prepared), np.random.default_rng(1)
    for name, value in state.weights.items():
        if "bias" in name:
            value[...] = rng.normal(size=value.shape)
    return prepared, state, prepared.data.test.x[:5]


def outputs(prepared: Plan, state: TrainState, x: np.ndarray) -> list[np.ndarray]:
    return [dispatcher.load(b).predict(prepared.model, state, {"x": x}) for b in BACKENDS]


def weights(state: TrainState, layer: str) -> dict[str, torch.Tensor]:
    return {
        name.partition("/")[2]: torch.from_numpy(np.array(value))
        for name, value in state.weights.items()
        if name.partition("/")[0] == layer
    }


def assert_all_close(found: Sequence[np.ndarray], expected: Any) -> None:
    for values in found:
        np.testing.assert_allclose(values, np.asarray(expected), rtol=0, atol=ROUNDING)


def test_gated_dense_with_sigmoid_is_torch_s_glu() -> None:
    prepared, state, x = drawn("{layer: gated_dense, units: 10, activation: sigmoid, bias: true}")
    w = weights(state, "gated_dense_0")
    # F.glu multiplies the first half by the sigmoid of the second
    products = torch.cat([w["kernel"], w["gate_kernel"]], 1)
    biases = torch.cat([w["bias"], w["gate_bias"]])
    assert_all_close(outputs(prepared, state, x), F.glu(torch.from_numpy(x) @ products + biases))


def test_gated_dense_with_silu_is_swiglu() -> None:
    """Shazeer (2020): Swish_1(x W) * (x V)."""
    prepared, state, x = drawn("{layer: gated_dense, units: 10}")
    w, rows = weights(state, "gated_dense_0"), torch.from_numpy(x)
    a = rows @ w["gate_kernel"]
    assert_all_close(outputs(prepared, state, x), a / (1 + torch.exp(-a)) * (rows @ w["kernel"]))


def test_squeeze_excite_scales_channels() -> None:
    """Hu et al. (2018), equations 2 to 4, written with 1 x 1 convolutions as in torchvision."""
    prepared, state, x = drawn(
        "{layer: reshape, shape: [2, 4, 8]},{layer: squeeze_excite, ratio: 4},"
        "{layer: flatten},{layer: dense, units: outputs}"
    )
    w, last = weights(state, "squeeze_excite_0"), weights(state, "dense_0")
    images = torch.from_numpy(x).reshape(-1, 2, 4, 8).permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(images, 1)
    hidden = F.conv2d(pooled, w["squeeze_kernel"].t()[:, :, None, None], w["squeeze_bias"]).relu()
    scale = F.conv2d(hidden, w["excite_kernel"].t()[:, :, None, None], w["excite_bias"]).sigmoid()
    rows = (images * scale).permute(0, 2, 3, 1).flatten(1)
    assert_all_close(outputs(prepared, state, x), rows @ last["kernel"] + last["bias"])


@pytest.mark.parametrize("join", ["concat", "add", "multiply"])
def test_branches_of_images_are_joined_on_the_channels(join: str) -> None:
    prepared, state, x = drawn(
        f"{{layer: reshape, shape: [4, 8, 2]}},{{layer: parallel, join: {join}, branches: ["
        "[{layer: conv2d, filters: 2, kernel_size: 1}],[],[{layer: activation, function: tanh}]]},"
        "{layer: flatten},{layer: dense, units: outputs}"
    )
    w, last = weights(state, "conv2d_0"), weights(state, "dense_0")
    images = torch.from_numpy(x).reshape(-1, 4, 8, 2)
    parts = [images @ w["kernel"][0, 0] + w["bias"], images, images.tanh()]
    y = torch.cat(parts, -1)
    if join != "concat":
        y = torch.stack(parts).sum(0) if join == "add" else torch.stack(parts).prod(0)
    assert_all_close(outputs(prepared, state, x), y.flatten(1) @ last["kernel"] + last["bias"])


def test_columns_and_slices_are_numpy_s() -> None:
    prepared, state, x = drawn(
        "{layer: parallel, branches: [[{layer: columns, names: [s5, bmi]}],[{layer: slice, start: "
        "3, stop: 9}],[{layer: columns, names: [s*]},{layer: slice, start: 4}]]},{layer: dense, "
        "units: outputs}",
        "data=diabetes",
    )
    names, last = list(prepared.data.features), weights(state, "dense_0")
    assert names == ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
    # those that begin with s are sex and s1 to s6
    rows = torch.from_numpy(x[:, [8, 2, 3, 4, 5, 6, 7, 8, 7, 8, 9]])
    assert_all_close(outputs(prepared, state, x), rows @ last["kernel"] + last["bias"])


def heads(x: torch.Tensor, kernel: torch.Tensor, num: int) -> torch.Tensor:
    """[B, T, D] -> [B, num, T, d]"""
    return (x @ kernel).unflatten(-1, (num, -1)).transpose(1, 2)


def test_grouped_heads_are_torch_s() -> None:
    prepared, state, x = drawn(
        "{layer: reshape, shape: [8, 8]},{layer: attention, num_heads: 4, num_kv_heads: 2},"
        "{layer: flatten},{layer: dense, units: outputs}"
    )
    w, last = weights(state, "attention_0"), weights(state, "dense_0")
    assert w["key"].shape == w["value"].shape == (8, 4)
    rows = torch.from_numpy(x).reshape(-1, 8, 8)
    q, k, v = (heads(rows, w[n], num) for n, num in (("query", 4), ("key", 2), ("value", 2)))
    mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
    expected = (mixed @ w["output"]).flatten(1) @ last["kernel"] + last["bias"]
    assert_all_close(outputs(prepared, state, x), expected)


def test_rotary_positions_multiply_complex_numbers() -> None:
    """Su et al. (2021): a pair of columns is a complex number, times exp(i t a); the pairs are the
    columns i and i + d/2."""
    prepared, state, x = drawn(
        "{layer: reshape, shape: [8, 8]},{layer: attention, num_heads: 2, positions: rotary, "
        "rotary_base: 100},{layer: flatten},{layer: dense, units: outputs}"
    )
    w, last = weights(state, "attention_0"), weights(state, "dense_0")
    rows = torch.from_numpy(x).reshape(-1, 8, 8)
    q, k, v = (heads(rows, w[name], 2) for name in ("query", "key", "value"))
    angles = torch.outer(torch.arange(8.0).double(), 100.0 ** -torch.tensor([0, 0.5]).double())

    def rotated(part: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(part[..., :2], part[..., 2:]) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat([turned.real, turned.imag], -1)

    mixed = F.scaled_dot_product_attention(rotated(q), rotated(k), v).transpose(1, 2).flatten(2)
    expected = (mixed @ w["output"]).flatten(1) @ last["kernel"] + last["bias"]
    assert_all_close(outputs(prepared, state, x), expected)


def test_sinusoidal_positions_are_those_of_the_paper() -> None:
    """Vaswani et al. (2017), section 3.5, for each position and feature."""
    prepared, state, x = drawn(
        "{layer: reshape, shape: [8, 8]},{layer: sinusoidal_positions},{layer: flatten},"
        "{layer: dense, units: outputs}"
    )
    last, encoded = weights(state, "dense_0"), np.empty((8, 8))
    for pos in range(8):
        for i in range(4):
            encoded[pos, 2 * i] = np.sin(pos / 10000 ** (2 * i / 8))
            encoded[pos, 2 * i + 1] = np.cos(pos / 10000 ** (2 * i / 8))
    rows = torch.from_numpy((x.reshape(-1, 8, 8) + encoded).reshape(-1, 64))
    assert_all_close(outputs(prepared, state, x), rows @ last["kernel"] + last["bias"])


TIED = [
    *TEXT,
    "model.layers=[{layer: embedding, features: 6},{layer: dense, units: 6},"
    "{layer: activation, function: tanh},{layer: dense, units: outputs, tie: embedding_0}]",
    *("optimizer=sgd", "optimizer.lr=1.0", "trainer.max_steps=1"),
]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("backend", slow_but([*BACKENDS, "witness"], "lightning", "witness"))
def test_a_tied_output_adds_the_gradients_of_both_uses(backend: str, frozen: bool) -> None:
    """An update of SGD at rate 1 subtracts the gradient of z = tanh(E_x W + b) E^T + c, which torch
    has; a frozen E has none. Exact mode has 24 bits."""
    is_exact = backend == "witness"
    overrides = [*TIED, f"trainer.precision={'exact' if is_exact else 'float64'}"]
    overrides += ["optimizer.groups=[{match: embedding_0, lr_factor: 0}]"] if frozen else []
    prepared = prepare(overrides)
    start = first(prepared)
    chunk = next(iter(prepared.chunks(0, None, adapt=False)))
    x, y = (prepared.data.train.x[chunk.rows], prepared.data.train.y[chunk.rows])
    names = ["embedding_0/embedding", "dense_0/kernel", "dense_0/bias", "dense_1/bias"]
    assert sorted(start.weights) == sorted(names)
    e, w, b, c = (
        torch.tensor(start.weights[n], dtype=torch.float64, requires_grad=True) for n in names
    )
    z = torch.tanh(e[torch.from_numpy(x).long()] @ w + b) @ e.t() + c
    F.cross_entropy(z.flatten(0, 1), torch.from_numpy(y).flatten().long()).backward()
    state = train(backend, overrides).state
    for name, value in zip(names, (e, w, b, c), strict=True):
        assert value.grad is not None
        gradient = 0 * value.grad if frozen and value is e else value.grad
        found = start.weights[name] - state.weights[name]
        np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-6 if is_exact else 1e-14)


@pytest.mark.parametrize("base", [1.0, 1.5, 100.0, 10000.0, 1e6])
def test_angles_are_those_of_numpy(base: float) -> None:
    """The tolerance is NumPy's own rounding of the angle t a: at most 300 half ulp of 1."""
    cos, sin = rotations(300, 5, base)
    angles = np.arange(300)[:, None] * base ** (-np.arange(5) / 5)
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=300 * 2.0**-52)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=300 * 2.0**-52)


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_stochastic_depth_drops_whole_rows_in_training_and_none_in_evaluation(backend: str) -> None:
    """The shortcut is 0 and the branch is a bias of 1, with a learning rate of almost 0: the
    outputs of the training rows are 0, or 1 / (1 - p). Within 6 standard deviations, p of the rows
    are dropped."""
    prepared = prepare([
        "trainer.precision=float64", "schedule=constant", "optimizer=sgd", "optimizer.lr=1e-300",
        "model.layers=[{layer: residual, stochastic_depth: 0.25, layers: [{layer: dense, units: "
        "outputs, init: zeros}], shortcut: [{layer: dense, units: outputs, init: zeros, bias: "
        "false}]}]",
    ])  # fmt: skip
    state = first(prepared)
    state.weights["dense_0/bias"][...] = 1.0
    spec = replace(prepared.run_spec(), keeps_outputs=True)
    seen: list[np.ndarray] = []

    def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
        seen.append(report.outputs)
        return True

    chunks = prepared.chunks(0, None, adapt=False)
    engine = dispatcher.load(backend)
    engine.train(spec, state, chunks, on_chunk)
    outputs = np.round(np.concatenate(seen), 12)  # the rate 1e-300 moves weights from 0
    assert (outputs == outputs[:, :1]).all()
    np.testing.assert_allclose(np.unique(outputs), [0, 1 / 0.75], rtol=1e-12)
    deviation = (0.25 * 0.75 / len(outputs)) ** 0.5
    assert abs((outputs[:, 0] == 0).mean() - 0.25) < 6 * deviation
    x = prepared.data.test.x[:9]
    assert (engine.predict(prepared.model, state, {"x": x}) == 1.0).all()


EXPORTS = {
    "positions": [
        "{layer: reshape, shape: [8, 8]},{layer: sinusoidal_positions},"
        "{layer: attention, num_heads: 2, num_kv_heads: 1, positions: rotary, causal: true},"
        "{layer: attention, num_heads: 4, num_kv_heads: 2},"
        "{layer: attention, num_heads: 4, positions: rotary},"
        "{layer: flatten},{layer: dense, units: outputs}"
    ],
    "gates": [
        "{layer: reshape, shape: [2, 4, 8]},{layer: squeeze_excite, ratio: 4},"
        "{layer: reshape, shape: [8, 8]},{layer: squeeze_excite, ratio: 2, bias: false},"
        "{layer: gated_dense, units: 8},{layer: flatten},"
        "{layer: gated_dense, units: 8, activation: gelu_tanh, bias: true},"
        "{layer: dense, units: outputs}"
    ],
}


@pytest.mark.parametrize("name", slow_but(EXPORTS, "gates"))
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_an_export_of_stock_layers_predicts_alike(backend: str, name: str, tmp_path: Path) -> None:
    prepared, state, x = drawn(*EXPORTS[name])
    path = tmp_path / ("model.keras" if backend == "keras" else "model.pt2")
    dispatcher.load(backend).export(prepared.model, state, path)
    if backend == "keras":
        import keras

        found = keras.models.load_model(path).predict(x, verbose=0)
    else:
        found = torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy()
    # the constants of Keras's own activations are rounded to float32
    expected = dispatcher.load(backend).predict(prepared.model, state, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
