"""Columns of a table by kind: numbers, truth values, dates and text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from runner.errors import show

Kind = Literal["number", "boolean", "date", "text"]

# A number as other readers of CSV accept it: no underscores, no hexadecimal digits
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_GROUPED_NUMBER = re.compile(r"[+-]?\d{1,3}([.,' ]\d{3})+([.,]\d+)?")  # 1,234.5 and the like
_COMMA_NUMBER = re.compile(r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?")
# C0 and C1 control characters except tab and line ends, and Unicode's line separators
CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
# Cells that are missing, as pandas and pyarrow read them
NULLS = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
_DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Column:
    """A column of N cells.

    Attributes:
        name: its name in the file.
        kind: number, boolean (0 and 1), date (days since 1970-01-01) or text.
        values: float64[N], NaN for a missing cell; for text int64[N], the number of its category,
            -1 for a missing cell.
        categories: the distinct texts, sorted.
    """

    name: str
    kind: Kind
    values: np.ndarray
    categories: tuple[str, ...] = ()

    @property
    def missing(self) -> np.ndarray:
        """The missing cells.  # bool[N]"""
        return self.values < 0 if self.kind == "text" else np.isnan(self.values)

    @cached_property
    def is_finite(self) -> bool:
        """True if it has numbers, and none is missing or infinite; found in one pass. Numbers with
        a sum beyond float64 give False."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.kind != "text" and bool(np.isfinite(self.values.sum()))

    @property
    def is_empty(self) -> bool:
        """True if all cells are missing."""
        return not (self.is_finite and len(self.values)) and bool(self.missing.all())


class UnusableError(Exception):
    """A column that no kind fits: the reason, and the row of the first cell that shows it."""

    def __init__(self, reason: str, row: int | None = None, is_mixed: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.row = reason, row
        self.is_mixed = is_mixed  # as text it could be used


def column(name: str, array: Any, *, as_text: bool, decimal_commas: bool) -> Column:
    """Convert a column of a pyarrow.Table.

    Args:
        name: the name of the column.
        array: a pyarrow.ChunkedArray.
        as_text: True reads numbers and truth values as text categories.
        decimal_commas: True reads text such as 3,14 as numbers.

    Raises:
        UnusableError: the type has no values that a network can use, or the text is mostly numbers.
    """
    import pyarrow as pa
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind) or _is_text(kind) or as_text:
        return _text(name, _labels(array), as_text, decimal_commas)
    if types.is_null(kind):
        return Column(name, "number", np.full(len(array), np.nan))
    if types.is_boolean(kind):
        return Column(name, "boolean", _floats(array.cast(pa.int8())))
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return Column(name, "number", _floats(array))
    if types.is_timestamp(kind) or types.is_date(kind):
        micros = array.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        return Column(name, "date", _floats(micros.cast(pa.int64())) / _DAY)
    if types.is_time(kind) or types.is_duration(kind):
        unit = pa.time64("us") if types.is_time(kind) else pa.duration("us")
        return Column(name, "date", _floats(array.cast(unit, safe=False).cast(pa.int64())) / _DAY)
    raise UnusableError(f"has the type {kind}")


def labels(array: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a column's texts as numbers of the distinct texts, without surrounding spaces; -1 for
    a missing or empty cell.  # int64[N]

    Raises:
        UnusableError: a text has a control character, or the type has no text.
    """
    codes, texts = _labels(array)
    _refuse_control(codes, texts)
    return _merged(codes, [text.strip() for text in texts], ("",))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _floats(array: Any) -> np.ndarray:
    """Convert numbers to float64, missing cells to NaN. Those of one chunk are not copied."""
    import pyarrow as pa
    from pyarrow import compute

    if not pa.types.is_float64(array.type):
        array = compute.cast(array, pa.float64(), safe=False)
    chunks = [array] if isinstance(array, pa.Array) else array.chunks
    if len(chunks) == 1:
        return _stored(chunks[0], np.nan)
    values, first = np.empty(len(array)), 0
    for chunk in chunks:
        values[first : first + len(chunk)] = _stored(chunk, np.nan)
        first += len(chunk)
    return values


def _stored(chunk: Any, missing: float) -> np.ndarray:
    """Return the values of a pyarrow.Array of 8-byte numbers, with `missing` for missing cells.
    pyarrow's to_numpy and fill_null import pandas, which takes as long as ten million numbers."""
    bits, numbers = chunk.buffers()
    dtype, begin, end = type(missing), chunk.offset, chunk.offset + len(chunk)
    values = np.frombuffer(numbers, dtype, end)[begin:]
    if not chunk.null_count:
        return values
    is_known = np.unpackbits(np.frombuffer(bits, np.uint8), count=end, bitorder="little")[begin:]
    return np.where(is_known, values, missing)


def _labels(array: Any) -> tuple[np.ndarray, list[str]]:
    """Number the distinct values of any simple type, as text, in the order of their appearance.
    Raises UnusableError for lists, records and bytes."""
    import pyarrow as pa

    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
        raise UnusableError(f"has the type {array.type}")
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    whole = array.unify_dictionaries().combine_chunks() if array.num_chunks else None
    if whole is None or (isinstance(whole, pa.ChunkedArray) and whole.num_chunks == 0):
        return np.zeros(0, np.int64), []
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0)
    codes = _stored(whole.indices.cast(pa.int64()), -1)
    texts = ["" if value is None else str(value) for value in whole.dictionary.to_pylist()]
    return codes, texts


def _refuse_control(codes: np.ndarray, texts: Sequence[str]) -> None:
    for i, text in enumerate(texts):
        if control := CONTROL.search(text):
            row = int(np.argmax(codes == i))
            raise UnusableError(f"has the control character {control[0]!r}", row)


def _merged(
    codes: np.ndarray, texts: Sequence[str], nulls: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the distinct texts in sorted order; `nulls` are missing cells."""
    used = {text for text in texts if text not in nulls}
    names = tuple(sorted(used))
    number = {text: i for i, text in enumerate(names)}
    renumbered = np.array([*(number.get(text, -1) for text in texts), -1], dtype=np.int64)
    return renumbered[codes], names


def _text(
    name: str, found: tuple[np.ndarray, list[str]], as_text: bool, decimal_commas: bool
) -> Column:
    codes, raw = found
    texts = [text.strip() for text in raw]
    _refuse_control(codes, texts)
    known = {text for text in texts if text not in NULLS}
    if known and not as_text:
        if all(map(NUMBER.fullmatch, known)):
            return Column(name, "number", _parsed(codes, texts))
        if decimal_commas and all(map(_COMMA_NUMBER.fullmatch, known)):
            return Column(name, "number", _parsed(codes, [t.replace(",", ".") for t in texts]))
        if all(map(_GROUPED_NUMBER.fullmatch, known)):
            first = next(i for i, t in enumerate(texts) if t in known)
            reason = f"is {show(repr(texts[first]))}: a number must have no thousands separator"
            raise UnusableError(reason, int(np.argmax(codes == first)), is_mixed=True)
        if any(map(NUMBER.fullmatch, known)):
            first = next(i for i, t in enumerate(texts) if t in known and not NUMBER.fullmatch(t))
            row = int(np.argmax(codes == first))
            raise UnusableError(
                f"is {show(repr(texts[first]))} where other cells are numbers", row, is_mixed=True
            )
    merged, names = _merged(codes, texts, NULLS)
    return Column(name, "text", merged, names)


def _parsed(codes: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    values = np.array([*(np.nan if text in NULLS else float(text) for text in texts), np.nan])
    return values[codes]
