"""Shared parts of all pictures: readable ticks on a logarithmic axis, and saving without
warnings."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_LARGEST_GAP = 0.35  # between two ticks, as a fraction of the axis
_MOST = 9  # ticks


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two limits above 0, as few as possible without a large gap:
    decades, or every n-th of many; else 1 and 3, or 1, 2 and 5, ... in each decade; within a part
    of a decade, the ticks of a linear axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        edges = np.log([low, *inside, high]) / math.log(high / low)
        if len(inside) > 2 and np.diff(edges).max() <= _LARGEST_GAP:
            return inside[:: math.ceil(len(inside) / _MOST)]
    from matplotlib.ticker import MaxNLocator

    linear = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=4).tick_values(low, high)
    return [float(f"{tick:.6g}") for tick in linear if low <= tick <= high]


def use_log_scale(axes: Any) -> None:
    """Make the y axis logarithmic, with plain numbers as ticks. Call this after drawing the
    curves."""
    # the limits of a constant curve are equal until Matplotlib expands them
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Attempting to set identical", category=UserWarning
        )
        axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = log_ticks(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)


def use_whole_ticks(axes: Any) -> None:
    """Put the ticks of the x axis at whole numbers: steps and trials are counted."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))


def save(figure: Any, path: Path) -> None:
    """Save a figure. A character that the font lacks becomes a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(path, dpi=110, pil_kwargs={"compress_level": 3})  # 6 takes 5 ms more
