"""Trackers: the records of a run in TensorBoard and other tools. Each is a file here; its library
is imported only when a run uses it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from runner.config.schema import Config
from runner.errors import ConfigError, printable
from runner.run import run_folder
from runner.run.trackers import files
from runner.run.trackers.follower import Follower, in_time, why
from runner.run.trackers.tracker import TrackedMultirun, TrackedRun, Tracker, hyperparameters
from runner.text.console import Console


class Kind(NamedTuple):
    """A tracker before its file, and so its library, is imported."""

    name: str  # of its class
    modules: Sequence[str]  # that it needs
    artifacts: frozenset[str]  # the values of tracker.artifacts that it has a place for


_FILES = frozenset({"curves", "certificate", "checkpoints", "comparison"})
TRACKERS = {
    "tensorboard": Kind("TensorBoard", ("tensorboard",), _FILES - {"checkpoints"}),
    "mlflow": Kind("MLflow", ("mlflow", "sqlalchemy", "alembic"), _FILES),
    "wandb": Kind("WandB", ("wandb",), _FILES),
    "trackio": Kind("Trackio", ("trackio",), _FILES),
}


def _file(name: str) -> ModuleType:
    return import_module(f"runner.run.trackers.{name}")


def load(name: str) -> type[Tracker]:
    """Import a tracker's library. Return the tracker's class."""
    found: type[Tracker] = getattr(_file(name), TRACKERS[name].name)
    return found


__all__ = [
    "TRACKERS",
    "TrackedMultirun",
    "TrackedRun",
    "answer",
    "check",
    "followers",
    "group_of",
    "hyperparameters",
    "load",
]


def check(config: Config, is_resumed: bool = False) -> None:
    """Refuse a tracker with a library that is not installed, and artifacts that no tracker of the
    run has a place for. Imports nothing."""
    for name in config.trackers:
        for module in TRACKERS[name].modules:
            if find_spec(module) is None:
                raise ConfigError(
                    f"logger={name} needs the package {module}; install it with pip install "
                    f"'twinrun[{name}]'"
                )
    if not (is_resumed and not config.trackers):  # logger=null ends the tracking of a saved run
        for artifact in config.tracker.artifacts:
            _check_artifact(artifact, config)


def _check_artifact(artifact: str, config: Config) -> None:
    having = [name for name, kind in TRACKERS.items() if artifact in kind.artifacts]
    if not config.trackers:
        raise ConfigError(
            f"tracker.artifacts has {artifact} and no tracker to give it to; set logger to one of "
            f"{', '.join(having)}"
        )
    if not {*having} & {*config.trackers}:
        raise ConfigError(
            f"tracker.artifacts has {artifact}, for which {config.trackers[0]} has no place; add "
            f"one of {', '.join(having)} to logger"
        )
    if artifact == "certificate" and config.trainer.precision != "exact":
        raise ConfigError(
            f"tracker.artifacts has certificate, which a run has with trainer.precision=exact, got "
            f"{config.trainer.precision}"
        )


def followers(
    names: Sequence[str], run: TrackedRun, total_steps: int, console: Console
) -> list[Follower]:
    """Return an observer for each tracker."""
    return [
        Follower(name, partial(load, name), _for(name, run), total_steps, console) for name in names
    ]


def _for(name: str, run: TrackedRun) -> TrackedRun:
    """Return the run with the artifacts that this tracker has a place for."""
    known = [each for each in run.artifacts if each in TRACKERS[name].artifacts]
    return replace(run, artifacts=known)


def group_of(path: Path | None) -> str | None:
    """Return the name of the multirun that has the job's folder `path`."""
    return None if path is None else path.parent.name


def answer(folder: Path, configs: Collection[Config], runs: Sequence[Path]) -> None:
    """Give the trackers of a multirun's jobs its answer, from the files in its folder. A failure is
    one warning."""
    names = dict.fromkeys(name for config in configs for name in config.trackers)
    wanted = {each for config in configs for each in config.tracker.artifacts}
    answers = [run_folder.read_json(path) for path in sorted(folder.glob("answer*.json"))]
    if not names or not answers:
        return
    multirun = TrackedMultirun(
        folder,
        Path(next(iter(configs)).output.root),
        runs,
        ", ".join(each["winner"] for each in answers if each["winner"]) or None,
        "\n".join(line for each in answers for line in each["says"]),
        files.of_multirun(folder) if "comparison" in wanted else (),
    )
    for name in names:
        try:
            hint = in_time(partial(_file(name).write_answer, multirun))
            print(printable(f"tracker  {hint}"))
        except Exception as error:
            print(
                printable(
                    f"warning: logger={name} failed: {why(error)}; it lacks the answer of {folder}"
                )
            )
