"""The contract on Keras."""

from tests.contract import BackendContract


class TestKeras(BackendContract):
    name = "keras"
