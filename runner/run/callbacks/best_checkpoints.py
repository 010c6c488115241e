"""callbacks=[best_checkpoints]: keep the checkpoints of the best epochs."""

import csv
from collections.abc import Collection, Mapping
from functools import cmp_to_key
from pathlib import Path
from typing import Any, NamedTuple

from runner.plan import Plan
from runner.run import run_folder
from runner.run.observer import Epoch, Observer
from runner.schedules.stall import Stall
from runner.spec import Backend, Live
from runner.text.console import Console
from runner.text.numbers import show_metric


class Best(NamedTuple):
    """A whole epoch."""

    value: float
    step: int
    epoch: int


class BestCheckpoints(Observer):
    """Keeps the checkpoints of the `num` best whole epochs so far, whatever
    trainer.keep_checkpoints is; a checkpoint is written at each of these epochs. Of equal values
    the earlier one is better; NaN is never among them. best_checkpoints.csv lists them, best
    first."""

    def __init__(
        self, section: Any, plan: Plan, backend: Backend, path: Path, console: Console
    ) -> None:
        trainer = plan.config.trainer
        self.num, self.metric = section.num, section.metric or trainer.monitor
        self._rule = Stall(section.mode or trainer.monitor_mode, patience=0)
        self._path, self.console = path, console
        self._best: list[Best] = []

    @property
    def file(self) -> Path:
        name = self.state_name or "best_checkpoints"  # of the second one: best_checkpoints 1
        return self._path / f"{name.replace(' ', '_')}.csv"

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        value = epoch.metrics[self.metric]
        if not epoch.is_whole or value != value:
            return True
        found = [*self._best, Best(value, epoch.step, epoch.number)]
        found = sorted(found, key=cmp_to_key(self._compare))[: self.num]
        if found != self._best:
            self._best = found
            self._write()
        return True

    def _compare(self, a: Best, b: Best) -> int:
        if self._rule.is_better(a.value, b.value):
            return -1
        return 1 if self._rule.is_better(b.value, a.value) else 0

    def _write(self) -> None:
        lines = [f"rank,step,epoch,{self.metric}"]
        lines += [
            f"{i},{best.step},{best.epoch},{best.value}" for i, best in enumerate(self._best, 1)
        ]
        run_folder.write_text(self.file, "\n".join(lines) + "\n")

    def kept_checkpoints(self) -> Collection[int]:
        return [best.step for best in self._best]

    def on_end(self, result: Mapping[str, Any]) -> None:
        if self._best:
            listed = ", ".join(
                f"{show_metric(best.value)} at step {best.step}" for best in self._best
            )
            self.console.say(f"kept     {self.metric} {listed}; checkpoint=STEP reads one of them")

    def state(self) -> dict[str, Any]:
        return {"best": [list(best) for best in self._best], "metric": self.metric}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue with the list; another metric begins a new one."""
        if state["metric"] == self.metric:
            self._best = [Best(*best) for best in state["best"]][: self.num]
            self._write()


def listed(folder: Path) -> set[int]:
    """Return the steps of the checkpoints that a run's files list."""
    found = set()
    for path in run_folder.best_checkpoints(folder):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [*csv.reader(file)][1:]
        found |= {int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    return found
