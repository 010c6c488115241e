"""Write a run's checkpoints while the next chunk trains; keep the newest ones and the best."""

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from runner.errors import RunError
from runner.run import checkpoint
from runner.run.observer import Observer
from runner.run.run_folder import why_unwritten
from runner.spec import TrainState

# Bytes. Smaller checkpoints are serialised on the training thread: contention for the GIL would
# cost more.
_QUICKLY_STAGED = 2**20


class Checkpoints(Observer):
    """Saves states into FOLDER/checkpoints, in a separate thread."""

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
        self._before_commit, self._after_commit = before_commit, after_commit
        self._saved: list[int] = []  # the steps of the checkpoints of this run, oldest first
        self._best_saved: int | None = None  # the step that `best` points to
        if resumed_at is not None:
            self._saved = [step for step in checkpoint.steps(path) if step <= resumed_at]
            self._best_saved = checkpoint.target(path, "best")
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()

    def finish(self) -> None:
        """Wait until the current checkpoint is written. Raise its error, if any."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def save(
        self,
        state: TrainState,
        extra: Mapping[str, Any],
        best: int | None,
        others: Collection[int] = (),
    ) -> None:
        """Save a state with its state.json. `best` is the step of the best epoch so far; `others`
        are steps of checkpoints that stay besides the newest ones and the best."""
        self.finish()
        stage: Callable[[], Path] = partial(checkpoint.stage, self.path, state, dict(extra))
        if checkpoint.num_bytes(state) < _QUICKLY_STAGED:
            with self._saving(state.step):
                staged = stage()
            stage = lambda: staged  # noqa: E731
        self._writing = self._writer.submit(self._write, stage, state.step, best, set(others))

    def _write(
        self, stage: Callable[[], Path], step: int, best: int | None, others: set[int]
    ) -> None:
        with self._saving(step):
            self._before_commit()  # the records must contain all updates of a checkpoint
            checkpoint.commit(stage(), step)
            checkpoint.point(self.path, "last", step)
            if best == step:
                checkpoint.point(self.path, "best", step)
                self._best_saved = step
            saved = [*(old for old in self._saved if old != step), step]
            self._saved = saved[-(self.keep or 0) :]
            best_saved = [] if self._best_saved is None else [self._best_saved]
            checkpoint.keep(self.path, {*self._saved, *best_saved, *others})
        self._after_commit(self.path / "checkpoints" / str(step))

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Turn a failed write into an error with the path, the free bytes and the last whole
        checkpoint."""
        try:
            yield
        except OSError as error:
            previous = "there is no earlier checkpoint"
            if self._saved:
                previous = f"the last whole checkpoint is that of step {self._saved[-1]}"
            path = self.path / "checkpoints" / str(step)
            raise RunError(f"{why_unwritten(path, error)}; {previous}") from error
