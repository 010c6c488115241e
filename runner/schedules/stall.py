"""Detect that a metric has stalled, which lowers the rate on a plateau and ends a run early. Pure
functions of the values seen."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Watch:
    """State that is kept from one epoch to the next."""

    best: float | None = None  # so far
    num_bad: int = 0  # epochs since then that were no better
    cooldown: int = 0  # epochs that still do not count


@dataclass(frozen=True)
class Stall:
    """A value v is better than the best b by more than a threshold h: with mode min, v < b (1 - h)
    if `relative`, else v < b - h; with mode max, v > b (1 + h), else v > b + h. The metric has
    stalled when more than `patience` epochs in a row were not better; after that `cooldown` epochs
    do not count. As in torch's ReduceLROnPlateau.
    """

    mode: Mode
    patience: int
    threshold: float = 0.0
    relative: bool = False
    cooldown: int = 0

    def is_better(self, value: float, best: float | None) -> bool:
        """NaN is better than nothing."""
        if best is None:
            return value == value
        sign = 1.0 if self.mode == "min" else -1.0
        bound = (
            best * (1 - sign * self.threshold) if self.relative else best - sign * self.threshold
        )
        return value < bound if self.mode == "min" else value > bound

    def after(self, watch: Watch, value: float) -> tuple[Watch, bool]:
        """Return the state after an epoch's value, and whether the metric has stalled."""
        better = self.is_better(value, watch.best)
        best = value if better else watch.best
        num_bad = 0 if better or watch.cooldown else watch.num_bad + 1
        if num_bad > self.patience:
            return Watch(best, 0, self.cooldown), True
        return Watch(best, num_bad, max(0, watch.cooldown - 1)), False
