"""Implements `runner.spec.Backend` with Keras 3 on TensorFlow."""

from backends.keras.device import can_use_threads, devices
from backends.keras.loop import export, inspect, native_model, predict, train

name = "keras"

__all__ = [
    "can_use_threads",
    "devices",
    "export",
    "inspect",
    "name",
    "native_model",
    "predict",
    "train",
]
