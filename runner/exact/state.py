"""Weights and slots as vectors: which parts an update changes together, and the state of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from runner.components.optimizers import BASE_WEIGHTS, NUMBERS, TRAINING_WEIGHTS, Group
from runner.exact.network import Layout
from runner.exact.primitives import Primitives, Tensor
from runner.exact.reference import NumPy
from runner.exact.rules import constant, finite, r
from runner.spec import TrainState, Weights


class Unit(NamedTuple):
    """Weights that one update changes together: a group, a slice of one, or a single weight tensor
    if the update needs its shape, norms or products."""

    number: int  # of its group
    group: Group
    weights: slice  # of the vector of all weights
    slots: Mapping[str, slice]  # of the vector of each slot that these weights have
    shape: tuple[int, ...]  # of the single weight, or of the slice


@dataclass(frozen=True)
class StateLayout:
    """Positions of the weights, and of the slots, in vectors. A slot may be that of some weights
    only, and have other shapes than they; the slot NUMBERS has numbers, in float64."""

    weights: Layout
    slots: Mapping[str, Layout]

    @classmethod
    def of(cls, weights: Layout, slots: Mapping[str, Weights]) -> "StateLayout":
        return cls(
            weights,
            {
                slot: Layout({name: values[name].shape for name in _names(slot, values, weights)})
                for slot, values in slots.items()
                if slot != TRAINING_WEIGHTS
            },
        )

    def pack(self, slots: Mapping[str, Weights]) -> dict[str, np.ndarray]:
        """Return the slots as vectors of R's outputs.  # float64"""
        packed = {slot: layout.pack(slots[slot]) for slot, layout in self.slots.items()}
        return {slot: v if slot == NUMBERS else r(v) for slot, v in packed.items()}

    def units(self, spec: Any, longest: int) -> Iterator[Unit]:
        """Yield all weights in order, in slices of at most `longest` if the optimizer is
        elementwise, else tensor by tensor."""
        slots = [slot for slot in self.slots if slot != NUMBERS]
        if spec.is_elementwise:
            for number, (group, part) in enumerate(self.weights.parts):
                for begin in range(part.start, part.stop, longest):
                    piece = slice(begin, min(begin + longest, part.stop))
                    num = piece.stop - piece.start
                    yield Unit(number, group, piece, dict.fromkeys(slots, piece), (num,))
            return
        places = {slot: self.slots[slot].slices() for slot in slots}
        of_weights = self.weights.slices()
        for number, (group, _) in enumerate(self.weights.parts):
            for name in group.names:
                own = {slot: places[slot][name] for slot in slots if name in places[slot]}
                yield Unit(number, group, of_weights[name], own, self.weights.shapes[name])

    def state(
        self, spec: Any, step: int, weights: np.ndarray, slots: Mapping[str, Any], buffers: Weights
    ) -> TrainState:
        """Return the state after `step` updates. Raises RunError if a weight is not finite."""
        finite(weights)
        values = {slot: np.asarray(slots[slot], np.float64) for slot in self.slots}
        named: dict[str, Any] = {
            slot: layout.unpack(values[slot], np.float64 if slot == NUMBERS else np.float32)
            for slot, layout in self.slots.items()
        }
        if BASE_WEIGHTS in values:
            named[TRAINING_WEIGHTS] = self.weights.unpack(weights)
            weights = evaluated(NumPy(), spec, weights, values[BASE_WEIGHTS])
        return TrainState(step, self.weights.unpack(weights), named, buffers)


def evaluated(o: Primitives, spec: Any, y: Tensor, z: Tensor) -> Tensor:
    """Return the weights x of a schedule-free optimizer: R(y + (1 - 1 / beta1) R(z - y))."""
    return o.r(o.plus(y, o.r(z - y), constant(1 - 1 / spec.beta1)))


def _names(slot: str, values: Weights, weights: Layout) -> list[str]:
    """Return the names in a slot: numbers by name, weights in the order of the weights."""
    return (
        sorted(values) if slot == NUMBERS else [name for name in weights.shapes if name in values]
    )
