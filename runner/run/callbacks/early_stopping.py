"""callbacks=[early_stopping]: end the run when several metrics have stalled."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from sys import maxsize
from typing import Any

from runner.plan import Plan
from runner.run.observer import Epoch, Limit
from runner.schedules.stall import Stall, Watch
from runner.spec import Backend, Live
from runner.text.console import Console


class EarlyStopping(Limit):
    """Ends the run after a whole epoch when all of its metrics, or any, have not improved for
    `patience` epochs in a row: the rule of trainer.early_stopping_patience for each metric."""

    cause = "early_stopping"

    def __init__(
        self, section: Any, plan: Plan, backend: Backend, path: Path, console: Console
    ) -> None:
        trainer = plan.config.trainer
        self.section, self.console = section, console
        modes = section.metrics or {trainer.monitor: trainer.monitor_mode}
        # the count of epochs goes on: the other metrics may stall later
        self._rules = {
            metric: Stall(mode, maxsize, section.min_delta) for metric, mode in modes.items()
        }
        self._watches = {metric: Watch() for metric in modes}

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        if not epoch.is_whole:
            return True
        for metric, rule in self._rules.items():
            self._watches[metric], _ = rule.after(self._watches[metric], epoch.metrics[metric])
        enough = all if self.section.stop == "all" else any
        self.is_over = enough(w.num_bad >= self.section.patience for w in self._watches.values())
        if self.is_over:
            self.console.say(f"stopped early: {self._stalled()}")
        return not self.is_over

    def _stalled(self) -> str:
        return ", ".join(
            f"{metric} was no better for {watch.num_bad} epochs"
            for metric, watch in self._watches.items()
            if watch.num_bad >= self.section.patience
        )

    def state(self) -> dict[str, Any]:
        watches = {metric: asdict(watch) for metric, watch in self._watches.items()}
        return {"watches": watches, "is_over": self.is_over}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue with the metrics that the callback still has."""
        for metric, watch in state["watches"].items():
            if metric in self._watches:
                self._watches[metric] = Watch(**watch)
