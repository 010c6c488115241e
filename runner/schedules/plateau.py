"""The one schedule with a state: a factor on any other, which falls when a metric stalls."""

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
    """State of a plateau, as a checkpoint keeps it."""

    factor: float = 1.0
    watch: Watch = field(default_factory=Watch)

    def numbers(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, numbers: dict[str, Any]) -> "State":
        return cls(numbers["factor"], Watch(**numbers["watch"]))


class Plateau(Curve):
    """eta(t) = max(f eta_of(t), min(eta_m, eta_of(t))): f = 1, times `factor` whenever `metric` has
    stalled at an epoch's end (runner/schedules/stall.py: `mode`, `patience`, `threshold`,
    `threshold_mode`, `cooldown`); eta_m = `min_lr`.

    torch: ReduceLROnPlateau with the same arguments, for a constant `of`; its `eps`, which leaves
    out changes below 1e-8, is not here. Keras: the callback ReduceLROnPlateau lowers and ends a
    cooldown one epoch earlier (its patience and cooldown are ours + 1, and of both its 0 is its 1),
    compares absolutely (`min_delta` is a threshold with threshold_mode=abs), and cannot stand
    beside another schedule.
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
        """While nothing has stalled."""
        with part("of"):
            return self.of.rates(t, clock, lr)

    def scaled(self, rates: Array, state: State) -> Array:
        """The table in force, from that of `rates`."""
        if state.factor == 1:
            return rates
        return np.maximum(state.factor * rates, np.minimum(self.min_lr, rates))

    def after(self, state: State, value: float) -> State:
        """Return the state after another epoch with this value of the metric."""
        rule = Stall(
            self.mode, self.patience, self.threshold, self.threshold_mode == "rel", self.cooldown
        )
        watch, stalled = rule.after(state.watch, value)
        return State(state.factor * self.factor if stalled else state.factor, watch)

    def spans(self, clock: Clock) -> dict[str, int]:
        return {f"of.{key}": step for key, step in self.of.spans(clock).items()}

    def joints(self, clock: Clock) -> list[int]:
        return self.of.joints(clock)
