"""Find the best group of runs: by how much, over which seeds, and whether that is beyond noise."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high

import numpy as np

from runner.report.jobs import NO_OVERRIDES, Group, Job, best_rates, groups
from runner.report.statistics import Paired, Summary, compare, probabilities_best, summary
from runner.text.quoting import command_line, override


@dataclass(frozen=True)
class Ranked:
    rank: int  # 1 is best
    group: Group  # over the seeds that are compared
    summary: Summary  # of the monitored metric after the last epoch
    against_best: Paired | None  # this - best; None of the best itself
    is_same_run: bool  # its weights are those of the best, seed by seed
    probability_best: float | None  # None: it cannot be known
    steps: float  # to the target, median over the seeds; infinite: not reached
    seconds: float
    rate_at_best: float


@dataclass(frozen=True)
class Answer:
    title: str  # what it measures, on which data
    metric: str
    mode: str  # min, max
    target: float  # the worst group's best epoch, the median of its seeds; NaN of no group
    seeds: tuple[int, ...] | None  # that all ranked groups are compared over; None: none in common
    ranked: list[Ranked]  # best first; of each schedule whose rate was tuned, at its best rate
    unranked: list[Group]  # did not finish every seed, or share too few seeds with the others
    tried: list[Group]  # all groups with all their seeds, in the order of their jobs

    @property
    def best(self) -> Ranked:
        return self.ranked[0]

    @property
    def is_logarithmic(self) -> bool:
        """True if its curves are drawn on a logarithmic axis."""
        return self.mode == "min" and min(ranked.summary.mean for ranked in self.ranked) > 0

    @property
    def noise(self) -> list[Ranked]:
        """Those that the best cannot be told from."""
        return [other for other in self.ranked[1:] if not _is_real(other)]

    @property
    def is_real(self) -> bool:
        """The best is better than every other group beyond the noise."""
        return len(self.ranked) > 1 and not self.noise

    def says(self) -> list[str]:
        """The answer in words."""
        if not self.ranked:
            return [f"no group has a finite {self.metric}", *self._of_unranked()]
        return [
            *self._of_ranked(),
            *self._of_seeds(),
            *self._of_unfinished(),
            *self._of_unranked(),
        ]

    def _of_ranked(self) -> list[str]:
        best, others = self.best, self.ranked[1:]
        name, known = best.group.label, describe(best.summary)
        if not others:
            only = "the one group" if name == NO_OVERRIDES else name
            return [f"{only} has a {self.metric}, {known}"]
        lead = f"{name} has the best {self.metric}, {known}"
        if self.seeds is None:
            known = (
                "the groups have no seed in common, so a difference may come from the seeds alone"
            )
            return [lead, f"{known}; run every group with the same seeds, such as seed=0,1,2,3,4"]
        same = [self._of_other(other) for other in others if other.is_same_run]
        if len(self.seeds) == 1 and len(same) < len(others):
            known = "with one seed in common it cannot be known whether that is more than noise"
            return [lead, *same, f"{known}; run five seeds to find out: seed=0,1,2,3,4"]
        if not self.noise:
            worst = max(other.against_best.p or 0.0 for other in others if other.against_best)
            return [f"{lead}: better than {_all(others)} beyond the seeds' noise ({_p(worst)})"]
        lines = [lead, *(self._of_other(other) for other in others)]
        if len(self.noise) == len(others) > len(same):
            lines.append("no difference beyond the seeds' noise")
        return lines

    def _of_other(self, other: Ranked) -> str:
        found, name = other.against_best, other.group.label
        if other.is_same_run:
            return f"  {name}: the same run, to the last bit of its weights"
        assert found is not None  # of the best alone
        by = f"{abs(found.difference):.4g} {'more' if found.difference > 0 else 'less'}"
        if found.difference == 0:
            by = "no difference"
        if found.p is None:
            return f"  {name}: {by}, the same in every seed, which does not tell the noise"
        if found.is_real:
            return f"  {name}: {by}, beyond the noise ({_p(found.p)})"
        more = found.more_seeds
        seeds = "seed is" if more == 1 else "seeds are"
        needed = "" if more is None else f"; about {more} more {seeds} needed to confirm it"
        return f"  {name}: {by}, within the noise ({_p(found.p)}{needed})"

    def whole(self, label: str) -> Group:
        """The group with all its seeds."""
        return next(group for group in self.tried if group.label == label)

    def _of_seeds(self) -> list[str]:
        """Name the seeds that are left out because not every group has them."""
        wholes = [self.whole(other.group.label) for other in self.ranked]
        had = {seed for whole in wholes for seed in whole.values(self.metric)}
        if self.seeds is None or had == set(self.seeds):
            return []
        left = ", ".join(map(str, sorted(had - set(self.seeds))))
        return [f"compared over the seeds that all have, {_listed(self.seeds)}; left out: {left}"]

    def _of_unfinished(self) -> list[str]:
        """Explain the ranking where no group finished every seed."""
        labels = [other.group.label for other in self.ranked]
        fates = [(label, fate(self.whole(label), self.metric)) for label in labels]
        return [
            f"  {label}: {known}; ranked over its other seeds" for label, known in fates if known
        ]

    def _of_unranked(self) -> list[str]:
        return [f"  {group.label}: {self.why_unranked(group)}" for group in self.unranked]

    def why_unranked(self, group: Group) -> str:
        """Say how many of its seeds diverged or failed, or that it shares too few seeds."""
        return f"{fate(group, self.metric) or 'too few seeds in common'}; not ranked"

    def at_edges(self) -> list[str]:
        """Warnings: the best rate is the least or the largest of those tried, so a better one may
        lie beyond. Of two rates that were not tuned one always is."""
        tried: dict[str, list[float]] = {}
        for other in self.tried:
            tried.setdefault(other.but_for_rate(), []).append(other.base_rate)
        best: dict[str, Group] = {}
        for ranked in self.ranked:
            best.setdefault(ranked.group.but_for_rate(), ranked.group)
        lines = []
        for same, group in best.items():
            rate, lowest, highest = group.base_rate, min(tried[same]), max(tried[same])
            if len(tried[same]) < (2 if group.is_tuned else 3) or lowest < rate < highest:
                continue
            which, where = ("least", "below") if rate == lowest else ("largest", "above")
            lines.append(
                f"warning: {group.label} is best at the {which} rate that was tried; "
                + (
                    f"add a factor {where} the others to tune.factors"
                    if group.is_tuned
                    else f"try optimizer.lr {where} {rate:g} too"
                )
            )
        return lines

    def winner(self) -> str:
        others = self.ranked[1:]
        told = " (by its mean; not beyond noise)" if others and not self.is_real else ""
        if others and all(other.is_same_run for other in others):
            told = " (all groups are the same run)"
        known = fate(self.whole(self.best.group.label), self.metric)
        return f"{self.best.group.label}{told}{f' ({known})' if known else ''}"


def answers(jobs: Sequence[Job]) -> list[Answer]:
    """One for each meaning of the monitored metric, in order of their first jobs: runs on other
    data, with another loss or another metric are not ranked in one list."""
    jobs = [job for job in jobs if job.has_config]
    sets: dict[str, list[Job]] = {}
    unknown = []  # refused before their data was read
    for job in jobs:
        if job.data or not any(other.data for other in jobs):
            sets.setdefault(job.meaning(), []).append(job)
        else:
            unknown.append(job)
    for job in unknown:
        alike = [own for own in sets.values() if own[0].config["data"] == job.config["data"]]
        monitor = job.monitor
        same = [own for own in alike if own[0].monitor == monitor]
        (same or alike or list(sets.values()))[0].append(job)
    order = {id(job): i for i, job in enumerate(jobs)}
    return [_answer(sorted(own, key=lambda job: order[id(job)])) for own in sets.values()]


def _answer(jobs: Sequence[Job]) -> Answer:
    """Groups that finished every seed are ranked, over the seeds that all of them have. Where no
    group did, those with a finite seed are."""
    leader = next((job for job in jobs if job.data), jobs[0])  # others were refused
    trainer = leader.config["trainer"]
    metric, mode = trainer["monitor"], trainer["monitor_mode"]
    tried = groups(jobs)
    whole = [group for group in tried if len(group.values(metric)) == len(group.jobs)]
    rankable = whole or [group for group in tried if group.values(metric)]
    rankable, seeds = _panel(rankable, metric)
    chosen = [group.over([*group.values(metric)] if seeds is None else seeds) for group in rankable]
    sign = 1 if mode == "min" else -1
    best = best_rates(chosen, lambda group: sign * group.mean(metric))
    labels = {group.label for group in chosen}
    unranked = [group for group in tried if group.label not in labels]
    target = _target(best, sign)
    known = None if seeds is None else tuple(seeds)
    resolution = max((job.resolution(metric) for job in jobs), default=0.0)
    ranked = _ranked(chosen, best, metric, mode, target, known, resolution) if best else []
    return Answer(leader.measures(), metric, mode, target, known, ranked, unranked, tried)


def _panel(found: Sequence[Group], metric: str) -> tuple[list[Group], list[int] | None]:
    """The groups that can be compared, and the seeds that all of them have. While these are fewer
    than two, the group with the fewest seeds is left out, if that leaves two groups with two seeds
    in common; else all are kept. None: no seed in common."""
    kept = list(found)
    while len(kept) > 1:
        shared = set.intersection(*(set(group.values(metric)) for group in kept))
        if len(shared) > 1:
            return kept, sorted(shared)
        kept.remove(min(kept, key=lambda group: _num_shared(group, kept, metric)))
    shared = set.intersection(*(set(group.values(metric)) for group in found)) if found else set()
    return list(found), sorted(shared) or None


def _num_shared(group: Group, others: Sequence[Group], metric: str) -> int:
    """Count how often the others have its seeds."""
    own = group.values(metric).keys()
    return sum(len(own & other.values(metric).keys()) for other in others)


def _target(best: Sequence[Group], sign: int) -> float:
    """Value of the metric that most seeds of every group reach."""
    values = [
        [sign * float(job.result["best"]["value"]) for job in group.completed] for group in best
    ]
    return sign * max(map(median_high, values), default=math.nan)


def _ranked(
    chosen: Sequence[Group],
    best: Sequence[Group],
    metric: str,
    mode: str,
    target: float,
    seeds: Sequence[int] | None,
    resolution: float,
) -> list[Ranked]:
    """Tests are corrected for all pairs of the groups that were chosen from, `best` among them."""
    labels = [group.label for group in best]
    each = [*best, *(group for group in chosen if group.label not in labels)]
    known = {group.label: group.values(metric) if seeds else {} for group in each}
    tests = compare(known, resolution)
    against: list[Paired | None] = [None]
    against += [_turned(tests[best[0].label, group.label]) for group in best[1:]]
    probabilities = _probabilities(best, against, metric, mode, resolution)
    ranked = []
    for i, group in enumerate(best):
        steps, seconds = group.reached(metric, mode, target)
        same = i > 0 and _is_same_run(group, best[0])
        values = summary([*group.values(metric).values()])
        rate = group.rate_at_best()
        chance = probabilities[i] if probabilities else None
        ranked.append(Ranked(i + 1, group, values, against[i], same, chance, steps, seconds, rate))
    return ranked


def _turned(found: Paired) -> Paired:
    """b - a of a - b."""
    interval = None if found.interval is None else (-found.interval[1], -found.interval[0])
    return Paired(
        found.num, 0.0 - found.difference, interval, found.p_raw, found.p, found.more_seeds
    )


def _probabilities(
    best: Sequence[Group],
    against: Sequence[Paired | None],
    metric: str,
    mode: str,
    resolution: float,
) -> list[float] | None:
    """None where a test against the best cannot be made."""
    if any(paired is not None and paired.p is None for paired in against):
        return None
    values = [group.values(metric) for group in best]
    seeds = sorted(values[0]) if values else []
    rows = [[value[seed] for seed in seeds] for value in values]
    return probabilities_best(np.array(rows), mode, resolution) if len(best) > 1 else None


def _is_same_run(group: Group, other: Group) -> bool:
    """Return whether two groups have the same weights, bit by bit, for every seed."""
    own, others = (
        {job.seed: job.result.get("weights_sha256") for job in each.completed}
        for each in (group, other)
    )
    return own == others and None not in own.values()


def fate(group: Group, metric: str) -> str:
    """List the seeds that did not finish, by what became of them; empty where all did."""
    ended = {job.seed for job in group.jobs if job.status in ("failed", "damaged")}
    gone = group.failed(metric)
    parts = []
    for seeds, what in (
        (group.diverged(metric), "diverged"),
        ([seed for seed in gone if seed in ended], "failed"),
        ([seed for seed in gone if seed not in ended], "not finished"),
    ):
        if seeds:
            of = f"{len(seeds)} of {len(group.jobs)} seeds {what}"
            parts.append(f"{of} ({'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)})")
    return ", ".join(parts)


def write(path: Path, found: Answer) -> None:
    """answer.json, strict JSON: what is not known is null."""
    ranked = [
        _of_group(found.whole(other.group.label), found.metric, other) for other in found.ranked
    ]
    values = {
        "metric": found.metric,
        "mode": found.mode,
        "winner": found.best.group.label if found.ranked else None,
        "is_real": found.is_real,
        "command": command(found.best.group) if found.ranked else None,
        "seeds": found.seeds,
        "says": found.says(),
        "groups": [*ranked, *(_of_group(group, found.metric) for group in found.unranked)],
    }
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _of_group(whole: Group, metric: str, ranked: Ranked | None = None) -> dict[str, object]:
    group = ranked.group if ranked else whole
    against = ranked.against_best if ranked else None
    return {
        "rank": ranked.rank if ranked else None,
        "label": group.label,
        "overrides": group.to_copy(),
        "seeds": sorted(group.values(metric)),
        "mean": _finite(group.mean(metric)),
        "interval": ranked.summary.interval if ranked else None,
        "difference": _finite(against.difference) if against else None,
        "difference_interval": against.interval if against else None,
        "p_raw": against.p_raw if against else None,
        "p": against.p if against else None,
        "probability_best": ranked.probability_best if ranked else None,
        "is_same_run": ranked.is_same_run if ranked else False,
        "diverged": len(whole.diverged(metric)),
        "failed": len(whole.failed(metric)),
    }


def command(group: Group) -> str:
    """Command that trains the group again."""
    said = group.to_copy()
    branched = any(override.startswith("resume=") for override in said)  # in a folder of its own
    choices = ["--config-dir", group.config_dir] if group.config_dir is not None else []
    return command_line([*(["-m"] if branched else []), *choices, *said])


def command_to_test(group: Group) -> str:
    """Command that evaluates the run of its first seed on the test split."""
    return command_line(["task=evaluate", override("run", str(group.completed[0].folder))])


def describe(found: Summary) -> str:
    """The mean, and how sure it is."""
    if found.interval is None:
        return f"{found.mean:.4f} with one seed"
    low, high = found.interval
    return f"{found.mean:.4f} (95 % interval {low:.4f} to {high:.4f}, {found.num} seeds)"


def _is_real(other: Ranked) -> bool:
    return other.against_best is not None and other.against_best.is_real


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _all(others: Sequence[Ranked]) -> str:
    return others[0].group.label if len(others) == 1 else f"each of the {len(others)} others"


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"
