"""TensorFlow's devices on this machine, their names, and whether XLA compiles the updates."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from backends.keras import programs
from runner.components.custom import CustomNetwork
from runner.data import blocks
from runner.machine import devices as runner_devices
from runner.spec import RunSpec

_SHARED = 2**20  # bytes of an array whose memory a tensor shares


def devices() -> list[str]:
    programs.prepare()
    return ["cpu", *(f"cuda:{i}" for i in range(len(tf.config.list_physical_devices("GPU"))))]


def resolve(requested: str) -> str:
    """Return TensorFlow's name of a device: /CPU:0, /GPU:1."""
    kind, _, index = runner_devices.resolve(requested, devices()).partition(":")
    return f"/{'GPU' if kind == 'cuda' else 'CPU'}:{index or 0}"


def device_peak_bytes(requested: str) -> int | None:
    """Return the largest memory of tensors on the accelerator so far; None on the CPU."""
    kind, _, number = resolve(requested).strip("/").rpartition(":")
    if kind != "GPU":
        return None
    return int(tf.config.experimental.get_memory_info(f"GPU:{number}")["peak"])


def tensor(values: np.ndarray) -> Any:
    """Return an array as a tensor of the current device. On the CPU, it has the array's memory if
    that is aligned: tf.constant would copy it twice, for a moment even three times."""
    is_on_cpu = tf.constant(0.0).device.endswith("CPU:0")
    if not is_on_cpu or values.nbytes < _SHARED or not values.flags.writeable:
        return tf.constant(values)
    aligned = values if blocks.is_aligned(values) else blocks.copied(values, values.dtype)
    return tf.experimental.dlpack.from_dlpack(aligned.__dlpack__())


def can_use_threads(num: int) -> bool:
    """Set the number of threads. TensorFlow fixes it at its first computation; return False if it
    then has another number."""
    programs.prepare()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(num)
        tf.config.threading.set_inter_op_parallelism_threads(num)
    except RuntimeError:  # fixed to another number
        return False
    return True


def fixed_threads() -> int | None:
    """Return the number of threads that TensorFlow has in this process. It belongs to the process:
    a run in Python does not set it."""
    num: int = tf.config.threading.get_intra_op_parallelism_threads()
    if num:
        return num
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()


@contextmanager
def tensor_float_32(is_on: bool) -> Iterator[None]:
    """Set the use of TF32 for the block, which is on by default; restore it afterwards."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(is_on)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def uses_xla(run: RunSpec) -> bool:
    """Return whether XLA compiles the updates. XLA makes small and dense networks faster. For
    convolutions on the CPU, TensorFlow's own kernels are as fast, and XLA takes seconds to
    compile."""
    if run.world.size > 1:  # XLA has no collectives of the CPU
        return False
    if isinstance(run.network, CustomNetwork):
        return run.compile or run.network.built.uses_xla
    slow = {"conv1d", "conv2d", "depthwise_conv2d", "conv2d_transpose"}
    if run.precision == "exact":  # every step is written out: XLA takes minutes for 8 steps
        slow |= {"gru", "lstm"}
    return run.compile or not any(node.spec.layer in slow for node in run.network.walk())
