"""The answer of a race: which schedules were dropped and which are left, by tests that are valid at
every look, and what this cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runner.report.answer import Answer, Ranked, num_better, p_in_words, rank, split, target
from runner.report.jobs import Group, Job, groups
from runner.report.race import FIRST_LOOK, Race, radius
from runner.report.statistics import LEVEL, Paired, Summary, summary
from runner.run.trunk import shared_steps
from runner.text.numbers import show_metric

ASSUMPTION = (
    "the differences between two runs of a seed are normal, with about one variance, and "
    "independent from seed to seed"
)
TESTS = (
    "Those that are left come first, then the dropped ones, the last one first. p: that a schedule "
    "is as good as the best, by e-processes on the differences, corrected for all rivals and valid "
    "at every look; intervals are confidence sequences, valid for each pair at every look"
)
Stopped = Literal["known", "budget", "signal"]


@dataclass(frozen=True)
class Member:
    """A schedule of a race."""

    folders: tuple[Path, ...]  # of its runs, in the order of the seeds
    same_as: int | None  # the member whose runs it has, bit by bit
    has_failed: bool  # a run diverged or failed


@dataclass(frozen=True)
class Course:
    """A race as it went."""

    budget: str
    stopped: Stopped
    race: Race
    members: tuple[Member, ...]  # numbered as in the race
    seeds: tuple[int, ...]  # in the order in which they were added
    num_given: int  # seeds of the command line
    num_reused: int  # runs that were there before

    @property
    def folders(self) -> list[Path]:
        return [folder for member in self.members for folder in member.folders]


@dataclass(frozen=True)
class Raced:
    """The findings of a race, for the report."""

    course: Course
    labels: dict[int, str]  # of the members
    cost: dict[str, Any]

    def sentences(self, answer: Answer) -> list[str]:
        """Return the answer in words, one sentence per line."""
        best, others = answer.best, answer.ranked[1:]
        dropped = len(self.course.race.dropped)
        lead = (
            f"race of {len(self.labels)} schedules: {best.group.label} has the best "
            f"{answer.metric}, {show_metric(best.summary.mean)} on average over "
            f"{_seeds(best.summary.num)}"
        )
        return [
            lead,
            *(self._line(other, answer) for other in others),
            *self._end_lines(dropped),
            *self._cost_lines(),
        ]

    def _line(self, other: Ranked, answer: Answer) -> str:
        paired, name = other.against_best, other.group.label
        if other.is_same_run:
            return f"  {name}: the same run, with bit-identical weights"
        assert paired is not None  # it is None only for the best group
        by = f"{abs(paired.difference):.4g} {'more' if paired.difference > 0 else 'less'}"
        if paired.interval is not None:
            by += " (95 % confidence sequence {:+.4g} to {:+.4g})".format(*paired.interval)
        number = next(number for number, label in self.labels.items() if label == name)
        drop = self.course.race.dropped.get(self._original(number))
        if drop is not None:
            rival = self.labels[drop.by]
            against = "" if rival == answer.best.group.label else f" because of {rival}"
            after = f"dropped after {_seeds(drop.num_seeds)}{against}"
            return f"  {name}: {by}; {after} ({p_in_words(drop.p)})"
        if paired.is_equivalent:
            p = p_in_words(paired.p_equivalent or 0.0)
            return f"  {name}: {by}; still there, within {answer.margin:g} of the best ({p})"
        known = "" if paired.p is None else f" ({p_in_words(paired.p)})"
        return f"  {name}: {by}; still there{known}"

    def _original(self, number: int) -> int:
        same = self.course.members[number].same_as
        return number if same is None else same

    def _end_lines(self, num_dropped: int) -> list[str]:
        ends = {
            "known": "the race ended because the answer is known",
            "budget": f"the race ended because a further seed would exceed race.budget="
            f"{self.course.budget}",
            "signal": "the race was interrupted",
        }
        if len(self.course.seeds) < FIRST_LOOK:
            return [f"{ends[self.course.stopped]}; its first look needs {FIRST_LOOK} seeds"]
        return [
            f"{ends[self.course.stopped]}; {num_dropped} of {len(self.labels)} were dropped",
            f"at most {100 * LEVEL:.0f} of 100 races drop a schedule that is as good as the best, "
            f"however often they look, if {ASSUMPTION}",
        ]

    def _cost_lines(self) -> list[str]:
        cost = self.cost
        reused = f" ({cost['reused']} of them were there before)" if cost["reused"] else ""
        shared = cost["shared_updates"]
        trunks = f"; {shared:,} more updates were shared by several runs" if shared else ""
        tuning = f"; {cost['tuning_runs']} more runs chose values" if cost["tuning_runs"] else ""
        return [
            f"cost: {cost['runs']} runs{reused}, {cost['updates']:,} updates; a fixed design, "
            f"{_seeds(cost['fixed_seeds'])} of every schedule, costs {cost['fixed_runs']} runs, "
            f"{cost['fixed_updates']:,} updates{trunks}{tuning}"
        ]

    def entry(self) -> dict[str, Any]:
        """Return the entry of answer.json."""
        race = self.course.race
        return {
            "budget": self.course.budget,
            "stopped": self.course.stopped,
            "seeds": self.course.seeds,
            "level": LEVEL,
            "assumption": ASSUMPTION,
            "cost": self.cost,
            "dropped": [
                {
                    "label": self.labels[drop.number],
                    "seeds": drop.num_seeds,
                    "by": self.labels[drop.by],
                    "p": drop.p,
                }
                for drop in race.dropped.values()
            ],
            "left": [
                label
                for number, label in self.labels.items()
                if self._original(number) not in race.dropped
                and not self.course.members[number].has_failed
            ],
        }


def answers(jobs: Sequence[Job], margin: float | None, course: Course) -> list[Answer]:
    """Return the answer of a race; `jobs` are its runs.

    Those that are left come first, by their mean over the seeds that they share; then the dropped
    ones, the last one first. Differences are over the seeds that both have, p is the race's.
    Intervals of means and differences are confidence sequences.
    """
    tuning, tried = split(groups([job for job in jobs if job.has_config]))
    leader = next((job for job in jobs if job.data), jobs[0])
    metric, mode = leader.monitor, str(leader.config["trainer"]["monitor_mode"])
    sign = 1 if mode == "min" else -1
    numbers = _numbers(tried, course)
    whole = {
        number: group for number, group in numbers.items() if not course.members[number].has_failed
    }
    shared = _shared([*whole.values()], metric)
    order = sorted(whole, key=lambda number: _place(number, whole, course, metric, sign))
    best = [whole[number] for number in order]
    goal = target([group.over(shared) for group in best], sign)
    ranked = [
        _ranked(i, number, whole, order[0], course, metric, mode, goal, margin)
        for i, number in enumerate(order, start=1)
    ]
    unranked = [group for number, group in numbers.items() if number not in whole]
    raced = Raced(
        course,
        {number: group.label for number, group in numbers.items()},
        _cost(course, tried, sum(len(group.jobs) for group in tuning)),
    )
    title = leader.measures()
    return [
        Answer(
            title, metric, mode, goal, tuple(shared) or None, ranked, unranked, tried,
            tuning, margin, race=raced,
        )
    ]  # fmt: skip


def _numbers(tried: Sequence[Group], course: Course) -> dict[int, Group]:
    """Return the number of each group in the race."""
    of_folder = {
        folder: number for number, member in enumerate(course.members) for folder in member.folders
    }
    found = {of_folder[group.jobs[0].folder]: group for group in tried}
    return dict(sorted(found.items()))


def _shared(members: Sequence[Group], metric: str) -> list[Any]:
    values = [set(group.values(metric)) for group in members]
    return sorted(set.intersection(*values)) if values else []


def _place(
    number: int, whole: dict[int, Group], course: Course, metric: str, sign: int
) -> tuple[float, float, int]:
    """Return the key that sorts the members, best first."""
    same = course.members[number].same_as
    original = number if same is None or same not in whole else same
    drop = course.race.dropped.get(original)
    left = [
        group
        for other, group in whole.items()
        if other not in course.race.dropped and course.members[other].same_as is None
    ]
    seeds = _shared([*left, whole[original]], metric)
    mean = sign * whole[original].over(seeds).mean(metric)
    after = -math.inf if drop is None else -float(drop.num_seeds)
    return after, mean, -1 if number == original else number


def _ranked(
    place: int,
    number: int,
    whole: dict[int, Group],
    best: int,
    course: Course,
    metric: str,
    mode: str,
    goal: float,
    margin: float | None,
) -> Ranked:
    group, same = whole[number], course.members[number].same_as
    original = number if same is None else same
    is_same_run = number != best and original == (course.members[best].same_as or best)
    against = None
    if number != best:
        against = _paired({number: group, best: whole[best]}, metric, course, margin)
        against = replace(against, p=course.race.p.get(original))
    return rank(
        place,
        group,
        _summary([*group.values(metric).values()]),
        against,
        is_same_run,
        num_better(group, whole[best], metric, mode),
        None,
        group.reached(metric, mode, goal),
    )


def _paired(pair: Mapping[int, Group], metric: str, course: Course, margin: float | None) -> Paired:
    """Compare two members of a race, the first minus the second, over the seeds that both have."""
    ours, theirs = (each.values(metric) for each in pair.values())
    seeds = sorted(ours.keys() & theirs.keys(), key=str)
    values = {
        number: [of[seed] for seed in seeds]
        for number, of in zip(pair, (ours, theirs), strict=True)
    }
    found = course.race.pair(values)
    within = None if margin is None else course.race.p_within(values, margin)
    return Paired(len(seeds), found.difference, found.interval, None, None, None, within)


def _summary(values: Sequence[float]) -> Summary:
    """Return mean and deviation; the interval is a confidence sequence."""
    plain = summary(values)
    if plain.sd is None:
        return plain
    half = radius(plain.sd**2 * (plain.num - 1), plain.num, plain.num - 1)
    interval = (plain.mean - half, plain.mean + half) if math.isfinite(half) else None
    return replace(plain, interval=interval)


def _cost(course: Course, tried: Sequence[Group], num_tuning: int) -> dict[str, Any]:
    """Return the race's cost, and that of a fixed design: as many seeds for every schedule as the
    command line or the race has, whichever are more."""
    updates = [
        [int(job.result.get("steps") or 0) for job in group.jobs] for group in tried if group.jobs
    ]
    num = max(course.num_given, len(course.seeds))
    shared = sum(shared_steps(job.folder) for group in tried for job in group.jobs)
    return {
        "runs": sum(map(len, updates)),
        "reused": course.num_reused,
        "tuning_runs": num_tuning,
        "updates": sum(map(sum, updates)) - shared,
        "shared_updates": shared,
        "fixed_seeds": num,
        "fixed_runs": num * len(course.members),
        "fixed_updates": round(sum(num * float(np.mean(each)) for each in updates)),
    }


def _seeds(num: int) -> str:
    return f"{num} seed{'' if num == 1 else 's'}"
