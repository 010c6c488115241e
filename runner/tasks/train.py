"""task=train: one run, from the config to its folder."""

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runner import checkpoint, devices, dispatcher, run_folder
from runner.config import Config, sha256
from runner.console import Console, capture
from runner.data.order import Chunk, Chunks
from runner.errors import ConfigError
from runner.metrics import Means
from runner.plan import Plan, evaluate, plan, rows
from runner.run_folder import RunFolder
from runner.signals import Signals
from runner.spec import Live, Report, TrainState, first_state


@dataclass
class _Training:
    """What happens between two chunks: records, evaluation, checkpoints, progress, the decision to go on."""

    plan: Plan
    folder: RunFolder
    console: Console
    signals: Signals
    started: float
    best: dict[str, Any] | None = None
    last: dict[str, float] = field(default_factory=dict)
    step: int = 0
    first_chunk: float | None = None
    _means: Means = field(default_factory=Means)
    _saved: int | None = None

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        plan, self.step = self.plan, chunk.first_step + chunk.num_steps
        self.folder.trace(chunk.first_step, report.rates, report.losses)
        self._means.add(rows(plan, report.outputs, plan.data.train.y[chunk.rows]))
        self.console.advance(self.step, f"rate {report.rates[-1]:.3g}  loss {report.losses[-1]:.4g}")
        over = self.step == plan.order.total_steps
        if self.step % plan.order.steps_per_epoch == 0 or over:
            self._end_epoch(live)
        every = plan.checkpoint_steps()
        stop = self.signals.received is not None
        if over or stop or (every is not None and self.step % every == 0):
            self.save(live.state())
        return not stop

    def _end_epoch(self, live: Live) -> None:
        plan, epoch = self.plan, -(-self.step // self.plan.order.steps_per_epoch)
        values = {f"train/{name}": value for name, value in self._means.result().items()}
        self._means = Means()
        if len(plan.data.val):
            outputs = live.predict(np.ascontiguousarray(plan.data.val.x, dtype=plan.model.dtype))
            values |= {f"val/{name}": value for name, value in evaluate(plan, outputs, plan.data.val).items()}
        self.last = values
        seconds = round(time.time() - self.started, 3)
        self.folder.metrics({"epoch": epoch, "step": self.step, **values, "seconds": seconds})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.console.epoch(f"epoch {epoch}  step {self.step}  {shown}")
        if self._is_better(values[plan.config.trainer.monitor]):
            self.best = {
                "metric": plan.config.trainer.monitor,
                "value": values[plan.config.trainer.monitor],
                "epoch": epoch,
                "step": self.step,
            }

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return not np.isnan(value)
        best = float(self.best["value"])
        return value < best if self.plan.config.trainer.monitor_mode == "min" else value > best

    def save(self, state: TrainState) -> None:
        path = self.folder.path
        checkpoint.write(path, state, {"best": self.best, "metrics": self.last, "config_sha256": self.plan_sha256})
        checkpoint.point(path, "last", state.step)
        best = self.best["step"] if self.best else None
        if best == state.step:
            checkpoint.point(path, "best", state.step)
        checkpoint.keep(path, {step for step in (state.step, self._saved, best) if step is not None})
        self._saved = state.step

    plan_sha256: str = ""


def columns(plan: Plan) -> list[str]:
    """The header of metrics.csv; a split without rows has no columns."""
    names = ["loss", *plan.metrics]
    splits = ["train", "val"] if len(plan.data.val) else ["train"]
    return ["epoch", "step", *(f"{split}/{name}" for split in splits for name in names), "seconds"]


def train(config: Config, composed: Mapping[str, Any], parent: Path, name: str | None, started: float) -> int:
    """The run's exit status. `name`: of its folder below `parent`; by default date, time, schedule and backend."""
    with capture() as (console, held):
        prepared = plan(config)
        monitored = [column for column in columns(prepared) if "/" in column]
        if config.trainer.monitor not in monitored:
            raise ConfigError(f"trainer.monitor must be one of {', '.join(monitored)}, got {config.trainer.monitor}")
        spec = prepared.run_spec()
        backend = dispatcher.load(config.backend)
        device = devices.resolve(config.device, backend.devices())
        default = f"{run_folder.timestamp()}_{config.schedule.name}_{config.backend}"
        path = run_folder.create(parent, name or default)
        held.into(path / "run.log")
        run_folder.write_config(path, composed)
        run_folder.write_json(path / "environment.json", run_folder.environment(device))
        run_folder.write_json(path / "data.json", prepared.data.description())
        folder = RunFolder(path, columns(prepared))
        first = first_state(prepared.network, config.optimizer, spec.dtype, config.seed)
        chunks = Chunks(
            prepared.order,
            first.step,
            spec.largest_chunk,
            prepared.checkpoint_steps(),
            adapt=config.trainer.steps_per_call == "auto",
        )
        with Signals() as signals, console.progress(prepared.order.total_steps, first.step):
            training = _Training(prepared, folder, console, signals, started, plan_sha256=sha256(composed))
            result = {
                "status": "failed",
                "backend": config.backend,
                "schedule": config.schedule.name,
                "config_sha256": training.plan_sha256,
                "num_parameters": prepared.num_parameters,
            }
            begun = time.time()
            try:
                state = backend.train(spec, first, chunks, training.on_chunk)
            except Exception as error:
                traceback.print_exc()
                run_folder.write_json(path / "result.json", {**result, "error": _one_line(error)})
                console.say(f"failed: {_one_line(error)}; the traceback is in {path / 'run.log'}")
                return 1
            finally:
                folder.close()
        ended = time.time()
        interrupted = signals.received is not None and state.step < prepared.order.total_steps
        picture = _draw(path, f"{config.schedule.name}, {config.optimizer.name}, {config.backend}")
        result |= {
            "status": "interrupted" if interrupted else "completed",
            "steps": state.step,
            "epochs": -(-state.step // prepared.order.steps_per_epoch),
            "metrics": training.last,
            "best": training.best,
            "weights_sha256": checkpoint.weights_sha256(state),
            "seconds": {
                "startup": round(begun - started, 3),
                "train": round(ended - begun, 3),
                "total": round(time.time() - started, 3),
            },
        }
        run_folder.write_json(path / "result.json", result)
        _say_result(console, result, path, picture)
        return 128 + signals.received if interrupted and signals.received is not None else 0


def _draw(path: Path, title: str) -> Path | None:
    """The picture is no reason to lose a run: what goes wrong with it is in run.log."""
    from runner.report import curves

    try:
        return curves.draw(path, title)
    except Exception:
        traceback.print_exc()
        return None


def _say_result(console: Console, result: Mapping[str, Any], path: Path, picture: Path | None) -> None:
    shown = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    best = result["best"]
    if best:
        shown += f"  (best {best['metric']} {best['value']:.4f} after epoch {best['epoch']})"
    seconds = result["seconds"]
    console.say(f"{result['status']}: {result['steps']} steps in {seconds['train']:.1f} s of {seconds['total']:.1f} s")
    if shown:
        console.say(shown)
    console.say(f"folder   {path}")
    if picture is not None:
        console.say(f"picture  {picture}")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
