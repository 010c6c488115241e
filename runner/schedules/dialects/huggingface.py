"""transformers.get_scheduler, by SchedulerType. lr is the optimizer's rate, t counts scheduler
steps.

`num_training_steps` defaults to the run's T. The `scheduler_specific_kwargs` of transformers are
arguments like all others.
"""

from typing import Literal

import numpy as np

from runner.schedules.dialects.calls import Count, Rate, Real, Registry, Whole
from runner.schedules.ramps import Array, between, cosine


def _rise(t: Array, warmup: int) -> Array:
    return t / max(1, warmup)


def _progress(t: Array, warmup: int, total: int, late: int = 0) -> Array:
    return (t - warmup + late) / max(1, total - warmup)


def constant(t: Array, lr: float) -> Array:
    """lr"""
    return np.full(t.shape, lr)


def constant_with_warmup(t: Array, lr: float, num_warmup_steps: Whole) -> Array:
    """lr t / W, then lr."""
    return lr * np.where(t < num_warmup_steps, _rise(t, num_warmup_steps), 1.0)


def linear(t: Array, lr: float, num_warmup_steps: Whole, num_training_steps: Whole) -> Array:
    """lr t / W, then lr (T - t) / (T - W), 0 after T."""
    fall = np.maximum(0.0, (num_training_steps - t) / max(1, num_training_steps - num_warmup_steps))
    return lr * np.where(t < num_warmup_steps, _rise(t, num_warmup_steps), fall)


def cosine_(
    t: Array, lr: float, num_warmup_steps: Whole, num_training_steps: Whole, num_cycles: Real = 0.5
) -> Array:
    """lr t / W, then lr (1 + cos(2 pi c u)) / 2, c = num_cycles; rises again after T."""
    fall = cosine(2 * num_cycles * _progress(t, num_warmup_steps, num_training_steps))
    return lr * np.where(t < num_warmup_steps, _rise(t, num_warmup_steps), np.maximum(0.0, fall))


def cosine_with_restarts(
    t: Array, lr: float, num_warmup_steps: Whole, num_training_steps: Whole, num_cycles: Real = 1
) -> Array:
    """lr t / W, then lr (1 + cos(pi (c u mod 1))) / 2, 0 from T on."""
    u = _progress(t, num_warmup_steps, num_training_steps)
    fall = np.where(u >= 1, 0.0, np.maximum(0.0, cosine(num_cycles * u % 1.0)))
    return lr * np.where(t < num_warmup_steps, _rise(t, num_warmup_steps), fall)


def polynomial(
    t: Array,
    lr: float,
    num_warmup_steps: Whole,
    num_training_steps: Whole,
    lr_end: Rate = 1e-7,
    power: Real = 1.0,
) -> Array:
    """lr t / W, then e + (lr - e) (1 - u)^p, e after T. If t = W = T, transformers divides 0 by 0;
    this gives NaN."""
    if len(t) and not lr > lr_end:
        raise ValueError(f"args.lr_end must be below optimizer.lr, got {lr_end:g} and {lr:g}")
    u = np.clip(_progress(t, num_warmup_steps, num_training_steps), 0.0, 1.0)
    fall = np.where(t > num_training_steps, lr_end, between(lr, lr_end, np.power(1 - u, power)))
    if num_warmup_steps == num_training_steps:
        fall[t == num_warmup_steps] = np.nan
    return np.where(t < num_warmup_steps, lr * _rise(t, num_warmup_steps), fall)


def inverse_sqrt(
    t: Array, lr: float, num_warmup_steps: Whole, timescale: Count | None = None
) -> Array:
    """lr t / W, then lr ((t + c - W) / c)^(-1/2), c = timescale, or W, or 10,000."""
    scale = timescale or num_warmup_steps or 10_000
    fall = 1 / np.sqrt((np.maximum(t, num_warmup_steps) + scale - num_warmup_steps) / scale)
    return lr * np.where(t < num_warmup_steps, _rise(t, num_warmup_steps), fall)


def cosine_with_min_lr(
    t: Array,
    lr: float,
    num_warmup_steps: Whole,
    num_training_steps: Whole,
    num_cycles: Real = 0.5,
    min_lr: Rate | None = None,
    min_lr_rate: Rate | None = None,
) -> Array:
    """lr t / W, then lr (m + (1 - m) (1 + cos(2 pi c u)) / 2), m = min_lr_rate or min_lr / lr."""
    least = _least(lr, min_lr, min_lr_rate)
    fall = (
        cosine(2 * num_cycles * _progress(t, num_warmup_steps, num_training_steps)) * (1 - least)
        + least
    )
    return lr * np.where(t < num_warmup_steps, _rise(t, num_warmup_steps), np.maximum(0.0, fall))


def cosine_warmup_with_min_lr(
    t: Array,
    lr: float,
    num_warmup_steps: Whole,
    num_training_steps: Whole,
    num_cycles: Real = 0.5,
    min_lr: Rate | None = None,
    min_lr_rate: Rate | None = None,
    warmup_lr_rate: Rate | None = None,
) -> Array:
    """cosine_with_min_lr with t + 1 in place of t; a warm-up from warmup_lr_rate uses t over W - 1
    steps."""
    least, warmup = _least(lr, min_lr, min_lr_rate), num_warmup_steps
    first = warmup_lr_rate
    rise = (
        (t + 1) / max(1, warmup) if first is None else first + (1 - first) * t / max(1, warmup - 1)
    )
    fall = (
        cosine(2 * num_cycles * _progress(t, warmup, num_training_steps, late=1)) * (1 - least)
        + least
    )
    return lr * np.where(t < warmup, rise, np.maximum(0.0, fall))


def warmup_stable_decay(
    t: Array,
    lr: float,
    num_warmup_steps: Whole,
    num_decay_steps: Whole,
    num_training_steps: Whole,
    num_stable_steps: Whole | None = None,
    warmup_type: Literal["linear", "cosine", "1-sqrt"] = "linear",
    decay_type: Literal["linear", "cosine", "1-sqrt"] = "cosine",
    min_lr_ratio: Rate = 0.0,
    num_cycles: Real = 0.5,
) -> Array:
    """lr (m + (1 - m) g), m = min_lr_ratio: g rises over W steps, is 1 for S steps, falls over D
    steps, and is then 0."""
    stable = (
        num_training_steps - num_warmup_steps - num_decay_steps
        if num_stable_steps is None
        else num_stable_steps
    )
    begin = num_warmup_steps + stable
    up = np.clip(_rise(t, num_warmup_steps), 0.0, 1.0)
    down = np.clip((t - begin) / max(1, num_decay_steps), 0.0, 1.0)
    rises = {
        "linear": lambda: up,
        "cosine": lambda: 1 - cosine(up),
        "1-sqrt": lambda: 1 - np.sqrt(1 - up),
    }
    falls = {
        "linear": lambda: 1 - down,
        "cosine": lambda: cosine(2 * num_cycles * down),
        "1-sqrt": lambda: 1 - np.sqrt(down),
    }

    def lifted(g: Array) -> Array:
        return np.maximum(0.0, g * (1 - min_lr_ratio) + min_lr_ratio)

    ended = np.where(t < begin + num_decay_steps, lifted(falls[decay_type]()), min_lr_ratio)
    return lr * np.where(
        t < num_warmup_steps, lifted(rises[warmup_type]()), np.where(t < begin, 1.0, ended)
    )


def _least(lr: float, min_lr: float | None, min_lr_rate: float | None) -> float:
    if (min_lr is None) == (min_lr_rate is None):
        raise ValueError("min_lr or min_lr_rate must be set, but not both")
    return min_lr / lr if min_lr is not None else float(min_lr_rate or 0.0)


REGISTRY: Registry = {
    "constant": constant,
    "constant_with_warmup": constant_with_warmup,
    "linear": linear,
    "cosine": cosine_,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "inverse_sqrt": inverse_sqrt,
    "cosine_with_min_lr": cosine_with_min_lr,
    "cosine_warmup_with_min_lr": cosine_warmup_with_min_lr,
    "warmup_stable_decay": warmup_stable_decay,
}
