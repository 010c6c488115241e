"""New curves from known ones: a few primitives that fill the time they are given, and what joins
curves to one.

Every part is a schedule with its own keys; those that are not said are what conf/schedule/NAME.yaml
says. A part has a clock of its own, so that `100%` is all of its phase and its step counts from 0,
unless it is said to go by the global one.

    name: sequence
    phases:
      - {for: 500steps, name: ramp, from: 0.0, to: 1.0, edge: right}
      - {for: rest, name: hold}
      - {for: 20%, name: ramp, from: 1.0, to: 0.0, shape: late, power: 0.5}
"""

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
from runner.schedules.units import Clock, Length, Share
from runner.section import Fraction as BelowOne
from runner.section import NonNegative, Positive, Section


class Hold(Curve):
    """eta(t) = eta0 f, f = `factor`."""

    name: Literal["hold"]
    factor: NonNegative

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        return np.full(t.shape, lr * self.factor)


class Ramp(Curve):
    """eta(t) = eta0 (b + (a - b) g(u)), u over all of the clock's steps with `edge`; a = `from`, b
    = `to`.

    g by `shape`: linear 1 - u; cosine (1 + cos(pi u)) / 2; polynomial (1 - u)^p and late 1 - u^p, p
    = `power`; rex z / (1 - d + d z), z = 1 - u, d = `bend`; tanh (1 - tanh(l (1 - u) + h u)) / 2, l
    = `lower`, h = `upper`; geometric is eta0 a (b / a)^u. The keys of other shapes are not used.
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
    """eta(t) = eta0 (1 + t / c)^(-p), c = `scale` in steps, p = `power`. `power` without its
    warm-up."""

    name: Literal["inverse"]
    scale: Length
    power: Positive

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        return lr * np.power(1 + t / float(clock.exact(self.scale)), -self.power)


def _flat(schema: dict[str, Any]) -> None:
    """Make a phase's JSON schema that of what the user writes, for `_split`: the schedule's keys
    stand beside `for`. Which keys these are, JSON schema cannot say there."""
    schema["properties"]["name"] = {"type": "string"}
    del schema["properties"]["curve"], schema["additionalProperties"]


class Phase(Section):
    """A schedule and how long it is in force: `for`, a duration or, once in a sequence, the
    rest."""

    model_config = ConfigDict(json_schema_extra=_flat)
    share: Share = Field(alias="for")
    curve: "AnyCurve"

    @model_validator(mode="before")
    @classmethod
    def _split(cls, said: Any) -> Any:
        """`for` stands among the schedule's own keys."""
        if not isinstance(said, dict):
            return said
        keys = {key: value for key, value in said.items() if key != "for"}
        return {**({"for": said["for"]} if "for" in said else {}), "curve": keys}


class Sequence(Curve):
    """One phase after another: eta(t) = eta_i(t - b_i) on a clock of N_i = b_(i+1) - b_i steps for
    b_i <= t < b_(i+1).

    b_i = half_up of the phases' lengths so far, so that they add up to T; a duration in percent is
    one of T. With `clock` global the phases do not start anew: eta(t) = eta_i(t) on the clock of
    the whole. A phase of no steps is passed over; after the last one its own clock runs on: what
    ends holds its end.

    torch: SequentialLR. Optax: join_schedules. Neither can join phases of different units.
    """

    name: Literal["sequence"]
    clock: Literal["own", "global"]
    phases: list[Phase] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> "Sequence":
        rests = sum(phase.share == "rest" for phase in self.phases)
        if rests > 1:
            raise ValueError(f"the rest in at most one of phases, got it in {rests}")
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
                within = clock.within(max(1, end - begin)) if own else clock
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
            inner = clock.within(end - begin) if self.clock == "own" else clock
            shift = begin if self.clock == "own" else 0
            joints += [
                shift + step for step in phase.curve.joints(inner) if begin < shift + step < end
            ]
        return joints


class Repeat(Curve):
    """`of` again and again: in cycle i at its step k, eta = eta_m + (eta_of(k) - eta_m) d^i on a
    clock of P_i steps.

    P_i: lengths that begin with `period` and grow by `growth`, their boundaries rounded
    (cycles.py); d = `decay`; eta_m =
    `floor_lr`, the rate that a decay leaves alone. cosine_restarts is `of` a cosine, cyclic's
    triangular2 of two ramps.
    """

    name: Literal["repeat"]
    of: "AnyCurve"
    period: Length
    growth: Annotated[float, Field(ge=1)]
    decay: Annotated[float, Field(gt=0, le=1)]
    floor_lr: NonNegative

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        cycle = cycles(clock.exact(self.period), self.growth).at(t)
        eta = np.empty(t.shape)
        for length in np.unique(cycle.length):
            inside = cycle.length == length
            with part("of"):
                eta[inside] = self.of.rates(cycle.step[inside], clock.within(int(length)), lr)
        if self.decay == 1:
            return eta
        return between(eta, self.floor_lr, np.power(self.decay, cycle.number, dtype=np.float64))

    def spans(self, clock: Clock) -> dict[str, int]:
        return {"period": clock.steps(self.period)}

    def joints(self, clock: Clock) -> list[int]:
        return cycles(clock.exact(self.period), self.growth).begins(clock.total_steps)


class Product(Curve):
    """eta(t) = eta0 * product of eta_i(t) / eta0 over the schedules in `of`, all on this clock.

    torch's ChainedScheduler is no true product where one of its parts is computed from the rate in
    force.
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


class Python(Curve):
    """eta(t) = f(t, total_steps=T, steps_per_epoch=..., lr=eta0, **args): f a `function` of your
    own, MODULE.FUNCTION, that takes an array of steps and gives as many rates. Its module is one
    that `trusted_modules` names.

    f is called for parts of the run in any order: eta(t) may depend on t alone, not on the other
    steps.
    """

    name: Literal["python"]
    function: str
    args: dict[str, Any]

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        total, epoch = clock.total_steps, clock.steps_per_epoch
        given = user_code.call(
            self.function, t, total_steps=total, steps_per_epoch=epoch, lr=lr, **self.args
        )
        rates = np.asarray(given)
        if rates.dtype.kind not in "iuf" or rates.shape != t.shape:
            raise ValueError(
                f"function {self.function} must give a rate for each of {len(t)} steps, got "
                f"{rates.dtype} of shape "
                f"{list(rates.shape)}"
            )
        return rates.astype(np.float64)


ALL = (*NAMED, Hold, Ramp, Inverse, Sequence, Repeat, Product, Clip, Python, *DIALECTS)

if TYPE_CHECKING:
    AnyCurve = Curve
else:
    AnyCurve = Annotated[Union[ALL], Field(discriminator="name")]
for _kind in (Phase, Sequence, Repeat, Product, Clip):
    _kind.model_rebuild()
