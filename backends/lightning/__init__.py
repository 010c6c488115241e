"""Twinrun on PyTorch Lightning."""

from backends.lightning.device import devices
from backends.lightning.loop import export, native_model, predict, train

name = "lightning"

__all__ = ["devices", "export", "name", "native_model", "predict", "train"]
