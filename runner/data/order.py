"""The rows of each update: a pure function of (seed, epoch, step), so that a run can resume from
any step.

An epoch is one pass over a permutation of the rows. It is cut into micro-batches of B =
`batch_size` rows. An update uses A = `accumulate` micro-batches; its gradient is that of the mean
loss over all its rows, as for one batch of A * B rows. The last update of an epoch has the
remaining rows: fewer micro-batches, the last one possibly short.

B may change during the run, also within an epoch: then the epoch's permutation is cut by the sizes
in turn."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property, lru_cache, partial
from math import ceil
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np

from runner.data.source import Batch
from runner.random import permutation
from runner.schedules.units import Periods


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
    def first(self) -> "Chunk":
        """The first update alone."""
        blocks = tuple(block[:1] for block in self.blocks)
        num_rows = sum(block.size for block in blocks)
        fields = {name: values[:num_rows] for name, values in self.fields.items()}
        return self._replace(num_steps=1, blocks=blocks, fields=fields)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """B of each block, of all processes together."""
        return self.sizes or tuple(block.shape[2] for block in self.blocks)

    @property
    def micro_batch_sizes(self) -> list[int]:
        """The rows of each micro-batch of an update, of all processes together."""
        pairs = zip(self.blocks, self.batch_sizes, strict=True)
        return [size for block, size in pairs for _ in range(block.shape[1])]

    @property
    def rows_per_step(self) -> int:
        """The rows of an update, of all processes together."""
        return sum(self.micro_batch_sizes)

    def by_block(self, field: str) -> list[np.ndarray]:
        """A field of the chunk in the shapes of its blocks.  # dtype[K, A, B, ...]"""
        values = self.fields[field]
        ends = np.cumsum([block.size for block in self.blocks])
        parts = np.split(values, ends[:-1])
        return [
            part.reshape(*block.shape, *part.shape[1:])
            for part, block in zip(parts, self.blocks, strict=True)
        ]


class Segment(NamedTuple):
    """Consecutive updates of an epoch with one size of micro-batches. They use the rows at
    positions `first_row` to `last_row` - 1 of the epoch's permutation."""

    first_step: int
    epoch: int
    first_row: int
    last_row: int
    batch_size: int

    def end(self, accumulate: int) -> int:
        """The first update after these."""
        num_rows = self.last_row - self.first_row
        return self.first_step - (-num_rows // (self.batch_size * accumulate))


class Phase(NamedTuple):
    """A part of a run with its own size of micro-batches. It ends before the first update that
    begins `num_rows` rows or `num_steps` updates after the phase; the other one is None."""

    batch_size: int
    num_rows: Fraction | None
    num_steps: int | None


def segments(
    num_rows: int, accumulate: int, phases: Sequence[Phase], last_size: int, num_epochs: int
) -> tuple[Segment, ...]:
    """Return the segments of the phases, in at most `num_epochs` epochs. The last epoch is cut to
    its end, with `last_size` after the phases."""
    made: list[Segment] = []
    step = epoch = row = 0
    begin = Fraction(0)  # of the phase, in rows since the run's begin
    for phase in [*phases, None]:
        size = last_size if phase is None else phase.batch_size
        end, left = Fraction((epoch + bool(row)) * num_rows), num_epochs * num_rows
        if phase is not None:
            end = Fraction(num_epochs * num_rows)
            end = end if phase.num_rows is None else min(end, begin + phase.num_rows)
            left = num_epochs * num_rows if phase.num_steps is None else phase.num_steps
        while epoch * num_rows + row < end and left:
            limit = min(num_rows, ceil(end) - epoch * num_rows)
            num = min(left, -((row - limit) // (size * accumulate)))
            last = min(num_rows, row + num * size * accumulate)
            made.append(Segment(step, epoch, row, last, size))
            step, left = step + num, left - num
            epoch, row = (epoch + 1, 0) if last == num_rows else (epoch, last)
        is_of_rows = phase is not None and phase.num_rows is not None
        begin = end if is_of_rows else Fraction(epoch * num_rows + row)
    return tuple(made)


@dataclass(frozen=True)
class Order:
    """The rows of all updates of a run. The segments `earlier` end with an epoch; all later epochs
    have micro-batches of `batch_size` rows."""

    num_rows: int
    batch_size: int
    accumulate: int
    seed: int
    total_steps: int
    earlier: tuple[Segment, ...] = ()

    @property
    def changes_size(self) -> bool:
        """True if the batch size changes during the run."""
        return bool(self.earlier)

    @property
    def largest_batch(self) -> int:
        """The rows of the largest micro-batch of the run."""
        return max([self.batch_size, *(segment.batch_size for segment in self.earlier)])

    @property
    def rows_per_step(self) -> int:
        """The rows of the largest update of the run."""
        return self.largest_batch * self.accumulate

    @cached_property
    def epochs(self) -> Periods:
        """The updates at which the epochs begin."""
        length = -(-self.num_rows // (self.batch_size * self.accumulate))
        begins = [segment.first_step for segment in self.earlier if segment.first_row == 0]
        later = self.earlier[-1].end(self.accumulate) if self.earlier else 0
        return Periods(length, (*begins, later))

    @cached_property
    def _begins(self) -> list[int]:
        return [segment.first_step for segment in self.earlier]

    def segment(self, step: int) -> Segment:
        """The segment that an update is in."""
        epochs = self.epochs
        if step < epochs.starts[-1]:
            return self.earlier[bisect_right(self._begins, step) - 1]
        epoch = epochs.number(step)
        return Segment(epochs.begin(epoch), epoch, 0, self.num_rows, self.batch_size)

    def is_epoch(self, step: int) -> bool:
        """Return whether an epoch ends with `step` updates, also in a longer run."""
        return self.epochs.index(step) == 0

    def epoch(self, number: int) -> np.ndarray:
        """The permutation of an epoch.  # int64[num_rows]"""
        return _epoch(self.num_rows, self.seed, number)

    def chunk(self, first_step: int, num_steps: int) -> Chunk:
        """At most `num_steps` updates from `first_step` on. A chunk does not cross the end of an
        epoch or of a segment, and a last update with fewer rows is a chunk of its own."""
        segment = self.segment(first_step)
        batch_size, first = segment.batch_size, first_step - segment.first_step
        order = self.epoch(segment.epoch)[segment.first_row : segment.last_row]
        size = batch_size * self.accumulate
        num_whole = len(order) // size
        if first < num_whole:
            last = min(first + num_steps, num_whole)
            block = order[first * size : last * size].reshape(
                last - first, self.accumulate, batch_size
            )
            return Chunk(first_step, last - first, (block,), is_whole=True)
        rest = order[num_whole * size :]
        num_full, short = divmod(len(rest), batch_size)
        full = rest[: num_full * batch_size].reshape(1, num_full, batch_size)
        blocks = (full, rest[len(rest) - short :].reshape(1, 1, short))
        return Chunk(first_step, 1, tuple(block for block in blocks if block.size), is_whole=False)


class OneBatch(Order):
    """The order of debug=overfit: every update has rows of the first one, in the same order."""

    def epoch(self, number: int) -> np.ndarray:
        """The rows of the first update, repeated.  # int64[num_rows]"""
        num = self.segment(0).batch_size * self.accumulate
        return np.resize(super().epoch(0)[:num], self.num_rows)


def one_batch(order: Order) -> OneBatch:
    """Return the order of the same updates with the rows of the first one."""
    return OneBatch(**{field.name: getattr(order, field.name) for field in fields(order)})


@dataclass(frozen=True)
class InOrder:
    """The rows of all updates of a run, as an iterable yields them: update t uses rows t A B to
    (t + 1) A B - 1. All updates have equal shape."""

    batch_size: int
    accumulate: int
    total_steps: int
    epoch_steps: int | None  # None: the whole run is one epoch
    changes_size: ClassVar[bool] = False

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def largest_batch(self) -> int:
        return self.batch_size

    @property
    def epochs(self) -> Periods:
        """The updates at which the epochs begin."""
        return Periods(self.epoch_steps or self.total_steps)

    @property
    def num_rows(self) -> int:
        """The rows of an epoch."""
        return self.epochs.length * self.rows_per_step

    def is_epoch(self, step: int) -> bool:
        """Return whether an epoch ends with `step` updates, also in a longer run."""
        return self.epoch_steps is not None and step % self.epoch_steps == 0

    def segment(self, step: int) -> Segment:
        """The updates of the epoch that an update is in."""
        epoch = self.epochs.number(step)
        return Segment(self.epochs.begin(epoch), epoch, 0, self.num_rows, self.batch_size)

    def chunk(self, first_step: int, num_steps: int) -> Chunk:
        """`num_steps` updates from `first_step` on."""
        size = self.rows_per_step
        rows = np.arange(first_step * size, (first_step + num_steps) * size)
        block = rows.reshape(num_steps, self.accumulate, self.batch_size)
        return Chunk(first_step, num_steps, (block,), is_whole=True)


def begun(order: Order | InOrder, step: int) -> list[tuple[int, int, int, int]]:
    """Return the first update, epoch, row and batch size of each segment that begins before
    `step`."""
    found, first_step = [], 0
    while first_step < step:
        segment = order.segment(first_step)
        found.append((first_step, segment.epoch, segment.first_row, segment.batch_size))
        first_step = segment.end(order.accumulate)
    return found


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
    checkpoints: Periods | None  # a checkpoint is written at the end of each
    adapt: bool
    # row numbers int64[n], epoch -> dtype[n, ...] each
    read: Callable[[np.ndarray, int], Batch] | None = None
    ahead: bool = True
    part: Callable[[Chunk], Chunk] | None = None
    began: float | None = None  # time.monotonic() at the request of the first chunk
    waited_seconds: float = 0.0  # for rows, so far
    events: Sequence[Periods] = ()  # further periods, at whose ends a chunk ends

    def __iter__(self) -> Iterator[Chunk]:
        self.began = time.monotonic()
        step, num = self.start, min(8, self.largest) if self.adapt else self.largest
        ahead = self.read is not None and self.ahead
        with ThreadPoolExecutor(1, "rows") as reader:
            upcoming = self._prefetch(step, num, reader)
            while upcoming is not None:
                before = time.perf_counter()
                chunk = upcoming()
                self.waited_seconds += time.perf_counter() - before
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
        epoch = self.order.epochs.number(chunk.first_step)
        if isinstance(self.order, OneBatch):  # augmentation and masks stay, too
            epoch = 0
        return chunk._replace(fields=self.read(chunk.rows, epoch))

    def _until_event(self, step: int) -> int:
        checkpoints = [self.checkpoints] if self.checkpoints else []
        periods = [self.order.epochs, *checkpoints, *self.events]
        return min([self.order.total_steps, *(each.next(step) for each in periods)]) - step


@lru_cache(maxsize=1)
def _epoch(num_rows: int, seed: int, number: int) -> np.ndarray:
    return permutation(num_rows, seed, f"order/{number}")
