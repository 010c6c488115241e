"""Find new rows that lie far outside the training rows. Most often they are in other units, such as
pixels of 0 to 255 where a run was trained on 0 to 1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import ConfigError, show

_FAR = 5  # times the training range: distances that rows in the same units hardly have
_MANY = 4  # columns of which hardly most are outside by chance
_MOST = 3  # columns in one message


def far_outside(x: np.ndarray, description: Mapping[str, Any], path: Path) -> str | None:
    """Describe how far the raw rows x lie outside the training range that a run's data.json has; it
    is `description`, read from `path`. None if they do not, or if data.json, as older versions
    wrote it, has no range.

    A value is far outside if its distance from the range is more than 5 times the range's width. Of
    four or more columns, those of which most values are outside are told too if most of all values
    are, as where standardized rows are given for raw ones. A column that was constant in training
    tells nothing of its units and is not looked at.
    """
    saved = description.get("x_range")
    if saved is None or len(x) == 0:
        return None
    low, high = _bounds(saved, x.shape[1:], path)
    axes = None if low.ndim == 0 else 0
    least, largest = (edge(axis=axes).astype(np.float64) for edge in (x.min, x.max))
    with np.errstate(over="ignore"):
        reach = _FAR * (high - low)
        is_far = (least < low - reach) | (largest > high + reach)
    if low.size >= _MANY:
        outside = ((x < low) | (x > high)).mean(axis=0)
        is_far |= (outside > 0.5) & (outside.mean() > 0.5)
    is_far &= reach > 0
    if not is_far.any():
        return None
    if low.ndim == 0:
        return f"x holds {least:g} to {largest:g}, in training {low:g} to {high:g}"
    names = description["features"] or [f"x[{i}]" for i in range(len(low))]
    told = [
        f"column {show(names[i])} holds {least[i]:g} to {largest[i]:g}, in training "
        f"{low[i]:g} to {high[i]:g}"
        for i in np.flatnonzero(is_far)
    ]
    more = [f"so do {len(told) - _MOST} more columns"] if len(told) > _MOST else []
    return "; ".join([*told[:_MOST], *more])


def _bounds(saved: Any, shape: tuple[int, ...], path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        low, high = (np.array(saved[key], dtype=np.float64) for key in ("low", "high"))
        if low.shape == high.shape and low.shape in ((), shape):
            return low, high
    except (KeyError, TypeError, ValueError):
        pass
    raise ConfigError(
        f"{path} is damaged: x_range must hold low and high, a number each or one per column"
    )
