"""The jobs of race.budget: seeds are added and schedules dropped until the answer is known, or the
budget is spent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, repeat
from math import ceil
from typing import Any

import numpy as np

from runner.cli.overrides import without_seed
from runner.cli.trunks import Trunks
from runner.config import times
from runner.config.schema import Config
from runner.config.trust import MOST_JOBS
from runner.errors import ConfigError, RunError, show
from runner.plan import Plan
from runner.report.answer import p_in_words, seeds_in_words
from runner.report.jobs import NO_OVERRIDES, Job
from runner.report.race import FIRST_LOOK, Dropped, Race
from runner.report.raced import Course, Member, Stopped
from runner.report.statistics import LEVEL
from runner.run.trunk import shared_steps

# key -> its value in a config; all runs of a race have the same
_COMMON: Mapping[str, Callable[[Config], Any]] = {
    "race.budget": lambda config: config.race.budget,
    "backend": lambda config: config.backend,
    "data": lambda config: config.data.name,
    "data.fold": lambda config: getattr(config.data, "fold", None),
    "trainer.monitor": lambda config: config.trainer.monitor,
}


@dataclass
class Schedule:
    """A combination of all keys but the seed, and its runs."""

    overrides: list[str]  # without the seed
    label: str
    runs: list[Job] = field(default_factory=list)  # in the order of the seeds
    same_as: int | None = None  # the schedule with the same weights in all runs
    has_failed: bool = False  # a run diverged or failed

    def values(self, sign: int) -> list[float]:
        """Return the monitored metric after the last epoch of each run, times the sign."""
        return [sign * run.last(run.monitor) for run in self.runs]

    @property
    def weights(self) -> list[object]:
        """The hashes of the final weights of all runs."""
        return [run.result.get("weights_sha256") for run in self.runs]


# Trains jobs. Returns each one's run, None if it has no folder, and the number of those that were
# there before; None if a signal ended them.
Train = Callable[[Sequence[list[str]]], tuple[Sequence[Job | None], int] | None]


@dataclass
class Racing:
    """A race of the schedules of a multirun."""

    budget: str
    schedules: list[Schedule]
    given: list[int]  # the seeds of the command line
    sign: int  # 1 if a small metric is good, else -1
    margin: float | None  # answer.margin
    avoided: Sequence[int] = ()  # seeds that tune=lr has used
    tuning_runs: Sequence[Job] = ()  # that chose values before; a budget in time counts them
    seeds: list[int] = field(default_factory=list)  # that the schedules still there have
    race: Race | None = None  # from the first look on
    num_reused: int = 0
    stopped: Stopped = "signal"  # until it ends otherwise

    def run(self, train: Train) -> None:
        """Race until the answer is known, the budget is spent, or a signal ends a job."""
        print(self._plan_line(), flush=True)
        for seeds in self._rounds():
            left = self.left
            if self.seeds and not self._is_affordable(len(seeds)):
                self.stopped = "budget"
                break
            jobs = [
                [*self.schedules[number].overrides, f"seed={seed}"]
                for number in left
                for seed in seeds
            ]
            trained = train(jobs)
            if trained is None:
                return
            self._take(left, seeds, *trained)
            self._look()
            if self._is_known():
                self.stopped = "known"
                break
        print(self._end_line(), flush=True)

    @property
    def left(self) -> list[int]:
        """The numbers of the schedules that are still in the race."""
        dropped = self.race.dropped if self.race else {}
        return [
            number
            for number, each in enumerate(self.schedules)
            if number not in dropped and each.same_as is None and not each.has_failed
        ]

    @property
    def course(self) -> Course:
        """The race so far."""
        members = tuple(
            Member(tuple(run.folder for run in each.runs), each.same_as, each.has_failed)
            for each in self.schedules
        )
        race = self.race or Race(len(self.schedules))
        seeds = tuple(self.seeds)
        return Course(
            self.budget, self.stopped, race, members, seeds, len(self.given), self.num_reused
        )

    def _rounds(self) -> Iterator[list[int]]:
        """Yield the seeds to add: those of the command line, then those that follow the largest.

        The first look needs FIRST_LOOK of them. With a budget that is not a number of runs, the
        first seed shows what a run costs.
        """
        following = count(max([*self.given, *self.avoided]) + 1)
        seeds = chain(self.given, following)
        sizes = [FIRST_LOOK] if self.budget == "auto" else [1, FIRST_LOOK - 1]
        for size in chain(sizes, repeat(1)):
            yield [next(seeds) for _ in range(size)]

    def _is_affordable(self, num_seeds: int) -> bool:
        """Return whether this many seeds of all that are left stay within the budget."""
        num_runs = sum(len(each.runs) for each in self.schedules)
        if num_runs + num_seeds * len(self.left) > MOST_JOBS:
            return False
        if self.budget == "auto":
            most, unit = float(len(self.given) * len(self.schedules)), "runs"
        else:
            most, unit = times.amount(self.budget)
        costs = [[_cost(run, unit) for run in each.runs] for each in self.schedules]
        following = num_seeds * sum(float(np.mean(costs[number])) for number in self.left)
        before = sum(_cost(run, unit) for run in self.tuning_runs) if unit != "runs" else 0.0
        return before + sum(map(sum, costs)) + following <= most

    def _take(
        self, numbers: Sequence[int], seeds: Sequence[int], runs: Sequence[Job | None], reused: int
    ) -> None:
        """Record a round. A schedule with a run that diverged or failed leaves the race; so does
        one whose runs are those of another."""
        self.seeds += seeds
        self.num_reused += reused
        for i, number in enumerate(numbers):
            each, own = self.schedules[number], runs[i * len(seeds) : (i + 1) * len(seeds)]
            each.runs += [run for run in own if run is not None]
            bad = [
                seed
                for seed, run in zip(seeds, own, strict=True)
                if run is None or not run.is_completed or run.has_diverged
            ]
            if bad:
                each.has_failed = True
                failed = seeds_in_words(bad)
                print(f"race     {each.label} leaves: {failed} diverged or failed", flush=True)
        left = self.left
        for i, number in enumerate(left):
            each = self.schedules[number]
            same = (other for other in left[:i] if self.schedules[other].weights == each.weights)
            each.same_as = next(same, None)
            if each.same_as is not None:
                other = self.schedules[each.same_as].label
                print(f"race     {each.label} leaves: it is the same run as {other}", flush=True)

    def _look(self) -> None:
        """Test the schedules that are left."""
        left = self.left
        _check_meaning([run for number in left for run in self.schedules[number].runs])
        if len(self.seeds) < FIRST_LOOK or not left:
            return
        if self.race is None:
            runs = [run for number in left for run in self.schedules[number].runs]
            resolution = max(run.resolution(run.monitor) for run in runs)
            different = [each for each in self.schedules if each.same_as is None]
            self.race = Race(len(different), resolution)
        dropped = self.race.look(self._values(left))
        names = ", ".join(map(self._dropped_words, dropped))
        num = len(self.left)
        print(
            f"race     after {len(self.seeds)} seeds: {num} of {len(self.schedules)} left"
            f"{f'; dropped {names}' if names else ''}",
            flush=True,
        )

    def _values(self, numbers: Sequence[int]) -> dict[int, list[float]]:
        return {number: self.schedules[number].values(self.sign) for number in numbers}

    def _is_known(self) -> bool:
        """Return whether one schedule is left, or all that are left are within answer.margin."""
        left = self.left
        if len(left) < 2 or self.race is None or self.margin is None:
            return len(left) < 2
        values = self._values(left)
        best = min(left, key=lambda number: float(np.mean(values[number])))
        return all(
            self.race.p_within({n: values[n] for n in (number, best)}, self.margin) < LEVEL
            for number in left
            if number != best
        )

    def _dropped_words(self, dropped: Dropped) -> str:
        label, rival = (self.schedules[i].label for i in (dropped.number, dropped.by))
        return f"{label} (worse than {rival}, {p_in_words(dropped.p)})"

    def _plan_line(self) -> str:
        num = len(self.schedules)
        most = f"race.budget={self.budget}"
        if self.budget == "auto":
            most = f"at most {num * len(self.given)} runs, {len(self.given)} seeds of each"
        return (
            f"race     {num} schedules on {seeds_in_words(self.given[:FIRST_LOOK])}, then one seed "
            f"at a time of those that are left; {most}"
        )

    def _end_line(self) -> str:
        num_runs = sum(len(each.runs) for each in self.schedules)
        why = "the answer is known" if self.stopped == "known" else "the budget is spent"
        return f"race     {why} after {num_runs} runs"


def check(configs: Sequence[Config]) -> None:
    """Refuse jobs that cannot race."""
    for key, value in _COMMON.items():
        found = list(dict.fromkeys(map(value, configs)))
        if len(found) > 1:
            raise ConfigError(
                f"{key} must be the same for all runs of a race, got {show(found[0])} and "
                f"{show(found[1])}"
            )
    num_seeds = len({config.seed for config in configs})
    if configs[0].race.budget == "auto" and num_seeds < FIRST_LOOK:
        raise ConfigError(
            f"race.budget=auto allows as many runs as {FIRST_LOOK} or more values of seed would "
            f"take, got {num_seeds}; give it seed=0,1,2,3,4,5,6,7,8,9"
        )


def check_budget(trunks: Trunks, num_schedules: int, num_tuning_runs: int = 0) -> None:
    """Refuse a budget of steps or epochs that is spent before the first look, which needs
    FIRST_LOOK seeds of each schedule; `num_tuning_runs` of tune=lr come before. Nothing is refused
    where a run may end early, or cannot be planned."""
    plans = trunks.plans
    if len(plans) < num_schedules or any(map(_may_end_early, plans.values())):
        return
    budget = next(iter(plans.values())).config.race.budget
    assert budget is not None
    most, unit = times.amount(budget)
    branches = trunks.branches([*plans])
    lengths, costs = [], []
    for settings, prepared in plans.items():
        total = prepared.order.total_steps
        lengths.append(total if unit == "steps" else prepared.order.epochs.count(total))
        shared = branches[settings].step if settings in branches else 0
        costs.append(lengths[-1] * (1 - shared / total))
    least = ceil(FIRST_LOOK * sum(costs) + num_tuning_runs * min(lengths))
    if least > most:
        tuning = f" after {num_tuning_runs} runs of tune=lr" if num_tuning_runs else ""
        raise ConfigError(
            f"race.budget must be at least {least}{unit}, got {budget}: the first look needs "
            f"{FIRST_LOOK} seeds of {num_schedules} schedules{tuning}"
        )


def has_known_cost(config: Config) -> bool:
    """Return whether the budget is of steps or epochs, which a run's length tells beforehand."""
    budget = config.race.budget
    return budget not in (None, "auto") and times.amount(budget)[1] != "seconds"


def _may_end_early(prepared: Plan) -> bool:
    trainer = prepared.config.trainer
    return (
        trainer.early_stopping_patience is not None
        or trainer.max_time is not None
        or bool(prepared.config.callbacks)
        or prepared.data.stream is not None
    )


def check_several(schedules: Sequence[object]) -> None:
    """Refuse a race of one."""
    if len(schedules) < 2:
        raise ConfigError(
            "race.budget needs several schedules, or other keys with several values, got one; "
            "give it schedule=A,B"
        )


def schedules(jobs: Sequence[Sequence[str]]) -> list[Schedule]:
    """Return the combinations of all keys but the seed, in the order of their first jobs."""
    found = list(dict.fromkeys(map(without_seed, jobs)))
    shared = set.intersection(*map(set, found))
    return [
        Schedule([*own], " ".join(item for item in own if item not in shared) or NO_OVERRIDES)
        for own in found
    ]


def plan(
    jobs: Sequence[Sequence[str]], configs: Sequence[Config], tuning_runs: Sequence[Job] = ()
) -> Racing:
    """Return the race of these jobs; `tuning_runs` chose some of their values."""
    first, seeds = configs[0], list(dict.fromkeys(config.seed for config in configs))
    budget = first.race.budget
    assert budget is not None
    sign = 1 if first.trainer.monitor_mode == "min" else -1
    avoided = first.tune.seeds if first.tune is not None else None
    return Racing(
        budget, schedules(jobs), seeds, sign, first.answer.margin, avoided or [], tuning_runs
    )


def _check_meaning(runs: Sequence[Job]) -> None:
    """Refuse runs whose metrics cannot be ranked in one list."""
    titles = list({run.meaning(): run.measures() for run in runs}.values())
    if len(titles) > 1:
        raise RunError(
            f"the runs of a race must measure the same, got {titles[0]} and {titles[1]}; run them "
            f"without race.budget"
        )


def _cost(run: Job, unit: str) -> float:
    """Return what a run cost, in runs, steps, epochs or seconds."""
    if unit == "runs":
        return 1.0
    if unit == "seconds":
        return float(run.result["seconds"].get("total") or 0)
    steps = int(run.result.get("steps") or 0)
    own = 1 - shared_steps(run.folder) / steps if steps else 1.0  # the others are another run's
    return float(run.result.get(unit) or 0) * own
