"""Choose the device of a run from the config and the devices that a backend reports.

Runs of one user on one machine share its accelerators: a run keeps a lock on the one that it uses,
and `auto` takes the one that the fewest runs use. So jobs of a multirun side by side, and commands
that are started together, have a device each as long as there are enough.
"""

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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


def is_cpu(device: str) -> bool:
    """Return whether a device is the CPU; `auto` is, on a machine without a driver of another."""
    found = any(map(os.path.exists, ("/dev/nvidia0", "/dev/kfd")))
    return device == "cpu" or (device == "auto" and not found and sys.platform != "darwin")


_MOST_RUNS = 100  # on one accelerator; one more has no lock
_kept: int | None = None  # the descriptor of this process's lock


def pin(requested: str, available: Sequence[str], num: int = 1) -> str:
    """Choose a device as `resolve` does, but for `auto` the accelerator that the fewest other runs
    use. It is this process's until the next call, or until the process ends."""
    global _kept
    device = resolve(requested, available, num)
    release()
    if device == "cpu":
        return device
    accelerators = [name for name in available if name != "cpu"]
    device, _kept = keep(accelerators if requested == "auto" else [device])
    return device


def keep(devices: Sequence[str]) -> tuple[str, int | None]:
    """Lock the first of these devices that the fewest runs use. Return its name, and the descriptor
    of the lock; None if there can be none."""
    if fcntl is not None:
        for number, device in itertools.product(range(_MOST_RUNS), devices):
            descriptor = _lock(_folder() / f"{_on_the_machine(device)}.{number}")
            if descriptor is not None:
                return device, descriptor
    return devices[0], None


def _folder() -> Path:
    """Return the folder with the locks of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"twinrun-devices-{os.getuid()}"


def _on_the_machine(device: str) -> str:
    """Return a name that does not depend on the numbers that CUDA_VISIBLE_DEVICES gives."""
    kind, _, number = device.partition(":")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if kind == "cuda" and int(number) < len(visible) and visible[int(number)]:
        number = visible[int(number)]
    return re.sub(r"\W", "-", f"{kind}{number}")


def _lock(path: Path) -> int | None:
    """Lock a file; return its descriptor, or None if another run has locked it or it cannot be
    made."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def release() -> None:
    """Give the accelerator back. A forked process does this too: it has not asked for one."""
    global _kept
    if _kept is not None:
        os.close(_kept)
        _kept = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=release)
