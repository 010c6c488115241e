"""curves.png: the rate and the losses of one run over its steps."""

from pathlib import Path

import numpy as np

from runner.run_folder import read_columns


def points(num: int, most: int = 5000) -> np.ndarray:
    """Which of a line's points are drawn: evenly spaced, both ends among them, more than there are pixels.  # int64[n]"""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(int))


def draw(folder: Path, title: str) -> Path:
    """From the run's trace.csv and metrics.csv. Matplotlib without pyplot: no state, no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trace, metrics = read_columns(folder / "trace.csv"), read_columns(folder / "metrics.csv")
    drawn = points(len(trace["step"]))
    trace = {name: values[drawn] for name, values in trace.items()}
    figure = Figure(figsize=(8, 6))  # of fixed margins: to fit them would draw it twice
    FigureCanvasAgg(figure)
    rate, loss = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.09, top=0.94, hspace=0.08)
    rate.plot(trace["step"], trace["learning_rate"], color="tab:blue", drawstyle="steps-post")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_title(title)
    loss.plot(trace["step"], trace["loss"], color="tab:gray", alpha=0.35, linewidth=0.8, label="batch")
    for column, color in (("train/loss", "tab:blue"), ("val/loss", "tab:orange")):
        if column in metrics and np.isfinite(metrics[column]).any():
            loss.plot(metrics["step"], metrics[column], color=color, marker=".", label=column)
    if np.nanmin(trace["loss"], initial=np.inf) > 0:
        loss.set_yscale("log")
    loss.set_xlabel("step")
    loss.set_ylabel("loss")
    loss.legend(loc="upper right")
    for axes in (rate, loss):
        axes.grid(alpha=0.3)
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path
