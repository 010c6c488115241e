"""Choose the device of a run, from what was asked for and what a backend reports."""

import re
from collections.abc import Sequence

from runner.errors import ConfigError

PATTERN = r"auto|cpu|mps|cuda(:\d+)?"


def resolve(requested: str, available: Sequence[str]) -> str:
    """One of `available` ("cpu", "cuda:0", "cuda:1", "mps").

    auto: the first accelerator, else the CPU. cuda: cuda:0. What is not there is refused, with the
    list of what is.
    """
    accelerators = [device for device in available if device != "cpu"]
    if requested == "auto":
        return accelerators[0] if accelerators else "cpu"
    device = "cuda:0" if requested == "cuda" else requested
    if not re.fullmatch(PATTERN, requested) or device not in available:
        found = ", ".join(available)
        raise ConfigError(
            f"device must be auto or one that this machine has ({found}), got {requested}"
        )
    return device
