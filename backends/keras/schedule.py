"""The table of rates as Keras's schedule."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf


class TableLR(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of update t is rates[t], cast once to the run's dtype; past the end the last value holds.

    In a variable: a large constant would be slow to trace.
    """

    def __init__(self, rates: np.ndarray, dtype: np.dtype) -> None:
        super().__init__()
        self._rates = tf.Variable(rates.astype(dtype), trainable=False, name="rates")
        self._last = len(rates) - 1

    def __call__(self, step: Any) -> Any:
        return tf.gather(self._rates, tf.minimum(tf.cast(step, tf.int64), self._last))

    def get_config(self) -> dict[str, Any]:
        return {"rates": self._rates.numpy().tolist(), "dtype": self._rates.dtype.name}
