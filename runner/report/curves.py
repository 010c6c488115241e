"""Draw curves.png: the rate and the losses of one run over its steps."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from runner.components import averages
from runner.report import pictures
from runner.run.run_folder import read_columns
from runner.text import escape

MOST_POINTS = 5000  # of a line; more than the picture's width in pixels


@cache
def _figure() -> Any:
    """Make the figure once per process, since its axes and ticks take half of a picture's time. Its
    margins and the positions of its title and labels are fixed: to fit them, Matplotlib would lay
    it out twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6))  # without pyplot: no state, no window
    FigureCanvasAgg(figure)
    rate, loss = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.09, top=0.94, hspace=0.08)
    rate.set_ylabel("learning rate")
    loss.set_xlabel("step")
    loss.set_ylabel("loss")
    pictures.use_whole_ticks(loss)
    for axes in (rate, loss):
        axes.grid(alpha=0.3)
        axes.yaxis.set_label_coords(-0.09, 0.5)
    loss.xaxis.set_label_coords(0.5, -0.11)
    return figure


def draw(folder: Path, title: str) -> Path:
    """Draw curves.png from the run's trace.csv and metrics.csv."""
    trace, metrics = (
        read_columns(folder / "trace.csv", MOST_POINTS),
        read_columns(folder / "metrics.csv"),
    )
    figure = _figure()
    rate, loss = figure.axes
    for axes in (rate, loss):
        for line in list(axes.lines):  # of the previous run
            line.remove()
        if axes.get_legend() is not None:
            axes.get_legend().remove()
        axes.relim()
        axes.autoscale()
    rate.plot(trace["step"], trace["learning_rate"], color="tab:blue", drawstyle="steps-post")
    groups = [column for column in trace if column.startswith("learning_rate") and "/" in column]
    for i, column in enumerate(groups, 1):  # those with a schedule of their own
        label = escape.picture(column.removeprefix("learning_rate"), most=40)
        style: Any = {"drawstyle": "steps-post", "linewidth": 1, "color": f"C{i}"}
        rate.plot(trace["step"], trace[column], label=label, **style)
    if groups:
        rate.legend(loc="upper right", fontsize="small")
    rate.set_ylim(bottom=0)
    rate.set_title(escape.picture(title, most=100), y=1.0, fontsize="medium")
    loss.plot(
        trace["step"], trace["loss"], color="tab:gray", alpha=0.35, linewidth=0.8, label="batch"
    )
    _draw_epochs(loss, metrics)
    if 0 < np.nanmin(trace["loss"], initial=np.inf) < np.inf:  # a run without updates has none
        pictures.use_log_scale(loss)
    else:
        loss.set_yscale("linear")
    loss.legend(loc="upper right")
    path = folder / "curves.png"
    pictures.save(figure, path)
    return path


def _draw_epochs(axes: Any, metrics: Mapping[str, np.ndarray]) -> None:
    """Draw the losses at the end of each epoch; dashed those of an average of the weights."""
    styles: dict[str, Any] = {
        "train/loss": {"color": "tab:blue"},
        "val/loss": {"color": "tab:orange"},
        **{f"val/loss_{key}": {"color": "tab:green", "linestyle": "--"} for key in averages.KINDS},
    }
    for column, style in styles.items():
        if column in metrics and np.isfinite(metrics[column]).any():
            axes.plot(metrics["step"], metrics[column], marker=".", label=column, **style)
