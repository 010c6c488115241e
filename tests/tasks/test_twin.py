"""task=twin names the layer with the planted difference, and agrees where there is none."""

import numpy as np
import pytest

from runner import dispatcher
from runner.cli.compose import compose
from runner.errors import ConfigError
from runner.tasks.twin import CAUSES, Result, compare, lines
from runner.tasks.twin_causes import confirmed
from tests.command_line import REPOSITORY
from tests.rows import slow_but

MODULE = "tests.twin_pairs"
# pair -> the place that is named, and what is said of it
PLANTED = {
    "batch_norm_epsilon": ("batch_norm_0 (2 /", "epsilon 1e-05 / 0.001"),
    "batch_norm_momentum": ("batch_norm_0 (2 /", "momentum 0.9 / 0.99"),
    "layer_norm_epsilon": ("layer_norm_0 (2 /", "epsilon 1e-05 / 0.001"),
    "padding": ("conv_0 (body.0 /", "padding ((1, 1), (1, 1)) / ((0, 1), (0, 1))"),
    "flatten": ("flatten (flat /", "both outputs have the same values in another order"),
    "pooling": ("average_pool (body.1 /", "counts_padding True / False"),
    "transposed_kernel": ("dense_1 (3 /", "Keras's output is x kernel^T + bias"),
    "gate_order": (
        "lstm_0 (layer /",
        "torch's output is an LSTM with its gates in the order i, f, o, g",
    ),
    "heads": ("attention_0 (layer /", "heads 4 / 2"),
    "missing_bias": ("dense_0 (1 /", "dense_0/bias is missing / [8]"),
    "gelu": ("activation (2 /", "approximate True / False"),
    "slope": ("activation (2 /", "slope 0.01 / 0.2"),
    "groups": ("group_norm_0 (body.1 /", "groups 3 / 2"),
    "rate": ("dropout (2 /", "rate 0.5 / 0.3"),
    "flatten_function": ("between conv_0 (conv /", "the axis order"),
    "gelu_function": ("between dense_0 (hidden /", "the variant of GELU"),
    "recurrent": ("rnn_0 (last /", "activation relu / tanh"),
    "convolutions": ("conv_2 (6 /", "padding ((2, 2),) / ((0, 0),)"),
    # the gradient that reaches the first layer lacks a path
    "detached": ("dense_0 (first /", "usual causes: a detach"),
    "frozen": ("dense_0 (1 /", "dense_0/kernel is not trained in torch only"),
    "two_outputs": ("output logits", "usual causes: a function between the layers and it"),
}
IN_KERAS = {"transposed_kernel"}


def found(pair: str, planted: bool, *more: str) -> Result:
    framework = "keras" if pair in IN_KERAS else "lightning"
    return compare(
        compose(
            [
                *("task=twin", "model=twin", "device=cpu", "data.images=true"),
                *(f"trusted_modules=[{MODULE}]", f"model.keras._target_={MODULE}.keras_{pair}"),
                f"model.lightning._target_={MODULE}.torch_{pair}",
                f"model.{framework}.planted={str(planted).lower()}",
                *more,
            ]
        )
    )


@pytest.mark.parametrize(
    "pair", slow_but(PLANTED, "batch_norm_momentum", "padding", "missing_bias", "two_outputs")
)
def test_the_layer_with_the_difference_is_named(pair: str) -> None:
    result = found(pair, planted=True)
    place, cause = PLANTED[pair]
    assert result.where is not None
    assert result.where.startswith(place)
    assert any(cause in one for one in result.causes)


@pytest.mark.parametrize("pair", slow_but(PLANTED, "padding", "gate_order"))
def test_the_same_model_is_the_same(pair: str) -> None:
    """1e-12: sums of some hundred products in float64."""
    result = found(pair, planted=False)
    assert result.where is None, [*lines(result)]
    assert result.largest <= 1e-12


def test_several_outputs_must_have_the_same_names() -> None:
    result = found("two_outputs", False, "model.lightning.name=length")
    assert result.where == "the outputs"
    assert result.causes == [
        "length, logits / logits, size: give both a dict with equal keys, or tuples"
    ]


def test_a_loss_of_one_framework_is_refused_in_a_line() -> None:
    """A tensor of TensorFlow has no method `mean`."""
    with pytest.raises(ConfigError) as error:
        found("two_outputs", False, "loss=custom", f"loss._target_={MODULE}.loss_two_outputs")
    start = (
        f"task=twin calls a loss of your own on both backends, or with loss=auto compares without "
        f"it; on keras: loss._target_ {MODULE}.loss_two_outputs raised AttributeError: "
    )
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


def test_the_docs_have_the_causes_of_every_kind() -> None:
    page = (REPOSITORY / "docs" / "twins.md").read_text(encoding="utf-8")
    kinds = {
        kind.strip()
        for line in page.splitlines()
        if line.startswith("| ")
        for kind in line.split("|")[1].split(",")
    }
    assert set(CAUSES) <= kinds


def test_a_gru_that_resets_before_the_product_is_recognised() -> None:
    """Keras's stock GRU with and without reset_after, on the same weights."""
    dispatcher.load("keras")
    import keras

    rng = np.random.default_rng(0)
    x, kernel, recurrent, bias = (
        rng.normal(size=shape) for shape in ((2, 4, 3), (3, 15), (5, 15), (15,))
    )
    outputs = {}
    for name, is_after in (("torch", True), ("Keras", False)):
        layer = keras.layers.GRU(5, reset_after=is_after, dtype="float64")
        layer.build(x.shape)
        both = np.stack([bias, np.zeros(15)]) if is_after else bias
        layer.set_weights([kernel, recurrent, both])
        outputs[name] = layer(x).numpy()
    weights = {"input_kernel": kernel, "recurrent_kernel": recurrent, "input_bias": bias}
    (cause,) = confirmed("gru", weights, x, outputs)
    assert cause.startswith("Keras's output is a GRU with its gates in the order z, r, n")
    assert cause.endswith("the reset gate before the product")
