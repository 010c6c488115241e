"""Tables that were passed in Python: DataFrames, Arrow tables, dicts of columns, lists of
records."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runner.data.columns import Columns
from runner.data.dataset import Dataset
from runner.data.files import regular_file
from runner.data.splits import SPLITS, named_splits
from runner.data.table_files import TableFile
from runner.errors import ConfigError, one_line, show
from runner.section import Holder

_OF_ARRAYS = {"x", "y", "group", "time"}  # the keys of a dict that is no table


@dataclass(frozen=True)
class Frames:
    """The table of each split that was passed; at least "train"."""

    splits: Mapping[str, Any]  # pyarrow.Table
    name: str = "data"  # in an error
    choice: str = "frame"  # data=frame


def frames(data: Any) -> Frames | None:
    """Convert the argument `data` of runner.train: a table, or a mapping of the splits train, val
    and test to tables. Return None if it is none of these. Raises ConfigError."""
    if isinstance(data, Mapping) and "train" in data:
        data = named_splits(data)
    is_split = isinstance(data, Mapping) and "train" in data and set(data) <= set(SPLITS)
    named = {f"data[{key!r}]": data[key] for key in data} if is_split else {"data": data}
    tables = {name: arrow_table(value, name) for name, value in named.items()}
    if any(table is None for table in tables.values()):
        return None
    return Frames(dict(zip(data if is_split else ["train"], tables.values(), strict=True)))


def arrow_table(data: Any, name: str) -> Any:
    """Convert a table to a pyarrow.Table; None if `data` is no table.

    A table is an object with the Arrow interface `__arrow_c_stream__` (Polars, pyarrow, DuckDB), a
    pandas DataFrame, whose index is left out, a data set of Hugging Face, if each of its features
    is a number, a text, a truth value or a date, a NumPy array with named fields, a dict of
    columns, or a list of dicts, one per row, in which a missing key is a missing cell. Columns of
    Python objects become text if they mix types, so that the errors of a file's cells apply.

    Raises:
        ConfigError: a column has no cells that a table can have; `name` is the argument.
    """
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        columns = [data.iloc[:, i] for i in range(data.shape[1])]
        return _table(zip(map(str, data.columns), columns, strict=True), name)
    if hasattr(data, "__arrow_c_stream__") and not hasattr(data, "name"):  # a Series has a name
        return _of_arrow(data, name)
    if hasattr(data, "with_format") and hasattr(data, "features") and hasattr(data, "__len__"):
        return _of_columns(data)
    if isinstance(data, np.ndarray) and data.dtype.names:
        return _table([(key, data[key]) for key in data.dtype.names], name)
    if isinstance(data, Mapping):
        is_table = not (_has_arrays(data) or set(data) <= _OF_ARRAYS) and "train" not in data
        return _table(data.items(), name) if is_table else None
    if _are_records(data):
        keys = dict.fromkeys(key for record in data for key in record)
        return _table([(key, [record.get(key) for record in data]) for key in keys], name)
    return None


def _are_records(data: Any) -> bool:
    """Return whether it is a list of dicts; those of arrays x and y are rows of a data set."""
    if not isinstance(data, list | tuple) or not data:
        return False
    if not all(isinstance(record, Mapping) for record in data):
        return False
    return not _has_arrays(data[0])


def _has_arrays(fields: Mapping[str, Any]) -> bool:
    """Return whether a dict has the fields x and y of arrays, and no columns of a table."""
    return {"x", "y"} <= set(fields) <= {*_OF_ARRAYS, "weight"}


def _of_columns(data: Any) -> Any:
    """Convert a data set of Hugging Face; None if it has images, sequences or arrays."""
    import pyarrow as pa

    is_nested = any(pa.types.is_nested(column.type) for column in data.features.arrow_schema)
    return None if is_nested else of_hugging_face(data)


def of_hugging_face(data: Any) -> Any:
    """Convert a data set of the library `datasets` to a pyarrow.Table with the names of its
    ClassLabels. Images, sequences and arrays become columns that are no cells."""
    import pyarrow as pa

    table = data.with_format("arrow")[:]
    for i, name in enumerate(table.column_names):
        names = getattr(data.features[name], "names", None)
        if names is not None:
            codes = table.column(i).to_pylist()  # -1: no label
            texts = [None if code is None or code < 0 else names[code] for code in codes]
            table = table.set_column(i, name, pa.array(texts, pa.string()))
    return table


def _of_arrow(data: Any, name: str) -> Any:
    import pyarrow as pa

    try:
        return pa.table(data)
    except Exception as error:  # other libraries raise errors of their own
        raise ConfigError(
            f"{name} must be a table, got {type(data).__name__}: {show(one_line(error))}"
        ) from None


def _table(columns: Any, name: str) -> Any:
    import pyarrow as pa

    names, arrays = [], []
    for key, values in columns:
        if not isinstance(key, str):
            raise ConfigError(f"{name}: the name of a column must be text, got {show(key)}")
        names.append(key)
        arrays.append(_column(key, values, name))
        if len(arrays[-1]) != len(arrays[0]):
            raise ConfigError(
                f"{name}: the columns of a table have the same length, got {len(arrays[0])} cells "
                f"in {show(names[0])} and {len(arrays[-1])} in {show(key)}"
            )
    return pa.table(arrays, names=names)


def _column(key: str, values: Any, name: str) -> Any:
    """Convert a column to a pyarrow.Array."""
    import pyarrow as pa

    if hasattr(values, "detach"):  # a tensor of torch
        values = values.detach().cpu()
    if not isinstance(values, Sequence) and not hasattr(values, "dtype"):
        values = np.asarray(values)
    shape = getattr(values, "shape", None)
    if isinstance(values, str | bytes) or (shape is not None and len(shape) != 1):
        got = show(values) if shape is None else f"the shape {list(shape)}"
        raise ConfigError(
            f"{name} must be (x, y), or a table with one cell per row in each column, got {got} in "
            f"{show(key)}"
        )
    if hasattr(values, "numpy") and not hasattr(values, "to_numpy"):  # a tensor
        values = np.asarray(values)
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, OverflowError):
        return pa.array([_text(cell, key, name) for cell in values], pa.string())


def _text(cell: Any, key: str, name: str) -> str | None:
    """Return a cell of a column of several types as a file has it."""
    if cell is None or isinstance(cell, str):
        return cell
    if not hasattr(cell, "__len__"):
        return None if str(cell) in ("nan", "NaT", "<NA>") else str(cell)
    raise ConfigError(
        f"{name}: column {show(key)} must have one value per row, got "
        f"{type(cell).__name__} {show(cell)}"
    )


@dataclass(frozen=True)
class FrameFile(TableFile):
    """A table in memory, with the interface of a file."""

    table: Any = None

    @cached_property
    def kind(self) -> str:
        return "arrow"

    @property
    def known_rows(self) -> int | None:
        num: int = self.table.num_rows
        return num

    def _schema(self) -> Any:
        return self.table.schema

    def _read(self, columns: Sequence[str], as_text: Any) -> Any:
        return self.table.select(list(columns))


class Frame(Columns, Holder):
    """A table that was passed in Python, runner.train(data=frame): its columns are used as those of
    data=table. `val_fraction` and `test_fraction` are 0 for a split that was passed."""

    name: Literal["frame"]

    @property
    def path(self) -> str:
        """The name of the training rows in an error."""
        return _name("train", self.given)

    @property
    def own_paths(self) -> dict[str, str]:
        """The splits that were passed -> their names in an error."""
        passed = {} if self.given is None else self.given.splits
        return {split: _name(split, self.given) for split in SPLITS[1:] if split in passed}

    def load(self) -> Dataset:
        if self.given is None:
            raise ConfigError(
                "data=frame is a table that was passed in Python, and is in no file; use "
                "runner.train, runner.resume or runner.load_run with data=..."
            )
        return super().load()

    def file(self, path: str | Path, key: str = "data.path") -> TableFile:
        """Return the table of a split by its name in an error, or open a file with new rows."""
        passed = {} if self.given is None else self.given.splits
        for split, table in passed.items():
            if path == _name(split, self.given):
                return FrameFile(Path(path), table=table)
        return TableFile(regular_file(path, key))


def _name(split: str, given: Frames | None) -> str:
    if given is None:
        return "data"
    return given.name if len(given.splits) == 1 else f"{given.name}[{split!r}]"
