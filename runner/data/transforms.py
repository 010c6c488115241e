"""Transforms from the columns of a table to numbers: fitted on the training rows, saved as JSON.

    number, date   one value; a missing cell gets `fill`
    boolean        0 or 1; likewise
    text           one value per category, 1 for the row's category and 0 for the others
                   ("one-hot"); a category that no training row has gives 0 for all of them; or,
                   for an embedding, one id (`numbered`), or the ids of its tokens (`of_tokens`)

With `indicator`, one more value is 1 for a missing cell and 0 for another. The definitions are
those of scikit-learn's SimpleImputer(strategy, add_indicator) and
OneHotEncoder(handle_unknown="ignore").
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from runner.data.blocks import as_records, in_blocks
from runner.data.cells import Column, Kind
from runner.data.tokenizer import Tokenizer
from runner.errors import ConfigError

Missing = Literal["error", "mean", "median", "most_frequent", "indicator"] | float
MISSING = ""  # the category of missing cells


@dataclass(frozen=True)
class Transform:
    """The transform of one column.

    Attributes:
        name: the column.
        kind: its kind, as in runner.data.cells.
        fill: the value of a missing cell: a number, or a category.
        allows_missing: False refuses missing cells.
        indicator: True adds a value that is 1 for a missing cell.
        categories: the categories of text in the training rows, sorted; "" is a missing cell.
        first_id: of text, the id of a category that no training row has; category k has the id
            first_id + 1 + k. None: text is one-hot.
        tokenizer: of text whose values are the ids of its tokens, an entry of data.json.
        context: the number of these ids; 0 pads them at the end.
    """

    name: str
    kind: Kind
    fill: float | str | None = None
    allows_missing: bool = False
    indicator: bool = False
    categories: tuple[str, ...] = ()
    first_id: int | None = None
    tokenizer: Mapping[str, Any] | None = None
    context: int = 0

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Transform":
        """Read a transform from data.json."""
        return cls(**{**saved, "categories": tuple(saved["categories"])})

    def as_json(self) -> dict[str, Any]:
        values = {**asdict(self), "categories": list(self.categories)}
        if self.first_id is None:
            del values["first_id"]
        if self.tokenizer is None:
            del values["tokenizer"], values["context"]
        return values

    @property
    def is_categorical(self) -> bool:
        """True for text whose values are categories, not tokens."""
        return self.kind == "text" and self.tokenizer is None

    @property
    def ids(self) -> list[int]:
        """One more than the largest id of each of its values; 0 for numbers."""
        if self.tokenizer is not None:
            return [len(self.tokenizer["vocabulary"])] * self.context
        if self.first_id is not None:
            return [self.first_id + self.num_ids]
        return [0] * len(self.features)

    @property
    def num_ids(self) -> int:
        """The number of ids of a column of text: its categories, and one for all others."""
        return len(self.categories) + 1

    @property
    def features(self) -> list[str]:
        """The names of its values."""
        if self.tokenizer is not None:
            return [f"{self.name}={i}" for i in range(self.context)]
        if self.first_id is not None:
            return [self.name]
        if self.kind == "text":
            return [f"{self.name}={category or 'missing'}" for category in self.categories]
        return [self.name, *([f"{self.name}=missing"] if self.indicator else [])]

    @property
    def is_scaled(self) -> list[bool]:
        """True for each of its values that `standardize` scales: numbers and dates."""
        if self.kind == "text":
            return [False] * len(self.features)
        return [self.kind != "boolean", *([False] if self.indicator else [])]

    def fits(self, column: Column) -> bool:
        """Return whether it can transform a column of another file; an empty one fits any kind."""
        kinds = {self.kind, "number"} if self.kind == "boolean" else {self.kind}
        return column.kind in kinds or bool(column.missing.all())

    def writer(self, column: Column) -> Callable[[slice, np.ndarray], None]:
        """Return `write` for a column; each different text is divided into tokens once."""
        if self.tokenizer is None:
            return partial(self.write, column)
        ids = np.zeros((len(column.categories) + 1, self.context))  # the last: a missing cell
        tokens = Tokenizer.read(self.tokenizer).encode_all(column.categories)
        for row, found in zip(ids, tokens, strict=False):
            kept = found[: self.context]
            row[: len(kept)] = kept

        def write(rows: slice, out: np.ndarray) -> None:
            out[:] = ids[column.values[rows]]

        return write

    def write(self, column: Column, rows: slice, out: np.ndarray) -> None:
        """Write the values of some rows of a column.  # out float64[n, len(features)]"""
        cells = column.values[rows]
        if self.kind != "text":
            out[:, 0] = cells
            missing = np.array(False) if column.is_finite else np.isnan(cells)
            if missing.any():
                out[missing, 0] = self.fill
            if self.indicator:
                out[:, 1] = missing
            return
        number: dict[Any, int] = {name: i for i, name in enumerate(self.categories)}
        positions = [number.get(c, -1) for c in (*column.categories, self.fill)]
        which = np.array(positions, dtype=np.int64)[cells]
        if self.first_id is not None:
            out[:, 0] = self.first_id + 1 + which
            return
        out[:] = which[:, None] == np.arange(len(self.categories))

    def unknown(self, column: Column) -> list[str]:
        """Return the categories of a column that no training row has."""
        if not self.is_categorical:
            return []
        return [c for c in column.categories if c not in self.categories]


def fit(column: Column, rows: np.ndarray, missing: Missing) -> Transform:
    """Fit the transform of a column on the training rows.

    `missing`: mean, median, most_frequent (the smallest of equally frequent values) or a number
    replaces a missing number; `indicator` is mean with the additional value, if a training row has
    a missing cell. Missing text is a category of its own, but with most_frequent.
    """
    allows = missing != "error"
    if column.kind != "text" and not allows:
        return Transform(column.name, column.kind)
    cells = column.values[rows]
    if column.kind != "text":
        fill = _fill(cells[~np.isnan(cells)], missing)
        indicator = missing == "indicator" and bool(np.isnan(cells).any())
        return Transform(column.name, column.kind, fill, allows, indicator)
    counts = np.bincount(cells[cells >= 0], minlength=len(column.categories))
    names = tuple(c for c, n in zip(column.categories, counts, strict=True) if n)
    if missing == "most_frequent" and names:
        most = column.categories[int(np.argmax(counts))]
        return Transform(column.name, "text", most, allows, categories=names)
    if allows and (cells < 0).any():
        names = (MISSING, *names)
    return Transform(column.name, "text", MISSING if allows else None, allows, categories=names)


def of_tokens(
    column: Column, rows: np.ndarray, tokenizer: Tokenizer, context: int | None, missing: Missing
) -> Transform:
    """Fit the transform of a column of text to the ids of its tokens. `context`: None: as many as
    the longest text of the training rows has. A missing cell has no tokens."""
    if context is None:
        used = np.unique(column.values[rows])
        texts = [column.categories[i] for i in used if i >= 0]
        context = max([1, *map(len, tokenizer.encode_all(texts))])
    allows = missing != "error"
    fill = MISSING if allows else None
    return Transform(
        column.name, "text", fill, allows, tokenizer=tokenizer.saved(), context=context
    )


def _fill(known: np.ndarray, missing: Missing) -> float:
    if isinstance(missing, float | int):
        return float(missing)
    if len(known) == 0:
        return 0.0
    if missing == "median":
        return float(np.median(known))
    if missing == "most_frequent":
        values, counts = np.unique(known, return_counts=True)
        return float(values[np.argmax(counts)])
    return float(known.mean())


def numbered(transforms: Sequence[Transform]) -> list[Transform]:
    """Give each category of all columns an id of its own, in the order of the columns, from 0.
    Numbers and columns of tokens are unchanged."""
    ends = np.cumsum([0, *(t.num_ids if t.is_categorical else 0 for t in transforms)])
    return [
        replace(t, first_id=int(i)) if t.is_categorical else t
        for t, i in zip(transforms, ends, strict=False)
    ]


def num_ids(transforms: Sequence[Transform]) -> int:
    """The number of ids of the categories of all columns; 0 if some columns have other values."""
    if any(transform.first_id is None for transform in transforms):
        return 0
    return sum(transform.num_ids for transform in transforms)


def ids(transforms: Sequence[Transform]) -> tuple[int, ...]:
    """One more than the largest id of each value of a row, 0 for numbers; empty if all values are
    numbers."""
    found = tuple(num for transform in transforms for num in transform.ids)
    return found if any(found) else ()


def apply(transforms: Sequence[Transform], columns: Mapping[str, Column]) -> np.ndarray:
    """Transform all rows of a table.  # float64[N, features]"""
    num_rows = len(next(iter(columns.values())).values)
    return apply_to(transforms, columns, [np.arange(num_rows)])[0]


def apply_to(
    transforms: Sequence[Transform],
    columns: Mapping[str, Column],
    parts: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """Transform the rows of each part, which are disjoint. Rows are read in the order of the table,
    and go to their places: this is faster than to read them in the order of the parts.

    int64[n] each -> float64[n, features] each
    """
    num_rows = len(next(iter(columns.values())).values)
    ends = np.cumsum([0, *(len(t.features) for t in transforms)])
    used = np.concatenate(parts)
    place = np.full(num_rows, -1, np.int64)
    place[used] = np.arange(len(used))
    out = np.empty((len(used), ends[-1]))
    out_rows = as_records(out)
    writers = [transform.writer(columns[transform.name]) for transform in transforms]

    def write(rows: slice) -> None:
        block = np.empty((rows.stop - rows.start, ends[-1]))
        for write_column, begin, end in zip(writers, ends, ends[1:], strict=False):
            write_column(rows, block[:, begin:end])
        places = place[rows]
        if len(used) < num_rows:
            block, places = block[places >= 0], places[places >= 0]
        out_rows[places] = as_records(block)

    in_blocks(write, num_rows)
    return np.split(out, np.cumsum([len(part) for part in parts])[:-1])


def read(saved: Iterable[Mapping[str, Any]], path: object) -> list[Transform]:
    """Read the transforms of a run from data.json."""
    try:
        return [Transform.read(transform) for transform in saved]
    except (TypeError, KeyError, AttributeError):
        raise ConfigError(f"{path} is damaged: columns must hold the transforms") from None
