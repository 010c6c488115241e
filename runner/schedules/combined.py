"""Primitives (hold, ramp, inverse) and combinators (sequence, repeat, product, clip) for new
schedules.

Every part is a schedule with its own keys; conf/schedule/NAME.yaml has the defaults of keys that
are left out. A part has its own clock: its steps count from 0, and `100%` is the length of its
phase. `clock: global` uses the clock of the whole run instead.

    name: sequence
    phases:
      - {for: 500steps, name: ramp, from: 0.0, to: 1.0, edge: right}
      - {for: rest, name: hold}
      - {for: 20%, name: ramp, from: 1.0, to: 0.0, shape: late, power: 0.5}
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from runner import user_code
from runner.schedules import ramps
from runner.schedules.curve import Curve, part
from runner.schedules.cycles import cycles
from runner.schedules.dialects import DIALECTS
from runner.schedules.named import NAMED
from runner.schedules.ramps import Array, Edge, between, progress
from runner.schedules.units import Clock, Length, Share, half_up
from runner.section import Fraction as BelowOne
from runner.section import NonNegative, OneOf, OwnCode, Positive, Section


class Hold(Curve):
    """eta(t) = eta0 f, f = `factor`."""

    name: Literal["hold"]
    factor: NonNegative

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        return np.full(t.shape, lr * self.factor)


class Ramp(Curve):
    """eta(t) = eta0 (b + (a - b) g(u)); a = `from`, b = `to`; u is the progress over all steps of
    the clock, with `edge`.

    `shape` selects g: linear 1 - u; cosine (1 + cos(pi u)) / 2; polynomial (1 - u)^p and late 1 -
    u^p, p = `power`; rex z / (1 - d + d z), z = 1 - u, d = `bend`; tanh (1 - tanh(l (1 - u) + h u))
    / 2, l = `lower`, h = `upper`. geometric is eta(t) = eta0 a (b / a)^u. A shape ignores the keys
    of other shapes.
    """

    name: Literal["ramp"]
    start: NonNegative = Field(alias="from")
    end: NonNegative = Field(alias="to")
    shape: Literal["linear", "cosine", "polynomial", "late", "geometric", "rex", "tanh"]
    edge: Edge
    power: Positive
    bend: BelowOne
    lower: float
    upper: float

    @model_validator(mode="after")
    def _fits(self) -> "Ramp":
        if self.shape == "geometric" and not (self.start and self.end):
            raise ValueError(
                f"from and to above 0 with shape=geometric, got {self.start:g} and {self.end:g}"
            )
        return self

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        u = progress(t, clock.total_steps, self.edge)
        if self.shape == "geometric":
            return lr * ramps.geometric(u, self.start, self.end)
        return lr * between(self.start, self.end, self._fall(u))

    def _fall(self, u: Array) -> Array:
        match self.shape:
            case "cosine":
                return ramps.cosine(u)
            case "polynomial":
                return ramps.polynomial(u, self.power)
            case "late":
                return ramps.late(u, self.power)
            case "rex":
                return ramps.rex(u, self.bend)
            case "tanh":
                return ramps.tanh(u, self.lower, self.upper)
        return ramps.linear(u)

    def joints(self, clock: Clock) -> list[int]:
        return [clock.total_steps]


class Inverse(Curve):
    """eta(t) = eta0 (1 + t / c)^(-p), c = `scale` in steps, p = `power`. Equals schedule=power
    without a warm-up."""

    name: Literal["inverse"]
    scale: Length
    power: Positive

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        return lr * np.power(1 + t / float(clock.exact(self.scale)), -self.power)


def _flat(schema: dict[str, Any]) -> None:
    """Adapt a phase's JSON schema to the form that users write: the schedule's keys stand beside
    `for`. The schema cannot list these keys, since they depend on `name`."""
    schema["properties"]["name"] = {"type": "string"}
    del schema["properties"]["curve"], schema["additionalProperties"]


class Phase(Section):
    """A schedule and its length, `for`: a duration, or for one phase of a sequence `rest`."""

    model_config = ConfigDict(json_schema_extra=_flat)
    share: Share = Field(alias="for")
    curve: "AnyCurve"

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        """Separate `for` from the schedule's own keys, which stand beside it."""
        if not isinstance(values, dict):
            return values
        keys = {key: value for key, value in values.items() if key != "for"}
        return {**({"for": values["for"]} if "for" in values else {}), "curve": keys}


class Sequence(Curve):
    """One phase after another: eta(t) = eta_i(t - b_i) on a clock of N_i = b_(i+1) - b_i steps for
    b_i <= t < b_(i+1).

    b_i is the sum of the lengths of the earlier phases, rounded half up, so that the phases add up
    to T; a percentage refers to T. With `clock: global`, phases do not start from 0: eta(t) =
    eta_i(t) on the clock of the whole. A phase of 0 steps is skipped. After the last phase its
    clock continues, so that a schedule with an end holds its last value.

    torch: SequentialLR. Optax: join_schedules. Neither can join phases in different units.
    """

    name: Literal["sequence"]
    clock: Literal["own", "global"]
    phases: list[Phase] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> "Sequence":
        rests = sum(phase.share == "rest" for phase in self.phases)
        if rests > 1:
            raise ValueError(f"at most one phase with for: rest, got {rests}")
        return self

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        eta, begins, own = np.empty(t.shape), self._begins(clock), self.clock == "own"
        last = max(
            (i for i in range(len(self.phases)) if begins[i] < begins[i + 1]),
            default=len(self.phases) - 1,
        )
        for i, (phase, begin, end) in enumerate(zip(self.phases, begins, begins[1:], strict=False)):
            inside = (t >= begin) & (t < end) if i != last else t >= begin
            with part(f"phases[{i}]"):
                within = clock.within(max(1, end - begin), begin) if own else clock
                eta[inside] = phase.curve.rates(t[inside] - (begin if own else 0), within, lr)
        return eta

    def _begins(self, clock: Clock) -> list[int]:
        return clock.boundaries([phase.share for phase in self.phases])

    def spans(self, clock: Clock) -> dict[str, int]:
        last = max(
            (i for i, phase in enumerate(self.phases) if phase.share != "rest"), default=None
        )
        return {} if last is None else {f"phases[{last}].for": self._begins(clock)[last + 1]}

    def joints(self, clock: Clock) -> list[int]:
        begins = self._begins(clock)
        joints = begins[:]
        for phase, begin, end in zip(self.phases, begins, begins[1:], strict=False):
            inner = clock.within(end - begin, begin) if self.clock == "own" else clock
            shift = begin if self.clock == "own" else 0
            joints += [
                shift + step for step in phase.curve.joints(inner) if begin < shift + step < end
            ]
        return joints


class Repeat(Curve):
    """Repeats the schedule `of`: at step k of cycle i, eta = eta_m + (eta_of(k) - eta_m) d^i on a
    clock of P_i steps.

    The cycle length P_i starts with `period` and grows by the factor `growth`; the boundaries are
    rounded (cycles.py). d = `decay`; eta_m = `floor_lr`, the rate towards which the cycles decay.
    With a cosine as `of` this is cosine_restarts; with a sequence of two ramps it is cyclic in mode
    triangular2.
    """

    name: Literal["repeat"]
    of: "AnyCurve"
    period: Length
    growth: Annotated[float, Field(ge=1)]
    decay: Annotated[float, Field(gt=0, le=1)]
    floor_lr: NonNegative

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        cycle = cycles(clock.period(self.period), self.growth).at(t)
        eta = np.empty(t.shape)
        for length in np.unique(cycle.length):
            inside = cycle.length == length
            with part("of"):
                eta[inside] = self.of.rates(cycle.step[inside], clock.within(int(length), None), lr)
        if self.decay == 1:
            return eta
        return between(eta, self.floor_lr, np.power(self.decay, cycle.number, dtype=np.float64))

    def spans(self, clock: Clock) -> dict[str, int]:
        return {"period": half_up(clock.period(self.period))}

    def joints(self, clock: Clock) -> list[int]:
        return cycles(clock.period(self.period), self.growth).begins(clock.total_steps)


class Product(Curve):
    """eta(t) = eta0 * product of eta_i(t) / eta0 over the schedules in `of`, all on this clock.

    torch's ChainedScheduler differs if one of its schedulers computes from the current rate.
    """

    name: Literal["product"]
    of: list["AnyCurve"] = Field(min_length=1)

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        eta = np.full(t.shape, lr)
        for i, curve in enumerate(self.of):
            with part(f"of[{i}]"):
                eta = eta * (curve.rates(t, clock, lr) / lr)
        return eta

    def joints(self, clock: Clock) -> list[int]:
        return [step for curve in self.of for step in curve.joints(clock)]


class Clip(Curve):
    """eta(t) = min(max(eta_of(t), a), b), a = `min_lr`, b = `max_lr` (null: no bound)."""

    name: Literal["clip"]
    of: "AnyCurve"
    min_lr: NonNegative
    max_lr: NonNegative | None

    @model_validator(mode="after")
    def _fits(self) -> "Clip":
        if self.max_lr is not None and self.max_lr < self.min_lr:
            raise ValueError(f"min_lr below max_lr, got {self.min_lr:g} and {self.max_lr:g}")
        return self

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        with part("of"):
            return np.clip(self.of.rates(t, clock, lr), self.min_lr, self.max_lr)

    def joints(self, clock: Clock) -> list[int]:
        return self.of.joints(clock)


class Custom(Curve, OwnCode):
    """eta(t) = f(t, total_steps=T, steps_per_epoch=..., lr=eta0, **args), with your own function f,
    `_target_`: MODULE.FUNCTION. It gets an array of steps and returns an array of rates of the same
    length. `trusted_modules` must name its module. All other keys are its `args`.

    f is called for parts of the run in any order, so eta(t) must depend on t only, not on the other
    steps in the array.
    """

    name: Literal["custom"]

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        if not clock.epochs.are_equal:
            raise ValueError(
                f"_target_ {self.code} gets steps_per_epoch, which is no fixed number if "
                f"trainer.batch_size changes; set trainer.batch_size to one number"
            )
        total, epoch = clock.total_steps, clock.steps_per_epoch
        call = partial(user_code.call, self.code)
        if self.given is not None:
            call = partial(user_code.call_given, self.given)
        returned = call(t, total_steps=total, steps_per_epoch=epoch, lr=lr, **self.arguments)
        rates = np.asarray(returned)
        if rates.dtype.kind not in "iuf" or rates.shape != t.shape:
            raise ValueError(
                f"_target_ {self.code} must return a rate for each of {len(t)} steps, got "
                f"{rates.dtype} of shape {list(rates.shape)}"
            )
        return rates.astype(np.float64)


ALL = (*NAMED, Hold, Ramp, Inverse, Sequence, Repeat, Product, Clip, Custom, *DIALECTS)

if TYPE_CHECKING:
    AnyCurve = Curve
else:
    AnyCurve = Annotated[Union[ALL], OneOf("name")]
for _kind in (Phase, Sequence, Repeat, Product, Clip):
    _kind.model_rebuild()
