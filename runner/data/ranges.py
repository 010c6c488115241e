"""Find new rows that are far outside the training rows. Usually they are in other units, such as
pixels from 0 to 255 for a run that was trained on pixels from 0 to 1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import ConfigError, show

_FAR = 5  # in widths of the training range; rows in the same units are rarely that far
_MANY = 4  # with this many columns, most are rarely outside by chance
_LONG = 16  # so many values of a row are rarely alike, unless they are all equal
_NARROW = 100  # rows in the same units rarely spread over so small a part of the training range
_MOST = 3  # columns in one message


def far_outside(x: np.ndarray, description: Mapping[str, Any], path: Path) -> str | None:
    """Describe the raw rows x that are far outside the training range. `description` is the run's
    data.json, read from `path`. None if there are none, or if data.json has no range (older
    versions).

    A value is far outside if its distance from the range is more than 5 times the range's width.
    With four or more columns, if most values of x are outside the range (as when standardized rows
    are passed instead of raw ones), columns with mostly outside values count too. Rows of 16 values
    or more that are compared as a whole count too if they spread over less than a hundredth of the
    range. A column that was constant in training is ignored.
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
    if low.ndim == 0 and x[0].size >= _LONG:  # as 0 to 1 after training on 0 to 255
        is_far |= 0 < largest - least < (high - low) / _NARROW
    if low.size >= _MANY:
        outside = ((x < low) | (x > high)).mean(axis=0)
        is_far |= (outside > 0.5) & (outside.mean() > 0.5)
    is_far &= reach > 0
    if not is_far.any():
        return None
    if low.ndim == 0:
        return f"x holds {least:g} to {largest:g}, in training {low:g} to {high:g}"
    names = description["features"] or [f"x[{i}]" for i in range(len(low))]
    texts = [
        f"column {show(names[i])} holds {least[i]:g} to {largest[i]:g}, in training "
        f"{low[i]:g} to {high[i]:g}"
        for i in np.flatnonzero(is_far)
    ]
    more = [f"so do {len(texts) - _MOST} more columns"] if len(texts) > _MOST else []
    return "; ".join([*texts[:_MOST], *more])


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
