"""task=describe: print what is in a data set before training, and save a picture. It imports no
framework."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runner.config.schema import Config
from runner.data import Dataset, load
from runner.data.audio import AudioFolder
from runner.data.columns import Columns
from runner.data.masking import num_masked
from runner.data.mixing import mixing_of
from runner.data.originals import Original, originals
from runner.data.splits import SPLITS
from runner.data.summary import Column, Summary, summarize
from runner.data.text_classes import TextClasses
from runner.errors import ConfigError, show
from runner.report import description as picture
from runner.run import run_folder

_ROWS = 30  # the most columns or classes in a printed table
_MOST_CATEGORIES = 4  # in a printed table
_NARROW = 8  # characters of the shortest first cell
_GAP = "  "


def describe(config: Config) -> int:
    """Describe the data of a config. describe.json in the new folder has all columns and
    classes."""
    root = Path(config.output.root) / "descriptions"
    run_folder.check(root, "output.root", root)
    data = load(config.data)
    if data.stream is not None:
        raise ConfigError(
            f"task=describe needs rows with numbers, and the rows of {data.stream.items.source} "
            f"can only be iterated over; task=train checks them while it reads them"
        )
    summary = summarize(data)
    name = config.data.name
    folder = run_folder.create(root, f"{run_folder.timestamp()}_{name}")
    width = shutil.get_terminal_size((100, 24)).columns
    lines = report(summary, name, width)
    values = {"data": name, **summary.as_json()}
    if isinstance(config.data, Columns):
        found = originals(config.data, data.columns, data.target)
        values["original_columns"] = [vars(column) for column in found]
        position = lines.index("") + 1
        lines[position:position] = [*_originals(found, width), ""]
    lines[2:2] = _keys(config.data, data)
    print("\n".join(lines))
    run_folder.write_json(folder / "describe.json", values)
    title = f"data={name}: {sum(summary.rows.values())} rows, {_kind(summary)}"
    picture.draw(folder / "describe.png", data, summary, title)
    print(f"picture  {folder / 'describe.png'}")
    print(f"table    {folder / 'describe.json'}")
    return 0


def _keys(section: Any, data: Dataset) -> list[str]:
    """Describe how the rows are made and split, and random changes of the training images."""
    lines = []
    if isinstance(section, TextClasses):
        kind = data.tokenizer.kind if data.tokenizer else section.tokenizer
        lines.append(
            f"text     {kind}: {data.num_tokens} different token ids, rows of "
            f"{data.input_shape[0]}, padded with 0"
        )
    if data.mask_rate is not None:
        num = num_masked(data.mask_rate, data.input_shape[0])
        lines.append(f"masked   {num} of {data.input_shape[0]} tokens of a row are its labels")
    if isinstance(section, AudioFolder):
        frames, features = section.row_shape
        lines.append(
            f"audio    {section.features}: {section.seconds:g} s at {section.sample_rate} Hz, "
            f"{frames} frames of {features}"
        )
    if hasattr(section, "split_seed"):
        how = f"{getattr(section, 'split', 'random')}, data.split_seed={section.split_seed}"
        if getattr(section, "fold", None) is not None:
            how += f", data.fold={section.fold} of {section.num_folds}"
        lines.append(f"split    {how}")
    augment = getattr(section, "augment", None)
    if augment is not None and augment.is_on:
        changes = ", ".join(f"data.augment.{key}={show(value)}" for key, value in augment if value)
        lines.append(f"augment  {changes}: other changes of the training images in each epoch")
    mixing = mixing_of(section)
    if mixing is not None:
        kinds = ", ".join(f"data.{k}={show(v)}" for k, v in vars(mixing).items() if v is not None)
        lines.append(f"mixed    {kinds}: each training row with another one in each epoch")
    return lines


def report(summary: Summary, name: str, width: int) -> list[str]:
    """Format a summary in lines of at most `width` characters, as far as words allow."""
    rows = summary.rows
    counts = ", ".join(f"{split} {rows[split]}" for split in SPLITS)
    fields = ", ".join(f"{key} {f['dtype']}{f['shape'] or ''}" for key, f in summary.fields.items())
    lines = [
        f"data     {name}: {sum(rows.values())} rows, {_kind(summary)}",
        f"rows     {counts}",
        f"fields   {fields}",
        f"values   {_scaling(summary)}",
        f"sha256   {summary.sha256}",
        "",
    ]
    heading = "columns" if summary.is_table else "all values of x"
    lines += [f"{heading}, over the {rows['train']} training rows, in the data's units:"]
    lines += _columns(summary.columns, width)
    lines += ["", *(_classes(summary, width) if summary.classes else _targets(summary, width)), ""]
    lines += [f"warning: {warning}" for warning in summary.warnings] or ["no warnings"]
    return lines


def _kind(summary: Summary) -> str:
    if summary.classes:
        return f"{len(summary.classes)} classes"
    num = len(summary.targets)
    return f"{summary.task} of {num} targets" if num > 1 else summary.task


def _scaling(summary: Summary) -> str:
    """Describe what is done to the values before the network sees them."""
    columns = {"x": summary.columns, "y": summary.targets}
    parts = [
        f"{name} is {_formula(summary.values[name], columns[name])}"
        for name in ("x", "y")
        if name == "x" or summary.targets
    ]
    shape = summary.values["flattened_images"]
    if shape is not None:
        x = summary.fields["x"]["shape"]
        other = "flattened" if len(x) == 1 else f"sequences {x}"
        parts.append(f"rows are images {shape} for a model that needs these, else {other}")
    return "; ".join(parts)


def _formula(scaling: Any, columns: Sequence[Column]) -> str:
    if scaling is None:
        return "used as it is"
    offset, scale = np.array(scaling["offset"]), np.array(scaling["scale"])
    if len(offset) == 1 or (np.ptp(offset) == 0 and np.ptp(scale) == 0):
        return f"scaled: (value - {offset[0]:.6g}) / {scale[0]:.6g}"
    if len(offset) == len(columns):
        return "standardized: (value - mean) / deviation of its column, over the training rows"
    return "scaled: (value - offset) / scale per channel, see describe.json"


def _columns(columns: Sequence[Column], width: int) -> list[str]:
    header = ("name", "type", "lowest", "highest", "mean", "deviation", "distinct")
    rows = [
        (
            show(column.name),
            "constant" if column.is_constant else column.kind,
            *(_number(v) for v in (column.low, column.high, column.mean, column.deviation)),
            "> 1000" if column.distinct is None else str(column.distinct),
        )
        for column in columns[:_ROWS]
    ]
    return _table(header, rows, len(columns) - len(rows), "columns", width)


def _originals(columns: Sequence[Original], width: int) -> list[str]:
    """Format the columns of a table's file, and what becomes of them."""
    rows = [
        (show(c.name), c.kind, str(c.missing), _becomes(c), _content(c)) for c in columns[:_ROWS]
    ]
    header = ("name", "type", "missing", "becomes", "cells")
    lines = _table(header, rows, len(columns) - len(rows), "columns", width)
    return ["columns of the file, over all of its rows:", *lines]


def _becomes(column: Original) -> str:
    num = len(column.becomes)
    return {0: "target", 1: "1 feature"}.get(num, f"{num} features")


def _content(column: Original) -> str:
    """The range of a column, or its most frequent categories."""
    if column.kind == "text":
        first = list(column.categories.items())[:_MOST_CATEGORIES]
        more = len(column.categories) - len(first)
        texts = [f"{show(text)} {count}" for text, count in first]
        return ", ".join([*texts, *([f"{more} more"] if more else [])])
    edges = (
        e if isinstance(e, str) or e is None else _number(e) for e in (column.low, column.high)
    )
    return " to ".join(map(str, edges))


def _number(value: float) -> str:
    return f"{value:.5g}"


def _classes(summary: Summary, width: int) -> list[str]:
    """Format the number of rows of each class, and the accuracy of always guessing the largest."""
    num = summary.num_labels["train"]
    rows = [
        (_visible(name), *(str(counts[split]) for split in SPLITS), f"{counts['train'] / num:.1%}")
        for name, counts in list(summary.classes.items())[:_ROWS]
    ]
    header = ("class", *SPLITS, "of train")
    more = len(summary.classes) - len(rows)
    assert summary.majority is not None
    name, shares = summary.majority
    accuracies = ", ".join(f"{split} {share:.4f}" for split, share in shares.items())
    guess = f"always guessing {_visible(name)} has the accuracy {accuracies}"
    return [
        f"classes, number of {'rows' if num == summary.rows['train'] else 'labels'}:",
        *_table(header, rows, more, "classes", width),
        *([] if summary.task == "transcription" else [guess]),
    ]


def _visible(label: str) -> str:
    """Return a class's name, in quotes if it is blank, like the token of a space."""
    return show(label) if label.strip() else repr(label)


def _targets(summary: Summary, width: int) -> list[str]:
    """Format the targets of a regression, and the error of always predicting their mean."""
    lines = ["targets, over the training rows, in the data's units:"]
    lines += _columns(summary.targets, width)
    is_one = len(summary.targets) == 1
    error = f"of {_number(summary.targets[0].deviation)}" if is_one else "equal to the deviation"
    return [
        *lines,
        f"always predicting the mean has a root mean squared error {error} on these rows",
    ]


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], more: int, kind: str, width: int
) -> list[str]:
    """Align cells, the first to the left. To fit the width, the first cells are cut, and the last
    columns are left out if that is not enough."""
    cells = [list(header), *map(list, rows)]
    while True:
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        others = sum(size + len(_GAP) for size in widths[1:])
        first = min(widths[0], max(_NARROW, width - others))
        if first + others <= width or len(cells[0]) == 2:
            break
        cells = [row[:-1] for row in cells]
    lines = []
    for name, *numbers in cells:
        short = name if len(name) <= first else f"{name[: first - 3]}..."
        aligned = (f"{cell:>{size}}" for cell, size in zip(numbers, widths[1:], strict=True))
        lines.append(_GAP.join((f"{short:<{first}}", *aligned)).rstrip())
    return [*lines, *([f"... and {more} more {kind}, see describe.json"] if more else [])]
