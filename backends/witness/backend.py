"""Implements `runner.spec.Backend` with NumPy."""

from backends.witness.loop import (
    can_use_threads,
    device_peak_bytes,
    devices,
    export,
    fixed_threads,
    native_model,
    predict,
    train,
)

name = "witness"

__all__ = [
    "can_use_threads",
    "device_peak_bytes",
    "devices",
    "export",
    "fixed_threads",
    "name",
    "native_model",
    "predict",
    "train",
]
