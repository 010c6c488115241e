"""Implements `runner.spec.Backend` with NumPy."""

from backends.witness.loop import (
    can_use_threads,
    device_peak_bytes,
    devices,
    export,
    fixed_threads,
    join,
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
    "join",
    "name",
    "native_model",
    "predict",
    "train",
]
