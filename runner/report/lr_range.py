"""Draw find_lr.png: the loss of a range test over its rates, with the suggested rates."""

from pathlib import Path

import numpy as np

from runner.report import pictures
from runner.report.range_test import Suggestion


def draw(
    path: Path,
    rates: np.ndarray,
    losses: np.ndarray,
    smoothed: np.ndarray,
    suggestion: Suggestion | None,
) -> None:
    """Draw the picture with Matplotlib, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(rates, losses, color="tab:gray", alpha=0.4, linewidth=0.8, label="batch")
    axes.plot(rates, smoothed, color="tab:blue", label="smoothed")
    if suggestion is not None:
        marks = (
            (suggestion.steepest, "tab:orange", "steepest slope"),
            (suggestion.tenth, "tab:green", "a tenth of the minimum's"),
        )
        for rate, color, label in marks:
            axes.axvline(
                rate, color=color, linestyle="--", linewidth=1, label=f"{label}: {rate:.2g}"
            )
    low, high = float(np.minimum(losses, smoothed).min()), float(smoothed[0])
    axes.set_ylim(low - 0.1 * (high - low) - 1e-9, max(high, float(np.median(smoothed))) * 1.3)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.legend()
    axes.grid(alpha=0.3)
    pictures.save(figure, path)
