"""task=train: one run, from the config to its folder."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

from runner import checkpoint, devices, dispatcher, run_folder
from runner.config import Config, sha256
from runner.console import Console, capture
from runner.data.order import Chunks
from runner.plan import plan
from runner.signals import Signals
from runner.spec import first_state
from runner.training import Training, show


def train(config: Config, composed: Mapping[str, Any], parent: Path, name: str | None, started: float) -> int:
    """Train in a new folder below `parent`, called `name` or by date, time, schedule and backend; the exit status."""
    with capture() as (console, held):
        prepared = plan(config)
        warnings = prepared.check_schedule()
        spec = prepared.run_spec()
        backend = dispatcher.load(config.backend)
        device = devices.resolve(config.device, backend.devices())
        path = run_folder.create(parent, name or f"{run_folder.timestamp()}_{config.schedule.name}_{config.backend}")
        held.into(path / "run.log")
        for warning in warnings:
            console.say(f"warning: {warning}")
        run_folder.write_config(path, composed)
        run_folder.write_json(path / "environment.json", run_folder.environment(device))
        run_folder.write_json(path / "data.json", prepared.data.description())
        order, start = prepared.order, first_state(prepared.network, config.optimizer, spec.dtype, config.seed)
        adapt = config.trainer.steps_per_call == "auto"
        chunks = Chunks(order, start.step, spec.largest_chunk, prepared.checkpoint_steps(), adapt)
        result: dict[str, Any] = {
            "status": "failed",
            "backend": config.backend,
            "schedule": config.schedule.name,
            "seed": config.seed,
            "config_sha256": sha256(composed),
            "num_parameters": prepared.num_parameters,
        }
        with (
            Signals() as signals,
            console.progress(order.total_steps, start.step),
            Training(prepared, path, console, signals, result["config_sha256"], started) as training,
        ):
            try:
                state = backend.train(spec, start, chunks, training.on_chunk)
            except Exception as error:
                traceback.print_exc()
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                run_folder.write_json(path / "result.json", {**result, "error": reason})
                console.say(f"failed: {reason[:300]}")
                console.say(f"traceback in {path / 'run.log'}")
                return 1
        ended, began = time(), chunks.began or time()
        interrupted = state.step < order.total_steps
        picture = _draw(path, f"{config.schedule.name}, {config.optimizer.name}, {config.backend}")
        result |= {
            "status": "interrupted" if interrupted else "completed",
            "steps": state.step,
            "epochs": -(-state.step // order.steps_per_epoch),
            "metrics": training.metrics,
            "best": training.best,
            "weights_sha256": checkpoint.weights_sha256(state),
            "seconds": {
                "startup": round(began - started, 3),
                "train": round(ended - began, 3),
                "total": round(time() - started, 3),
            },
        }
        run_folder.write_json(path / "result.json", result)
        _say(console, result, path, picture)
        return 128 + (signals.received or 0) if interrupted else 0


def _draw(path: Path, title: str) -> Path | None:
    """The picture is no reason to lose a run: what goes wrong with it is in run.log."""
    from runner.report import curves

    try:
        return curves.draw(path, title)
    except Exception:
        traceback.print_exc()
        return None


def _say(console: Console, result: Mapping[str, Any], path: Path, picture: Path | None) -> None:
    best, seconds = result["best"], result["seconds"]
    console.say(
        f"{result['status']}: {result['steps']} steps in {seconds['train']:.1f} s, {seconds['total']:.1f} s in all"
    )
    if best:
        found = f"best {best['metric']} {best['value']:.4f} after epoch {best['epoch']}"
        console.say(f"result   {show(result['metrics'])}  ({found})")
    console.say(f"folder   {path}")
    if picture is not None:
        console.say(f"picture  {picture}")
