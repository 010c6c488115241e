"""Devices that TensorFlow finds on this machine, their names, and what it compiles for them."""

import tensorflow as tf

from runner.machine import devices as runner_devices
from runner.spec import RunSpec


def devices() -> list[str]:
    return ["cpu", *(f"cuda:{i}" for i in range(len(tf.config.list_physical_devices("GPU"))))]


def resolve(requested: str) -> str:
    """TensorFlow's name for it: /CPU:0, /GPU:1."""
    kind, _, index = runner_devices.resolve(requested, devices()).partition(":")
    return f"/{'GPU' if kind == 'cuda' else 'CPU'}:{index or 0}"


def can_use_threads(num: int) -> bool:
    """TensorFlow takes the number when it first computes, and keeps it: True if it has this one
    now."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(num)
        tf.config.threading.set_inter_op_parallelism_threads(num)
    except RuntimeError:  # it has another
        return False
    return True


def by_xla(run: RunSpec) -> bool:
    """Return whether the updates are compiled. Compiling pays for small and dense networks; with
    convolutions on the CPU TensorFlow's own kernels are no slower, and XLA takes seconds to compile
    them."""
    return run.compile or not any(node.spec.layer == "conv2d" for node in run.network.walk())
