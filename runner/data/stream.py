"""Data larger than memory: rows are read during training, from .npy files or by other sources."""

import hashlib
import math
import os
import re
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

import numpy as np

from runner.data.dataset import (
    AlignedTask,
    Dataset,
    Split,
    check_classes,
    check_finite,
    take,
)
from runner.data.files import (
    Channels,
    as_targets,
    channels_last,
    check_channels,
    locate,
    numbers_as_labels,
    seems_channels_first,
    unscaled,
)
from runner.data.splits import Splits
from runner.errors import ConfigError, RunError, one_line
from runner.section import Count, Mark

_BLOCK = 16 * 2**20  # bytes to read at a time in a pass over all rows


@dataclass(frozen=True)
class StreamedRows(ABC):
    """Rows that are read when they are needed, so that memory holds only those that were read."""

    rows: np.ndarray  # int64[N], the numbers of these rows among all rows, in order
    dtype: np.dtype
    extent: tuple[float, float]  # smallest and largest value of all rows
    sha256: str  # hash of all values

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def largest(self) -> float:
        """The largest absolute value of all rows."""
        return max(-self.extent[0], self.extent[1])

    @property
    def ranges(self) -> tuple[Any, Any]:
        """The smallest and largest values, of all rows, or of the columns of the training rows."""
        return self.extent

    @property
    @abstractmethod
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a row as it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.row_shape)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape)) * self.dtype.itemsize

    @abstractmethod
    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        """Read rows in the requested order.  # int64[n] -> dtype[n, ...]"""

    def taken(self, which: np.ndarray) -> Self:
        """Return some of the rows without reading them."""
        return replace(self, rows=self.rows[which])

    def block_size(self, memory: int, unit: int, most: int | None = None) -> int:
        """Return how many rows to read at a time: at most _BLOCK bytes, and a quarter of `memory`,
        if one row is not larger; a multiple of `unit` rows, if so many fit; at most `most`."""
        size = max(1, min(_BLOCK, memory // 4) // self.row_bytes)
        size = size if most is None else min(size, most)
        return size - (size % unit if size > unit else 0)

    def blocks(self, memory: int, unit: int) -> Iterator[np.ndarray]:
        """Iterate over all rows in blocks of `block_size`."""
        size = self.block_size(memory, unit)
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def scanned(self, memory: int) -> Self:
        """Return the rows with their smallest and their largest value."""
        ends = [(float(b.min()), float(b.max())) for b in self.blocks(memory, 1)]
        lows, highs = zip(*ends, strict=True) if ends else ((0.0,), (0.0,))
        return replace(self, extent=(min(lows), max(highs)))

    def converted(self, which: np.ndarray, dtype: np.dtype, memory: int) -> np.ndarray:
        """Read rows in the requested order, in another dtype. Rows in their own dtype take at most
        an eighth of `memory` at a time, if one row is not larger.  # int64[n] -> dtype[n, ...]"""
        if dtype == self.dtype:
            return self[which]
        values = np.empty((len(which), *self.row_shape), dtype)
        size = max(1, memory // 8 // self.row_bytes)
        for first in range(0, len(which), size):
            values[first : first + size] = self[which[first : first + size]]
        return values


@dataclass(frozen=True)
class FileRows(StreamedRows):
    """Rows of an array that is stored in .npy files, concatenated along the first axis. A file is
    mapped only while rows are read from it."""

    files: tuple[Path, ...]
    starts: np.ndarray  # int64[files], the number of the first row of each file
    stored_shape: tuple[int, ...]  # of a row in the files
    channels: Channels

    @property
    def row_shape(self) -> tuple[int, ...]:
        first, rest = self.stored_shape[:1], self.stored_shape[1:]
        return (*rest, *first) if self.channels == "first" else self.stored_shape

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        """Read rows in the requested order; each file is read from front to back.

        int64[n] -> dtype[n, ...]
        """
        rows = self.rows[which]
        values = np.empty((len(rows), *self.row_shape), self.dtype)
        file_of = np.searchsorted(self.starts, rows, side="right") - 1
        for i in np.unique(file_of):
            positions = np.flatnonzero(file_of == i)
            positions = positions[np.argsort(rows[positions])]
            stored = _mapped(self.files[i])[rows[positions] - self.starts[i]]
            values[positions] = channels_last(stored) if self.channels == "first" else stored
        return values


@dataclass(frozen=True)
class StoredRows(StreamedRows):
    """Rows in a temporary file without a name, which the system frees when the process ends,
    however it ends. It is mapped only while rows are read from it."""

    stored_shape: tuple[int, ...]  # of a row in the file
    file: IO[bytes] = field(repr=False)  # dtype[all rows, ...]; closed with the last of these rows

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.stored_shape

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        """Read rows in the requested order.  # int64[n] -> dtype[n, ...]"""
        return read_stored(self.file, self.dtype, self.stored_shape, self.rows[which])


def read_stored(
    file: IO[bytes], dtype: np.dtype, shape: Sequence[int], rows: np.ndarray
) -> np.ndarray:
    """Read rows of a file in the requested order; the file is read from front to back.

    int64[n] -> dtype[n, *shape]
    """
    order = np.argsort(rows)
    values = np.empty((len(rows), *shape), dtype)
    if len(rows):
        values[order] = np.memmap(file, dtype, "r").reshape(-1, *shape)[rows[order]]
    return values


class RowFile:
    """A temporary file of rows, which lives as long as its descriptor `file`, and the hash `digest`
    of what is in it. `what`, with all rows, needs `num_bytes`."""

    def __init__(self, num_bytes: int, what: str) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.digest = hashlib.sha256()
        self._num_bytes, self._what = num_bytes, what

    def append(self, block: np.ndarray) -> None:
        """Write a block of rows. Raise RunError if the disk is full."""
        content = np.ascontiguousarray(block).data
        self.digest.update(content)
        with explained(self._num_bytes, self._what):
            self.file.write(content)
            self.file.flush()


@contextmanager
def explained(num_bytes: int, what: str) -> Iterator[None]:
    """Raise RunError if the disk is full, while `what` is written to a temporary file."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"data.memory_mb: {what} need {num_bytes} bytes in the folder for temporary files, "
            f"{tempfile.gettempdir()}: {error.strerror}; TMPDIR=FOLDER before the command chooses "
            f"another folder"
        ) from error


class NPY(Splits):
    """A folder with `x.npy` [N, ...] (numbers) and `y.npy`, or with parts of them: `x_0.npy`,
    `y_0.npy`, `x_1.npy`, ... y, and images with `channels`, are as in data=npz.

    Only y is held in memory. Rows of x are read during training, one chunk ahead. `memory_mb` (in
    2^20 bytes) limits the memory of these rows, three chunks."""

    name: Literal["npy"]
    path: Annotated[str, Mark(on_run=True)]
    channels: Channels
    task: AlignedTask
    memory_mb: Count

    def load(self) -> Dataset:
        folder, mode = locate(self.path, "folder")
        if not stat.S_ISDIR(mode):
            raise ConfigError(f"data.path must be a folder, got {self.path}, which is not a folder")
        files = _parts(folder)
        targets = [_mapped(x.with_name(f"y{x.name[1:]}")) for x in files]
        arrays = [_mapped(x) for x in files]
        for file, x, y in zip(files, arrays, targets, strict=True):
            if x.ndim < 2 or x.dtype.kind not in "iufb" or 0 in x.shape[1:]:
                raise ConfigError(
                    f"{file}: x must hold a row of numbers per sample, got {x.dtype} of "
                    f"shape {list(x.shape)}"
                )
            if (x.shape[1:], x.dtype) != (arrays[0].shape[1:], arrays[0].dtype):
                raise ConfigError(
                    f"{file}: rows are {x.dtype}{list(x.shape[1:])}, in {files[0].name} "
                    f"{arrays[0].dtype}{list(arrays[0].shape[1:])}"
                )
            if y.ndim == 0 or (y.shape[1:], y.dtype.kind) != (
                targets[0].shape[1:],
                targets[0].dtype.kind,
            ):
                first, other = (f"{a.dtype}{list(a.shape)}" for a in (targets[0], y))
                raise ConfigError(
                    f"{file}: y must hold a value or row per sample, of the same type and shape in "
                    f"all parts, got {other} and {first}"
                )
            if len(x) != len(y):
                raise ConfigError(f"{file}: x has {len(x)} rows, y has {len(y)}")
        return self._dataset(files, arrays, np.concatenate(targets))

    def _dataset(
        self, files: Sequence[Path], arrays: Sequence[np.ndarray], y: np.ndarray
    ) -> Dataset:
        starts = np.cumsum([0, *(len(x) for x in arrays)])
        if starts[-1] == 0:
            raise ConfigError(f"{self.path} holds no rows")
        check_channels(arrays[0].shape, self.channels, self.path)
        extent, sha256 = _scan(files, arrays)
        y, classes = as_targets(y, self.task, self.path, arrays[0].shape[1:])
        check_finite("y", y, self.path)
        rows = np.arange(len(y))
        all_rows = FileRows(
            files=tuple(files),
            starts=starts[:-1],
            rows=rows,
            stored_shape=arrays[0].shape[1:],
            channels=self.channels,
            dtype=arrays[0].dtype,
            extent=extent,
            sha256=sha256,
        )
        labels = y if self.task == "classification" else None
        parts = self.rows(len(y), self.path, labels=labels)
        train, val, test = (
            Split(all_rows.taken(split.x), split.y) for split in take(rows, y, parts)
        )
        data = Dataset(
            train,
            val,
            test,
            self.task,
            classes,
            features=(),
            memory=self.memory_mb * 2**20,
            folds_sha256=self.folds_sha256(np.frombuffer(sha256.encode(), np.uint8), y),
        )
        check_classes(data, self.path)
        remedy = "save them scaled, or begin model.layers with {layer: batch_norm}"
        label_warnings = numbers_as_labels(f"{self.path}: y", len(y), classes)
        hint = seems_channels_first(arrays[0].shape, self.channels, self.path)
        scaled = unscaled(all_rows, self.path, remedy)
        return replace(data, warnings=(*hint, *scaled, *label_warnings))


def _parts(folder: Path) -> list[Path]:
    """Find x.npy, or x_0.npy, x_1.npy, ... in the order of their numbers."""
    parts: dict[int, Path] = {}
    for path in sorted(folder.glob("x_*.npy")):
        if match := re.fullmatch(r"x_(\d+)", path.stem):
            same = parts.setdefault(int(match[1]), path)
            if same != path:
                raise ConfigError(
                    f"{folder} holds {same.name} and {path.name}, which have the same number"
                )
    if os.path.lexists(folder / "x.npy"):
        if parts:
            raise ConfigError(
                f"{folder} holds x.npy and parts of it, such as {parts[min(parts)].name}; "
                f"remove one of them"
            )
        return [folder / "x.npy"]
    if not parts:
        raise ConfigError(
            f"{folder} must hold x.npy and y.npy, or parts of them: x_0.npy, y_0.npy, x_1.npy, ..."
        )
    return [parts[number] for number in sorted(parts)]


def _mapped(path: Path) -> np.ndarray:
    try:
        if os.path.exists(path) and not path.is_file():
            raise ValueError("it is not a regular file")
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is not an NPY file")
    except Exception as error:  # a damaged file raises several types of errors
        text = one_line(error) or type(error).__name__
        raise ConfigError(f"{path} cannot be read as NPY: {text}") from None
    return array


def _scan(files: Sequence[Path], arrays: Sequence[np.ndarray]) -> tuple[tuple[float, float], str]:
    """Find the smallest and largest value and hash all values; refuse NaN and infinity."""
    low, high, digest = math.inf, -math.inf, hashlib.sha256()
    for file, array in zip(files, arrays, strict=True):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        size = max(1, _BLOCK // max(1, array[:1].nbytes))
        for first in range(0, len(array), size):
            block = np.ascontiguousarray(_mapped(file)[first : first + size])
            check_finite("x", block, str(file), first_row=first)
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            digest.update(block.data)
    return (low, high), digest.hexdigest()
