"""Work on rows in blocks that stay in a processor's cache, on several threads.

The blocks of a thread follow each other, and every row is written once, so that the result does
not depend on the number of threads.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")

ROWS = 4096  # of a block
_THREADS = 8  # more wait for memory
_PER_THREAD = 16  # blocks that are worth a thread


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


def in_blocks(function: Callable[[slice], object], num_rows: int) -> None:
    """Call the function for all blocks of rows."""
    blocks = [slice(first, min(first + ROWS, num_rows)) for first in range(0, num_rows, ROWS)]
    threads = min(num_threads(), len(blocks) // _PER_THREAD)

    def work(mine: list[slice]) -> None:
        for block in mine:
            function(block)

    parts = np.array_split(np.arange(len(blocks)), max(1, threads))
    each(work, [[blocks[i] for i in part] for part in parts], threads)


def mean_and_deviation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and the standard deviation of each column, to the bits of NumPy's mean and
    std with axis=0, which add row after row, without a copy of all values.

    float64[N, C] -> float64[C], float64[C]
    """
    num_rows = len(values)

    def total(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        sums = np.zeros(values.shape[1])
        for first in range(0, num_rows, ROWS):
            block = of(values[first : first + ROWS])
            if first:
                block[0] += sums
            sums = np.add.reduce(block, axis=0)
        return sums

    mean = total(np.copy) / num_rows
    return mean, np.sqrt(total(lambda block: np.square(block - mean)) / num_rows)
