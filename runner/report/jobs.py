"""The runs that are compared, read from their folders."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from types import NoneType
from typing import Any

import numpy as np

from runner.config.schema import sha256
from runner.errors import ConfigError, show
from runner.run.run_folder import check_headers, check_types, read_columns, read_json
from runner.run.saved import config_of
from runner.run.strict_json import with_numbers

# What loss=auto is, by the data's task
_USUAL_LOSS: dict[str, dict[str, Any]] = {
    "classification": {"name": "cross_entropy", "label_smoothing": 0.0},
    "regression": {"name": "mean_squared_error"},
}


NO_OVERRIDES = "defaults"  # label of a group that no override sets apart


@dataclass(frozen=True)
class Job:
    """One run's folder."""

    folder: Path
    result: Mapping[str, Any]

    @cached_property
    def config(self) -> dict[str, Any]:
        return config_of(self.folder, "runs")

    @cached_property
    def trace(self) -> dict[str, np.ndarray]:
        return read_columns(self.folder / "trace.csv")

    @cached_property
    def epochs(self) -> dict[str, np.ndarray]:
        """metrics.csv by column."""
        return read_columns(self.folder / "metrics.csv")

    @property
    def status(self) -> str:
        """completed, interrupted, failed; unfinished: without a result.json; damaged: what is there
        cannot be read."""
        return str(self.result["status"])

    @property
    def is_completed(self) -> bool:
        return self.status == "completed"

    @property
    def has_config(self) -> bool:
        """It can be told which group it belongs to."""
        return bool(self.result["backend"])

    @property
    def has_diverged(self) -> bool:
        """Tell whether it ended by a loss, or with a monitored metric, that is NaN or infinite."""
        if self.is_completed:
            return not math.isfinite(self.last(self.monitor))
        error = str(self.result.get("error", ""))
        return re.search(r"the loss of update \d+ is (nan|-?inf)", error) is not None

    @property
    def monitor(self) -> str:
        return str(self.config["trainer"]["monitor"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics after the last epoch."""
        found: Mapping[str, Any] = self.result["metrics"]
        return found

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def backend(self) -> str:
        return str(self.result["backend"])

    @property
    def overrides(self) -> list[str]:
        return [str(said) for said in self.result["overrides"]]

    def settings(self, *without: str) -> str:
        """Identify what the job trained, without the seed: jobs with equal settings can be
        averaged."""
        return sha256(self.config, "seed", *without)

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """data.json; empty of a run that was refused before it was written, or where the file is
        damaged."""
        try:
            return read_json(self.folder / "data.json")
        except ConfigError:
            return {}

    def meaning(self) -> str:
        """Identify what the monitored metric measures; only runs with the same one can be
        ranked."""
        return json.dumps([*self._meaning(), self._data_hash], sort_keys=True)

    def measures(self) -> str:
        """Say the same in words."""
        metric, mode, loss = self._meaning()
        numbers = ", ".join(
            f"{key} {value}" for key, value in (loss or {}).items() if key != "name"
        )
        named = f" ({loss['name']}{', ' if numbers else ''}{numbers})" if loss else ""
        return (
            f"{metric}{named}, {mode}, of data={self.config['data']['name']} {self._data_hash[:8]}"
        )

    def _meaning(self) -> tuple[str, str, dict[str, Any] | None]:
        """The metric, the better direction, and for a loss its kind and numbers."""
        trainer, loss = self.config["trainer"], dict(self.config["loss"])
        metric = self.monitor
        if loss["name"] == "auto":
            loss = _USUAL_LOSS.get(str(self.data.get("task")), loss)
        return metric, str(trainer["monitor_mode"]), loss if metric.endswith("/loss") else None

    def check(self) -> None:
        """A ConfigError where a number is none, or a completed run's records cannot be read."""
        metric, best, path = self.monitor, self.result["best"], self.folder
        numbers = {f"metrics.{name}": value for name, value in self.metrics.items()}
        numbers |= {f"seconds.{name}": value for name, value in self.result["seconds"].items()}
        numbers |= {f"best.{name}": (best or {}).get(name) for name in ("value", "step")}
        for key, value in numbers.items():
            if not isinstance(with_numbers(value), (int, float, NoneType)):
                raise _damaged(path / "result.json", f"{key} must be a number, got {show(value)}")
        if not self.is_completed:
            return
        check_headers(path)
        for name, table, columns in (
            ("trace.csv", self.trace, ["learning_rate", "loss"]),
            ("metrics.csv", self.epochs, ["seconds", metric]),
        ):
            for column in columns:
                if not len(table.get(column, ())):
                    raise _damaged(path / name, f"it has no {column}")
        if math.isfinite(self.last(metric)):
            step = (best or {}).get("step")
            if not isinstance(step, int) or not 0 < step <= len(self.trace["step"]):
                raise _damaged(
                    path / "result.json", f"best.step must be one of trace.csv, got {show(step)}"
                )
            if (best or {}).get("value") is None:
                raise _damaged(path / "result.json", "best.value must be a number, got null")

    def last(self, metric: str) -> float:
        """The metric after the last epoch; NaN where there is none."""
        value = self.metrics.get(metric)
        return math.nan if value is None else float(value)

    @property
    def _data_hash(self) -> str:
        """Hash the data's values, or its config where there is no data.json."""
        found = self.data.get("values_sha256") or self.data.get("sha256")
        return str(found or sha256({"data": self.config["data"]}))

    def resolution(self, metric: str) -> float:
        """The step between the values that a metric can have: a count's, one row; else 0."""
        split, _, name = metric.partition("/")
        num_rows = self.data.get("rows", {}).get(split)
        counts = name == "accuracy" or name.startswith("top_")
        return 1 / num_rows if counts and num_rows else 0.0

    def rate_at_best(self) -> float:
        """The rate of the last update before the end of the best epoch."""
        return float(self.trace["learning_rate"][self.result["best"]["step"] - 1])

    def reached(self, metric: str, mode: str, target: float) -> tuple[float, float]:
        """Step and seconds of training at the end of the first epoch that was as good as the
        target; infinite where there is none. A resumed run's seconds are infinite too: its clock
        holds start-ups that result.json does not know."""
        values = self.epochs[metric]
        good = np.flatnonzero(values <= target if mode == "min" else values >= target)
        if not len(good):
            return math.inf, math.inf
        step = float(self.epochs["step"][good[0]])
        if self.result.get("resumed_from") is not None:
            return step, math.inf
        startup = self.result["seconds"].get("startup") or 0.0
        return step, float(self.epochs["seconds"][good[0]] - startup)


@dataclass(frozen=True)
class Group:
    """Jobs that differ in the seed alone, one a seed, whatever became of them."""

    label: str  # the overrides that not all jobs share
    jobs: tuple[Job, ...]

    @property
    def completed(self) -> list[Job]:
        return [job for job in self.jobs if job.is_completed]

    @property
    def seeds(self) -> list[int]:
        return [job.seed for job in self.jobs]

    def over(self, seeds: Collection[int]) -> "Group":
        """Return the group of these seeds alone."""
        return Group(self.label, tuple(job for job in self.jobs if job.seed in seeds))

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> the metric after the last epoch, of the completed jobs where it is finite."""
        values = {job.seed: job.last(metric) for job in self.completed}
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    def diverged(self, metric: str) -> list[int]:
        """The seeds of jobs that ended by a loss, or with a metric, that is NaN or infinite."""
        values = self.values(metric)
        bad = [job for job in self.jobs if job.seed not in values]
        return [job.seed for job in bad if job.is_completed or job.has_diverged]

    def failed(self, metric: str) -> list[int]:
        """The seeds of the other jobs that did not complete: failed, interrupted or unfinished."""
        gone = {*self.values(metric), *self.diverged(metric)}
        return [seed for seed in self.seeds if seed not in gone]

    @property
    def base_rate(self) -> float:
        return float(self.jobs[0].config["optimizer"]["lr"])

    @property
    def is_tuned(self) -> bool:
        """Tell whether its base rate is one of tune=lr."""
        return bool(self.jobs[0].config.get("tune"))

    def but_for_rate(self) -> str:
        """Identify what the group trained, without its base rate."""
        job = self.jobs[0]
        optimizer = {k: v for k, v in job.config["optimizer"].items() if k != "lr"}
        return job.settings("optimizer") + json.dumps(optimizer, sort_keys=True)

    def mean(self, metric: str) -> float:
        values = self.values(metric)
        return float(np.mean([*values.values()])) if values else math.nan

    def reached(self, metric: str, mode: str, target: float) -> tuple[float, float]:
        """Medians over the seeds."""
        found = [job.reached(metric, mode, target) for job in self.completed]
        steps, seconds = zip(*found, strict=True)
        return median(steps), median(seconds)

    def rate_at_best(self) -> float:
        return median(job.rate_at_best() for job in self.completed)

    @property
    def config_dir(self) -> str | None:
        """The folder of --config-dir, which its choices may come from."""
        found = self.jobs[0].result.get("config_dir")
        return None if found is None else str(found)

    def to_copy(self) -> list[str]:
        """The overrides that train it."""
        without = ("seed=", "output.", "tune", "search=")
        return [said for said in self.jobs[0].overrides if not said.startswith(without)]


def inside(folder: Path) -> list[Path]:
    """The runs' folders in a multirun's; one without a result.json is a run that has not ended."""
    records = [*folder.glob("*/result.json"), *folder.glob("*/config.yaml")]
    return sorted({path.parent for path in records})


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{path} is damaged: {what}")


def read(folders: Iterable[Path]) -> list[Job]:
    """A run that cannot be read is no reason to lose the others: its status is damaged."""
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> Job:
    """A folder without result.json is a run that has not ended. A key that an older version did
    not write is what the config says, or unknown."""
    known: dict[str, Any] = {
        "status": "unfinished",
        "backend": "",
        "schedule": "",
        "seed": -1,
        "overrides": [],
        "metrics": {},
        "best": None,
        "seconds": {},
    }
    path = folder / "result.json"
    try:
        config = config_of(folder, "runs")
        for section, types in _CONFIG.items():
            check_types(folder / "config.yaml", config[section] if section else config, types)
        known |= {"backend": config["backend"], "seed": config["seed"]}
        known["schedule"] = config["schedule"]["name"]
        if not path.is_file():
            return Job(folder, known)
        job = Job(folder, {**known, **read_json(path)})
        check_types(path, job.result, _RESULT)
        job.check()
        return job
    except ConfigError as error:
        return Job(folder, {**known, "status": "damaged", "error": str(error)})


# What is read of a run, by the types that it must have
_RESULT: dict[str, Sequence[type]] = {
    "status": (str,),
    "backend": (str,),
    "schedule": (str,),
    "seed": (int,),
    "overrides": (list,),
    "metrics": (dict,),
    "best": (dict, NoneType),
    "seconds": (dict,),
}
_CONFIG: dict[str, dict[str, Sequence[type]]] = {
    "": {
        "backend": (str,),
        "seed": (int,),
        **dict.fromkeys(("data", "loss", "optimizer", "schedule", "trainer"), (dict,)),
    },
    "optimizer": {"lr": (float, int)},
    "data": {"name": (str,)},
    "loss": {"name": (str,)},
    "schedule": {"name": (str,)},
    "trainer": dict.fromkeys(("monitor", "monitor_mode", "precision"), (str,)),
}


def groups(jobs: Sequence[Job]) -> list[Group]:
    """Group the jobs, in the order of their first ones. Of two copies of a job, take the one that
    completed. Of the same settings on two backends, which train the same run, take the backend on
    which more jobs completed."""
    by_settings: dict[str, dict[str, dict[int, Job]]] = {}
    for job in jobs:
        by_backend = by_settings.setdefault(job.settings("backend"), {})
        seeds = by_backend.setdefault(job.backend, {})
        if job.seed not in seeds or (job.is_completed and not seeds[job.seed].is_completed):
            seeds[job.seed] = job
    each = [
        _with_overrides_first(max(own.values(), key=lambda seeds: _num_completed(seeds.values())))
        for own in by_settings.values()
    ]
    ranked = [job for own in each for job in own if job.overrides]
    alone = len(each) < 2 or not ranked
    shared = set() if alone else set.intersection(*(set(job.overrides) for job in ranked))
    labels = [_label(own[0], shared) for own in each]
    twice = {label for label, number in Counter(labels).items() if number > 1}
    return [
        Group(f"{label} ({own[0].folder.name})" if label in twice else label, tuple(own))
        for label, own in zip(labels, each, strict=True)
    ]


def _num_completed(jobs: Iterable[Job]) -> int:
    return sum(job.is_completed for job in jobs)


def _with_overrides_first(seeds: Mapping[int, Job]) -> list[Job]:
    """A run that has not ended, or is damaged, has none to name the group by."""
    return sorted(seeds.values(), key=lambda job: not job.overrides)


def best_rates(found: Iterable[Group], badness: Callable[[Group], float]) -> list[Group]:
    """Sort the groups, the best first. Of groups that differ in a tuned base rate alone, keep the
    best one."""
    best: dict[str, Group] = {}
    for group in sorted(found, key=badness):
        same = group.but_for_rate() if group.is_tuned else group.jobs[0].settings()
        best.setdefault(same, group)
    return list(best.values())


def pairs(jobs: Sequence[Job]) -> list[tuple[Job, Job]]:
    """Jobs that differ in the backend alone: the first one and each other."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.settings("backend") + f" {job.seed}", []).append(job)
    return [
        (own[0], other)
        for own in found.values()
        for other in own[1:]
        if other.backend != own[0].backend
    ]


def _label(job: Job, shared: set[str]) -> str:
    if job.status in ("unfinished", "damaged"):
        return job.folder.name
    without = ("seed=", "output.", "backend=")
    own = [said for said in job.overrides if said not in shared and not said.startswith(without)]
    return " ".join(own) or NO_OVERRIDES
