"""Draw schedules before training: up to eight curves on shared axes, or one small plot for each."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from runner.report import pictures
from runner.text import escape

_OVERLAID = 8  # the most curves that are legible on shared axes
_POINTS = 4000  # more than the picture's width in pixels


def draw(path: Path, tables: Mapping[str, np.ndarray], base: float) -> None:
    """Draw tables of rates, by name, over the steps. `base` is optimizer.lr, the dashed line. Uses
    Matplotlib without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(tables) <= _OVERLAID:
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        for name, rates in tables.items():
            _plot(axes, rates, label=escape.picture(name, most=60))
        axes.axhline(
            base, color="gray", linestyle="--", linewidth=0.8, label=f"optimizer.lr {base:g}"
        )
        axes.set_xlabel("step")
        axes.set_ylabel("learning rate")
        axes.legend(fontsize="small")
        grid = [axes]
    else:
        columns = 5
        rows = ceil(len(tables) / columns)
        figure = Figure(figsize=(2.6 * columns, 1.7 * rows), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, (name, rates) in zip(grid, tables.items(), strict=False):
            _plot(axes, rates)
            axes.set_title(escape.picture(name, most=28), fontsize="medium")
            axes.tick_params(labelsize="x-small")
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
            axes.yaxis.offsetText.set_fontsize("x-small")
        for axes in grid[len(tables) :]:
            axes.set_axis_off()
    for axes in grid[: len(tables)]:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    pictures.save(figure, path)


def _plot(axes: Any, rates: np.ndarray, label: str | None = None) -> None:
    """Plot rates as steps; of a long table, every n-th step and the last."""
    steps = np.unique(
        np.append(np.arange(0, len(rates), max(1, len(rates) // _POINTS)), len(rates) - 1)
    )
    axes.plot(steps, rates[steps], drawstyle="steps-post", label=label)
