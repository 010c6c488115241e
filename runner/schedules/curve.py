"""The base class of all schedules: pure functions of the step."""

from collections.abc import Iterator
from contextlib import contextmanager

from runner.schedules.ramps import Array
from runner.schedules.units import Clock
from runner.section import Section


class Curve(Section):
    """eta(t), the rate that update t uses. Vectorized and stateless: the value at t depends only on
    t."""

    name: str

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        """Evaluate eta(t) for steps t >= 0; `lr` is the base rate eta0.

        int64[n] -> float64[n]
        """
        raise AssertionError("each schedule has its own closed form")

    def spans(self, clock: Clock) -> dict[str, int]:
        """The keys that set a time -> the step at which that time ends. For lint.py."""
        return {}

    def joints(self, clock: Clock) -> list[int]:
        """The steps in 0 ... T at which one part of the curve ends and the next begins."""
        return [step for step in self.spans(clock).values() if step <= clock.total_steps]


@contextmanager
def part(key: str) -> Iterator[None]:
    """Prefix a ValueError raised inside with the key of the schedule's part."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None
