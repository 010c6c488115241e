"""Test while runs come in which schedules are not the best: valid at every look.

Lower values are better here. Runs with the same seed share first weights and batches, so schedules
are compared by their differences, seed by seed. The tests are e-processes: nonnegative processes
that exceed 1 / a at any time with probability at most a if the hypothesis is true (Ville 1939), so
one may look after every seed and stop when one likes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runner.report.statistics import LEVEL

FIRST_LOOK = 3  # seeds that all schedules have before the first test
# The prior of a lead, in standard deviations of the difference of two runs: half-normal
# distributions, deviation -> weight. sqrt(2) is a lead of two deviations of a run; the wide one is
# for leads far beyond the noise, which a narrow one would need more seeds to believe.
_PRIOR = {math.sqrt(2): 0.9, 16.0: 0.1}
_OWN = 0.1  # weight of the test with a pair's own variance
_NOISY = 6.0  # a schedule is noisier than the others if its variance is this much of the median
_FLOAT32 = float(np.finfo(np.float32).eps)


def log_e(total: np.ndarray, squares: np.ndarray, num: int, df: int) -> np.ndarray:
    """Return log E for the hypothesis that the differences D have a mean of at most 0.

    # total, squares, result [any]
    total = sum of D over n = `num` seeds; squares = s^2 df, where s^2 estimates the variance of D
    with df degrees of freedom. For Q = squares + total^2 / n, m = df + 1, and a half-normal prior
    of deviation c, with R = Q - total^2 / (n + 1 / c^2),

        E = 2 T_m(total sqrt(m / (R (n + 1 / c^2)))) (1 + n c^2)^(-1/2) (R / Q)^(-m/2)

    with the distribution function T_m of Student's t; E is averaged over _PRIOR. This is the
    likelihood ratio of delta, the mean in standard deviations, under the prior, to delta = 0, both
    with the measure d sigma / sigma: the one-sided form of Lai's t-mixture (Lai 1976; Wang and
    Ramdas 2024, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
    variance"). It grows with the t-statistic, so it is valid for every mean below 0 too.
    """
    from scipy import special

    whole = squares + total**2 / num
    share = np.where(whole > 0, total**2 / (num * np.where(whole > 0, whole, 1.0)), 0.0)
    parts, m = [], df + 1
    for scale, weight in _PRIOR.items():
        spread = num * scale**2
        rest = 1 - share * spread / (1 + spread)
        t = np.sign(total) * np.sqrt(m * share * spread / (1 + spread) / rest)
        parts.append(math.log(2 * weight) + np.log(special.stdtr(m, t)) + _fit(rest, m, spread))
    return np.asarray(special.logsumexp(parts, axis=0))


def _fit(rest: Any, m: int, spread: float) -> Any:
    """Return log of (1 + n c^2)^(-1/2) (R / Q)^(-m/2), where spread = n c^2 and rest = R / Q."""
    return -0.5 * (math.log1p(spread) + m * np.log(rest))


def radius(squares: float, num: int, df: int, level: float = LEVEL) -> float:
    """Return the half width h of a confidence sequence for the mean of D: at all numbers of seeds
    together, the mean is within it with probability 1 - level. Infinite while nothing is excluded.

    It has all means that the two-sided t-mixture, with normal priors in place of half-normal ones,
    does not reject at this level. With the share q = total^2 / (n Q) at which it rejects, h^2 =
    squares q / ((1 - q) n).
    """
    from scipy import optimize, special

    def excess(share: float) -> float:
        spreads = {num * scale**2: weight for scale, weight in _PRIOR.items()}
        parts = [
            math.log(weight) + _fit(1 - share * spread / (1 + spread), df + 1, spread)
            for spread, weight in spreads.items()
        ]
        return float(special.logsumexp(parts)) + math.log(level)

    if excess(1.0) <= 0:
        return math.inf
    share = float(optimize.brentq(excess, 0.0, 1.0, xtol=1e-15))
    return math.sqrt(squares * share / ((1 - share) * num))


@dataclass(frozen=True)
class Pair:
    """The difference of two schedules over the seeds that both have."""

    difference: float
    interval: tuple[float, float] | None  # of a confidence sequence; None: unbounded


@dataclass(frozen=True)
class Dropped:
    """A schedule that is not the best."""

    number: int
    num_seeds: int  # after which it was dropped
    by: int  # the schedule with the most evidence against it
    p: float


@dataclass
class Race:
    """The tests of a race between `num` schedules.

    Assumes that the difference of two runs of a seed is normal, independent from seed to seed. Two
    tests of each pair share the level: one with the pair's own variance (weight _OWN), and one that
    assumes the same variance for all pairs, with the degrees of freedom of all schedules at the
    first look, then those of the pair alone. Which other schedules are still there does not change
    a pair's tests, so the bound holds for every way of dropping them. Schedules differ in noise, so
    the second test leaves out those that were much noisier than the others at the first look, and
    takes the pair's own variance if that is larger. Leaving some out by chance makes the variance
    of the others a little too small; benchmarks.answers simulates that the bound is kept.

    Schedule b is dropped when E(i, b) >= k (G - 1) / LEVEL for a schedule i that is still there,
    where E(i, b) tests that b is not worse than i, G = `num`, and k of them have not been dropped.
    If m schedules are equally the best, then k >= m until one of them is dropped, and the
    probability that any of these is dropped at any time is at most the sum over its G - 1 rivals
    and over the m of LEVEL / (m (G - 1)), LEVEL (Holm 1979, with e-processes).
    """

    num: int
    resolution: float = 0.0  # step between the values of a metric that counts rows
    p: dict[int, float] = field(default_factory=dict)  # least so far, that a schedule is the best
    dropped: dict[int, Dropped] = field(default_factory=dict)
    _first: np.ndarray | None = None  # residuals of the first look  # [schedules, FIRST_LOOK]
    _noisy: frozenset[int] = frozenset()  # schedules with pairs that have no common variance

    def look(self, values: Mapping[int, Sequence[float]]) -> list[Dropped]:
        """Test with the values of the schedules that are still there, [seeds] each, and return
        those that are dropped now."""
        numbers, num = [*values], len(next(iter(values.values())))
        if len(numbers) < 2 or num < FIRST_LOOK:
            return []
        table = np.array([values[number] for number in numbers], float)
        if self._first is None:
            self._begin(numbers, table[:, :FIRST_LOOK])
        noisy = np.array([number in self._noisy for number in numbers])
        differences = table[:, None] - table  # [worse, better, seeds]
        variances = self._variances(differences, float(np.abs(table).max()), noisy[:, None] | noisy)
        evidence = _evidence(differences.sum(axis=-1), num, variances)
        factor = (self.num - len(self.dropped)) * (self.num - 1)
        found = []
        for row, number in enumerate(numbers):
            p = _p(factor, float(evidence[row].max()))
            self.p[number] = min(p, self.p.get(number, 1.0))
            if p < LEVEL:
                found.append(Dropped(number, num, numbers[int(evidence[row].argmax())], p))
        self.dropped |= {each.number: each for each in found}
        return found

    def pair(self, values: Mapping[int, Sequence[float]]) -> Pair:
        """Return the difference of two schedules, the first minus the second, of values of the same
        seeds."""
        a, b = (np.array(each, float) for each in values.values())
        mean, num = float((a - b).mean()), len(a)
        if self._first is None or num < FIRST_LOOK:
            return Pair(mean, None)
        half = min(
            radius(float(squares), num, df, LEVEL * weight)
            for weight, squares, df in self._of_pair(values)
        )
        return Pair(mean, (mean - half, mean + half) if math.isfinite(half) else None)

    def p_within(self, values: Mapping[int, Sequence[float]], margin: float) -> float:
        """Return p of the hypothesis that the difference of two schedules has a mean beyond -margin
        to margin, corrected for all pairs."""
        a, b = (np.array(each, float) for each in values.values())
        num = len(a)
        if self._first is None or num < FIRST_LOOK:
            return 1.0
        totals = num * margin + np.array([1, -1]) * (a - b).sum()
        least = float(_evidence(totals, num, self._of_pair(values)).min())
        return _p(self.num * (self.num - 1) / 2, least)

    def _begin(self, numbers: Sequence[int], table: np.ndarray) -> None:
        """Find the schedules that are much noisier than the others at the first look, by their sums
        of squared residuals; keep the residuals of the others."""
        squares = (_residuals(table) ** 2).sum(axis=1)
        median = np.sort(squares)[(len(squares) - 1) // 2]
        is_noisy = squares > _NOISY * max(median, self.resolution**2)
        self._noisy = frozenset(n for n, noisy in zip(numbers, is_noisy, strict=True) if noisy)
        self._first = _residuals(table[~is_noisy])

    def _of_pair(self, values: Mapping[int, Sequence[float]]) -> list[tuple[float, Any, int]]:
        a, b = (np.array(each, float) for each in values.values())
        is_noisy = np.array(any(number in self._noisy for number in values))
        return self._variances(a - b, float(np.abs([a, b]).max()), is_noisy)

    def _variances(
        self, differences: np.ndarray, largest: float, is_noisy: np.ndarray
    ) -> list[tuple[float, Any, int]]:
        """Return weight, s^2 df and df of both tests.

        # differences [..., seeds], is_noisy and s^2 [...]
        The first look's table has a residual sum of squares r, after means of schedules and seeds,
        with (G - 1) (f - 1) degrees of freedom for f = FIRST_LOOK; 2 r is that of a difference. The
        pair's own part of it is replaced by that of all its seeds. The deviation is at least the
        metric's resolution, and float32's for values up to `largest`.
        """
        assert self._first is not None
        least = max(self.resolution, _FLOAT32 * largest) ** 2
        own_df = differences.shape[-1] - 1
        own, of_first = (
            ((part - part.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
            for part in (differences, differences[..., :FIRST_LOOK])
        )
        alone = np.maximum(own, own_df * least)
        if len(self._first) < 3:
            return [(1.0, alone, own_df)]
        others = np.maximum(2 * (self._first**2).sum() - of_first, 0.0)
        df = (len(self._first) - 2) * (FIRST_LOOK - 1) + own_df
        common = np.maximum(others + own, df * alone / own_df)
        common = np.where(is_noisy, math.inf, common)  # no evidence
        return [(1 - _OWN, common, df), (_OWN, alone, own_df)]


def _evidence(
    totals: np.ndarray, num: int, variances: Sequence[tuple[float, Any, int]]
) -> np.ndarray:
    """Return log E of each total: that of the test with more evidence, by their weights."""
    tests = [
        math.log(weight) + log_e(totals, squares, num, df) for weight, squares, df in variances
    ]
    return np.asarray(np.max(tests, axis=0))


def _residuals(table: np.ndarray) -> np.ndarray:
    """Return what is left of the values after the means of schedules and seeds."""
    within = table - table.mean(axis=1, keepdims=True)
    return np.asarray(within - within.mean(axis=0))


def _p(factor: float, log_e: float) -> float:
    return min(1.0, factor * math.exp(-min(log_e, 700.0)))


def replay(values: np.ndarray, most_runs: int, resolution: float = 0.0) -> tuple[Race, int, int]:
    """Race with known values until one schedule is left, or until a further seed of those that are
    left would exceed `most_runs`. Return the race, the runs, and the seeds.

    # values [schedules, seeds]
    """
    race, left = Race(len(values), resolution), [*range(len(values))]
    num_seeds, num_runs = FIRST_LOOK, FIRST_LOOK * len(values)
    while True:
        race.look({number: values[number, :num_seeds].tolist() for number in left})
        left = [number for number in left if number not in race.dropped]
        is_over = num_runs + len(left) > most_runs or num_seeds == values.shape[1]
        if len(left) == 1 or is_over:
            return race, num_runs, num_seeds
        num_seeds, num_runs = num_seeds + 1, num_runs + len(left)
