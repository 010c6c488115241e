"""The value of a winner that the same runs have chosen.

The best of several groups is partly so because it was lucky, so its mean is too good. If the groups
are far apart there was nothing to choose; if they are equal, the best mean of k is that of the
luckiest. The interval here is for the groups that could be the best one, those that are not told
from it: a simultaneous interval over them, after Zrnic and Fithian (2024), "Locally simultaneous
inference". Only its worse end is that of the luckiest group, because luck makes no winner worse.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from runner.report.statistics import LEVEL

_NUM_DRAWS = 100_000  # the standard error of a probability of 0.03 is 0.0005


@dataclass(frozen=True)
class WinnersValue:
    """The mean of the best group, with what its choice makes of it."""

    num_groups: int  # that it was chosen among: itself, and those that are not told from it
    mean: float
    luck: float  # by how much the best mean is too good on average, if these groups are equal
    interval: tuple[float, float]  # 95 % of the true mean of whichever group is the best


def winners_value(values: np.ndarray, mode: str) -> WinnersValue | None:
    """Return the value of the first group, the best of k by its mean; None for one seed.

    # values [k, n]
    The interval reaches `ends` standard errors s / sqrt(n) from the mean, with the deviation s of
    the best group. The luck is h e / sqrt(n), where h is the expected maximum of k standard normals
    and e^2 the residual mean square of the values after the means of groups and seeds: the noise of
    a seed that all groups share takes no part in the choice. Its share of the variance is 1 - e^2 /
    v, with v the mean variance of the groups.
    """
    num_groups, num = values.shape
    if num < 2:
        return None
    variances = values.var(axis=1, ddof=1)
    own, shared = 0.0, 1.0
    if num_groups > 1:
        rows, columns = values.mean(axis=1, keepdims=True), values.mean(axis=0)
        squares = float(((values - rows - columns + values.mean()) ** 2).sum())
        own = squares / ((num_groups - 1) * (num - 1))
        whole = float(variances.mean())
        shared = min(max(1 - own / whole, 0.0), 1.0) if whole > 0 else 1.0
    near, far = ends(num_groups, num, math.floor(100 * shared) / 100)
    mean, error = float(values[0].mean()), math.sqrt(float(variances[0]) / num)
    worse, better = mean + far * error, mean - near * error
    if mode == "max":
        worse, better = mean - far * error, mean + near * error
    luck = expected_maximum(num_groups) * math.sqrt(own / num)
    return WinnersValue(num_groups, mean, luck, (min(worse, better), max(worse, better)))


@lru_cache(maxsize=1024)
def ends(num_groups: int, num: int, shared: float) -> tuple[float, float]:
    """Return the reach of the interval in standard errors, to the better and to the worse side.

    t is Student's statistic of the luckiest of k equal groups with n seeds, of which the share r of
    the variance is noise that all groups have in common: t = (sqrt(r) z + sqrt(1 - r) m) / u, with
    z standard normal, m the maximum of k of them, and u^2 chi-squared with n - 1 degrees of freedom
    over these. The reach to the worse side is the quantile of t at 1 - a, that to the better side
    the one of Student's t. a is the largest level, from 2.5 % on, at which the interval misses the
    true mean in at most 5 % of cases in both extremes: if the k groups are equal, and if the best
    is far ahead, though not told from the others. The draws are always the same.
    """
    from scipy import special

    df = num - 1
    if num_groups < 2:
        reach = float(special.stdtrit(df, 1 - LEVEL / 2))
        return reach, reach
    draw = np.random.default_rng(0)
    luckiest = special.ndtri(draw.random(_NUM_DRAWS) ** (1 / num_groups))
    common = draw.standard_normal(_NUM_DRAWS)
    u = np.sqrt(draw.chisquare(df, _NUM_DRAWS) / df)
    t = np.sort((math.sqrt(shared) * common + math.sqrt(1 - shared) * luckiest) / u)

    def reaches(level: float) -> tuple[float, float]:
        return float(special.stdtrit(df, 1 - level)), float(np.quantile(t, 1 - level))

    def missed(level: float) -> float:
        near, far = reaches(level)
        if_equal = level + float(np.searchsorted(t, -near)) / _NUM_DRAWS
        return max(if_equal, level + float(special.stdtr(df, -far)))

    low, high = LEVEL / 2, LEVEL
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if missed(middle) <= LEVEL else (low, middle)
    return reaches(low)


@lru_cache(maxsize=64)
def expected_maximum(num: int) -> float:
    """Return the expected maximum of `num` standard normals: the integral of 1 - F^n - (1 - F)^n
    over the positive numbers, for the distribution function F (David and Nagaraja 2003, 3.1)."""
    from scipy import integrate, special

    def integrand(x: float) -> float:
        return float(1 - special.ndtr(x) ** num - special.ndtr(-x) ** num)

    return float(integrate.quad(integrand, 0, 12)[0])
