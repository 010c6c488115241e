"""Durations with a unit, `500steps`, `3epochs`, `10%`, and the clock that converts them to
steps."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import AfterValidator

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(steps|epochs|%)")


@dataclass(frozen=True)
class Clock:
    """The length of a run: T = `total_steps` applied updates t = 0 ... T-1, and the updates of an
    epoch; `rows_per_step`, the rows of an update; `tokens_per_row`, 1 if rows are not sequences of
    tokens.

    A phase of a sequence and a cycle of a repetition have clocks of their own, with their length as
    T.
    """

    total_steps: int
    steps_per_epoch: int
    rows_per_step: int = 1
    tokens_per_row: int = 1

    def exact(self, duration: str) -> Fraction:
        """A duration in steps, not rounded."""
        number, unit = _parse(duration)
        units = {
            "steps": Fraction(1),
            "epochs": Fraction(self.steps_per_epoch),
            "%": Fraction(self.total_steps, 100),
        }
        return number * units[unit]

    def steps(self, duration: str) -> int:
        """A duration in whole steps, rounded half up."""
        return half_up(self.exact(duration))

    def boundaries(self, durations: Sequence[str]) -> list[int]:
        """The first steps of consecutive phases and the end of the last one: b_i = half_up(d_1 +
        ... + d_i).

        The boundaries are rounded, not the lengths, so that the phases add up. One of the durations
        may be `rest`: T minus the others, at least 0.
        """
        exact = [None if duration == "rest" else self.exact(duration) for duration in durations]
        rest = max(
            Fraction(0), self.total_steps - sum((d for d in exact if d is not None), Fraction(0))
        )
        return [
            half_up(b)
            for b in accumulate((rest if d is None else d for d in exact), initial=Fraction(0))
        ]

    def within(self, total_steps: int) -> "Clock":
        """The clock of a part of this run, of `total_steps` updates."""
        return replace(self, total_steps=total_steps)


def half_up(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))


def _parse(duration: str) -> tuple[Fraction, str]:
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError("a duration such as 500steps, 3epochs or 10%")
    number, unit = Fraction(match[1]), match[2]
    if unit == "steps" and number.denominator != 1:
        raise ValueError("a whole number of steps, such as 500steps")
    return number, unit


def _check(duration: str) -> str:
    _parse(duration)
    return duration


def _check_length(duration: str) -> str:
    if Fraction(_parse(duration)[0]) == 0:
        raise ValueError("a duration above 0, such as 500steps, 3epochs or 10%")
    return duration


Duration = Annotated[str, AfterValidator(_check)]
Length = Annotated[str, AfterValidator(_check_length)]  # a duration that is not 0
Share = Literal["rest"] | Duration  # the length of a phase
