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
from runner.exact.hyperparameters import Hyperparameters
from runner.exact.network import Layout
from runner.exact.reference import NumPy
from runner.exact.state import StateLayout, Unit
from tests.exact import independent
from tests.parity.test_parity import ALL_OPTIMIZERS, OF_TENSORS, OPTIMIZERS
from tests.training import compose

OPTIMIZER_ROWS = [f"{name}-{mode}" for name in OPTIMIZERS for mode in ("coupled", "decoupled")]
# optimizers of whole tensors; all of them have decoupled decay, and one of them each other way
TENSOR_ROWS = [
    *(f"{name}-decoupled" for name in OF_TENSORS),
    *("lamb-layerwise", "lars-layerwise", "prodigy-coupled", "schedule_free_adamw-coupled"),
]
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
    return parse(compose([*ALL_OPTIMIZERS[name], *decay])).optimizer


def hexadecimal(values: np.ndarray) -> list[str]:
    return [float(value).hex() for value in np.asarray(values).reshape(-1)]


@pytest.mark.parametrize("name", OPTIMIZER_ROWS)
def test_every_optimizer_has_the_stored_bits(name: str) -> None:
    spec, o, num = spec_of(name), NumPy(), len(independent.RATES)
    w, gradients = independent.drawn(1, (6,)), independent.drawn(2, (num, 6))
    slots: dict[str, Any] = {
        slot: np.full(6, optimizers.constant(value)) for slot, value in spec.slots().items()
    }
    unit = Unit(0, Group(("w",)), slice(0, 6), {}, (6,))
    tables = optimizers.tables(spec, num, {})
    for t in range(num):
        h = Hyperparameters(o, spec, {}, {key: values[t] for key, values in tables.items()})
        rate = np.float64(independent.RATES[t])
        w, changed = optimizers.update(h, unit, w, gradients[t], slots, rate)
        slots.update(changed)
    assert {
        "weights": hexadecimal(w),
        **{slot: hexadecimal(v) for slot, v in slots.items()},
    } == GOLDEN["optimizers"][name]


def first_slots(spec: Any) -> Any:
    return spec.initial_slots(_first_weights(), {"kernel": "", "bias": "adamw"})


def _first_weights() -> dict[str, np.ndarray]:
    shapes = enumerate(independent.SHAPES.items())
    return {name: independent.drawn(5 + i, shape) for i, (name, shape) in shapes}


@pytest.mark.parametrize("name", TENSOR_ROWS)
def test_optimizers_of_whole_tensors_have_the_stored_bits(name: str) -> None:
    """A kernel [3, 2] and a bias [4], which is another kind of weight for Muon."""
    spec, shapes = spec_of(name), independent.SHAPES
    kind = "adamw" if spec.name == "muon" else ""
    groups = (Group(("kernel",)), Group(("bias",), kind=kind))
    layout = StateLayout.of(
        Layout(shapes, ((groups[0], slice(0, 6)), (groups[1], slice(6, 10)))), first_slots(spec)
    )
    w, slots = layout.weights.pack(_first_weights()), layout.pack(first_slots(spec))
    tables = optimizers.tables(spec, len(independent.RATES), {})
    for t, rate in enumerate(map(np.float64, independent.RATES)):
        h = Hyperparameters(NumPy(), spec, {}, {key: values[t] for key, values in tables.items()})
        drawn = (independent.drawn(10 * t + i + 20, shapes[n]) for i, n in enumerate(shapes))
        g = np.concatenate([value.reshape(-1) for value in drawn])
        w, slots = optimizers.update_all(h, layout, w, g, slots, [rate, rate])
    numbers = (
        layout.slots["numbers"].unpack(slots.pop("numbers"), np.float64)
        if ("numbers" in slots)
        else {}
    )
    named = {
        "weights": layout.weights.unpack(w),
        **{s: layout.slots[s].unpack(slots[s]) for s in slots},
    }
    found = {
        f"{n}/{slot}": hexadecimal(v) for slot, values in named.items() for n, v in values.items()
    }
    assert {**found, **{n: hexadecimal(v) for n, v in numbers.items()}} == GOLDEN["optimizers"][
        name
    ]


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


@pytest.mark.parametrize("name", ["lamb-layerwise", "prodigy-decoupled"])
def test_the_file_has_the_tensors_that_the_program_makes(name: str) -> None:
    spec = spec_of(name)
    found = independent.of_tensors(spec.model_dump(), first_slots(spec))
    assert found == GOLDEN["optimizers"][name]


@pytest.mark.parametrize("name", independent.LOSSES)
def test_the_file_has_the_losses_that_the_program_makes(name: str) -> None:
    assert independent.loss(name) == GOLDEN["losses"][name]
