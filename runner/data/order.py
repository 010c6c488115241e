"""The rows of each update: a pure function of (seed, epoch, step), so that a run can resume from
any step.

An epoch is one pass over a permutation of the rows. It is cut into micro-batches of B =
`batch_size` rows. An update uses A = `accumulate` micro-batches; its gradient is that of the mean
loss over all its rows, as for one batch of A * B rows. The last update of an epoch has the
remaining rows: fewer micro-batches, the last one possibly short."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from runner.data.source import Batch
from runner.random import permutation


class Chunk(NamedTuple):
    """K consecutive updates of equal shape.

    blocks  # int64[K, A, B], row numbers of whole micro-batches; at an epoch's end a second block
            # int64[1, 1, b] for a short micro-batch
    fields  # dtype[n, ...] each, in order of use; only fields that RunSpec.streamed names
    sizes   # rows of a whole micro-batch in each block, if `blocks` has the part of one process
    """

    first_step: int
    num_steps: int
    blocks: tuple[np.ndarray, ...]
    is_whole: bool  # False: the last update of an epoch, with fewer rows than the others
    fields: Batch = MappingProxyType({})
    sizes: tuple[int, ...] | None = None

    @property
    def rows(self) -> np.ndarray:
        """All row numbers, in order of use.  # int64[n]"""
        return np.concatenate(
            [block.reshape(self.num_steps, -1) for block in self.blocks], axis=1
        ).reshape(-1)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """B of each block, of all processes together."""
        return self.sizes or tuple(block.shape[2] for block in self.blocks)

    @property
    def rows_per_step(self) -> int:
        """The rows of an update, of all processes together."""
        return sum(
            block.shape[1] * size for block, size in zip(self.blocks, self.batch_sizes, strict=True)
        )

    def by_block(self, field: str) -> list[np.ndarray]:
        """A field of the chunk in the shapes of its blocks.  # dtype[K, A, B, ...]"""
        values = self.fields[field]
        ends = np.cumsum([block.size for block in self.blocks])
        parts = np.split(values, ends[:-1])
        return [
            part.reshape(*block.shape, *part.shape[1:])
            for part, block in zip(parts, self.blocks, strict=True)
        ]


@dataclass(frozen=True)
class Order:
    """The rows of all updates of a run."""

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

    def is_epoch(self, step: int) -> bool:
        """Return whether an epoch ends with `step` updates, also in a longer run."""
        return step % self.steps_per_epoch == 0

    def epoch(self, number: int) -> np.ndarray:
        """The permutation of an epoch.  # int64[num_rows]"""
        return _epoch(self.num_rows, self.seed, number)

    def chunk(self, first_step: int, num_steps: int) -> Chunk:
        """At most `num_steps` updates from `first_step` on. A chunk does not cross an epoch's end,
        and a last update with fewer rows is a chunk of its own."""
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


@dataclass(frozen=True)
class InOrder:
    """The rows of all updates of a run, as an iterable yields them: update t uses rows t A B to
    (t + 1) A B - 1. All updates have equal shape."""

    batch_size: int
    accumulate: int
    total_steps: int
    epoch_steps: int | None  # None: the whole run is one epoch

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        return self.epoch_steps or self.total_steps

    @property
    def num_rows(self) -> int:
        """The rows of an epoch."""
        return self.steps_per_epoch * self.rows_per_step

    def is_epoch(self, step: int) -> bool:
        """Return whether an epoch ends with `step` updates, also in a longer run."""
        return self.epoch_steps is not None and step % self.epoch_steps == 0

    def chunk(self, first_step: int, num_steps: int) -> Chunk:
        """`num_steps` updates from `first_step` on."""
        size = self.rows_per_step
        rows = np.arange(first_step * size, (first_step + num_steps) * size)
        block = rows.reshape(num_steps, self.accumulate, self.batch_size)
        return Chunk(first_step, num_steps, (block,), is_whole=True)


@dataclass
class Chunks:
    """Iterates over the chunks of a run from the step `start`. A chunk ends at each epoch's end, at
    each checkpoint and at the end of the run.

    A chunk has at most `largest` updates. With `adapt`, it also takes about a second at most, so
    that progress, signals and saves are handled in time; the results of a run do not depend on it.
    With `read`, a chunk has its fields, which may depend on the epoch; they are read while the
    previous chunk trains, if they are read `ahead`. With `part`, the chunks are those of one of
    several processes.
    """

    order: Order | InOrder
    start: int
    largest: int
    checkpoint_steps: int | None
    adapt: bool
    # row numbers int64[n], epoch -> dtype[n, ...] each
    read: Callable[[np.ndarray, int], Batch] | None = None
    ahead: bool = True
    part: Callable[[Chunk], Chunk] | None = None
    began: float | None = None  # time.monotonic() at the request of the first chunk

    def __iter__(self) -> Iterator[Chunk]:
        self.began = time.monotonic()
        step, num = self.start, min(8, self.largest) if self.adapt else self.largest
        ahead = self.read is not None and self.ahead
        with ThreadPoolExecutor(1, "rows") as reader:
            upcoming = self._prefetch(step, num, reader)
            while upcoming is not None:
                chunk = upcoming()
                step += chunk.num_steps
                upcoming = self._prefetch(step, num, reader) if ahead else None
                before = time.perf_counter()
                yield chunk
                if self.adapt:
                    per_step = (time.perf_counter() - before) / chunk.num_steps
                    num = max(1, min(self.largest, int(1.0 / per_step)))
                if not ahead:
                    upcoming = self._prefetch(step, num, reader)

    def _prefetch(self, step: int, num: int, reader: Executor) -> Callable[[], Chunk] | None:
        """Start reading the chunk that begins at `step`. Returns a function that waits for it and
        returns it; None at the end of the run."""
        if step >= self.order.total_steps:
            return None
        chunk = self.order.chunk(step, min(num, self._until_event(step)))
        if self.part is not None:
            chunk = self.part(chunk)
        if self.read is None:
            return lambda: chunk
        read = partial(self.with_fields, chunk)
        return reader.submit(read).result if self.ahead else read

    def with_fields(self, chunk: Chunk) -> Chunk:
        """Return the chunk with the fields of its rows, if chunks have fields."""
        if self.read is None:
            return chunk
        epoch = chunk.first_step // self.order.steps_per_epoch
        return chunk._replace(fields=self.read(chunk.rows, epoch))

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
