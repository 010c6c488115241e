"""Read the runs that are compared from their folders, and group them."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from runner.config.schema import global_batch_size, sha256
from runner.errors import ConfigError, show
from runner.run.records import BATCH_SIZE
from runner.run.run_folder import check_headers, check_types, code_of, read_columns, read_json
from runner.run.saved import config_of
from runner.run.strict_json import with_numbers
from runner.section import value_at

# The loss that loss=auto selects, by the data's task
_USUAL_LOSS: dict[str, dict[str, Any]] = {
    "classification": {
        "name": "cross_entropy",
        "label_smoothing": 0.0,
        "class_weights": None,
    },
    "regression": {"name": "mean_squared_error"},
}


# How the error of a run begins that a loss, or in exact mode a value, ended
_DIVERGED = re.compile(r"the loss of update \d+ is (nan|-?inf)|went beyond the range of float32")

NO_OVERRIDES = "defaults"  # label of a group without its own overrides

# Beginnings of overrides that a multirun takes and a single run refuses or does not need
OF_A_MULTIRUN = ("output.multirun=", "tune", "search=", "answer.", "race.")


class Fold(NamedTuple):
    """A seed and a fold of the data: a block of runs in a cross-validation."""

    seed: int
    fold: int

    def __str__(self) -> str:
        return f"{self.seed} (fold {self.fold})"


Block = int | Fold  # a seed, or a seed and a fold: groups are compared block by block


def in_order(seed: Block) -> tuple[int, int]:
    """Return the key that sorts seeds, and the folds of each."""
    return (seed.seed, seed.fold) if isinstance(seed, Fold) else (seed, -1)


@dataclass(frozen=True)
class Job:
    """A run's folder, its result and its config, which is empty if it could not be read."""

    folder: Path
    result: Mapping[str, Any]
    config: Mapping[str, Any] = field(repr=False)

    @cached_property
    def trace(self) -> dict[str, np.ndarray]:
        return read_columns(self.folder / "trace.csv")

    @cached_property
    def epochs(self) -> dict[str, np.ndarray]:
        """metrics.csv by column."""
        return read_columns(self.folder / "metrics.csv")

    @property
    def status(self) -> str:
        """completed, pruned, interrupted or failed; unfinished: it has no result.json; damaged: its
        files cannot be read."""
        return str(self.result["status"])

    @property
    def is_completed(self) -> bool:
        return self.status == "completed"

    @property
    def has_config(self) -> bool:
        """True if its config could be read, so that its group is known."""
        return bool(self.result["backend"])

    @property
    def has_overrides(self) -> bool:
        """True if its overrides are known: those of a run that has not ended are not."""
        return self.status not in ("unfinished", "damaged")

    @property
    def has_diverged(self) -> bool:
        """True if a loss, or the monitored metric after the last epoch, is NaN or infinite."""
        if self.is_completed:
            return not math.isfinite(self.last(self.monitor))
        return _DIVERGED.search(str(self.result.get("error", ""))) is not None

    @property
    def monitor(self) -> str:
        return str(self.config["trainer"]["monitor"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics after the last epoch."""
        metrics: Mapping[str, Any] = self.result["metrics"]
        return metrics

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def fold(self) -> int | None:
        fold: int | None = self.config["data"].get("fold")
        return fold

    @property
    def block(self) -> Block:
        return self.seed if self.fold is None else Fold(self.seed, self.fold)

    @property
    def backend(self) -> str:
        return str(self.result["backend"])

    @property
    def overrides(self) -> list[str]:
        return [str(item) for item in self.result["overrides"]]

    def settings(self, *without: str) -> str:
        """Return a hash of the job's config without the seed, the fold and the keys `without`, and
        of the user's own code. Jobs with equal settings can be averaged."""
        code = {"code": self._code} if self._code else {}
        data = self.config["data"]
        folded = {} if self.fold is None else {"data": {**data, "fold": "any"}}
        config = {**self.config, **code, **folded}
        for key in without:
            config = _without(config, key.split("."))
        return sha256(config, "seed")

    @property
    def is_for_tuning(self) -> bool:
        """True if its seed is one that tune=lr chooses the values of keys on."""
        return self.seed in ((self.config.get("tune") or {}).get("seeds") or ())

    @cached_property
    def _code(self) -> Mapping[str, str]:
        """The hashes of the user's own modules, and of objects that were passed in Python."""
        return code_of(self.folder) or {}

    @property
    def passed(self) -> list[str]:
        """The groups of the config that were passed in Python, as objects that are in no file."""
        try:
            return [*read_json(self.folder / "environment.json").get("objects", {})]
        except ConfigError:
            return []

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """data.json; empty if the run was refused before writing it, or if the file is damaged."""
        try:
            return read_json(self.folder / "data.json")
        except ConfigError:
            return {}

    def meaning(self) -> str:
        """Return a key of what the monitored metric measures. Only runs with equal keys can be
        ranked."""
        return json.dumps([*self._meaning(), self._data_hash], sort_keys=True)

    def measures(self) -> str:
        """Describe what the monitored metric measures."""
        metric, mode, loss = self._meaning()
        numbers = ", ".join(
            f"{key} {value}" for key, value in (loss or {}).items() if key != "name"
        )
        details = f" ({loss['name']}{', ' if numbers else ''}{numbers})" if loss else ""
        data = f"data={self.config['data']['name']} {self._data_hash[:8]}"
        return f"{metric}{details}, {mode}, of {data}"

    def _meaning(self) -> tuple[str, str, dict[str, Any] | None]:
        """Return the metric, its mode, and for a loss its name and numbers."""
        metric, mode = self.monitor, str(self.config["trainer"]["monitor_mode"])
        return metric, mode, self._loss if metric.endswith("/loss") else None

    @property
    def _loss(self) -> dict[str, Any]:
        """The loss and its numbers; that of loss=auto as the data's task selects it."""
        loss = dict(self.config["loss"])
        return _USUAL_LOSS.get(str(self.data.get("task")), loss) if loss["name"] == "auto" else loss

    def workload(self, meaning: str) -> str:
        """Return a hash of what is trained: the data and the metric, as in `meaning`, the model and
        the loss, without the keys that tune=lr has chosen."""
        config: dict[str, Any] = {"model": self.config.get("model"), "loss": self._loss}
        for key in (self.config.get("tune") or {}).get("keys") or ():
            config = _without(config, key.split("."))
        return sha256({**config, "meaning": meaning})

    def check(self) -> None:
        """Raise ConfigError if an entry is not a number, or if a completed run's records cannot be
        read."""
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
        """Return the metric after the last epoch, or NaN if there is none."""
        value = self.metrics.get(metric)
        return math.nan if value is None else float(value)

    @property
    def _data_hash(self) -> str:
        """The hash of the data's values (with folds, of all rows before their division), or of its
        config if there is no data.json, or if the training rows are an iterable."""
        known = (
            self.data.get("folds_sha256")
            or self.data.get("values_sha256")
            or self.data.get("sha256")
        )
        if self.data.get("rows", {}).get("train", 0) is None:
            known = None
        return str(known or sha256({"data": self.config["data"]}))

    def resolution(self, metric: str) -> float:
        """Return the step between the values that a metric can have: 1 / rows if it counts rows,
        else 0."""
        split, _, name = metric.partition("/")
        num_rows = self.data.get("rows", {}).get(split)
        counts = name == "accuracy" or name.startswith("top_")
        return 1 / num_rows if counts and num_rows else 0.0

    def rate_at_best(self) -> float:
        """Return the rate of the last update in the best epoch."""
        return float(self.trace["learning_rate"][self.result["best"]["step"] - 1])

    @property
    def update_rows(self) -> str:
        """The rows of the updates, as configured."""
        trainer = self.config["trainer"]
        return json.dumps([global_batch_size(self.config), trainer["accumulate_grad_batches"]])

    def rows_until(self, epoch: int) -> float:
        """Return the rows of all updates up to the end of row `epoch` of metrics.csv."""
        trainer, trace = self.config["trainer"], self.trace
        sizes = trace.get(BATCH_SIZE)
        if sizes is None:
            sizes = np.full(len(trace["step"]), global_batch_size(self.config))
        num_rows = self.data.get("rows", {}).get("train") or math.inf  # unknown of an iterable
        ends = [0, *self.epochs["step"][: epoch + 1].astype(int)]
        used = (sizes[a:b].sum() * trainer["accumulate_grad_batches"] for a, b in pairwise(ends))
        return float(sum(min(rows, num_rows) for rows in used))

    def reached(self, metric: str, mode: str, target: float) -> tuple[float, float, float]:
        """Return the step, the rows seen and the seconds of training at the end of the first epoch
        that reached the target; infinite if there is none. The seconds of a resumed run are
        infinite too: its clock includes startup times that are not in result.json."""
        values = self.epochs[metric]
        good = np.flatnonzero(values <= target if mode == "min" else values >= target)
        if not len(good):
            return math.inf, math.inf, math.inf
        step, rows = float(self.epochs["step"][good[0]]), self.rows_until(int(good[0]))
        if self.result.get("resumed_from") is not None:
            return step, rows, math.inf
        startup = self.result["seconds"].get("startup") or 0.0
        return step, rows, float(self.epochs["seconds"][good[0]] - startup)


@dataclass(frozen=True)
class Group:
    """Jobs that differ only in the seed and the fold, one per block, completed or not. Comments
    and messages call a block a seed."""

    label: str  # the overrides that not all jobs share
    jobs: tuple[Job, ...]

    @property
    def completed(self) -> list[Job]:
        return [job for job in self.jobs if job.is_completed]

    @property
    def seeds(self) -> list[Block]:
        return [job.block for job in self.jobs]

    def over(self, seeds: Collection[Block]) -> "Group":
        """Return the group with only these seeds."""
        return Group(self.label, tuple(job for job in self.jobs if job.block in seeds))

    def values(self, metric: str) -> dict[Block, float]:
        """Return seed -> the metric after the last epoch, for completed jobs with a finite one."""
        values = {job.block: job.last(metric) for job in self.completed}
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    def diverged(self, metric: str) -> list[Block]:
        """Return the seeds of jobs with a loss or a metric that is NaN or infinite."""
        values = self.values(metric)
        bad = [job for job in self.jobs if job.block not in values]
        return [job.block for job in bad if job.is_completed or job.has_diverged]

    def failed(self, metric: str) -> list[Block]:
        """Return the seeds of the other jobs that did not complete: failed, interrupted or
        unfinished."""
        others = {*self.values(metric), *self.diverged(metric)}
        return [seed for seed in self.seeds if seed not in others]

    @property
    def tuned_keys(self) -> list[str]:
        """The keys that tune=lr has chosen."""
        return [*(self.jobs[0].config.get("tune") or {}).get("keys", ())]

    def value(self, key: str) -> Any:
        """Return the value of a key of the config, `optimizer.lr`; None if there is none."""
        return value_at(self.jobs[0].config, key)

    def but_for(self, keys: Collection[str]) -> str:
        """Return a hash of the group's settings without these keys."""
        return self.jobs[0].settings(*keys)

    def mean(self, metric: str) -> float:
        values = self.values(metric)
        return float(np.mean([*values.values()])) if values else math.nan

    def reached(self, metric: str, mode: str, target: float) -> tuple[float, float, float]:
        """Return the medians of `Job.reached` over the seeds."""
        by_job = [job.reached(metric, mode, target) for job in self.completed]
        steps, rows, seconds = zip(*by_job, strict=True)
        return median(steps), median(rows), median(seconds)

    def rate_at_best(self) -> float:
        return median(job.rate_at_best() for job in self.completed)

    @property
    def config_dir(self) -> str | None:
        """The folder of --config-dir, which may contain some of its choices."""
        folder = self.jobs[0].result.get("config_dir")
        return None if folder is None else str(folder)

    @property
    def passed(self) -> list[str]:
        """The groups of the config that were passed in Python, as objects that are in no file."""
        return self.jobs[0].passed

    def to_copy(self) -> list[str]:
        """Return the overrides that train the group."""
        without = ("seed=", "data.fold=", "output.", *OF_A_MULTIRUN)
        return [item for item in self.jobs[0].overrides if not item.startswith(without)]


def _without(config: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return the config without a key, given by its parts."""
    name, *rest = path
    part = config.get(name)
    if rest and isinstance(part, Mapping):
        return {**config, name: _without(part, rest)}
    return {key: value for key, value in config.items() if key != name}


def inside(folder: Path) -> list[Path]:
    """Return the run folders in a multirun's folder, also those without a result.json: runs that
    have not ended."""
    records = [*folder.glob("[!.]*/result.json"), *folder.glob("[!.]*/config.yaml")]
    return sorted({path.parent for path in records})


def _damaged(path: Path, problem: str) -> ConfigError:
    return ConfigError(f"{path} is damaged: {problem}")


def read(folders: Iterable[Path]) -> list[Job]:
    """Read the runs. A run that cannot be read gets the status damaged; the others are kept."""
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> Job:
    """Read a run. A folder without result.json is a run that has not ended. A key that older
    versions did not write is taken from the config, or unknown."""
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
    path, config = folder / "result.json", dict[str, Any]()
    try:
        config = config_of(folder, "runs")
        for section, types in _CONFIG.items():
            check_types(folder / "config.yaml", config[section] if section else config, types)
        known |= {"backend": config["backend"], "seed": config["seed"]}
        known["schedule"] = config["schedule"]["name"]
        if not path.is_file():
            return Job(folder, known, config)
        job = Job(folder, {**known, **read_json(path)}, config)
        check_types(path, job.result, _RESULT)
        job.check()
        return job
    except ConfigError as error:
        return Job(folder, {**known, "status": "damaged", "error": str(error)}, config)


# The keys that are read from result.json and config.yaml, and their types
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
    """Group the jobs, in the order of their first ones. Of two copies of a job, take the completed
    one. The same settings on two backends are the same run: take the backend with more completed
    jobs."""
    by_settings: dict[str, dict[str, dict[Block, Job]]] = {}
    for job in jobs:
        by_backend = by_settings.setdefault(job.settings("backend"), {})
        seeds = by_backend.setdefault(job.backend, {})
        if job.block not in seeds or (job.is_completed and not seeds[job.block].is_completed):
            seeds[job.block] = job
    grouped = [
        _with_overrides_first(
            max(by_backend.values(), key=lambda seeds: _num_completed(seeds.values()))
        )
        for by_backend in by_settings.values()
    ]
    with_overrides = [job for members in grouped for job in members if job.overrides]
    is_single = len(grouped) < 2 or not with_overrides
    shared = set() if is_single else set.intersection(*(set(j.overrides) for j in with_overrides))
    labels = [_label(members[0], shared) for members in grouped]
    repeated = {label for label, number in Counter(labels).items() if number > 1}
    return [
        Group(f"{label} ({members[0].folder.name})" if label in repeated else label, tuple(members))
        for label, members in zip(labels, grouped, strict=True)
    ]


def _num_completed(jobs: Iterable[Job]) -> int:
    return sum(job.is_completed for job in jobs)


def _with_overrides_first(seeds: Mapping[Block, Job]) -> list[Job]:
    """Sort a group's jobs, those with overrides first: the first one names the group. A run that
    has not ended, or is damaged, has no overrides."""
    return sorted(seeds.values(), key=lambda job: not job.overrides)


def pairs(jobs: Sequence[Job]) -> list[tuple[Job, Job]]:
    """Return pairs of jobs that differ only in the backend: the first job with each other one."""
    by_settings: dict[str, list[Job]] = {}
    for job in jobs:
        by_settings.setdefault(job.settings("backend") + f" {job.block}", []).append(job)
    return [
        (same[0], other)
        for same in by_settings.values()
        for other in same[1:]
        if other.backend != same[0].backend
    ]


def _label(job: Job, shared: set[str]) -> str:
    if not job.has_overrides:
        return job.folder.name
    without = ("seed=", "data.fold=", "output.", "backend=", "trusted_modules=", "answer.", "race.")
    label = [item for item in job.overrides if item not in shared and not item.startswith(without)]
    return " ".join(label) or NO_OVERRIDES
