"""Shared parts of all pictures: readable ticks of a logarithmic axis, and saving without
warnings."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_LARGEST_GAP = 0.35  # of the axis without a tick
_MOST = 9


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two limits above 0, the fewest that leave no large gap: whole decades,
    every n-th of many; else 1 and 3, or 1, 2 and 5, ...; within a part of a decade as on a linear
    axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        edges = np.log([low, *inside, high]) / math.log(high / low)
        if len(inside) > 2 and np.diff(edges).max() <= _LARGEST_GAP:
            return inside[:: math.ceil(len(inside) / _MOST)]
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=4).tick_values(low, high)
    return [float(f"{tick:.6g}") for tick in found if low <= tick <= high]


def use_log_scale(axes: Any) -> None:
    """A logarithmic y axis, its ticks as plain numbers; call it when the curves are drawn."""
    # a constant curve's limits are equal until it has expanded them
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


def save(figure: Any, path: Path) -> None:
    """A character that the font lacks is drawn as a box, without a warning on the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(path, dpi=110)
