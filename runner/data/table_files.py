"""Read table files with pyarrow: CSV and its relatives, Parquet, Feather and Arrow.

The kind of a file, its compression, its encoding and its separator are found from its content, not
from its name. Errors name the line of a CSV, and the row of other files, counted from 0.
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from runner.data.capacity import memory
from runner.data.cells import CONTROL, NULLS, UnusableError, labels
from runner.errors import ConfigError, listed, one_line, show

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
_GUESSED = (",", ";", "\t", "|")
_BLOCK = 16 * 2**20  # bytes that pyarrow parses at a time; a row must fit into it
_SCANNED = 2**20  # bytes of a CSV that are searched for quotes at a time
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True)
class TableFile:
    """A file of rows with named columns.

    Attributes:
        path: the file.
        separator: the character between the cells of a CSV, or None to find it.
        encoding: the encoding of a CSV, or None for UTF-8, and UTF-16 with a byte order mark.
    """

    path: Path
    separator: str | None = None
    encoding: str | None = None

    @cached_property
    def kind(self) -> str:
        """csv, parquet or arrow."""
        start = self.head
        if start.startswith(b"PAR1"):
            return "parquet"
        if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            return "arrow"
        if start.startswith(b"FEA1"):
            raise ConfigError(f"{self.path} is in the first version of Feather; save it as Parquet")
        return "csv"

    @cached_property
    def names(self) -> list[str]:
        """The names of the columns."""
        if self.kind == "csv":
            names = [name.strip() for name in self._header]
        else:
            names = list(self._schema().names)
        repeated = [name for name, number in Counter(names).items() if number > 1]
        if repeated:
            raise ConfigError(f"{self.path}: the header repeats column names: {listed(repeated)}")
        broken = next((name for name in names if "\n" in name or "\r" in name), None)
        if broken is not None:
            raise ConfigError(
                f"{self.path}: the column name {show(repr(broken))} contains a line break; check "
                f"for an unclosed quote"
            )
        if control := next(filter(None, map(CONTROL.search, names)), None):
            where = "line 1" if self.kind == "csv" else "the name of a column"
            raise ConfigError(
                f"{self.path}: {where} has the control character {control[0]!r}; remove it"
            )
        return names

    @property
    def known_rows(self) -> int | None:
        """The number of rows, if the file says it; None if it has to be read for that. A file that
        says it has more rows than bytes is not believed."""
        if self.kind != "parquet":
            return None
        from pyarrow import parquet

        with suppress(Exception):  # of a damaged file; `read` explains it
            num: int = parquet.read_metadata(self.open()).num_rows
            return num if num <= self.path.stat().st_size else None
        return None

    def read(self, columns: Sequence[str], as_text: Collection[str] = ()) -> Any:
        """Read these columns to a pyarrow.Table. Those `as_text` of a CSV keep their text."""
        with self.explained():
            return self._read(columns, as_text)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise ConfigError for an error of the reader: a damaged file raises several types."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            if self.kind == "csv":
                self._explain()
            kind = {"csv": "CSV", "parquet": "Parquet", "arrow": "Arrow"}[self.kind]
            raise ConfigError(f"{self.path} cannot be read as {kind}: {_reason(error)}") from None

    def release(self) -> None:
        """Free the memory of the file's content. It is read again if an error needs a line."""
        import pyarrow as pa

        for name in ("_content", "_utf8"):
            self.__dict__.pop(name, None)
        pa.default_memory_pool().release_unused()

    def labels(self, table: Any, name: str, use: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return runner.data.cells.labels of a column of `read`'s table. `use` says in an error
        what the column cannot be."""
        try:
            return labels(table.column(name))
        except UnusableError as error:
            where = "" if error.row is None else f"{self.position(error.row)}, "
            raise ConfigError(
                f"{self.path}: {where}column {show(name)} {error.reason}; it cannot be {use}"
            ) from None

    def position(self, row: int) -> str:
        """Name a row as the user finds it: the line of a CSV, the number of another file's row."""
        if self.kind != "csv":
            return f"row {row}"
        lines = (line for line, _ in self._records())
        with suppress(csv.Error):  # a cell that Python's reader does not read, but pyarrow does
            return f"line {next(islice(lines, row + 1, None), row + 2)}"
        return f"row {row}"

    def _read(self, columns: Sequence[str], as_text: Collection[str]) -> Any:
        import pyarrow as pa

        if self.kind == "parquet":
            from pyarrow import parquet

            stored = parquet.ParquetFile(self.open())  # read_table has more chunks to copy
            return stored.read(columns=list(columns)).select(list(columns))
        if self.kind == "arrow":
            return self._arrow().read_all().select(list(columns))
        categories = pa.dictionary(pa.int32(), pa.string())
        source = pa.OSFile(str(self.path)) if self.is_plain else pa.BufferReader(self._utf8)
        return self.parsed(source, columns, dict.fromkeys(as_text, categories))

    def parsed(self, source: Any, columns: Sequence[str], types: Mapping[str, Any]) -> Any:
        """Parse columns of this CSV's bytes, or of a part with the header, to a pyarrow.Table.
        Those without a type in `types` get the first type that all of their cells have."""
        import pyarrow as pa
        from pyarrow import csv as reader

        raw = dict(zip(self.names, self._header, strict=True))
        table = reader.read_csv(
            source,
            reader.ReadOptions(block_size=_BLOCK),
            reader.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=self.has_newlines_in_cells
            ),
            reader.ConvertOptions(
                include_columns=[raw[name] for name in columns],
                column_types={raw[name]: kind for name, kind in types.items() if name in raw},
                null_values=list(NULLS),
                auto_dict_encode=True,
            ),
        )
        kinds = [getattr(kind, "value_type", kind) for kind in table.schema.types]
        if any(map(pa.types.is_binary, kinds)):  # not in UTF-8
            self._explain()
        return table.rename_columns(list(columns))

    @property
    def head(self) -> bytes:
        """The first eight bytes, decompressed."""
        return self._stored_head if self._method is None else self._content[:8]

    def open(self) -> Any:
        """Return pyarrow's source of the bytes."""
        import pyarrow as pa

        if self._method is None:
            return pa.OSFile(str(self.path))
        return pa.BufferReader(self._content)

    def _schema(self) -> Any:
        try:
            if self.kind == "parquet":
                from pyarrow import parquet

                return parquet.read_schema(self.open())
            return self._arrow().schema
        except Exception as error:
            raise ConfigError(
                f"{self.path} cannot be read as {self.kind.capitalize()}: {_reason(error)}"
            ) from None

    def _arrow(self) -> Any:
        """Open an Arrow file (Feather), or a stream of Arrow's record batches."""
        import pyarrow as pa

        if self.head.startswith(b"ARROW1"):
            return pa.ipc.open_file(self.open())
        return pa.ipc.open_stream(self.open())

    @cached_property
    def _stored_head(self) -> bytes:
        """The first eight bytes, as they are stored."""
        with self.path.open("rb") as file:
            return file.read(8)

    @cached_property
    def _method(self) -> str | None:
        """The file's compression; None without one. Refuses a file that is too large."""
        for magic, name in _MAGIC.items():
            if self._stored_head.startswith(magic):
                return name
        size = self.path.stat().st_size
        if size > self._most_bytes:
            raise ConfigError(
                f"{self.path} has {size / 2**30:.1f} GiB, more than a quarter of this "
                f"machine's memory; data.memory_mb reads rows while training"
            )
        return None

    @property
    def _most_bytes(self) -> int:
        """The largest size of a file that is read into memory."""
        return memory() // 4

    @cached_property
    def _content(self) -> bytes:
        """The decompressed bytes."""
        if self._method is None:
            return self.path.read_bytes()
        most = self._most_bytes
        try:
            with self._decompressed(self._method) as stream:
                content = stream.read(most + 1)
        except ConfigError:
            raise
        except Exception as error:  # each format has its own errors
            raise ConfigError(
                f"{self.path} cannot be decompressed as {self._method}: {_reason(error)}"
            ) from None
        if len(content) > most:
            raise ConfigError(
                f"{self.path} decompresses to more than {most / 2**30:.1f} GiB, a quarter of this "
                f"machine's memory; data=npy reads rows while training"
            )
        return bytes(content)

    def _decompressed(self, method: str) -> IO[bytes] | Any:
        if method == "zip":
            archive = zipfile.ZipFile(self.path)
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if len(names) != 1:
                raise ConfigError(
                    f"{self.path} must hold one file, got {len(names)}; unpack it and name one"
                )
            return archive.open(names[0])
        if method == "zstd":
            import pyarrow as pa

            return pa.CompressedInputStream(pa.OSFile(str(self.path)), "zstd")
        opened: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
        return opened[method](self.path, "rb")

    @cached_property
    def _utf8(self) -> bytes:
        """The bytes of a CSV in UTF-8 without a byte order mark."""
        content = self._content
        encoding = self.encoding
        if encoding is None and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-16"
        if encoding is None:
            return content.removeprefix(codecs.BOM_UTF8)
        try:
            return content.decode(encoding).removeprefix("\ufeff").encode()
        except UnicodeError as error:
            raise ConfigError(
                f"data.encoding: {self.path} cannot be read in {encoding}: {_reason(error)}"
            ) from None

    @property
    def is_plain(self) -> bool:
        """True for a CSV that is stored in UTF-8. It is read in blocks: its content is needed at
        once only for an error."""
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        is_utf8 = self.encoding is None and not self._stored_head.startswith(marks)
        return self._method is None and is_utf8

    def _blocks(self) -> Iterator[bytes]:
        """Yield the bytes of a CSV in UTF-8. No block ends within a CR LF."""
        with self.path.open("rb") if self.is_plain else io.BytesIO(self._utf8) as file:
            while block := file.read(_SCANNED):
                while block.endswith(b"\r") and (more := file.read(1)):
                    block += more
                yield block

    @cached_property
    def has_newlines_in_cells(self) -> bool:
        """False if no line of a CSV ends within quotes; pyarrow then reads it on several threads.
        Also True where only a parser could tell. Refuses NUL, and a quote that is not closed, with
        which a parser would join all rows after it to one cell."""
        state, offset, last_quote = _Quotes(False, ord("\n"), True, False), 0, 0
        for block in self._blocks():
            if b"\x00" in block:
                self._refuse_nul(offset + block.index(b"\x00"))
            if state.is_known and (state.is_inside or b'"' in block):
                state = state.after(block, self.delimiter)
            if (place := block.rfind(b'"')) >= 0:
                last_quote = offset + place
            state, offset = state._replace(before=block[-1]), offset + len(block)
        if state.is_known and state.is_inside:
            raise ConfigError(
                f"{self.path}: line {self._line(last_quote)} has a quote that is not closed; "
                f"close it, or double it within quotes"
            )
        return state.has_newlines or not state.is_known

    def _refuse_nul(self, offset: int) -> None:
        line = self._line(offset)
        raise ConfigError(f"{self.path}: line {line} has the control character '\\x00'; remove it")

    def _line(self, offset: int) -> int:
        """Return the number of the line that has this byte, counted from 1."""
        line = 1
        for block in self._blocks():
            line += _num_lines(block[:offset])
            offset -= len(block)
            if offset <= 0:
                break
        return line

    @cached_property
    def _start(self) -> str:
        """The first megabyte of the text, to the end of a line."""
        with self.path.open("rb") if self.is_plain else io.BytesIO(self._utf8) as file:
            start = file.read(2**20)
            if b"\x00" in start:
                self._refuse_nul(start.index(b"\x00"))
            start += file.readline()
        return start.removeprefix(codecs.BOM_UTF8).decode(errors="replace")

    @cached_property
    def delimiter(self) -> str:
        """The separator: as given, or the most frequent one in the first line, outside of
        quotes."""
        if self.separator is not None:
            return self.separator
        line = next((line for line in io.StringIO(self._start, newline="") if line.strip()), "")
        outside = "".join(line.split('"')[::2])
        return max(_GUESSED, key=outside.count)

    @cached_property
    def _header(self) -> list[str]:
        rows = csv.reader(io.StringIO(self._start, newline=""), delimiter=self.delimiter)
        try:
            return next(row for row in rows if row)
        except StopIteration:
            raise ConfigError(f"{self.path} is empty") from None
        except csv.Error as error:
            raise ConfigError(f"{self.path} cannot be read as CSV: line 1: {error}") from None

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line where each record of a CSV begins, counted from 1, and its cells."""
        content = self.path.open("rb") if self.is_plain else io.BytesIO(self._utf8)
        line = 1
        with io.TextIOWrapper(content, "utf-8-sig", errors="replace", newline="") as text:
            reader = csv.reader(text, delimiter=self.delimiter)
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1

    def _explain(self) -> None:
        """Raise the error of the first line of a CSV that pyarrow does not read."""
        self._refuse_other_encoding()
        line, num = 1, 0
        try:
            for line, row in self._records():
                num += 1
                if control := next(filter(None, map(CONTROL.search, row)), None):
                    raise ConfigError(
                        f"{self.path}: line {line} has the control character {control[0]!r}; "
                        f"remove it"
                    )
                if len(row) != len(self._header):
                    cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
                    raise ConfigError(
                        f"{self.path}: line {line} has {cells}, the header has {len(self._header)}"
                    )
        except csv.Error as error:
            raise ConfigError(f"{self.path} cannot be read as CSV: line {line}: {error}") from None
        if num < 2:
            raise ConfigError(f"{self.path} holds no rows")

    def _refuse_other_encoding(self) -> None:
        """Refuse bytes that are no UTF-8."""
        decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
        for block in chain(self._blocks(), [b""]):
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line += _num_lines(error.object[: error.start])
                raise ConfigError(
                    f"{self.path} cannot be read as CSV in UTF-8: line {line} has the byte "
                    f"0x{error.object[error.start]:02x}; save it in UTF-8, or set data.encoding, "
                    f"such as latin-1"
                ) from None
            line += _num_lines(block)


def _num_lines(block: bytes) -> int:
    """Count the ends of lines: LF, CR LF, or CR alone."""
    return block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")


class _Quotes(NamedTuple):
    """The quotes of a CSV up to some byte."""

    is_inside: bool  # the next byte is within quotes
    before: int  # the last byte
    is_known: bool  # every quote that opens begins a cell, or follows one that closes
    has_newlines: bool  # a line ends within quotes

    def after(self, block: bytes, delimiter: str) -> "_Quotes":
        """Return what is known after the next bytes."""
        values = np.frombuffer(block, np.uint8)
        quotes = np.flatnonzero(values == ord('"'))
        opening = quotes[int(self.is_inside) :: 2]
        previous = values[opening - 1]
        if len(opening) and opening[0] == 0:
            previous[0] = self.before
        begins = np.isin(previous, np.frombuffer(f'{delimiter}\r\n"'.encode(), np.uint8)).all()
        ends = np.flatnonzero((values == ord("\n")) | (values == ord("\r")))
        is_within = (np.searchsorted(quotes, ends) + self.is_inside) % 2
        is_inside = bool((len(quotes) + self.is_inside) % 2)
        has_newlines = self.has_newlines or bool(is_within.any())
        return _Quotes(is_inside, self.before, bool(begins), has_newlines)


def _reason(error: Exception) -> str:
    return one_line(error) or type(error).__name__
