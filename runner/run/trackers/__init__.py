"""Trackers: the records of a run in TensorBoard and other tools. Each is a file here; its library
is imported only when a run uses it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from runner.config.schema import Config
from runner.errors import ConfigError, printable
from runner.run import run_folder
from runner.run.trackers import files
from runner.run.trackers.follower import Follower, in_time, why
from runner.run.trackers.tracker import TrackedMultirun, TrackedRun, Tracker, hyperparameters
from runner.text.console import Console


def _tensorboard(run: TrackedRun) -> Tracker:
    from runner.run.trackers.tensorboard import TensorBoard

    return TensorBoard(run)


def _answer_in_tensorboard(multirun: TrackedMultirun) -> str:
    from runner.run.trackers.tensorboard import write_answer

    return write_answer(multirun)


def _mlflow(run: TrackedRun) -> Tracker:
    from runner.run.trackers.mlflow import MLflow

    return MLflow(run)


def _answer_in_mlflow(multirun: TrackedMultirun) -> str:
    from runner.run.trackers.mlflow import write_answer

    return write_answer(multirun)


def _wandb(run: TrackedRun) -> Tracker:
    from runner.run.trackers.wandb import WandB

    return WandB(run)


def _answer_in_wandb(multirun: TrackedMultirun) -> str:
    from runner.run.trackers.wandb import write_answer

    return write_answer(multirun)


class Kind(NamedTuple):
    """A tracker before its library is imported."""

    modules: Sequence[str]  # that it needs
    artifacts: frozenset[str]  # the values of tracker.artifacts that it has a place for
    make: Callable[[TrackedRun], Tracker]
    write_answer: Callable[[TrackedMultirun], str]  # returns a hint, as Tracker has it


_FILES = frozenset({"curves", "certificate", "checkpoints", "comparison"})
TRACKERS = {
    "tensorboard": Kind(
        ("tensorboard",), _FILES - {"checkpoints"}, _tensorboard, _answer_in_tensorboard
    ),
    "mlflow": Kind(("mlflow", "sqlalchemy", "alembic"), _FILES, _mlflow, _answer_in_mlflow),
    "wandb": Kind(("wandb",), _FILES, _wandb, _answer_in_wandb),
}


__all__ = [
    "TRACKERS",
    "TrackedMultirun",
    "TrackedRun",
    "answer",
    "check",
    "followers",
    "group_of",
    "hyperparameters",
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
        Follower(name, TRACKERS[name].make, _for(name, run), total_steps, console) for name in names
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
        write = partial(TRACKERS[name].write_answer, multirun)
        try:
            print(printable(f"tracker  {in_time(write)}"))
        except Exception as error:
            print(
                printable(
                    f"warning: logger={name} failed: {why(error)}; it lacks the answer of {folder}"
                )
            )
