"""Durations with a unit, `500steps`, `3epochs`, `10%`, and the clock that converts them to
steps."""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(steps|epochs|%)")


@dataclass(frozen=True)
class Periods:
    """The updates at which the periods of a run begin, such as its epochs: period i at starts[i],
    and those from the last of `starts` on every `length` updates. Periods of one length have starts
    = (0,)."""

    length: int
    starts: tuple[int, ...] = (0,)

    @property
    def are_equal(self) -> bool:
        return len(self.starts) == 1

    def begin(self, number: int) -> int:
        """The first update of a period."""
        num_later = number - (len(self.starts) - 1)
        if num_later < 0:
            return self.starts[number]
        return self.starts[-1] + num_later * self.length

    def number(self, step: int) -> int:
        """The period that an update is in, from 0."""
        if step < self.starts[-1]:
            return bisect_right(self.starts, step) - 1
        return len(self.starts) - 1 + (step - self.starts[-1]) // self.length

    def numbers(self, steps: np.ndarray) -> np.ndarray:
        """The period of each update.  # int64[n]"""
        later = len(self.starts) - 1 + (steps - self.starts[-1]) // self.length
        if self.are_equal:
            return later
        earlier = np.searchsorted(self.starts, steps, side="right") - 1
        return np.where(steps < self.starts[-1], earlier, later)

    def index(self, step: int) -> int:
        """The position of an update in its period, from 0."""
        return step - self.begin(self.number(step))

    def size(self, number: int) -> int:
        """The updates of a period."""
        return self.begin(number + 1) - self.begin(number)

    def next(self, step: int) -> int:
        """The first update of the period after that of `step`."""
        return self.begin(self.number(step) + 1)

    def count(self, step: int) -> int:
        """The periods in which the first `step` updates are."""
        return self.number(step - 1) + 1 if step else 0

    def ends(self, step: int) -> list[int]:
        """The numbers of updates up to `step` with which a period ends."""
        return [self.begin(number) for number in range(1, self.number(step) + 1)]

    def every(self, num: int) -> "Periods":
        """The periods that each consist of `num` of these."""
        last = -(-(len(self.starts) - 1) // num)
        return Periods(self.length * num, tuple(self.begin(i * num) for i in range(last + 1)))

    def position(self, periods: Fraction) -> Fraction:
        """The updates in so many periods from the first on; those of a period are of equal
        length."""
        whole = math.floor(periods)
        return self.begin(whole) + (periods - whole) * self.size(whole)

    def coordinate(self, steps: Fraction) -> Fraction:
        """The inverse of `position`."""
        number = self.number(math.floor(steps))
        return number + (steps - self.begin(number)) / self.size(number)


@dataclass(frozen=True)
class Clock:
    """The length of a run: T = `total_steps` applied updates t = 0 ... T-1, and the updates of an
    epoch; `rows_per_step`, the rows of an update; `tokens_per_row`, 1 if rows are not sequences of
    tokens.

    A phase of a sequence and a cycle of a repetition have clocks of their own, with their length as
    T.

    With a batch size that changes, the epochs begin at `starts` (Periods). Then this clock begins
    with update `begin` of the run, and a duration of n epochs is the n epochs from there on; None:
    the cycles of a repetition begin at several updates, so they have no epochs.
    """

    total_steps: int
    steps_per_epoch: int
    rows_per_step: int = 1
    tokens_per_row: int = 1
    starts: tuple[int, ...] = (0,)
    begin: int | None = 0

    @property
    def epochs(self) -> Periods:
        return Periods(self.steps_per_epoch, self.starts)

    def exact(self, duration: str) -> Fraction:
        """A duration from step 0 on in steps, not rounded."""
        return self.after(Fraction(0), duration)

    def after(self, step: Fraction, duration: str) -> Fraction:
        """The end of a duration that begins at `step`, not rounded."""
        number, unit = split(duration)
        if unit == "epochs" and not self.epochs.are_equal:
            if self.begin is None:
                raise _unequal("durations", duration)
            now = self.epochs.coordinate(self.begin + step)
            return self.epochs.position(now + number) - self.begin
        units = {
            "steps": Fraction(1),
            "epochs": Fraction(self.steps_per_epoch),
            "%": Fraction(self.total_steps, 100),
        }
        return step + number * units[unit]

    def before(self, step: Fraction, duration: str) -> Fraction:
        """The begin of a duration that ends at `step`, not rounded, at least step 0."""
        number, unit = split(duration)
        if unit == "epochs" and not self.epochs.are_equal:
            if self.begin is None:
                raise _unequal("durations", duration)
            then = self.epochs.coordinate(self.begin + step) - number
            return self.epochs.position(max(then, Fraction(0))) - self.begin
        return step - self.exact(duration)

    def period(self, duration: str) -> Fraction:
        """The length of cycles, all of which have it, not rounded."""
        if duration.endswith("epochs") and not self.epochs.are_equal:
            raise _unequal("period", duration)
        return self.exact(duration)

    def steps(self, duration: str) -> int:
        """A duration in whole steps, rounded half up."""
        return half_up(self.exact(duration))

    def boundaries(self, durations: Sequence[str]) -> list[int]:
        """The first steps of consecutive phases and the end of the last one: b_i = half_up(d_1 +
        ... + d_i).

        The boundaries are rounded, not the lengths, so that the phases add up. One of the durations
        may be `rest`: T minus the others, at least 0.
        """
        if not self.epochs.are_equal:
            return self._placed(durations)
        exact = [None if duration == "rest" else self.exact(duration) for duration in durations]
        rest = max(
            Fraction(0), self.total_steps - sum((d for d in exact if d is not None), Fraction(0))
        )
        return [
            half_up(b)
            for b in accumulate((rest if d is None else d for d in exact), initial=Fraction(0))
        ]

    def _placed(self, durations: Sequence[str]) -> list[int]:
        """`boundaries` with epochs of several lengths: those after `rest` end with the run."""
        num_first = durations.index("rest") if "rest" in durations else len(durations)
        first, last = [Fraction(0)], [Fraction(self.total_steps)]
        for duration in durations[:num_first]:
            first.append(self.after(first[-1], duration))
        for duration in reversed(durations[num_first + 1 :]):
            last.append(self.before(last[-1], duration))
        if num_first == len(durations):
            last = []
        return [half_up(b) for b in (*first, *(max(first[-1], b) for b in reversed(last)))]

    def within(self, total_steps: int, begin: int | None) -> "Clock":
        """The clock of a part of this run, of `total_steps` updates from `begin` on; None: of
        several parts."""
        if self.epochs.are_equal:
            return replace(self, total_steps=total_steps)
        own = None if begin is None or self.begin is None else self.begin + begin
        return replace(self, total_steps=total_steps, begin=own)


def _unequal(key: str, duration: str) -> ValueError:
    return ValueError(
        f"{key} must be in steps or % if trainer.batch_size changes, since epochs have different "
        f"lengths, got {duration}"
    )


def half_up(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))


def split(duration: str) -> tuple[Fraction, str]:
    """Split a duration into its number and its unit: steps, epochs or %."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError("a duration such as 500steps, 3epochs or 10%")
    number, unit = Fraction(match[1]), match[2]
    if unit == "steps" and number.denominator != 1:
        raise ValueError("a whole number of steps, such as 500steps")
    return number, unit


def _check(duration: str) -> str:
    split(duration)
    return duration


def _check_length(duration: str) -> str:
    if Fraction(split(duration)[0]) == 0:
        raise ValueError("a duration above 0, such as 500steps, 3epochs or 10%")
    return duration


Duration = Annotated[str, AfterValidator(_check)]
Length = Annotated[str, AfterValidator(_check_length)]  # a duration that is not 0
Share = Literal["rest"] | Duration  # the length of a phase
