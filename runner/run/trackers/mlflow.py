"""logger=mlflow: a run in the store that MLFLOW_TRACKING_URI names, by default the SQLite file
mlflow.db in output.root.

MLflow cannot remove points. If a run resumes before the last point that its tracked run has, a new
tracked run begins with the whole history, and the tag `replaced_by` of the other one names it.
"""

import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from runner.run import run_folder
from runner.run.trackers.points import LEARNING_RATE
from runner.run.trackers.tracker import (
    Point,
    TrackedMultirun,
    TrackedRun,
    Tracker,
    order,
    save_id,
    saved_id,
)

FILE = "mlflow.json"  # has the id of the tracked run; lies in the run's folder
_EXPERIMENT = "twinrun"
# MLflow's own name for an experiment that trains models, as opposed to one of agents
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_MOST_METRICS = 1000  # the limit of a request
_MOST_PARAMS = 100
_LONGEST_TAG = 5000  # characters
_STATUS = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflow(Tracker):
    """Writes metrics, files, and the config as parameters; the multirun is the tag `group`."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._client, self._experiment, self.hint = _connect(run.root)

    def open(self, last: int) -> int:
        before = _known_id(self._client, self._run.path)
        if before is not None:
            done = max(self._orders(before), default=-1)
            if done <= last:
                self._id = before
                self._client.update_run(before, status="RUNNING")
                return done
        self._begin()
        if before is not None:
            self._client.set_tag(before, "replaced_by", self._id)
        return -1

    def _orders(self, run_id: str) -> Iterator[int]:
        """Yield the orders of the last update and of the last evaluation that the run has."""
        for tag, is_update in ((LEARNING_RATE, True), ("epoch", False)):
            steps = [metric.step for metric in self._client.get_metric_history(run_id, tag)]
            if steps:
                yield order(max(steps), is_update)

    def _begin(self) -> None:
        tags = {} if self._run.group is None else {"group": self._run.group}
        made = self._client.create_run(self._experiment, run_name=self._run.name, tags=tags)
        self._id = save_id(self._run.path / FILE, made.info.run_id)
        params = [Param(_name(key), str(value)) for key, value in self._run.hyperparameters.items()]
        for i in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[i : i + _MOST_PARAMS])

    def write(self, points: Sequence[Point]) -> None:
        """Add whole points at a time, so that a run that is killed has a beginning of them."""
        now, batch = int(1000 * time.time()), list[Metric]()
        for point in points:
            new = [
                Metric(_name(tag), value, now, point.step) for tag, value in point.values.items()
            ]
            if len(batch) + len(new) > _MOST_METRICS:
                self._client.log_batch(self._id, metrics=batch)
                batch = []
            batch += new
        self._client.log_batch(self._id, metrics=batch)

    def keep(self, name: str, path: Path, step: int) -> None:
        _keep(self._client, self._id, name, path)

    def close(self, status: str) -> None:
        self._client.set_terminated(self._id, _STATUS[status])


def write_answer(multirun: TrackedMultirun) -> str:
    """Write a run with the answer of a multirun: it is the parent of the jobs' runs, its
    description is the table, and its artifacts are the files. Return the hint."""
    client, experiment, hint = _connect(multirun.root)
    parent = _known_id(client, multirun.path)
    if parent is None:
        made = client.create_run(experiment, run_name=multirun.name)
        parent = save_id(multirun.path / FILE, made.info.run_id)
    tags = {
        "group": multirun.name,
        "answer": multirun.says,
        "winner": multirun.winner or "",
        "mlflow.note.content": multirun.table,
    }
    for key, value in tags.items():
        client.set_tag(parent, key, value[:_LONGEST_TAG])
    for run in multirun.runs:
        if (child := _known_id(client, run)) is not None:
            client.set_tag(child, "mlflow.parentRunId", parent)
    for name, path in multirun.files:
        _keep(client, parent, name, path)
    client.set_terminated(parent, "FINISHED")
    return hint


def _keep(client: MlflowClient, run_id: str, name: str, path: Path) -> None:
    """Add a file as an artifact. MLflow keeps the name of the file itself."""
    client.log_artifact(run_id, str(path), str(Path(name).parent) if "/" in name else None)


def _connect(root: Path) -> tuple[MlflowClient, str, str]:
    """Return the client of the store, the experiment's id, and a hint where the store is."""
    store, configured = (root / "mlflow.db").resolve(), os.environ.get("MLFLOW_TRACKING_URI")
    address = configured or f"sqlite:///{store}"
    with run_folder.exclusive_access(root):  # jobs side by side would all make the tables
        if not configured and not store.exists():
            make_store(store)
        client = MlflowClient(address)
        experiment = _find_experiment(client, None if configured else root)
    place = "the store of MLFLOW_TRACKING_URI" if configured else address
    return client, experiment, f"mlflow, in {place}"


def _find_experiment(client: MlflowClient, root: Path | None) -> str:
    """Find or make the experiment. Without `root`, the store is a server, which has a place of its
    own for artifacts."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is not None:
        if name == _EXPERIMENT and not _KIND.keys() & found.tags.keys():  # of an earlier version
            client.set_experiment_tag(found.experiment_id, *next(iter(_KIND.items())))
        return str(found.experiment_id)
    artifacts = None if root is None else (root / "mlflow_artifacts").resolve().as_uri()
    return str(client.create_experiment(name, artifact_location=artifacts, tags=_KIND))


def _known_id(client: MlflowClient, folder: Path) -> str | None:
    """Return the id of the tracked run of a folder; None if there is none in this store."""
    saved = saved_id(folder / FILE)
    if saved is not None:
        with suppress(MlflowException):
            client.get_run(saved)
            return saved
    return None


def make_store(store: Path) -> None:
    """Make the database in a folder beside its place, and move it there when it is whole. MLflow
    needs seconds for its tables; no run can use a file whose making was killed."""
    folder = store.with_name(".mlflow.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    MlflowClient(f"sqlite:///{folder / 'tables.db'}").search_experiments(max_results=1)
    with (
        closing(sqlite3.connect(folder / "tables.db")) as tables,
        closing(sqlite3.connect(folder / "whole.db")) as whole,
    ):
        tables.backup(whole)
    (folder / "whole.db").replace(store)
    shutil.rmtree(folder, ignore_errors=True)


def _name(text: str) -> str:
    """Return a name as MLflow allows it."""
    return re.sub(r"[^\w. :/-]", "_", text)
