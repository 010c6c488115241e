"""The base class of observers, which are called between two chunks: records, checkpoints, stalls,
progress, loggers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from runner.data.order import Chunk
from runner.spec import Live, Report


@dataclass(frozen=True)
class Epoch:
    """The evaluation after an epoch, or at the end of a run that ends within an epoch."""

    number: int  # from 1
    step: int  # updates so far
    metrics: Mapping[str, float]  # "train/loss", "val/accuracy", ...
    seconds: float  # since the run began
    is_whole: bool  # False: the run ends within this epoch; a longer run would not evaluate here


class Observer:
    """Observes a run, on rank 0 only. A subclass overrides the events that it needs; `with` opens
    and closes its resources. An observer changes the run's numbers only through `Live`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        """Called after each chunk. Return False to end the run."""
        return True

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        """Called after the last chunk of an epoch. Return False to end the run."""
        return True

    def on_checkpoint(self, folder: Path) -> None:
        """Called by the thread that writes checkpoints, when one is on the disk."""

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Called after all other events, with the values of result.json."""

    def state(self) -> dict[str, Any]:
        """Return JSON entries for a checkpoint's state.json: the state that this observer needs
        when the run resumes."""
        return {}
