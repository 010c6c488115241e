"""The base class of observers, which are called between two chunks: records, checkpoints, stalls,
progress, and the user's own."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from runner.data.order import Chunk, Chunks
from runner.spec import Backend, Live, Report, RunSpec, TrainState


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
    and closes its resources. An observer changes the run's numbers only by ending the run.

    `callbacks=[{_target_: mine.Threshold, value: 0.95}]` in a config, or `callbacks=[...]` of
    runner.train, adds observers of the user's own. With `trainer.steps_per_call=1` a chunk is one
    update; with `auto` it has up to an epoch's updates.

    Example:
        >>> class Threshold(Observer):
        ...     def __init__(self, value):
        ...         self.value = value
        ...
        ...     def on_epoch(self, epoch, live):
        ...         return epoch.metrics["val/accuracy"] < self.value
    """

    state_name: str | None = None  # of its state in checkpoints; None: its position and class
    # True: on_checkpoint is not needed for checkpoints that newer ones replace at once
    skips_checkpoints = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        """Called before each chunk."""

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        """Called after each chunk: its first step and rows; its losses, learning rates and outputs;
        the model, as live.state() and live.predict(rows). Return False to end the run."""
        return True

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        """Called after the last chunk of an epoch. Return False to end the run."""
        return True

    def on_finish(self, live: Live) -> None:
        """Called after the last chunk of a run that is complete or that an observer ends, before
        its last checkpoint. An interrupted run has no such event."""

    def on_checkpoint(self, folder: Path) -> None:
        """Called by the thread that writes checkpoints, when one is on the disk. If an observer has
        this method, every checkpoint is written. Else a checkpoint is left out if newer ones
        replace it within about 0.1 s, and so it is if `skips_checkpoints` is True."""

    def kept_checkpoints(self) -> Collection[int]:
        """Return the steps of the checkpoints that must stay. If the present step is among them, a
        checkpoint is written."""
        return ()

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Called after all other events, with the values of result.json."""

    def state(self) -> dict[str, Any]:
        """Return the state that this observer needs when the run resumes: numbers, texts, lists and
        dicts. It is in the state.json of each checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Called before the first event of a run that resumes, with what `state` returned for its
        checkpoint."""


class Limit(Observer):
    """Ends a run before its last update, or as failed, for a reason of its own."""

    cause: str  # for result.json
    is_over = False

    def prepare(self, backend: Backend, run: RunSpec, start: TrainState, chunks: Chunks) -> None:
        """Called before the training, with what the backend gets. It may raise RunError."""

    def examine(self, chunk: Chunk, report: Report, live: Live) -> None:
        """Called after each chunk, before any observer's on_chunk. It may raise RunError."""


def takes_each_checkpoint(observer: Observer) -> bool:
    """Return whether an observer needs each checkpoint to be written."""
    has_event = type(observer).on_checkpoint is not Observer.on_checkpoint
    return has_event and not observer.skips_checkpoints


def label(observer: Observer) -> str:
    """Return the name of an observer's class; of a framework's callback, that of its class."""
    return type(getattr(observer, "native", observer)).__qualname__
