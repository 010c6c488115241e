"""Optuna's samplers by the name of hydra/sweeper/sampler, and CMA-ES without pickles.

The sampler of each trial is made anew, from the search's seed and the trial's number: what it
chooses depends on these and on the results before it, not on the process that asks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.cli.space import Range, Space
from runner.errors import ConfigError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

GENERATION = "generation"  # attribute of a trial of CMA-ES
OF_ONE_OBJECTIVE, OF_SEVERAL_OBJECTIVES = ("cmaes",), ("nsgaii",)  # samplers, by name


def sampler(options: Mapping[str, Any], space: Space, number: int) -> Any:
    """Return the sampler of one trial. `options` is hydra.sweeper.sampler."""
    from optuna import samplers

    seed = int(options["seed"])
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    startup = options.get("n_startup_trials")
    match options["name"]:
        case "tpe":
            together = bool(options["multivariate"])
            return samplers.TPESampler(
                seed=own,
                n_startup_trials=startup,
                n_ei_candidates=options["n_ei_candidates"],
                multivariate=together,
                group=together,
                constant_liar=True,
            )
        case "grid":
            return samplers.GridSampler(space.grid(), seed=seed)
        case "gp":
            return samplers.GPSampler(
                seed=own,
                n_startup_trials=startup,
                independent_sampler=samplers.RandomSampler(own),
                warn_independent_sampling=False,
            )
        case "quasi_random":
            return samplers.QMCSampler(
                scramble=True,
                seed=seed,
                independent_sampler=samplers.RandomSampler(own),
                warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            )
        case "nsgaii":
            return samplers.NSGAIISampler(population_size=options["population_size"], seed=own)
        case "cmaes":
            return CmaEs(space, own)
    return samplers.RandomSampler(own)


def distribution(values: Range) -> "BaseDistribution":
    """Return Optuna's distribution of a range of numbers."""
    import optuna

    if values.is_integer:
        low, high = int(values.low), int(values.high)
        return optuna.distributions.IntDistribution(low, high, values.is_log, int(values.step or 1))
    return optuna.distributions.FloatDistribution(
        values.low, values.high, values.is_log, values.step
    )


class CmaEs:
    """CMA-ES over the intervals that every trial has; TPE samples the other ranges. Implements
    optuna.samplers.BaseSampler.

    Hansen, "The CMA Evolution Strategy: A Tutorial" (2016), in the package cmaes. Optuna's own
    CmaEsSampler keeps its state as a pickle in the study. This one replays the finished trials:
    each has the number of its generation, and a generation is told once it has enough trials.
    """

    def __init__(self, space: Space, seed: int) -> None:
        """`seed` is that of the trial."""
        from optuna.samplers import TPESampler

        self._ranges = _intervals(space)
        self._seed = seed
        self._others = TPESampler(seed=seed)
        self.generation = 0

    def before_trial(self, study: Any, trial: Any) -> None:
        """Called by Optuna before a trial."""

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Called by Optuna after a trial."""

    def infer_relative_search_space(
        self, study: "optuna.Study", trial: "FrozenTrial"
    ) -> "dict[str, BaseDistribution]":
        return {each.name: distribution(each) for each in self._ranges}

    def sample_relative(
        self, study: "optuna.Study", trial: "FrozenTrial", search_space: Mapping[str, Any]
    ) -> dict[str, Any]:
        import cmaes
        from optuna.study import StudyDirection
        from optuna.trial import TrialState

        size = len(self._ranges)
        bounds = np.tile([0.0, 1.0], (size, 1))
        evolution = cmaes.CMA(np.full(size, 0.5), 1 / 6, bounds=bounds, seed=self._seed)
        sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
        done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        self.generation = 0
        while True:
            known = [t for t in done if t.user_attrs.get(GENERATION) == self.generation]
            if len(known) < evolution.population_size:
                break
            told = known[: evolution.population_size]
            evolution.tell([(self._point(t.params), sign * float(t.value or 0)) for t in told])
            self.generation += 1
        point = evolution.ask()
        return {
            each.name: _value(each, float(x)) for each, x in zip(self._ranges, point, strict=True)
        }

    def sample_independent(
        self, study: "optuna.Study", trial: "FrozenTrial", param_name: str, param_distribution: Any
    ) -> Any:
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def _point(self, params: Mapping[str, Any]) -> np.ndarray:
        """Return a trial's numbers as a point of the unit cube."""
        return np.array([_position(each, params[each.name]) for each in self._ranges])


def _intervals(space: Space) -> Sequence[Range]:
    ranges = [r for r in space.ranges if not r.choices and r.condition is None]
    if len(ranges) < 2:
        raise ConfigError(
            f"hydra/sweeper/sampler=cmaes needs two or more keys with an interval, got "
            f"{', '.join(each.key for each in ranges) or 'none'}; use another sampler"
        )
    return ranges


def _position(values: Range, value: float) -> float:
    """Map a value to 0 ... 1, its place between both ends."""
    low, high = float(values.low), float(values.high)
    if values.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _value(values: Range, position: float) -> float | int:
    """Map 0 ... 1 to a value of the range."""
    low, high = float(values.low), float(values.high)
    if values.is_log:
        value = math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
    else:
        value = low + position * (high - low)
    if values.step or values.is_integer:
        step = values.step or 1
        value = low + round((value - low) / step) * step
    value = min(max(value, low), high)
    return round(value) if values.is_integer else value
