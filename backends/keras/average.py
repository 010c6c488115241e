"""The average of the weights (runner/components/averages.py)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from runner.components.optimizers import AVERAGE_WEIGHTS
from runner.spec import RunSpec, TrainState, Weights


class Average:
    """Averages the trained weights."""

    def __init__(self, run: RunSpec, trained: Mapping[str, Any], start: TrainState) -> None:
        self._weights, values = trained, start.slots[AVERAGE_WEIGHTS]
        # a variable: a large constant would be slow to trace
        self._shares = tf.Variable(run.average_shares, trainable=False, name="average_shares")
        self.variables = {
            name: keras.Variable(
                values[name], trainable=False, dtype=values[name].dtype.name, name=AVERAGE_WEIGHTS
            )
            for name in trained
        }
        self._frozen: Weights = {}
        self.load(start)

    def load(self, start: TrainState) -> None:
        values = start.slots[AVERAGE_WEIGHTS]
        for name, variable in self.variables.items():
            variable.assign(values[name])
        # those of frozen weights keep their values
        self._frozen = {name: v for name, v in values.items() if name not in self.variables}

    def update(self, step: Any) -> None:
        """Update the average after update `step`."""
        share = tf.gather(self._shares, step)
        for name, variable in self.variables.items():
            average, weights = variable.value, self._weights[name].value
            moved = average + tf.cast(share, average.dtype) * (weights - average)
            variable.assign(tf.where(share < 1, moved, weights))  # the weights to the bit

    def save(self) -> dict[str, np.ndarray]:
        """Return a canonical copy."""
        return {**self._frozen, **{name: v.numpy() for name, v in self.variables.items()}}


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
