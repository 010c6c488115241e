"""Implements `runner.spec.Backend` with PyTorch Lightning."""

from backends.lightning.custom import inspect
from backends.lightning.device import can_use_threads, devices
from backends.lightning.loop import export, native_model, predict, train

name = "lightning"

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
