"""Earlier runs of a race: a run with the same config, code, data, packages and machine as a
completed one below output.root is copied, not trained again."""

import glob
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from runner import user_code
from runner.cli.multirun import job_folder
from runner.config.schema import sha256
from runner.data.dataset import changed
from runner.errors import ConfigError, RunError
from runner.plan import Plan
from runner.report import jobs
from runner.run import checkpoint, run_folder, trunk
from runner.run.run_folder import read_json, write_config, write_json

_PATTERNS = ("runs/[!.]*/result.json", "multiruns/[!.]*/[!.]*/result.json")
# Copies of one config that are looked at, the newest ones: each takes tens of milliseconds
_MOST_COPIES = 10
# Files of tasks on a finished run, which a run that is trained does not have
_OF_TASKS = ("test.json", "evaluation.json", "card.*", "predictions*", "model.*", trunk.FILE)


@dataclass(frozen=True)
class Earlier:
    """The completed runs below a folder that a race may use."""

    root: Path
    planned: Plan | None = field(repr=False)  # of a run of the race; None: no run can be used

    @cached_property
    def _by_config(self) -> dict[str, list[Path]]:
        """The folders of completed runs by the hash of their config, the newest first."""
        found: dict[str, list[Path]] = {}
        for path in (path for pattern in _PATTERNS for path in self.root.glob(pattern)):
            try:
                result = read_json(path)
            except ConfigError:
                continue
            if result.get("status") == "completed":
                found.setdefault(str(result.get("config_sha256")), []).append(path.parent)
        return {digest: sorted(runs, reverse=True) for digest, runs in found.items()}

    def take(
        self, folder: Path, name: str, values: Mapping[str, Any], overrides: Sequence[str]
    ) -> Path | None:
        """Copy a run of this config into a multirun's folder, with the config and the overrides of
        its job. Return the earlier run's folder; None if there is none, or if the job has a folder
        or a tracker, which gets its points from training."""
        if self.planned is None or self.planned.data.stream is not None or values["logger"]:
            return None
        digest, code = sha256(values), user_code.hashes(values)
        candidates = self._by_config.get(digest, ())
        same = islice((path for path in candidates if self._is_same(path, code)), _MOST_COPIES)
        source = next((path for path in same if _is_whole(path, digest)), None)
        if source is None:
            return None
        with run_folder.exclusive_access(folder):
            for left in folder.glob(f".{glob.escape(name)}.*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            if (folder / name).exists() or job_folder(folder, name, digest, code) is not None:
                return None
            try:
                _copy(source, folder / name, values, overrides)
            except (ConfigError, RunError, OSError, shutil.Error):  # a full disk; it changed
                return None
        return source

    def _is_same(self, source: Path, code: Mapping[str, str]) -> bool:
        """Return whether a run was made by this code, of this data, with these packages, on such a
        device with as many threads."""
        assert self.planned is not None
        try:
            environment, data = (read_json(source / f"{n}.json") for n in ("environment", "data"))
            if environment.get("objects") or (run_folder.code_of(source) or {}) != code:
                return False
            here = {
                "packages": run_folder.packages(),
                "python": platform.python_version(),
                "platform": platform.platform(),
                "device": self.planned.model.device,
                "threads": self.planned.model.threads,
            }
            sessions = [environment, *environment.get("resumed", [])]
            is_here = all(each.get(key) == here[key] for each in sessions for key in here)
            return is_here and changed(data, self.planned.data.description()) is None
        except (ConfigError, OSError, AttributeError, KeyError, TypeError):
            return False


def _is_whole(source: Path, digest: str) -> bool:
    """Return whether no process trains in a run's folder, its config and records can be read and
    are those of its result, without a tracker of its own, and its checkpoints are intact."""
    (job,) = jobs.read([source])
    if not job.is_completed or job.config["logger"] or run_folder.holder(source) is not None:
        return False
    try:
        saved = job.result["steps"], job.result["weights_sha256"]
        if sha256(job.config) != digest or len(job.trace["step"]) != saved[0]:
            return False
        state, _ = checkpoint.read(source)
        if (state.step, checkpoint.weights_sha256(state)) != saved:
            return False
        if checkpoint.target(source, "best") is not None:
            checkpoint.read(source, "best")
    except (ConfigError, RunError, OSError, KeyError):
        return False
    return True


def _copy(source: Path, target: Path, values: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Copy a run. Its checkpoints, which are never written again, are linked where possible."""
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        ignored = shutil.ignore_patterns(*_OF_TASKS, ".*")
        shutil.copytree(source, staged, symlinks=True, ignore=ignored, copy_function=_link_or_copy)
        result = read_json(staged / "result.json")
        environment = read_json(staged / "environment.json")
        [environment, *environment.get("resumed", [])][-1]["overrides"] = [*overrides]
        write_json(staged / "environment.json", environment)
        write_json(staged / "result.json", {**result, "overrides": [*overrides]})
        write_config(staged, values)
        os.rename(staged, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _link_or_copy(source: str, target: str) -> None:
    if f"{os.sep}checkpoints{os.sep}" in target:
        try:
            os.link(source, target)
        except OSError:  # another file system
            pass
        else:
            return
    shutil.copy2(source, target)
