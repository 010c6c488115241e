"""Performance profiles and scores over workloads, their intervals over seeds, and exact tests.

Letters: W workloads, S entrants, n seeds of a workload, B draws. Values are losses: a metric that
is good when large has its sign changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from runner.report.statistics import sign_flip_p

R_MAX = 4.0  # ratios from here on count like a target that is not reached, as in AlgoPerf
DIGITS = 9  # of a score; the rest is rounding of its mean


@dataclass(frozen=True)
class Curve:
    """One run: its losses at each evaluation, and the cost (steps, rows or seconds) until then."""

    losses: np.ndarray  # float64[E]
    costs: np.ndarray  # float64[E]
    final: float  # after the last epoch; infinite if the run diverged

    def cost_until(self, targets: np.ndarray) -> np.ndarray:
        """Return the cost of the first evaluation at or below each target; infinite: there is none,
        the run diverged, or the target is not finite.  # targets [B] -> [B]"""
        if not np.isfinite(self.final):
            return np.full(targets.shape, np.inf)
        known = np.where(np.isnan(self.losses), np.inf, self.losses)
        first = np.searchsorted(-np.minimum.accumulate(known), -targets, side="left")
        costs = np.append(self.costs, np.inf)[first]
        return np.where(np.isfinite(targets), costs, np.inf)


@dataclass(frozen=True)
class Races:
    """The runs of all entrants on one workload, over the same seeds."""

    curves: Sequence[Sequence[Curve]]  # [S][n]
    target: float | None  # a loss; None: it follows from the runs
    relax: float  # the share of its absolute value by which a target that follows is relaxed

    @property
    def num_seeds(self) -> int:
        return len(self.curves[0])

    @property
    def runs(self) -> np.ndarray:
        """The numbers of the runs, counted entrant by entrant.  # int64[1, S, n]"""
        return np.arange(len(self.curves) * self.num_seeds).reshape(1, len(self.curves), -1)

    def targets(self, runs: np.ndarray) -> np.ndarray:
        """Return the target: c + relax |c|, where c is the lowest median of an entrant's final
        losses. The median of an even number of seeds is the larger one of the middle two, so that
        at least half of the best entrant's runs end at c or below.  # runs [B, S, n] -> [B]"""
        if self.target is not None:
            return np.full(len(runs), self.target)
        finals = np.array([curve.final for curves in self.curves for curve in curves])[runs]
        lowest = np.sort(finals, axis=-1)[..., self.num_seeds // 2].min(axis=-1)
        return np.asarray(lowest + self.relax * np.abs(lowest))

    def costs(self, runs: np.ndarray) -> np.ndarray:
        """Return each entrant's median cost until the target.  # runs [B, S, n] -> [B, S]"""
        return np.asarray(np.median(self.run_costs(runs), axis=-1))

    def run_costs(self, runs: np.ndarray) -> np.ndarray:
        """Return each run's cost until the target.  # runs [B, S, n] -> [B, S, n]"""
        targets = self.targets(runs)
        by_run = np.stack(
            [curve.cost_until(targets) for curves in self.curves for curve in curves], axis=-1
        )
        taken = np.take_along_axis(by_run, runs.reshape(len(runs), -1), axis=-1)
        return np.asarray(taken.reshape(runs.shape))


def ratios(costs: np.ndarray) -> np.ndarray:
    """Return r = t / min over the entrants of t; infinite where t is.  # [..., S] -> [..., S]"""
    least = costs.min(axis=-1, keepdims=True)
    reached = np.isfinite(costs)
    return np.where(reached, costs / np.where(np.isfinite(least), least, 1.0), np.inf)


def profile(own_ratios: np.ndarray, tau: float) -> float:
    """Return rho(tau), the share of the workloads on which an entrant's ratio is at most tau (Dolan
    and More 2002).  # own_ratios [W]"""
    return float(np.mean(own_ratios <= tau))


def stairs(own_ratios: np.ndarray) -> list[tuple[float, float]]:
    """Return the corners (tau, rho) of the profile from 1 to R_MAX.  # own_ratios [W]"""
    inside = sorted({float(ratio) for ratio in own_ratios if 1 < ratio < R_MAX})
    rises = [1.0, *inside]
    corners = [(1.0, profile(own_ratios, 1.0))]
    for before, tau in pairwise(rises):
        corners += [(tau, profile(own_ratios, before)), (tau, profile(own_ratios, tau))]
    return [*corners, (R_MAX, profile(own_ratios, rises[-1]))]


def credits(all_ratios: np.ndarray) -> np.ndarray:
    """Return (R - r) / (R - 1), at least 0, with R = R_MAX: 1 / (R - 1) times the integral of the
    step at r from 1 to R."""
    return np.asarray(np.clip((R_MAX - all_ratios) / (R_MAX - 1), 0.0, 1.0))


def scores(all_ratios: np.ndarray) -> np.ndarray:
    """Return 1 / (R - 1) times the integral of rho from 1 to R = R_MAX, which is the mean of the
    workloads' credits.  # [..., W, S] -> [..., S]"""
    return np.asarray(credits(all_ratios).mean(axis=-2))


def seed_scores(races: Sequence[Races], runs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over the workloads of the mean credit of their seeds: each seed is a race of
    its own. One run changes it, where a median over few seeds stays the same.  # -> [B, S]"""
    each = [
        credits(ratios(race.run_costs(drawn).swapaxes(-1, -2))).mean(axis=-2)
        for race, drawn in zip(races, runs, strict=True)
    ]
    return np.asarray(np.mean(each, axis=0))


def seed_intervals(races: Sequence[Races]) -> list[tuple[float, float]] | None:
    """Return the 95 % intervals of `seed_scores`; None if a workload has one seed.

    A score is a mean of credits from 0 to 1, many of them 0 or 1, over the seeds of several
    workloads: a proportion in strata. Its variance v is that of the seeds within the workloads. The
    interval is Jeffreys' for m (1 - m) / v runs, with m the score: Korn and Graubard (1998),
    "Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data". These are at most the runs that there are, so equal credits of all seeds do
    not give a single number.
    """
    if min(race.num_seeds for race in races) < 2:
        return None
    each = [credits(ratios(race.run_costs(race.runs)[0].T)) for race in races]  # [n, S]
    means = np.mean([own.mean(axis=0) for own in each], axis=0)
    variances = sum(own.var(axis=0, ddof=1) / len(own) for own in each) / len(each) ** 2
    num = sum(race.num_seeds for race in races)
    free = num - len(races)
    return [
        _of_proportion(float(mean), float(variance), num, free)
        for mean, variance in zip(means, np.asarray(variances), strict=True)
    ]


def _of_proportion(mean: float, variance: float, num: int, free: int) -> tuple[float, float]:
    """Return Jeffreys' 95 % interval of a proportion, for as many of `num` runs as the variance,
    which has `free` degrees of freedom, stands for."""
    from scipy.special import betaincinv, stdtrit

    runs = float(num)
    if variance > 0:
        unsure = (stdtrit(num - 1, 0.975) / stdtrit(free, 0.975)) ** 2
        runs = min(runs, mean * (1 - mean) / variance * unsure)
    hits, others = mean * runs + 0.5, (1 - mean) * runs + 0.5
    low = float(betaincinv(hits, others, 0.025)) if mean > 0 else 0.0
    high = float(betaincinv(hits, others, 0.975)) if mean < 1 else 1.0
    return min(low, mean), max(high, mean)


def p_of_lead(races: Sequence[Races], a: int, b: int) -> float:
    """Return the two-sided p that entrants a and b are equal, where a has the better score.

    It is that of a permutation test of the difference of `seed_scores`: if a and b are equal,
    exchanging their runs on any seed of any workload changes nothing. Targets that follow from the
    runs follow from the exchanged ones. p is 1 if b is ahead seed by seed.
    """
    num_seeds = [race.num_seeds for race in races]
    ends = np.cumsum(num_seeds)[:-1]

    def lead(signs: np.ndarray, axis: int) -> np.ndarray:
        swapped = np.split(np.atleast_2d(signs) < 0, ends, axis=-1)
        runs = [
            _exchanged(race.runs[0], a, b, own) for race, own in zip(races, swapped, strict=True)
        ]
        found = seed_scores(races, runs)
        return np.round(found[:, a] - found[:, b], DIGITS).reshape(signs.shape[:-1])

    as_they_are = np.ones(sum(num_seeds))
    if lead(as_they_are, axis=-1) <= 0:
        return 1.0
    return sign_flip_p(as_they_are, lead)


def _exchanged(runs: np.ndarray, a: int, b: int, swapped: np.ndarray) -> np.ndarray:
    """Exchange the runs of two entrants where swapped is true.

    Shapes: runs [S, n], swapped [B, n] -> [B, S, n].
    """
    drawn = np.repeat(runs[None], len(swapped), axis=0)
    drawn[:, a] = np.where(swapped, runs[b], runs[a])
    drawn[:, b] = np.where(swapped, runs[a], runs[b])
    return drawn
