"""Tables larger than memory: the transforms are fitted column by column, then all rows are
transformed once, in blocks, and written to a temporary file, from which training reads them.

A Parquet file can be read by groups of rows only, and the order of an epoch needs rows by number. A
CSV can be read from front to back only, so its columns are converted first.
"""

import hashlib
import mmap
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np

from runner.data import transforms, weights
from runner.data.cells import Column
from runner.data.columns import (
    Columns,
    index_warnings,
    joined,
    read_columns,
    scale,
    scale_in_place,
    unseen,
)
from runner.data.dataset import Dataset, Scaling, Split, check_classes, fit_scaling
from runner.data.files import numbers_as_labels
from runner.data.stream import RowFile, StoredRows, explained
from runner.data.table_files import TableFile
from runner.data.transforms import Transform
from runner.errors import ConfigError, show

_ROWS = 65_536  # of a block
_PART = 8 * 2**20  # bytes of a CSV that are converted at a time
_HEADER = re.compile(
    rb"(?:\xef\xbb\xbf)?[\r\n]*[^\r\n]+[\r\n]+"
)  # of a CSV; the first line with text
# The types of the cells of a CSV, in the order in which pyarrow tries them -> their names in it
_TYPES = {
    "null": "null",
    "int64": "int64",
    "bool": "bool",
    "date32[day]": "date32",
    "time32[s]": "time32[s]",
    "timestamp[s]": "timestamp[s]",
    "timestamp[ns]": "timestamp[ns]",
    "double": "float64",
}


@dataclass(frozen=True)
class TableRows(StoredRows):
    """The transformed rows of a table."""

    low: np.ndarray  # float64[F], the smallest values of the training rows
    high: np.ndarray

    @property
    def ranges(self) -> tuple[Any, Any]:
        return self.low, self.high


@dataclass(frozen=True)
class StreamedFile(TableFile):
    """A file that is not held in memory."""

    @property
    def head(self) -> bytes:
        return self._stored_head

    @property
    def _most_bytes(self) -> int:
        return sys.maxsize

    def open(self) -> Any:
        import pyarrow as pa

        return pa.OSFile(str(self.path))

    def _read(self, columns: Sequence[str], as_text: Any) -> Any:
        if self.kind == "arrow":
            return self._some(columns).read_all().select(list(columns))
        return super()._read(columns, as_text)

    def _some(self, columns: Sequence[str]) -> Any:
        """Open an Arrow file for some columns."""
        import pyarrow as pa

        which = [self.names.index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=which)
        return pa.ipc.open_file(self.open(), options=options)

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield tables of at most _ROWS rows, in the order of the file."""
        import pyarrow as pa
        from pyarrow import parquet

        if self.kind == "parquet":
            stored = parquet.ParquetFile(self.open())
            groups: Any = stored.iter_batches(batch_size=_ROWS, columns=list(columns))
        else:
            reader = self._some(columns)
            groups = (reader.get_batch(i) for i in range(reader.num_record_batches))
        for group in groups:
            for first in range(0, group.num_rows, _ROWS):
                yield pa.Table.from_batches([group.slice(first, _ROWS)])


@dataclass(frozen=True)
class ConvertedFile(StreamedFile):
    """A CSV, of which columns were converted once, into temporary files."""

    table: Any = None  # pyarrow.Table, whose cells are in these files

    def _read(self, columns: Sequence[str], as_text: Any) -> Any:
        return self.table.select(list(columns))

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield tables of at most _ROWS rows, in the order of the file."""
        for first in range(0, self.table.num_rows, _ROWS):
            yield self.table.select(list(columns)).slice(first, _ROWS)


def _converted(file: StreamedFile, columns: Sequence[str], as_text: Sequence[str]) -> ConvertedFile:
    """Convert columns of a CSV, a part after another, to a temporary file. They get the types that
    pyarrow gives to columns in memory: the first of _TYPES that all cells have."""
    import pyarrow as pa

    text = dict.fromkeys(as_text, pa.string())
    types = {name: text.get(name, pa.null()) for name in columns}
    for part in _parts(file):
        with file.explained():
            table = file.parsed(part, columns, text)
        types = {n: _common(types[n], table.schema.field(n).type) for n in columns}
    with tempfile.TemporaryFile() as stored:
        while (failed := _stored(file, types, stored)) is not None:
            types[failed] = _next(types[failed])
        cells = mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ)
    pa.default_memory_pool().release_unused()
    table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(cells))).read_all()
    return ConvertedFile(file.path, file.separator, file.encoding, table)


def _parts(file: StreamedFile) -> Iterator[Any]:
    """Yield parts of a CSV of about _PART bytes that end with a line, each after the header."""
    import pyarrow as pa

    header = b""
    with file.path.open("rb") as content:
        for lines in _whole_lines(content):
            yield pa.BufferReader(header + lines)
            if not header and (found := _HEADER.match(lines)):  # the first part begins with it
                header = found[0]


def _whole_lines(content: IO[bytes]) -> Iterator[bytes]:
    """Yield about _PART bytes at a time, to the end of a line: LF, CR LF, or CR alone."""
    rest = b""
    while block := content.read(_PART):
        rest += block
        # a CR at the end may be half of a CR LF
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1
        if end:
            yield rest[:end]
        rest = rest[end:]
    if rest:
        yield rest


def _common(kind: Any, other: Any) -> Any:
    """Return the first type that the cells of two parts of a column may have."""
    import pyarrow as pa

    if kind == other or pa.types.is_null(other):
        return kind
    is_known = str(other) in _TYPES or pa.types.is_timestamp(other)
    if pa.types.is_null(kind):
        return other if is_known else pa.string()
    names = list(_TYPES)
    if str(kind) not in names or str(other) not in names:
        return pa.string()
    return max(kind, other, key=lambda t: names.index(str(t)))


def _next(kind: Any) -> Any:
    """Return the type that pyarrow tries after one that a cell does not have."""
    import pyarrow as pa

    aliases = [*_TYPES.values(), "string"]
    known = _TYPES.get(str(kind), aliases[-2])
    return pa.type_for_alias(aliases[aliases.index(known) + 1])


def _stored(file: StreamedFile, types: Mapping[str, Any], stored: IO[bytes]) -> str | None:
    """Write the columns with these types to a file; or return a column that has another type."""
    import pyarrow as pa

    stored.seek(0)
    stored.truncate()
    names, size = list(types), file.path.stat().st_size
    with explained(2 * size, "the cells of the table"):
        with pa.ipc.new_file(stored, pa.schema(list(types.items()))) as writer:
            for part in _parts(file):
                try:
                    table = file.parsed(part, names, types)
                except pa.ArrowInvalid:
                    return _failing(file, part, types)
                writer.write_table(table)
        stored.flush()
    return None


def _failing(file: StreamedFile, part: Any, types: Mapping[str, Any]) -> str:
    """Find the first column of a part that does not have its type."""
    import pyarrow as pa

    for name, kind in types.items():
        part.seek(0)
        try:
            file.parsed(part, [name], {name: kind})
        except pa.ArrowInvalid:
            if not pa.types.is_string(kind):
                return name
    raise ConfigError(f"{file.path} changed while it was read")


@dataclass
class _Fit:
    """The transforms and scalings, fitted column by column."""

    transforms: list[Transform] = field(default_factory=list)
    offset: list[float] = field(default_factory=list)  # of each feature
    scale: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hashes: list[np.ndarray] = field(default_factory=list)  # of each column

    @property
    def features(self) -> list[str]:
        return [name for transform in self.transforms for name in transform.features]

    def number_categories(self) -> None:
        """Replace the features of each column of categories by one id, which is not scaled."""
        first, offset, scale = 0, [], []
        for transform in self.transforms:
            end = first + len(transform.features)
            is_id = transform.is_categorical
            offset += [0.0] if is_id else self.offset[first:end]
            scale += [1.0] if is_id else self.scale[first:end]
            first = end
        self.transforms = transforms.numbered(self.transforms)
        self.offset, self.scale = offset, scale


def load(section: Columns, memory_mb: int) -> Dataset:
    """Load the table of a section. x stays in a file, of which `memory_mb` are in memory."""
    file = _opened(section)
    targets = section._targets(file.names)
    names = section._features(file.names, targets)
    is_labels = section.task == "classification"
    fit = _Fit()
    named = (section.group, section.time, section.weight)
    used = [*dict.fromkeys([*targets, *(name for name in named if name is not None)])]
    labels = targets if is_labels else []
    if file.kind == "csv":
        as_text = [*section.categories, *section.texts, *labels]
        every = [*dict.fromkeys([*used, *names])]
        file = _converted(file, every, as_text)
    table = file.read(used, labels)
    if table.num_rows == 0:
        raise ConfigError(f"{section.path} holds no rows")
    if is_labels:
        y, classes, rows = section._labels(file, table, targets)
    else:
        columns, fit.problems = section._columns(file, table, targets)
        (y, rows), classes = section._values(file, columns, targets, fit.problems), ()
    parts = section._parts(file, table, y, rows)
    weight = section.weights(file, table, y)
    del table
    for name in names:
        _fit_column(section, file, name, parts[0], fit, is_alone=len(names) == 1)
    if fit.problems:
        raise ConfigError(f"{section.path}: {joined(fit.problems)}")
    if section.category_encoding == "ids":
        fit.number_categories()
    fit.hashes += [] if weight is None else [weight]
    data = _dataset(section, file, fit, parts, y)
    target: Any = targets[0] if len(targets) == 1 else list(targets)
    data = replace(data, classes=classes, target=target, memory=memory_mb * 2**20)
    data = weights.weighted(data, weight, parts, "data.weight")
    check_classes(data, section.path)
    if is_labels:
        fit.warnings += numbers_as_labels(f"column {show(targets[0])}", len(y), classes)
    return replace(data, warnings=tuple(fit.warnings))


def _opened(section: Columns) -> StreamedFile:
    named = section.file(section.path)
    file = StreamedFile(named.path, named.separator, named.encoding)
    is_csv = file.kind == "csv" and file.is_plain
    if is_csv and file.has_newlines_in_cells:
        raise ConfigError(
            f"data.memory_mb must be null for a CSV with cells that may have line breaks, because "
            f"it is converted in parts that end with a line, got {show(section.path)}; save it as "
            f"Parquet"
        )
    if not (is_csv or file.head.startswith((b"PAR1", b"ARROW1"))):
        raise ConfigError(
            f"data.memory_mb must be null unless data.path is a Parquet, Feather or Arrow file, or "
            f"a CSV in UTF-8, not compressed, with data.encoding=auto, because others are decoded "
            f"in memory, got {show(section.path)}"
        )
    return file


def _fit_column(
    section: Columns,
    file: StreamedFile,
    name: str,
    train: np.ndarray,
    fit: _Fit,
    is_alone: bool,
) -> None:
    """Fit the transform and the scaling of a column on the training rows."""
    table = file.read([name])
    columns, problems = section._columns(file, table, [name])
    fit.problems += problems
    if name not in columns:
        return
    column = columns[name]
    transform = section.fitted(column, train)
    fit.problems += section._missing_cells(file, [transform], columns)
    if fit.problems:
        return
    fit.transforms.append(transform)
    fit.warnings += [*index_warnings([column]), *unseen([transform], columns)]
    digest = hashlib.sha256(repr(column.categories).encode() + column.values.tobytes())
    fit.hashes.append(np.frombuffer(digest.digest(), np.uint8))
    scaled = transform.is_scaled if section.standardize else []
    fit.offset += [0.0] * len(transform.features)
    fit.scale += [1.0] * len(transform.features)
    if any(scaled):  # a number or date: its first feature
        taken = replace(column, values=column.values[train])
        # with a second column NumPy adds rows in the order in which it adds those of a whole table
        width = max(len(transform.features), 1 if is_alone else 2)
        values = np.zeros((len(train), width))
        transform.write(taken, slice(None), values[:, : len(transform.features)])
        scaling = fit_scaling(values)
        at = len(fit.offset) - len(transform.features)
        fit.offset[at], fit.scale[at] = float(scaling.offset[0]), float(scaling.scale[0])


def _dataset(
    section: Columns,
    file: StreamedFile,
    fit: _Fit,
    parts: Sequence[np.ndarray],
    y: np.ndarray,
) -> Dataset:
    section.check_features(fit.features)
    rows = _written(section, file, fit, parts, len(y))
    targets = [y[part] for part in parts]
    scales_y = section.standardize and section.task == "regression"
    y_scaling = scale(targets, np.full(y.shape[1], True)) if scales_y else None
    train, val, test = (Split(rows.taken(p), t) for p, t in zip(parts, targets, strict=True))
    x_scaling = Scaling(np.array(fit.offset), np.array(fit.scale))
    num_ids = transforms.num_ids(fit.transforms)
    return Dataset(
        train,
        val,
        test,
        task=section.task,
        classes=(),
        features=tuple(fit.features),
        x_scaling=x_scaling if section.standardize and not num_ids else None,
        y_scaling=y_scaling,
        num_tokens=num_ids,
        folds_sha256=section.folds_sha256(y, *fit.hashes),
        columns=tuple(transform.as_json() for transform in fit.transforms),
        ids=() if num_ids else transforms.ids(fit.transforms),
    )


def _written(
    section: Columns, file: StreamedFile, fit: _Fit, parts: Sequence[np.ndarray], num_rows: int
) -> TableRows:
    """Transform all rows in blocks, and write them to a temporary file."""
    is_train = np.zeros(num_rows, bool)
    is_train[parts[0]] = True
    low, high = np.full(len(fit.features), np.inf), np.full(len(fit.features), -np.inf)
    least, largest, first = np.inf, -np.inf, 0
    scaling = Scaling(np.array(fit.offset), np.array(fit.scale))
    dtype = np.dtype(np.int32 if transforms.num_ids(fit.transforms) else np.float64)
    stored = RowFile(num_rows * len(fit.features) * dtype.itemsize, "the transformed rows")
    names = [transform.name for transform in fit.transforms]
    texts = [transform.name for transform in fit.transforms if transform.kind == "text"]
    for table in file.batches(names):
        columns, _ = read_columns(file, table, names, texts, is_new=True)
        known = {t.name: _as_fitted(columns[t.name], t) for t in fit.transforms}
        x = transforms.apply(fit.transforms, known)
        if section.standardize:
            scale_in_place(scaling, x)
        end = first + len(x)
        stored.append(x.astype(dtype, copy=False))
        train = x[is_train[first:end]]
        low = np.minimum(low, train.min(axis=0, initial=np.inf))
        high = np.maximum(high, train.max(axis=0, initial=-np.inf))
        least, largest, first = min(least, x.min()), max(largest, x.max()), end
    return TableRows(
        rows=np.arange(num_rows),
        dtype=dtype,
        extent=(float(least), float(largest)),
        sha256=stored.digest.hexdigest(),
        low=low,
        high=high,
        stored_shape=low.shape,
        file=stored.file,
    )


def _as_fitted(column: Column, transform: Transform) -> Column:
    """Return a block of a column with the kind of its transform. A block of numbers that has only
    missing cells looks like text."""
    if column.kind == "text" and transform.kind != "text":
        return Column(column.name, transform.kind, np.full(len(column.values), np.nan))
    return column
