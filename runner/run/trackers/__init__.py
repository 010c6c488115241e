"""Trackers: the records of a run in TensorBoard and other tools. Each is a file here; its library
is imported only when a run uses it."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from runner.errors import ConfigError
from runner.run.trackers.follower import Follower
from runner.run.trackers.tracker import TrackedRun, Tracker, hyperparameters
from runner.text.console import Console


def _tensorboard(run: TrackedRun) -> Tracker:
    from runner.run.trackers.tensorboard import TensorBoard

    return TensorBoard(run)


def _mlflow(run: TrackedRun) -> Tracker:
    from runner.run.trackers.mlflow import MLflow

    return MLflow(run)


def _wandb(run: TrackedRun) -> Tracker:
    from runner.run.trackers.wandb import WandB

    return WandB(run)


# name -> the modules that it needs, and what makes it
TRACKERS = {
    "tensorboard": (("tensorboard",), _tensorboard),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), _mlflow),
    "wandb": (("wandb",), _wandb),
}


__all__ = ["TRACKERS", "TrackedRun", "check", "followers", "group_of", "hyperparameters"]


def check(names: Sequence[str]) -> None:
    """Refuse a tracker with a library that is not installed. Imports nothing."""
    for name in names:
        for module in TRACKERS[name][0]:
            if find_spec(module) is None:
                raise ConfigError(
                    f"logger={name} needs the package {module}; install it with pip install "
                    f"'twinrun[{name}]'"
                )


def followers(
    names: Sequence[str], run: TrackedRun, total_steps: int, console: Console
) -> list[Follower]:
    """Return an observer for each tracker."""
    return [Follower(name, TRACKERS[name][1], run, total_steps, console) for name in names]


def group_of(path: Path | None) -> str | None:
    """Return the name of the multirun that has the job's folder `path`."""
    return None if path is None else path.parent.name
