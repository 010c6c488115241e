"""A data set in memory: three splits of checked rows, and the scaling of its values."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from runner.components.alignment import texts_of
from runner.data import blocks, transforms
from runner.data.source import Batch, Field
from runner.data.splits import SPLIT_WORDS
from runner.data.tokenizer import Tokenizer
from runner.data.transforms import Transform
from runner.errors import ConfigError, show
from runner.random import permutation

_HASHED = 2**24  # bytes of rows that are hashed at a time
AlignedTask = Literal["classification", "regression", "multilabel"]
# transcription: labels are sequences that are shorter than those of x
Task = Literal["classification", "regression", "multilabel", "transcription"]


@dataclass(frozen=True)
class Split:
    """A source of the fields x and y, and of the weights of the rows if they have some."""

    # float64[N, ...]; float32 if the file has float32; int32[N, T] token ids; or a
    # runner.data.stream.FileRows
    x: Any
    # labels int64[N], or int64[N, T] for one at each position; sequences of labels int64[N, L], -1
    # after the last one of a row; or targets float64[N, C]
    y: np.ndarray
    weight: np.ndarray | None = None  # float64[N]; None: all rows count equally

    def __len__(self) -> int:
        return len(self.x)

    @property
    def fields(self) -> dict[str, Field]:
        return {name: Field(tuple(a.shape[1:]), a.dtype) for name, a in self._arrays().items()}

    def read(self, rows: np.ndarray) -> Batch:
        return {name: array[rows] for name, array in self._arrays().items()}

    def head(self, num: int) -> "Split":
        """Return the first `num` rows, in memory."""
        weight = None if self.weight is None else self.weight[:num]
        return Split(self.x[:num], self.y[:num], weight)

    def _arrays(self) -> dict[str, Any]:
        weight = {} if self.weight is None else {"weight": self.weight}
        return {"x": self.x, "y": self.y, **weight}


@dataclass(frozen=True)
class Scaling:
    """Values as the network sees them: (raw - offset) / scale, per feature."""

    offset: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None) -> "Scaling | None":
        """Read a scaling from data.json."""
        return None if saved is None else cls(np.array(saved["offset"]), np.array(saved["scale"]))

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Scale rows. A value too far from the training rows for float64 becomes infinite."""
        with np.errstate(over="ignore"):
            return (raw - self.offset) / self.scale

    def invert(self, value: np.ndarray) -> np.ndarray:
        return value * self.scale + self.offset


@dataclass(frozen=True)
class Dataset:
    train: Split  # of an iterable, only the first rows
    val: Split
    test: Split
    task: Task
    classes: tuple[str, ...]  # the names of the labels, empty for regression
    features: tuple[str, ...]  # the names of the columns of x, empty for images
    x_scaling: Scaling | None = None
    y_scaling: Scaling | None = None
    num_tokens: int = 0  # x has token ids below this number; 0: it has numbers
    # of a table whose rows have ids beside numbers, transforms.ids: of each column; () for others
    ids: tuple[int, ...] = ()
    tokenizer: Tokenizer | None = None  # that made the token ids
    # positions may have no label: the number in the user's y for it, which is -1 here
    no_label: int | None = None
    # between the names of two labels in the text of a sequence; None without such sequences
    separator: str | None = None
    # rows of x and y overlap in memory, so they are read during training
    overlaps: bool = False
    mask_rate: float | None = None  # the share of tokens that are hidden anew in each epoch
    memory: int | None = None  # bytes for rows of x, if x is read from files during training
    target: str | list[str] | None = None  # the names of y's columns
    text_columns: tuple[str, ...] = ()  # the names of a table's columns of text that became tokens
    columns: tuple[Mapping[str, Any], ...] = ()  # the transforms of a table's columns, as JSON
    image_shape: tuple[int, ...] | None = None  # the shape of a row as an image
    folds_sha256: str | None = None  # Splits.folds_sha256, if data.fold is set
    row_names: tuple[str, ...] = ()  # the files of new test rows, if each is one
    warnings: tuple[str, ...] = ()  # about values that are probably mistakes
    stream: Any = None  # the runner.data.iterable.Stream of the training rows, if they are one

    @property
    def streams(self) -> bool:
        """True if x is read from files during training."""
        return self.memory is not None

    @property
    def input_shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.train.x.shape[1:]
        return shape

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of a row of labels: () for one label, (T,) for one at each of T positions."""
        shape: tuple[int, ...] = self.train.y.shape[1:]
        return shape if self.task == "classification" else ()

    @property
    def has_one_label(self) -> bool:
        """True if a row has one label, or targets; False for several labels in places or an
        order."""
        return not self.positions and self.separator is None

    @property
    def num_targets(self) -> int:
        """The number of columns of y; 0 for labels."""
        return 0 if self.classes else int(self.train.y.shape[1])

    def text_of(self, labels: np.ndarray) -> list[str]:
        """Return the text of sequences of labels.  # int64[N, L]"""
        return texts_of(labels, self.classes, self.separator or "")

    def x_range(self) -> dict[str, Any] | None:
        """The smallest and largest unscaled values of x in the training rows: per column if columns
        have names or scales, else of the whole array. None for an iterable, whose rows are not
        known before the training."""
        x = self.train.x
        if self.stream is not None:
            return None
        low, high = x.ranges if self.streams else (x.min(axis=0), x.max(axis=0))
        if self.x_scaling is not None:
            low, high = self.x_scaling.invert(low), self.x_scaling.invert(high)
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if low.ndim != 1 or not (self.features or self.x_scaling):
            low, high = low.min(), high.max()
        return {"low": low.tolist(), "high": high.tolist()}

    def description(self) -> dict[str, Any]:
        """The content of data.json: everything that predictions on new rows need, and hashes of the
        data."""
        is_large = not self.streams and self.train.x.nbytes >= _HASHED
        sha256, values_sha256 = blocks.together(
            lambda: self._sha256(True), lambda: self._sha256(False), is_large=is_large
        )
        scalings = {"x_scaling": self.x_scaling, "y_scaling": self.y_scaling}
        return {
            "task": self.task,
            "classes": list(self.classes),
            "features": list(self.features),
            "target": self.target,
            **({"text_columns": list(self.text_columns)} if self.text_columns else {}),
            "input_shape": list(self.input_shape),
            "num_targets": self.num_targets,
            **({"positions": list(self.positions)} if self.positions else {}),
            **({} if self.no_label is None else {"no_label": self.no_label}),
            **({} if self.separator is None else {"separator": self.separator}),
            **({"num_tokens": self.num_tokens} if self.num_tokens else {}),
            **({"tokenizer": self.tokenizer.saved()} if self.tokenizer else {}),
            "rows": {
                "train": len(self.train) if self.stream is None else None,
                "val": len(self.val),
                "test": len(self.test),
            },
            "sha256": sha256,
            **({"values_sha256": values_sha256} if self.stream is None else {}),
            **({"folds_sha256": self.folds_sha256} if self.folds_sha256 else {}),
            **{
                k: s and {"offset": s.offset.tolist(), "scale": s.scale.tolist()}
                for k, s in scalings.items()
            },
            "x_range": self.x_range(),
            **({"columns": [dict(column) for column in self.columns]} if self.columns else {}),
        }

    def _sha256(self, with_shapes: bool) -> str:
        """Hash the rows. Without shapes, an image has the hash of its flattened row."""
        digest = hashlib.sha256()
        known = (self.train, self.val, self.test) if self.stream is None else (self.val, self.test)
        for split in known:
            if self.streams:
                digest.update(split.x.sha256.encode())
            weight = () if split.weight is None else (split.weight,)
            for array in (split.x.rows if self.streams else split.x, split.y, *weight):
                shape = array.shape if with_shapes else len(array)
                digest.update(repr((shape, array.dtype.str)).encode())
                for block in _blocks(array):
                    digest.update(block)
        return digest.hexdigest()

    def as_images(self) -> "Dataset":
        """Reshape the rows of x to `image_shape`."""
        shape, scaling = self.image_shape, self.x_scaling
        assert shape is not None
        if scaling is not None:  # features become pixels
            scaling = Scaling(scaling.offset[:, None], scaling.scale[:, None])
        images = self._with_x(lambda x: x.reshape(-1, *shape))
        return replace(images, image_shape=None, x_scaling=scaling)

    def _with_x(self, change: Callable[[Any], Any]) -> "Dataset":
        """Change x of each split."""
        train, val, test = (
            replace(split, x=change(split.x)) for split in (self.train, self.val, self.test)
        )
        return replace(self, train=train, val=val, test=test)

    def as_tokens(self, source: str) -> "Dataset":
        """Convert x to token ids. Raise ConfigError if it has other numbers."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        for name, split in splits.items():
            if (bad := first_outside(split.x, 2**31)) is not None:
                value, row = bad
                raise ConfigError(
                    f"{source}: x must have token ids for a model that begins with embedding, "
                    f"whole numbers from 0, got {value:g} in {SPLIT_WORDS[name]} row {row}"
                )
        return self.with_ids(1 + max(int(split.x.max(initial=0)) for split in splits.values()))

    def with_ids(self, num_ids: int) -> "Dataset":
        """Convert ids of tokens or categories to int32; unchanged if there are none."""
        if not num_ids:
            return self
        return replace(self._with_x(lambda x: x.astype(np.int32)), num_tokens=num_ids)

    def with_columns(self, features: Sequence[str]) -> "Dataset":
        """Select these columns of x in this order; unchanged if one of them does not exist."""
        if not features or tuple(features) == self.features or set(features) - set(self.features):
            return self
        which = [self.features.index(name) for name in features]
        scaling = self.x_scaling and Scaling(
            self.x_scaling.offset[which], self.x_scaling.scale[which]
        )
        place = {name: i for i, name in enumerate(features)}
        first = {Transform.read(c).features[0]: c for c in self.columns}
        columns = [first[name] for name in sorted(first.keys() & place, key=place.__getitem__)]
        selected = replace(
            self._with_x(lambda x: x[:, which]),
            features=tuple(features),
            x_scaling=scaling,
            columns=tuple(columns),
        )
        return selected._numbered() if self.num_tokens or self.ids else selected

    def _numbered(self) -> "Dataset":
        """Number the categories of a table anew, in the order of its columns."""
        before = [Transform.read(column) for column in self.columns]
        fitted = transforms.numbered(before)
        shifts = [
            np.full(len(t.features), (t.first_id or 0) - (b.first_id or 0), np.int32)
            for t, b in zip(fitted, before, strict=True)
        ]
        shift = np.concatenate(shifts)
        columns = tuple(transform.as_json() for transform in fitted)
        num = transforms.num_ids(fitted)
        ids = () if num else transforms.ids(fitted)
        moved = self._with_x(lambda x: x + shift)
        return replace(moved, columns=columns, num_tokens=num, ids=ids)


def _blocks(array: np.ndarray) -> Iterator[Any]:
    """Yield the bytes of an array in blocks: rows may be views that overlap."""
    size = max(1, _HASHED // max(1, array[:1].nbytes))
    for first in range(0, len(array), size):
        yield np.ascontiguousarray(array[first : first + size]).data


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Describe how data differs from a run's data.json, the most obvious difference first; None if
    it does not differ."""
    descriptions = {
        "features": "its columns are",
        "target": "its target is",
        "classes": "its classes are",
        "input_shape": "a row's shape is",
        "num_targets": "the number of its targets is",
        "num_tokens": "the number of its tokens is",
        "rows": "its rows are",
    }
    for key, words in descriptions.items():
        if key in before and before[key] != now.get(key):
            current, previous = (_listed(values.get(key)) for values in (now, before))
            return f"{words} {current}, before: {previous}"
    for key, name in (("x_scaling", "x"), ("y_scaling", "y")):
        if before[key] != now[key]:
            return f"mean or variance of {_rescaled(before[key], now[key], now, name)} has changed"
    if before["sha256"] != now["sha256"]:
        return f"its SHA-256 is {now['sha256']}, before: {before['sha256']}"
    return None


def _rescaled(before: Any, now: Any, description: Mapping[str, Any], name: str) -> str:
    """The first column with a different scaling."""
    target = description["target"]
    names = (
        description["features"] if name == "x" else target if isinstance(target, list) else [target]
    )
    if not before or not now or not names or not names[0]:
        return name
    differ = [np.not_equal(before[key], now[key]) for key in ("offset", "scale")]
    return f"column {names[int(np.argmax(np.logical_or(*differ)))]}"


def _listed(value: Any) -> str:
    items = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
    return show(", ".join(map(str, items)) if isinstance(items, list) else items)


def split_rows(
    x: np.ndarray, y: np.ndarray, num_val: int, num_test: int, seed: int
) -> tuple[Split, Split, Split]:
    """Split into train, validation and test rows, in this order, along a permutation of all rows
    that depends only on `seed`."""
    order = permutation(len(x), seed, "split")
    num_train = len(x) - num_val - num_test
    return take(x, y, np.split(order, [num_train, num_train + num_val]))


def take(x: np.ndarray, y: np.ndarray, parts: Sequence[np.ndarray]) -> tuple[Split, Split, Split]:
    """The splits with these rows."""
    train, val, test = (Split(blocks.rows(x, rows), y[rows]) for rows in parts)
    return train, val, test


def standardize(data: Dataset, *, x: bool, y: bool) -> Dataset:
    """Scale every feature (`x`) and target (`y`) to mean 0 and variance 1 over the training rows. A
    constant column is only shifted."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    x_scaling = fit_scaling(data.train.x) if x else None
    y_scaling = fit_scaling(data.train.y) if y else None
    scaled = {
        name: replace(
            s,
            x=x_scaling.apply(s.x) if x_scaling else s.x,
            y=y_scaling.apply(s.y) if y_scaling else s.y,
        )
        for name, s in splits.items()
    }
    scalings = {"x_scaling": x_scaling, "y_scaling": y_scaling}
    return replace(data, **scaled, **scalings)  # type: ignore[arg-type]


_SQUARES = 1e100  # the square of a value beyond this, or below its inverse, may leave float64
_NOISE = 4  # spread of a constant by rounding, in units in the last place of its largest value


def fit_scaling(values: np.ndarray) -> Scaling:
    """Compute mean and standard deviation per column. A column of extreme values is divided by its
    largest value first, so that squares fit into float64. A column with no spread beyond rounding
    is a constant: its offset is its smallest value, its scale 1."""
    is_large = values.size >= blocks.LARGE
    edges, mean = blocks.together(lambda: _edges(values), lambda: _mean(values), is_large=is_large)
    low, high = (edge.astype(np.float64) for edge in edges)
    unit = _unit(low, high)
    if (unit != 1).any():
        values = values / unit
        mean = _mean(values)
    return _scaling(low, high, mean, _deviation(values, mean), unit)


def fit_scaling_in_blocks(read: Callable[[], Iterable[np.ndarray]]) -> Scaling:
    """Compute the scaling of rows that do not fit into memory; the blocks do not change a bit of
    it. For several columns it has the bits of `fit_scaling`. A single column is added row after
    row, while `fit_scaling` adds it in pairs, as NumPy does.

    Args:
        read: returns the blocks of the rows, float64[n, C] each, n > 0; called three times.
    """
    lows, highs, sizes = zip(*((*blocks.edges(block), len(block)) for block in read()), strict=True)
    low, high, num_rows = np.min(lows, axis=0), np.max(highs, axis=0), sum(sizes)
    unit = _unit(low, high)
    mean = _total((block / unit for block in read()), len(low)) / num_rows
    squares = _total((np.square(block / unit - mean) for block in read()), len(low))
    return _scaling(low, high, mean, np.sqrt(squares / num_rows), unit)


def _total(parts: Iterable[np.ndarray], width: int) -> np.ndarray:
    """Add all rows, one after another. NumPy does so only for several columns.

    float64[n, width] each -> float64[width]
    """
    wide = parts if width > 1 else (np.repeat(part, 2, axis=1) for part in parts)
    return blocks.total(wide)[:width]


def _unit(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return what extreme values are divided by; 1 for others.  # float64[C] each"""
    largest = np.maximum(np.abs(low), np.abs(high))
    extreme = (largest > 0) & ((largest > _SQUARES) | (largest < 1 / _SQUARES))
    return np.where(extreme, largest, 1.0)


def _scaling(
    low: np.ndarray, high: np.ndarray, mean: np.ndarray, deviation: np.ndarray, unit: np.ndarray
) -> Scaling:
    """Return the scaling by a mean and a deviation of values that were divided by `unit`."""
    noise = _NOISE * (np.spacing(np.maximum(np.abs(low), np.abs(high))) / unit)
    constant = high / unit - low / unit <= noise
    scale = np.where(constant, 1.0, deviation * unit)
    return Scaling(np.where(constant, low, mean * unit), scale)


def _is_table(values: np.ndarray) -> bool:
    """True if NumPy adds the rows one after another, as runner.data.blocks does."""
    return values.dtype == np.float64 and values.ndim == 2 and values.shape[1] > 1


def _edges(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return blocks.edges(values) if _is_table(values) else (values.min(axis=0), values.max(axis=0))


def _mean(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # of values that are divided first
        if _is_table(values):
            return blocks.mean(values)
        mean: np.ndarray = values.mean(axis=0, dtype=np.float64)
        return mean


def _deviation(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    if _is_table(values):
        return blocks.deviation(values, mean)
    deviation: np.ndarray = values.std(axis=0, dtype=np.float64)
    return deviation


def check(x: np.ndarray, y: np.ndarray, source: str) -> None:
    """Refuse empty, mismatched or non-finite arrays; errors name row and column, counted from
    0."""
    if len(x) == 0:
        raise ConfigError(f"{source} holds no rows")
    if len(x) != len(y):
        raise ConfigError(f"{source}: x has {len(x)} rows, y has {len(y)}")
    check_finite("x", x, source)
    check_finite("y", y, source)


def check_classes(data: Dataset, source: str) -> None:
    """Refuse labels of a single class."""
    if data.task == "classification":
        labels = np.flatnonzero(np.bincount(data.train.y.ravel() + 1)[1:])  # without -1, for none
        if len(labels) == 1:
            where = "" if len(data.classes) == 1 else "the training rows of "
            column = "y" if data.target is None else f"column {show(data.target)}"
            raise ConfigError(
                f"{where}{source}: {column} has a single class, {show(data.classes[labels[0]])}; "
                "classification needs two; use data.task=regression to predict numbers"
            )


def first_outside(values: np.ndarray, num: int) -> tuple[Any, int] | None:
    """Return the first value that is no whole number from 0 to `num` - 1, and its row; None if
    there is none."""
    bad = (values < 0) | (values >= num) | (values != np.rint(values))
    return (values[bad][0], int(np.argwhere(bad)[0][0])) if bad.any() else None


def check_ids(x: np.ndarray, ids: Sequence[int], features: Sequence[str], source: str) -> None:
    """Refuse ids beside numbers that are none of the data's. `ids` is Dataset.ids."""
    for column, (num, name) in enumerate(zip(ids, features, strict=False)):
        if num and (bad := first_outside(x[:, column], num)) is not None:
            value, row = bad
            raise ConfigError(
                f"{source}: x must have ids from 0 to {num - 1} in column {name}, got {value:g} in "
                f"row {row}"
            )


def check_finite(name: str, values: np.ndarray, source: str, first_row: int = 0) -> None:
    """Refuse NaN and infinity; the error names the first one's row and column, counted from 0."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))[0]
        row, *rest = (int(i) for i in bad)
        column = f"{name}{rest}" if rest else name
        raise ConfigError(
            f"{source}: row {first_row + row}, column {column} is {values[tuple(bad)]}; all "
            f"values must be finite"
        )


def check_range(data: Dataset, dtype: np.dtype) -> None:
    """Refuse scaled values that `dtype` cannot represent."""
    largest, least = float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)
    for split in (data.train, data.val, data.test):
        sizes = [a.largest if hasattr(a, "largest") else largest_of(a) for a in (split.x, split.y)]
        for name, size in zip("xy", sizes, strict=True):
            if size > largest:
                raise ConfigError(
                    f"data: {name} has values up to {size:g}, too large for {dtype.name}"
                )
            if 0 < size < least:
                raise ConfigError(
                    f"data: {name} has no value above {size:g}, which {dtype.name} rounds to 0"
                )


def largest_of(values: np.ndarray) -> float:
    """The largest absolute value; 0 for an empty array."""
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))
