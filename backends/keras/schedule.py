"""A Keras schedule that reads the tables of learning rates and other scheduled values."""

import re
from typing import Any

import keras
import tensorflow as tf

from runner.components.optimizers import LEARNING_RATE
from runner.spec import RunSpec, Tables


class TableLR(keras.optimizers.schedules.LearningRateSchedule):
    """Gives the learning rate of update t, or that of a group, from its table, which is rounded
    once to the run's dtype. Past the end of the table, the last value stays.

    The tables are variables: a large constant would be slow to trace.
    """

    def __init__(self, run: RunSpec) -> None:
        super().__init__()
        self._last = run.num_steps - 1
        self._tables = {
            name: tf.Variable(values, trainable=False, name=re.sub(r"[^\w./-]", "_", name))
            for name, values in run.tables.items()
        }

    def use(self, tables: Tables) -> None:
        """Replace the tables by others with the same names and length, from the next update on."""
        for name, values in tables.items():
            self._tables[name].assign(values)

    def __call__(self, step: Any) -> Any:
        return self.at(LEARNING_RATE, step)

    def at(self, name: str, step: Any) -> Any:
        """Look up the value at `step` in a table of RunSpec.tables."""
        return tf.gather(self._tables[name], tf.minimum(tf.cast(step, tf.int64), self._last))

    def others(self, step: Any) -> list[Any]:
        """Look up all tables except the learning rate, in the order of RunSpec.tables, in
        float64."""
        return [tf.cast(self.at(name, step), tf.float64) for name in [*self._tables][1:]]

    def get_config(self) -> dict[str, Any]:
        return {name: values.numpy().tolist() for name, values in self._tables.items()}
