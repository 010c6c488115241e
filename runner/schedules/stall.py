"""Detect that a metric has stalled, for plateau schedules and early stopping. Pure functions of the
metric's values."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Watch:
    """The state between two epochs."""

    best: float | None = None  # best value so far
    num_bad: int = 0  # epochs in a row without improvement
    cooldown: int = 0  # remaining epochs that do not count


@dataclass(frozen=True)
class Stall:
    """The rule for a stalled metric, that of torch's ReduceLROnPlateau.

    A value v is better than the best value b if it improves on b by more than the threshold h: for
    mode min, v < b (1 - h) if `relative`, else v < b - h; for mode max, v > b (1 + h) if
    `relative`, else v > b + h. The metric has stalled after more than `patience` epochs in a row
    without a better value. The next `cooldown` epochs then do not count.
    """

    mode: Mode
    patience: int
    threshold: float = 0.0
    relative: bool = False
    cooldown: int = 0

    def is_better(self, value: float, best: float | None) -> bool:
        """True if a value is better than the best one. A first value is better unless it is NaN."""
        if best is None:
            return value == value
        sign = 1.0 if self.mode == "min" else -1.0
        bound = (
            best * (1 - sign * self.threshold) if self.relative else best - sign * self.threshold
        )
        return value < bound if self.mode == "min" else value > bound

    def after(self, watch: Watch, value: float) -> tuple[Watch, bool]:
        """The state after an epoch with this value, and whether the metric has stalled."""
        better = self.is_better(value, watch.best)
        best = value if better else watch.best
        num_bad = 0 if better or watch.cooldown else watch.num_bad + 1
        if num_bad > self.patience:
            return Watch(best, 0, self.cooldown), True
        return Watch(best, num_bad, max(0, watch.cooldown - 1)), False
