"""Torch's devices on this machine, and the Trainer arguments that select one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from runner.machine import devices as runner_devices
from runner.spec import World

SHORT = (torch.bfloat16, torch.float16)  # dtypes of 16 bits
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def devices() -> list[str]:
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def resolve(requested: str) -> torch.device:
    return torch.device(runner_devices.resolve(requested, devices()))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a mixed precision computes with 16 bits; no other one does."""
    dtype = _MIXED.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def device_peak_bytes(requested: str) -> int | None:
    """Return the largest memory of tensors on the accelerator so far; None on the CPU."""
    device = resolve(requested)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def can_use_threads(num: int) -> bool:
    return True


def join(world: World) -> None:
    """Do nothing: torch joins other processes at any time, and an engine does it."""


def fixed_threads() -> int | None:
    """Return None: torch can change the number of threads at any time."""
    return None


@contextmanager
def threads(num: int) -> Iterator[None]:
    """Set the number of threads for the block; restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_state(device: torch.device) -> AbstractContextManager[None]:
    """Restore the state of torch's generators, on the CPU and on the device, after the block."""
    devices = [device.index or 0] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


def trainer_arguments(device: torch.device) -> dict[str, Any]:
    """Return the Trainer arguments that select one device."""
    accelerator = {"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[device.type]
    return {
        "accelerator": accelerator,
        "devices": [device.index or 0] if device.type == "cuda" else 1,
    }
