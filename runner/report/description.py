"""Draw a data set: its first images by class, or histograms of its columns, and its targets."""

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from runner.data.dataset import Dataset
from runner.data.splits import SPLITS
from runner.data.summary import Column, Summary
from runner.report import pictures
from runner.text import escape

_COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}
_IMAGES = 8  # of each class
_CLASSES = 12  # rows of images
_BARS = 20  # classes in a panel
_PANELS = 11  # columns of a table, beside the panel of the target
_BINS = 30
_VALUES = 2**24  # of x in memory for the histograms
_ROWS = 20_000  # rows in a histogram
_CHANNELS = (1, 3)  # of an image


def draw(path: Path, data: Dataset, summary: Summary, title: str) -> None:
    """Draw the picture of a data set. Uses Matplotlib without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shape = image_shape(data)
    figure = Figure(layout="constrained")
    if shape is None or not data.has_one_label:
        _draw_columns(figure, data, summary)
    elif summary.classes:
        _draw_classes(figure, data, summary, shape)
    else:
        _draw_images(figure, data, summary, shape)
    figure.suptitle(escape.picture(title, most=90))
    FigureCanvasAgg(figure)
    pictures.save(figure, path)


def image_shape(data: Dataset) -> tuple[int, ...] | None:
    """The shape of a row as an image, [H, W, C]; None if rows are no images."""
    shape = data.image_shape or data.input_shape
    return shape if len(shape) == 3 and shape[-1] in _CHANNELS else None


def _pixels(
    data: Dataset, summary: Summary, rows: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Read images, scaled to 0 ... 1 by the range of all training rows. The steps of a sequence go
    to the right, its first feature is at the bottom.  # float64[n, H, W, C]"""
    x = data.train.x[rows].astype(np.float64)
    if data.x_scaling is not None:
        x = data.x_scaling.invert(x)
    low, high = summary.columns[0].low, summary.columns[0].high
    images = np.clip((x.reshape(-1, *shape) - low) / ((high - low) or 1.0), 0, 1)
    is_sequence = len(data.input_shape) == 2
    return np.rot90(images, axes=(1, 2)) if is_sequence else images


def _show(axes: Any, image: np.ndarray) -> None:
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if image.shape[-1] == 1 else {}
    if len(image) == 1:  # a sequence of numbers
        axes.plot(image[0, :, 0], linewidth=0.5)
        axes.set_ylim(0, 1)
    else:
        axes.imshow(image[..., 0] if grey else image, interpolation="nearest", **grey)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_classes(figure: Any, data: Dataset, summary: Summary, shape: tuple[int, ...]) -> None:
    """Draw a row of images for each class, and the classes' numbers of rows beside them."""
    classes = list(summary.classes)[:_CLASSES]
    height = 0.75 * len(classes) + 1.2
    figure.set_size_inches(10, max(3.0, height))
    grid = figure.add_gridspec(len(classes), _IMAGES + 4)
    for i, name in enumerate(classes):
        rows = np.flatnonzero(data.train.y == i)[:_IMAGES]
        for j in range(_IMAGES):
            axes = figure.add_subplot(grid[i, j])
            if j == 0:
                axes.set_ylabel(_short(name), rotation=0, ha="right", va="center", fontsize="small")
            if j < len(rows):
                _show(axes, _pixels(data, summary, rows[j : j + 1], shape)[0])
            else:
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
    axes = figure.add_subplot(grid[:, _IMAGES:])
    _draw_bars(axes, summary, classes)
    axes.set_yticks([])
    more = len(summary.classes) - len(classes)
    if more > 0:
        axes.set_xlabel(f"the first {len(classes)} of {len(summary.classes)} classes")


def _draw_images(figure: Any, data: Dataset, summary: Summary, shape: tuple[int, ...]) -> None:
    """Draw the first images of a regression, each with its target, and the targets' histogram."""
    num = min(len(data.train), 5 * _IMAGES)
    grid = figure.add_gridspec(ceil(num / _IMAGES), _IMAGES + 4)
    figure.set_size_inches(10, max(3.0, 0.95 * ceil(num / _IMAGES) + 0.8))
    y = _targets(data, np.arange(num))[:, 0]
    for i, image in enumerate(_pixels(data, summary, np.arange(num), shape)):
        axes = figure.add_subplot(grid[i // _IMAGES, i % _IMAGES])
        _show(axes, image)
        axes.set_title(f"{y[i]:.4g}", fontsize="x-small")
    values = _targets(data, np.arange(len(data.train)))[:, 0]
    _draw_histogram(figure.add_subplot(grid[:, _IMAGES:]), values, summary.targets[0], "target")


def _targets(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return targets of training rows in the data's units.  # float64[n, C]"""
    y = data.train.y[rows].astype(np.float64)
    return y if data.y_scaling is None else data.y_scaling.invert(y)


def _draw_columns(figure: Any, data: Dataset, summary: Summary) -> None:
    """Draw the targets and a histogram for each of the first columns."""
    most = max(1, min(_ROWS, _VALUES // max(1, int(np.prod(data.input_shape)))))
    num = len(data.train)
    rows = np.arange(num) if num <= most else np.linspace(0, num - 1, most).astype(np.int64)
    x = data.train.x[rows].astype(np.float64)
    if data.x_scaling is not None:
        x = data.x_scaling.invert(x)
    shown = x if summary.is_table else x.reshape(-1, 1)
    columns = summary.columns[:_PANELS]
    targets = summary.targets[:2]
    panels = len(columns) + (len(targets) or 1)
    across = min(4, panels)
    down = ceil(panels / across)
    figure.set_size_inches(2.7 * across + 0.6, 2.1 * down + 0.7)
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    if summary.classes:
        _draw_bars(grid[0], summary, list(summary.classes))
        first = 1
    else:
        y = _targets(data, rows)
        for i, target in enumerate(targets):
            _draw_histogram(grid[i], y[:, i], target, "target")
        first = len(targets)
    for i, column in enumerate(columns):
        _draw_histogram(grid[first + i], shown[:, i], column)
    for axes in grid[panels:]:
        axes.set_axis_off()
    hidden = len(summary.columns) - len(columns)
    words = f"; the first {len(columns)} of {len(summary.columns)} columns" if hidden else ""
    figure.supxlabel(f"{len(rows)} training rows, in the data's units{words}", fontsize="small")


def _draw_histogram(axes: Any, values: np.ndarray, column: Column, role: str = "") -> None:
    """Draw the values' frequencies; a bar for each value if there are few whole numbers."""
    title = escape.picture(column.name, most=24)
    axes.set_title(f"{role} {title}".strip(), fontsize="small")
    axes.tick_params(labelsize="x-small")
    finite = values[np.isfinite(values)]
    color = "tab:purple" if role else "tab:blue"
    is_counted = column.kind != "real" and column.high - column.low < _BINS
    if column.is_constant or not len(finite):
        axes.text(0.5, 0.5, f"always {column.low:.4g}", ha="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
    elif is_counted:
        numbers, counts = np.unique(np.rint(finite), return_counts=True)
        axes.bar(numbers, counts, width=0.8, color=color)
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        with np.errstate(over="ignore"):
            unit = max(abs(column.low), abs(column.high), 1e-300)
        is_extreme = unit > 1e100 or unit < 1e-100  # beyond what Matplotlib can place on an axis
        shown = finite / unit if is_extreme else finite
        counts, edges = np.histogram(shown, bins=_bins(column) if not is_extreme else _BINS)
        axes.stairs(counts, edges, fill=True, color=color)
        if is_extreme:
            axes.set_xlabel(f"in units of {unit:.4g}", fontsize="x-small")


def _bins(column: Column) -> Any:
    """Return the number of bins, or their edges, so that each bin holds equally many whole
    numbers."""
    span = column.high - column.low + 1
    if column.kind != "whole" or span > 2**50:
        return _BINS
    width = ceil(span / _BINS)
    return column.low - 0.5 + width * np.arange(ceil(span / width) + 1)


def _short(name: str, most: int = 14) -> str:
    """Cut the middle of a long name: similar names often differ at their end."""
    half = most // 2
    short = name if len(name) <= most else f"{name[:half]}…{name[-half + 1 :]}"
    return escape.picture(short)


def _draw_bars(axes: Any, summary: Summary, classes: list[str]) -> None:
    """Draw the number of rows of each class, split by split; the most frequent ones of many."""
    if len(classes) > _BARS:
        by_size = sorted(classes, key=lambda name: -summary.classes[name]["train"])
        axes.set_xlabel(f"the {_BARS} most frequent of {len(classes)}", fontsize="x-small")
        classes = by_size[:_BARS]
    left = np.zeros(len(classes))
    for split in SPLITS:
        counts = np.array([summary.classes[name][split] for name in classes])
        if counts.any():
            axes.barh(range(len(classes)), counts, 0.7, left, color=_COLORS[split], label=split)
            left += counts
    labels = [_short(name) for name in classes]
    axes.set_yticks(range(len(classes)), labels)
    axes.tick_params(labelsize="x-small")
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, max(1.0, left.max() * 1.05))
    axes.legend(
        fontsize="x-small",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        title="rows" if summary.num_labels == summary.rows else "labels",
        title_fontsize="small",
        alignment="left",
    )
