"""Which group of runs is best, by how much, over how many seeds, and whether that is more than noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high

from runner.report.jobs import Group, Job, best_rates, groups
from runner.report.statistics import Paired, Summary, compare, summary


@dataclass(frozen=True)
class Ranked:
    rank: int  # 1 is best
    group: Group
    summary: Summary  # of the monitored metric after the last epoch
    against_best: Paired | None  # this - best; None of the best itself
    steps: float  # to the target, median over the seeds; infinite: not reached
    seconds: float
    rate_at_best: float


@dataclass(frozen=True)
class Answer:
    metric: str
    mode: str  # min, max
    target: float  # what most seeds of every group reach: the worst group's best epoch, the median of its seeds
    ranked: list[Ranked]  # best first; of each schedule whose rate was tuned, at its best rate
    tried: list[Group]  # all groups, in the order of their jobs

    @property
    def best(self) -> Ranked:
        return self.ranked[0]

    @property
    def is_logarithmic(self) -> bool:
        """How its curves are drawn."""
        return self.mode == "min" and min(ranked.summary.mean for ranked in self.ranked) > 0

    @property
    def noise(self) -> list[Ranked]:
        """Those that the best cannot be told from."""
        return [other for other in self.ranked[1:] if other.against_best is None or not other.against_best.is_real]

    def says(self) -> list[str]:
        """In words."""
        best, others = self.best, self.ranked[1:]
        lead = f"{best.group.label} has the best {self.metric}, {describe(best.summary)}"
        if not others:
            return [lead.replace("has the best", "has a")]
        if all(other.against_best is None or other.against_best.p is None for other in others):
            return [
                lead,
                "with one seed in common it cannot be known whether that is more than noise; seed=0,1,2,3,4 would tell",
            ]
        if not self.noise:
            worst = max(other.against_best.p or 0.0 for other in others if other.against_best)
            return [f"{lead}: better than {_all(others)} beyond the seeds' noise ({_p(worst)})"]
        lines = [lead, *(self._told(other) for other in others)]
        if len(self.noise) == len(others):
            lines.append("no difference beyond the seeds' noise")
        return lines

    def _told(self, other: Ranked) -> str:
        found, name = other.against_best, other.group.label
        if found is None or found.p is None:
            return f"  {name}: too few seeds in common to tell"
        by = f"{abs(found.difference):.4g} {'more' if found.difference > 0 else 'less'}"
        if found.is_real:
            return f"  {name}: {by}, beyond the noise ({_p(found.p)})"
        more = "" if found.more_seeds is None else f"; about {found.more_seeds} more seeds would tell such a difference"
        return f"  {name}: {by}, within the noise ({_p(found.p)}{more})"

    def at_edges(self) -> list[str]:
        """Warnings: where the best rate that was tried is the least or the largest, a better one may lie beyond."""
        lines = []
        for ranked in self.ranked:
            group, same = ranked.group, ranked.group.but_for_rate()
            rates = sorted(other.base_rate for other in self.tried if other.but_for_rate() == same)
            rate = group.base_rate
            if len(rates) > 1 and rate in (rates[0], rates[-1]):
                which = "least" if rate == rates[0] else "largest"
                lines.append(f"warning: {group.label} is best at the {which} rate that was tried")
        return lines

    def winner(self) -> str:
        if len(self.ranked) == 1:
            return self.best.group.label
        return f"{self.best.group.label}{'' if not self.noise else ' (by its mean; not beyond noise)'}"


def answer(jobs: Sequence[Job]) -> Answer | None:
    """Of the completed jobs that monitor what the first of them does; None where no group has it."""
    completed = [job for job in jobs if job.is_completed]
    if not completed:
        return None
    trainer = completed[0].config["trainer"]
    metric, mode = trainer["monitor"], trainer["monitor_mode"]
    alike = [job for job in completed if job.config["trainer"]["monitor"] == metric]
    found = [group for group in groups(alike) if math.isfinite(group.mean(metric))]
    if not found:
        return None
    sign, tried = 1 if mode == "min" else -1, found
    found = best_rates(tried, lambda group: sign * group.mean(metric))
    tests = compare({group.label: group.values(metric) for group in [*found, *(g for g in tried if g not in found)]})
    best = [[sign * float(job.result["best"]["value"]) for job in group.jobs] for group in found]
    target = sign * max(median_high(values) for values in best)
    ranked = []
    for i, group in enumerate(found):
        against = None
        if i:
            paired = tests[found[0].label, group.label]
            against = Paired(paired.num, -paired.difference, paired.p, paired.more_seeds)
        reached = group.reached(metric, mode, target)
        values = [*group.values(metric).values()]
        ranked.append(Ranked(i + 1, group, summary(values), against, *reached, group.rate_at_best()))
    return Answer(metric, mode, target, ranked, tried)


def describe(found: Summary) -> str:
    """The mean, and how sure it is."""
    if found.interval is None:
        return f"{found.mean:.4f} with one seed"
    low, high = found.interval
    return f"{found.mean:.4f} (95 % interval {low:.4f} to {high:.4f}, {found.num} seeds)"


def _all(others: Sequence[Ranked]) -> str:
    return others[0].group.label if len(others) == 1 else f"each of the {len(others)} others"


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"
