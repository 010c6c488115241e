"""What TensorFlow finds on this machine, and what it calls it."""

import tensorflow as tf

from runner import devices as runner_devices


def devices() -> list[str]:
    return ["cpu", *(f"cuda:{i}" for i in range(len(tf.config.list_physical_devices("GPU"))))]


def resolve(requested: str) -> str:
    """TensorFlow's name for it: /CPU:0, /GPU:1."""
    kind, _, index = runner_devices.resolve(requested, devices()).partition(":")
    return f"/{'GPU' if kind == 'cuda' else 'CPU'}:{index or 0}"
