"""The Pareto front of a search with several objectives.

A trial is on the front if no other one is at least as good in all objectives and better in one.
Deb, "Multi-Objective Optimization Using Evolutionary Algorithms" (2001), section 2.4;
optuna.Study.best_trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.run.study import Objective


@dataclass(frozen=True)
class Point:
    """A trial on the front."""

    trial: int
    values: Sequence[float]  # one for each objective, the means over the seeds
    chosen: Mapping[str, str]  # key -> value
    folders: Sequence[Path]  # its runs


@dataclass(frozen=True)
class Front:
    """The trials on the front, sorted by the first objective, best first."""

    objectives: Sequence[Objective]
    points: Sequence[Point]
    num_trials: int  # that have values

    def sentences(self, metric: str) -> list[str]:
        """Return the front in words. `metric` is what the comparison ranks by."""
        *most, last = map(str, self.objectives)
        names = f"{', '.join(most)} and {last}"
        if len(self.points) == 1:
            (only,) = self.points
            return [f"trial {only.trial} is the best of {self.num_trials} in each of {names}"]
        return [
            f"{len(self.points)} of {self.num_trials} trials are on the Pareto front of {names}: "
            f"no other trial is better than one of them in one without being worse in another",
            *(f"  trial {each.trial}: {self._in_words(each)}" for each in self.points),
            f"the ranking of the runs is by {metric} alone",
        ]

    def _in_words(self, point: Point) -> str:
        values = (f"{of.name} {v:.4g}" for of, v in zip(self.objectives, point.values, strict=True))
        chosen = " ".join(f"{key}={value}" for key, value in point.chosen.items())
        return f"{', '.join(values)} with {chosen}"

    def table(self) -> list[tuple[str, ...]]:
        """Return a header and one row per trial. The cells are not escaped."""
        keys = list(dict.fromkeys(key for each in self.points for key in each.chosen))
        header = ("trial", *map(str, self.objectives), *keys)
        rows = (
            (
                str(each.trial),
                *(f"{value:.6g}" for value in each.values),
                *(each.chosen.get(key, "") for key in keys),
            )
            for each in self.points
        )
        return [header, *rows]

    def entry(self) -> list[dict[str, Any]]:
        """Return the front for answer.json and search.json."""
        names = [each.name for each in self.objectives]
        return [
            {
                "trial": each.trial,
                "objectives": dict(zip(names, each.values, strict=True)),
                "values": dict(each.chosen),
                "folders": [path.name for path in each.folders],
            }
            for each in self.points
        ]
