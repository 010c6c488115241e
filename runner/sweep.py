"""What a multirun's command line may ask for: how many jobs, each of them once, and a launcher's and a sweeper's numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from runner.errors import ConfigError, nearest, show

MOST_JOBS = 10_000


def check_size(overrides: Sequence[Override]) -> None:
    """Before anything is expanded: a range may stand for more jobs than memory has room for."""
    counts = [(_count(override), override) for override in overrides if override.is_sweep_override()]
    for count, override in counts:
        if override.key_or_group.startswith("output."):
            raise ConfigError(f"{override.key_or_group} must be one folder for all jobs, got {_value(override)}")
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
    """How many values; 1 where that is not known, of a glob or an interval."""
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


def check_twice(jobs: Sequence[Sequence[str]], identities: Sequence[Any], swept: Sequence[str]) -> None:
    """No two jobs alike: the second would be the first one's folder. `swept`: the keys with several values."""
    first: dict[Any, int] = {}
    for number, identity in enumerate(identities):
        if identity in first:
            a, b = (_named(jobs[i], swept) for i in (first[identity], number))
            alike = f"{a} makes one job twice" if a == b else f"{a} and {b} make one job twice"
            raise ConfigError(f"{alike}; each job must train something else")
        first[identity] = number


def _named(job: Sequence[str], swept: Sequence[str]) -> str:
    return " ".join(said for said in job if said.lstrip("+").partition("=")[0] in swept)


Rule = tuple[Callable[[Any], bool], str]


def _whole(least: int) -> Rule:
    return lambda value: type(value) is int and value >= least, f"an integer >= {least}"


def _one(key: str) -> Rule:
    return lambda value: value == 1 and value is not True, f"1: {key}"


def _or_null(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), f"null or {rule[1]}"


def _one_of(*names: str) -> Rule:
    return lambda value: value in names, f"one of {', '.join(names)}"


_POSITIVE: Rule = (lambda value: type(value) in (int, float) and value > 0, "> 0")
_SHARE: Rule = (lambda value: type(value) in (int, float) and 0 <= value <= 1, "from 0 to 1")
_JOBS: Rule = (lambda value: type(value) is int and value != 0, "an integer >= 1, or -1 for all cores")
_SUBMITIT: Mapping[str, Rule] = {
    "timeout_min": _whole(1),
    "cpus_per_task": _or_null(_whole(1)),
    "gpus_per_node": _or_null(_whole(0)),
    "tasks_per_node": _one("a job is one process"),
    "nodes": _one("a job is one process"),
    "mem_gb": _or_null(_POSITIVE),
    "max_num_timeout": _whole(0),
    "array_parallelism": _whole(1),
    "signal_delay_s": _whole(0),
}
# section of hydra -> the end of its class's name -> key -> what it takes; a key that a class does not have is passed over
_RULES: Mapping[str, Mapping[str, Mapping[str, Rule]]] = {
    "sweeper": {
        "BasicSweeper": {"max_batch_size": _or_null(_whole(1))},
        "OptunaSweeper": {
            "direction": _one_of("minimize", "maximize"),
            "n_trials": (
                lambda value: type(value) is int and 1 <= value <= MOST_JOBS,
                f"an integer from 1 to {MOST_JOBS}",
            ),
            "n_jobs": _whole(1),
            "max_failure_rate": _or_null(_SHARE),
        },
    },
    "launcher": {
        "JoblibLauncher": {
            "n_jobs": _JOBS,
            "prefer": (lambda value: value == "processes", "processes"),
            "require": (lambda value: value is None, "null"),
            "verbose": _whole(0),
            "timeout": _or_null(_POSITIVE),
        },
        "LocalLauncher": _SUBMITIT,
        "SlurmLauncher": _SUBMITIT,
    },
}


def check_launch(hydra: Mapping[str, Any]) -> None:
    """The numbers and words that a sweeper and a launcher would fail with in the middle of the multirun."""
    for section, classes in _RULES.items():
        said = hydra[section]
        name = str(said["_target_"]).rpartition(".")[2]
        for key, (holds, words) in classes.get(name, {}).items():
            if key in said and not holds(said[key]):
                hint = nearest(said[key], words.removeprefix("one of ").split(", ")) if "one of" in words else ""
                raise ConfigError(f"hydra.{section}.{key} must be {words}, got {show(said[key])}{hint}")
