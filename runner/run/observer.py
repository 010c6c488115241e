"""Observers watch a run between two chunks: records, checkpoints, stalls, progress, loggers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from runner.data.order import Chunk
from runner.spec import Live, Report


@dataclass(frozen=True)
class Epoch:
    """The evaluation after an epoch, or after the part of one that a run ends with."""

    number: int  # from 1
    step: int  # updates so far
    metrics: Mapping[str, float]  # "train/loss", "val/accuracy", ...
    seconds: float  # since the run began
    is_whole: bool  # False: a longer run would not evaluate here


class Observer:
    """Watches a run, on rank 0 alone. A subclass overrides the events that it needs; `with` opens
    and closes what it holds. An observer changes no numbers but through `Live`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        """See a chunk. Return False to end the run."""
        return True

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        """See an epoch, once its last chunk has been seen. Return False to end the run."""
        return True

    def on_checkpoint(self, folder: Path) -> None:
        """See a checkpoint that is on the disk. The thread that writes checkpoints calls this."""

    def on_end(self, result: Mapping[str, Any]) -> None:
        """See the values of result.json, after all other events."""

    def state(self) -> dict[str, Any]:
        """Return entries for a checkpoint's state.json, as JSON: what this observer needs when the
        run goes on."""
        return {}
