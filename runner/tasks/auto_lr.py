"""optimizer.lr=auto: find the base rate of a run before it begins.

1. The LR range test of task=find_lr suggests a rate s.
2. Short runs with the run's own schedule, from the same first weights, compare s / 4, s and 4 s. If
   the best one is at an end, one more rate beyond it is compared, at most three times. A short run
   has a tenth of the run's updates, at least 500, at most all; durations in percent refer to it.
3. The rate with the best `trainer.monitor` after its short run is the base rate.

The rate is a function of the config and the data, as the run itself is. config.yaml has the number.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner.config.stand_in import with_lr
from runner.data.order import Chunk
from runner.errors import IF_DIVERGED, ConfigError, RunError
from runner.plan import Plan, evaluate
from runner.report.range_test import Suggestion
from runner.run import run_folder
from runner.run.signals import Signals
from runner.schedules.stall import Stall
from runner.spec import Backend, Live, Report, TrainState
from runner.tasks import find_lr
from runner.text.console import Console

FACTOR = 4.0  # between neighbouring rates
MOST_RATES = 6  # that are compared
FEWEST_STEPS = 500  # of a short run, if the run has as many
SHARE = 10  # a short run has this part of the updates of a long run

Planned = Callable[[Mapping[str, Any]], Plan]  # plans a composed config on the run's data


@dataclass(frozen=True)
class Found:
    """The base rate, the plan with it, and how it was found."""

    lr: float
    plan: Plan
    warnings: list[str]  # of probable mistakes in the schedule at this rate
    test: find_lr.Tested
    measured: Mapping[float, float]  # rate -> trainer.monitor after a short run

    def write(self, path: Path) -> list[str]:
        """Write find_lr.json and find_lr.png into the run's folder. Return the warnings."""
        measured = [{"lr": lr, "value": _or_none(v)} for lr, v in sorted(self.measured.items())]
        entries = {**self.test.json(), "measured": measured, "lr": self.lr}
        run_folder.write_json(path / "find_lr.json", entries)
        self.test.draw(path)
        return self.warnings


def find(
    composed: Mapping[str, Any],
    planned: Planned,
    prepared: Plan,
    backend: Backend,
    start: TrainState,
    console: Console,
    signals: Signals,
) -> Found | None:
    """Find the base rate of a planned run, and print the steps. None if a signal came."""
    test_values = find_lr.as_range_test(composed)
    tested = find_lr.train(planned(test_values), backend, start, console, signals)
    if signals.received:
        return None
    suggestion = tested.suggestion
    if suggestion is None:
        raise RunError(
            "optimizer.lr=auto finds no rate: the loss does not fall in the range test; set a "
            "number, or see task=find_lr"
        )
    console.say(
        f"rate     optimizer.lr=auto: the loss falls fastest at {suggestion.lr:g} (range test of "
        f"{len(tested.rates)} updates)"
    )
    short = _Short(composed, planned, prepared, backend, start, console, signals)
    measured = _compare(short, suggestion)
    if signals.received:
        return None
    lr = short.best(measured)
    listed = ", ".join(f"{rate:g}: {value:.4g}" for rate, value in sorted(measured.items()))
    console.say(f"rate     {short.metric} after {short.num_steps} updates at {listed}")
    if not math.isfinite(measured[lr]):
        raise RunError(f"optimizer.lr=auto finds no rate: all short runs diverged; {IF_DIVERGED}")
    console.say(f"rate     optimizer.lr={lr:g}")
    plan = planned(with_lr(composed, lr))
    return Found(lr, plan, plan.check_schedule(), tested, measured)


class _Short:
    """Trains short runs of a planned run with other base rates."""

    def __init__(
        self,
        composed: Mapping[str, Any],
        planned: Planned,
        prepared: Plan,
        backend: Backend,
        start: TrainState,
        console: Console,
        signals: Signals,
    ) -> None:
        self.prepared, self.backend, self.start = prepared, backend, start
        self.console, self.signals = console, signals
        self._composed, self._planned = composed, planned
        total = prepared.order.total_steps
        self.num_steps = min(total, max(FEWEST_STEPS, total // SHARE))
        trainer = prepared.config.trainer
        self._has_val = len(prepared.data.val) > 0
        self.metric = trainer.monitor if self._has_val else "train/loss"
        self._mode = Stall(trainer.monitor_mode if self._has_val else "min", patience=0)

    def best(self, measured: Mapping[float, float]) -> float:
        """Return the rate with the best value; the smallest of equal ones."""
        best = None
        for lr in sorted(measured):
            value = measured[lr]
            if math.isfinite(value) and (
                best is None or self._mode.is_better(value, measured[best])
            ):
                best = lr
        return min(measured) if best is None else best

    def measure(self, lr: float) -> float:
        """Return the metric after a short run at base rate `lr`; NaN if it diverges."""
        trainer = {
            **self._composed["trainer"],
            "max_epochs": None,
            "max_steps": self.num_steps,
            "early_stopping_patience": None,
        }
        values = {**with_lr(self._composed, lr), "debug": None, "trainer": trainer}
        prepared = self._planned(values)
        losses: list[np.ndarray] = []
        found = math.nan

        def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
            nonlocal found
            step = chunk.first_step + chunk.num_steps
            losses.append(report.losses)
            self.console.advance(step, f"rate {lr:.3g}  loss {report.losses[-1]:.4g}")
            if not np.isfinite(report.losses).all():
                return False
            if step == self.num_steps and self._has_val:
                val = prepared.data.val
                found = evaluate(prepared, val, live.predict, live.measure, "val/")[self.metric]
            elif step == self.num_steps:
                found = float(np.concatenate(losses)[-max(1, step // SHARE) :].mean())
            return not self.signals.received

        with self.console.progress(self.num_steps, 0):
            chunks = prepared.chunks(0, None, adapt=False)
            self.backend.train(prepared.run_spec(), self.start, chunks, on_chunk)
        return found


def _compare(short: _Short, suggestion: Suggestion) -> dict[float, float]:
    """Return the metric of each rate that was tried."""
    measured: dict[float, float] = {}
    rates = [suggestion.lr / FACTOR, suggestion.lr, suggestion.lr * FACTOR]
    while rates and not short.signals.received:
        for rate in map(_two_digits, rates):
            measured[rate] = short.measure(rate)
        best, rates = short.best(measured), []
        if best == min(measured):
            rates = [best / FACTOR]
        elif best == max(measured):
            rates = [best * FACTOR]
        rates = rates if len(measured) < MOST_RATES else []
    return measured


def _two_digits(rate: float) -> float:
    return float(f"{rate:.1e}")


def _or_none(value: float) -> float | None:
    """Return a number that JSON has; None for one that is not finite."""
    return value if math.isfinite(value) else None


def check(prepared: Plan) -> None:
    """Refuse a run whose data cannot be read before it."""
    if prepared.data.stream is not None:
        raise ConfigError(
            "optimizer.lr must be a number for an iterable of training rows, which cannot be read "
            "before the run, got auto"
        )
