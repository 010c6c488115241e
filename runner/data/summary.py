"""Statistics of a data set, and warnings of probable mistakes in it.

Columns are described over the training rows, in the data's units (before any scaling). Rows are
read in blocks, in a few passes, so that data=npy is never in memory as a whole.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from runner.data.dataset import Dataset, Scaling, Split, largest_of
from runner.data.files import UNSCALED
from runner.data.splits import SPLIT_WORDS
from runner.data.stream import StreamedRows
from runner.errors import show

_BLOCK = 2**19  # values in one block
_MOST_DISTINCT = 1000  # distinct values to count, unless the data is a table in memory
_MOST_NAMES = 5  # in one warning
_FEW_ROWS = 10  # with fewer rows, columns agree by chance
_UNBALANCED = 10  # rows of the largest class for each row of the smallest one
_LARGEST_INTEGER = 2.0**64  # all larger values of float64 are whole
_CLASS_BOUNDS = 2**24  # columns times classes; more are not compared with the classes
# 1 - |r| below this: column and target differ by less than 0.0015 standard deviations, since
# 1 - |r| = variance of the difference / (2 variance of the target)
_CORRELATED = 1e-6
# units in the last place by which (raw - offset) / scale * scale + offset may differ from raw
_ROUNDING = 8 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class Column:
    """One column of x or y, or all values of x together."""

    name: str
    kind: str  # "0 or 1", "whole" (numbers) or "real"
    low: float
    high: float
    mean: float
    deviation: float  # standard deviation, with N in the denominator
    distinct: int | None  # the number of distinct values; None: more than 1000
    is_constant: bool


@dataclass(frozen=True)
class Summary:
    """The description of a data set, as the network sees it; runner.data.originals describes the
    columns of a table's file."""

    task: str
    rows: dict[str, int]  # per split
    fields: dict[str, dict[str, Any]]  # field -> shape of a row, dtype
    sha256: str
    is_table: bool  # x has columns; else `columns` has one entry, of all values of x
    columns: list[Column]  # over the training rows, in the data's units
    # class -> rows per split, or labels if a row has one at each position; empty for regression
    classes: dict[str, dict[str, int]]
    targets: list[Column]  # columns of y over the training rows, in the data's units; or empty
    values: dict[str, Any]  # what is done to x and y: offset and scale, flattened images
    duplicates: dict[str, int]  # val, test: rows that equal a training row; train: that repeat one
    warnings: list[str] = field(default_factory=list)

    @property
    def majority(self) -> tuple[str, dict[str, float]] | None:
        """The most frequent class of the training rows, and its share of the labels of each split,
        which is the accuracy of always guessing it. None for regression."""
        if not self.classes:
            return None
        name = max(self.classes, key=lambda key: self.classes[key]["train"])
        counts = self.classes[name]
        return name, {key: counts[key] / num for key, num in self.num_labels.items() if num}

    @property
    def num_labels(self) -> dict[str, int]:
        """The number of labels of each split."""
        return {split: sum(of[split] for of in self.classes.values()) for split in self.rows}

    def as_json(self) -> dict[str, Any]:
        """The content of describe.json."""
        majority = self.majority
        values = {**vars(self), "columns": [vars(column) for column in self.columns]}
        values["targets"] = [vars(column) for column in self.targets]
        if majority is not None:
            values["majority"] = {"class": majority[0], "share": majority[1]}
        return values


@np.errstate(over="ignore", invalid="ignore")  # values near the limit of float64
def summarize(data: Dataset) -> Summary:
    """Describe a data set, and find probable mistakes in it."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    is_table = len(data.input_shape) == 1 and data.image_shape is None and not data.num_tokens
    moments = {name: _moments(data, split, is_table) for name, split in splits.items()}
    train = moments["train"]
    assert train is not None  # every data set has training rows
    columns = _columns(data, train, is_table)
    summary = Summary(
        task=data.task,
        rows={name: len(split) for name, split in splits.items()},
        fields={
            name: {"shape": list(f.shape), "dtype": str(f.dtype)}
            for name, f in data.train.fields.items()
        },
        sha256=data.description()["sha256"],
        is_table=is_table,
        columns=columns,
        classes=_class_counts(data, splits),
        targets=_targets(data),
        values=_values(data),
        duplicates=_duplicates(splits),
    )
    found = _warnings(data, summary, [m for m in moments.values() if m], is_table)
    summary.warnings.extend(dict.fromkeys([*data.warnings, *found]))  # none twice
    return summary


@dataclass(frozen=True)
class _Moments:
    """Count, range, mean and sums of squared deviations of D columns; products with C targets."""

    count: int
    low: np.ndarray  # float64[D]
    high: np.ndarray  # float64[D]
    mean: np.ndarray  # float64[D]
    squares: np.ndarray  # float64[D], sum of (x - mean)^2
    whole: np.ndarray  # bool[D], all values are whole numbers
    y_mean: np.ndarray  # float64[C]
    y_squares: np.ndarray  # float64[C]
    products: np.ndarray  # float64[D, C], sum of (x - mean)(y - y_mean)

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, rounding: np.ndarray) -> "_Moments":
        """Measure one block.  # float64[n, D], float64[n, C], float64[D]"""
        nearest = np.rint(x)
        whole = (
            (np.abs(x - nearest) <= _ROUNDING * np.abs(x) + rounding)
            if rounding.any()
            else (x == nearest)
        )
        mean, y_mean = _mean(x), _mean(y)
        centred, y_centred = x - mean, y - y_mean
        squares, y_squares = ((c**2).sum(axis=0) for c in (centred, y_centred))
        return cls(
            len(x),
            x.min(axis=0),
            x.max(axis=0),
            mean,
            squares,
            whole.all(axis=0),
            y_mean,
            y_squares,
            centred.T @ y_centred,
        )

    def joined(self, other: "_Moments") -> "_Moments":
        """Join two blocks (Chan, Golub and LeVeque, 1983, equation 2.1)."""
        count = self.count + other.count
        weight = self.count * other.count / count
        dx, dy = other.mean - self.mean, other.y_mean - self.y_mean
        return _Moments(
            count,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.mean + dx * (other.count / count),
            self.squares + other.squares + weight * dx**2,
            self.whole & other.whole,
            self.y_mean + dy * (other.count / count),
            self.y_squares + other.y_squares + weight * dy**2,
            self.products + other.products + weight * np.outer(dx, dy),
        )


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each column, finite also where the sum is not."""
    mean: np.ndarray = values.mean(axis=0)
    return mean if np.isfinite(mean).all() else (values / len(values)).sum(axis=0)


def _blocks(split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over the rows of x and y in blocks of about _BLOCK values. Rows in files are read in
    the order of the files."""
    size = max(1, _BLOCK // max(1, int(np.prod(split.x.shape[1:]))))
    order = np.argsort(split.x.rows) if isinstance(split.x, StreamedRows) else None
    for first in range(0, len(split), size):
        rows = slice(first, first + size)
        where = rows if order is None else order[rows]
        yield split.x[where], split.y[where]


def _moments(data: Dataset, split: Split, is_table: bool) -> _Moments | None:
    """Measure x of a split in the data's units, and its products with the targets of a regression.
    None if it has no rows."""
    parts: list[_Moments] = []
    for x, y in _blocks(split):
        raw = _in_data_units(x, data.x_scaling)
        targets = y.astype(np.float64) if is_table and y.ndim == 2 else np.empty((len(x), 0))
        rounding = np.zeros(1)
        if is_table and data.x_scaling is not None:
            rounding = _ROUNDING * np.abs(data.x_scaling.offset)
        elif data.x_scaling is not None:
            rounding = _ROUNDING * np.abs(data.x_scaling.offset).max().reshape(1)
        if not is_table:
            raw, targets = raw.reshape(-1, 1), np.empty((raw.size, 0))
        block = _Moments.of(raw, targets, rounding)
        parts = [parts[0].joined(block)] if parts else [block]
    return parts[0] if parts else None


def _in_data_units(values: np.ndarray, scaling: Scaling | None) -> np.ndarray:
    values = values.astype(np.float64)
    return values if scaling is None else scaling.invert(values)


def names(data: Dataset) -> list[str]:
    """The names of the columns of x."""
    return list(data.features) or [f"x[{i}]" for i in range(data.input_shape[0])]


def _columns(data: Dataset, moments: _Moments, is_table: bool) -> list[Column]:
    """Describe the columns of a table; otherwise all values of x together."""
    if not is_table:
        distinct = _distinct_in_blocks(data.train, 1)
    elif data.streams:
        distinct = _distinct_in_blocks(data.train, data.input_shape[0])
    else:
        distinct = [len(np.unique(column)) for column in data.train.x.T]
    return _described(names(data) if is_table else ["x"], moments, distinct)


def _described(
    labels: Sequence[str], moments: _Moments, distinct: Sequence[int | None]
) -> list[Column]:
    low, high, mean = moments.low, moments.high, moments.mean
    whole = moments.whole & (np.maximum(np.abs(low), np.abs(high)) <= _LARGEST_INTEGER)
    low, high = (np.where(whole, np.rint(edge), edge) + 0.0 for edge in (low, high))  # no -0
    deviation = np.sqrt(moments.squares / moments.count)
    constant = is_constant(low, high)
    binary = whole & (low >= 0) & (high <= 1)
    kinds = np.where(binary, "0 or 1", np.where(whole, "whole", "real"))
    return [
        Column(
            name,
            str(kinds[i]),
            float(low[i]),
            float(high[i]),
            float(low[i] if constant[i] else mean[i]),
            0.0 if constant[i] else float(deviation[i]),
            1 if constant[i] else distinct[i],
            bool(constant[i]),
        )
        for i, name in enumerate(labels)
    ]


def is_constant(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """True for a column with no spread beyond rounding."""
    largest = np.maximum(np.abs(low), np.abs(high))
    constant: np.ndarray = high - low <= _ROUNDING * largest
    return constant


def _distinct_in_blocks(split: Split, num_columns: int) -> list[int | None]:
    """Count the distinct values of each column, or of all values together if there is one column;
    None if there are more than _MOST_DISTINCT."""
    known: list[np.ndarray | None] = [np.empty(0, split.x.dtype)] * num_columns
    for x, _ in _blocks(split):
        for i, column in enumerate(x.reshape(-1, num_columns).T):
            before = known[i]
            if before is not None:
                found = np.union1d(before, column)
                known[i] = found if len(found) <= _MOST_DISTINCT else None
        if all(values is None for values in known):
            break
    return [None if values is None else len(values) for values in known]


def _class_counts(data: Dataset, splits: dict[str, Split]) -> dict[str, dict[str, int]]:
    if not data.classes:
        return {}
    num = len(data.classes)
    counts = {name: _counts(split, num) for name, split in splits.items()}
    return {
        label: {name: int(counts[name][i]) for name in splits}
        for i, label in enumerate(data.classes)
    }


def _counts(split: Split, num: int) -> np.ndarray:
    """Count the labels of a split.  # int64[num]"""
    size = max(1, _BLOCK // max(1, math.prod(split.y.shape[1:])))
    counts = np.zeros(num, np.int64)
    for first in range(0, len(split), size):
        labels = split.y[first : first + size]
        counts += np.bincount(labels[labels >= 0], minlength=num)
    return counts


def _targets(data: Dataset) -> list[Column]:
    """Describe the targets over the training rows."""
    y = data.train.y
    if data.classes:
        return []
    raw = _in_data_units(y, data.y_scaling)
    rounding = np.zeros(1)
    if data.y_scaling is not None:
        rounding = _ROUNDING * np.abs(data.y_scaling.offset)
    moments = _Moments.of(raw, np.empty((len(y), 0)), rounding)
    return _described(_target_names(data), moments, [len(np.unique(column)) for column in y.T])


def _target_names(data: Dataset) -> list[str]:
    """The names of the columns of y."""
    num, target = data.train.y.shape[1], data.target
    if isinstance(target, str) and num == 1:
        return [target]
    if isinstance(target, list) and len(target) == num:
        return [str(name) for name in target]
    return ["y"] if num == 1 else [f"y[{i}]" for i in range(num)]


def _values(data: Dataset) -> dict[str, Any]:
    """Describe what is done to the values before the network sees them."""
    scalings = {"x": data.x_scaling, "y": data.y_scaling}
    values: dict[str, Any] = {
        name: scaling and {"offset": scaling.offset.tolist(), "scale": scaling.scale.tolist()}
        for name, scaling in scalings.items()
    }
    shape = data.image_shape
    return {**values, "flattened_images": None if shape is None else list(shape)}


def _duplicates(splits: dict[str, Split]) -> dict[str, int]:
    """Count the rows of x that equal a training row, and training rows that equal an earlier
    one."""
    hashes = {name: _row_hashes(split) for name, split in splits.items()}
    known = np.unique(hashes["train"])
    repeated = {"train": len(hashes["train"]) - len(known)}
    for name in ("val", "test"):
        repeated[name] = int(np.isin(hashes[name], known).sum())
    return repeated


def _row_hashes(split: Split) -> np.ndarray:
    """Hash the bytes of every row of x. With 64 bits, two different ones of 10 million rows have
    the same hash with a probability of 3e-6.  # uint64[N]"""
    digests = []
    for x, _ in _blocks(split):
        block = np.ascontiguousarray(x.reshape(len(x), -1))
        if block.dtype.kind == "f":
            block = block + 0.0  # -0 becomes 0
        hashes = (hashlib.blake2b(row.data, digest_size=8).digest() for row in block)
        digests.append(b"".join(hashes))
    return np.frombuffer(b"".join(digests), np.uint64)


def _warnings(
    data: Dataset, summary: Summary, moments: Sequence[_Moments], is_table: bool
) -> Iterator[str]:
    """Yield warnings of probable mistakes, besides those of the data set itself."""
    yield from _scale_warnings(data)
    if is_table:
        train = moments[0]
        if train.count > 1:
            yield from _column_warnings(summary)
        yield from _counting(names(data), reduce(_Moments.joined, moments))
        if summary.targets:
            yield from _correlated(data, train)
        elif data.has_one_label:
            yield from _labels_in_columns(data)
        if train.count < len(summary.columns):
            rows = "row" if train.count == 1 else "rows"
            yield (
                f"{train.count} training {rows} for {len(summary.columns)} columns: with fewer "
                f"rows than columns, a model can fit any target"
            )
    elif summary.columns[0].is_constant:
        yield f"x has a single value, {summary.columns[0].low:g}, in all training rows"
    for target in summary.targets:
        if target.is_constant and summary.rows["train"] > 1:
            yield f"target {show(target.name)} is always {target.low:g} in the training rows"
    if data.has_one_label:
        yield from _class_warnings(summary)
    for name in ("val", "test"):
        if number := summary.duplicates[name]:
            verb = "equals" if number == 1 else "equal"
            yield (
                f"{number} of {summary.rows[name]} {SPLIT_WORDS[name]} rows {verb} a training row "
                f"(all values of x); they do not test what the model does with new rows"
            )


def _scale_warnings(data: Dataset) -> Iterator[str]:
    """Warn of unscaled values, unless the data set does so."""
    if data.num_tokens:
        return
    if data.x_scaling is not None or any("unscaled" in warning for warning in data.warnings):
        return
    largest = data.train.x.largest if data.streams else largest_of(data.train.x)
    if largest > UNSCALED:
        yield (
            f"x has unscaled values up to {largest:g}; scale them (data.standardize=true, if the "
            f"data has this key), or begin model.layers with {{layer: batch_norm}}"
        )


def _column_warnings(summary: Summary) -> Iterator[str]:
    constant = [column.name for column in summary.columns if column.is_constant]
    if constant:
        yield f"{_listed(constant)} the same value in all training rows"


def _listed(columns: Sequence[str]) -> str:
    """List columns as the subject of a sentence, with its verb."""
    if len(columns) == 1:
        return f"column {show(columns[0])} has"
    first = ", ".join(map(show, columns[:_MOST_NAMES]))
    more = f" and {len(columns) - _MOST_NAMES} more" if len(columns) > _MOST_NAMES else ""
    return f"{len(columns)} columns ({first}{more}) have"


def _counting(labels: Sequence[str], rows: _Moments) -> Iterator[str]:
    """Warn of columns that count the rows. In any order these are N whole numbers from low to
    low + N - 1 with the variance (N^2 - 1) / 12 and the mean in the middle."""
    num = rows.count
    if num < _FEW_ROWS:
        return
    low, high = np.rint(rows.low), np.rint(rows.high)
    variance = rows.squares / num
    # the sums are rounded; another set of whole numbers differs by at least 1 / N in the mean or by
    # some 1 / N in the variance
    is_uniform = np.abs(variance - (num**2 - 1) / 12) < 1e-9 * num**2
    is_centred = np.abs(rows.mean - (low + high) / 2) < 1e-9 * (1 + np.abs(high))
    counts = rows.whole & (high - low == num - 1) & is_uniform & is_centred
    for i in map(int, np.flatnonzero(counts)):
        yield (
            f"column {show(labels[i])} counts the rows; if it is an index, leave it out with "
            f"data.drop"
        )


def _correlated(data: Dataset, train: _Moments) -> Iterator[str]:
    """Warn of columns that equal a target or have correlation 1 or -1 with it."""
    if train.count < _FEW_ROWS:
        return
    labels, targets = names(data), _target_names(data)
    with np.errstate(all="ignore"):
        sizes = np.sqrt(np.outer(train.squares, train.y_squares))
        r = train.products / sizes
    for i, j in np.argwhere(np.isfinite(r) & (1 - np.abs(r) < _CORRELATED)):
        yield (
            f"column {show(labels[i])} has correlation {np.sign(r[i, j]):g} with the target "
            f"{show(targets[j])}; if it is known only afterwards, remove it"
        )


def _labels_in_columns(data: Dataset) -> Iterator[str]:
    """Warn of columns that name the class: one value per class, another one for every class."""
    num_rows, num_classes = len(data.train), len(data.classes)
    num_columns = data.input_shape[0]
    is_large = num_classes * num_columns > _CLASS_BOUNDS
    if num_rows < max(_FEW_ROWS, 2 * num_classes) or is_large:
        return
    low = np.full((num_classes, num_columns), np.inf)
    high = -low
    for x, y in _blocks(data.train):
        for label in np.unique(y):
            rows = x[y == label]
            low[label] = np.minimum(low[label], rows.min(axis=0))
            high[label] = np.maximum(high[label], rows.max(axis=0))
    seen = low[:, 0] <= high[:, 0]
    low, high = low[seen], high[seen]
    single = (low == high).all(axis=0)
    for i in np.flatnonzero(single):
        if len(np.unique(low[:, i])) == len(low) > 1:
            yield (
                f"column {show(names(data)[i])} has one value per class, so it equals the target "
                f"{show(data.target or 'y')}; if it is known only afterwards, remove it"
            )


def _class_warnings(summary: Summary) -> Iterator[str]:
    """Warn of classes that a split lacks, and of classes with few training rows."""
    for split, num in summary.rows.items():
        missing = [name for name, counts in summary.classes.items() if not counts[split]]
        if num and missing:
            listed = ", ".join(map(show, missing[:_MOST_NAMES]))
            more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
            words = "class" if len(missing) == 1 else "classes"
            yield f"the {SPLIT_WORDS[split]} rows have no row of the {words} {listed}{more}"
    counts = {name: of["train"] for name, of in summary.classes.items() if of["train"]}
    if counts:
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        if counts[most] >= _UNBALANCED * counts[least]:
            yield (
                f"the classes are unbalanced: {counts[most]} training rows of {show(most)}, "
                f"{counts[least]} of {show(least)}; loss=cross_entropy "
                f"loss.class_weights=balanced gives each class the same weight"
            )
