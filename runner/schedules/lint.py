"""Warn, before any training, of settings that are probably not meant: one line each, which names
the key."""

from typing import NamedTuple

import numpy as np

from runner.schedules.curve import Curve
from runner.schedules.plateau import Plateau
from runner.schedules.units import Clock


class Finding(NamedTuple):
    text: str
    is_error: bool = False  # training would be meaningless


def findings(
    schedule: Curve,
    clock: Clock,
    rates: np.ndarray,
    lr: float,
    dtype: np.dtype,
    early_stopping: int | None = None,
) -> list[Finding]:
    """Find what is probably not meant in a run whose table is `rates` # float64[T], cast to `dtype`
    when it trains; `early_stopping` = the epochs that are no better after which it ends."""
    found = [*_no_numbers(schedule, rates, dtype)]
    if found:
        return found
    return [
        *_too_long(schedule, clock, rates),
        *_never_reached(schedule, rates, lr),
        *_first(schedule, rates),
        *_rises_at_the_end(schedule, clock, rates, lr),
        *_too_small(rates, dtype),
        *_stalling(schedule, clock, rates, early_stopping),
    ]


def _no_numbers(schedule: Curve, rates: np.ndarray, dtype: np.dtype) -> list[Finding]:
    """Rates with which nothing can be trained."""
    bad = np.flatnonzero(~(rates <= np.finfo(dtype).max) | (rates < 0))
    if len(bad):
        what = (
            f"update {bad[0]} has the rate {rates[bad[0]]:.3g}, which is no rate that "
            f"{dtype.name} holds"
        )
        return [Finding(f"schedule={schedule.name}: {what}", is_error=True)]
    if not rates.any():
        return [
            Finding(
                f"schedule={schedule.name}: every update of the run has the rate 0", is_error=True
            )
        ]
    return []


def _too_long(schedule: Curve, clock: Clock, rates: np.ndarray) -> list[Finding]:
    """Find durations beyond the run's end, which change nothing."""
    total = clock.total_steps
    spans = schedule.spans(clock)
    late = {key: step for key, step in spans.items() if step > total}
    run = f"the run has {total} steps"
    if "warmup" in late:
        end = (
            f"the warm-up ends at step {late['warmup']}, {run}: the rate gets no further than "
            f"{rates[-1]:.3g}"
        )
        return [Finding(f"schedule.warmup: {end}")]
    never = [(key, step) for key, step in spans.items() if step >= total]
    if never and total > 1 and (rates == rates[0]).all():
        key, step = never[0]
        rate = f"the rate is {rates[0]:.3g} throughout"
        return [Finding(f"schedule.{key}: nothing changes before step {step}, {run}: {rate}")]
    return [
        Finding(f"schedule.{key}: reaches to step {step}, {run}: the last rate is {rates[-1]:.3g}")
        for key, step in late.items()
    ]


def _never_reached(schedule: Curve, rates: np.ndarray, lr: float) -> list[Finding]:
    peak = rates.max()
    if schedule.name == "noam" and peak < 1e-5:
        words = "the base rate is a factor of noam, 1.0 in the paper"
        return [Finding(f"optimizer.lr: no rate is above {peak:.3g}; {words}, got {lr:g}")]
    return []


def _first(schedule: Curve, rates: np.ndarray) -> list[Finding]:
    if rates[0] > 0 or len(rates) == 1:
        return []
    ways = (
        ("warmup_edge", "right"),
        ("min_lr", "above 0"),
        ("initial_factor", "above 0"),
        ("edge", "right"),
    )
    keys = type(schedule).model_fields
    way = next((f"; schedule.{key} {value} would not" for key, value in ways if key in keys), "")
    return [
        Finding(f"schedule={schedule.name}: the first update has the rate 0 and is wasted{way}")
    ]


def _rises_at_the_end(schedule: Curve, clock: Clock, rates: np.ndarray, lr: float) -> list[Finding]:
    warming_up = schedule.spans(clock).get("warmup", 0) > clock.total_steps
    if (
        schedule.name in ("range_test", "ramp")
        or warming_up
        or len(rates) < 3
        or not rates[-1] > rates[-2]
    ):
        return []
    final = getattr(schedule, "final_lr", None)
    if final is not None and final > lr:
        return [
            Finding(
                f"schedule.final_lr: {final:g} is above optimizer.lr, {lr:g}: the rate "
                f"rises to the end"
            )
        ]
    begin = int(np.flatnonzero(np.diff(rates) <= 0)[-1]) + 1 if (np.diff(rates) <= 0).any() else 0
    return [
        Finding(
            f"schedule={schedule.name}: the rate rises at the end, from step {begin} on, to "
            f"{rates[-1]:.3g}"
        )
    ]


def _too_small(rates: np.ndarray, dtype: np.dtype) -> list[Finding]:
    smallest = np.finfo(dtype).tiny
    lost = np.flatnonzero((rates > 0) & (rates < smallest))
    if not len(lost):
        return []
    return [
        Finding(
            f"schedule: from update {lost[0]} on a rate is below {smallest:.2g}, the least "
            f"{dtype.name} holds"
        )
    ]


def _stalling(
    schedule: Curve, clock: Clock, rates: np.ndarray, early_stopping: int | None
) -> list[Finding]:
    """Find faults of what waits for a metric to stall."""
    found = []
    if isinstance(schedule, Plateau):
        if not schedule.metric.startswith("val/"):
            found.append(
                f"schedule.metric: {schedule.metric} is measured on the rows that are "
                f"trained on, not on others"
            )
        first, num = schedule.patience + 2, -(-clock.total_steps // clock.steps_per_epoch)
        if first >= num:
            words = f"nothing can be lowered before the end of epoch {first}, the run has {num}"
            found.append(f"schedule.patience: {words}: the factor stays 1")
        elif early_stopping is not None and early_stopping <= schedule.patience + 1:
            words = f"the run ends before {schedule.patience + 1} epochs in a row were no better"
            found.append(
                f"trainer.early_stopping_patience: {words}, which is when schedule.patience "
                f"lowers the rate"
            )
    falls = np.flatnonzero(np.diff(rates) < 0)
    earliest = ((early_stopping or 0) + 1) * clock.steps_per_epoch
    if (
        early_stopping is not None
        and len(falls)
        and earliest < min(clock.total_steps, falls[0] + 1)
    ):
        words = f"the run may end at step {earliest}, the rate first falls at step {falls[0] + 1}"
        found.append(f"trainer.early_stopping_patience: {words}")
    return [Finding(text) for text in found]
