"""Find the best group of runs: by how much, over which seeds, and whether that is more than the
seeds' noise."""

import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from runner.report.choice import WinnersValue, winners_value
from runner.report.jobs import NO_OVERRIDES, Block, Fold, Group, Job, groups, in_order
from runner.report.statistics import (
    LEVEL,
    Paired,
    Summary,
    by_signs,
    compare,
    deviations,
    probabilities_best,
    smallest_p,
    summary,
)
from runner.run import strict_json
from runner.text.numbers import show_metric
from runner.text.quoting import command_line, override

if TYPE_CHECKING:
    from runner.report.front import Front


@dataclass(frozen=True)
class Ranked:
    rank: int  # 1 is best
    group: Group  # only the seeds that are compared
    summary: Summary  # of the monitored metric after the last epoch
    against_best: Paired | None  # this - best; None for the best group
    is_same_run: bool  # its weights equal those of the best group, seed by seed
    better_on: int  # the number of seeds on which it was better than the best group
    probability_best: float | None  # None: unknown
    steps: float  # until the target is reached, median over the seeds; infinite: not reached
    rows: float  # that all updates until then have used
    seconds: float
    rate_at_best: float


class Findings(Protocol):
    """More that is known of a comparison."""

    def sentences(self, answer: "Answer", /) -> list[str]:
        """Return it in words, one sentence per line."""

    def entry(self) -> dict[str, Any]:
        """Return the entry of answer.json."""


@dataclass(frozen=True)
class Answer:
    title: str  # the metric and the data
    metric: str
    mode: str  # min, max
    target: float  # the best epoch of the worst group, median of its seeds; NaN without a group
    seeds: tuple[Block, ...] | None  # the seeds that all ranked groups share; None: none in common
    ranked: list[Ranked]  # best first
    unranked: list[Group]  # did not finish every seed, or share too few seeds with the others
    tried: list[Group]  # all groups with all their seeds, in the order of their jobs
    tuning: list[Group] = field(default_factory=list)  # tune=lr: the runs on the tuning seeds
    margin: float | None = None  # answer.margin: smaller differences do not matter
    tested: Findings | None = None  # answer.test: the best two groups on the test split
    untested: str | None = None  # why there are no results on the test split
    race: Findings | None = None  # race.budget: the tests are those of a race
    front: "Front | None" = None  # of a search with several objectives

    @property
    def has_several_sizes(self) -> bool:
        """True if the rows of an update differ, so that equal steps are not equal rows."""
        return len({ranked.group.jobs[0].update_rows for ranked in self.ranked}) > 1

    @property
    def best(self) -> Ranked:
        return self.ranked[0]

    @property
    def is_logarithmic(self) -> bool:
        """True if its curves are drawn on a logarithmic axis."""
        return self.mode == "min" and min(ranked.summary.mean for ranked in self.ranked) > 0

    @property
    def noise(self) -> list[Ranked]:
        """The groups that do not differ from the best one by more than the noise."""
        return [other for other in self.ranked[1:] if not _is_real(other)]

    @property
    def is_real(self) -> bool:
        """True if the best group is better than all others by more than the noise."""
        return len(self.ranked) > 1 and not self.noise

    @property
    def num_comparisons(self) -> int:
        """The number of tests that p is corrected for."""
        tested = len(self.ranked)
        return tested * (tested - 1) // 2

    @property
    def value(self) -> WinnersValue | None:
        """The value of the best group, which these runs have chosen; None for one seed, for groups
        without a seed in common, and for a race."""
        if not self.ranked or self.seeds is None or self.race is not None:
            return None
        others = [other for other in self.noise if not other.is_same_run]
        values = [each.group.values(self.metric) for each in (self.best, *others)]
        rows = [[own[seed] for seed in self.seeds] for own in values]
        return winners_value(np.array(rows), self.mode)

    @property
    def chosen_value(self) -> WinnersValue | None:
        """The value of the best group if these runs do not tell it from all others, as `value`."""
        value = self.value
        return value if value is not None and value.num_groups > 1 else None

    def verdict(self) -> list[str]:
        """Return the answer in two sentences for a reader without statistics; none if nothing is
        compared or the noise is unknown."""
        others = [other for other in self.ranked[1:] if not other.is_same_run]
        if not others or any(o.against_best is None or o.against_best.p is None for o in others):
            return []
        name, num = self.best.group.label, self.best.summary.num
        which = "highest" if self.mode == "max" else "lowest"
        first = f"{name} has the {which} {self.metric} on average over {num} seeds."
        close = [other for other in others if not _is_real(other)]
        if not close:
            return [
                first,
                f"Its lead over {_all(others)} is more than the seeds' noise: if there were no "
                f"difference, at most 5 of 100 such comparisons would name any winner.",
            ]
        few = ", ".join(other.group.label for other in close[:3])
        more = f" and {len(close) - 3} more" if len(close) > 3 else ""
        return [
            first,
            f"These runs do not show that it is better than {few}{more}: the lead is small beside "
            f"the differences between seeds.",
        ]

    def sentences(self) -> list[str]:
        """Return the answer in words, one sentence per line."""
        if not self.tried:
            return ["the runs on the tuning seeds have not ended, so nothing is compared yet"]
        if not self.ranked:
            return [f"no group has a finite {self.metric}", *self._unranked_lines()]
        compared = [
            *self._value_lines(),
            *self._signs_lines(),
            *self._folds_lines(),
            *self._seeds_lines(),
            *self._chosen_lines(),
        ]
        return [
            *(self._ranked_lines() if self.race is None else self.race.sentences(self)),
            *self._tuning_lines(),
            *(compared if self.race is None else ()),
            *self._unfinished_lines(),
            *self._unranked_lines(),
            *(self.tested.sentences(self) if self.tested else ()),
            *([self.untested] if self.untested else ()),
            *(self.front.sentences(self.metric) if self.front else ()),
        ]

    def _ranked_lines(self) -> list[str]:
        best, others = self.best, self.ranked[1:]
        name, mean = best.group.label, describe(best.summary)
        if not others:
            only = "the one group" if name == NO_OVERRIDES else name
            return [f"{only} has a {self.metric}, {mean}"]
        lead = f"{name} has the best {self.metric}, {mean}"
        if self.seeds is None:
            reason = (
                "the groups have no seed in common, so a difference may come from the seeds alone"
            )
            return [lead, f"{reason}; run every group with the same seeds, such as seed=0,1,2,3,4"]
        same = [self._other_line(other) for other in others if other.is_same_run]
        if len(self.seeds) == 1 and len(same) < len(others):
            reason = "with one seed in common it cannot be known whether that is more than noise"
            return [lead, *same, f"{reason}; run five seeds to find out: seed=0,1,2,3,4"]
        if not self.noise:
            worst = max(other.against_best.p or 0.0 for other in others if other.against_best)
            return [
                f"{lead}: better than {_all(others)} beyond the seeds' noise ({p_in_words(worst)})"
            ]
        lines = [lead, *(self._other_line(other) for other in others)]
        if len(self.noise) == len(others) > len(same):
            lines.append("no difference beyond the seeds' noise")
        return lines

    def _other_line(self, other: Ranked) -> str:
        paired, name = other.against_best, other.group.label
        if other.is_same_run:
            return f"  {name}: the same run, with bit-identical weights"
        assert paired is not None  # it is None only for the best group
        by = f"{abs(paired.difference):.4g} {'more' if paired.difference > 0 else 'less'}"
        if paired.difference == 0:
            by = "no difference"
        if paired.interval is not None:
            low, high = paired.interval
            by += f" (95 % interval {low:+.4g} to {high:+.4g}; {_better(other)})"
        if paired.is_equivalent and not paired.is_real:
            return (
                f"  {name}: {by}, within {self.margin:g} of the best "
                f"({p_in_words(paired.p_equivalent or 0.0)} of two one-sided tests)"
            )
        if paired.p is None:
            return f"  {name}: {by}, the same in every seed, so the noise is unknown"
        if paired.is_real:
            small = f", but within {self.margin:g} of the best" if paired.is_equivalent else ""
            return f"  {name}: {by}, beyond the noise ({p_in_words(paired.p)}){small}"
        more = paired.more_seeds
        seeds = "seed is" if more == 1 else "seeds are"
        needed = "" if more is None else f"; about {more} more {seeds} needed to confirm it"
        return f"  {name}: {by}, within the noise ({p_in_words(paired.p)}{needed})"

    def _value_lines(self) -> list[str]:
        """Say what the choice of the best group makes of its value."""
        value = self.chosen_value
        if value is None:
            return []
        which = "high" if self.mode == "max" else "low"
        low, high = map(show_metric, value.interval)
        return [
            f"these runs chose {self.best.group.label} among {value.num_groups} groups that they "
            f"do not tell apart: if those are equal, the best mean is {value.luck:.2g} too {which} "
            f"by luck; its 95 % interval that allows for the choice is {low} to {high}"
        ]

    def _signs_lines(self) -> list[str]:
        """Say whether the sign-flip test agrees with the differences beyond the noise."""
        tested = [
            (other.group.label, other.against_best, other.against_best.p_signs)
            for other in self.ranked[1:]
            if other.against_best is not None and not other.is_same_run
        ]
        known = [(label, paired, p) for label, paired, p in tested if p is not None]
        real = [(label, p) for label, paired, p in known if paired.is_real]
        found = [label for label, paired, _ in known if paired.is_real_by_signs]
        test = "the sign-flip test, which does not assume that differences are normal,"
        others = [label for label in found if label not in dict(real)]
        lines = [f"{test} finds a difference to {', '.join(others)}"] if others else []
        if not real:
            return lines
        unconfirmed = [label for label, _ in real if label not in found]
        if not unconfirmed:
            return [f"{test} agrees ({p_in_words(max(p for _, p in real))})", *lines]
        num = min(paired.num for _, paired, _ in known)
        least = min(1.0, self.num_comparisons * smallest_p(num))
        if least >= LEVEL:
            return [
                f"{test} cannot show this with {num} seeds: for {self.num_comparisons} "
                f"{'comparison' if self.num_comparisons == 1 else 'comparisons'} its smallest "
                f"possible {p_in_words(least)}"
            ]
        worst = max(p for label, p in real if label in unconfirmed)
        return [
            f"{test} does not show it for {', '.join(unconfirmed)} ({p_in_words(worst)})",
            *lines,
        ]

    def whole(self, label: str) -> Group:
        """Return the group with all its seeds."""
        return next(group for group in self.tried if group.label == label)

    def _folds_lines(self) -> list[str]:
        """Say that the runs of a cross-validation are paired by seed and fold."""
        folds = {seed.fold for seed in self.seeds or () if isinstance(seed, Fold)}
        if not folds or len(self.ranked) < 2:
            return []
        return [
            f"paired by seed and fold (data.fold={','.join(map(str, sorted(folds)))}), each pair "
            f"counts as a seed; folds share training rows, so the noise may be larger than it "
            f"seems",
            *self._deviations_lines(folds),
        ]

    def _deviations_lines(self, folds: Collection[int]) -> list[str]:
        """Say how much the metric of the best group differs between folds, and between seeds."""
        values = self.best.group.values(self.metric)
        seeds = sorted({block.seed for block in values if isinstance(block, Fold)})
        if len(folds) < 2 or len(seeds) < 2 or len(values) != len(folds) * len(seeds):
            return []
        rows = [[values[Fold(seed, fold)] for seed in seeds] for fold in sorted(folds)]
        between, within = deviations(rows)
        return [
            f"standard deviation of the best group's {self.metric}: {between:.2g} between folds, "
            f"{within:.2g} between seeds of a fold"
        ]

    def _seeds_lines(self) -> list[str]:
        """Name the seeds that are left out because not every group has them."""
        wholes = [self.whole(other.group.label) for other in self.ranked]
        seeds = {seed for whole in wholes for seed in whole.values(self.metric)}
        if self.seeds is None or seeds == set(self.seeds):
            return []
        left_out = ", ".join(map(str, sorted(seeds - set(self.seeds), key=in_order)))
        shared = _listed(self.seeds)
        return [f"compared over the seeds that all have, {shared}; left out: {left_out}"]

    def _chosen_lines(self) -> list[str]:
        """Warn of runs that a race has started: it looked at their values."""
        jobs = [job for group in self.tried for job in group.jobs]
        if not any((job.config.get("race") or {}).get("budget") for job in jobs):
            return []
        return [
            "warning: a race (race.budget) chose how many of these runs there are by their values, "
            "which this p does not account for; answer.json in its folder has the race's own p"
        ]

    def _unfinished_lines(self) -> list[str]:
        """Name the ranked groups that did not finish every seed, if no group did."""
        labels = [other.group.label for other in self.ranked]
        fates = [(label, fate(self.whole(label), self.metric)) for label in labels]
        return [
            f"  {label}: {failures}; ranked over its other seeds"
            for label, failures in fates
            if failures
        ]

    def _unranked_lines(self) -> list[str]:
        return [f"  {group.label}: {self.why_unranked(group)}" for group in self.unranked]

    def why_unranked(self, group: Group) -> str:
        """Return how many of its seeds diverged or failed, or that it shares too few seeds."""
        return f"{fate(group, self.metric) or 'too few seeds in common'}; not ranked"

    def _tuning_lines(self) -> list[str]:
        """Say on which seeds keys were chosen, and on which the groups are compared."""
        keys = sorted({key for group in self.tuning for key in group.tuned_keys})
        if not keys:
            return []
        seeds, tuning_seeds = (
            list(dict.fromkeys(job.seed for group in groups for job in group.jobs))
            for groups in (self.tried, self.tuning)
        )
        was = "was" if len(keys) == 1 else "were"
        return [
            f"{', '.join(keys)} {was} chosen on {seeds_in_words(tuning_seeds)}; the comparison is "
            f"on {seeds_in_words(seeds)}, between the chosen ones only"
        ]

    def at_edges(self) -> list[str]:
        """Return warnings about a best value that is the smallest or largest of those tried: there
        may be a better one beyond it. Two values are not enough to warn."""
        families: dict[str, list[Group]] = {}
        for group in self.tuning or self.tried:
            families.setdefault(group.but_for(_searched(group)), []).append(group)
        best: dict[str, Group] = {}
        for ranked in self.ranked:
            best.setdefault(ranked.group.but_for(_searched(ranked.group)), ranked.group)
        return [
            line
            for same, group in best.items()
            for key in _searched(group)
            for line in _at_an_edge(group, key, families.get(same, []))
        ]

    def winner(self) -> str:
        same = [other.group.label for other in self.ranked[1:] if other.is_same_run]
        others = [other for other in self.ranked[1:] if not other.is_same_run]
        remark = ""
        if same and not others:
            remark = " (all groups are the same run)"
        elif not all(map(_is_real, others)):
            remark = " (by its mean; not beyond noise)"
        elif same:
            remark = f" (the same run as {', '.join(same)}; beyond noise for all others)"
        failures = fate(self.whole(self.best.group.label), self.metric)
        return f"{self.best.group.label}{remark}{f' ({failures})' if failures else ''}"


def _searched(group: Group) -> list[str]:
    """Return the keys with values that may end too early."""
    return group.tuned_keys or ["optimizer.lr"]


def _at_an_edge(group: Group, key: str, family: Sequence[Group]) -> list[str]:
    found = {other.value(key) for other in family}
    values = sorted(value for value in found if isinstance(value, int | float))
    value = group.value(key)
    if len(values) < 3 or value not in (values[0], values[-1]):
        return []
    which, where = ("least", "below") if value == values[0] else ("largest", "above")
    name = "rate" if key == "optimizer.lr" else key
    return [
        f"warning: {group.label} is best at the {which} {name} that was tried; "
        f"try {key} {where} {value:g} too"
    ]


def answers(jobs: Sequence[Job], margin: float | None = None) -> list[Answer]:
    """Return one answer for each meaning of the monitored metric, in the order of their first jobs.
    Runs with other data, another loss or another metric are not ranked in the same list.
    Differences up to `margin` do not matter."""
    jobs = [job for job in jobs if job.has_config]
    sets: dict[str, list[Job]] = {}
    unknown = []  # jobs that were refused before their data was read
    for job in jobs:
        if job.data or not any(other.data for other in jobs):
            sets.setdefault(job.meaning(), []).append(job)
        else:
            unknown.append(job)
    for job in unknown:
        same_data = [
            group for group in sets.values() if group[0].config["data"] == job.config["data"]
        ]
        monitor = job.monitor
        same = [group for group in same_data if group[0].monitor == monitor]
        (same or same_data or list(sets.values()))[0].append(job)
    order = {id(job): i for i, job in enumerate(jobs)}
    return [
        _answer(sorted(group, key=lambda job: order[id(job)]), margin) for group in sets.values()
    ]


def _answer(jobs: Sequence[Job], margin: float | None) -> Answer:
    """Rank the groups that finished every seed, over the seeds that all of them have. If there are
    none, rank those with a finite value for any seed. Runs on tuning seeds are not ranked."""
    leader = next((job for job in jobs if job.data), jobs[0])  # jobs without data were refused
    trainer = leader.config["trainer"]
    metric, mode = trainer["monitor"], trainer["monitor_mode"]
    tuning, tried = split(groups(jobs))
    whole = [group for group in tried if len(group.values(metric)) == len(group.jobs)]
    rankable = whole or [group for group in tried if group.values(metric)]
    rankable, seeds = _panel(rankable, metric)
    compared = [
        group.over([*group.values(metric)] if seeds is None else seeds) for group in rankable
    ]
    sign = 1 if mode == "min" else -1
    best = sorted(compared, key=lambda group: sign * group.mean(metric))
    labels = {group.label for group in compared}
    unranked = [group for group in tried if group.label not in labels]
    goal = target(best, sign)
    shared = None if seeds is None else tuple(seeds)
    resolution = max((job.resolution(metric) for job in jobs), default=0.0)
    ranked = _ranked(best, metric, mode, goal, shared, (resolution, margin)) if best else []
    title = leader.measures()
    return Answer(title, metric, mode, goal, shared, ranked, unranked, tried, tuning, margin)


def split(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Split the groups by their seeds: those of tune=lr, and those to compare."""
    parts: tuple[list[Group], list[Group]] = ([], [])
    for part, is_for_tuning in zip(parts, (True, False), strict=True):
        for group in groups:
            jobs = tuple(job for job in group.jobs if job.is_for_tuning == is_for_tuning)
            if jobs:
                part.append(Group(group.label, jobs))
    return parts


def _panel(groups: Sequence[Group], metric: str) -> tuple[list[Group], list[Block] | None]:
    """Return the groups that can be compared, and the seeds that all of them have (None: none).

    While the groups share fewer than two seeds, leave out the one that shares the fewest with the
    others. If this does not end with two groups and two seeds in common, keep all groups.
    """
    kept = list(groups)
    while len(kept) > 1:
        shared = set.intersection(*(set(group.values(metric)) for group in kept))
        if len(shared) > 1:
            return kept, sorted(shared, key=in_order)
        kept.remove(min(kept, key=lambda group: _num_shared(group, kept, metric)))
    shared = set.intersection(*(set(group.values(metric)) for group in groups)) if groups else set()
    return list(groups), sorted(shared, key=in_order) or None


def _num_shared(group: Group, others: Sequence[Group], metric: str) -> int:
    """Count the seeds that the group shares with each of the others."""
    seeds = group.values(metric).keys()
    return sum(len(seeds & other.values(metric).keys()) for other in others)


def target(best: Sequence[Group], sign: int) -> float:
    """Return the value of the metric that most seeds of every group reach."""
    values = [
        [sign * float(job.result["best"]["value"]) for job in group.completed] for group in best
    ]
    return sign * max(map(median_high, values), default=math.nan)


def _ranked(
    best: Sequence[Group],
    metric: str,
    mode: str,
    goal: float,
    seeds: Sequence[Block] | None,
    tested: tuple[float, float | None],
) -> list[Ranked]:
    """Rank the groups, which are sorted, with tests of this resolution and margin. Their correction
    is for all pairs, because the best one was chosen by the same values."""
    values_by_label = {group.label: group.values(metric) if seeds else {} for group in best}
    tests = compare(values_by_label, *tested)
    signs = by_signs(values_by_label, best[0].label)
    against: list[Paired | None] = [None]
    against += [
        _with_signs(_negated(tests[best[0].label, group.label]), signs.get(group.label))
        for group in best[1:]
    ]
    probabilities = _probabilities(best, against, metric, mode, tested[0])
    return [
        rank(
            i + 1,
            group,
            summary([*group.values(metric).values()]),
            against[i],
            i > 0 and _is_same_run(group, best[0]),
            num_better(group, best[0], metric, mode),
            probabilities[i] if probabilities else None,
            group.reached(metric, mode, goal),
        )
        for i, group in enumerate(best)
    ]


def rank(
    number: int,
    group: Group,
    values: Summary,
    against: Paired | None,
    is_same_run: bool,
    better_on: int,
    probability: float | None,
    reached: tuple[float, float, float],
) -> Ranked:
    """Return the group as it is ranked; `reached` is that of Group.reached."""
    rate = group.rate_at_best()
    return Ranked(
        number, group, values, against, is_same_run, better_on, probability, *reached, rate
    )


def num_better(group: Group, other: Group, metric: str, mode: str) -> int:
    """Count the seeds on which the group has a better value than the other one."""
    sign, values, others = 1 if mode == "min" else -1, group.values(metric), other.values(metric)
    return sum(sign * values[seed] < sign * others[seed] for seed in values.keys() & others.keys())


def _negated(paired: Paired) -> Paired:
    """Return the comparison b - a from a - b."""
    interval = None if paired.interval is None else (-paired.interval[1], -paired.interval[0])
    return replace(paired, difference=0.0 - paired.difference, interval=interval)


def _with_signs(paired: Paired, p_values: tuple[float, float] | None) -> Paired:
    """Return the comparison with the p of the sign-flip test, raw and corrected."""
    if p_values is None:
        return paired
    return replace(paired, p_signs_raw=p_values[0], p_signs=p_values[1])


def _probabilities(
    best: Sequence[Group],
    against: Sequence[Paired | None],
    metric: str,
    mode: str,
    resolution: float,
) -> list[float] | None:
    """Return each group's probability to be the best; None if a test against the best one has no
    p."""
    if any(paired is not None and paired.p is None for paired in against):
        return None
    values = [group.values(metric) for group in best]
    seeds = sorted(values[0], key=in_order) if values else []
    rows = [[value[seed] for seed in seeds] for value in values]
    return probabilities_best(np.array(rows), mode, resolution) if len(best) > 1 else None


def _is_same_run(group: Group, other: Group) -> bool:
    """Return whether two groups have bit-identical weights for every seed."""
    hashes, other_hashes = (
        {job.block: job.result.get("weights_sha256") for job in compared.completed}
        for compared in (group, other)
    )
    return hashes == other_hashes and None not in hashes.values()


def fate(group: Group, metric: str) -> str:
    """List the seeds that diverged, failed or did not finish; empty if all finished."""
    ended = {job.block for job in group.jobs if job.status in ("failed", "damaged")}
    incomplete = group.failed(metric)
    parts = []
    for seeds, outcome in (
        (group.diverged(metric), "diverged"),
        ([seed for seed in incomplete if seed in ended], "failed"),
        ([seed for seed in incomplete if seed not in ended], "not finished"),
    ):
        if seeds:
            count = f"{len(seeds)} of {len(group.jobs)} seeds {outcome}"
            parts.append(f"{count} ({'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)})")
    return ", ".join(parts)


def write(path: Path, answer: Answer, over: Mapping[str, Any] | None = None) -> None:
    """Write answer.json as strict JSON. Unknown values are null. `over` is the answer over several
    workloads."""
    ranked = [
        _group_entry(answer.whole(other.group.label), answer.metric, other)
        for other in answer.ranked
    ]
    values = {
        "metric": answer.metric,
        "mode": answer.mode,
        "winner": answer.best.group.label if answer.ranked else None,
        "is_real": answer.is_real,
        "command": command(answer.best.group) if answer.ranked else None,
        "seeds": answer.seeds,
        "comparisons": answer.num_comparisons,
        "margin": answer.margin,
        "winner_value": _value_entry(answer.value),
        "verdict": " ".join(answer.verdict()) or None,
        "says": answer.sentences(),
        "test": answer.tested.entry() if answer.tested else None,
        "race": answer.race.entry() if answer.race else None,
        "workloads": over,
        "front": answer.front.entry() if answer.front else None,
        "groups": [*ranked, *(_group_entry(group, answer.metric) for group in answer.unranked)],
    }
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _value_entry(value: WinnersValue | None) -> dict[str, object] | None:
    if value is None:
        return None
    return {
        "mean": value.mean,
        "interval": value.interval,
        "luck": value.luck,
        "groups": value.num_groups,
    }


def _group_entry(whole: Group, metric: str, ranked: Ranked | None = None) -> dict[str, object]:
    group = ranked.group if ranked else whole
    against = ranked.against_best if ranked else None
    return {
        "rank": ranked.rank if ranked else None,
        "label": group.label,
        "overrides": group.to_copy(),
        "seeds": sorted(group.values(metric), key=in_order),
        "mean": strict_json.finite(group.mean(metric)),
        "interval": ranked.summary.interval if ranked else None,
        "difference": strict_json.finite(against.difference) if against else None,
        "difference_interval": against.interval if against else None,
        "p_raw": against.p_raw if against else None,
        "p": against.p if against else None,
        "p_signs_raw": against.p_signs_raw if against else None,
        "p_signs": against.p_signs if against else None,
        "p_equivalent": against.p_equivalent if against else None,
        "better_on": ranked.better_on if ranked and against else None,
        "probability_best": ranked.probability_best if ranked else None,
        "is_same_run": ranked.is_same_run if ranked else False,
        "diverged": len(whole.diverged(metric)),
        "failed": len(whole.failed(metric)),
    }


def command(group: Group) -> str:
    """Return the command that trains the group again; the call in Python if it takes objects."""
    overrides = group.to_copy()
    if passed := group.passed:
        # the keys that name an object; others of its group are the user's
        replaced = {
            *passed,
            *(f"{name}.{key}" for name in passed for key in ("object", "_target_")),
        }
        lines = [item for item in overrides if item.partition("=")[0] not in replaced]
        return call("train", shlex.join(lines), passed)
    branched = any(item.startswith("resume=") for item in overrides)  # into another folder
    choices = ["--config-dir", group.config_dir] if group.config_dir is not None else []
    return command_line([*(["-m"] if branched else []), *choices, *overrides])


def command_to_test(group: Group) -> str:
    """Return the command, or the call in Python, that evaluates the run of the group's first seed
    on the test split."""
    if passed := group.passed:
        return f"{call('load_run', str(group.completed[0].folder), passed)}.evaluate()"
    return command_line(["task=evaluate", override("run", str(group.completed[0].folder))])


def call(function: str, text: str, passed: Sequence[str]) -> str:
    """Write a call of this package with objects as arguments."""
    return f"runner.{function}({', '.join([json.dumps(text), *(f'{g}=...' for g in passed)])})"


def describe(summary: Summary) -> str:
    """Format the mean and its interval."""
    if summary.interval is None:
        return f"{show_metric(summary.mean)} with one seed"
    low, high = summary.interval
    return (
        f"{show_metric(summary.mean)} (95 % interval {show_metric(low)} to {show_metric(high)}, "
        f"{summary.num} seeds)"
    )


def _is_real(other: Ranked) -> bool:
    return other.against_best is not None and other.against_best.is_real


def _better(other: Ranked) -> str:
    return f"better on {other.better_on} of {other.against_best.num if other.against_best else 0}"


def _listed(seeds: Sequence[Block]) -> str:
    return ", ".join(map(str, seeds))


def seeds_in_words(seeds: Sequence[int]) -> str:
    """Return "seed 0" or "seeds 0, 1"."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _all(others: Sequence[Ranked]) -> str:
    return others[0].group.label if len(others) == 1 else f"each of the {len(others)} others"


def p_in_words(value: float) -> str:
    """Format a p-value."""
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"
