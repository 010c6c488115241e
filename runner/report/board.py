"""The answer over several workloads: scores, costs, and the two sentences about them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.report.answer import p_in_words
from runner.report.jobs import Block
from runner.report.profiles import R_MAX, profile
from runner.report.statistics import LEVEL
from runner.run import strict_json


@dataclass(frozen=True)
class Workload:
    """One workload, over the seeds that all ranked entrants have."""

    label: str  # data=iris model=mlp
    metric: str
    mode: str
    seeds: tuple[Block, ...]
    target: float  # NaN: every entrant has diverged
    is_given: bool  # answer.target has it
    unit: str  # steps; rows where the entrants' updates have different sizes
    costs: list[float]  # until the target, in this unit, of the ranked entrants; median over seeds
    seconds: list[float] | None  # likewise; None: a run was resumed, its clock is not known


@dataclass(frozen=True)
class Entrant:
    """Settings that were trained on every workload."""

    rank: int  # 1 is best; equal scores share a rank
    label: str
    score: float
    seed_score: float  # each seed is a race of its own, in place of the median over the seeds
    interval: tuple[float, float] | None  # of seed_score
    seconds_score: float | None  # the score by seconds in place of steps
    ratios: np.ndarray  # [W], to the least cost
    p_raw: float | None  # that it is as good as the first; None: it is the first
    p: float | None  # with Holm's correction for all pairs

    @property
    def num_reached(self) -> int:
        return int(np.isfinite(self.ratios).sum())


@dataclass(frozen=True)
class Board:
    """The answer over all workloads."""

    workloads: list[Workload]
    entrants: list[Entrant]  # best first
    apart: list[str]  # entrants, workloads and seeds that do not count, and why
    relax: float
    smallest_p: float  # that these runs can give, corrected for all pairs
    reason: str = ""  # why nothing is ranked

    @property
    def is_real(self) -> bool:
        """True if the first is better than all others by more than the noise."""
        return len(self.entrants) > 1 and all(
            other.p is not None and other.p < LEVEL for other in self.entrants[1:]
        )

    @property
    def close(self) -> list[Entrant]:
        """The entrants that are not told from the first."""
        return [other for other in self.entrants[1:] if other.p is None or other.p >= LEVEL]

    def winner(self) -> str | None:
        """Return the first, or those that share the first rank; None if nothing is ranked or
        no target was reached."""
        first = [each.label for each in self.entrants if each.rank == 1]
        return ", ".join(first) if first and self.entrants[0].score > 0 else None

    def remark(self) -> str:
        """Return the winner, and whether it is beyond the noise."""
        names = self.winner()
        if names is None:
            return "none: nobody reaches a target"
        return names if self.is_real else f"{names} (by its score; not beyond noise)"

    def verdict(self) -> list[str]:
        """Return the answer in two sentences."""
        if not self.entrants:
            return [f"Nothing is ranked over the workloads: {self.reason}."]
        num, names = len(self.workloads), self.winner()
        if names is None:
            return [f"Nobody reaches the target on any of {num} workloads."]
        best = self.entrants[0]
        if sum(each.rank == 1 for each in self.entrants) > 1:
            shared = f"Over {num} workloads, {names} share the best score, {_score(best)}."
            return [shared, "These runs do not show which of them is better."]
        soonest = int((best.ratios <= 1).sum())
        first = (
            f"Over {num} workloads, {names} has the best score, {_score(best)}: it reaches the "
            f"target on {best.num_reached} of them, and with the least cost on {soonest}."
        )
        return [first, self._second_sentence()]

    def _second_sentence(self) -> str:
        others = self.entrants[1:]
        if not self.close:
            which = others[0].label if len(others) == 1 else f"each of the {len(others)} others"
            return (
                f"Its lead over {which} is more than the seeds' noise: if there were no "
                f"difference, at most 5 of 100 such comparisons would name any winner."
            )
        few = ", ".join(each.label for each in self.close[:3])
        more = f" and {len(self.close) - 3} more" if len(self.close) > 3 else ""
        if self.smallest_p >= LEVEL:
            return (
                f"So few runs cannot show that it is better than {few}{more}: the smallest "
                f"possible {p_in_words(self.smallest_p)}; run more seeds, such as seed=0,1,2,3,4."
            )
        return (
            f"These runs do not show that it is better than {few}{more}: the lead is small beside "
            f"the differences between seeds."
        )

    def notes(self) -> list[str]:
        """Explain the tables."""
        if not self.entrants:
            return []
        return [
            f"Target: the best group's median of the metric after the last epoch, relaxed by "
            f"{100 * self.relax:g} % of it, or answer.target. Cost: steps until the first epoch "
            f"that reaches it, median over the seeds. Score: the performance profile, the share of "
            f"workloads with at most tau times the least cost, averaged over tau from 1 to "
            f"{R_MAX:g} (Dahl et al. 2023). Seed by seed: each seed is a race of its own, and the "
            f"score is the mean over them; it has the interval (Jeffreys'). p: a permutation test "
            f"of the score seed by seed, which exchanges the runs of two groups, with Holm's "
            f"correction for all pairs (raw p: without it)."
        ]

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Return the table of scores and that of workloads, each with a header; none if nothing is
        ranked. The cells are not escaped."""
        if not self.entrants:
            return []
        header = (
            "rank",
            "overrides",
            "score",
            "seed by seed",
            "95 % interval",
            "raw p",
            "p",
            "reached",
            "least cost on",
            "within 2 times",
            "score by seconds",
        )
        labels = [each.label for each in self.entrants]
        columns = ("workload", "metric", "target", "seeds", "in", *labels)
        return [
            [header, *map(self._cells, self.entrants)],
            [columns, *map(self._workload_cells, self.workloads)],
        ]

    def _cells(self, each: Entrant) -> tuple[str, ...]:
        num = len(self.workloads)
        return (
            str(each.rank),
            each.label,
            f"{each.score:.4f}",
            f"{each.seed_score:.4f}",
            "" if each.interval is None else "{:.4f} to {:.4f}".format(*each.interval),
            "" if each.p_raw is None else f"{each.p_raw:.2g}",
            "" if each.p is None else f"{each.p:.2g}",
            f"{each.num_reached} of {num}",
            f"{round(profile(each.ratios, 1.0) * num)} of {num}",
            f"{round(profile(each.ratios, 2.0) * num)} of {num}",
            "" if each.seconds_score is None else f"{each.seconds_score:.4f}",
        )

    def _workload_cells(self, item: Workload) -> tuple[str, ...]:
        bound = "" if math.isnan(item.target) else f"{item.target:.4g}"
        seconds = item.seconds or [math.inf] * len(item.costs)
        return (
            item.label,
            f"{item.metric}, {item.mode}",
            f"{bound} (answer.target)" if item.is_given else bound or "none: all diverged",
            str(len(item.seeds)),
            f"{item.unit} (seconds)",
            *(
                "never"
                if math.isinf(cost)
                else f"{cost:.0f}{'' if math.isinf(time) else f' ({time:.2f})'}"
                for cost, time in zip(item.costs, seconds, strict=True)
            ),
        )

    def entry(self) -> dict[str, Any]:
        """Return the entry of answer.json."""
        return {
            "winner": self.winner(),
            "is_real": self.is_real,
            "verdict": " ".join(self.verdict()),
            "says": self.apart,
            "tau_max": R_MAX,
            "relax": self.relax,
            "smallest_p": self.smallest_p if self.entrants else None,
            "workloads": list(map(self._workload_entry, self.workloads)),
            "groups": list(map(self._entrant_entry, self.entrants)),
        }

    def _workload_entry(self, item: Workload) -> dict[str, Any]:
        return {
            "label": item.label,
            "metric": item.metric,
            "mode": item.mode,
            "target": strict_json.finite(item.target),
            "is_given": item.is_given,
            "seeds": item.seeds,
            "unit": item.unit,
            "costs": self._by_label(item.costs),
            "seconds": self._by_label(item.seconds) if item.seconds else None,
        }

    def _entrant_entry(self, each: Entrant) -> dict[str, Any]:
        return {
            "rank": each.rank,
            "label": each.label,
            "score": each.score,
            "seed_score": each.seed_score,
            "interval": each.interval,
            "seconds_score": each.seconds_score,
            "ratios": [strict_json.finite(float(ratio)) for ratio in each.ratios],
            "p_raw": each.p_raw,
            "p": each.p,
        }

    def _by_label(self, values: Sequence[float]) -> dict[str, float | None]:
        """Return label -> value; null: never."""
        labels = [each.label for each in self.entrants]
        return {
            label: strict_json.finite(value) for label, value in zip(labels, values, strict=True)
        }


def _score(each: Entrant) -> str:
    if each.interval is None:
        return f"{each.score:.2f} of 1"
    low, high = each.interval
    return (
        f"{each.score:.2f} of 1 (seed by seed {each.seed_score:.2f}, 95 % interval {low:.2f} to "
        f"{high:.2f})"
    )
