"""Exact mode in NumPy: a backend that no framework has touched. It is slow, and it is the
oracle."""

from backends.witness.loop import can_use_threads, devices, export, native_model, predict, train

name = "witness"

__all__ = ["can_use_threads", "devices", "export", "name", "native_model", "predict", "train"]
