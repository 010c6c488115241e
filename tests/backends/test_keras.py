"""The contract on Keras, and what it has alone."""

import numpy as np
import pytest

from runner.data import blocks
from tests.contract import CallContract, RunContract, UpdateContract


class TestRuns(RunContract):
    name = "keras"

    def tf32(self) -> tuple[bool, ...]:
        import tensorflow as tf

        return (tf.config.experimental.tensor_float_32_execution_enabled(),)


# Each traces networks of its own: in the default suite the rows of Lightning stand for them.
@pytest.mark.slow
class TestCalls(CallContract):
    name = "keras"


@pytest.mark.slow
class TestUpdates(UpdateContract):
    name = "keras"


def test_a_tensor_shares_the_memory_of_a_large_array() -> None:
    """It copies one that TensorFlow's kernels could not read where it is."""
    from backends.keras import device

    values = blocks.empty((2**18 + 1, 1), np.dtype(np.float32))
    values[...] = 1.0
    shared, copied = device.tensor(values), device.tensor(values[1:])
    values[...] = 2.0
    assert (float(shared[7, 0]), float(copied[7, 0])) == (2.0, 1.0)
    assert (shared.dtype.name, shared.shape) == ("float32", values.shape)
