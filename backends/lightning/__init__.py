"""Twinrun on PyTorch Lightning."""

import os

# Read when torch is imported. Threads that have nothing to do sleep: by default they run idle for a
# while, and where another process needs the core, each of thousands of small operations waits for
# its time slices.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from backends.lightning.device import can_use_threads, devices
from backends.lightning.loop import export, native_model, predict, train

name = "lightning"

__all__ = ["can_use_threads", "devices", "export", "name", "native_model", "predict", "train"]
