"""torch.optim.lr_scheduler: lr is the optimizer's rate, and t counts the scheduler's steps.

torch computes most rates from the rate of the previous step. These functions are the closed forms
that torch documents for the same rates.
"""

from typing import Any, Literal

import numpy as np

from runner.schedules.dialects.calls import Call, Count, Factor, Rate, Real, Registry, Share, Whole
from runner.schedules.named import one_cycle
from runner.schedules.ramps import Array, between, cosine, linear
from runner.section import Probability


def ConstantLR(t: Array, lr: float, factor: Probability = 1 / 3, total_iters: Whole = 5) -> Array:
    """lr f for t < n, then lr. With n = 0, torch keeps the factor forever. With f = 0, torch fails
    at t = n; this one gives lr."""
    return np.where((t < total_iters) | (total_iters == 0), lr * factor, lr)


def LinearLR(
    t: Array,
    lr: float,
    start_factor: Share = 1 / 3,
    end_factor: Probability = 1.0,
    total_iters: Whole = 5,
) -> Array:
    """lr (a + (b - a) min(t, n) / n). With n = 0, torch keeps lr a forever."""
    share = np.minimum(t, total_iters) / max(1, total_iters)
    return lr * (start_factor + (end_factor - start_factor) * share)


def StepLR(t: Array, lr: float, step_size: Count, gamma: Real = 0.1) -> Array:
    """lr g^floor(t / s)"""
    return lr * np.power(gamma, t // step_size, dtype=np.float64)


def MultiStepLR(t: Array, lr: float, milestones: list[Whole], gamma: Real = 0.1) -> Array:
    """lr g^i, i = the number of milestones m with t >= m."""
    return lr * np.power(
        gamma, np.searchsorted(sorted(milestones), t, side="right"), dtype=np.float64
    )


def ExponentialLR(t: Array, lr: float, gamma: Real) -> Array:
    """lr g^t"""
    return lr * np.power(gamma, 1.0 * t)


def PolynomialLR(t: Array, lr: float, total_iters: Whole = 5, power: Real = 1.0) -> Array:
    """lr (1 - min(t, n) / n)^p. With n = 0, torch keeps lr forever."""
    return lr * np.power(1 - np.minimum(t, total_iters) / max(1, total_iters), power)


def CosineAnnealingLR(t: Array, lr: float, T_max: Count, eta_min: Rate = 0.0) -> Array:
    """m + (lr - m) (1 + cos(pi t / T)) / 2; rises again after T."""
    return between(lr, eta_min, cosine(t / T_max))


def CosineAnnealingWarmRestarts(
    t: Array, lr: float, T_0: Count, T_mult: Count = 1, eta_min: Rate = 0.0
) -> Array:
    """m + (lr - m) (1 + cos(pi k / T_i)) / 2 at step k of cycle i, T_i = T_0 T_mult^i."""
    if T_mult == 1:
        return between(lr, eta_min, cosine(t % T_0 / T_0))
    begins = [0]
    while begins[-1] <= t.max(initial=0):
        begins.append(begins[-1] + T_0 * T_mult ** (len(begins) - 1))
    cycle = np.searchsorted(begins, t, side="right") - 1
    begin = np.array(begins)
    return between(lr, eta_min, cosine((t - begin[cycle]) / np.diff(begin)[cycle]))


def CyclicLR(
    t: Array,
    lr: float,
    base_lr: Rate,
    max_lr: Rate,
    step_size_up: Count = 2000,
    step_size_down: Whole | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: Real = 1.0,
    scale_mode: Literal["cycle", "iterations"] = "cycle",
    cycle_momentum: bool = True,
    base_momentum: Rate = 0.8,
    max_momentum: Rate = 0.9,
) -> Array:
    """A triangle from base_lr up to max_lr and down. The optimizer's rate is not used. The momentum
    arguments are ignored; use optimizer.schedules for momentum.

    With step_size_down = 0 a cycle only rises, as in torch."""
    size = float(step_size_up + (step_size_up if step_size_down is None else step_size_down))
    ratio = step_size_up / size
    cycle = np.floor(1 + t / size)
    x = 1.0 + t / size - cycle
    height = x if ratio == 1 else np.where(x <= ratio, x / ratio, (x - 1) / (ratio - 1))
    scale = {
        "triangular": lambda: 1.0,
        "triangular2": lambda: np.exp2(-(cycle - 1)),
        "exp_range": lambda: np.power(gamma, 1.0 * t),
    }[mode]()
    return base_lr + (max_lr - base_lr) * height * scale


def OneCycleLR(
    t: Array,
    lr: float,
    max_lr: Rate,
    total_steps: Count | None = None,
    epochs: Count | None = None,
    steps_per_epoch: Count | None = None,
    pct_start: Real = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
    base_momentum: Rate = 0.85,
    max_momentum: Rate = 0.95,
    div_factor: Factor = 25.0,
    final_div_factor: Factor = 1e4,
    three_phase: bool = False,
) -> Array:
    """Rise from max_lr / d to max_lr at t = pct n - 1, fall to max_lr / d / f at t = n - 1; with
    three_phase, fall to max_lr / d first.

    After the end torch raises; this one holds the last value. The momentum arguments are ignored;
    use optimizer.schedules for momentum.
    """
    if not 0 <= pct_start <= 1:
        raise ValueError(f"pct_start must be in [0, 1], got {pct_start:g}")
    if total_steps is None:
        if epochs is None or steps_per_epoch is None:
            raise ValueError(
                "total_steps is missing; OneCycleLR needs it, or epochs and steps_per_epoch"
            )
        total_steps = epochs * steps_per_epoch
    if pct_start * total_steps == 1:
        raise ValueError(
            f"pct_start must not be 1 / total_steps, since torch divides by 0, got {pct_start:g}"
        )
    initial, fall, end = (
        max_lr / div_factor,
        cosine if anneal_strategy == "cos" else linear,
        total_steps - 1,
    )
    k, peak = np.minimum(t, end), pct_start * total_steps - 1
    final = initial / final_div_factor
    if not three_phase:
        return one_cycle(k, peak, end, (initial, max_lr, final), fall)
    back = 2 * pct_start * total_steps - 2
    rise_and_fall = one_cycle(k, peak, back, (initial, max_lr, initial), fall)
    down = np.clip((k - back) / (end - back), 0.0, 1.0) if end > back else np.ones(k.shape)
    return np.where(k <= back, rise_and_fall, between(initial, final, fall(down)))


def SequentialLR(t: Array, lr: float, schedulers: list[Call], milestones: list[Whole]) -> Array:
    """Each scheduler starts at its milestone with its own step 0 and its closed form. With n = 0, a
    ConstantLR after a milestone is lr, and only the first scheduler keeps its factor forever. A
    LinearLR or PolynomialLR with n = 0 after a milestone is refused, since torch divides by 0."""
    if len(milestones) != len(schedulers) - 1:
        raise ValueError(
            f"milestones must have one item fewer than schedulers, got {len(milestones)} and "
            f"{len(schedulers)}"
        )
    if milestones != sorted(milestones):
        raise ValueError(f"milestones must increase, got {milestones}")
    begins = np.array([0, *milestones])
    number = np.searchsorted(milestones, t, side="right")
    rates = np.empty(t.shape)
    for i, part in enumerate(schedulers):
        call: Any = part  # bound by calls.py
        within = number == i
        without_steps = begins[i] > 0 and call.keywords.get("total_iters") == 0
        if without_steps and call.func is not ConstantLR and within.any():
            name = f"args.schedulers[{i}].args.total_iters"
            raise ValueError(
                f"{name} must be >= 1 after a milestone, since torch divides by it, got 0"
            )
        rates[within] = lr if without_steps else call(t[within] - begins[i], lr)
    return rates


def ChainedScheduler(t: Array, lr: float, schedulers: list[Call]) -> Array:
    """lr times the factors of all schedulers. A scheduler that does not multiply the current rate,
    such as a cosine with eta_min, is not supported."""
    rates = np.full(t.shape, lr)
    for part in schedulers:
        rates = rates * (part(t, lr) / lr)  # type: ignore[operator]
    return rates


# The classes that another class may contain: SequentialLR those that compute from the optimizer's
# rate, ChainedScheduler those that multiply the current rate.
_MULTIPLYING = ("ConstantLR", "LinearLR", "StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR")
ChainedScheduler.parts = _MULTIPLYING  # type: ignore[attr-defined]
SequentialLR.parts = (*_MULTIPLYING, "CosineAnnealingLR", "CosineAnnealingWarmRestarts")  # type: ignore[attr-defined]

REGISTRY: Registry = {
    function.__name__: function
    for function in (
        ConstantLR, LinearLR, StepLR, MultiStepLR, ExponentialLR, PolynomialLR, CosineAnnealingLR,
        CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR, SequentialLR, ChainedScheduler,
    )
}  # fmt: skip
