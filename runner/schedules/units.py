"""Durations carry a unit: `500steps`, `3epochs`, `10%`. The clock turns them into steps."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(steps|epochs|%)")


@dataclass(frozen=True)
class Clock:
    """T = `total_steps` applied updates, counted t = 0 ... T-1; an epoch is `steps_per_epoch` of them."""

    total_steps: int
    steps_per_epoch: int

    def steps(self, duration: str) -> int:
        """A duration in whole steps: `10%` of the run, `3epochs`, `500steps`; rounded half up."""
        number, unit = _parse(duration)
        units = {"steps": Fraction(1), "epochs": Fraction(self.steps_per_epoch), "%": Fraction(self.total_steps, 100)}
        return math.floor(number * units[unit] + Fraction(1, 2))


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


Duration = Annotated[str, AfterValidator(_check)]
