"""The contract on Keras."""

import pytest

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
