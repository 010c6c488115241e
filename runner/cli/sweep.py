"""Limits on a multirun's jobs: how many there are, and each of them once."""

import math
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from runner.config.trust import MOST_JOBS
from runner.errors import ConfigError, show


def check_size(overrides: Sequence[Override]) -> None:
    """Limit the number of jobs before anything is expanded: a range may stand for more jobs than
    fit into memory."""
    counts = [
        (_count(override), override) for override in overrides if override.is_sweep_override()
    ]
    for count, override in counts:
        if override.key_or_group.startswith("output."):
            raise ConfigError(
                f"{override.key_or_group} must be one folder for all jobs, got {_value(override)}"
            )
        if count == 0:
            raise ConfigError(f"{override.input_line} gives no value")
    num = math.prod(count for count, _ in counts)
    if num > MOST_JOBS:
        _, largest = max(counts, key=lambda pair: pair[0])
        raise ConfigError(
            f"{show(largest.input_line)} makes {_number(num)} jobs with the other keys' values; "
            f"a multirun has at most {MOST_JOBS}"
        )


def _count(override: Override) -> float:
    """Count an override's values; 1 where that is not known, for a glob or an interval."""
    found: Any = override.value()
    if isinstance(found, ChoiceSweep):
        return len(found.list)
    if not isinstance(found, RangeSweep):
        return 1
    if not found.step:
        raise ConfigError(f"{override.input_line} must have a step other than 0")
    if all(type(number) is int for number in (found.start, found.stop, found.step)):
        return max(0, -((found.start - found.stop) // found.step))  # type: ignore[operator]
    span = (found.stop - found.start) / found.step  # type: ignore[operator]
    return max(0, math.ceil(span)) if math.isfinite(span) else math.inf


def _number(num: float) -> str:
    return str(num) if num < 10**15 else "too many"


def _value(override: Override) -> str:
    return show(override.get_value_string())


def check_twice(
    jobs: Sequence[Sequence[str]], identities: Sequence[Any], swept: Sequence[str]
) -> None:
    """No two jobs alike: the second would be the first one's folder. `swept`: the keys with several
    values."""
    first: dict[Any, int] = {}
    for number, identity in enumerate(identities):
        if identity in first:
            a, b = (_named(jobs[i], swept) for i in (first[identity], number))
            alike = f"{a} makes one job twice" if a == b else f"{a} and {b} make one job twice"
            raise ConfigError(f"{alike}; each job must train something else")
        first[identity] = number


def _named(job: Sequence[str], swept: Sequence[str]) -> str:
    return " ".join(said for said in job if said.lstrip("+").partition("=")[0] in swept)
