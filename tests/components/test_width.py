"""Width scaling: the factors of the table of Yang et al. (2022), the first weights, and that
activations move equally far at every width."""

from typing import Any

import numpy as np
import pytest

from runner.components.optimizers import groups
from runner.components.width import Scale, scales
from tests.rows import slow_but
from tests.training import first, prepare, train

BASE = 64  # optimizer.width_base


def overrides(width: int, *others: str) -> list[str]:
    """A network of two hidden layers, 64 -> width -> width -> 10."""
    hidden = f"{{layer: dense, units: {width}}},{{layer: activation, function: relu}}"
    layers = f"model.layers=[{hidden},{hidden},{{layer: dense, units: outputs}}]"
    return [layers, "device=cpu", *others]


def test_the_rates_are_those_of_table_3() -> None:
    """r = 256 / 64 = 4. Adam: hidden and output kernels 1 / r. SGD: input kernels and vectors r,
    output 1 / r."""
    expected = {
        "adam": [1.0, 1.0, 0.25, 1.0, 0.25, 1.0],
        "sgd": [4.0, 4.0, 1.0, 4.0, 0.25, 1.0],
    }
    for name, rates in expected.items():
        prepared = prepare(
            overrides(256, f"optimizer={name}", f"optimizer.width_base={BASE}", "optimizer.lr=0.1")
        )
        found = scales(prepared.config.optimizer, prepared.network)
        assert [*found] == [f"dense_{i}/{kind}" for i in range(3) for kind in ("kernel", "bias")]
        assert [scale.rate for scale in found.values()] == rates
        by_name = {n: g.lr_factor for g in prepared.groups for n in g.names}
        assert [by_name[n] for n in found] == rates


@pytest.mark.parametrize("init", ["glorot_uniform", "he_uniform", "uniform", "unit_uniform"])
def test_the_first_weights_of_a_wide_model_spread_as_table_3_says(init: str) -> None:
    """Relative to the narrow model: the input's kernel as wide, the hidden one's 1 / sqrt(r), the
    output's 1 / r. r = 16; the deviation of 640 and more uniform draws is within 10 %, four times
    its own."""

    def spread(width: int) -> list[float]:
        given = [f"layer_defaults.dense.init={init}", f"optimizer.width_base={BASE}"]
        weights = first(prepare(overrides(width, *given))).weights
        return [float(weights[f"dense_{i}/kernel"].std()) for i in range(3)]

    ratios = np.array(spread(16 * BASE)) / spread(BASE)
    np.testing.assert_allclose(ratios, [1, 1 / 4, 1 / 16], rtol=0.1)


@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_the_base_width_itself_changes_no_number(model: str) -> None:
    extra = ["data=python_docs", "model=gpt"] if model == "gpt" else overrides(BASE)
    width = 128 if model == "gpt" else BASE
    plain, scaled = prepare(extra), prepare([*extra, f"optimizer.width_base={width}"])
    assert {*scales(scaled.config.optimizer, scaled.network).values()} == {Scale()}
    assert plain.groups == scaled.groups
    for name, value in first(plain).weights.items():
        np.testing.assert_array_equal(first(scaled).weights[name], value)


def test_a_transformer_scales_by_the_features_that_its_last_layer_reads() -> None:
    """The last layer reads 128 features, so r = 2: embeddings and norms train at eta, all kernels
    at eta / 2, whether they read 128 features or 512."""
    prepared = prepare(
        ["data=python_docs", "model=gpt", "optimizer=adamw", "optimizer.width_base=64"]
    )
    halved = {n for g in prepared.groups if g.lr_factor == 0.5 for n in g.names}
    variables = prepared.network.variables()
    assert halved == {
        name
        for name, variable in variables.items()
        if len(variable.shape) > 1 and "embedding" not in name
    }
    assert {g.lr_factor for g in groups(prepared.config.optimizer, prepared.network)} == {1.0, 0.5}


def layers(x: np.ndarray, weights: Any) -> list[np.ndarray]:
    """The outputs of the three dense layers, before the activations."""
    z, outputs = x, []
    for i in range(3):
        z = np.maximum(z, 0) if i else z
        z = z @ weights[f"dense_{i}/kernel"] + weights[f"dense_{i}/bias"]
        outputs.append(z)
    return outputs


def moved(width: int, backend: str, *given: str) -> np.ndarray:
    """The mean size of the change of each layer's outputs after four updates on digits."""
    said = overrides(width, "trainer.max_steps=4", *given)
    prepared = prepare(said)
    x = prepared.data.train.x[:256]
    start = first(prepared)
    end = train(backend, said, start=start).state
    pairs = zip(layers(x, start.weights), layers(x, end.weights), strict=True)
    return np.array([np.abs(after - before).mean() for before, after in pairs])


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_layers_move_equally_far_at_every_width(backend: str, name: str) -> None:
    """The coordinate check of Yang et al. (2022), over widths of 64 to 1,024: with the scaling, no
    layer moves twice as far at one width as at another. Without it, the outputs move 3.5 times as
    far with Adam, and the first layer a quarter as far with SGD."""
    given = [f"optimizer={name}", f"optimizer.lr={0.01 if name == 'adam' else 0.1}"]
    scaled = np.array(
        [moved(width, backend, *given, f"optimizer.width_base={BASE}") for width in (64, 256, 1024)]
    )
    assert (scaled.max(axis=0) / scaled.min(axis=0) < 2).all()
    narrow, wide = (moved(width, backend, *given) for width in (64, 1024))
    changes = wide / narrow
    assert changes[2] > 2.5 if name == "adam" else changes[0] < 0.4
