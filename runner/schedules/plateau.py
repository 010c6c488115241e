"""The only schedule with a state: multiplies another schedule by a factor that falls when a metric
stalls."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from runner.schedules.combined import AnyCurve
from runner.schedules.curve import Curve, part
from runner.schedules.ramps import Array
from runner.schedules.stall import Mode, Stall, Watch
from runner.schedules.units import Clock
from runner.section import Index, NonNegative


@dataclass(frozen=True)
class State:
    """The state of a plateau; it is saved in checkpoints."""

    factor: float = 1.0
    watch: Watch = field(default_factory=Watch)

    def numbers(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, numbers: dict[str, Any]) -> "State":
        return cls(numbers["factor"], Watch(**numbers["watch"]))


class Plateau(Curve):
    """eta(t) = max(f eta_of(t), min(eta_m, eta_of(t))); eta_m = `min_lr`. f starts at 1 and is
    multiplied by `factor` whenever `metric` has stalled at an epoch's end
    (runner/schedules/stall.py: `mode`, `patience`, `threshold`, `threshold_mode`, `cooldown`).

    torch: ReduceLROnPlateau with the same arguments, for a constant `of`; torch's `eps`, which
    ignores changes below 1e-8, does not exist here. Keras: the callback ReduceLROnPlateau acts one
    epoch earlier: its patience and cooldown are ours + 1 (its 0 means 1). It compares absolutely
    (`min_delta` is a threshold with threshold_mode=abs) and cannot be combined with another
    schedule.
    """

    name: Literal["plateau"]
    of: AnyCurve
    metric: str
    mode: Mode
    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: Index
    threshold: NonNegative
    threshold_mode: Literal["rel", "abs"]
    cooldown: Index
    min_lr: NonNegative

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        """The table while the factor is 1."""
        with part("of"):
            return self.of.rates(t, clock, lr)

    def scaled(self, rates: Array, state: State) -> Array:
        """The table of rates under this state; `rates` is the table with the factor 1."""
        if state.factor == 1:
            return rates
        return np.maximum(state.factor * rates, np.minimum(self.min_lr, rates))

    def after(self, state: State, value: float) -> State:
        """The state after another epoch with this value of the metric."""
        rule = Stall(
            self.mode, self.patience, self.threshold, self.threshold_mode == "rel", self.cooldown
        )
        watch, stalled = rule.after(state.watch, value)
        return State(state.factor * self.factor if stalled else state.factor, watch)

    def spans(self, clock: Clock) -> dict[str, int]:
        return {f"of.{key}": step for key, step in self.of.spans(clock).items()}

    def joints(self, clock: Clock) -> list[int]:
        return self.of.joints(clock)
