"""The observers of the callbacks that a config names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.config.callbacks import OwnCallback
from runner.plan import Plan
from runner.run import run_folder
from runner.run.callbacks import memory, norms, throughput
from runner.run.callbacks.best_checkpoints import BestCheckpoints
from runner.run.callbacks.early_stopping import EarlyStopping
from runner.run.callbacks.memory import Memory
from runner.run.callbacks.norms import Norms
from runner.run.callbacks.rows import cut
from runner.run.callbacks.throughput import Throughput
from runner.run.observer import Observer
from runner.spec import Backend
from runner.text.console import Console

# name -> what makes the observer of its section
CALLBACKS = {
    "best_checkpoints": BestCheckpoints,
    "early_stopping": EarlyStopping,
    "memory": Memory,
    "norms": Norms,
    "throughput": Throughput,
}

_ROWS = {memory.FILE: Memory, norms.FILE: Norms, throughput.FILE: Throughput}

__all__ = ["CALLBACKS", "has_ended", "observers", "rewind"]


def observers(plan: Plan, backend: Backend, path: Path, console: Console) -> list[Observer]:
    """Return an observer for each callback that the config names. One batch that is fitted does not
    stop early."""
    made: list[Observer] = []
    for section in plan.config.callbacks:
        if isinstance(section, OwnCallback):
            continue
        if section.callback == "early_stopping" and plan.config.debug == "overfit":
            continue
        num = sum((other.state_name or "").startswith(section.callback) for other in made)
        observer: Observer = CALLBACKS[section.callback](section, plan, backend, path, console)
        observer.state_name = f"{section.callback} {num}" if num else section.callback
        made.append(observer)
    return made


def rewind(folder: Path, step: int, is_epoch: bool) -> None:
    """Prepare the files of callbacks for resuming at `step`, where an epoch ends if `is_epoch`,
    also those of callbacks that the run has no longer: remove the rows of later steps, and lists
    of best checkpoints, which a callback writes again from its state."""
    for path in run_folder.best_checkpoints(folder):
        path.unlink()
    for name, kind in _ROWS.items():
        cut(folder / name, kind.end(step, is_epoch))


def has_ended(numbers: Mapping[str, Any]) -> bool:
    """Return whether a callback ended the run at this checkpoint, from its state.json."""
    states = numbers.get("observers", {})
    return any(name in states and states[name].get("is_over") for name in _names(states))


def _names(states: Mapping[str, Any]) -> list[str]:
    return [name for name in states if name.partition(" ")[0] in CALLBACKS]
