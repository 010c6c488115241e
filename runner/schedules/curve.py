"""A schedule as a pure function of the step."""

from collections.abc import Iterator
from contextlib import contextmanager

from runner.schedules.ramps import Array
from runner.schedules.units import Clock
from runner.section import Section


class Curve(Section):
    """eta(t), the rate that update t uses. Vectorised, without state; the value at t depends on t
    alone."""

    name: str

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        """eta(t) for an array of steps t >= 0; `lr` is the base rate eta0.  # int64[n] ->
        float64[n]"""
        raise AssertionError("each schedule has its own closed form")

    def spans(self, clock: Clock) -> dict[str, int]:
        """The keys that say when something happens -> the step at which it has happened."""
        return {}

    def joints(self, clock: Clock) -> list[int]:
        """The steps in 0 ... T at which one part of the curve hands over to the next."""
        return [step for step in self.spans(clock).values() if step <= clock.total_steps]


@contextmanager
def part(key: str) -> Iterator[None]:
    """Put the key of a schedule's part before the message of an error inside it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None
