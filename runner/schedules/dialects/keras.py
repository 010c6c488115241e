"""keras.optimizers.schedules: t is the optimizer's `iterations`; `initial_learning_rate` defaults
to optimizer.lr.

Keras computes in float32; the same formulas are computed here in float64. The difference is up to
2e-6 of the peak.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from runner.schedules.dialects.calls import Count, Rate, Real, Registry, Whole
from runner.schedules.ramps import Array, cosine


def ExponentialDecay(
    t: Array,
    lr: float,
    decay_steps: Count,
    decay_rate: Real,
    initial_learning_rate: Rate,
    staircase: bool = False,
) -> Array:
    """eta0 r^(t / s)"""
    return initial_learning_rate * np.power(
        decay_rate, t // decay_steps if staircase else t / decay_steps, dtype=float
    )


def InverseTimeDecay(
    t: Array,
    lr: float,
    decay_steps: Count,
    decay_rate: Real,
    initial_learning_rate: Rate,
    staircase: bool = False,
) -> Array:
    """eta0 / (1 + r t / s)"""
    return initial_learning_rate / (
        1 + decay_rate * (t // decay_steps if staircase else t / decay_steps)
    )


def PiecewiseConstantDecay(
    t: Array, lr: float, boundaries: Annotated[list[Whole], Field(min_length=1)], values: list[Rate]
) -> Array:
    """values[i], i = the number of boundaries b with t > b; at t = b still the earlier value."""
    if len(values) != len(boundaries) + 1:
        raise ValueError(
            f"values must have one item more than boundaries, got {len(values)} and "
            f"{len(boundaries)}"
        )
    if boundaries != sorted(boundaries):
        raise ValueError(f"boundaries must increase, got {boundaries}")
    return np.asarray(values, dtype=np.float64)[np.searchsorted(boundaries, t, side="left")]


def PolynomialDecay(
    t: Array,
    lr: float,
    decay_steps: Count,
    initial_learning_rate: Rate,
    end_learning_rate: Rate = 1e-4,
    power: Real = 1.0,
    cycle: bool = False,
) -> Array:
    """(eta0 - e) (1 - k / s)^p + e, k = min(t, s), s = decay_steps; with `cycle`, s is the smallest
    multiple of decay_steps that is not below t."""
    steps = decay_steps * np.maximum(1, -(-t // decay_steps)) if cycle else np.asarray(decay_steps)
    fall = np.power(1 - np.minimum(t, steps) / steps, power)
    return (initial_learning_rate - end_learning_rate) * fall + end_learning_rate


def CosineDecay(
    t: Array,
    lr: float,
    decay_steps: Count,
    initial_learning_rate: Rate,
    alpha: Rate = 0.0,
    warmup_target: Rate | None = None,
    warmup_steps: Whole = 0,
) -> Array:
    """Linear from eta0 to w over the warm-up, then w ((1 - alpha) (1 + cos(pi k / s)) / 2 + alpha),
    w = warmup_target. Without warmup_target, no warm-up and w = eta0."""
    if warmup_target is None:
        return initial_learning_rate * (
            (1 - alpha) * cosine(np.minimum(t, decay_steps) / decay_steps) + alpha
        )
    k = np.clip(t - warmup_steps, 0, decay_steps)
    fall = warmup_target * ((1 - alpha) * cosine(k / decay_steps) + alpha)
    rise = initial_learning_rate + (warmup_target - initial_learning_rate) * (
        t / max(warmup_steps, 1)
    )
    return np.where(t < warmup_steps, rise, fall)


def CosineDecayRestarts(
    t: Array,
    lr: float,
    first_decay_steps: Count,
    initial_learning_rate: Rate,
    t_mul: Real = 2.0,
    m_mul: Real = 1.0,
    alpha: Rate = 0.0,
) -> Array:
    """eta0 ((1 - alpha) m^i (1 + cos(pi c)) / 2 + alpha), c = the fraction of cycle i that is over;
    its length is t_mul^i first_decay_steps.

    A cycle may begin between two steps. If it begins at a step, Keras's float32 logarithm may still
    place that step in the cycle before.
    """
    share = t / first_decay_steps
    if t_mul == 1:
        number = np.floor(share)
        within = share - number
    else:
        number = _cycles(share, t_mul)
        within = (share - (1 - np.power(t_mul, number)) / (1 - t_mul)) / np.power(t_mul, number)
    return initial_learning_rate * ((1 - alpha) * np.power(m_mul, number) * cosine(within) + alpha)


def _cycles(share: Array, growth: float) -> Array:
    """The number of the cycle, floor(log_g(1 + share (g - 1))). A share at the end of a cycle, up
    to rounding, belongs to the next one."""
    exact = np.log1p(share * (growth - 1)) / np.log(growth)
    return np.floor(exact + 1e-12)


REGISTRY: Registry = {
    function.__name__: function
    for function in (
        ExponentialDecay, InverseTimeDecay, PiecewiseConstantDecay, PolynomialDecay, CosineDecay,
        CosineDecayRestarts,
    )
}  # fmt: skip
