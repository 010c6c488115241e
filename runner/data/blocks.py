"""Work on rows in blocks that stay in a processor's cache, on several threads.

The blocks of a thread follow each other, and every row is written once, so that the result does
not depend on the number of threads.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")

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


def together(*functions: Callable[[], T], is_large: bool = True) -> list[T]:
    """Call the functions, each on a thread of its own if they have much to do and there are cores
    for them; return their results in order."""
    threads = min(num_threads(), len(functions)) if is_large else 1
    if threads < 2:
        return [function() for function in functions]
    with ThreadPoolExecutor(threads, "together") as pool:
        futures = [pool.submit(function) for function in functions]
        return [future.result() for future in futures]


def in_blocks(function: Callable[[slice], object], num_rows: int) -> None:
    """Call the function for all blocks of rows."""
    blocks = [slice(first, min(first + ROWS, num_rows)) for first in range(0, num_rows, ROWS)]
    threads = min(num_threads(), len(blocks) // _PER_THREAD)

    def work(mine: list[slice]) -> None:
        for block in mine:
            function(block)

    parts = np.array_split(np.arange(len(blocks)), max(1, threads))
    each(work, [[blocks[i] for i in part] for part in parts], threads)


def as_records(values: np.ndarray) -> np.ndarray:
    """View each row as one value, which NumPy copies as a whole.  # dtype[N, C] -> bytes[N]"""
    return values.view(np.dtype((np.void, values.itemsize * values.shape[1])))[:, 0]


def edges(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the smallest and the largest value of each column. Rows are compared side by side,
    because NumPy needs as long for a row of few columns as for many of them.

    dtype[N, C] -> dtype[C], dtype[C]
    """
    num, width = len(values) // _BESIDE, values.shape[1]
    wide = values[: num * _BESIDE].reshape(num, _BESIDE * width)
    rest = values[num * _BESIDE :]

    def edge(of: np.ufunc) -> np.ndarray:
        beside = [of.reduce(wide, axis=0).reshape(_BESIDE, width)] if num else []
        found: np.ndarray = of.reduce(np.concatenate([*beside, rest]), axis=0)
        return found

    return edge(np.minimum), edge(np.maximum)


def mean(values: np.ndarray) -> np.ndarray:
    """Compute the mean of each column, to the bits of NumPy's mean with axis=0, which adds row
    after row.  # float64[N, C] -> float64[C]"""
    return total(np.copy(block) for block in _parts(values)) / len(values)


def deviation(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Compute the standard deviation of each column around its mean, to the bits of NumPy's std
    with axis=0, without a copy of all values.  # float64[N, C] -> float64[C]"""
    return np.sqrt(total(np.square(block - mean) for block in _parts(values)) / len(values))


def total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Add all rows of the parts, which it may change, row after row.

    float64[n, C] each, n > 0, C > 1 -> float64[C]
    """
    sums: np.ndarray | None = None
    for part in parts:
        if sums is not None:
            part[0] += sums
        sums = np.add.reduce(part, axis=0)
    assert sums is not None
    return sums


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(values), ROWS):
        yield values[first : first + ROWS]
