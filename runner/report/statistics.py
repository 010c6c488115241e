"""Is a difference between groups of runs more than the seeds' noise? Runs of one seed share first weights and batches, so
groups are compared in pairs, seed by seed. scipy.stats has the distributions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

LEVEL = 0.05  # of all comparisons together
POWER = 0.8  # with which the seeds that are asked for would find the difference that was seen


@dataclass(frozen=True)
class Summary:
    """Of one group's values over its seeds."""

    num: int
    mean: float
    sd: float | None  # with n - 1; None of one value
    interval: tuple[float, float] | None  # 95 %, of the mean, Student's t with n - 1 degrees of freedom


@dataclass(frozen=True)
class Paired:
    """Two groups, over the seeds that both have."""

    num: int
    difference: float  # mean of a - b
    p: (
        float | None
    )  # two-sided, of Student's paired test, corrected by Holm for all comparisons; None: it cannot be known
    more_seeds: int | None  # that would find such a difference; 0 if these do; None: it cannot be known

    @property
    def is_real(self) -> bool:
        return self.p is not None and self.p < LEVEL


def summary(values: Sequence[float]) -> Summary:
    from scipy import stats

    num, mean = len(values), float(np.mean(values))
    if num < 2:
        return Summary(num, mean, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, num - 1)) * sd / math.sqrt(num)
    return Summary(num, mean, sd, (mean - half, mean + half))


def compare(groups: Mapping[str, Mapping[int, float]]) -> dict[tuple[str, str], Paired]:
    """Every pair of groups, each seed -> value.

    The p of scipy.stats.ttest_rel over the seeds that both have. Holm (1979), over all pairs and not only those with the
    best: it is chosen from the same values. Seeds needed: the least n at which the paired test at the level LEVEL over the
    number of comparisons finds the standardised difference that was seen with probability POWER, from the noncentral t.
    """
    pairs = list(combinations(groups, 2))
    differences = {(a, b): _differences(groups[a], groups[b]) for a, b in pairs}
    raw = {pair: _p(values) for pair, values in differences.items()}
    corrected = holm({pair: p for pair, p in raw.items() if p is not None})
    found = {}
    for pair, values in differences.items():
        p = corrected.get(pair)
        mean = float(values.mean()) if len(values) else math.nan
        found[pair] = Paired(len(values), mean, p, _more_seeds(values, p, len(corrected)))
    return found


def holm(p_values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """The i-th smallest of m becomes the largest so far of min(1, (m - i + 1) p), i from 1."""
    adjusted, largest = {}, 0.0
    for i, (pair, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p))
        adjusted[pair] = largest
    return adjusted


def power(effect: float, num: int, level: float) -> float:
    """Of the two-sided paired t test of `num` pairs for a difference of `effect` standard deviations of the differences."""
    from scipy import stats

    critical = stats.t.ppf(1 - level / 2, num - 1)
    shift = effect * math.sqrt(num)
    return float(stats.nct.sf(critical, num - 1, shift) + stats.nct.cdf(-critical, num - 1, shift))


def seeds_needed(effect: float, level: float, largest: int = 10_000) -> int | None:
    """The least number of pairs with a power of POWER; None: more than `largest`."""
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


def _differences(a: Mapping[int, float], b: Mapping[int, float]) -> np.ndarray:
    return np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def _p(differences: np.ndarray) -> float | None:
    from scipy import stats

    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    if differences.std() == 0:  # the same in each seed: the test would divide by it
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _more_seeds(differences: np.ndarray, p: float | None, num_comparisons: int) -> int | None:
    if p is None:
        return None
    if p < LEVEL:
        return 0
    sd = float(differences.std(ddof=1))
    needed = seeds_needed(abs(float(differences.mean())) / sd, LEVEL / num_comparisons) if sd else None
    return None if needed is None else max(1, needed - len(differences))
