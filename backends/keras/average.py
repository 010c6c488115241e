"""The average of the weights (runner/components/averages.py)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from backends.keras.layers import read
from runner.components import averages
from runner.spec import RunSpec, TrainState, Weights


class Average:
    """Averages the trained weights."""

    def __init__(self, run: RunSpec, trained: Mapping[str, Any], start: TrainState) -> None:
        self._weights, self._slots = trained, averages.slots(run.optimizer)
        # a variable: a large constant would be slow to trace
        self._shares = tf.Variable(run.average_shares, trainable=False, name="average_shares")
        self.variables, *self._earlier = (
            {
                name: keras.Variable(
                    value[name], trainable=False, dtype=value[name].dtype.name, name=slot
                )
                for name in trained
            }
            for slot, value in ((slot, start.slots[slot]) for slot in self._slots)
        )
        self._frozen: Weights = {}
        self.load(start)

    def load(self, start: TrainState) -> None:
        for slot, variables in zip(self._slots, [self.variables, *self._earlier], strict=True):
            for name, variable in variables.items():
                variable.assign(start.slots[slot][name])
        # those of frozen weights keep their values
        values = start.slots[self._slots[0]]
        self._frozen = {name: v for name, v in values.items() if name not in self.variables}

    def all_variables(self) -> list[Any]:
        """Return the variables of all slots."""
        return [v for variables in [self.variables, *self._earlier] for v in variables.values()]

    def update(self, step: Any) -> None:
        """Update the average after update `step`."""
        share = tf.gather(self._shares, step)
        if self._earlier:
            tf.cond(share > 0, lambda: self._average_ends(share), lambda: None)
            return
        for name, variable in self.variables.items():
            average, weights = variable.value, self._weights[name].value
            moved = average + tf.cast(share, average.dtype) * (weights - average)
            variable.assign(tf.where(share < 1, moved, weights))  # the weights to the bit

    def _average_ends(self, share: Any) -> None:
        """Set the average to the mean of the weights and of num - 1 earlier ones, and keep the
        weights as the first of these; with share 1, in place of all of them."""
        num = tf.round(1 / share)
        for name, variable in self.variables.items():
            newer = weights = self._weights[name].value
            mean = tf.identity(weights)
            for i, slot in enumerate(self._earlier, 1):
                earlier = tf.identity(slot[name].value)
                mean = tf.where(i < num, mean + (earlier - mean) / (i + 1), mean)
                slot[name].assign(tf.where(share < 1, newer, weights))
                newer = earlier
            variable.assign(mean)

    def save(self) -> dict[str, Weights]:
        """Return canonical copies of the slots."""
        return {
            slot: {**self._frozen, **{name: read(v) for name, v in variables.items()}}
            for slot, variables in zip(self._slots, [self.variables, *self._earlier], strict=True)
        }


@contextmanager
def swapped(weights: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[None]:
    """Give weights other values in the block."""
    before = {name: tf.identity(weights[name].value) for name in values}
    for name, value in values.items():
        weights[name].assign(value)
    try:
        yield
    finally:
        for name, value in before.items():
            weights[name].assign(value)
