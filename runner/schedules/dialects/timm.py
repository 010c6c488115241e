"""timm.scheduler: lr is the optimizer's rate; t counts epochs by default, as in timm (`tick`).

At t = 0 the rate is that of timm's constructor: the optimizer's rate, or the first rate of the
warm-up. Noise is not supported. `t_initial` defaults to the run's T.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from runner.schedules.dialects.calls import Count, Factor, Rate, Real, Registry, Whole
from runner.schedules.ramps import Array, cosine


def _warmed(
    t: Array,
    lr: float,
    warmup_t: int,
    warmup_lr_init: float,
    prefix: bool,
    after: Callable[[Array], Array],
    top: float,
) -> Array:
    """w + t (top - w) / W for t < W, then after(t), or after(t - W) if the warm-up is a `prefix`.
    At t = 0, the rate of the constructor."""
    rise = warmup_lr_init + t * ((top - warmup_lr_init) / max(1, warmup_t))
    fall = after(np.maximum(t - warmup_t, 0) if prefix else np.maximum(t, warmup_t))
    rates = np.where(t < warmup_t, rise, fall)
    return np.where(t == 0, warmup_lr_init if warmup_t else lr, rates)


def _cycle(t: Array, t_initial: int, growth: float) -> tuple[Array, Array, Array]:
    """i, t_i and t_curr: the cycle's number, its length and the time in it, by timm's formula."""
    if growth == 1:
        number = t // t_initial
        return number, np.full(t.shape, float(t_initial)), t - t_initial * number
    number = np.array(
        [math.floor(math.log(1 - k / t_initial * (1 - growth), growth)) for k in t.tolist()],
        dtype=float,
    )
    lengths = np.power(growth, number) * t_initial
    return number, lengths, t - (1 - np.power(growth, number)) / (1 - growth) * t_initial


def _restarting(
    t: Array,
    lr: float,
    lr_min: float,
    cycle: tuple[int, float, float, int],
    fall: Callable[[Array, Array], Array],
) -> Array:
    """m + (lr d^i - m) g(t_curr, t_i) in the first `limit` cycles, then m = lr_min."""
    t_initial, growth, decay, limit = cycle
    number, length, within = _cycle(t, t_initial, growth)
    top = lr * np.power(decay, number, dtype=np.float64)
    return np.where(
        number < limit, lr_min + (top - lr_min) * fall(np.minimum(within, length), length), lr_min
    )


def CosineLRScheduler(
    t: Array,
    lr: float,
    t_initial: Count,
    lr_min: Rate = 0.0,
    cycle_mul: Factor = 1.0,
    cycle_decay: Rate = 1.0,
    cycle_limit: Whole = 1,
    warmup_t: Whole = 0,
    warmup_lr_init: Rate = 0.0,
    warmup_prefix: bool = False,
    k_decay: Rate = 1.0,
) -> Array:
    """Cycles of (1 + cos(pi t_curr^k / t_i^k)) / 2."""

    def after(t: Array) -> Array:
        cycle = (t_initial, cycle_mul, cycle_decay, cycle_limit)
        return _restarting(
            t,
            lr,
            lr_min,
            cycle,
            lambda now, all: cosine(np.power(now, k_decay) / np.power(all, k_decay)),
        )

    return _warmed(t, lr, warmup_t, warmup_lr_init, warmup_prefix, after, lr)


def PolyLRScheduler(
    t: Array,
    lr: float,
    t_initial: Count,
    power: Real = 0.5,
    lr_min: Rate = 0.0,
    cycle_mul: Factor = 1.0,
    cycle_decay: Rate = 1.0,
    cycle_limit: Whole = 1,
    warmup_t: Whole = 0,
    warmup_lr_init: Rate = 0.0,
    warmup_prefix: bool = False,
    k_decay: Rate = 1.0,
) -> Array:
    """Cycles of (1 - t_curr^k / t_i^k)^p."""

    def fall(now: Array, all: Array) -> Array:
        return np.power(np.maximum(0.0, 1 - np.power(now, k_decay) / np.power(all, k_decay)), power)

    def after(t: Array) -> Array:
        return _restarting(t, lr, lr_min, (t_initial, cycle_mul, cycle_decay, cycle_limit), fall)

    return _warmed(t, lr, warmup_t, warmup_lr_init, warmup_prefix, after, lr)


def TanhLRScheduler(
    t: Array,
    lr: float,
    t_initial: Count,
    lb: Real = -7.0,
    ub: Real = 3.0,
    lr_min: Rate = 0.0,
    cycle_mul: Factor = 1.0,
    cycle_decay: Rate = 1.0,
    cycle_limit: Whole = 1,
    warmup_t: Whole = 0,
    warmup_lr_init: Rate = 0.0,
    warmup_prefix: bool = False,
) -> Array:
    """Cycles of (1 - tanh(lb (1 - u) + ub u)) / 2, u = t_curr / t_i. A warm-up that is not a prefix
    rises to the value at its end."""
    if not lb < ub:
        raise ValueError(f"lb must be below ub, got {lb:g} and {ub:g}")

    def fall(now: Array, all: Array) -> Array:
        return (1 - np.tanh(lb * (1 - now / all) + ub * (now / all))) / 2

    def after(t: Array) -> Array:
        return _restarting(t, lr, lr_min, (t_initial, cycle_mul, cycle_decay, cycle_limit), fall)

    top = lr if warmup_prefix else float(after(np.array([warmup_t]))[0])
    return _warmed(t, lr, warmup_t, warmup_lr_init, warmup_prefix, after, top)


def StepLRScheduler(
    t: Array,
    lr: float,
    decay_t: Factor,
    decay_rate: Real = 1.0,
    warmup_t: Whole = 0,
    warmup_lr_init: Rate = 0.0,
    warmup_prefix: bool = True,
) -> Array:
    """lr r^floor(t / s)"""

    def after(t: Array) -> Array:
        return lr * np.power(decay_rate, t // decay_t, dtype=np.float64)

    return _warmed(t, lr, warmup_t, warmup_lr_init, warmup_prefix, after, lr)


def MultiStepLRScheduler(
    t: Array,
    lr: float,
    decay_t: list[Whole],
    decay_rate: Real = 1.0,
    warmup_t: Whole = 0,
    warmup_lr_init: Rate = 0.0,
    warmup_prefix: bool = True,
) -> Array:
    """lr r^i, i = the number of milestones m with t + 1 >= m, one tick earlier than in torch."""

    def after(t: Array) -> Array:
        return lr * np.power(
            decay_rate, np.searchsorted(decay_t, t + 1, side="right"), dtype=np.float64
        )

    return _warmed(t, lr, warmup_t, warmup_lr_init, warmup_prefix, after, lr)


def WSDLRScheduler(
    t: Array,
    lr: float,
    t_initial: Count,
    decay_t: Count,
    lr_min: Rate = 0.0,
    stable_fn: Literal["constant", "rsqrt", "power"] = "constant",
    stable_timescale: Rate | None = None,
    stable_power: Factor = 0.5,
    decay_fn: Literal["linear", "1-sqrt", "cosine", "power", "exp"] = "1-sqrt",
    decay_power: Factor = 0.5,
    decay_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    warmup_t: Whole = 0,
    warmup_lr_init: Rate = 0.0,
) -> Array:
    """Warm up, then max(lr s(t), m), s = 1 or (1 + t / c)^(-p); over the last decay_t ticks of
    t_initial fall to m by g."""
    if decay_t > t_initial:
        raise ValueError(f"decay_t must be at most t_initial, got {decay_t} and {t_initial}")
    scale = warmup_t if stable_timescale is None else stable_timescale
    if stable_fn != "constant" and not scale:
        raise ValueError(
            f"stable_timescale must be > 0 with stable_fn={stable_fn}, got {scale:g}; "
            f"its default is warmup_t"
        )

    def fall(u: Array) -> Array:
        match decay_fn:
            case "linear":
                return 1 - u
            case "cosine":
                return cosine(u)
            case "exp":
                return (np.power(decay_ratio, u) - decay_ratio) / (1 - decay_ratio)
        return 1 - np.power(u, 0.5 if decay_fn == "1-sqrt" else decay_power)

    def after(t: Array) -> Array:
        power = 0.5 if stable_fn == "rsqrt" else stable_power
        stable = np.maximum(
            lr if stable_fn == "constant" else lr * np.power(1 + t / scale, -power), lr_min
        )
        u = np.clip((t - (t_initial - decay_t)) / decay_t, 0.0, 1.0)
        return np.where(u > 0, lr_min + (stable - lr_min) * fall(u), stable)

    return _warmed(t, lr, warmup_t, warmup_lr_init, True, after, lr)


REGISTRY: Registry = {
    function.__name__: function
    for function in (
        CosineLRScheduler, PolyLRScheduler, TanhLRScheduler, StepLRScheduler, MultiStepLRScheduler,
        WSDLRScheduler,
    )
}  # fmt: skip
