"""What happens between two chunks, written once for every backend: records, evaluation, checkpoints, progress, the end."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import InitVar, asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from runner import checkpoint
from runner.console import Console
from runner.data.order import Chunk
from runner.errors import RunError
from runner.metrics import Means
from runner.plan import Plan, evaluate, rows
from runner.run_folder import RunFolder
from runner.schedules.plateau import State
from runner.signals import Signals
from runner.spec import Live, Report, TrainState
from runner.stall import Stall, Watch

# of a checkpoint: below, a thread that serialises it costs the training more, by taking turns with it, than it would itself
_QUICKLY_STAGED = 2**20


@dataclass
class Training:
    plan: Plan
    path: Path
    console: Console
    signals: Signals
    applied_names: list[str]  # RunSpec's
    config_sha256: str
    started: float  # by time.monotonic
    best: dict[str, Any] | None = None  # metric, value, epoch, step of the best epoch so far
    metrics: dict[str, float] = field(default_factory=dict)  # of the last epoch
    plateau: State = field(default_factory=State)
    watch: Watch = field(default_factory=Watch)  # early stopping's
    stopped_early: bool = False

    resumed: InitVar[Mapping[str, Any] | None] = None  # a checkpoint's state.json

    def __post_init__(self, resumed: Mapping[str, Any] | None) -> None:
        self._files = RunFolder(self.path, self.plan.columns(), self.applied_names[1:])
        self._every = self.plan.checkpoint_steps()
        self._means = Means()
        self._saved: list[int] = []  # the steps of the checkpoints of this run, oldest first
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None
        self.step = 0  # applied updates whose loss was finite
        self.compile_seconds = 0.0
        self.skipped: list[int] = []  # updates whose loss was not finite, passed over
        if resumed is not None:
            self.best, self.metrics = resumed["best"], resumed["metrics"]
            self.plateau, self.watch = State.of(resumed["plateau"]), Watch(**resumed["early_stopping"])
            self._means, self.step = Means(resumed["means"]), resumed["step"]
            self._saved = [step for step in checkpoint.steps(self.path) if step <= self.step]
            self.skipped = list(resumed.get("skipped", []))
            self.started -= resumed["seconds"]

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()
        self._files.close()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written; if it could not be, that is raised here."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

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
            more = f", after {trainer.max_skipped} that were skipped" if trainer.on_nonfinite == "skip" else ""
            raise RunError(f"the loss of update {self.step} is {report.losses[good]}{more}")
        self.skipped += [chunk.first_step + int(i) for i in bad]
        self.compile_seconds += report.compile_seconds
        counted = np.repeat(np.isfinite(report.losses), chunk.rows_per_step) if len(bad) else slice(None)
        self._means.add(rows(self.plan, report.outputs[counted], self.plan.data.train.y[chunk.rows[counted]]))
        self.console.advance(step, f"rate {report.applied['learning_rate'][-1]:.3g}  loss {report.losses[-1]:.4g}")
        over = step == order.total_steps
        if over or step % order.steps_per_epoch == 0:
            self._end_epoch(step, live)
        stop = self.signals.received is not None or self.stopped_early
        if over or stop or (self._every is not None and step % self._every == 0):
            self._save(live.state())
        return not stop

    def _end_epoch(self, step: int, live: Live) -> None:
        plan, epoch = self.plan, -(-step // self.plan.order.steps_per_epoch)
        values = {f"train/{name}": value for name, value in self._means.result().items()}
        if step % plan.order.steps_per_epoch == 0:  # else the run may be made longer, and the epoch with it
            self._means = Means()
        if len(plan.data.val):
            outputs = plan.outputs(plan.data.val, live.predict)
            values |= {f"val/{name}": value for name, value in evaluate(plan, outputs, plan.data.val).items()}
        self.metrics = values
        self._files.metrics({"epoch": epoch, "step": step, **values, "seconds": round(monotonic() - self.started, 3)})
        self.console.epoch(f"epoch {epoch}  step {step}  {show(values)}")
        monitor = plan.config.trainer.monitor
        best = float(self.best["value"]) if self.best else None
        if Stall(plan.config.trainer.monitor_mode, patience=0).is_better(values[monitor], best):
            self.best = {"metric": monitor, "value": values[monitor], "epoch": epoch, "step": step}
        if step < plan.order.total_steps:
            self._look_out(step, values, live)

    def _look_out(self, step: int, values: Mapping[str, float], live: Live) -> None:
        """For a metric that has stalled, between two epochs."""
        plan, before = self.plan, self.plateau
        if plan.early_stopping:
            self.watch, self.stopped_early = plan.early_stopping.after(self.watch, values[plan.config.trainer.monitor])
        if plan.plateau:
            self.plateau = plan.plateau.after(before, values[plan.plateau.metric])
            if self.plateau.factor != before.factor and not self.stopped_early:
                live.use_rates(plan.rates(self.plateau))
                lowered = f"from step {step} on rates times {self.plateau.factor:g}"
                self.console.say(f"plateau  {plan.plateau.metric} has stalled: {lowered}")

    def _save(self, state: TrainState) -> None:
        """A checkpoint, with those before it that are kept, and the best one; it is written while the next chunk trains."""
        extra = {
            "best": self.best,
            "metrics": self.metrics,
            "plateau": self.plateau.numbers(),
            "early_stopping": asdict(self.watch),
            "stopped_early": self.stopped_early,
            "means": self._means.state(),
            "skipped": self.skipped,
            "seconds": round(monotonic() - self.started, 3),
            "config_sha256": self.config_sha256,
        }
        best = self.best["step"] if self.best else None
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
            saved = [*(before for before in self._saved if before != step), step]
            self._saved = saved[-(self.plan.config.trainer.keep_checkpoints or 0) :]
            checkpoint.keep(self.path, {*self._saved, *([] if best is None else [best])})

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """What the disk refuses is told with its place, the bytes that are free, and which checkpoint is whole."""
        try:
            yield
        except OSError as error:
            before = "none before" if not self._saved else f"the one before, of step {self._saved[-1]}, is whole"
            place, free = self.path / "checkpoints" / str(step), shutil.disk_usage(self.path).free
            raise RunError(f"{place} cannot be written: {error.strerror}, {free} bytes are free; {before}") from error


def show(values: Mapping[str, float]) -> str:
    """Metrics as one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
