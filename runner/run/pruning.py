"""End a trial of a search that is worse than others: hydra/sweeper/pruner."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from runner.run import study
from runner.run.observer import Epoch, Limit
from runner.run.study import Settings
from runner.spec import Live


@dataclass
class Pruning(Limit):
    """Reports the monitored metric of every epoch to the study, whose pruner may end the run. It is
    pickled for a run that trains in another process."""

    settings: Settings
    number: int  # of the trial
    metric: str  # trainer.monitor
    cause = "pruned"
    is_over = False

    def __enter__(self) -> "Pruning":
        self._trial = self.settings.trial(self.settings.study(), self.number)
        self._reported = {*self.settings.trials()[self.number].intermediate_values}
        return self

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        value = epoch.metrics[self.metric]
        if not epoch.is_whole or not isfinite(value):
            return True
        with study.quiet():
            if epoch.number not in self._reported:  # a run that resumes repeats epochs
                self._trial.report(value, epoch.number)
            self.is_over = self._trial.should_prune()
        return not self.is_over

    def __getstate__(self) -> dict[str, Any]:
        names = ("settings", "number", "metric")
        return {name: value for name, value in vars(self).items() if name in names}
