"""The study of a search: Optuna's trials in a file below the multirun's folder.

    FOLDER/study/journal.log    all trials, in Optuna's journal format (JSON, one line an event)
    FOLDER/study/trial-7        exists while a process trains trial 7, which has locked it

Any number of processes, also of several commands, work on one study. Only one at a time chooses a
trial. A trial whose process was killed has no lock: the next process that asks for a trial gets it
again, with the same values. No pickle is read or written.
"""

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ConfigError
from runner.run.run_folder import exclusive_access

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import optuna

_NAME = "search"
_OLDEST = 4  # major version of Optuna


def check_installed() -> None:
    """Raise ConfigError if Optuna is not installed, or too old."""
    hint = "pip install 'twinrun[optuna]'"
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a search needs the package {error.name}, which is not installed: {hint}"
        ) from None
    if int(optuna.__version__.partition(".")[0]) < _OLDEST:
        raise ConfigError(f"a search needs Optuna 4 or later, got {optuna.__version__}: {hint}")


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out Optuna's log lines, and its warnings of experimental options."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _storage(path: Path, process: int) -> "optuna.storages.BaseStorage":
    """Open the journal once in a process: a storage that is forked takes the events of the other
    process for its own."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.mkdir(exist_ok=True)
    file = path / "journal.log"
    file.touch()
    lock: Any = None if fcntl is None else _Lock(file)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))


@dataclass(frozen=True)
class Objective:
    """A number of a run that a search makes small or large."""

    name: str  # a column of metrics.csv, after the last epoch; seconds; num_parameters
    maximizes: bool

    @property
    def mode(self) -> str:
        return "max" if self.maximizes else "min"

    @property
    def worst(self) -> float:
        return -math.inf if self.maximizes else math.inf

    def __str__(self) -> str:
        return f"{self.name} ({self.mode})"


@dataclass(frozen=True)
class Settings:
    """A study's folder, its objectives and its pruner."""

    folder: Path  # of the multirun
    objectives: tuple[Objective, ...]
    pruner: Mapping[str, Any]  # hydra.sweeper.pruner

    @property
    def path(self) -> Path:
        return self.folder / "study"

    @property
    def storage(self) -> "optuna.storages.BaseStorage":
        return _storage(self.path, os.getpid())

    @property
    def has_several(self) -> bool:
        return len(self.objectives) > 1

    @property
    def directions(self) -> list[str]:
        """The directions, as Optuna has them."""
        return ["maximize" if each.maximizes else "minimize" for each in self.objectives]

    def study(self, sampler: "optuna.samplers.BaseSampler | None" = None) -> "optuna.Study":
        """Open the study; make it, if it does not exist."""
        import optuna

        with quiet():
            return optuna.create_study(
                study_name=_NAME,
                storage=self.storage,
                sampler=sampler,
                pruner=_pruner(self.pruner),
                directions=self.directions,
                load_if_exists=True,
            )

    def trial(self, study: "optuna.Study", number: int) -> "optuna.Trial":
        """Return a trial that another process has begun, as if this one had."""
        import optuna

        identity = self.storage.get_study_id_from_name(_NAME)
        with quiet():
            return optuna.Trial(
                study, self.storage.get_trial_id_from_study_id_trial_number(identity, number)
            )

    def trials(self) -> "list[optuna.trial.FrozenTrial]":
        """Return all trials, by number. The study exists."""
        identity = self.storage.get_study_id_from_name(_NAME)
        return self.storage.get_all_trials(identity, deepcopy=False)

    def claim(self, number: int) -> "Claim | None":
        """Lock a trial for this process; None if another one has it."""
        path = self.path / f"trial-{number}"
        if fcntl is None:
            return None if path.exists() else Claim(path, os.open(path, os.O_CREAT | os.O_RDWR))
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return Claim(path, descriptor)


@dataclass(frozen=True)
class Claim:
    """The lock of a trial. The operating system releases it when the process ends."""

    path: Path
    descriptor: int

    def release(self, is_over: bool) -> None:
        """Release the lock; remove its file if the trial is over."""
        if is_over:
            with suppress(OSError):
                self.path.unlink()
        os.close(self.descriptor)


class _Lock:
    """Locks the journal for a write. Optuna's own lock would stay if the process is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blocks: list[Any] = []

    def acquire(self) -> bool:
        block = exclusive_access(self._path)
        block.__enter__()
        self._blocks.append(block)
        return True

    def release(self) -> None:
        self._blocks.pop().__exit__(None, None, None)


def _pruner(options: Mapping[str, Any]) -> "optuna.pruners.BasePruner":
    import optuna

    kinds = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "asha": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    keys = {key: value for key, value in options.items() if key != "name"}
    with quiet():
        return kinds[options["name"]](**keys)
