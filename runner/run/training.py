"""The work between two chunks, written once for every backend: evaluation, and the events that
records, checkpoints, stalls and progress see."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, Self

import numpy as np

from runner.components.metrics import Means
from runner.data.order import Chunk
from runner.errors import RunError
from runner.plan import Plan, evaluate, rows
from runner.run.checkpoints import Checkpoints
from runner.run.observer import Epoch, Observer
from runner.run.progress import Progress
from runner.run.records import Records
from runner.run.signals import Signals
from runner.run.stalls import Stalls
from runner.schedules.stall import Stall
from runner.spec import Live, Report, Tables
from runner.text.console import Console


class Training:
    """One run from its first chunk to its last. `with` opens the observers."""

    def __init__(
        self,
        plan: Plan,
        path: Path,
        console: Console,
        signals: Signals,
        tables: Tables,
        config_sha256: str,
        started: float,
        *,
        resumed: Mapping[str, Any] | None = None,
        is_over: bool = False,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`started`: by time.monotonic. `resumed`: a checkpoint's state.json; `is_over`: it is the
        run's last, and nothing is left to train. `observers`: more than the run's own."""
        self.plan, self.path, self.console, self.signals = plan, path, console, signals
        self._tables, self._config_sha256, self._started = list(tables), config_sha256, started
        self._more = observers
        self._every = plan.checkpoint_steps()
        self.step = 0  # applied updates whose loss was finite
        self.skipped: list[int] = []  # updates whose loss was not finite, passed over
        self.compile_seconds = 0.0
        # metric, value, epoch, step of the best whole epoch so far
        self.best: dict[str, Any] | None = None
        self.metrics: dict[str, float] = {}  # of the last whole epoch
        # `metrics` and `best` of a run that ends inside an epoch: all else is as if it went on
        self.unfinished: dict[str, Any] | None = None
        self._means = Means()
        self.stalls = Stalls(plan, console, resumed)
        if resumed is not None:
            self.best, self.metrics, self.step = (
                resumed["best"],
                resumed["metrics"],
                resumed["step"],
            )
            self._means = Means(resumed["means"])
            self.skipped = list(resumed.get("skipped", []))
            self._started -= resumed["seconds"]
            if is_over:
                self.unfinished = resumed.get("unfinished")
                self.stalls.stopped_early = resumed["stopped_early"]
        self._resumed_at = None if resumed is None else self.step

    def __enter__(self) -> Self:
        keep = self.plan.config.trainer.keep_checkpoints
        with ExitStack() as stack:
            self.records = stack.enter_context(
                Records(self.path, self.plan.columns(), self._tables[1:])
            )
            sync, done = self.records.sync, self._on_checkpoint
            self.checkpoints = stack.enter_context(
                Checkpoints(self.path, keep, sync, done, self._resumed_at)
            )
            own = (self.records, Progress(self.console), self.stalls, self.checkpoints)
            self.observers = [*own, *(stack.enter_context(more) for more in self._more)]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def result(self) -> dict[str, Any]:
        """Return what result.json says of the updates so far."""
        return {
            "steps": self.step,
            "epochs": -(-self.step // self.plan.order.steps_per_epoch),
            **(self.unfinished or {"metrics": self.metrics, "best": self.best}),
            "stopped_early": self.stalls.stopped_early,
            "skipped": self.skipped,
        }

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        """The seam's OnChunk."""
        order, step = self.plan.order, chunk.first_step + chunk.num_steps
        self._count(chunk, report)
        going_on = [observer.on_chunk(chunk, report, live) for observer in self.observers]
        over = step == order.total_steps
        if over or step % order.steps_per_epoch == 0:
            epoch = self._end_epoch(step, live)
            going_on += [observer.on_epoch(epoch, live) for observer in self.observers]
        stop = self.signals.received is not None or not all(going_on)
        if over or stop or (self._every is not None and step % self._every == 0):
            best = (self.result()["best"] or {}).get("step")
            self.checkpoints.save(live.state(), self._state(), best)
        return not stop

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Tell the observers what came of the run."""
        for observer in self.observers:
            observer.on_end(result)

    def _on_checkpoint(self, folder: Path) -> None:
        for observer in self.observers:
            observer.on_checkpoint(folder)

    def _count(self, chunk: Chunk, report: Report) -> None:
        """Count the chunk's updates and its rows' metrics. Updates whose loss is not finite are
        passed over, as far as `trainer.max_skipped` allows; beyond, the run ends with the trace of
        all updates before."""
        trainer, losses = self.plan.config.trainer, report.losses
        skips = trainer.on_nonfinite == "skip"
        bad = np.flatnonzero(~np.isfinite(losses))
        left = trainer.max_skipped - len(self.skipped) if skips else 0
        if len(bad) > left:
            good = int(bad[left])
            self.step = chunk.first_step + good
            self.records.trace(chunk.first_step, losses[:good], report.applied)
            more = f", after {trainer.max_skipped} that were skipped" if skips else ""
            raise RunError(f"the loss of update {self.step} is {losses[good]}{more}")
        self.step = chunk.first_step + chunk.num_steps
        self.skipped += [chunk.first_step + int(i) for i in bad]
        self.compile_seconds += report.compile_seconds
        counted = np.repeat(np.isfinite(losses), chunk.rows_per_step) if len(bad) else slice(None)
        targets = self.plan.data.train.y[chunk.rows[counted]]
        self._means.add(rows(self.plan, report.outputs[counted], targets))

    def _end_epoch(self, step: int, live: Live) -> Epoch:
        """Evaluate."""
        plan, number = self.plan, -(-step // self.plan.order.steps_per_epoch)
        means = self._means.result()  # without a name whose every row was skipped
        values = {f"train/{name}": means.get(name, math.nan) for name in ("loss", *plan.metrics)}
        if len(plan.data.val):
            found = evaluate(plan, plan.outputs(plan.data.val, live.predict), plan.data.val)
            values |= {f"val/{name}": value for name, value in found.items()}
        best = self._better(values, number, step)
        is_whole = step % plan.order.steps_per_epoch == 0
        if is_whole:
            self._means = Means()
            self.metrics, self.best = values, best or self.best
        else:  # a longer run would not evaluate here: nothing that it needs may change
            self.unfinished = {"metrics": values, "best": self.best or best}
        return Epoch(number, step, values, round(monotonic() - self._started, 3), is_whole)

    def _better(self, values: Mapping[str, float], epoch: int, step: int) -> dict[str, Any] | None:
        """Compare an epoch's metrics with `best`; return the new one, or None if `best` stays."""
        trainer = self.plan.config.trainer
        best = float(self.best["value"]) if self.best else None
        value = values[trainer.monitor]
        if not Stall(trainer.monitor_mode, patience=0).is_better(value, best):
            return None
        return {"metric": trainer.monitor, "value": value, "epoch": epoch, "step": step}

    def _state(self) -> dict[str, Any]:
        """A checkpoint's state.json."""
        state = {"best": self.best, "metrics": self.metrics, "unfinished": self.unfinished}
        for observer in self.observers:
            state |= observer.state()
        return {
            **state,
            "means": self._means.state(),
            "skipped": self.skipped,
            "seconds": round(monotonic() - self._started, 3),
            "config_sha256": self._config_sha256,
            "threads": self.plan.model.threads,
        }
