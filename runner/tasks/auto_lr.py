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
from runner.evaluation import evaluate
from runner.plan import Plan
from runner.report.range_test import two_digits
from runner.run import run_folder, strict_json
from runner.run.signals import Signals
from runner.spec import Backend, Live, Report, TrainState
from runner.tasks import find_lr
from runner.text.console import Console

FACTOR = 4.0  # between neighbouring rates
MOST_RATES = 6  # that are compared
FEWEST_STEPS = 500  # of a short run, if the run has as many
TRAIN_LOSS = "train/loss"  # decides without validation rows
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
        measured = [
            {"lr": lr, "value": strict_json.finite(v)} for lr, v in sorted(self.measured.items())
        ]
        entries = {**self.test.json(), "measured": measured, "lr": self.lr}
        run_folder.write_json(path / "find_lr.json", entries)
        self.test.draw(path)
        return self.warnings


@dataclass(frozen=True)
class Search:
    """The search for the base rate of a planned run."""

    composed: Mapping[str, Any]  # the run's config, as plain values
    planned: Planned
    prepared: Plan
    backend: Backend
    start: TrainState
    console: Console
    signals: Signals

    @property
    def num_steps(self) -> int:
        """The updates of a short run."""
        total = self.prepared.order.total_steps
        return min(total, max(FEWEST_STEPS, total // SHARE))

    @property
    def metric(self) -> str:
        """The metric that decides."""
        monitor = self.prepared.config.trainer.monitor
        is_measured = len(self.prepared.data.val) > 0 and not monitor.startswith("train/")
        return monitor if is_measured else TRAIN_LOSS

    def find(self) -> Found | None:
        """Find the rate, and print the steps. None if a signal came."""
        test = self.planned(find_lr.as_range_test(self.composed))
        tested = find_lr.train(test, self.backend, self.start, self.console, self.signals)
        if self.signals.received:
            return None
        suggestion = tested.suggestion
        if suggestion is None:
            raise RunError(
                "optimizer.lr=auto finds no rate: the loss does not fall in the range test; set a "
                "number, or see task=find_lr"
            )
        self.console.say(
            f"rate     optimizer.lr=auto: the loss falls fastest at {suggestion.lr:g} (range test "
            f"of {len(tested.rates)} updates)"
        )
        measured = self._compare(suggestion.lr)
        if self.signals.received:
            return None
        listed = ", ".join(f"{rate:g}: {value:.4g}" for rate, value in sorted(measured.items()))
        self.console.say(f"rate     {self.metric} after {self.num_steps} updates at {listed}")
        lr = self._best(measured)
        if not math.isfinite(measured[lr]):
            raise RunError(
                f"optimizer.lr=auto finds no rate: all short runs diverged; {IF_DIVERGED}"
            )
        self.console.say(f"rate     optimizer.lr={lr:g}")
        plan = self.planned(with_lr(self.composed, lr))
        return Found(lr, plan, plan.check_schedule(), tested, measured)

    def _compare(self, suggested: float) -> dict[float, float]:
        """Return the metric of each rate that was tried."""
        measured: dict[float, float] = {}
        rates = [suggested / FACTOR, suggested, suggested * FACTOR]
        while rates and not self.signals.received:
            for rate in map(two_digits, rates):
                measured[rate] = self._measure(rate)
            best, rates = self._best(measured), []
            if best == min(measured):
                rates = [best / FACTOR]
            elif best == max(measured):
                rates = [best * FACTOR]
            rates = rates if len(measured) < MOST_RATES else []
        return measured

    def _best(self, measured: Mapping[float, float]) -> float:
        """Return the rate with the best value; the smallest of equal ones, and of all if none has a
        finite value."""
        finite = {lr: measured[lr] for lr in sorted(measured) if math.isfinite(measured[lr])}
        if not finite:
            return min(measured)
        maximizes = self.prepared.config.trainer.monitor_mode == "max"
        choose = max if maximizes and self.metric != TRAIN_LOSS else min
        return choose(finite, key=finite.__getitem__)

    def _measure(self, lr: float) -> float:
        """Return the metric after a short run at base rate `lr`; NaN if it diverges."""
        trainer = {
            **self.composed["trainer"],
            "max_epochs": None,
            "max_steps": self.num_steps,
            "early_stopping_patience": None,
        }
        values = {**with_lr(self.composed, lr), "debug": None, "trainer": trainer}
        prepared = self.planned(values)
        losses: list[np.ndarray] = []
        found = math.nan

        def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
            nonlocal found
            step = chunk.first_step + chunk.num_steps
            losses.append(report.losses)
            self.console.advance(step, f"rate {lr:.3g}  loss {report.losses[-1]:.4g}")
            if not np.isfinite(report.losses).all():
                return False
            if step == self.num_steps and self.metric != TRAIN_LOSS:
                val = prepared.data.val
                found = evaluate(prepared, val, live.predict, live.measure, "val/")[self.metric]
            elif step == self.num_steps:
                found = float(np.concatenate(losses)[-max(1, step // SHARE) :].mean())
            return not self.signals.received

        with self.console.progress(self.num_steps, 0):
            chunks = prepared.chunks(0, None, adapt=False)
            self.backend.train(prepared.run_spec(), self.start, chunks, on_chunk)
        return found


def check(prepared: Plan) -> None:
    """Refuse a run whose data cannot be read before it."""
    if prepared.data.stream is not None:
        raise ConfigError(
            "optimizer.lr must be a number for an iterable of training rows, which cannot be read "
            "before the run, got auto"
        )
