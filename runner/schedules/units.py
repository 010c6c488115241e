"""Durations carry a unit: `500steps`, `3epochs`, `10%`. The clock turns them into steps."""

import re
from dataclasses import dataclass
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
        per_unit = {"steps": 1.0, "epochs": float(self.steps_per_epoch), "%": self.total_steps / 100}[unit]
        return int(number * per_unit + 0.5)


def _parse(duration: str) -> tuple[float, str]:
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError("a duration such as 500steps, 3epochs or 10%")
    number, unit = float(match[1]), match[2]
    if unit == "steps" and not number.is_integer():
        raise ValueError("a whole number of steps, such as 500steps")
    return number, unit


def _check(duration: str) -> str:
    _parse(duration)
    return duration


Duration = Annotated[str, AfterValidator(_check)]
