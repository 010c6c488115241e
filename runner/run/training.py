"""What happens between two chunks, written once for every backend: records, evaluation,
checkpoints, progress, the end."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import InitVar, asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from runner.components.metrics import Means
from runner.data.order import Chunk
from runner.errors import RunError
from runner.plan import Plan, evaluate, rows
from runner.run import checkpoint
from runner.run.run_folder import RunFolder
from runner.run.signals import Signals
from runner.schedules.plateau import State
from runner.schedules.stall import Stall, Watch
from runner.spec import Live, Report, TrainState
from runner.text.console import Console

# of a checkpoint: below, a thread that serialises it costs the training more, by taking turns with
# it, than it would itself
_QUICKLY_STAGED = 2**20


@dataclass
class Training:
    plan: Plan
    path: Path
    console: Console
    signals: Signals
    tables: list[str]  # names of RunSpec.tables
    config_sha256: str
    started: float  # by time.monotonic
    best: dict[str, Any] | None = None  # metric, value, epoch, step of the best whole epoch so far
    metrics: dict[str, float] = field(default_factory=dict)  # of the last whole epoch
    # `metrics` and `best` of a run that ends inside an epoch: all else is as if the run went on
    unfinished: dict[str, Any] | None = None
    plateau: State = field(default_factory=State)
    watch: Watch = field(default_factory=Watch)  # early stopping's
    stopped_early: bool = False

    resumed: InitVar[Mapping[str, Any] | None] = None  # a checkpoint's state.json
    is_over: InitVar[bool] = False  # it is the run's last, and nothing is left to train

    def __post_init__(self, resumed: Mapping[str, Any] | None, is_over: bool) -> None:
        self._files = RunFolder(self.path, self.plan.columns(), self.tables[1:])
        self._every = self.plan.checkpoint_steps()
        self._means = Means()
        self._saved: list[int] = []  # the steps of the checkpoints of this run, oldest first
        self._best_saved: int | None = None  # the one that `best` points to
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None
        self.step = 0  # applied updates whose loss was finite
        self.compile_seconds = 0.0
        self.skipped: list[int] = []  # updates whose loss was not finite, passed over
        if resumed is not None:
            self.best, self.metrics = resumed["best"], resumed["metrics"]
            self.plateau, self.watch = (
                State.of(resumed["plateau"]),
                Watch(**resumed["early_stopping"]),
            )
            self._means, self.step = Means(resumed["means"]), resumed["step"]
            if is_over:
                self.unfinished, self.stopped_early = (
                    resumed.get("unfinished"),
                    resumed["stopped_early"],
                )
            self._saved = [step for step in checkpoint.steps(self.path) if step <= self.step]
            self._best_saved = checkpoint.target(self.path, "best")
            self.skipped = list(resumed.get("skipped", []))
            self.started -= resumed["seconds"]

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()
        self._files.close()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written; if it could not be, that is raised
        here."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def outcome(self) -> dict[str, Any]:
        """`metrics` and `best` as result.json has them."""
        return self.unfinished or {"metrics": self.metrics, "best": self.best}

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        """The seam's OnChunk."""
        order, step = self.plan.order, chunk.first_step + chunk.num_steps
        trainer = self.plan.config.trainer
        bad = np.flatnonzero(~np.isfinite(report.losses))
        left = trainer.max_skipped - len(self.skipped) if trainer.on_nonfinite == "skip" else 0
        good = int(bad[left]) if len(bad) > left else chunk.num_steps
        self._files.trace(chunk.first_step, report.losses[:good], report.applied)
        self.step = chunk.first_step + good
        if len(bad) > left:
            more = (
                f", after {trainer.max_skipped} that were skipped"
                if trainer.on_nonfinite == "skip"
                else ""
            )
            raise RunError(f"the loss of update {self.step} is {report.losses[good]}{more}")
        self.skipped += [chunk.first_step + int(i) for i in bad]
        self.compile_seconds += report.compile_seconds
        counted = (
            np.repeat(np.isfinite(report.losses), chunk.rows_per_step) if len(bad) else slice(None)
        )
        self._means.add(
            rows(self.plan, report.outputs[counted], self.plan.data.train.y[chunk.rows[counted]])
        )
        self.console.advance(
            step, f"rate {report.applied['learning_rate'][-1]:.3g}  loss {report.losses[-1]:.4g}"
        )
        over = step == order.total_steps
        if over or step % order.steps_per_epoch == 0:
            self._end_epoch(step, live)
        stop = self.signals.received is not None or self.stopped_early
        if over or stop or (self._every is not None and step % self._every == 0):
            self._save(live.state())
        return not stop

    def _end_epoch(self, step: int, live: Live) -> None:
        plan, epoch = self.plan, -(-step // self.plan.order.steps_per_epoch)
        means = self._means.result()  # without a name whose every row was skipped
        values = {f"train/{name}": means.get(name, math.nan) for name in ("loss", *plan.metrics)}
        if len(plan.data.val):
            outputs = plan.outputs(plan.data.val, live.predict)
            values |= {
                f"val/{name}": value
                for name, value in evaluate(plan, outputs, plan.data.val).items()
            }
        self._files.metrics(
            {
                "epoch": epoch,
                "step": step,
                **values,
                "seconds": round(monotonic() - self.started, 3),
            }
        )
        self.console.epoch(f"epoch {epoch}  step {step}  {show(values)}")
        best = self._better(values, epoch, step)
        # a longer run would not evaluate here: nothing that it needs may change
        if step % plan.order.steps_per_epoch:
            self.unfinished = {"metrics": values, "best": self.best or best}
            return
        self._means = Means()
        self.metrics, self.best = values, best or self.best
        self._react_to_stall(step, values, live)

    def _better(self, values: Mapping[str, float], epoch: int, step: int) -> dict[str, Any] | None:
        """Compare an epoch's metrics with `best`; return the new one, or None if `best` stays."""
        trainer = self.plan.config.trainer
        best = float(self.best["value"]) if self.best else None
        if not Stall(trainer.monitor_mode, patience=0).is_better(values[trainer.monitor], best):
            return None
        return {
            "metric": trainer.monitor,
            "value": values[trainer.monitor],
            "epoch": epoch,
            "step": step,
        }

    def _react_to_stall(self, step: int, values: Mapping[str, float], live: Live) -> None:
        """Early stopping and a plateau see the metrics of every whole epoch. Those of the run's
        last one too: the run may be made longer."""
        plan, before = self.plan, self.plateau
        if plan.early_stopping:
            num_bad = self.watch.num_bad + 1
            self.watch, self.stopped_early = plan.early_stopping.after(
                self.watch, values[plan.config.trainer.monitor]
            )
            if self.stopped_early:  # with more patience the run goes on, and these epochs count
                self.watch = replace(self.watch, num_bad=num_bad)
        if plan.plateau:
            self.plateau = plan.plateau.after(before, values[plan.plateau.metric])
            is_over = self.stopped_early or step == plan.order.total_steps
            if self.plateau.factor != before.factor and not is_over:
                live.use_tables(plan.tables(self.plateau))
                lowered = f"from step {step} on rates times {self.plateau.factor:g}"
                self.console.say(f"plateau  {plan.plateau.metric} has stalled: {lowered}")

    def _save(self, state: TrainState) -> None:
        """A checkpoint, with those before it that are kept, and the best one; it is written while
        the next chunk trains."""
        extra = {
            "best": self.best,
            "metrics": self.metrics,
            "unfinished": self.unfinished,
            "plateau": self.plateau.numbers(),
            "early_stopping": asdict(self.watch),
            "stopped_early": self.stopped_early,
            "means": self._means.state(),
            "skipped": self.skipped,
            "seconds": round(monotonic() - self.started, 3),
            "config_sha256": self.config_sha256,
            "threads": self.plan.model.threads,
        }
        best = (self.outcome()["best"] or {}).get("step")
        self.finish()
        stage: Callable[[], Path] = partial(checkpoint.stage, self.path, state, extra)
        if checkpoint.num_bytes(state) < _QUICKLY_STAGED:
            with self._saving(state.step):
                staged = stage()
            stage = lambda: staged  # noqa: E731
        self._writing = self._writer.submit(self._write, stage, state.step, best)

    def _write(self, stage: Callable[[], Path], step: int, best: int | None) -> None:
        with self._saving(step):
            self._files.sync()  # a checkpoint never knows of updates that the logs do not
            checkpoint.commit(stage(), step)
            checkpoint.point(self.path, "last", step)
            if best == step:
                checkpoint.point(self.path, "best", step)
                self._best_saved = step
            saved = [*(before for before in self._saved if before != step), step]
            self._saved = saved[-(self.plan.config.trainer.keep_checkpoints or 0) :]
            checkpoint.keep(
                self.path, {*self._saved, *([] if self._best_saved is None else [self._best_saved])}
            )

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """What the disk refuses is told with its place, the bytes that are free, and which
        checkpoint is whole."""
        try:
            yield
        except OSError as error:
            before = (
                "none before"
                if not self._saved
                else f"the one before, of step {self._saved[-1]}, is whole"
            )
            place, free = self.path / "checkpoints" / str(step), shutil.disk_usage(self.path).free
            raise RunError(
                f"{place} cannot be written: {error.strerror}, {free} bytes are free; {before}"
            ) from error


def show(values: Mapping[str, float]) -> str:
    """Metrics as one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
