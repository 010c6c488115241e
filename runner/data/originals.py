"""The columns of a table as they are in its file, before the transforms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runner.data.cells import Column
from runner.data.columns import Columns, read_columns
from runner.data.transforms import Transform

_DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Original:
    """A column of a file, over all of its rows.

    Attributes:
        name: its name.
        kind: number, boolean, date or text, as in runner.data.cells.
        missing: the number of missing cells.
        low, high: the smallest and largest cell, a date as 2007-11-16; None for text or if all
            cells are missing.
        categories: text -> number of its rows, the most frequent first.
        becomes: the names of its features; empty for a target.
    """

    name: str
    kind: str
    missing: int
    low: float | str | None = None
    high: float | str | None = None
    categories: Mapping[str, int] = field(default_factory=dict)
    becomes: Sequence[str] = ()


def originals(
    section: Columns, fitted: Sequence[Mapping[str, Any]], target: str | list[str] | None
) -> list[Original]:
    """Read the features and targets of a table again, and describe them.

    Args:
        section: the section that made the data set.
        fitted: its transforms, as in data.json.
        target: the names of its targets.
    """
    features = {each.name: each.features for each in map(Transform.read, fitted)}
    targets = [target] if isinstance(target, str) else list(target or ())
    file = section.file(section.path)
    text = [*section.categories, *(targets if section.task == "classification" else [])]
    names = [name for name in file.names if name in features or name in targets]
    columns, _ = read_columns(file, file.read(names, text), names, text)
    return [_original(column, features.get(name, ())) for name, column in columns.items()]


def _original(column: Column, becomes: Sequence[str]) -> Original:
    missing = int(column.missing.sum())
    if column.kind == "text":
        counts = np.bincount(column.values[column.values >= 0], minlength=len(column.categories))
        order = np.argsort(-counts, kind="stable")
        categories = {column.categories[i]: int(counts[i]) for i in order}
        return Original(column.name, "text", missing, categories=categories, becomes=becomes)
    known = column.values[~column.missing]
    edges = [_cell(column.kind, float(edge)) for edge in (known.min(), known.max())]
    return Original(column.name, column.kind, missing, edges[0], edges[1], becomes=becomes)


def _cell(kind: str, value: float) -> float | str:
    if kind != "date":
        return value
    moment = np.datetime64(0, "us") + np.timedelta64(round(value * _DAY), "us")
    return str(moment).removesuffix("T00:00:00.000000").removesuffix(".000000")
