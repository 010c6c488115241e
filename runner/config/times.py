"""Times on the clock: `90s`, `30m`, `2h`, `1h30m`. Budgets, also in updates or epochs."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator

_TIME = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_COUNT = re.compile(r"([1-9]\d*)(steps|epochs)")
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def seconds(time: str) -> float:
    """Return a time in seconds. The units are d (days), h (hours), m (minutes) and s (seconds)."""
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(time))


def clock(number: float) -> str:
    """Format seconds as H:MM:SS, rounded down."""
    minutes, rest = divmod(int(number), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _time(is_allowed: Callable[[float], bool], words: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        is_time = isinstance(value, str) and _TIME.fullmatch(value) is not None
        if not is_time or not is_allowed(seconds(value)):
            raise ValueError(f"a time {words}, such as 90s, 30m, 2h or 1h30m")
        return value

    return BeforeValidator(check)


def _budget(value: Any) -> Any:
    is_time = isinstance(value, str) and _TIME.fullmatch(value) is not None and seconds(value) > 0
    if value != "auto" and not is_time and _COUNT.fullmatch(str(value)) is None:
        raise ValueError(
            "auto, a time of all runs together, such as 2h, or their updates or epochs, such as "
            "20000steps or 300epochs"
        )
    return value


def amount(budget: str) -> tuple[float, str]:
    """Return the number and the unit of a budget that is not auto: seconds, steps or epochs."""
    count = _COUNT.fullmatch(budget)
    return (float(count[1]), count[2]) if count else (seconds(budget), "seconds")


Budget = Annotated[str, BeforeValidator(_budget)]  # auto, 2h, 20000steps, 300epochs
Time = Annotated[str, _time(lambda number: number > 0, "above 0")]
Timeout = Annotated[str, _time(lambda number: number >= 5, "of at least 5s")]
