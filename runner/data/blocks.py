"""Work on rows in blocks that stay in a processor's cache, on several threads.

The blocks of a thread follow each other, and every row is written once, so that the result does
not depend on the number of threads.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")
U = TypeVar("U")

LARGE = 2**20  # numbers that are worth a thread
ROWS = 4096  # of a block
_THREADS = 8  # more wait for memory
_PER_THREAD = 16  # blocks that are worth a thread
_BESIDE = 64  # rows that are compared at a time


def num_threads() -> int:
    """The threads that may run: the process's cores, at most 8."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(_THREADS, len(affinity(0)) if affinity else os.cpu_count() or 1)


def each(function: Callable[[T], object], items: Iterable[T], threads: int | None = None) -> None:
    """Call the function for each item on several threads; raise the first error."""
    threads = num_threads() if threads is None else threads
    if threads < 2:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads, "blocks") as pool:
        for _ in pool.map(function, items):
            pass


def together(first: Callable[[], T], second: Callable[[], U], is_large: bool = True) -> tuple[T, U]:
    """Call two functions, the second on a thread of its own if they have much to do and there is
    a core for it; return their results. Raise the first one's error, if both raise one."""
    if not is_large or num_threads() < 2:
        return first(), second()
    with ThreadPoolExecutor(1, "together") as pool:
        beside = pool.submit(second)
        return first(), beside.result()


def in_blocks(function: Callable[[slice], object], num_rows: int) -> None:
    """Call the function for all blocks of rows."""
    blocks = [slice(first, min(first + ROWS, num_rows)) for first in range(0, num_rows, ROWS)]
    threads = min(num_threads(), len(blocks) // _PER_THREAD)

    def work(mine: list[slice]) -> None:
        for block in mine:
            function(block)

    parts = np.array_split(np.arange(len(blocks)), max(1, threads))
    each(work, [[blocks[i] for i in part] for part in parts], threads)


_ALIGNMENT = 64  # bytes; the kernels of frameworks need it to use an array without a copy


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return an array that begins at a multiple of 64 bytes, as a framework's tensors do; NumPy's
    own begin at a multiple of 16."""
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + num_bytes].view(dtype).reshape(shape)


def is_aligned(values: np.ndarray) -> bool:
    """Return whether a framework can use the memory of an array."""
    return values.flags.c_contiguous and values.ctypes.data % _ALIGNMENT == 0


def converted(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert to a contiguous array of a dtype, aligned if it is a copy."""
    if values.dtype == dtype and values.flags.c_contiguous:
        return values
    return copied(values, dtype)


def copied(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Copy to an aligned array of a dtype."""
    copy = empty(values.shape, dtype)
    copy[...] = values
    return copy


def rows(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Copy rows to an aligned array.  # dtype[N, ...], int64[n] -> dtype[n, ...]"""
    found = empty((len(which), *values.shape[1:]), values.dtype)
    return np.take(values, which, axis=0, out=found, mode="clip")  # "raise" would copy twice


def as_records(values: np.ndarray) -> np.ndarray:
    """View each row as one value, which NumPy copies as a whole.  # dtype[N, C] -> bytes[N]"""
    return values.view(np.dtype((np.void, values.itemsize * values.shape[1])))[:, 0]


def edges(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the smallest and the largest value of each column. Rows are compared side by side,
    because NumPy needs as long for a row of few columns as for many of them.

    dtype[N, C] -> dtype[C], dtype[C]
    """
    low = high = values[0]
    for block in _parts(values):
        low = np.minimum(low, _edge(np.minimum, block))
        high = np.maximum(high, _edge(np.maximum, block))
    return low, high


def _edge(of: np.ufunc, block: np.ndarray) -> np.ndarray:
    num, width = len(block) // _BESIDE, block.shape[1]
    wide = block[: num * _BESIDE].reshape(num, _BESIDE * width)
    beside = [of.reduce(wide, axis=0).reshape(_BESIDE, width)] if num else []
    found: np.ndarray = of.reduce(np.concatenate([*beside, block[num * _BESIDE :]]), axis=0)
    return found


def mean(values: np.ndarray) -> np.ndarray:
    """Compute the mean of each column, to the bits of NumPy's mean with axis=0, which adds row
    after row.  # float64[N, C], C > 1 -> float64[C]"""
    return _total(values) / len(values)


def deviation(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Compute the standard deviation of each column around its mean, to the bits of NumPy's std
    with axis=0, without a copy of all values.  # float64[N, C], C > 1 -> float64[C]"""
    shift = beside(mean)

    def squares(block: np.ndarray) -> np.ndarray:
        found = np.array(block)
        by_row(np.subtract, found, shift)
        return np.square(found, out=found)

    return np.sqrt(total(squares(block) for block in _parts(values)) / len(values))


def total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Add all rows of the parts, which it may change, row after row.

    float64[n, C] each, n > 0, C > 1 -> float64[C]
    """
    sums: np.ndarray | None = None
    for part in parts:
        if sums is not None:
            part[0] += sums
        sums = _total(part)
    assert sums is not None
    return sums


def beside(row: np.ndarray) -> np.ndarray:
    """Repeat a row for `by_row`.  # dtype[C] -> dtype[64 C]"""
    return np.tile(row, _BESIDE)


def by_row(of: np.ufunc, block: np.ndarray, repeated: np.ndarray) -> None:
    """Apply a function of two numbers to each row of a block, in place, and the row of `beside`:
    64 rows at a time, because NumPy needs as long for one of few columns.

    dtype[n, C]; dtype[64 C]
    """
    width = block.shape[1]
    num = len(block) // _BESIDE if block.flags.c_contiguous else 0
    wide, rest = block[: num * _BESIDE].reshape(num, _BESIDE * width), block[num * _BESIDE :]
    of(wide, repeated, out=wide)
    of(rest, repeated[:width], out=rest)


def _total(values: np.ndarray) -> np.ndarray:
    """Add all rows, row after row; `sum` does the same in twice the time."""
    sums: np.ndarray = np.einsum("ij->j", np.ascontiguousarray(values))
    return sums


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(values), ROWS):
        yield values[first : first + ROWS]
