"""The interface to a tracker, and the points that it gets."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runner.config.schema import marked
from runner.errors import ConfigError
from runner.run import run_folder

_LONGEST = 500  # characters of a hyperparameter


class Point(NamedTuple):
    """Values at a step. The points of a run have a strict order: update t, which is counted from 0,
    has the order 2 t + 1, and an evaluation after s updates has 2 s."""

    step: int
    values: Mapping[str, float]  # tag -> value
    is_update: bool

    @property
    def order(self) -> int:
        return order(self.step, self.is_update)


def order(step: int, is_update: bool) -> int:
    """Return the place of a point among those of a run."""
    return 2 * step + is_update


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers know it."""

    path: Path  # its folder
    root: Path  # output.root
    group: str | None  # the multirun that it is a job of
    hyperparameters: Mapping[str, str | float | int | bool]
    artifacts: Sequence[str] = ()  # tracker.artifacts

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class TrackedMultirun:
    """A multirun that has ended, as trackers know it."""

    path: Path  # its folder, whose name is that of the group
    root: Path  # output.root
    runs: Sequence[Path]  # the folders of its jobs
    winner: str | None
    says: str  # the answer in words, a sentence a line
    files: Sequence[tuple[str, Path]]  # those of its comparison, if tracker.artifacts asks for them

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def table(self) -> str:
        """The comparison as Markdown."""
        return (self.path / "comparison.md").read_text(encoding="utf-8")


class Tracker(ABC):
    """A tool that shows the points of runs. A method that fails raises; the run goes on."""

    hint: str  # a command or an address that shows the tracked run

    @abstractmethod
    def open(self, last: int) -> int:
        """Find or begin the tracked run. `last` is the order of the last point in the records.
        Return the order of the last point that the tracker has, at most `last`; -1 if it has
        none."""

    @abstractmethod
    def write(self, points: Sequence[Point]) -> None:
        """Add points, in their order. When this returns, they are out of this process."""

    @abstractmethod
    def keep(self, name: str, path: Path, step: int) -> None:
        """Add a file of a run that has `step` updates. A file that is there with this name is
        replaced, or stays if it has the same step."""

    @abstractmethod
    def close(self, status: str) -> None:
        """End the session. `status` is that of result.json."""


def saved_id(file: Path) -> str | None:
    """Return the id of the tracked run from its file in the folder of a run or a multirun; None if
    there is none."""
    with suppress(ConfigError, KeyError):
        return str(run_folder.read_json(file)["run_id"])
    return None


def save_id(file: Path, run_id: str) -> str:
    """Write the file that saved_id reads. Return the id."""
    run_folder.write_json(file, {"run_id": run_id})
    return run_id


def kept_id(file: Path, new: Callable[[], str]) -> str:
    """Return the id that the file has; write a new one if there is none."""
    return saved_id(file) or save_id(file, new())


def hyperparameters(composed: Mapping[str, Any]) -> dict[str, str | float | int | bool]:
    """Return the keys of a config that determine the run, each as `group.key`, with plain values;
    lists as JSON."""
    outside = {*marked("outside_hash"), "layer_defaults"}  # the layers have these already
    found: dict[str, str | float | int | bool] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, str | float | int):
            found[name] = value[:_LONGEST] if isinstance(value, str) else value
        elif value is not None:
            found[name] = json.dumps(value)[:_LONGEST]

    add("", {key: value for key, value in composed.items() if key not in outside})
    return found
