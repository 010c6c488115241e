"""End a run by the clock: trainer.max_time."""

from collections.abc import Mapping
from math import inf
from time import monotonic
from typing import Any

from runner.config.times import seconds
from runner.data.order import Chunk
from runner.run.observer import Limit
from runner.spec import Live, Report


class TimeLimit(Limit):
    """Ends the run after the first chunk that ends at or after `max_time` of training.

    The clock counts as Lightning's Timer does: the training of all sessions of the run together.
    In each session it starts with the first chunk, so that the program's start and the time between
    two sessions do not count; evaluation and checkpoints do. A session that is killed counts up to
    its last checkpoint, from which the run resumes.
    """

    cause = "max_time"

    def __init__(self, max_time: str | None, resumed: Mapping[str, Any] | None = None) -> None:
        """`resumed` is a checkpoint's state.json."""
        self._limit = inf if max_time is None else seconds(max_time)
        self._began: float | None = None
        self._before = trained_seconds(resumed or {})  # of earlier sessions

    @property
    def elapsed(self) -> float:
        """The seconds of training so far."""
        return self._before + (0.0 if self._began is None else monotonic() - self._began)

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        if self._began is None:
            self._began = monotonic()

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        self.is_over = self.elapsed >= self._limit
        return not self.is_over

    def state(self) -> dict[str, Any]:
        return {"time": {"trained_seconds": round(self.elapsed, 3), "is_over": self.is_over}}


def trained_seconds(numbers: Mapping[str, Any]) -> float:
    """Return the seconds of training that a checkpoint's state.json counts; 0 if it is older than
    this count."""
    return float(numbers.get("time", {}).get("trained_seconds", 0.0))


def has_ended(numbers: Mapping[str, Any]) -> bool:
    """Return whether trainer.max_time ended the run at this checkpoint."""
    return bool(numbers.get("time", {}).get("is_over", False))
