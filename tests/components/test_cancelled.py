"""Weights whose true gradient is 0, found from the layers alone, against the gradients that torch
computes in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from backends.lightning import layers as torch_layers
from runner.components.cancelled import cancelled
from runner.components.layers import Network, initial_variables, network
from runner.config.schema import parse
from runner.errors import ConfigError
from tests.command_line import BACKENDS, forked
from tests.training import compose, prepare, train

TANH, NORM, LINE = (
    "{layer: activation, function: tanh}",
    "{layer: batch_norm}",
    "{layer: layer_norm}",
)
DENSE, OUT = "{layer: dense, units: 6}", "{layer: dense, units: 3}"
CONV, FLAT = "{layer: conv2d, filters: 2, kernel_size: 3", "{layer: flatten}"
DEPTHWISE = "{layer: depthwise_conv2d, kernel_size: [1, 2]"
LARGER = "{layer: conv2d_transpose, filters: 2, kernel_size: 3, stride: 2}"
ROW, IMAGE, SEQUENCE = (6,), (5, 5, 2), (4, 6)

# layers, the input's shape -> weights that change no output
TABLE: list[tuple[str, tuple[int, ...], set[str]]] = [
    (f"{DENSE},{TANH},{OUT}", ROW, set()),
    (f"{DENSE},{NORM},{TANH},{OUT}", ROW, {"dense_0/bias"}),
    # a layer norm cancels one direction of a bias, not all of it
    (f"{DENSE},{LINE},{TANH},{OUT}", ROW, set()),
    (f"{DENSE},{TANH},{NORM},{OUT}", ROW, set()),
    (f"{DENSE},{DENSE},{NORM},{NORM},{OUT}", ROW, {"dense_0/bias", "dense_1/bias",
        "batch_norm_0/offset"}),
    (f"{DENSE},{LINE},{DENSE},{NORM},{OUT}", ROW, {"layer_norm_0/offset", "dense_1/bias"}),
    (f"{DENSE},{{layer: dropout, rate: 0.0}},{NORM},{OUT}", ROW, {"dense_0/bias"}),
    (f"{DENSE},{{layer: dropout, rate: 0.5}},{NORM},{OUT}", ROW, set()),
    (f"{DENSE},{{layer: dense, units: 1}},{LINE},{DENSE},{OUT}", ROW, {
        "dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias", "layer_norm_0/scale",
    }),
    (f"{CONV}}},{NORM},{FLAT},{OUT}", IMAGE, {"conv2d_0/bias"}),
    # the border of a `same` shows the first one
    (f"{CONV}}},{CONV}}},{NORM},{FLAT},{OUT}", IMAGE, {"conv2d_1/bias"}),
    (f"{CONV}}},{CONV}, padding: valid}},{NORM},{FLAT},{OUT}", IMAGE,
        {"conv2d_0/bias", "conv2d_1/bias"}),
    (f"{CONV}}},{CONV}}},{FLAT},{NORM},{OUT}", IMAGE, {"conv2d_0/bias", "conv2d_1/bias"}),
    (f"{CONV}, dilation: 2}},{CONV}, dilation: 2}},{NORM},{FLAT},{OUT}", IMAGE, {"conv2d_1/bias"}),
    (f"{CONV}}},{DEPTHWISE}, padding: valid}},{NORM},{FLAT},{OUT}", IMAGE,
        {"conv2d_0/bias", "depthwise_conv2d_0/bias"}),
    (f"{CONV}}},{DEPTHWISE}}},{NORM},{FLAT},{OUT}", IMAGE, {"depthwise_conv2d_0/bias"}),
    # its positions have different numbers of products
    (f"{CONV}}},{LARGER},{NORM},{FLAT},{OUT}", IMAGE, {"conv2d_transpose_0/bias"}),
    (f"{CONV}}},{{layer: upsampling2d}},{NORM},{FLAT},{OUT}", IMAGE, {"conv2d_0/bias"}),
    (f"{CONV}}},{{layer: max_pool}},{NORM},{FLAT},{OUT}", IMAGE, {"conv2d_0/bias"}),
    (f"{CONV}}},{CONV}}},{{layer: max_pool}},{FLAT},{NORM},{OUT}", IMAGE, {"conv2d_1/bias"}),
    (f"{CONV}}},{CONV}}},{{layer: average_pool}},{FLAT},{NORM},{OUT}", IMAGE,
        {"conv2d_0/bias", "conv2d_1/bias"}),
    (f"{CONV}}},{CONV}}},{{layer: global_average_pool}},{NORM},{OUT}", IMAGE,
        {"conv2d_0/bias", "conv2d_1/bias"}),
    (f"{CONV}}},{{layer: reshape, shape: [2, 25]}},{NORM},{FLAT},{OUT}", IMAGE, set()),
    (f"{{layer: position_embedding}},{NORM},{FLAT},{OUT}", SEQUENCE, set()),
    (f"{{layer: position_embedding}},{DENSE},{FLAT},{NORM},{OUT}", SEQUENCE,
        {"position_embedding_0/embedding", "dense_0/bias"}),
    (f"{{layer: position_embedding}},{NORM},{FLAT},{OUT}", (1, 6),
        {"position_embedding_0/embedding"}),
    (f"{{layer: attention, num_heads: 2}},{FLAT},{OUT}", (1, 6),
        {"attention_0/query", "attention_0/key"}),
    (f"{DENSE},{{layer: attention, num_heads: 2}},{FLAT},{OUT}", SEQUENCE, set()),
    # a group of one channel loses what is equal at all positions; a larger one keeps a part
    (f"{CONV}}},{{layer: group_norm, groups: 2}},{FLAT},{OUT}", IMAGE, {"conv2d_0/bias"}),
    (f"{CONV}}},{{layer: group_norm, groups: 1}},{FLAT},{OUT}", IMAGE, set()),
    (f"{DENSE},{{layer: group_norm, groups: 6}},{OUT}", ROW,
        {"dense_0/kernel", "dense_0/bias", "group_norm_0/scale"}),
    (f"{CONV}}},{{layer: global_max_pool}},{NORM},{OUT}", IMAGE, {"conv2d_0/bias"}),
    (f"{DENSE},{{layer: rms_norm}},{OUT}", ROW, set()),
    # what leaves a branch, and what comes into both
    (f"{{layer: residual, layers: [{DENSE},{TANH},{DENSE}]}},{NORM},{OUT}", ROW, {"dense_1/bias"}),
    (f"{DENSE},{{layer: residual, layers: [{DENSE},{NORM}]}},{NORM},{OUT}", ROW,
     {"dense_0/bias", "dense_1/bias", "batch_norm_0/offset"}),
    ((
        f"{DENSE},{{layer: residual, layers: [{DENSE},{NORM}], shortcut: "
        f"[{DENSE},{NORM}]}},{TANH},{OUT}"
    ), ROW,
     {"dense_0/bias", "dense_1/bias", "dense_2/bias"}),
    # a product changes what the bias adds, from row to row
    (f"{{layer: parallel, branches: [[{DENSE}],[{DENSE},{TANH}]]}},{NORM},{OUT}", ROW,
     {"dense_0/bias"}),
    (f"{{layer: parallel, join: multiply, branches: [[{DENSE}],[{DENSE},{NORM}]]}},{NORM},{OUT}",
     ROW, {"dense_1/bias"}),
    (f"{DENSE},{{layer: residual, layers: [{TANH},{DENSE}]}},{NORM},{OUT}", ROW, {"dense_1/bias"}),
]  # fmt: skip


def made(layers: str, shape: tuple[int, ...]) -> Network:
    return network(parse(compose([f"model.layers=[{layers}]"])).model.layers, shape, 3)


def gradients(net: Network) -> dict[str, float]:
    """The largest derivative of a random linear function of the outputs of 7 rows by each weight,
    all drawn at random."""
    rng = np.random.default_rng(0)
    model = torch_layers.Network(net, torch_layers.DropoutState(0)).double().train()
    torch_layers.load(
        model, {name: rng.normal(size=v.shape) for name, v in initial_variables(net, 0).items()}
    )
    outputs = model(torch.from_numpy(rng.normal(size=(7, *net.input_shape))))
    (outputs * torch.from_numpy(rng.normal(size=outputs.shape))).sum().backward()  # type: ignore[no-untyped-call]
    trained = {name for name, variable in net.variables().items() if variable.trainable}
    return {
        name: float(value.grad.abs().max())
        for name, value in model.named().items()
        if name in trained
    }


@pytest.mark.parametrize(
    ("layers", "shape", "expected"), TABLE, ids=[layers for layers, *_ in TABLE]
)
def test_what_is_cancelled_is_what_has_no_gradient(
    layers: str, shape: tuple[int, ...], expected: set[str]
) -> None:
    """1e-11: float64's rounding of some hundred terms of size 1 to 10. The least true gradient here
    is that of a scale before a batch norm, which cancels it but for eps / variance."""
    net = made(layers, shape)
    found = gradients(net)
    assert {name for name, size in found.items() if size < 1e-11} == expected
    assert min(size for name, size in found.items() if name not in expected) > 1e-9
    assert set(cancelled(net)) == expected


def test_a_tied_weight_is_cancelled_only_if_both_its_uses_are() -> None:
    """A layer norm of one value is its offset, whatever the embedding is; the output has the same
    matrix."""
    head = "layer: dense, units: outputs, bias: false"
    for tie, expected in ((", tie: embedding_0", set()), ("", {"embedding_0/embedding"})):
        body = f"{{layer: embedding, features: 1}},{LINE},{{{head}{tie}}}"
        given = parse(compose([f"model.layers=[{body}]"])).model.layers
        found = cancelled(network(given, (4,), 3, (4,), num_tokens=3))
        assert set(found) == {"layer_norm_0/scale", *expected}


# --- as a user sees it

PARTING = [
    f"model.layers=[{{layer: dense, units: 16}},{NORM},{TANH},{{layer: dense, units: outputs}}]"
]
TOLD = (
    "model.layers: batch_norm_0 cancels dense_0/bias, so its gradient is rounding noise; "
    "optimizer=lion turns it into steps, "
    "and the backends differ; set bias: false in dense_0"
)


@pytest.mark.slow
def test_a_bias_before_a_norm_is_told_before_training(tmp_path: Path) -> None:
    run = (*PARTING, "trainer.max_steps=1")
    told, without = forked(
        tmp_path,
        (*run, "optimizer=lion"),
        (*run, "optimizer=lion", "layer_defaults.dense.bias=false"),
    )
    (sgd,) = forked(tmp_path, (*run, "optimizer=sgd"))
    assert f"warning: {TOLD}" in told.out
    assert [done.status for done in (told, without, sgd)] == [0, 0, 0]
    assert all("cancels" not in done.out for done in (without, sgd))


def test_other_weights_are_told_how_to_freeze_them() -> None:
    overrides = [f"model.layers=[{NORM},{NORM},{{layer: dense, units: outputs}}]"]
    (told,) = prepare(overrides).check_schedule()
    fix = "optimizer.groups=[{match: batch_norm_0/offset, lr_factor: 0}]"
    assert told.endswith(f"and the backends differ; set {fix}")
    assert prepare([*overrides, fix]).check_schedule() == []
    with pytest.raises(ConfigError, match="batch_norm_1 cancels batch_norm_0/offset"):
        prepare([*overrides, "trainer.strict=true"]).check_schedule()


@pytest.mark.slow
def test_the_backends_part_by_such_a_bias_and_not_without_it() -> None:
    """Rounding noise differs, and Lion makes steps of 1e-3 of it; 1e-12 as in tests/parity."""
    common = [
        *PARTING,
        "optimizer=lion",
        "optimizer.lr=1e-3",
        "trainer.precision=float64",
        "trainer.max_steps=60",
    ]
    for bias, apart in (("true", True), ("false", False)):
        a, b = (
            train(backend, [*common, f"layer_defaults.dense.bias={bias}"]) for backend in BACKENDS
        )
        largest = max(
            np.abs(value - b.state.weights[name]).max() for name, value in a.state.weights.items()
        )
        assert (largest > 1e-3) if apart else (largest < 1e-12)
