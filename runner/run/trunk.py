"""A trunk: the first updates of a run, from which runs with other rates later on branch."""

import shutil
from collections.abc import Collection
from pathlib import Path

from runner.errors import ConfigError, RunError
from runner.run import checkpoint
from runner.run.observer import Epoch, Limit
from runner.run.run_folder import read_json, write_json
from runner.schedules.stall import Mode, Stall
from runner.spec import Live

FILE = "trunk.json"
_RECORDS = ("data.json", "environment.json", "trace.csv", "metrics.csv")


class Keeper(Limit):
    """Keeps the checkpoints that other runs branch from, with the best one of that time. It ends
    no run; it is pickled for a run that trains in another process."""

    cause = "trunk"

    def __init__(self, steps: Collection[int], metric: str, mode: Mode) -> None:
        self._steps, self._metric, self._stall = frozenset(steps), metric, Stall(mode, patience=0)
        self._best: tuple[float, int] | None = None  # value and step
        self._best_at: dict[int, int] = {}  # a step of `steps` -> that of the best epoch before

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        value = epoch.metrics[self._metric]
        if epoch.is_whole and self._stall.is_better(value, self._best and self._best[0]):
            self._best = value, epoch.step
            self._best_at |= {step: epoch.step for step in self._steps if epoch.step <= step}
        return True

    def kept_checkpoints(self) -> Collection[int]:
        return {*self._steps, *self._best_at.values()}


def branch(source: Path, folder: Path, step: int) -> bool:
    """Copy the files of a run up to a checkpoint into the folder of another run, which has a
    config.yaml of its own and resumes from it. Return False if the run has not all of them: it may
    have failed, or ended early."""
    try:
        _, numbers = checkpoint.read(source, step)
        best = None if numbers["best"] is None else int(numbers["best"]["step"])
        if best is not None:
            checkpoint.read(source, best)
    except (ConfigError, RunError, OSError):
        return False
    copy(source, folder, step, best)
    write_json(folder / FILE, {"run": source.name, "step": step})
    return True


def copy(source: Path, folder: Path, step: int, best: int | None) -> None:
    """Copy records and checkpoints up to a step."""
    for name in _RECORDS:
        shutil.copy2(source / name, folder / name)
    for name, saved_step in (("best", best), ("last", step)):
        if saved_step is not None:
            path = Path("checkpoints", str(saved_step))
            shutil.copytree(source / path, folder / path, dirs_exist_ok=True)
            checkpoint.point(folder, name, saved_step)


def shared_steps(folder: Path) -> int:
    """Return the number of a run's updates that another run has made."""
    try:
        return int(read_json(folder / FILE)["step"])
    except (ConfigError, KeyError, TypeError, ValueError):
        return 0
