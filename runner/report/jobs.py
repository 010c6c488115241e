"""The runs that are compared, read from their folders."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from runner.config import sha256
from runner.run_folder import read_columns, read_json
from runner.saved import config_of


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
    def is_completed(self) -> bool:
        return bool(self.result["status"] == "completed")

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
        """What it trained, but for the seed: equal of jobs that can be averaged."""
        return sha256(self.config, "seed", *without)

    def rate_at_best(self) -> float:
        """Of the last update before its best epoch's end."""
        return float(self.trace["learning_rate"][self.result["best"]["step"] - 1])

    def reached(self, metric: str, mode: str, target: float) -> tuple[float, float]:
        """Step and seconds of training at the end of the first epoch that was as good as the target; else infinite."""
        values = self.epochs[metric]
        good = np.flatnonzero(values <= target if mode == "min" else values >= target)
        if not len(good):
            return math.inf, math.inf
        spent = self.epochs["seconds"][good[0]] - self.result["seconds"]["startup"]
        return float(self.epochs["step"][good[0]]), float(spent)


@dataclass(frozen=True)
class Group:
    """Jobs that differ in the seed alone."""

    label: str  # the overrides that not all jobs share
    jobs: tuple[Job, ...]

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> the metric after the last epoch."""
        return {job.seed: float(job.result["metrics"].get(metric, math.nan)) for job in self.jobs}

    @property
    def base_rate(self) -> float:
        return float(self.jobs[0].config["optimizer"]["lr"])

    def but_for_rate(self) -> str:
        """What it trained, equal of groups that tuning makes one of."""
        job = self.jobs[0]
        if not job.config.get("tune"):
            return job.settings()
        optimizer = {k: v for k, v in job.config["optimizer"].items() if k != "lr"}
        return job.settings("optimizer") + json.dumps(optimizer, sort_keys=True)

    def mean(self, metric: str) -> float:
        return float(np.mean([*self.values(metric).values()]))

    def reached(self, metric: str, mode: str, target: float) -> tuple[float, float]:
        """Medians over the seeds."""
        steps, seconds = zip(*(job.reached(metric, mode, target) for job in self.jobs), strict=True)
        return median(steps), median(seconds)

    def rate_at_best(self) -> float:
        return median(job.rate_at_best() for job in self.jobs)

    def to_copy(self) -> list[str]:
        """What to say on the command line to train it."""
        return [said for said in self.jobs[0].overrides if not said.startswith(("seed=", "output.", "tune", "search="))]


def inside(folder: Path) -> list[Path]:
    """The runs' folders in a multirun's."""
    return sorted(path.parent for path in folder.glob("*/result.json"))


def read(folders: Iterable[Path]) -> list[Job]:
    return [Job(folder, read_json(folder / "result.json")) for folder in folders]


def groups(jobs: Sequence[Job]) -> list[Group]:
    """In order of their first jobs; of the same run on two backends only the first one's, since it is the same."""
    by_settings: dict[str, list[Job]] = {}
    backends: dict[str, str] = {}
    for job in jobs:
        same_on_any = job.settings("backend")
        if backends.setdefault(same_on_any, job.backend) == job.backend:
            by_settings.setdefault(same_on_any, []).append(job)
    ranked = [job for own in by_settings.values() for job in own]
    shared = set.intersection(*(set(job.overrides) for job in ranked)) if len(by_settings) > 1 else set()
    labels = [_label(own[0].overrides, shared) for own in by_settings.values()]
    twice = {label for label, number in Counter(labels).items() if number > 1}
    return [
        Group(f"{label} ({own[0].folder.name})" if label in twice else label, tuple(own))
        for label, own in zip(labels, by_settings.values(), strict=True)
    ]


def best_rates(found: Iterable[Group], badness: Callable[[Group], float]) -> list[Group]:
    """In order, the best first; of groups that differ in the base rate alone, where it was tuned, the best one."""
    best: dict[str, Group] = {}
    for group in sorted(found, key=badness):
        best.setdefault(group.but_for_rate(), group)
    return list(best.values())


def pairs(jobs: Sequence[Job]) -> list[tuple[Job, Job]]:
    """Jobs that differ in the backend alone: the first one and each other."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.settings("backend") + f" {job.seed}", []).append(job)
    return [(own[0], other) for own in found.values() for other in own[1:] if other.backend != own[0].backend]


def _label(overrides: Sequence[str], shared: set[str]) -> str:
    own = [said for said in overrides if said not in shared and not said.startswith(("seed=", "output.", "backend="))]
    return " ".join(own) or "defaults"
