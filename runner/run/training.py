"""The work between two chunks, the same for every backend: evaluation, and the calls of the
observers."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Self

import numpy as np

from runner.components.loss_scale import SLOT
from runner.components.losses import is_own
from runner.components.metrics import Means
from runner.components.outputs import Outputs
from runner.data.order import Chunk
from runner.data.source import Batch
from runner.errors import IF_DIVERGED, RunError
from runner.evaluation import add_rows, rows
from runner.plan import Plan
from runner.run import debug
from runner.run.checkpoints import Checkpoints
from runner.run.observer import Epoch, Limit, Observer, label, takes_each_checkpoint
from runner.run.position import Position
from runner.run.progress import Progress
from runner.run.records import BATCH_SIZE, Records
from runner.run.signals import Signals
from runner.run.stalls import Stalls
from runner.run.time_limit import TimeLimit, has_ended
from runner.run.validation import validate
from runner.schedules.stall import Stall
from runner.spec import Live, Report, Tables
from runner.text.console import Console, size


class Training:
    """A run from its first chunk to its last one. `with` opens the observers."""

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
        limits: Sequence[Limit] = (),
    ) -> None:
        """`started` is a time of time.monotonic. `resumed` is a checkpoint's state.json; `is_over`
        says that it is the run's last checkpoint, so nothing is left to train. `observers` and
        `limits` are additional ones."""
        self.plan, self.path, self.console, self.signals = plan, path, console, signals
        self._tables, self._config_sha256, self._started = list(tables), config_sha256, started
        self._additional = {
            observer.state_name or f"{i} {label(observer)}": observer
            for i, observer in enumerate(observers)
        }
        self._saved_states, self._is_over = (resumed or {}).get("observers", {}), is_over
        self._checkpoints = plan.checkpoints()
        self.step = 0  # updates so far, skipped ones included
        self.skipped: list[int] = []  # updates that were skipped: their loss was not finite
        self.compile_seconds = 0.0
        # metric, value, epoch, step of the best whole epoch so far
        self.best: dict[str, Any] | None = None
        self.metrics: dict[str, float] = {}  # of the last whole epoch
        # `metrics` and `best` of a run that ends within an epoch; the other attributes are as in a
        # run that continues
        self.unfinished: dict[str, Any] | None = None
        self._ended_by: str | None = None  # an observer of the user's own
        # of the weights and the optimizer's state in each process; empty with one process
        self.num_bytes: Sequence[Mapping[str, int]] = ()
        self._means = Means()
        self.stalls = Stalls(plan, console, resumed)
        self.time_limit = TimeLimit(plan.config.trainer.max_time, resumed)
        self._given_limits = limits
        self.limits: list[Limit] = [self.time_limit, *debug.observers(plan, path, console, resumed)]
        self.limits += limits
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
                self.time_limit.is_over = has_ended(resumed)
        self._resumed_at = None if resumed is None else self.step

    def __enter__(self) -> Self:
        keep = self.plan.config.trainer.keep_checkpoints
        own = [SLOT] if self.plan.config.trainer.precision == "16-mixed" else []
        own += [BATCH_SIZE] if self.plan.order.changes_size else []
        with ExitStack() as stack:
            self.records = stack.enter_context(
                Records(self.path, self.plan.columns(), [*self._tables[1:], *own])
            )
            sync, done = self.records.sync, self._on_checkpoint
            self.checkpoints = stack.enter_context(
                Checkpoints(self.path, keep, sync, done, self._resumed_at)
            )
            self._default: tuple[Observer, ...] = (
                *(self.records, Progress(self.console), self.stalls, *self.limits),
                self.checkpoints,
                *([Position(self.plan.reader)] if self.plan.data.stream is not None else []),
            )
            for limit in self._given_limits:
                stack.enter_context(limit)
            for name, observer in self._additional.items():
                self._additional[name] = stack.enter_context(observer)
                if name in self._saved_states:
                    observer.load_state(self._saved_states[name])
                    if isinstance(observer, Limit) and self._is_over:
                        observer.is_over = bool(self._saved_states[name].get("is_over"))
            self.observers: list[Observer] = [*self._default, *self._additional.values()]
            if any(map(takes_each_checkpoint, self.observers)):
                self.checkpoints.writes_each = True
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def stopped_by(self) -> str | None:
        """The cause that ended the run before its last update, if it was no signal: early_stopping,
        max_time, debug, pruned or the name of an observer."""
        if self.step == self.plan.order.total_steps:
            return None
        if self.stalls.stopped_early:
            return "early_stopping"
        for limit in (*self.limits, *self._additional.values()):
            if isinstance(limit, Limit) and limit.is_over:
                return limit.cause
        return self._ended_by if self.signals.received is None else None

    def result(self) -> dict[str, Any]:
        """Return the entries of result.json for the updates so far."""
        return {
            "steps": self.step,
            "epochs": self.plan.order.epochs.count(self.step),
            **(self.unfinished or {"metrics": self.metrics, "best": self.best}),
            "stopped_early": self.stalls.stopped_early,
            "stopped_by": self.stopped_by,
            "skipped": self.skipped,
            **({"process_bytes": self.num_bytes} if self.num_bytes else {}),
        }

    def on_memory(self, num_bytes: Sequence[Mapping[str, int]]) -> None:
        """Take the bytes of weights and optimizer state in each of several processes."""
        self.num_bytes = num_bytes
        most = {name: max(of[name] for of in num_bytes) for name in num_bytes[0]}
        self.console.say(
            f"memory   each of {len(num_bytes)} processes has {size(most['weights'])} of "
            f"weights and {size(most['optimizer'])} of optimizer state"
        )

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        """Implements `runner.spec.OnChunkStart`."""
        live = self._shown(live)
        for observer in self.observers:
            observer.on_chunk_start(chunk, live)

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        """Implements `runner.spec.OnChunk`."""
        order, step = self.plan.order, chunk.first_step + chunk.num_steps
        if order.changes_size:
            sizes = np.full(chunk.num_steps, order.segment(chunk.first_step).batch_size)
            report = replace(report, applied={**report.applied, BATCH_SIZE: sizes})
        for limit in self.limits:
            limit.examine(chunk, report, live)
        self._count(chunk, report)
        several, shown = self.plan.network.outputs, self._shown(live)
        if several is not None and report.outputs is not None:
            report = replace(report, outputs=several.unpack(report.outputs))
        answers = [observer.on_chunk(chunk, report, shown) for observer in self.observers]
        is_finished = step == order.total_steps
        is_over = any(limit.is_over for limit in self.limits)
        if is_finished or is_over or order.epochs.index(step) == 0:
            epoch = self._end_epoch(step, live)
            again = [observer.on_epoch(epoch, shown) for observer in self.observers]
            answers = [a and b for a, b in zip(answers, again, strict=True)]
        stop = self.signals.received is not None or not all(answers)
        for name, goes_on in zip(self._additional, answers[len(self._default) :], strict=True):
            is_limit = isinstance(self._additional[name], Limit)  # it has a cause and a message
            if not goes_on and not is_finished and not is_limit:
                self._ended_by = name.partition(" ")[2]
                self.console.say(f"ended by the observer {self._ended_by} at step {step}")
        if is_finished or not all(answers):
            for observer in self.observers:
                observer.on_finish(shown)
        kept = {step for observer in self.observers for step in observer.kept_checkpoints()}
        is_due = self._checkpoints is not None and self._checkpoints.index(step) == 0
        if is_finished or stop or is_due or step in kept:
            best = (self.result()["best"] or {}).get("step")
            is_last = is_finished or stop
            self.checkpoints.save(live.state(), self._state(), best, kept, is_last)
        return not stop

    def _shown(self, live: Live) -> Any:
        """Return the model as observers get it: `predict` returns several outputs by name."""
        several = self.plan.network.outputs
        return live if several is None else _Shown(live, several)

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Pass the run's result to the observers."""
        for observer in self.observers:
            observer.on_end(result)

    def _on_checkpoint(self, folder: Path) -> None:
        for observer in self.observers:
            observer.on_checkpoint(folder)

    def _count(self, chunk: Chunk, report: Report) -> None:
        """Count the chunk's updates and add the metrics of its rows. Updates with a loss that is
        not finite were skipped, up to `trainer.max_skipped`; at one more, write the trace of all
        updates before it and raise RunError."""
        trainer, losses = self.plan.config.trainer, report.losses
        skips = trainer.on_nonfinite == "skip"
        bad = np.flatnonzero(~np.isfinite(losses))
        num_allowed = trainer.max_skipped - len(self.skipped) if skips else 0
        if len(bad) > num_allowed:
            num_good = int(bad[num_allowed])
            self.step = chunk.first_step + num_good
            self.records.trace(chunk.first_step, losses[:num_good], report.applied)
            more = f", after {trainer.max_skipped} that were skipped" if skips else ""
            raise RunError(
                f"the loss of update {self.step} is {losses[num_good]}{more}; {IF_DIVERGED}"
            )
        self.step = chunk.first_step + chunk.num_steps
        self.skipped += [chunk.first_step + int(i) for i in bad]
        self.compile_seconds += report.compile_seconds
        if is_own(self.plan.loss) or not self.plan.keeps_train_outputs:
            good = {"loss": losses[np.isfinite(losses)].astype(np.float64)}
            self._add_by_update(chunk, good)
        self._add_by_update(chunk, report.logged)
        if report.outputs is None:
            return
        is_used = np.repeat(np.isfinite(losses), chunk.rows_per_step) if len(bad) else slice(None)
        y, weight = self._targets(chunk)
        y, weight = y[is_used], None if weight is None else weight[is_used]
        by_row = rows(self.plan, report.outputs[is_used], y)
        add_rows(self._means, by_row, weight)

    def _targets(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the targets of a chunk's rows, and their weights if they have some."""
        train, used = self.plan.data.train, chunk.rows
        if self.plan.data.stream is not None:
            return chunk.fields["y"], chunk.fields.get("weight")
        return train.y[used], None if train.weight is None else train.weight[used]

    def _add_by_update(self, chunk: Chunk, values: Mapping[str, np.ndarray]) -> None:
        """Add values of whole updates, each with the weight of the update's rows."""
        rows = chunk.rows_per_step
        self._means.add({_key(name): np.repeat(v, rows) for name, v in values.items()})

    def _end_epoch(self, step: int, live: Live) -> Epoch:
        """Evaluate after an epoch."""
        plan, number = self.plan, self.plan.order.epochs.count(step)
        means = self._means.result()  # has no entry for a metric if all rows were skipped
        is_whole = plan.order.is_epoch(step)
        measured = validate(plan, live)
        if measured and plan.of_average:
            with live.averaged():
                average = validate(plan, live)
            measured |= {f"{name}{plan.of_average}": value for name, value in average.items()}
        means |= {_key(name): value for name, value in live.end_epoch(is_whole).items()}
        values = {column: means.get(_key(column), math.nan) for column in plan.train_columns()}
        values |= measured
        best = self._new_best(values, number, step)
        if is_whole:
            self._means = Means()
            self.metrics, self.best = values, best or self.best
        else:  # a longer run would not evaluate here, so its state must not change
            self.unfinished = {"metrics": values, "best": self.best or best}
        return Epoch(number, step, values, round(monotonic() - self._started, 3), is_whole)

    def _new_best(
        self, values: Mapping[str, float], epoch: int, step: int
    ) -> dict[str, Any] | None:
        """Compare an epoch's metrics with `best`. Return the new best, or None if `best` stays."""
        trainer = self.plan.config.trainer
        best = float(self.best["value"]) if self.best else None
        value = values[trainer.monitor]
        if not Stall(trainer.monitor_mode, patience=0).is_better(value, best):
            return None
        return {"metric": trainer.monitor, "value": value, "epoch": epoch, "step": step}

    def _state(self) -> dict[str, Any]:
        """Return the entries of a checkpoint's state.json."""
        state = {"best": self.best, "metrics": self.metrics, "unfinished": self.unfinished}
        for observer in self._default:
            state |= observer.state()
        states = {name: observer.state() for name, observer in self._additional.items()}
        if any(states.values()):
            state["observers"] = {name: value for name, value in states.items() if value}
        return {
            **state,
            "means": self._means.state(),
            "skipped": self.skipped,
            "seconds": round(monotonic() - self._started, 3),
            "config_sha256": self._config_sha256,
            "threads": self.plan.model.threads,
            "compiles": self.plan.compiles,
        }


class _Shown:
    """The model during training, whose `predict` returns a tuple or a dict of several outputs."""

    def __init__(self, live: Live, outputs: Outputs) -> None:
        self._live, self._outputs = live, outputs

    def predict(self, rows: Batch) -> Any:
        return self._outputs.unpack(self._live.predict(rows))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live, name)


def _key(column: str) -> str:
    """Return the name of a column of the training rows in `Means`."""
    return column.removeprefix("train/")
