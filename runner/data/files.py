"""A user's own files: NPZ and CSV, checked before anything trains."""

import csv
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runner import own_code
from runner.data.dataset import Dataset, Task, check, num_held_out, split_rows, standardize
from runner.errors import ConfigError, nearest, show
from runner.section import Fraction, Index, Section


class _Rows(Section):
    task: Task
    val_fraction: Fraction
    test_fraction: Fraction
    split_seed: Index
    standardize: bool

    def _dataset(
        self, source: str, x: np.ndarray, y: np.ndarray, classes: Sequence[str], columns: tuple[str, ...]
    ) -> Dataset:
        """Rows -> splits, drawn with `split_seed`."""
        check(x, y, source, columns)
        held_out = num_held_out(len(x), self.val_fraction, self.test_fraction, source)
        splits = split_rows(x, y, *held_out, self.split_seed)
        data = Dataset(*splits, task=self.task, classes=tuple(classes), features=columns)
        return standardize(data, x=True, y=self.task == "regression") if self.standardize else data

    def _of_arrays(self, source: str, x: np.ndarray, y: np.ndarray) -> Dataset:
        x = as_float(x, "x", source)
        if x.ndim < 2 or 0 in x.shape[1:]:
            raise ConfigError(f"{source}: x must hold a row of values per sample, got the shape {list(x.shape)}")
        return self._dataset(source, x, *as_targets(y, self.task, source), ())


class _File(_Rows):
    path: str

    def _exists(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise ConfigError(f"data.path must be a file, got {self.path}, which is not there")
        return path


class NPZ(_File):
    """Arrays `x` [N, ...] (numbers; images channels last) and `y`: labels 0 ... C-1 (integers [N]) for classification,
    targets ([N] or [N, C]) for regression. `standardize` scales by the training rows."""

    name: Literal["npz"]

    def load(self) -> Dataset:
        arrays = read_npz(self._exists())
        for name in ("x", "y"):
            if name not in arrays:
                raise ConfigError(f"{self.path} must hold arrays x and y, got {', '.join(sorted(arrays)) or 'none'}")
        return self._of_arrays(self.path, arrays["x"], arrays["y"])


class Python(_Rows):
    """What a function of your own gives, called with `args`: x and y, as data=npz takes them. Its module is one that
    `trusted_modules` names."""

    name: Literal["python"]
    function: str
    args: dict[str, Any]

    def load(self) -> Dataset:
        try:
            given = own_code.call(self.function, **self.args)
        except ValueError as error:
            raise ConfigError(f"data.{error}") from error
        try:
            x, y = map(np.asarray, given)
        except (TypeError, ValueError):
            raise ConfigError(f"data.function {self.function} must give x and y, got {show(given)}") from None
        return self._of_arrays(self.function, x, y)


class CSV(_File):
    """A header, then one row a line: numbers, and the column `target` (null: the last one). For classification any text
    is a label; labels are sorted (as numbers, if all are). `standardize` scales by the training rows."""

    name: Literal["csv"]
    target: str | None

    def load(self) -> Dataset:
        header, rows = read_csv(self._exists())
        target = header[-1] if self.target is None else self.target
        if target not in header:
            raise ConfigError(f"data.target must be a column of {self.path}, got {target}{nearest(target, header)}")
        at = header.index(target)
        columns = tuple(name for name in header if name != target)
        if not columns:
            raise ConfigError(f"{self.path} holds no column but the target {target}")
        x = numbers(header, rows, [i for i in range(len(header)) if i != at], self.path)
        if self.task == "regression":
            y = numbers(header, rows, [at], self.path)
            check(y, y, self.path, (target,))  # here its column has a name
            return self._dataset(self.path, x, y, (), columns)
        labels = [row[at] for row in rows]
        if "" in labels:
            raise ConfigError(f"{self.path}: row {labels.index('')}, column {target} is empty; a label is needed")
        classes = sorted(set(labels), key=_label_key(labels))
        number = {label: i for i, label in enumerate(classes)}
        return self._dataset(
            self.path, x, np.array([number[label] for label in labels], dtype=np.int64), classes, columns
        )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file; pickles are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read as NPZ: {error}") from None


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows; every row as long as the header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV in UTF-8: {error}") from None
    if not lines:
        raise ConfigError(f"{path} is empty")
    header, *rows = lines
    if len(set(header)) != len(header):
        raise ConfigError(f"{path}: a column name stands twice in the header: {', '.join(header)}")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ConfigError(f"{path}: row {i} has {len(row)} cells, the header has {len(header)}")
    return header, rows


def numbers(header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int], source: object) -> np.ndarray:
    """float64[rows, columns] of the cells; the first that is no number is named."""
    try:
        return np.array([[float(row[j]) for j in columns] for row in rows], dtype=np.float64).reshape(-1, len(columns))
    except ValueError:
        i, j = next((i, j) for i, row in enumerate(rows) for j in columns if not _is_number(row[j]))
        raise ConfigError(f"{source}: row {i}, column {header[j]} is {rows[i][j]!r}; a number is needed") from None


def as_float(values: np.ndarray, name: str, source: object) -> np.ndarray:
    if values.dtype.kind not in "iufb" or values.ndim == 0:
        raise ConfigError(
            f"{source}: {name} must be an array of numbers, got {values.dtype} of shape {list(values.shape)}"
        )
    small = values.dtype.itemsize <= (4 if values.dtype.kind == "f" else 2)  # what float32 holds exactly stays as small
    return values.astype(np.float32 if small else np.float64, copy=False)


def as_targets(y: np.ndarray, task: Task, source: object) -> tuple[np.ndarray, tuple[str, ...]]:
    """Targets float64[N, C] and no classes; or labels 0 ... C-1, int64[N], and the classes' names."""
    if task == "regression":
        return as_float(y, "y", source).astype(np.float64).reshape(len(y), -1), ()
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError(f"{source}: y must be labels, integers of shape [N], got {y.dtype} of shape {list(y.shape)}")
    if len(y) and y.min() < 0:
        raise ConfigError(f"{source}: row {int(y.argmin())}, column y is {y.min()}; labels count from 0")
    if len(y) and y.max() >= len(y):
        row, more = int(y.argmax()), f"that is more classes than the {len(y)} rows"
        raise ConfigError(f"{source}: row {row}, column y is {y.max()}; labels count from 0, {more}")
    return y.astype(np.int64), tuple(str(label) for label in range(int(y.max(initial=0)) + 1))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _label_key(labels: Sequence[str]) -> Callable[[str], Any]:
    """By number, if all are; labels of one number (1 and 1.0) by their text, so that the order is always the same."""
    if all(_is_number(label) and math.isfinite(float(label)) for label in labels):
        return lambda label: (float(label), label)
    return str
