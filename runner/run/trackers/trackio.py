"""logger=trackio: a run in the database of the folder that TRACKIO_DIR names, by default the folder
trackio in output.root.

The database is written with Trackio's own storage, without its run object, which asks a server for
the user's name. Nothing leaves this machine. A row's `log_id` has the point's order, and the
database takes no such row twice. If a run resumes before the last point that the database has, the
rows of the run are removed and written again.
"""

import os
import re
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from trackio import Markdown, cas, sqlite_storage, utils
from trackio.sqlite_storage import SQLiteStorage

from runner.run.trackers.points import LEARNING_RATE
from runner.run.trackers.tracker import (
    Point,
    TrackedMultirun,
    TrackedRun,
    Tracker,
    kept_id,
    order,
)

FILE = "trackio.json"  # has the id of the tracked run; lies in the run's folder
PROJECT = "twinrun"
_ASK_A_SERVER = ("TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID")  # variables of the environment
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")  # of artifacts
_access = threading.Lock()


class Trackio(Tracker):
    """Writes metrics, the config, and files as an artifact; the multirun is the group."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._files = list[dict[str, Any]]()
        self.hint = _hint(run.root)

    def open(self, last: int) -> int:
        self._id = kept_id(self._run.path / FILE, _new_id)
        with storage(self._run.root):
            rows = SQLiteStorage.get_logs(PROJECT, run_id=self._id)
            done = max(map(_order, rows), default=-1)
            if done > last:
                _remove(self._run.name, self._id)
                done = -1
        self._config = None if done >= 0 else _config(self._run.hyperparameters, self._run.group)
        return done

    def write(self, points: Sequence[Point]) -> None:
        """Add points in one transaction; the first points of a run have its config."""
        with storage(self._run.root):
            SQLiteStorage.bulk_log(
                PROJECT,
                self._run.name,
                [dict(point.values) for point in points],
                steps=[point.step for point in points],
                config=self._config,
                log_ids=[f"{self._id}-{point.order}" for point in points],
                run_id=self._id,
            )
        self._config = None

    def keep(self, name: str, path: Path, step: int) -> None:
        with storage(self._run.root):
            self._files.append(_stage(name, path))

    def close(self, status: str) -> None:
        with storage(self._run.root):
            _commit(self._run.name, self._id, "run", self._files)


def write_answer(multirun: TrackedMultirun) -> str:
    """Write a run of the multirun's group: its answer is a report, and its files are an artifact.
    Return the hint."""
    run_id = kept_id(multirun.path / FILE, _new_id)
    # Trackio's pages show lists, but neither tables nor ends of lines
    report = "\n".join(f"- {line.strip()}" for line in multirun.says.splitlines())
    config = {"answer": multirun.says, "winner": multirun.winner}
    with storage(multirun.root):
        _remove(multirun.name, run_id)  # of an earlier answer
        SQLiteStorage.bulk_log(
            PROJECT,
            multirun.name,
            [{"answer": {"_type": Markdown.TYPE, "_value": report}}],
            config=_config(config, multirun.name),
            run_id=run_id,
        )
        files = [_stage(name, path) for name, path in multirun.files]
        _commit(multirun.name, run_id, "comparison", files)
    return _hint(multirun.root)


def folder_of(root: Path) -> Path:
    """Return the folder of the database for an output.root."""
    return Path(os.environ.get("TRACKIO_DIR") or root / "trackio").resolve()


@contextmanager
def storage(root: Path) -> Iterator[None]:
    """Set the folder of Trackio, which it reads when it is imported, for one access.

    Raises OSError if Trackio would ask a server, or keep its files elsewhere.
    """
    for name in _ASK_A_SERVER:
        if os.environ.get(name):
            raise OSError(f"{name} is set, so Trackio would ask a server; unset it")
    folder = folder_of(root)
    own = {
        (sqlite_storage, "TRACKIO_DIR"): folder,
        (utils, "TRACKIO_DIR"): folder,
        (utils, "ARTIFACTS_DIR"): folder / "artifacts",
    }
    with _access:
        before = {place: getattr(*place) for place in own}
        try:
            for place, value in own.items():
                setattr(*place, value)
            paths = SQLiteStorage.get_project_db_path(PROJECT), utils.project_artifacts_dir(PROJECT)
            if not all(path.is_relative_to(folder) for path in paths):
                raise OSError(f"this version of Trackio keeps no files in {folder}")
            yield
        finally:
            for place, value in before.items():
                setattr(*place, value)


def _new_id() -> str:
    return uuid4().hex


def _hint(root: Path) -> str:
    folder = shlex.quote(str(folder_of(root)))
    return f"TRACKIO_DIR={folder} trackio show --project {PROJECT}"


def _order(row: Mapping[str, Any]) -> int:
    return order(row["step"], LEARNING_RATE in row)


def _config(values: Mapping[str, Any], group: str | None) -> dict[str, Any]:
    """Return the config of a run, with the keys that Trackio's own runs have."""
    return {**values, "_Group": group, "_Created": datetime.now(UTC).isoformat()}


def _remove(name: str, run_id: str) -> None:
    """Remove the rows of a run, if it has any."""
    if SQLiteStorage.get_logs(PROJECT, run_id=run_id) and not SQLiteStorage.delete_run(
        PROJECT, name, run_id=run_id
    ):
        raise OSError(f"the database has not removed the run {name}")


def _stage(name: str, path: Path) -> dict[str, Any]:
    """Copy a file to those of the project. Return its entry in an artifact."""
    digest, size = cas.stage_blob_into_project(path, PROJECT)
    return {"path": name, "digest": digest, "size": size}


def _commit(name: str, run_id: str, kind: str, files: Sequence[dict[str, Any]]) -> None:
    """Make an artifact of a run's files; it replaces the one that the run has."""
    if files:
        SQLiteStorage.commit_artifact_version(
            PROJECT,
            f"{_NOT_IN_NAMES.sub('-', name)}-{run_id[:8]}",
            kind,
            description=None,
            manifest=list(files),
            metadata=None,
            aliases=None,
            run_name=name,
            run_id=run_id,
            overwrite=True,
        )
