"""torch's classic optimizers, and Lion's algorithm, against ours on both backends.

Random hyperparameters, in float64; the tolerance and the number of sets are those of
test_optimizer_oracles.py. On Lightning, ours are torch's classes on joined vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from runner.spec import Weights
from tests.components.test_optimizer_oracles import (
    RATES,
    TOLERANCE,
    by_torch,
    over_sets,
    problems,
    random_keys,
)
from tests.optimizer_steps import optimizer, steps
from tests.training import difference

# the keys that are drawn; those that are drawn from two values
KEYS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum", "weight_decay", "nesterov"),
    "adam": ("beta1", "beta2", "eps", "weight_decay", "amsgrad"),
    "adamw": ("beta1", "beta2", "eps", "weight_decay", "amsgrad"),
    "adamax": ("beta1", "beta2", "eps", "weight_decay"),
    "nadam": ("beta1", "beta2", "eps", "weight_decay", "momentum_decay"),
    "rmsprop": ("rho", "eps", "weight_decay", "momentum", "centered"),
    "adagrad": ("eps", "weight_decay", "initial_accumulator"),
    "adadelta": ("rho", "eps", "weight_decay"),
}
SWITCHES = ("nesterov", "amsgrad", "centered")
# torch's names of keys that have others here
SYNONYMS = {"initial_accumulator": "initial_accumulator_value", "rho": "alpha"}


def drawn_keys(rng: np.random.Generator, names: Sequence[str]) -> dict[str, Any]:
    switches = {name: bool(rng.integers(2)) for name in names if name in SWITCHES}
    return random_keys(rng, *(name for name in names if name not in SWITCHES)) | switches


def torch_s(name: str, keys: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """Return what makes torch's optimizer of that name."""
    from torch import optim

    kinds = {
        "sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW, "adamax": optim.Adamax,
        "nadam": optim.NAdam, "rmsprop": optim.RMSprop, "adagrad": optim.Adagrad,
        "adadelta": optim.Adadelta,
    }  # fmt: skip
    synonyms = {**SYNONYMS, "rho": "rho"} if name == "adadelta" else SYNONYMS
    given = {
        synonyms.get(key, key): value for key, value in keys.items() if not key.startswith("beta")
    }
    if "beta1" in keys:
        given["betas"] = (keys["beta1"], keys["beta2"])
    return lambda named: kinds[name](named.values(), **given)


@pytest.mark.parametrize("name", KEYS)
@over_sets
def test_the_classic_optimizers_are_torch_s(backend: str, num_sets: int, name: str) -> None:
    for rng, weights, gradients in problems(num_sets):
        keys = drawn_keys(rng, KEYS[name])
        oracle = by_torch(torch_s(name, keys), weights, gradients)
        ours = steps(backend, optimizer(name, **keys), weights, gradients, RATES)
        assert difference(ours.weights, oracle) < TOLERANCE, keys


def lion_of_the_paper(
    weights: Weights, gradients: Sequence[Weights], beta1: float, beta2: float, weight_decay: float
) -> Weights:
    """Chen et al. (2023), algorithm 2, line by line."""
    after = {}
    for name, theta in weights.items():
        m = np.zeros_like(theta)
        for values, rate in zip(gradients, RATES, strict=True):
            c = beta1 * m + (1 - beta1) * values[name]
            theta = theta - rate * (np.sign(c) + weight_decay * theta)
            m = beta2 * m + (1 - beta2) * values[name]
        after[name] = theta
    return after


@over_sets
def test_lion_is_its_paper_s_algorithm(backend: str, num_sets: int) -> None:
    for rng, weights, gradients in problems(num_sets):
        keys = random_keys(rng, "beta1", "beta2", "weight_decay")
        ours = steps(backend, optimizer("lion", **keys), weights, gradients, RATES)
        assert difference(ours.weights, lion_of_the_paper(weights, gradients, **keys)) < TOLERANCE
