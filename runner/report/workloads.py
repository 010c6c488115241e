"""Rank the same settings over several workloads (data, model and loss), as AlgoPerf does.

Dahl et al. (2023), "Benchmarking Neural Network Training Algorithms": the cost until a target on
each workload, performance profiles of the ratios to the least cost, and their integral as a score.
Unlike losses are never averaged. docs/statistics.md says where this departs from AlgoPerf.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runner.report.answer import fate, split
from runner.report.board import Board, Entrant, Workload
from runner.report.jobs import NO_OVERRIDES, Block, Group, Job, groups, in_order
from runner.report.profiles import (
    DIGITS,
    Curve,
    Races,
    p_of_lead,
    ratios,
    scores,
    seed_intervals,
    seed_scores,
)
from runner.report.statistics import holm, smallest_p
from runner.run import strict_json

# Keys that are neither settings to compare nor of a workload
_APART = ("seed", "data.fold", "backend", "trusted_modules")
_APART_PREFIXES = ("output.", "answer.", "race.", "tune", "search", "hydra")
Unit = Literal["steps", "rows", "seconds"]


@dataclass(frozen=True)
class Rules:
    """The keys answer.target and answer.relax."""

    target: float | Mapping[str, float] | None = None  # a mapping has the names of workloads
    relax: float = 0.0

    def target_of(self, name: str) -> float | None:
        return self.target.get(name) if isinstance(self.target, Mapping) else self.target


@dataclass(frozen=True)
class _Field:
    """The groups of one workload, by the labels that they have on every workload."""

    label: str  # data=iris model=mlp
    name: str  # iris/mlp
    groups: Mapping[str, Group]
    ambiguous: Collection[str]  # labels of several groups

    @property
    def jobs(self) -> list[Job]:
        return [job for group in self.groups.values() for job in group.jobs]


def board(jobs: Sequence[Job], rules: Rules) -> Board | None:
    """Rank the settings that were trained on several workloads; None if there are not several of
    both. Runs of a search, and those on tuning seeds, do not count."""
    jobs = [job for job in jobs if job.has_config and not job.config.get("search")]
    fields = _fields(jobs)
    labels = list(dict.fromkeys(label for each in fields for label in each.groups))
    if len(fields) < 2 or len(labels) < 2:
        return None
    shared = [each for each in fields if len(each.groups) > 1]
    reasons = {label: _why_apart(label, shared) for label in labels}
    ranked = [label for label, reason in reasons.items() if reason is None]
    seeds = [_seeds(each, ranked) for each in shared]
    kept = [(each, own) for each, own in zip(shared, seeds, strict=True) if own]
    apart = [
        *(f"{label}: {reason}; not ranked" for label, reason in reasons.items() if reason),
        *_unread(jobs),
        *(f"{each.label}: one group only; left out" for each in fields if each not in shared),
        *(
            f"{each.label}: no seed in common; left out"
            for each, own in zip(shared, seeds, strict=True)
            if not own and len(ranked) > 1
        ),
        *(line for each, own in kept for line in _seed_lines(each, ranked, own)),
        *_unknown_names(fields, rules.target),
    ]
    if len(ranked) < 2 or len(kept) < 2:
        what = "groups were trained on all workloads"
        if len(ranked) > 1:
            what = "workloads have a seed that all groups share"
        return Board([], [], apart, rules.relax, 1.0, f"fewer than two {what}")
    return _board(kept, ranked, apart, rules)


def _fields(jobs: Sequence[Job]) -> list[_Field]:
    """Divide the jobs by workload, in the order of their first jobs. Jobs whose data no job has
    read, and groups of which no job has ended, say nothing."""
    meanings = {json.dumps(job.config["data"]): job.meaning() for job in jobs if job.data}
    by_workload: dict[str, list[Job]] = {}
    for job in jobs:
        meaning = meanings.get(json.dumps(job.config["data"]))
        if meaning is not None:
            by_workload.setdefault(job.workload(meaning), []).append(job)
    divided = [
        [group for group in split(groups(members))[1] if group.jobs[0].has_overrides]
        for members in by_workload.values()
    ]
    divided = [tried for tried in divided if tried]
    tables = [[_items(group) for group in tried] for tried in divided]
    every = [items for table in tables for items in table]
    keys = {key for items in every for key in items}
    alike = {key for key in keys if len({items.get(key) for items in every}) == 1}
    own = {key for key in keys - alike if _is_of_workloads(key, tables)}
    places = [_place(tried[0], table[0], own) for tried, table in zip(divided, tables, strict=True)]
    return [
        _field(place, tried, [_joined(items, keys - alike - own) for items in table])
        for place, tried, table in zip(_numbered(places), divided, tables, strict=True)
    ]


def _unread(jobs: Sequence[Job]) -> list[str]:
    """Name the data that no job has read, because all failed before."""
    read = {json.dumps(job.config["data"]) for job in jobs if job.data}
    names = [
        job.config["data"]["name"] for job in jobs if json.dumps(job.config["data"]) not in read
    ]
    return [f"data={name}: no run has read it; left out" for name in dict.fromkeys(names)]


def _items(group: Group) -> dict[str, str]:
    """Return key -> override, without the seed and the keys that tune=lr has chosen."""
    items = {item.partition("=")[0].lstrip("+~"): item for item in group.jobs[0].overrides}
    without = (*_APART, *group.tuned_keys)
    return {
        key: item
        for key, item in items.items()
        if key not in without and not key.startswith(_APART_PREFIXES)
    }


def _is_of_workloads(key: str, tables: Sequence[Sequence[Mapping[str, str]]]) -> bool:
    """Return whether a key that differs is the same for all groups of each workload."""
    return all(len({items.get(key) for items in table}) == 1 for table in tables)


def _place(group: Group, items: Mapping[str, str], own: Collection[str]) -> tuple[str, str]:
    """Return a workload's label and its name: of its own overrides, else of the data and model."""
    if not any(key in own for key in items):
        data, model = (str(group.value(f"{key}.name")) for key in ("data", "model"))
        return f"data={data} model={model}", f"{data}/{model}"
    return _joined(items, own), "/".join(_value(group, items[key]) for key in items if key in own)


def _value(group: Group, item: str) -> str:
    """Return an override's value without the quotes that a text with special characters has."""
    key, _, text = item.partition("=")
    plain = group.value(key.lstrip("+~"))
    return plain if isinstance(plain, str) and text[:1] in ("'", '"') else text


def _joined(items: Mapping[str, str], keys: Collection[str]) -> str:
    return " ".join(item for key, item in items.items() if key in keys) or NO_OVERRIDES


def _numbered(places: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Number workloads that have the same overrides."""
    return [
        (f"{label} ({i})", f"{name}/{i}")
        if (i := places[: at + 1].count((label, name))) > 1
        else (label, name)
        for at, (label, name) in enumerate(places)
    ]


def _field(place: tuple[str, str], tried: Sequence[Group], labels: Sequence[str]) -> _Field:
    repeated = [label for label, number in Counter(labels).items() if number > 1]
    return _Field(*place, dict(zip(labels, tried, strict=True)), repeated)


def _why_apart(label: str, fields: Sequence[_Field]) -> str | None:
    """Return why a group cannot be ranked; None if it can."""
    for each in fields:
        group = each.groups.get(label)
        if group is None:
            return f"not trained on {each.label}"
        if label in each.ambiguous:
            return f"several settings on {each.label} have these overrides"
        if not _blocks(group):
            return f"{fate(group, group.jobs[0].monitor)} on {each.label}"
    return None


def _blocks(group: Group) -> set[Block]:
    """Return the seeds that count: completed, or diverged, which never reaches a target."""
    metric = group.jobs[0].monitor
    return {*group.values(metric), *group.diverged(metric)}


def _seeds(each: _Field, ranked: Sequence[str]) -> list[Block]:
    """Return the seeds of a workload that all ranked groups have."""
    found = [_blocks(each.groups[label]) for label in ranked]
    return sorted(set.intersection(*found), key=in_order) if found else []


def _seed_lines(each: _Field, ranked: Sequence[str], seeds: Sequence[Block]) -> list[str]:
    """Name the seeds that diverged, failed or are left out."""
    tried = {label: each.groups[label] for label in ranked}
    fates = {label: fate(group, group.jobs[0].monitor) for label, group in tried.items()}
    lines = [
        f"{label} on {each.label}: {words}; a diverged run never reaches the target"
        if "diverged" in words
        else f"{label} on {each.label}: {words}"
        for label, words in fates.items()
        if words
    ]
    others = set().union(*(group.seeds for group in tried.values())) - set(seeds)
    if others:
        left_out = ", ".join(map(str, sorted(others, key=in_order)))
        shared = ", ".join(map(str, seeds))
        lines.append(f"{each.label}: compared over the seeds {shared}; left out: {left_out}")
    return lines


def _unknown_names(
    fields: Sequence[_Field], target: float | Mapping[str, float] | None
) -> list[str]:
    """Name the targets of workloads that are not there."""
    known = [each.name for each in fields]
    names = [name for name in target if name not in known] if isinstance(target, Mapping) else []
    return [f"answer.target: no workload is {name}; there are {', '.join(known)}" for name in names]


def _board(
    kept: Sequence[tuple[_Field, list[Block]]],
    labels: Sequence[str],
    apart: list[str],
    rules: Rules,
) -> Board:
    """Rank the groups `labels` over workloads with these seeds."""
    entries = [_Entry.of(each, labels, seeds, rules) for each, seeds in kept]
    races = [each.races(each.unit) for each in entries]
    timed = [each.races("seconds") for each in entries]
    all_ratios = ratios(np.stack([race.costs(race.runs)[0] for race in races]))
    found = np.round(scores(all_ratios), DIGITS)
    by_time = np.full(len(labels), np.nan)
    if all(each.has_seconds for each in entries):
        by_time = scores(ratios(np.stack([race.costs(race.runs)[0] for race in timed])))
    order = [int(i) for i in np.argsort(-found, kind="stable")]
    first, num_pairs = order[0], len(labels) * (len(labels) - 1) // 2
    raw = {(labels[first], labels[i]): p_of_lead(races, first, i) for i in order[1:]}
    corrected, ends = holm(raw, num_pairs), seed_intervals(races)
    by_seed = seed_scores(races, [race.runs for race in races])[0]
    entrants = [
        Entrant(
            1 + int((found > found[i]).sum()),
            labels[i],
            float(found[i]),
            round(float(by_seed[i]), DIGITS),
            None if ends is None else ends[i],
            strict_json.finite(float(by_time[i])),
            all_ratios[:, i],
            raw.get((labels[first], labels[i])),
            corrected.get((labels[first], labels[i])),
        )
        for i in order
    ]
    workloads = [each.summary(order) for each in entries]
    least = min(1.0, num_pairs * smallest_p(sum(race.num_seeds for race in races)))
    return Board(workloads, entrants, apart, rules.relax, least)


@dataclass(frozen=True)
class _Entry:
    """The runs of the ranked groups on one workload, over the seeds that all of them have."""

    label: str
    metric: str
    mode: str
    seeds: tuple[Block, ...]
    jobs: list[list[Job]]  # [S][n]
    target: float | None  # answer.target
    relax: float

    @staticmethod
    def of(each: _Field, labels: Sequence[str], seeds: Sequence[Block], rules: Rules) -> "_Entry":
        by_seed = [{job.block: job for job in each.groups[label].jobs} for label in labels]
        jobs = [[own[seed] for seed in seeds] for own in by_seed]
        trainer, target = jobs[0][0].config["trainer"], rules.target_of(each.name)
        metric, mode = trainer["monitor"], trainer["monitor_mode"]
        return _Entry(each.label, metric, mode, tuple(seeds), jobs, target, rules.relax)

    @property
    def sign(self) -> int:
        """1 if a small metric is good, else -1."""
        return 1 if self.mode == "min" else -1

    @property
    def unit(self) -> Unit:
        """Rows if the groups' updates have different sizes, so that equal steps are not."""
        return "rows" if len({own[0].update_rows for own in self.jobs}) > 1 else "steps"

    @property
    def has_seconds(self) -> bool:
        """False if a run was resumed: the clock of its epochs includes other startup times."""
        return not any(job.result.get("resumed_from") for own in self.jobs for job in own)

    def races(self, unit: Unit) -> Races:
        """Return the curves of all runs, with costs in this unit."""
        target = None if self.target is None else self.sign * self.target
        curves = [[self._curve(job, unit) for job in own] for own in self.jobs]
        return Races(curves, target, self.relax)

    def _curve(self, job: Job, unit: Unit) -> Curve:
        final = self.sign * job.last(self.metric) if job.is_completed else math.nan
        if not math.isfinite(final):
            return Curve(np.empty(0), np.empty(0), math.inf)
        losses = self.sign * job.epochs[self.metric]
        if unit == "rows":
            costs = np.array([job.rows_until(i) for i in range(len(losses))])
        elif unit == "seconds":
            costs = job.epochs["seconds"] - (job.result["seconds"].get("startup") or 0.0)
        else:
            costs = job.epochs["step"]
        return Curve(losses, costs, final)

    def summary(self, order: Sequence[int]) -> Workload:
        """Return the workload with the costs of the groups in this order."""
        races, timed = self.races(self.unit), self.races("seconds")
        bound = float(races.targets(races.runs)[0])
        costs, seconds = (race.costs(race.runs)[0] for race in (races, timed))
        return Workload(
            self.label,
            self.metric,
            self.mode,
            self.seeds,
            self.sign * bound if math.isfinite(bound) else math.nan,
            self.target is not None,
            self.unit,
            [float(costs[i]) for i in order],
            [float(seconds[i]) for i in order] if self.has_seconds else None,
        )
