"""The bits of every optimizer and loss are those of golden.json, which independent.py made by
fractions and mpmath.

All implementations share the formulas of runner/exact, so that a rounding that is left out there
moves all of them alike; here it shows.
"""

import json
from typing import Any

import numpy as np
import pytest

from runner.components.losses import BinaryCrossEntropy, CrossEntropy, Huber, MeanSquaredError
from runner.components.optimizers import Group
from runner.config.schema import parse
from runner.exact import losses, optimizers
from runner.exact.reference import NumPy
from tests.exact import independent
from tests.parity.test_parity import OPTIMIZERS
from tests.training import compose

OPTIMIZER_ROWS = [f"{name}-{mode}" for name in OPTIMIZERS for mode in ("coupled", "decoupled")]
LOSS_KINDS: dict[str, Any] = {
    "cross_entropy": CrossEntropy, "binary_cross_entropy": BinaryCrossEntropy, "huber": Huber,
    "mean_squared_error": MeanSquaredError,
}  # fmt: skip
GOLDEN = (
    json.loads(independent.GOLDEN.read_text(encoding="utf-8"))
    if independent.GOLDEN.exists()
    else {}
)


def spec_of(row: str) -> Any:
    name, _, mode = row.partition("-")
    decay = ["optimizer.weight_decay=0.01", f"optimizer.weight_decay_mode={mode}"]
    return parse(compose([*OPTIMIZERS[name], *decay])).optimizer


def hexadecimal(values: np.ndarray) -> list[str]:
    return [float(value).hex() for value in np.asarray(values).reshape(-1)]


@pytest.mark.parametrize("name", OPTIMIZER_ROWS)
def test_every_optimizer_has_the_stored_bits(name: str) -> None:
    spec, o, num = spec_of(name), NumPy(), len(independent.RATES)
    w, gradients = independent.drawn(1, (6,)), independent.drawn(2, (num, 6))
    slots: dict[str, Any] = {
        slot: np.full(6, optimizers.constant(value)) for slot, value in spec.slots().items()
    }
    tables = optimizers.tables(spec, num, {})
    for t in range(num):
        h = optimizers.Hyperparameters(
            o, spec, {}, {key: values[t] for key, values in tables.items()}
        )
        w, slots = optimizers.update(
            h, w, gradients[t], slots, np.float64(independent.RATES[t]), Group(("w",))
        )
    assert {
        "weights": hexadecimal(w),
        **{slot: hexadecimal(v) for slot, v in slots.items()},
    } == GOLDEN["optimizers"][name]


@pytest.mark.parametrize("name", independent.LOSSES)
def test_every_loss_has_the_stored_bits(name: str) -> None:
    z, y = independent.rows(name)
    keys = independent.LOSSES[name][0]
    derivative, value = losses.FORMS[keys["name"]]
    spec = LOSS_KINDS[keys["name"]](**keys)
    found = {
        "derivatives": hexadecimal(derivative(NumPy(), spec, z, y)),
        "values": hexadecimal(value(NumPy(), spec, z, y)),
    }
    assert found == GOLDEN["losses"][name]


@pytest.mark.parametrize("name", ["adam-coupled", "nadam-decoupled", "rmsprop_both-coupled"])
def test_the_file_is_what_the_program_makes(name: str) -> None:
    spec = spec_of(name)
    assert independent.optimizer(spec.model_dump(), spec.slots()) == GOLDEN["optimizers"][name]


@pytest.mark.parametrize("name", independent.LOSSES)
def test_the_file_has_the_losses_that_the_program_makes(name: str) -> None:
    assert independent.loss(name) == GOLDEN["losses"][name]
