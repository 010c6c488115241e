"""logger=mlflow: a run in the store that MLFLOW_TRACKING_URI names, by default the SQLite file
mlflow.db in output.root.

MLflow cannot remove points. If a run resumes before the last point that its tracked run has, a new
tracked run begins with the whole history, and the tag `replaced_by` of the other one names it.
"""

import os
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

from runner.errors import ConfigError
from runner.run import run_folder
from runner.run.trackers.points import LEARNING_RATE
from runner.run.trackers.tracker import Point, TrackedRun, Tracker, order

FILE = "mlflow.json"  # has the id of the tracked run; lies in the run's folder
_EXPERIMENT = "twinrun"
_MOST_METRICS = 1000  # the limit of a request
_MOST_PARAMS = 100
_STATUS = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflow(Tracker):
    """Writes metrics, and the config as parameters; the multirun is the tag `group`."""

    def __init__(self, run: TrackedRun) -> None:
        self._run, store = run, (run.root / "mlflow.db").resolve()
        configured = os.environ.get("MLFLOW_TRACKING_URI")
        address = configured or f"sqlite:///{store}"
        with run_folder.exclusive_access(run.root):  # jobs side by side would all make the tables
            if not configured and not store.exists():
                _make(store)
            self._client = MlflowClient(address)
            self._experiment = self._find_experiment(run)
        self.hint = f"mlflow, in {'the store of MLFLOW_TRACKING_URI' if configured else address}"

    def _find_experiment(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None  # a server has a place of its own for them
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            artifacts = (run.root / "mlflow_artifacts").resolve().as_uri()
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def open(self, last: int) -> int:
        before = self._saved_id()
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

    def _saved_id(self) -> str | None:
        """Return the id of the tracked run; None if there is none in this store."""
        with suppress(ConfigError, KeyError, MlflowException):
            saved = str(run_folder.read_json(self._run.path / FILE)["run_id"])
            self._client.get_run(saved)
            return saved
        return None

    def _orders(self, run_id: str) -> Iterator[int]:
        """Yield the orders of the last update and of the last evaluation that the run has."""
        for tag, is_update in ((LEARNING_RATE, True), ("epoch", False)):
            steps = [metric.step for metric in self._client.get_metric_history(run_id, tag)]
            if steps:
                yield order(max(steps), is_update)

    def _begin(self) -> None:
        tags = {} if self._run.group is None else {"group": self._run.group}
        made = self._client.create_run(self._experiment, run_name=self._run.name, tags=tags)
        self._id = made.info.run_id
        run_folder.write_json(self._run.path / FILE, {"run_id": self._id})
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

    def close(self, status: str) -> None:
        self._client.set_terminated(self._id, _STATUS[status])


def _make(store: Path) -> None:
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
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in text)
