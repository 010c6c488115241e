"""Check a multirun's jobs: their number, and that no two are the same."""

import math
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from runner.config.trust import MOST_JOBS
from runner.errors import ConfigError, show


def check_size(overrides: Sequence[Override], is_search: bool = False) -> None:
    """Refuse too many jobs before they are expanded: a range may describe more jobs than fit into
    memory. A search does not expand them; only the values of each key are limited."""
    counts = [
        (_count(override), override) for override in overrides if override.is_sweep_override()
    ]
    for count, override in counts:
        if override.key_or_group.startswith("output."):
            raise ConfigError(
                f"{override.key_or_group} must be one folder for all jobs, got {_value(override)}"
            )
        if count == 0:
            raise ConfigError(f"{override.input_line} has no values")
    combine = max if is_search else math.prod
    num_jobs = combine([1, *(count for count, _ in counts)])
    if num_jobs > MOST_JOBS:
        _, largest = max(counts, key=lambda pair: pair[0])
        raise ConfigError(
            f"{show(largest.input_line)} makes {_number(num_jobs)} jobs, together with the other "
            f"keys; a multirun has at most {MOST_JOBS}"
        )


def check_choosers(is_race: bool, is_tuned: bool) -> None:
    """Refuse race.budget and tune=lr in a search, which chooses the runs itself."""
    if is_race:
        raise ConfigError("race.budget and a search both choose the runs; use one of them")
    if is_tuned:
        raise ConfigError("tune=lr and a search both choose values; use one of them")


def _count(override: Override) -> float:
    """Count an override's values; 1 for a glob or an interval, where the number is not known."""
    sweep: Any = override.value()
    if isinstance(sweep, ChoiceSweep):
        return len(sweep.list)
    if not isinstance(sweep, RangeSweep):
        return 1
    if not sweep.step:
        raise ConfigError(f"{override.input_line} must have a step other than 0")
    if all(type(number) is int for number in (sweep.start, sweep.stop, sweep.step)):
        return max(0, -((sweep.start - sweep.stop) // sweep.step))  # type: ignore[operator]
    span = (sweep.stop - sweep.start) / sweep.step  # type: ignore[operator]
    return max(0, math.ceil(span)) if math.isfinite(span) else math.inf


def _number(num: float) -> str:
    return str(num) if num < 10**15 else "too many"


def _value(override: Override) -> str:
    return show(override.get_value_string())


def check_twice(
    jobs: Sequence[Sequence[str]], identities: Sequence[Any], swept: Sequence[str]
) -> None:
    """Refuse two equal jobs: they would share a folder. `swept` are the keys with several
    values."""
    first: dict[Any, int] = {}
    for number, identity in enumerate(identities):
        if identity in first:
            a, b = (_swept_part(jobs[i], swept) for i in (first[identity], number))
            same = f"{a} makes the same job twice" if a == b else f"{a} and {b} make the same job"
            raise ConfigError(f"{same}; all jobs must differ")
        first[identity] = number


def _swept_part(job: Sequence[str], swept: Sequence[str]) -> str:
    return " ".join(line for line in job if line.lstrip("+").partition("=")[0] in swept)
