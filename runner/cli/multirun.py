"""The jobs of a multirun: where they go, which of them are done already, and the grid of a tuned
rate."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from runner.config.schema import Config, Tune, sha256
from runner.errors import ConfigError, one_line
from runner.run import checkpoint, run_folder, signals
from runner.run.saved import config_of
from runner.run.signals import Launch
from runner.text import quoting
from runner.text.console import kept_in_files


def folder(config: Config) -> Path:
    """A new one, or the one that output.multirun names: its completed jobs are not trained
    again."""
    root, said = Path(config.output.root), config.output.multirun
    if said is None:
        return run_folder.create(root / "multiruns", run_folder.timestamp())
    path = Path(said)
    if not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"output.multirun must be a folder below output.root, {root}, got {said}")
    _check_own(path, root)
    run_folder.make(path, "output.multirun")
    return path


def _check_own(path: Path, root: Path) -> None:
    """Refuse a multirun's folder that holds runs of other commands, or that lies in a run's."""
    place, top = path.resolve(), root.resolve()
    inside = [p for p in (place, *place.parents) if p.is_relative_to(top)]
    if place in (top, *(top / name for name in run_folder.PARENTS)):
        what = "which is for all runs"
    elif any(os.path.isfile(p / "config.yaml") for p in inside):
        what = "which is in a run's folder"
    else:
        return
    raise ConfigError(f"output.multirun must be a folder of its own, got {path}, {what}")


@dataclass(frozen=True)
class Claim:
    """A job's folder, which this process holds."""

    path: Path
    is_completed: bool
    has_checkpoint: bool


@contextmanager
def claimed(parent: Path, name: str, values: Mapping[str, Any]) -> Iterator[Claim]:
    """The folder of one job, made or found, as long as this process trains in it. InUseError where
    another one does.

    Several commands may work on one multirun: each takes the jobs that nobody holds. Finding or
    making a folder is done by one of them at a time.
    """
    with ExitStack() as stack:
        with run_folder.turn(parent):
            path = job_folder(parent, name, sha256(values)) or run_folder.create(parent, name)
            stack.enter_context(run_folder.locked(path))
            if not (path / "config.yaml").is_file():
                run_folder.write_config(path, values)
        yield Claim(path, is_completed(path), bool(checkpoint.steps(path)))


def job_folder(parent: Path, name: str, config_sha256: str) -> Path | None:
    """The folder whose config has this hash: one of the job's name first, since a multirun of
    other values, which names its jobs by other keys, may have made it too."""
    folders = [path for path in sorted(parent.iterdir()) if path.is_dir() and not path.is_symlink()]
    folders.sort(key=lambda path: not path.name.startswith(name))
    return next((path for path in folders if _config_sha256(path) == config_sha256), None)


def _config_sha256(path: Path) -> str | None:
    """Hash in the job's result.json, else of its config.yaml; None where both are missing or
    broken."""
    with suppress(ConfigError, KeyError):
        return str(run_folder.read_json(path / "result.json")["config_sha256"])
    with suppress(ConfigError):
        return sha256(config_of(path))
    return None


def is_completed(path: Path) -> bool:
    try:
        return bool(run_folder.read_json(path / "result.json")["status"] == "completed")
    except (ConfigError, KeyError):  # none, or a broken one
        return False


# Launchers whose jobs are processes of this machine that end with the command; the others' jobs are
# a scheduler's.
_OWN_PROCESSES = ("JoblibLauncher", "LocalLauncher")


@contextmanager
def launching(folder: Path, launcher: str) -> Iterator[Launch | None]:
    """Watch over the launcher of this class while it runs the jobs."""
    kept_in_files()
    if not launcher.endswith(_OWN_PROCESSES):
        yield None
        return
    if launcher.endswith("JoblibLauncher"):
        signals.start_trackers()
    with signals.launching(folder, lambda: _is_training_for_us(folder)) as launch:
        yield launch


def limit_workers(launcher: DictConfig, num_jobs: int) -> None:
    """joblib starts all its processes at once: no more than there are jobs."""
    if str(launcher["_target_"]).endswith("JoblibLauncher"):
        said = int(launcher.n_jobs)
        num = said if said > 0 else (os.cpu_count() or 1) + 1 + said
        launcher.n_jobs = max(1, min(num, num_jobs))


def _is_training_for_us(folder: Path) -> bool:
    import psutil

    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    return any(run_folder.owner(path) in ours for path in folder.iterdir() if path.is_dir())


def why_ended(error: Exception) -> str:
    """Describe in one line the error that ended a launcher or a sweeper."""
    name = type(error).__name__
    if name in ("TerminatedWorkerError", "BrokenProcessPool"):  # joblib's, concurrent.futures's
        return (
            "the process of a job was killed, by somebody or because memory was short; the "
            "other jobs ended with it"
        )
    return f"{name}: {one_line(error)[:300]}"


def again(command: Sequence[str], folder: Path) -> str:
    """The command that goes on with a multirun that this one has begun in `folder`."""
    kept = [said for said in command if not said.startswith("output.multirun=")]
    return quoting.command_line([*kept, quoting.override("output.multirun", str(folder))])


def objective(folder: Path, name: str, config_sha256: str, config: Config) -> float:
    """Return what a search minimises: the monitored metric after a job's last epoch, its sign
    turned where more is better; infinity where the job did not get there."""
    found = job_folder(folder, name, config_sha256)
    if found is None or not is_completed(found):
        return math.inf
    trainer = config.trainer
    value = float(run_folder.read_json(found / "result.json")["metrics"][trainer.monitor])
    return -value if trainer.monitor_mode == "max" else value


def tuned(said: Sequence[Override], tune: Tune, each: Sequence[Config]) -> list[str]:
    """Expand tune=lr: return the overrides with a list of base rates, tune.factors times the rate
    that the config has."""
    rates = {config.optimizer.lr for config in each}
    if len(rates) > 1:
        raise ConfigError(
            f"tune=lr takes one base rate, got {len(rates)}: optimizer or optimizer.lr has "
            f"several values"
        )
    (base,) = rates
    values = [float(f"{base * factor:.3g}") for factor in sorted(tune.factors)]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ConfigError(f"tune.factors must give each rate once, got {twice!r} twice")
    kept = [
        override.input_line or "" for override in said if override.key_or_group != "optimizer.lr"
    ]
    return [*kept, f"optimizer.lr={','.join(map(repr, values))}"]
