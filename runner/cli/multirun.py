"""The jobs of a multirun: their folders and their state."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner import user_code
from runner.cli import pool
from runner.cli.pool import Pool
from runner.config.schema import Config, sha256
from runner.errors import ConfigError, one_line
from runner.run import agents, checkpoint, run_folder, signals
from runner.run.saved import config_of
from runner.run.signals import Launch
from runner.text import quoting
from runner.text.console import kept_in_files


def folder(config: Config) -> Path:
    """Make a new folder, or the folder that output.multirun names; its completed jobs are not
    trained again."""
    root, requested = Path(config.output.root), config.output.multirun
    if requested is None:
        return run_folder.create(root / "multiruns", run_folder.timestamp())
    path = Path(requested)
    if not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"output.multirun must be a folder below output.root, {root}, got {requested}"
        )
    _check_own(path, root)
    run_folder.make(path, "output.multirun")
    return path


def _check_own(path: Path, root: Path) -> None:
    """Refuse a multirun folder that holds runs of other commands, or that is inside a run."""
    folder, top = path.resolve(), root.resolve()
    parents = [p for p in (folder, *folder.parents) if p.is_relative_to(top)]
    if folder in (top, *(top / name for name in run_folder.PARENTS)):
        reason = "which holds other runs"
    elif any(os.path.isfile(p / "config.yaml") for p in parents):
        reason = "which is inside a run's folder"
    else:
        return
    raise ConfigError(f"output.multirun must be a folder of its own, got {path}, {reason}")


@dataclass(frozen=True)
class Claim:
    """A job's folder that this process has locked."""

    path: Path
    is_completed: bool
    is_pruned: bool  # by a search
    has_checkpoint: bool


@contextmanager
def claimed(parent: Path, name: str, values: Mapping[str, Any]) -> Iterator[Claim]:
    """Find or make the folder of one job, and lock it while this process trains in it. Raises
    InUseError if another process has locked it.

    Several commands may work on one multirun: each takes the jobs that no other has locked. Only
    one of them at a time finds or makes a folder.
    """
    with ExitStack() as stack:
        with run_folder.exclusive_access(parent):
            code = user_code.hashes(values)
            found = job_folder(parent, name, sha256(values), code)
            if found is None and run_folder.is_abandoned(parent / name):
                found = parent / name
            path = found or run_folder.create(parent, name)
            stack.enter_context(run_folder.locked(path))
            if not (path / "config.yaml").is_file():
                run_folder.write_config(path, values)
        status = _status(path)
        has_checkpoint = bool(checkpoint.steps(path))
        yield Claim(path, status == "completed", status == "pruned", has_checkpoint)


def job_folder(parent: Path, name: str, config_sha256: str, code: Mapping[str, str]) -> Path | None:
    """Find the job's folder by the hashes of its config and of its own code. Folders with the job's
    name come first; an earlier multirun over other keys may have given the same config another
    name."""
    folders = [
        path
        for path in sorted(parent.glob("[!.]*"))  # the others are copies that a kill has cut off
        if path.is_dir() and not path.is_symlink()
    ]
    folders.sort(key=lambda path: not path.name.startswith(name))
    same = (path for path in folders if _config_sha256(path) == config_sha256)
    return next((path for path in same if run_folder.code_of(path) in (None, code)), None)


def _config_sha256(path: Path) -> str | None:
    """The config's hash from result.json, else from config.yaml; None if neither can be read."""
    with suppress(ConfigError, KeyError):
        return str(run_folder.read_json(path / "result.json")["config_sha256"])
    with suppress(ConfigError, OSError):
        return _of_version(path, (path / "config.yaml").stat().st_mtime_ns)
    return None


@cache
def _of_version(path: Path, modified: int) -> str:
    """Return the hash of config.yaml as it was at this time. It takes 40 ms, so that it is kept."""
    return sha256(config_of(path))


def is_left_behind(parent: Path, name: str, values: Mapping[str, Any]) -> bool:
    """Return whether another command had this job, and was killed before the job was completed."""
    with run_folder.exclusive_access(parent):
        path = job_folder(parent, name, sha256(values), user_code.hashes(values))
        return path is not None and run_folder.is_left_behind(path) and not is_completed(path)


def is_training(parent: Path, name: str, values: Mapping[str, Any]) -> bool:
    """Return whether a process has this job now."""
    path = job_folder(parent, name, sha256(values), user_code.hashes(values))
    return path is not None and run_folder.holder(path) is not None


def is_completed(path: Path) -> bool:
    return _status(path) == "completed"


def _status(path: Path) -> str | None:
    try:
        return str(run_folder.read_json(path / "result.json")["status"])
    except (ConfigError, KeyError):  # missing or damaged
        return None


# Launchers that run jobs as local processes, which end with the command. Other launchers hand their
# jobs to a scheduler.
_OWN_PROCESSES = ("PoolLauncher", "JoblibLauncher", "LocalLauncher")
_BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}


@contextmanager
def launching(folder: Path, launcher: DictConfig) -> Iterator[tuple[Launch | None, Pool | None]]:
    """Handle signals while this launcher runs the jobs. Yields its pool of processes, if it has
    one."""
    kept_in_files()
    name = str(launcher["_target_"])
    if not name.endswith(_OWN_PROCESSES):
        yield None, None
        return
    if name.endswith("JoblibLauncher"):
        signals.start_trackers()
    with signals.launching(folder, lambda: _is_training_for_us(folder)) as launch:
        if not name.endswith("PoolLauncher"):
            yield launch, None
            return
        with Pool(launcher.n_jobs) as workers:
            try:
                yield launch, workers
            finally:
                launch.finish()  # the processes end now


def settled(launcher: DictConfig, configs: Sequence[Config]) -> DictConfig:
    """Settle how many jobs a pool trains at a time; one is Hydra's basic launcher. Refuse a
    launcher whose scheduler this machine does not have, and one that would start other processes
    than those that there are."""
    name = str(launcher["_target_"]).rpartition(".")[2]
    leader = agents.leader()
    if name == "PoolLauncher":
        alone = leader is not None and launcher.n_jobs == "auto"
        launcher.n_jobs = 1 if alone else pool.num_jobs(launcher.n_jobs, configs)
        if launcher.n_jobs == 1:
            return OmegaConf.create(_BASIC)
    if leader is not None and not name == "BasicLauncher":
        raise ConfigError(
            f"hydra/launcher must be basic under {leader.found.launcher}, which has started the "
            f"processes of each job, got {name}"
        )
    if name == "SlurmLauncher" and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=submitit_slurm needs Slurm, got no srun on the PATH; "
            "hydra/launcher=submitit_local runs the jobs on this machine"
        )
    return launcher


def limit_workers(launcher: DictConfig, num_jobs: int) -> None:
    """Limit joblib's workers to the number of jobs: joblib starts all of them at once."""
    if str(launcher["_target_"]).endswith("JoblibLauncher"):
        requested = -1 if launcher.n_jobs == "auto" else int(launcher.n_jobs)
        num_workers = requested if requested > 0 else (os.cpu_count() or 1) + 1 + requested
        launcher.n_jobs = max(1, min(num_workers, num_jobs))


def _is_training_for_us(folder: Path) -> bool:
    import psutil

    children = {child.pid for child in psutil.Process().children(recursive=True)}
    return any(run_folder.owner(path) in children for path in folder.iterdir() if path.is_dir())


def why_ended(error: Exception) -> str:
    """Describe in one line the error that ended a launcher or a sweeper."""
    name = type(error).__name__
    if name in ("TerminatedWorkerError", "BrokenProcessPool"):  # of joblib, concurrent.futures
        return (
            "the process of a job was killed, perhaps because memory ran out; the other jobs "
            "ended with it"
        )
    return f"{name}: {one_line(error)[:300]}"


def resume_command(command: Sequence[str], folder: Path) -> str:
    """The command that resumes the multirun that `command` started in `folder`."""
    kept = [argument for argument in command if not argument.startswith("output.multirun=")]
    return quoting.command_line([*kept, quoting.override("output.multirun", str(folder))])


def objective(
    folder: Path, name: str, config_sha256: str, code: Mapping[str, str], config: Config
) -> float:
    """The value that a search minimizes: the monitored metric after a job's last epoch, with the
    sign flipped if larger is better; infinity if the job did not complete."""
    path = job_folder(folder, name, config_sha256, code)
    if path is None or not is_completed(path):
        return math.inf
    trainer = config.trainer
    value = float(run_folder.read_json(path / "result.json")["metrics"][trainer.monitor])
    if not math.isfinite(value):  # it diverged
        return math.inf
    return -value if trainer.monitor_mode == "max" else value
