"""Earlier runs of a race: a run with the same config, code, data, packages and machine as a
completed one below output.root is copied, not trained again."""

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from runner import user_code
from runner.cli.multirun import job_folder
from runner.config.schema import sha256
from runner.data.dataset import changed
from runner.errors import ConfigError
from runner.plan import Plan
from runner.run import run_folder, trunk
from runner.run.run_folder import read_json, write_json

_PATTERNS = ("runs/*/result.json", "multiruns/*/*/result.json")


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
        """Copy a run of this config into a multirun's folder, with the overrides of its job. Return
        the earlier run's folder; None if there is none, or if the job has a folder."""
        if self.planned is None or self.planned.data.stream is not None:
            return None
        digest, code = sha256(values), user_code.hashes(values)
        sources = [path for path in self._by_config.get(digest, ()) if self._is_same(path, code)]
        if not sources:
            return None
        with run_folder.exclusive_access(folder):
            if (folder / name).exists() or job_folder(folder, name, digest, code) is not None:
                return None
            _copy(sources[0], folder / name, overrides)
        return sources[0]

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


def _copy(source: Path, target: Path, overrides: Sequence[str]) -> None:
    """Copy a run. Its checkpoints, which are never written again, are linked where possible."""
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copytree(source, staged, symlinks=True, copy_function=_link_or_copy)
    result = read_json(staged / "result.json")
    environment = read_json(staged / "environment.json")
    (staged / trunk.FILE).unlink(missing_ok=True)  # its trunk is in another race
    [environment, *environment.get("resumed", [])][-1]["overrides"] = [*overrides]
    write_json(staged / "environment.json", environment)
    write_json(staged / "result.json", {**result, "overrides": [*overrides]})
    os.rename(staged, target)


def _link_or_copy(source: str, target: str) -> None:
    if f"{os.sep}checkpoints{os.sep}" in target:
        try:
            os.link(source, target)
        except OSError:  # another file system
            pass
        else:
            return
    shutil.copy2(source, target)
