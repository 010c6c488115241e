"""What happens between two chunks, written once for every backend: records, evaluation, checkpoints, progress, the end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

import numpy as np

from runner import checkpoint
from runner.console import Console
from runner.data.order import Chunk
from runner.errors import RunError
from runner.metrics import Means
from runner.plan import Plan, evaluate, rows
from runner.run_folder import RunFolder
from runner.signals import Signals
from runner.spec import Live, Report, TrainState


@dataclass
class Training:
    plan: Plan
    path: Path
    console: Console
    signals: Signals
    applied_names: list[str]  # RunSpec's
    config_sha256: str
    started: float  # seconds since the epoch
    best: dict[str, Any] | None = None  # metric, value, epoch, step of the best epoch so far
    metrics: dict[str, float] = field(default_factory=dict)  # of the last epoch

    def __post_init__(self) -> None:
        self._files = RunFolder(self.path, self.plan.columns(), self.applied_names[1:])
        self._every = self.plan.checkpoint_steps()
        self._means = Means()
        self._saved: int | None = None
        self.step = 0  # applied updates whose loss was finite

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        """The seam's OnChunk."""
        order, step = self.plan.order, chunk.first_step + chunk.num_steps
        bad = np.flatnonzero(~np.isfinite(report.losses))
        good = int(bad[0]) if len(bad) else chunk.num_steps
        self._files.trace(chunk.first_step, report.losses[:good], report.applied)
        self.step = chunk.first_step + good
        if len(bad):
            raise RunError(f"the loss of update {self.step} is {report.losses[good]}")
        self._means.add(rows(self.plan, report.outputs, self.plan.data.train.y[chunk.rows]))
        self.console.advance(step, f"rate {report.applied['learning_rate'][-1]:.3g}  loss {report.losses[-1]:.4g}")
        over, stop = step == order.total_steps, self.signals.received is not None
        if over or step % order.steps_per_epoch == 0:
            self._end_epoch(step, live)
        if over or stop or (self._every is not None and step % self._every == 0):
            self._save(live.state())
        return not stop

    def _end_epoch(self, step: int, live: Live) -> None:
        plan, epoch = self.plan, -(-step // self.plan.order.steps_per_epoch)
        values = {f"train/{name}": value for name, value in self._means.result().items()}
        self._means = Means()
        if len(plan.data.val):
            outputs = live.predict(np.ascontiguousarray(plan.data.val.x, dtype=plan.model.dtype))
            values |= {f"val/{name}": value for name, value in evaluate(plan, outputs, plan.data.val).items()}
        self.metrics = values
        self._files.metrics({"epoch": epoch, "step": step, **values, "seconds": round(time() - self.started, 3)})
        self.console.epoch(f"epoch {epoch}  step {step}  {show(values)}")
        monitor = plan.config.trainer.monitor
        if self._is_better(values[monitor]):
            self.best = {"metric": monitor, "value": values[monitor], "epoch": epoch, "step": step}

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return True
        best = float(self.best["value"])
        return value < best if self.plan.config.trainer.monitor_mode == "min" else value > best

    def _save(self, state: TrainState) -> None:
        """A checkpoint, with the one before and the best one kept."""
        extra = {"best": self.best, "metrics": self.metrics, "config_sha256": self.config_sha256}
        checkpoint.write(self.path, state, extra)
        checkpoint.point(self.path, "last", state.step)
        best = self.best["step"] if self.best else None
        if best == state.step:
            checkpoint.point(self.path, "best", state.step)
        checkpoint.keep(self.path, {step for step in (state.step, self._saved, best) if step is not None})
        self._saved = state.step


def show(values: Mapping[str, float]) -> str:
    """Metrics as one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
