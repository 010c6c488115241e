"""Map-style data sets of the user's own: rows by number, `data[i]` for i from 0 to len(data) - 1.

torch's Datasets, Hugging Face's datasets and Grain's sources are such. A row is (x, y), (x, y,
group), or a dict of fields.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from runner import user_code
from runner.data.dataset import check_finite
from runner.data.files import as_stored
from runner.data.stream import StreamedRows
from runner.errors import ConfigError, RunError, listed, one_line, show

_BLOCK = 16 * 2**20  # bytes of rows that are stacked at a time
_MOST_ROWS = 1024  # in a block
_FIELDS = ("x", "y", "group", "time", "weight")  # of a row that is a dict, if no keys choose others


def is_map_style(data: Any) -> bool:
    """Return whether rows are read from an object by number. Arrays, lists and dicts are not."""
    has_rows = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    # torch's IterableDataset inherits a __getitem__ that raises an error
    has_rows = has_rows and all(cls.__name__ != "IterableDataset" for cls in type(data).__mro__)
    return has_rows and not isinstance(data, Sequence | Mapping) and not hasattr(data, "dtype")


class Fields(NamedTuple):
    """All rows of a data set."""

    x: Any  # an array, or the rows to read while training: MapRows
    y: np.ndarray
    group: np.ndarray | None
    time: np.ndarray | None
    weight: np.ndarray | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Records:
    """The fields of rows that are objects of the user's own code.

    Attributes:
        source: the name of the data set in an error.
        module: the module that the user's file has in an error.
        inputs: the field of x, or a list of fields that are joined to a vector; None: x.
        target: the field of y; None: y.
        unit: what one object is: a row, or a batch with an axis of rows.
    """

    source: str
    module: str = ""
    inputs: str | Sequence[str] | None = None
    target: str | None = None
    unit: str = "row"

    def choose(self, inputs: str | Sequence[str] | None, target: str | None) -> Self:
        return replace(self, inputs=inputs, target=target)

    def blame(self, error: Exception) -> str:
        """Describe an error of the user's code in one line."""
        return user_code.blame(error, self.module) if self.module else one_line(repr(error))

    def fields(self, number: int, value: Any) -> dict[str, np.ndarray]:
        """Return the fields of an object, the `number`-th."""
        if isinstance(value, Mapping):
            named = self._chosen(number, value)
        elif self.inputs is not None or self.target is not None:
            raise ConfigError(
                f"data.inputs and data.target must be null for rows without names, and "
                f"{self.unit} {number} of {self.source} is a {type(value).__name__}"
            )
        elif isinstance(value, tuple | list) and len(value) in (2, 3):
            named = dict(zip(_FIELDS, value, strict=False))
        else:
            raise ConfigError(
                f"{self.source}: {self.unit} {number} must be (x, y), (x, y, group) or a dict of "
                f"fields, got {type(value).__name__}"
            )
        return {name: self._array(number, name, item) for name, item in named.items()}

    def _chosen(self, number: int, value: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the fields of an object that is a dict."""
        inputs = "x" if self.inputs is None else self.inputs
        names = [inputs] if isinstance(inputs, str) else list(inputs)
        target = "y" if self.target is None else self.target
        for key, name in (*(("inputs", name) for name in names), ("target", target)):
            if name not in value:
                raise ConfigError(
                    f"data.{key} must be a field of the rows of {self.source}, {listed([*value])}, "
                    f"got {show(name)}"
                )
        x: Any = value[names[0]]
        if not isinstance(inputs, str):
            parts = (self._array(number, name, value[name]) for name in names)
            x = np.concatenate([self._flat(part) for part in parts], axis=-1)
        used = {*names, target}
        more = {name: value[name] for name in _FIELDS[2:] if name in value and name not in used}
        return {"x": x, "y": value[target], **more}

    def _flat(self, field: np.ndarray) -> np.ndarray:
        """Flatten each row of a field to a vector."""
        return field.ravel() if self.unit == "row" else field.reshape(len(field), -1)

    def _array(self, number: int, name: str, value: Any) -> np.ndarray:
        if hasattr(value, "detach"):  # a tensor of torch that is part of a graph
            value = value.detach()
        array = np.asarray(value)
        if hasattr(value, "getbands") and array.ndim == 2:  # a grey image of Pillow
            array = array[:, :, None]
        if array.dtype.kind not in ("iufbUM" if name != "x" else "iufb"):
            kind = f"array of {array.dtype}" if array.ndim else f"{type(value).__name__}"
            raise ConfigError(
                f"{self.source}: {name} of {self.unit} {number} must be numbers, got "
                f"{show(value)} ({kind})"
            )
        if self.unit == "batch" and array.ndim == 0:
            raise ConfigError(
                f"{self.source}: {name} of batch {number} must have an axis of rows, got "
                f"{show(value)}; data.batched=false reads single rows"
            )
        return array


@dataclass(frozen=True)
class MapStyle(Records):
    """A map-style data set and the fields of its rows."""

    data: Any = field(repr=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.data)

    def read(self, rows: Iterable[int]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the fields of rows in the requested order."""
        numbers = [int(row) for row in rows]
        try:
            several = getattr(self.data, "__getitems__", None)
            values = several(numbers) if several else (self.data[row] for row in numbers)
            for row, value in zip(numbers, values, strict=True):
                yield self.fields(row, value)
        except ConfigError:
            raise
        except Exception as error:  # the user's code
            what = show(self.blame(error))
            raise ConfigError(f"{self.source}: reading a row raised {what}") from error

    def load(self, streams: bool) -> Fields:
        """Read all rows once. If it `streams`, x is not kept, and is read again while training."""
        num = len(self)
        if num == 0:
            raise ConfigError(f"{self.source} holds no rows")
        (first,) = self.read([0])
        stack = (_Scan if streams else _Stack)(self, num, first["x"])
        others: dict[str, list[np.ndarray]] = {name: [] for name in first if name != "x"}
        size = max(1, min(_MOST_ROWS, _BLOCK // max(1, first["x"].nbytes)))
        is_same = True
        for begin in range(0, num, size):
            block = []
            for i, row in enumerate(self.read(range(begin, min(begin + size, num))), begin):
                self._check(i, row, first)
                block.append(row["x"])
                for name, values in others.items():
                    values.append(row[name])
            if begin == 0:
                is_same = np.array_equal(block[0], first["x"], equal_nan=True)
            stack.add(begin, np.stack(block))
        stacked = {name: np.stack(values) for name, values in others.items()}
        return Fields(
            stack.rows(),
            self._labels(stacked["y"]),
            stacked.get("group"),
            stacked.get("time"),
            stacked.get("weight"),
            () if is_same else (self._differs(),),
        )

    def _check(
        self, row: int, fields: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray]
    ) -> None:
        """Refuse a row with other fields or another shape than the first one."""
        if fields.keys() != first.keys():
            raise ConfigError(
                f"{self.source}: row {row} has the fields {listed([*fields])}, row 0 has "
                f"{listed([*first])}"
            )
        for name, value in fields.items():
            if value.shape != first[name].shape:
                raise ConfigError(
                    f"{self.source}: {name} of row {row} has the shape {list(value.shape)}, of row "
                    f"0 {list(first[name].shape)}; all rows must have one shape"
                )

    def _labels(self, y: np.ndarray) -> np.ndarray:
        """Return the names of labels that a data set of Hugging Face numbers."""
        features = getattr(self.data, "features", None)
        label = features.get(self.target or "y") if isinstance(features, Mapping) else None
        names = getattr(label, "names", None)
        if names is None or y.dtype.kind != "i" or y.ndim != 1:
            return y
        if (unknown := np.flatnonzero((y < 0) | (y >= len(names)))).size:
            raise ConfigError(f"{self.source}: row {unknown[0]} has no label, {y[unknown[0]]}")
        return np.array(names)[y]

    def _differs(self) -> str:
        return (
            f"{self.source}: row 0 is different when it is read again; a run repeats and resumes "
            f"exactly only if a row depends on nothing but its number (data.augment changes images)"
        )


class _Stack:
    """Rows in memory."""

    def __init__(self, origin: MapStyle, num: int, first: np.ndarray) -> None:
        self.values = np.empty((num, *first.shape), first.dtype)

    def add(self, begin: int, block: np.ndarray) -> None:
        common = np.result_type(self.values, block)
        self.values = self.values.astype(common, copy=False)
        self.values[begin : begin + len(block)] = block

    def rows(self) -> np.ndarray:
        return self.values


class _Scan:
    """The hash and the range of rows that are not kept."""

    def __init__(self, origin: MapStyle, num: int, first: np.ndarray) -> None:
        self.origin, self.num, self.first = origin, num, first
        self.low, self.high, self.digest = math.inf, -math.inf, hashlib.sha256()
        self.digest.update(repr((num, first.shape, first.dtype.str)).encode())

    def add(self, begin: int, block: np.ndarray) -> None:
        if block.dtype != self.first.dtype:
            raise ConfigError(
                f"{self.origin.source}: x of rows {begin} to {begin + len(block) - 1} has the type "
                f"{block.dtype}, of row 0 {self.first.dtype}; data.memory_mb needs one type"
            )
        if not block.size:
            return
        check_finite("x", block, self.origin.source, first_row=begin)
        self.low, self.high = min(self.low, float(block.min())), max(self.high, float(block.max()))
        self.digest.update(np.ascontiguousarray(block).data)

    def rows(self) -> "MapRows":
        return MapRows(
            rows=np.arange(self.num),
            dtype=as_stored(self.first.dtype),
            extent=(self.low, self.high),
            sha256=self.digest.hexdigest(),
            origin=self.origin,
            stored_shape=self.first.shape,
        )


@dataclass(frozen=True)
class MapRows(StreamedRows):
    """Rows of x that are read from a map-style data set when they are needed."""

    origin: MapStyle
    stored_shape: tuple[int, ...]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.stored_shape

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        """Read rows in the requested order.  # int64[n] -> dtype[n, ...]"""
        rows = self.rows[which]
        values = np.empty((len(rows), *self.row_shape), self.dtype)
        try:
            for i, fields in enumerate(self.origin.read(rows)):
                if fields["x"].shape != self.row_shape:
                    raise ConfigError(
                        f"{self.origin.source}: x of row {rows[i]} has the shape "
                        f"{list(fields['x'].shape)}, and had {list(self.row_shape)} before"
                    )
                values[i] = fields["x"]
        except ConfigError as error:  # the run has begun
            raise RunError(error) from error
        return values
