"""The rows that each update uses: a pure function of (seed, epoch, step), so that a run can go on
from any step.

An epoch is one pass over a permutation of the rows. It is cut into micro-batches of B =
`batch_size` rows, and A = `accumulate` of them make an update, whose gradient is that of the mean
loss over all its rows: as one batch of A * B. The last update of an epoch has what is left: fewer
micro-batches, the last of them short."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from runner.data.source import Batch
from runner.random import permutation


class Chunk(NamedTuple):
    """K consecutive updates of equal shape. Blocks of micro-batches, in order of use:

    rows  # int64[K, A, B] for whole micro-batches; a second block int64[1, 1, b] for a short one at
    an epoch's end
    fields  # dtype[n, ...] each, in order of use: those that are not held in memory
    """

    first_step: int
    num_steps: int
    blocks: tuple[np.ndarray, ...]
    is_whole: bool  # False: the last update of an epoch, with fewer rows than the others
    fields: Batch = MappingProxyType({})

    @property
    def rows(self) -> np.ndarray:
        """All rows, in order of use: an update's after those of the update before it.  #
        int64[n]"""
        return np.concatenate(
            [block.reshape(self.num_steps, -1) for block in self.blocks], axis=1
        ).reshape(-1)

    @property
    def rows_per_step(self) -> int:
        return sum(block.shape[1] * block.shape[2] for block in self.blocks)

    def by_block(self, field: str) -> list[np.ndarray]:
        """A field that the chunk brings, in the blocks' shapes.  # dtype[K, A, B, ...]"""
        values = self.fields[field]
        ends = np.cumsum([block.size for block in self.blocks])
        parts = np.split(values, ends[:-1])
        return [
            part.reshape(*block.shape, *part.shape[1:])
            for part, block in zip(parts, self.blocks, strict=True)
        ]


@dataclass(frozen=True)
class Order:
    """The updates of a whole run, without a clock of its own."""

    num_rows: int
    batch_size: int
    accumulate: int
    seed: int
    total_steps: int

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.rows_per_step)

    def epoch(self, number: int) -> np.ndarray:
        """The permutation of an epoch.  # int64[num_rows]"""
        return _epoch(self.num_rows, self.seed, number)

    def chunk(self, first_step: int, num_steps: int) -> Chunk:
        """At most `num_steps` updates from `first_step`, ending with the epoch's whole updates or
        with its last one."""
        epoch, first = divmod(first_step, self.steps_per_epoch)
        order = self.epoch(epoch)
        size, num_whole = self.rows_per_step, self.num_rows // self.rows_per_step
        if first < num_whole:
            last = min(first + num_steps, num_whole)
            block = order[first * size : last * size].reshape(
                last - first, self.accumulate, self.batch_size
            )
            return Chunk(first_step, last - first, (block,), is_whole=True)
        rest = order[num_whole * size :]
        num_full, short = divmod(len(rest), self.batch_size)
        full = rest[: num_full * self.batch_size].reshape(1, num_full, self.batch_size)
        blocks = (full, rest[len(rest) - short :].reshape(1, 1, short))
        return Chunk(first_step, 1, tuple(block for block in blocks if block.size), is_whole=False)


@dataclass
class Chunks:
    """The chunks of a run from a step on. A chunk ends where something has to happen: an epoch, a
    checkpoint, the end.

    At most `largest` updates each. With `adapt` a chunk is also kept near a second of work, so that
    progress, signals and saves are never far away; what a run computes does not depend on it. With
    `read` each brings its rows, which are read while the one before it trains.
    """

    order: Order
    start: int
    largest: int
    checkpoint_steps: int | None
    adapt: bool
    read: Callable[[np.ndarray], Batch] | None = None  # int64[n] -> dtype[n, ...] each
    began: float | None = None  # when the first chunk was asked for, by time.monotonic

    def __iter__(self) -> Iterator[Chunk]:
        self.began = time.monotonic()
        step, num = self.start, min(8, self.largest) if self.adapt else self.largest
        with ThreadPoolExecutor(1, "rows") as reader:
            coming = self._ask(step, num, reader)
            while coming is not None:
                chunk = coming()
                step += chunk.num_steps
                coming = self._ask(step, num, reader) if self.read else None
                before = time.perf_counter()
                yield chunk
                if self.adapt:
                    per_step = (time.perf_counter() - before) / chunk.num_steps
                    num = max(1, min(self.largest, int(1.0 / per_step)))
                if self.read is None:
                    coming = self._ask(step, num, reader)

    def _ask(self, step: int, num: int, reader: Executor) -> Callable[[], Chunk] | None:
        """Return a function that gives the chunk from a step on, and begin to read its rows; None
        at the end."""
        if step >= self.order.total_steps:
            return None
        chunk = self.order.chunk(step, min(num, self._until_event(step)))
        if self.read is None:
            return lambda: chunk
        rows = reader.submit(self.read, chunk.rows)
        return lambda: chunk._replace(fields=rows.result())

    def _until_event(self, step: int) -> int:
        periods = [
            self.order.steps_per_epoch,
            *([self.checkpoint_steps] if self.checkpoint_steps else []),
        ]
        ends = [self.order.total_steps, *((step // period + 1) * period for period in periods)]
        return min(ends) - step


@lru_cache(maxsize=1)
def _epoch(num_rows: int, seed: int, number: int) -> np.ndarray:
    return permutation(num_rows, seed, f"order/{number}")
