"""The pulse of a run's processes: how the command notices one that hangs.

Each process tells the command every second how far it is. One that is stopped, or on a machine that
is lost, tells nothing. One that is stuck tells the same again, while the others wait for it in a
sum over the processes; then it has begun fewer sums than they.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SECONDS = 1.0  # between two messages
START_SECONDS = 300.0  # the least limit before the first updates: imports, reading, compilation

_num_events = 0  # chunks and sums that this process has begun, and shares of evaluations it ended
_num_chunks = 0  # chunks that all processes have ended; counted by rank 0
_has_begun = threading.Event()
_trains = False  # rank 0: between the beginning and the end of a chunk, and in `waiting`


def count() -> None:
    """Count an event that all processes have in the same order, before this one waits for them."""
    global _num_events
    _num_events += 1


def begin_chunk() -> None:
    """Tell that from now on all processes should make progress."""
    global _trains
    _trains = True


def end_chunk() -> None:
    """Tell that all processes have ended their part of the chunk."""
    global _trains, _num_chunks
    _trains, _num_chunks = False, _num_chunks + 1
    if _num_chunks == 1:
        _has_begun.set()  # told at once, since it changes the limit


@contextmanager
def waiting() -> Iterator[None]:
    """Tell in the block that rank 0 waits for the others, so that they should make progress."""
    global _trains
    _trains = True
    try:
        yield
    finally:
        _trains = False


def rest() -> None:
    """Wait until the next message."""
    if _has_begun.wait(SECONDS):
        _has_begun.clear()


def now() -> tuple[int, int, bool]:
    """Return how far this process is, for `Watch.hear`."""
    return _num_events, _num_chunks, _trains


@dataclass
class Watch:
    """The command's knowledge of the processes: their latest messages, and when they came."""

    size: int
    limit: float  # seconds
    clock: Callable[[], float] = time.monotonic
    _heard: list[float] = field(default_factory=list)  # of each rank
    _events: list[int] = field(default_factory=list)  # of each rank
    _moved: float = 0.0  # when one of them was last seen to be further than before
    _num_chunks: int = 0

    def __post_init__(self) -> None:
        self._moved = self.clock()
        self._heard, self._events = [self._moved] * self.size, [0] * self.size

    def hear(self, rank: int, num_events: int, num_chunks: int, trains: bool) -> None:
        """Take a message of a process."""
        self._heard[rank] = self.clock()
        # between two chunks rank 0 may take any time, and the others wait for it
        if num_events != self._events[rank] or (rank == 0 and not trains):
            self._events[rank], self._moved = num_events, self._heard[rank]
        if rank == 0:
            self._num_chunks = num_chunks

    def fault(self) -> str | None:
        """Return what is wrong, once nothing was heard of a process, or none made progress, for
        longer than the limit."""
        limit = self.limit if self._num_chunks else max(self.limit, START_SECONDS)
        now, silent = self.clock(), min(self._heard)
        if now - min(silent, self._moved) <= limit:
            return None
        within = f"for {limit:g} s (trainer.process_timeout)"
        if now - silent > min(limit, 3 * SECONDS):  # else it would have been heard since
            return f"rank {self._heard.index(silent)} gave no sign of life {within}"
        least = min(self._events)
        if least == max(self._events):
            return f"no process made progress {within}; all wait at the same place"
        return f"rank {self._events.index(least)} made no progress {within}, and the others wait"
