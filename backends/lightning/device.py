"""Torch's devices on this machine, and the Trainer arguments that select one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from runner.machine import devices as runner_devices
from runner.spec import ModelSpec, World

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
def settings(model: ModelSpec) -> Iterator[None]:
    """Set the number of threads and the use of TF32 for the block; restore both afterwards.

    torch's default is TF32 in cuDNN's convolutions and recurrent layers, but not in products of
    matrices.
    """
    num_threads, flags = torch.get_num_threads(), _tf32_flags()
    before = [getattr(owner, name) for owner, name, _, _ in flags]
    torch.set_num_threads(model.threads)
    for owner, name, on, off in flags:
        setattr(owner, name, on if model.tf32 else off)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        for (owner, name, _, _), value in zip(flags, before, strict=True):
            setattr(owner, name, value)


def _tf32_flags() -> list[tuple[Any, str, Any, Any]]:
    """Return torch's flags of TF32: their owner, name, and the values that switch it on and off."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    flags = [(owner, "allow_tf32", True, False) for owner in (matmul, cudnn)]
    try:
        for owner, name, _, _ in flags:
            getattr(owner, name)
    except RuntimeError:  # the caller has set the newer flags; torch does not mix the two
        newer = (matmul, cudnn.conv, cudnn.rnn)
        return [(owner, "fp32_precision", "tf32", "ieee") for owner in newer]
    return flags


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
