"""The optimizers beyond torch's classic ones, against other libraries' and against their papers.

Each is given the same weights, gradients and rates as its oracle, over random hyperparameters, in
float64. Tolerance 1e-12, relative to the largest weight where that is above 1: a few updates of a
few dozen roundings of 1e-16 each.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from runner.spec import Weights
from tests.optimizer_steps import drawn, optimizer, steps
from tests.training import difference

TOLERANCE = 1e-12
BACKENDS = ("lightning", "keras")
NUM_STEPS = 5
RATES = [0.01, 0.02, 0.005, 0.0, 0.013]
# sets of random hyperparameters; an eager update of Keras takes 10 times as long as one of torch
NUM_SETS = {"lightning": 200, "keras": 10}


def problems(backend: str) -> Iterator[tuple[np.random.Generator, Weights, list[Weights]]]:
    """Yield a generator for hyperparameters, the first weights, and the gradients."""
    for seed in range(NUM_SETS[backend]):
        weights, *gradients = drawn(seed, 1 + NUM_STEPS)
        yield np.random.default_rng([seed, 1]), weights, [*gradients]


def by_torch(make: Any, weights: Weights, gradients: Sequence[Weights]) -> Weights:
    """Train with an optimizer of torch's kind, each weight in canonical layout; `make` takes the
    parameters by name."""
    import torch

    parameters = {
        name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in weights.items()
    }
    native = make(parameters)
    for values, rate in zip(gradients, RATES, strict=True):
        for group in native.param_groups:
            group["lr"] = rate
        for name, p in parameters.items():
            p.grad = torch.from_numpy(values[name].copy())
        native.step()
    return {name: p.detach().numpy() for name, p in parameters.items()}


def by_keras(make: Any, weights: Weights, gradients: Sequence[Weights]) -> Weights:
    """Train with an optimizer of Keras's kind; `make` takes a learning rate."""
    import keras
    import tensorflow as tf

    # every scalar of a Keras optimizer is rounded to this type
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        variables = {name: keras.Variable(v, dtype="float64") for name, v in weights.items()}
        native = make(RATES[0])
        native.build([*variables.values()])
        for values, rate in zip(gradients, RATES, strict=True):
            native.learning_rate = rate
            native.apply([tf.constant(values[name]) for name in variables])
        return {name: v.numpy() for name, v in variables.items()}
    finally:
        keras.config.set_floatx(floatx)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adafactor_is_torch_s(backend: str) -> None:
    """torch factors the last two axes in memory, here the canonical ones. Its eps1 is a lower bound
    of v, 1e-30 ours: below rounding. Without weight decay, which torch applies after RMS(p)."""
    import torch

    for rng, weights, gradients in problems(backend):
        keys = {
            "beta2_decay": -rng.uniform(0.1, 1.0),
            "eps2": 10 ** rng.uniform(-4, 0),
            "clip_threshold": rng.uniform(1.0, 1.5),
        }
        oracle = by_torch(
            lambda named, k=keys: torch.optim.Adafactor(
                named.values(),
                beta2_decay=k["beta2_decay"],
                eps=(1e-30, k["eps2"]),
                d=k["clip_threshold"],
            ),
            weights,
            gradients,
        )
        ours = steps(backend, optimizer("adafactor", **keys), weights, gradients, RATES)
        assert difference(ours.weights, oracle) < TOLERANCE


def test_adafactor_is_keras_s() -> None:
    """1e-7 in place of rounding: Keras rounds its hyperparameters to float32 on their way."""
    import keras

    weights, *gradients = drawn(0, 1 + NUM_STEPS)
    oracle = by_keras(lambda rate: keras.optimizers.Adafactor(rate), weights, gradients)
    ours = steps("keras", optimizer("adafactor"), weights, gradients, RATES)
    assert difference(ours.weights, oracle) < 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_adafactor_s_first_step_by_hand(backend: str) -> None:
    """At t' = 1 b is 0: R and C are the means of g^2, and for g = a b^T v is g^2, so that u is the
    gradients' signs with RMS 1; p moves by lr RMS(p). A row without gradients stays."""
    g = np.outer([1.0, -2.0, 0.0], [3.0, 0.5])
    p = np.array([[1.0, -1.0], [2.0, 2.0], [1.0, 1.0]])
    # RMS(p) = sqrt(12 / 6); RMS(u) = sqrt(4 / 6) < 1, so nothing is clipped
    expected = p - 0.1 * 2**0.5 * np.sign(g)
    ours = steps(backend, optimizer("adafactor"), {"k": p}, [{"k": g}], [0.1])
    # 1e-12: eps1 over the smallest square, and a few roundings
    np.testing.assert_allclose(ours.weights["k"], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.slots["row_square_average"]["k"], (g**2).mean(1), atol=1e-15)
    np.testing.assert_allclose(ours.slots["column_square_average"]["k"], (g**2).mean(0), atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adafactor_without_scale_parameter_ignores_the_size_of_the_weights(backend: str) -> None:
    spec = optimizer("adafactor", scale_parameter=False)
    weights, *gradients = drawn(3, 1 + NUM_STEPS)
    large = {name: value * 100 for name, value in weights.items()}
    moved = [
        {name: after.weights[name] - before[name] for name in before}
        for before in (weights, large)
        for after in [steps(backend, spec, before, gradients, RATES)]
    ]
    # 1e-13: a change of a weight of size 100 is rounded to 1e-14
    assert difference(*moved) < 1e-13
