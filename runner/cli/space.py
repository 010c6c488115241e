"""The space of a search: the ranges of its keys, in Hydra's syntax, and what they need.

| written | chosen from |
| --- | --- |
| `choice(a, b)` or `a,b` | categories |
| `interval(0.1, 0.9)` | floats |
| `int(interval(1, 8))` | integers, both ends included |
| `tag(log, interval(1e-4, 1e-1))` | the same, evenly in the logarithm |
| `range(2, 9, 2)` | 2, 4, 6, 8 |

A range under the condition `schedule=step` is chosen only in trials whose schedule is step.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from runner.errors import ConfigError, nearest, show

Number = int | float


@dataclass(frozen=True)
class Condition:
    """The values of another key that a range needs."""

    key: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key}={','.join(self.values)}"


@dataclass(frozen=True)
class Range:
    """The values of one key."""

    key: str
    choices: tuple[str, ...] = ()  # categories as Hydra reads them; empty: numbers
    low: Number = 0
    high: Number = 0
    step: Number | None = None  # None: any number between the two
    is_log: bool = False
    condition: Condition | None = None

    @property
    def name(self) -> str:
        """The name of the parameter. A key may have another range under each condition."""
        return self.key if self.condition is None else f"{self.key} ({self.condition})"

    @property
    def is_integer(self) -> bool:
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> Sequence[str]:
        """All categories, or both ends of the numbers."""
        return self.choices or [self.text(self.low), self.text(self.high)]

    @property
    def grid(self) -> Sequence[str | Number] | None:
        """All values; None if there is no end of them."""
        if self.choices:
            return self.choices
        if self.step is None and not self.is_integer:
            return None
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + i * step for i in range(count)]

    def text(self, value: Any) -> str:
        """Write a value as the right side of an override; a float with six digits."""
        if isinstance(value, str):
            return value
        return str(value) if isinstance(value, int) else repr(float(f"{value:.6g}"))

    def __str__(self) -> str:
        values = ",".join(self.choices) or f"{self.low} to {self.high}"
        step = "" if self.step is None else f" by {self.step}"
        return f"{self.name}: {values}{step}{' log' if self.is_log else ''}"


Pick = Callable[[Range], str]  # chooses the value of a range


@dataclass(frozen=True)
class Space:
    """The ranges of a search. Those with a condition follow the range that it names."""

    ranges: tuple[Range, ...]

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(each.key for each in self.ranges)

    def choose(self, pick: Pick) -> dict[str, str]:
        """Choose a value for each range whose condition is met."""
        chosen: dict[str, str] = {}
        for each in self.ranges:
            condition = each.condition
            if condition is None or chosen.get(condition.key) in condition.values:
                chosen[each.key] = pick(each)
        return chosen

    def probes(self) -> Iterator[dict[str, str]]:
        """Yield few choices that have both ends of every range and every category once."""
        seen: list[dict[str, str]] = []
        parents = {each.key: each for each in self.ranges if each.condition is None}
        for each in self.ranges:
            for end in each.ends:
                picked = {other: other.ends[0] for other in self.ranges} | {each: end}
                if each.condition is not None:
                    picked[parents[each.condition.key]] = each.condition.values[0]
                chosen = self.choose(picked.__getitem__)
                if chosen not in seen:
                    seen.append(chosen)
                    yield chosen

    def grid(self) -> dict[str, Sequence[str | Number]]:
        """Return all values of every range, for sampler=grid."""
        values = {}
        for each in self.ranges:
            if each.condition is not None:
                raise ConfigError(
                    f"hydra/sweeper/sampler=grid takes no hydra.sweeper.conditions, got "
                    f"{each.condition}; use another sampler"
                )
            grid = each.grid
            if grid is None:
                raise ConfigError(
                    f"hydra/sweeper/sampler=grid needs values that can be counted, got an interval "
                    f"for {each.key}; write {each.key}=choice(...) or range(...)"
                )
            values[each.name] = grid
        return values


def space(
    params: Sequence[Override],
    conditions: Mapping[str, Sequence[Override]],
    overridden: Collection[str] = (),
) -> Space:
    """Read the ranges of a search. `conditions` is KEY=VALUE -> ranges under this condition;
    `overridden` are keys with values from the command line, which may be fewer than those that the
    conditions name.

    Raises ConfigError for a range without values, and for a condition that no trial can meet."""
    ranges = [_range(param, None) for param in params]
    known = {each.key: each for each in ranges}
    for text, overrides in conditions.items():
        condition = _condition(text, known, overridden)
        for override in overrides if condition.values else ():
            if override.key_or_group in overridden:
                continue
            if override.key_or_group in known:
                raise ConfigError(
                    f"{override.key_or_group} has a range and, in hydra.sweeper.conditions, one "
                    f"for {condition}; remove one of them"
                )
            ranges.append(_range(override, condition))
    if not any(each.choices[1:] or not each.choices for each in ranges):
        raise ConfigError(
            "a search needs a key with several values, got a single value for each; give an "
            "interval, such as 'optimizer.lr=tag(log,interval(1e-4,1e-1))'"
        )
    return Space(tuple(ranges))


def _condition(text: str, known: Mapping[str, Range], overridden: Collection[str]) -> Condition:
    """Read `schedule=cosine,linear`, and check that the search chooses from these values."""
    key, sign, values = text.partition("=")
    if not sign or not values:
        raise ConfigError(
            f"hydra.sweeper.conditions must be KEY=VALUE with ranges below it, got {show(text)}"
        )
    if key not in known or not known[key].choices:
        choices = [name for name, each in known.items() if each.choices]
        raise ConfigError(
            f"hydra.sweeper.conditions: {show(text)} needs {key}=choice(...) in the search, which "
            f"has choices for {', '.join(choices) or 'no key'}{nearest(key, choices)}"
        )
    listed = [value.strip() for value in values.split(",")]
    for value in listed:
        if value not in known[key].choices and key not in overridden:
            raise ConfigError(
                f"hydra.sweeper.conditions: {key} must be one of {', '.join(known[key].choices)}, "
                f"got {show(value)}{nearest(value, known[key].choices)}"
            )
    return Condition(key, tuple(value for value in listed if value in known[key].choices))


def _range(override: Override, condition: Condition | None) -> Range:
    """Read the range of one key; a single value is a choice of one."""
    key, sweep = override.key_or_group, override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    if tags - {"log"}:
        raise ConfigError(
            f"{override.input_line} has the tag {min(tags - {'log'})}; only log has a meaning"
        )
    if isinstance(sweep, IntervalSweep | RangeSweep):
        low, high, step = _numbers(override, sweep)
        if "log" in tags and (low <= 0 or isinstance(sweep, RangeSweep)):
            raise ConfigError(
                f"{override.input_line}: tag(log, ...) needs an interval above 0, such as "
                f"tag(log, interval(1e-4, 1e-1))"
            )
        return Range(key, (), low, high, step, "log" in tags, condition)
    if tags:
        raise ConfigError(
            f"{override.input_line}: tag(log, ...) needs an interval above 0, such as "
            f"tag(log, interval(1e-4, 1e-1))"
        )
    if override.is_sweep_override():
        return Range(key, listed(override), condition=condition)
    return Range(key, (override.get_value_element_as_str(),), condition=condition)


def listed(override: Override) -> tuple[str, ...]:
    """Return the values of KEY=a,b. Raise ConfigError for a value that is there twice."""
    values = tuple(override.sweep_string_iterator())
    if twice := next((v for i, v in enumerate(values) if v in values[:i]), None):
        raise ConfigError(f"{override.key_or_group}={twice} is there twice; all values must differ")
    return values


def _numbers(
    override: Override, sweep: IntervalSweep | RangeSweep
) -> tuple[Number, Number, Number | None]:
    """Return the smallest and the largest number, and the step between two."""
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or not low < high or not math.isfinite(high - low):
            raise ConfigError(f"{override.input_line} must go from a number to a larger one")
        is_integer = isinstance(low, int) and isinstance(high, int)
        return (low, high, None) if is_integer else (float(low), float(high), None)
    values = [*override.sweep_iterator()]
    step = sweep.step
    if not all(isinstance(each, int) for each in (sweep.start, step)):
        values, step = [float(value) for value in values], float(step or 1)
    if step <= 0:
        raise ConfigError(f"{override.input_line} must have a step > 0 in a search")
    return values[0], values[-1], step
