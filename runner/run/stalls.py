"""React to a stalled metric: a plateau lowers the rates, early stopping ends the run."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from runner.plan import Plan
from runner.run.observer import Epoch, Observer
from runner.schedules.plateau import State
from runner.schedules.stall import Watch
from runner.spec import Live
from runner.text.console import Console


class Stalls(Observer):
    """Watches the metrics of every whole epoch, also of the last one: the run may be extended."""

    def __init__(self, plan: Plan, console: Console, resumed: Mapping[str, Any] | None) -> None:
        """`resumed` is a checkpoint's state.json."""
        self.plan, self.console = plan, console
        self.plateau, self.watch, self.stopped_early = State(), Watch(), False
        if resumed is not None:
            self.plateau = State.of(resumed["plateau"])
            self.watch = Watch(**resumed["early_stopping"])

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        if not epoch.is_whole:
            return True
        plan, before = self.plan, self.plateau
        if plan.early_stopping:
            num_bad, value = self.watch.num_bad + 1, epoch.metrics[plan.config.trainer.monitor]
            self.watch, self.stopped_early = plan.early_stopping.after(self.watch, value)
            if self.stopped_early:  # if the run resumes with more patience, these epochs count
                self.watch = replace(self.watch, num_bad=num_bad)
        if plan.plateau:
            self.plateau = plan.plateau.after(before, epoch.metrics[plan.plateau.metric])
            is_finished = self.stopped_early or epoch.step == plan.order.total_steps
            if self.plateau.factor != before.factor and not is_finished:
                live.use_tables(plan.tables(self.plateau))
                lowered = f"from step {epoch.step} on rates times {self.plateau.factor:g}"
                self.console.say(f"plateau  {plan.plateau.metric} has stalled: {lowered}")
        return not self.stopped_early

    def state(self) -> dict[str, Any]:
        return {
            "plateau": self.plateau.numbers(),
            "early_stopping": asdict(self.watch),
            "stopped_early": self.stopped_early,
        }
