"""Warn about schedule settings that are probably mistakes, before training: one line each, with the
key."""

import re
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
    """Find probable mistakes in a run's table of rates.

    Args:
        rates: float64[T]; the run casts it to `dtype`.
        early_stopping: the run ends after this many epochs without improvement.
    """
    errors = _invalid_rates(schedule, rates, dtype)
    if errors:
        return errors
    return [
        *_too_long(schedule, clock, rates),
        *_noam_without_factor(schedule, rates, lr),
        *_zero_at_first(schedule, rates),
        *_rises_at_the_end(schedule, clock, rates, lr),
        *_too_small(rates, dtype),
        *_stalling(schedule, clock, rates, early_stopping),
    ]


def of_group(
    key: str, schedule: Curve, clock: Clock, rates: np.ndarray, lr: float, dtype: np.dtype
) -> list[Finding]:
    """Find probable mistakes in the schedule `key` of a group of weights. Unlike those of a run,
    its first rates may well be 0: the weights then begin to train later."""
    found = _invalid_rates(schedule, rates, dtype)
    if not found:
        found = [
            *_too_long(schedule, clock, rates),
            *_noam_without_factor(schedule, rates, lr),
            *_rises_at_the_end(schedule, clock, rates, lr),
            *_too_small(rates, dtype),
        ]
    named = (re.sub(r"\bschedule(?=[.=:])", key, finding.text) for finding in found)
    return [
        Finding(text, finding.is_error and bool(rates.any()))
        for text, finding in zip(named, found, strict=True)
    ]


def _invalid_rates(schedule: Curve, rates: np.ndarray, dtype: np.dtype) -> list[Finding]:
    """Find rates that cannot train: negative, NaN or too large for `dtype`, or all 0."""
    bad = np.flatnonzero(~(rates <= np.finfo(dtype).max) | (rates < 0))
    if len(bad):
        text = (
            f"update {bad[0]} has the rate {rates[bad[0]]:.3g}, which is not a valid rate in "
            f"{dtype.name}"
        )
        return [Finding(f"schedule={schedule.name}: {text}", is_error=True)]
    if not rates.any():
        return [
            Finding(
                f"schedule={schedule.name}: every update of the run has the rate 0", is_error=True
            )
        ]
    return []


def _too_long(schedule: Curve, clock: Clock, rates: np.ndarray) -> list[Finding]:
    """Find durations that extend beyond the run's end."""
    total = clock.total_steps
    spans = schedule.spans(clock)
    late = {key: step for key, step in spans.items() if step > total}
    run = f"the run has only {total} steps"
    if "warmup" in late:
        text = (
            f"the warm-up ends at step {late['warmup']}, but {run}; the rate only reaches "
            f"{rates[-1]:.3g}"
        )
        return [Finding(f"schedule.warmup: {text}")]
    never = [(key, step) for key, step in spans.items() if step >= total]
    if never and total > 1 and (rates == rates[0]).all():
        key, step = never[0]
        rate = f"the rate is always {rates[0]:.3g}"
        return [Finding(f"schedule.{key}: nothing changes before step {step}, but {run}; {rate}")]
    return [
        Finding(
            f"schedule.{key}: extends to step {step}, but {run}; the last rate is {rates[-1]:.3g}"
        )
        for key, step in late.items()
    ]


def _noam_without_factor(schedule: Curve, rates: np.ndarray, lr: float) -> list[Finding]:
    peak = rates.max()
    if schedule.name == "noam" and peak < 1e-5:
        advice = "noam multiplies by optimizer.lr, which is 1.0 in the paper"
        return [Finding(f"optimizer.lr: the largest rate is {peak:.3g}; {advice}, got {lr:g}")]
    return []


def _zero_at_first(schedule: Curve, rates: np.ndarray) -> list[Finding]:
    if rates[0] > 0 or len(rates) == 1:
        return []
    remedies = {
        "warmup_edge": "schedule.warmup_edge=right",
        "min_lr": "schedule.min_lr above 0",
        "initial_factor": "schedule.initial_factor above 0",
        "edge": "schedule.edge=right",
    }
    keys = type(schedule).model_fields
    hint = next((f"; set {remedy}" for key, remedy in remedies.items() if key in keys), "")
    return [
        Finding(f"schedule={schedule.name}: the first update has the rate 0 and is wasted{hint}")
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
                f"schedule.final_lr: {final:g} is above optimizer.lr, {lr:g}, so the rate rises "
                f"to the end"
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
            f"schedule: from update {lost[0]} on, some rates are below {smallest:.2g}, the "
            f"smallest normal number of {dtype.name}"
        )
    ]


def _stalling(
    schedule: Curve, clock: Clock, rates: np.ndarray, early_stopping: int | None
) -> list[Finding]:
    """Find mistakes in a plateau schedule and in early stopping."""
    texts = []
    if isinstance(schedule, Plateau):
        if not schedule.metric.startswith("val/"):
            texts.append(
                f"schedule.metric: {schedule.metric} is measured on the training rows; a "
                f"validation metric (val/...) is usual"
            )
        first, num = schedule.patience + 2, clock.epochs.count(clock.total_steps)
        if first >= num:
            texts.append(
                f"schedule.patience: the rate cannot fall before the end of epoch {first}, but the "
                f"run has {num} epochs; the factor stays 1"
            )
        elif early_stopping is not None and early_stopping <= schedule.patience + 1:
            texts.append(
                f"trainer.early_stopping_patience: the run stops before schedule.patience lowers "
                f"the rate, after {schedule.patience + 1} epochs without improvement"
            )
    falls = np.flatnonzero(np.diff(rates) < 0)
    earliest = clock.epochs.begin((early_stopping or 0) + 1)
    if (
        early_stopping is not None
        and len(falls)
        and earliest < min(clock.total_steps, falls[0] + 1)
    ):
        texts.append(
            f"trainer.early_stopping_patience: the run may stop at step {earliest}, before the "
            f"rate first falls at step {falls[0] + 1}"
        )
    return [Finding(text) for text in texts]
