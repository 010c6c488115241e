"""The jobs of tune=lr: choose the values of `tune.keys` for each combination on the tuning seeds,
then train every combination at its chosen values on the seeds of the comparison."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from hydra.core.override_parser.types import Override

from runner.cli.overrides import without_hydra
from runner.config.schema import Config, Tune
from runner.errors import ConfigError, nearest, show
from runner.report.answer import seeds_in_words
from runner.report.jobs import NO_OVERRIDES
from runner.section import value_at

_MOST_ROUNDS = 3  # how often a grid grows where its best value is at an edge
_BLOCK = ("seed", "data.fold")  # the keys of a block of runs
_NEVER = (*_BLOCK, "task", "tune", "search", "trusted_modules")

Values = tuple[str, ...]  # a value for each of the tuned keys, as in an override


@dataclass
class Combination:
    """A combination of the other keys, and the values that are tried for it."""

    overrides: list[str]  # without the seed, the fold and the tuned keys
    metric: str  # that is monitored
    mode: str  # min, max
    factors: frozenset[str]  # keys with a grid of factors; only these grids grow
    folds: list[list[str]] = field(default_factory=list)  # each fold's override, [] without folds
    values: dict[str, list[str]] = field(default_factory=dict)  # key -> the values of its grid


@dataclass
class Tuning:
    """The choice of values for all combinations of a multirun."""

    keys: list[str]
    seeds: list[int]  # of the comparison
    tuning_seeds: list[int]
    combinations: list[Combination]

    def first(self) -> list[tuple[int, Values]]:
        """Return the grid: (number of the combination, values)."""
        return [
            (i, values)
            for i, each in enumerate(self.combinations)
            for values in product(*(each.values[key] for key in self.keys))
        ]

    def jobs(self, points: Sequence[tuple[int, Values]], seeds: Sequence[int]) -> list[list[str]]:
        """Return the overrides of the runs of these points of the grid: every fold and seed."""
        return [
            job
            for i, values in points
            for fold in self.combinations[i].folds
            for job in self._with_seeds(self.combinations[i].overrides, values, fold, seeds)
        ]

    def _with_seeds(
        self, overrides: list[str], values: Values, fold: list[str], seeds: Sequence[int]
    ) -> Iterator[list[str]]:
        chosen = [f"{key}={value}" for key, value in zip(self.keys, values, strict=True)]
        listed = f"tune.seeds=[{','.join(map(str, self.tuning_seeds))}]"
        for seed in seeds:
            yield [*overrides, *chosen, listed, *fold, f"seed={seed}"]

    @property
    def shared(self) -> set[str]:
        """The overrides that all combinations have."""
        return set.intersection(*(set(each.overrides) for each in self.combinations))

    def choose(
        self, means: Mapping[tuple[int, Values], float]
    ) -> dict[int, tuple[Values, float] | None]:
        """Return the point with the least mean for each combination, the first one of equals;
        None if every mean is infinite."""
        chosen: dict[int, tuple[Values, float] | None] = {}
        for i in range(len(self.combinations)):
            tried = {values: mean for (j, values), mean in means.items() if j == i}
            best = min(tried, key=lambda values: tried[values])
            chosen[i] = (best, tried[best]) if math.isfinite(tried[best]) else None
        return chosen

    def beyond(
        self, i: int, best: Values, means: Mapping[tuple[int, Values], float]
    ) -> list[tuple[int, Values]]:
        """Return the points to try beyond the edges that `best` is at: the next value of a grid of
        factors, at the distance of its last two values, with the other keys as in `best`."""
        points = []
        for place, key in enumerate(self.keys):
            if key not in self.combinations[i].factors:
                continue
            tried = sorted({float(values[place]) for j, values in means if j == i})
            value = float(best[place])
            for edge, inner in ((tried[0], tried[1]), (tried[-1], tried[-2])):
                if value == edge:
                    further = _number(edge * edge / inner)
                    points.append((i, (*best[:place], further, *best[place + 1 :])))
        return points


def plan(
    jobs: Sequence[Sequence[str]],
    overrides: Sequence[Override],
    configs: Sequence[tuple[Config, Mapping[str, Any]]],
) -> Tuning:
    """Return the tuning of a multirun from its jobs and their configs, (config, its values)."""
    tune = configs[0][0].tune
    assert tune is not None
    if any(config.tune != tune for config, _ in configs):
        raise ConfigError("tune must be the same for all jobs")
    keys = _checked_keys(tune, configs[0][1])
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()}
    combinations: dict[tuple[str, ...], Combination] = {}
    for job, (config, values) in zip(jobs, configs, strict=True):
        given = [(item.lstrip("+").partition("=")[0], item) for item in without_hydra(job)]
        tuned = {key: item.partition("=")[2] for key, item in given if key in keys}
        own = [item for key, item in given if key not in (*keys, *_BLOCK, "tune.seeds")]
        fold = [item for key, item in given if key == "data.fold"]
        trainer = config.trainer
        new = Combination(own, trainer.monitor, trainer.monitor_mode, frozenset(keys) - swept)
        found = combinations.setdefault(tuple(own), new)
        if fold not in found.folds:
            found.folds.append(fold)
        for key in keys:
            grid = [tuned[key]] if key in swept else _grid(key, tune, values)
            known = found.values.setdefault(key, [])
            known += [value for value in grid if value not in known]
    seeds = list(dict.fromkeys(config.seed for config, _ in configs))
    return Tuning(keys, seeds, _tuning_seeds(tune, seeds), [*combinations.values()])


def _checked_keys(tune: Tune, values: Mapping[str, Any]) -> list[str]:
    for key in tune.keys:
        if key in _NEVER or key.startswith(("output.", "tune.", "hydra")):
            raise ConfigError(f"tune.keys must be keys that change the training, got {show(key)}")
        parent, _, last = key.rpartition(".")
        section = value_at(values, parent) if parent else values
        if not isinstance(section, Mapping) or last not in section:
            names = [f"{parent}.{name}" for name in section] if isinstance(section, Mapping) else []
            raise ConfigError(
                f"tune.keys must be keys of the config, got {show(key)}"
                f"{nearest(key, names or [*values])}"
            )
    repeated = next((key for key in tune.keys if tune.keys.count(key) > 1), None)
    if repeated is not None:
        raise ConfigError(f"tune.keys has {repeated} twice")
    return tune.keys


def _grid(key: str, tune: Tune, values: Mapping[str, Any]) -> list[str]:
    """Return the config's value times each factor."""
    base = value_at(values, key)
    if not isinstance(base, float) or not math.isfinite(base) or base <= 0:
        raise ConfigError(
            f"tune.keys has {key}, whose value {show(base)} cannot be multiplied by tune.factors; "
            f"give it several values, {key}=A,B"
        )
    grid = [_number(base * factor) for factor in sorted(tune.factors)]
    duplicate = next((value for value in grid if grid.count(value) > 1), None)
    if duplicate is not None:
        raise ConfigError(f"tune.factors must give distinct values, got {duplicate} twice")
    return grid


def _number(value: float) -> str:
    return repr(float(f"{value:.3g}"))


def _tuning_seeds(tune: Tune, seeds: Sequence[int]) -> list[int]:
    """Return tune.seeds; by default as many as there are seeds, following the largest."""
    if tune.seeds is None:
        return [max(seeds) + 1 + i for i in range(len(seeds))]
    both = sorted(set(seeds) & set(tune.seeds))
    if both:
        raise ConfigError(
            f"tune.seeds must be other seeds than those that are compared, got {both[0]} in both; "
            f"null takes those that follow the largest"
        )
    return list(dict.fromkeys(tune.seeds))


# trains jobs; returns the value that each is to minimise, infinite if it did not complete, or None
# if a signal ended them
Train = Callable[[Sequence[list[str]]], Sequence[float] | None]
# races the schedules of these jobs
Race = Callable[[Sequence[list[str]]], None]


def run(
    tuning: Tuning,
    train: Train,
    accepts: Callable[[list[str]], bool],
    race: Race | None = None,
) -> int | None:
    """Train the grid, which grows where its best value is at an edge, then the comparison, by a
    `race` if there is one. Return the number of jobs, or None after a signal.

    A grid grows only to values with which the schema `accepts` the overrides of a job.
    """
    means: dict[tuple[int, Values], float] = {}
    points, num_jobs = tuning.first(), 0
    print(_plan_line(tuning, len(points)), flush=True)
    for is_last in (*[False] * _MOST_ROUNDS, True):
        jobs = tuning.jobs(points, tuning.tuning_seeds)
        losses = train(jobs)
        if losses is None:
            return None
        num_jobs += len(jobs)
        means |= zip(points, np.reshape(losses, (len(points), -1)).mean(axis=1), strict=True)
        chosen = tuning.choose(means)
        points = [
            point
            for i, best in chosen.items()
            for point in (tuning.beyond(i, best[0], means) if best else ())
            if all(map(accepts, tuning.jobs([point], tuning.tuning_seeds[:1])))
        ]
        if not points or is_last:
            break
        for i, values in points:
            more = _named(tuning, values)
            print(f"grid     {_label(tuning, i)}: best at an edge, so {more} is tried too")
    for i, best in chosen.items():
        print(_chosen_line(tuning, i, best), flush=True)
    jobs = tuning.jobs([(i, best[0]) for i, best in chosen.items() if best], tuning.seeds)
    if jobs and race is not None:
        race(jobs)
    elif jobs and train(jobs) is None:
        return None
    return num_jobs + len(jobs)


def _plan_line(tuning: Tuning, num_points: int) -> str:
    num = len(tuning.combinations)
    return (
        f"tuning   {num_points} points of {', '.join(tuning.keys)} for {num} "
        f"combination{'s' if num > 1 else ''}; chosen on {seeds_in_words(tuning.tuning_seeds)}, "
        f"compared on {seeds_in_words(tuning.seeds)}"
    )


def _chosen_line(tuning: Tuning, i: int, best: tuple[Values, float] | None) -> str:
    one = tuning.combinations[i]
    if best is None:
        return f"chosen   {_label(tuning, i)}: none, every value diverged or failed; not compared"
    mean = -best[1] if one.mode == "max" else best[1]
    return f"chosen   {_label(tuning, i)}: {_named(tuning, best[0])}, {one.metric} {mean:.4g}"


def _label(tuning: Tuning, i: int) -> str:
    """Return the overrides that distinguish a combination from the others."""
    own = [item for item in tuning.combinations[i].overrides if item not in tuning.shared]
    return " ".join(own) or NO_OVERRIDES


def _named(tuning: Tuning, values: Values) -> str:
    return " ".join(f"{key}={value}" for key, value in zip(tuning.keys, values, strict=True))
