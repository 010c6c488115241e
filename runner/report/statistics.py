"""Test whether a difference between groups of runs is more than the seeds' noise.

Runs with the same seed share first weights and batches, so groups are compared in pairs, seed by
seed. scipy.special has the distributions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

LEVEL = 0.05  # significance level of all comparisons together
POWER = 0.8  # the probability that the suggested number of seeds finds the observed difference
NUM_DRAWS = 9_999  # of a bootstrap, and of a permutation test with more permutations
_NUM_DRAWS = 20_000  # for probabilities; their standard error is at most 0.0036
_FLOAT32 = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Summary:
    """Mean, deviation and interval of one group's values over its seeds."""

    num: int
    mean: float
    sd: float | None  # with n - 1; None for one value
    interval: tuple[float, float] | None  # 95 % of the mean: Student's t, n - 1 degrees of freedom


@dataclass(frozen=True)
class Paired:
    """Compares two groups a and b, over the seeds that both have."""

    num: int
    difference: float  # mean of a - b; NaN without a seed in common
    interval: tuple[float, float] | None  # 95 % of the difference; None: unknown
    p_raw: float | None  # two-sided, of Student's paired test; None: unknown
    p: float | None  # with Holm's correction for all comparisons
    more_seeds: int | None  # needed to find such a difference; 0: it is found; None: unknown
    p_equivalent: float | None = None  # that the difference is within the margin, with Holm's
    p_signs_raw: float | None = None  # two-sided, of the sign-flip test; None: not made
    p_signs: float | None = None  # with Holm's correction for all comparisons

    @property
    def is_real(self) -> bool:
        return self.p is not None and self.p < LEVEL

    @property
    def is_real_by_signs(self) -> bool:
        return self.p_signs is not None and self.p_signs < LEVEL

    @property
    def is_equivalent(self) -> bool:
        return self.p_equivalent is not None and self.p_equivalent < LEVEL


def summary(values: Sequence[float]) -> Summary:
    from scipy import special

    num, mean = len(values), float(np.mean(values))
    if num < 2:
        return Summary(num, mean, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(special.stdtrit(num - 1, 0.975)) * sd / math.sqrt(num)
    return Summary(num, mean, sd, (mean - half, mean + half))


def compare(
    groups: Mapping[str, Mapping[Any, float]],
    resolution: float = 0.0,
    margin: float | None = None,
) -> dict[tuple[str, str], Paired]:
    """Compare every pair of groups; a group maps seeds to values. `resolution` is the step between
    the values that the metric can have (1 / rows for an accuracy), 0 for a continuous metric.

    p is that of scipy.stats.ttest_rel over the seeds that both groups have, but the standard
    deviation s of the differences is at least the resolution: t = sqrt(n) mean / max(s,
    resolution). A few differences of a count are often equal by chance; then a small s shows that
    the metric is coarse, not that the seeds agree. Sheppard's correction (1898) for grouped values
    holds on average over many values, but not for the s of two or three. With this bound, at most
    5 % of equal groups are called different for 2 to 5 seeds, whatever the noise, and power is lost
    only if the noise is below the resolution (tests/report/test_statistics.py simulates both).
    Equal differences of a continuous metric show that it has an unknown resolution: there is no p.

    Holm's correction (1979) is for all pairs, not only those with the best group, because that is
    chosen from the same values. The number of seeds needed is the smallest n for which the paired
    test, at LEVEL / number of comparisons, finds the observed standardised difference with
    probability POWER, from the noncentral t distribution.

    With a margin m, the difference is tested to be within it by two one-sided tests (Schuirmann
    1987): p_equivalent is the larger p of mean > -m and mean < m, with Holm's correction for all
    pairs.
    """
    pairs = {pair: _common(groups[pair[0]], groups[pair[1]]) for pair in combinations(groups, 2)}
    differences = {pair: a - b for pair, (a, b) in pairs.items()}
    deviations = {pair: _deviation(a, b, resolution) for pair, (a, b) in pairs.items()}
    raw = {pair: _p(differences[pair], deviations[pair]) for pair in pairs}
    corrected = holm({pair: p for pair, p in raw.items() if p is not None})
    within = {pair: _p_within(differences[pair], deviations[pair], margin) for pair in pairs}
    equivalent = holm({pair: p for pair, p in within.items() if p is not None})
    comparisons = {}
    for pair, values in differences.items():
        p, sd = corrected.get(pair), deviations[pair]
        mean = float(values.mean()) if len(values) else math.nan
        more = _more_seeds(mean, sd, len(values), p, len(corrected))
        interval = _interval(mean, sd, len(values))
        comparisons[pair] = Paired(
            len(values), mean, interval, raw[pair], p, more, equivalent.get(pair)
        )
    return comparisons


def probabilities_best(
    values: np.ndarray, mode: str, resolution: float = 0.0
) -> list[float] | None:
    """Return each group's probability that it has the best true mean; None for fewer than two
    seeds.  # values [groups, seeds]

    A draw of all means is mean + (z s + e r / sqrt(2)) / sqrt(n), with Student's t of n - 1 degrees
    of freedom. z s has the covariance of the seeds' values; e is independent noise for each group,
    with the resolution r, so that the deviation between two groups is at least r. This is the
    posterior under the prior of Geisser and Cornfield (1963); for a pair of groups it is that of
    Student's paired test, so with r = 0 the better one of two groups has probability 1 - p / 2. The
    draws are always the same. Groups that tie in a draw share it.
    """
    num_groups, num = values.shape
    if num < 2:
        return None
    draw = np.random.default_rng(0)
    mean = values.mean(axis=1)
    seeds = (
        draw.standard_normal((_NUM_DRAWS, num)) @ (values - mean[:, None]).T / math.sqrt(num - 1)
    )
    own = draw.standard_normal((_NUM_DRAWS, num_groups)) * resolution / math.sqrt(2)
    scale = np.sqrt((num - 1) / draw.chisquare(num - 1, (_NUM_DRAWS, 1)) / num)
    means = (mean + (seeds + own) * scale) * (1 if mode == "max" else -1)
    largest = means.max(axis=1, keepdims=True)
    winners = means >= largest - 1e-12 * np.abs(largest)  # equal up to rounding of the sums
    return [float(share) for share in (winners / winners.sum(axis=1, keepdims=True)).mean(axis=0)]


def holm(
    p_values: Mapping[tuple[str, str], float], num: int | None = None
) -> dict[tuple[str, str], float]:
    """Apply Holm's correction: the i-th smallest p of m, i from 1, becomes the largest so far of
    min(1, (m - i + 1) p). `num` is m if only some of the tests are given: the others count as if
    their p were larger, which is careful."""
    adjusted, largest, most = {}, 0.0, len(p_values) if num is None else num
    for i, (pair, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (most - i) * p))
        adjusted[pair] = largest
    return adjusted


def sign_flip_p(values: np.ndarray, statistic: Callable[..., np.ndarray]) -> float:
    """Return the two-sided p of a statistic of values that have either sign with equal chance, by
    scipy.stats.permutation_test. It is exact for up to 13 values; more have NUM_DRAWS random
    signs. `statistic` takes values [..., n] and an axis."""
    from scipy.stats import permutation_test

    found = permutation_test(
        (values,),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=NUM_DRAWS,
        batch=1_000,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def by_signs(
    groups: Mapping[str, Mapping[Any, float]], best: str
) -> dict[str, tuple[float, float]]:
    """Test the difference of each group to `best` without assuming that differences are normal:
    label -> raw p, p with Holm's correction for all pairs. Groups with fewer than two seeds in
    common with the best are left out.

    If two groups are equal, each seed's difference has either sign with equal chance, whatever the
    distribution (Fisher 1935). The statistic is the mean difference.
    """
    raw = {}
    for label in groups:
        a, b = _common(groups[label], groups[best])
        if label != best and len(a) > 1 and np.isfinite([a, b]).all():
            raw[best, label] = sign_flip_p(a - b, np.mean)
    corrected = holm(raw, len(groups) * (len(groups) - 1) // 2)
    return {label: (p, corrected[best, label]) for (_, label), p in raw.items()}


def smallest_p(num: int) -> float:
    """Return the smallest p that `sign_flip_p` can give for `num` values: of all 2^num equally
    likely signs, two are as extreme as the most extreme ones."""
    return min(1.0, 2.0 / min(2**num, NUM_DRAWS + 1))


def power(effect: float, num: int, level: float) -> float:
    """Return the power of the two-sided paired t test for `num` pairs and a difference of `effect`
    standard deviations of the differences."""
    from scipy import special

    critical = special.stdtrit(num - 1, 1 - level / 2)
    shift = effect * math.sqrt(num)
    below, missed = special.nctdtr(num - 1, shift, [-critical, critical])
    return float(1 - missed + np.nan_to_num(below))  # NaN means a tail below 1e-16


def seeds_needed(effect: float, level: float, largest: int = 10_000) -> int | None:
    """Return the smallest number of pairs with a power of POWER; None if above `largest`."""
    if not effect or power(effect, largest, level) < POWER:
        return None
    low, high = 2, largest
    while low < high:
        middle = (low + high) // 2
        if power(effect, middle, level) < POWER:
            low = middle + 1
        else:
            high = middle
    return low


def _common(a: Mapping[Any, float], b: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    seeds = sorted(a.keys() & b.keys())
    return np.array([a[seed] for seed in seeds]), np.array([b[seed] for seed in seeds])


def _deviation(a: np.ndarray, b: np.ndarray, resolution: float) -> float | None:
    """Return the standard deviation of the differences, at least the resolution; None if unknown.

    Continuous metrics come from float32 outputs. Differences below this precision count as equal.
    """
    if len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    sd = float((a - b).std(ddof=1))
    if resolution:
        return max(sd, resolution)
    return sd if sd > _FLOAT32 * float(np.abs([a, b]).max()) else None


def _p(differences: np.ndarray, sd: float | None) -> float | None:
    from scipy import special

    if len(differences) > 1 and not differences.any():
        return 1.0
    if sd is None:
        return None
    t = float(differences.mean()) / sd * math.sqrt(len(differences))
    return float(2 * special.stdtr(len(differences) - 1, -abs(t)))


def _p_within(differences: np.ndarray, sd: float | None, margin: float | None) -> float | None:
    """Return the larger p of two one-sided tests, that the mean is > -margin and < margin."""
    from scipy import special

    if margin is None or len(differences) < 2:
        return None
    if sd is None:
        return None if differences.any() else 0.0
    t = (margin - abs(float(differences.mean()))) / sd * math.sqrt(len(differences))
    return float(special.stdtr(len(differences) - 1, -t))


def deviations(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the standard deviations between folds and between the seeds of a fold, of values with
    a row of the same number of seeds for each fold.  # values [folds, seeds]

    The estimates of the one-way analysis of variance with random effects: MSW, the mean variance
    within folds, and (MSB - MSW) / number of seeds between them, at least 0, where MSB is the
    variance of the folds' means times the number of seeds.
    """
    table = np.array(values)
    within = float(table.var(axis=1, ddof=1).mean())
    between = float(table.mean(axis=1).var(ddof=1)) - within / table.shape[1]
    return math.sqrt(max(0.0, between)), math.sqrt(within)


def _interval(mean: float, sd: float | None, num: int) -> tuple[float, float] | None:
    from scipy import special

    if sd is None:
        return None
    half = float(special.stdtrit(num - 1, 0.975)) * sd / math.sqrt(num)
    return mean - half, mean + half


def _more_seeds(
    mean: float, sd: float | None, num: int, p: float | None, num_comparisons: int
) -> int | None:
    if p is None or sd is None:
        return None
    if p < LEVEL:
        return 0
    needed = seeds_needed(abs(mean) / sd, LEVEL / num_comparisons)
    return None if needed is None else max(1, needed - num)
