"""The tables of rates, and of what else is scheduled, as Keras's schedule."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from runner.spec import RunSpec, rate_name


class TableLR(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of update t is rates[t], of a group lr_factor rates[t], cast once to the run's
    dtype; past the end the last value holds.

    In variables: a large constant would be slow to trace.
    """

    def __init__(self, run: RunSpec) -> None:
        super().__init__()
        self._run, self._last = run, len(run.rates) - 1
        self._tables = {
            name: tf.Variable(values, trainable=False, name=name.replace("*", "_"))
            for name, values in run.applied(run.rates).items()
        }

    def start(self, run: RunSpec) -> None:
        """The tables of another run, as long as this one and of the same names."""
        self._run = run
        self.use(run.rates)

    def use(self, rates: np.ndarray) -> None:
        """Other rates, from the next update on."""
        for name, values in self._run.applied(rates).items():
            self._tables[name].assign(values)

    def __call__(self, step: Any) -> Any:
        return self.at(rate_name(1.0), step)

    def at(self, name: str, step: Any) -> Any:
        """By a name of RunSpec.applied."""
        return tf.gather(self._tables[name], tf.minimum(tf.cast(step, tf.int64), self._last))

    def others(self, step: Any) -> list[Any]:
        """All but the rate itself, in the order of RunSpec.applied, in float64."""
        return [tf.cast(self.at(name, step), tf.float64) for name in [*self._tables][1:]]

    def get_config(self) -> dict[str, Any]:
        return {name: values.numpy().tolist() for name, values in self._tables.items()}
