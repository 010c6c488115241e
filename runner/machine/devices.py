"""Choose the device of a run from the config and the devices that a backend reports."""

import re
from collections.abc import Sequence

from runner.errors import ConfigError

PATTERN = r"auto|cpu|mps|cuda(:\d+)?"


def resolve(requested: str, available: Sequence[str], num: int = 1) -> str:
    """Choose one of `available` ("cpu", "cuda:0", "cuda:1", "mps") for each of `num` processes.

    `auto` is the first accelerator, else the CPU; `cuda` is cuda:0. Raises ConfigError with the
    list of devices if the requested one is not available, or if it cannot be used by several
    processes.
    """
    device = _resolve(requested, available)
    if num > 1 and device != "cpu":
        raise ConfigError(f"devices must be 1 on {device}, got {num}; device=cpu takes several")
    return device


def _resolve(requested: str, available: Sequence[str]) -> str:
    accelerators = [device for device in available if device != "cpu"]
    if requested == "auto":
        return accelerators[0] if accelerators else "cpu"
    device = "cuda:0" if requested == "cuda" else requested
    if not re.fullmatch(PATTERN, requested) or device not in available:
        devices = ", ".join(available)
        raise ConfigError(
            f"device must be auto or a device of this machine ({devices}), got {requested}"
        )
    return device
