"""Write a run's checkpoints while the training goes on; keep the newest ones and the best.

A state is copied at once and written by another thread. While this thread is busy, and for
_PACE_SECONDS after each write, small states wait in memory, and a state is dropped when its
checkpoint would be removed: a run with an epoch every few milliseconds would otherwise write a
checkpoint for each of them, and remove it two epochs later. The end of the run writes all states
that wait, so that the folder has the checkpoints that it would have without waiting.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from runner.errors import RunError
from runner.run import checkpoint
from runner.run.observer import Observer
from runner.run.run_folder import why_unwritten
from runner.spec import TrainState

# Seconds from the end of a write to the next one. A run that is killed trains the updates of this
# time and of one write again.
_PACE_SECONDS = 0.1
# Bytes of the states that may wait. With more, they are written at once; with more than twice as
# many, the training waits for it.
_MOST_WAITING = 2**22


class _Snapshot(NamedTuple):
    """A state to write."""

    state: TrainState
    numbers: bytes  # the content of state.json
    num_bytes: int
    best: int | None  # the step that `best` points to when it is written
    named: frozenset[int]  # the best checkpoint and those that observers keep: they come first
    kept: frozenset[int]  # all checkpoints of the folder when everything until here is written


class Checkpoints(Observer):
    """Saves states into FOLDER/checkpoints, in a separate thread.

    A checkpoint is written only after those that its state.json names. `last` points to the newest
    one that is written, and `keep` of the newest written ones stay until newer ones are written.
    """

    def __init__(
        self,
        path: Path,
        keep: int | None,
        before_commit: Callable[[], None],
        after_commit: Callable[[Path], None],
        resumed_at: int | None,
    ) -> None:
        """`keep` is the number of newest checkpoints to keep, None for all. `resumed_at` is the
        step at which the run resumes."""
        self.path, self.keep = path, keep
        self.writes_each = keep is None  # also those that newer ones would replace at once
        self._before_commit, self._after_commit = before_commit, after_commit
        # The folder when all states that wait are written: all steps, the newest ones of this run
        # (oldest first), and the one that `best` points to
        self._steps = frozenset(checkpoint.steps(path))
        self._newest: list[int] = []
        self._best: int | None = None
        if resumed_at is not None:
            self._newest = sorted(step for step in self._steps if step <= resumed_at)
            self._best = checkpoint.target(path, "best")
        # The folder as it is
        self._last = -1 if resumed_at is None else resumed_at  # the step that `last` points to
        self._pointed_best, self._kept = self._best, self._steps
        self._written = list(self._newest)
        self._changed = threading.Condition()  # guards what follows
        self._waiting: dict[int, _Snapshot] = {}  # by step
        self._writing: Sequence[_Snapshot] = ()
        self._is_urgent = False  # write all states that wait, without a rest
        self._is_closed = self._is_idle = False
        self._rests_until = 0.0  # of time.monotonic
        self._error: BaseException | None = None
        self._writer = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)

    def __enter__(self) -> "Checkpoints":
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = self._is_urgent = True
            self._changed.notify_all()
        self._writer.join()

    def finish(self) -> None:
        """Write all states that wait. Raise the error of a write, if any."""
        with self._changed:
            self._is_urgent = self._is_urgent or bool(self._waiting)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._writing)
            self._raise_error()

    def save(
        self,
        state: TrainState,
        extra: Mapping[str, Any],
        best: int | None,
        others: Collection[int] = (),
        is_last: bool = False,
    ) -> None:
        """Save a state with its state.json. `best` is the step of the best epoch so far; `others`
        are steps of checkpoints that stay besides the newest ones and the best. The last state of a
        run, and all that wait, are written at once."""
        numbers, size = checkpoint.state_json(state, extra), checkpoint.num_bytes(state)
        num_bytes = size + self._num_bytes()
        if self.writes_each or num_bytes > 2 * _MOST_WAITING:
            self.finish()
        with self._changed:
            self._raise_error()
            self._add(state, numbers, size, best, others)
            is_urgent = is_last or self.writes_each or num_bytes > _MOST_WAITING
            self._is_urgent = self._is_urgent or is_urgent
            if self._is_idle or self._is_urgent:
                self._changed.notify_all()
        if is_last and size > _MOST_WAITING:
            self.finish()  # frees its memory before the backend copies the state that it returns

    def _num_bytes(self) -> int:
        """Count the bytes of all states in memory."""
        with self._changed:
            return sum(each.num_bytes for each in (*self._waiting.values(), *self._writing))

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _add(
        self,
        state: TrainState,
        numbers: bytes,
        size: int,
        best: int | None,
        others: Collection[int],
    ) -> None:
        """Let a state wait. Drop those that are neither among the newest nor kept any more."""
        step = state.step
        newest = [*(old for old in self._newest if old != step), step]
        self._newest = newest[-(self.keep or 0) :]
        self._best = step if best == step else self._best
        named = {*others, self._best}
        self._steps = (self._steps | {step}) & {*self._newest, *named}
        waiting = {old: each for old, each in self._waiting.items() if old in self._steps}
        kept = self._steps
        waiting[step] = _Snapshot(state, numbers, size, self._best, kept & named, kept)
        self._waiting = waiting

    def _write_all(self) -> None:
        """Run the thread: write states until the end."""
        snapshots: Sequence[_Snapshot]
        while snapshots := self._next():
            error = None
            try:
                self._write(snapshots)
            except BaseException as raised:  # the training thread raises it, SystemExit too
                error = raised
            snapshots = ()  # frees their memory, before the next ones arrive
            with self._changed:
                self._writing, self._rests_until = (), monotonic() + _PACE_SECONDS
                if error is not None:
                    self._error, self._waiting = error, {}
                self._changed.notify_all()

    def _next(self) -> Sequence[_Snapshot]:
        """Wait until a state is to be written. Return it after those that must come first, in the
        order of their steps; nothing after the end."""
        with self._changed:
            self._is_idle = True
            self._changed.wait_for(
                lambda: self._is_urgent or max(self._waiting, default=-1) > self._last
            )
            self._is_idle = False
            self._changed.wait_for(lambda: self._is_urgent, self._rests_until - monotonic())
            steps = {*self._waiting}
            if not self._is_urgent:
                newest = max(steps)
                steps &= {newest, *self._waiting[newest].named}
            self._writing = [self._waiting.pop(step) for step in sorted(steps)]
            self._is_urgent = self._is_closed
            return self._writing

    def _write(self, snapshots: Sequence[_Snapshot]) -> None:
        newest = snapshots[-1]
        last, is_newer = newest.state.step, newest.state.step > self._last
        with self._saving(last):
            self._before_commit()  # the records must contain all updates of a checkpoint
        for state, numbers, *_ in snapshots:
            with self._saving(state.step):
                checkpoint.commit(checkpoint.stage(self.path, state, numbers), state.step)
        with self._saving(last):
            if is_newer:
                checkpoint.point(self.path, "last", last)
                self._last, self._kept = last, newest.kept
                if newest.best is not None and newest.best != self._pointed_best:
                    checkpoint.point(self.path, "best", newest.best)
                    self._pointed_best = newest.best
            written = sorted({*self._written, *(each.state.step for each in snapshots)})
            self._written = written[-(self.keep or 0) :]
            checkpoint.keep(self.path, {*self._kept, *self._written})
        if is_newer:
            self._after_commit(self.path / "checkpoints" / str(last))

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Turn a failed write into an error with the path, the free bytes and the last whole
        checkpoint."""
        try:
            yield
        except OSError as error:
            previous = "there is no earlier checkpoint"
            if self._last >= 0:
                previous = f"the last whole checkpoint is that of step {self._last}"
            path = self.path / "checkpoints" / str(step)
            raise RunError(f"{why_unwritten(path, error)}; {previous}") from error
