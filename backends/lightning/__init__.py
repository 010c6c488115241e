"""Twinrun on PyTorch Lightning."""

from backends.lightning.device import devices
from backends.lightning.loop import export, predict, train

name = "lightning"

__all__ = ["devices", "export", "name", "predict", "train"]
