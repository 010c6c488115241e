"""Tests of differences between groups of runs, against scipy's tests, published tables, formulas by
hand, and simulations."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from runner.report import statistics
from runner.report.statistics import (
    Paired,
    by_signs,
    compare,
    deviations,
    holm,
    power,
    probabilities_best,
    seeds_needed,
    smallest_p,
    summary,
)
from tests.rows import slow_but


def test_a_summary_is_that_of_a_table_of_student_s_t() -> None:
    """n = 5: t(0.975, 4) = 2.776; 1 ... 5 have the mean 3 and the deviation sqrt(2.5)."""
    found = summary([1, 2, 3, 4, 5])
    assert (found.num, found.mean) == (5, 3)
    assert found.sd == pytest.approx(2.5**0.5)
    # its digits
    assert found.interval == pytest.approx((3 - 2.776 * 0.5**0.5, 3 + 2.776 * 0.5**0.5), abs=1e-3)
    assert (summary([7.0]).sd, summary([7.0]).interval) == (None, None)


def test_a_summary_of_two_values_has_an_interval_with_one_degree_of_freedom() -> None:
    """1 and 2: the mean 1.5, the deviation sqrt(1/2); t(0.975, 1) = 12.7062, to its digits."""
    found = summary([1.0, 2.0])
    assert (found.num, found.mean) == (2, 1.5)
    assert found.sd == pytest.approx(0.5**0.5, rel=1e-15)
    assert found.interval == pytest.approx((1.5 - 12.7062 / 2, 1.5 + 12.7062 / 2), rel=1e-5)


@pytest.mark.parametrize(
    ("p", "expected"), [(None, False), (0.0, True), (0.0499, True), (0.05, False), (0.9, False)]
)
def test_a_difference_is_real_where_p_is_known_and_below_5_of_100(
    p: float | None, expected: bool
) -> None:
    assert Paired(3, 0.1, None, p, p, None).is_real is expected


def test_p_is_that_of_the_paired_test_over_the_seeds_in_common() -> None:
    a, b = {0: 0.30, 1: 0.35, 2: 0.32, 4: 0.9}, {1: 0.30, 0: 0.29, 2: 0.28, 3: 0.1}
    found = compare({"a": a, "b": b})["a", "b"]
    expected = stats.ttest_rel([a[0], a[1], a[2]], [b[0], b[1], b[2]])
    assert found.num == 3
    assert found.difference == pytest.approx(0.1 / 3)
    assert found.p == pytest.approx(float(expected.pvalue), rel=1e-12)


def test_the_deviation_of_a_count_is_one_row_at_least() -> None:
    """Equal differences of one row in 256: t = sqrt(2) 1 / 1, whose tail with one degree of freedom
    is 1/2 - atan(t) / pi. Where the deviation is larger than a row, p is scipy's."""
    a, b = {0: 238 / 256, 1: 240 / 256}, {0: 239 / 256, 1: 241 / 256}
    found = compare({"a": a, "b": b}, resolution=1 / 256)["a", "b"]
    assert found.p == pytest.approx(1 - 2 * math.atan(2**0.5) / math.pi, rel=1e-12)
    half = 12.7062 / 2**0.5 / 256  # t(0.975, 1) = 12.7062, to its digits
    assert found.interval == pytest.approx((-1 / 256 - half, -1 / 256 + half), rel=1e-5)
    wide = {0: 0.1, 1: 0.2, 2: 0.15}, {0: 0.3, 1: 0.25, 2: 0.5}
    expected = stats.ttest_rel([*wide[0].values()], [*wide[1].values()])
    paired = compare(dict(zip("ab", wide, strict=True)), resolution=1 / 256)["a", "b"]
    assert (paired.p_raw, paired.p) == pytest.approx([expected.pvalue] * 2, rel=1e-12)
    assert paired.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)


def test_every_pair_of_groups_is_compared_once_in_their_order() -> None:
    """Three groups over four seeds: each pair is scipy's paired test, and Holm takes all three."""
    groups = {
        "a": [0.31, 0.33, 0.28, 0.36],
        "b": [0.30, 0.35, 0.30, 0.41],
        "c": [0.45, 0.50, 0.42, 0.51],
    }
    found = compare({name: dict(enumerate(values)) for name, values in groups.items()})
    assert [*found] == [("a", "b"), ("a", "c"), ("b", "c")]
    tests = {pair: stats.ttest_rel(groups[pair[0]], groups[pair[1]]) for pair in found}
    order = sorted(found, key=lambda pair: tests[pair].pvalue)
    for pair, it in found.items():
        assert it.num == 4
        difference = np.mean(groups[pair[0]]) - np.mean(groups[pair[1]])
        assert it.difference == pytest.approx(difference, rel=1e-12)
        assert it.p_raw == pytest.approx(tests[pair].pvalue, rel=1e-12)
        low, high = tests[pair].confidence_interval(0.95)
        assert it.interval == pytest.approx((low, high), rel=1e-9)
    largest = 0.0
    for pair, factor in zip(order, (3, 2, 1), strict=True):
        largest = max(largest, factor * tests[pair].pvalue)
        assert found[pair].p == pytest.approx(min(1.0, largest), rel=1e-12)
    assert [found[pair].more_seeds == 0 for pair in order] == [True, True, False]


def test_holm_s_correction_by_hand() -> None:
    """Four p in order, times 4, 3, 2, 1, none below the one before."""
    given = {("a", "b"): 0.01, ("a", "c"): 0.04, ("b", "c"): 0.03, ("c", "d"): 0.005}
    expected = {("c", "d"): 0.02, ("a", "b"): 0.03, ("b", "c"): 0.06, ("a", "c"): 0.06}
    assert holm(given) == pytest.approx(expected)


def test_holm_s_correction_stays_at_1() -> None:
    given = {("a", "b"): 0.9, ("a", "c"): 0.4, ("b", "c"): 0.0}
    assert holm(given) == {("b", "c"): 0.0, ("a", "c"): 0.8, ("a", "b"): 0.9}
    assert holm({("a", "b"): 0.7, ("a", "c"): 0.6}) == {("a", "c"): 1.0, ("a", "b"): 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize(("effect", "num"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_seeds_needed_are_those_of_the_tables(effect: float, num: int) -> None:
    """A paired t test, two-sided at 0.05, power 0.8: what G*Power gives for Cohen's small, medium
    and large effect."""
    assert seeds_needed(effect, 0.05) == num
    assert power(effect, num, 0.05) >= 0.8 > power(effect, num - 1, 0.05)


def test_the_power_of_a_difference_of_many_deviations() -> None:
    """Two pairs, 40 deviations, at 0.05 / 3: the normal tail beyond, averaged over the chi-square
    deviation by its 20,000 quantiles; 1e-4 is their step. The other tail is below 1e-16."""
    chi = np.sqrt(stats.chi2.ppf((np.arange(20_000) + 0.5) / 20_000, 1))
    critical = float(stats.t.ppf(1 - 0.05 / 6, 1))
    expected = stats.norm.sf(critical * chi - 40 * 2**0.5).mean()
    assert power(40, 2, 0.05 / 3) == pytest.approx(float(expected), abs=1e-4)


def by_quadrature(effect: float, num: int, level: float) -> float:
    """P(|T| > c), T = (Z + effect sqrt(num)) / (X / sqrt(nu)), Z standard normal, X chi with
    nu = num - 1 degrees of freedom: the normal's tails, averaged over X."""
    nu, shift = num - 1, effect * num**0.5
    critical = stats.t.isf(level / 2, nu)

    def tails(x: float) -> float:
        bound = critical * x / nu**0.5
        return (stats.norm.sf(bound - shift) + stats.norm.cdf(-bound - shift)) * stats.chi.pdf(
            x, nu
        )

    return float(integrate.quad(tails, 0, np.inf, epsabs=1e-12)[0])


@pytest.mark.parametrize("num", [2, 3, 10])
@pytest.mark.parametrize(("effect", "level"), [(0.0, 0.05), (0.3, 0.05), (1.2, 0.01), (-0.8, 0.2)])
def test_power_is_the_tails_of_the_noncentral_t(effect: float, num: int, level: float) -> None:
    """1e-8: the quadrature's and cdflib's error."""
    assert power(effect, num, level) == pytest.approx(by_quadrature(effect, num, level), abs=1e-8)
    if effect == 0:
        assert power(effect, num, level) == pytest.approx(level, abs=1e-8)


def test_no_more_than_ten_thousand_seeds_are_asked_for() -> None:
    """The difference that 10,000 seeds find with a power of 0.8, twenty parts in a million larger
    and smaller; one seed more changes it by fifty. No difference needs no number."""
    found = stats.t.isf(0.025, 9999)
    at = optimize.brentq(lambda shift: stats.nct.sf(found, 9999, shift) - 0.8, 1, 5, xtol=1e-10)
    assert seeds_needed(at / 100 * (1 + 2e-5), 0.05) == 10_000
    assert seeds_needed(at / 100 * (1 - 2e-5), 0.05) is None
    assert seeds_needed(0.0, 0.05) is None
    assert seeds_needed(1000.0, 0.05) == 2  # the fewest that have a deviation


def test_the_seeds_that_are_missing_are_counted_from_those_there_are() -> None:
    """Half a deviation needs 34 seeds (G*Power); two comparisons need more. p at the level has not
    found it, and asks for one more seed at least."""
    assert statistics._more_seeds(0.5, 1.0, 10, 0.14, 1) == 24
    assert statistics._more_seeds(-0.5, 1.0, 10, 0.14, 1) == 24
    assert statistics._more_seeds(1.0, 2.0, 10, 0.14, 1) == 24
    needed = next(n for n in range(34, 99) if by_quadrature(0.5, n, 0.025) >= 0.8)
    assert statistics._more_seeds(0.5, 1.0, 10, 0.14, 2) == needed - 10
    assert statistics._more_seeds(0.5, 1.0, 33, 0.05, 1) == 1
    assert statistics._more_seeds(0.5, 1.0, 90, 0.05, 1) == 1
    assert statistics._more_seeds(0.5, 1.0, 33, 0.0499, 1) == 0
    assert statistics._more_seeds(0.0, 1.0, 10, 1.0, 1) is None
    assert statistics._more_seeds(0.5, None, 10, 1.0, 1) is None
    assert statistics._more_seeds(0.5, 1.0, 10, None, 1) is None


def test_what_cannot_be_known_is_not_said() -> None:
    """One seed; a difference that is the same in every seed; none at all."""
    assert compare({"a": {0: 1.0}, "b": {0: 2.0}})["a", "b"].p is None
    assert compare({"a": {0: 1.0, 1: 2.0}, "b": {2: 1.0, 3: 2.0}})["a", "b"].p is None
    same = compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 1: 2.0}})["a", "b"]
    assert (same.p, same.is_real, same.more_seeds) == (1.0, False, None)
    equal = compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.5, 1: 2.5}})["a", "b"]
    assert (equal.difference, equal.p, equal.interval) == (-0.5, None, None)


@pytest.mark.parametrize("resolution", [0.0, 0.1])
def test_one_seed_or_none_in_common_tells_nothing_of_the_noise(resolution: float) -> None:
    one = compare({"a": {0: 1.0}, "b": {0: 1.0}}, resolution)["a", "b"]
    assert one == Paired(1, 0.0, None, None, None, None)
    none = compare({"a": {0: 1.0}, "b": {1: 1.0}}, resolution)["a", "b"]
    assert math.isnan(none.difference)
    assert (none.num, none.interval, none.p_raw, none.p) == (0, None, None, None)
    assert none.more_seeds is None


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_has_no_p(odd: float) -> None:
    for pair in (("a", "b"), ("b", "a")):
        values = {pair[0]: {0: 1.0, 1: odd, 2: 3.0}, pair[1]: {0: 1.5, 1: 2.0, 2: 1.0}}
        found = compare(values, 0.1)[pair]
        assert (found.num, found.interval, found.p_raw, found.p) == (3, None, None, None)


def test_differences_below_float32_s_precision_count_as_equal() -> None:
    """Deviations of the differences on either side of 2^-23 of the largest value, 4: the
    differences are d and -d, with the deviation sqrt(2) d."""
    bound = 4 * 2.0**-23 / 2**0.5
    for factor, is_known in ((0.99, False), (1.01, True)):
        d = bound * factor
        found = compare({"a": {0: -4.0 + d, 1: 1.0}, "b": {0: -4.0, 1: 1.0 + d}})["a", "b"]
        assert (found.p is not None) is is_known
        assert (found.interval is not None) is is_known


def test_of_two_groups_the_probability_to_be_best_is_one_minus_half_of_p() -> None:
    """To three standard errors of 20,000 draws."""
    a, b = np.array([0.31, 0.33, 0.28, 0.36]), np.array([0.30, 0.35, 0.30, 0.41])
    p = float(stats.ttest_rel(a, b).pvalue)
    found = probabilities_best(np.stack([a, b]), "min")
    assert found == pytest.approx([1 - p / 2, p / 2], abs=3 * (0.25 / 20_000) ** 0.5)
    assert probabilities_best(np.stack([a, a]), "max") == [0.5, 0.5]
    assert probabilities_best(np.ones((3, 1)), "max") is None


@pytest.mark.parametrize("resolution", [0.0, 0.05])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "values",
    [
        [[0.31, 0.38], [0.36, 0.35]],
        [[0.31, 0.33, 0.28], [0.33, 0.40, 0.28]],
        [[0.31, 0.33, 0.28, 0.36, 0.5], [0.33, 0.35, 0.31, 0.41, 0.49]],
    ],
)
def test_of_two_groups_the_better_one_is_best_with_the_probability_of_student_s_t(
    values: list[list[float]], mode: str, resolution: float
) -> None:
    """The mean difference over sqrt((s^2 + r^2) / n), s its deviation, r the resolution. Four
    standard errors of 20,000 draws; each share is a count of them."""
    d = np.subtract(*values)
    num = len(d)
    t = d.mean() / ((d.var(ddof=1) + resolution**2) / num) ** 0.5
    first = float(stats.t.cdf(t if mode == "max" else -t, num - 1))
    found = probabilities_best(np.array(values), mode, resolution)
    assert found is not None
    error = (first * (1 - first) / 20_000) ** 0.5
    assert found == pytest.approx([first, 1 - first], abs=4 * error)
    assert [share * 20_000 for share in found] == pytest.approx(
        [round(share * 20_000) for share in found], abs=1e-6
    )
    assert probabilities_best(np.array(values), mode, resolution) == found
    if resolution == 0:
        assert probabilities_best(np.array(values), mode) == found


@pytest.mark.parametrize("resolution", [0.0, 0.1])
def test_of_three_groups_each_is_best_with_the_probability_of_the_multivariate_t(
    resolution: float,
) -> None:
    """Group i has the largest mean where both differences to it are below 0: their joint t with
    n - 1 degrees of freedom, by scipy's cdf. 0.015: four standard errors of 20,000 draws and the
    error of the cdf."""
    values = np.array([[0.2, 0.5, 0.4, 0.7], [0.45, 0.3, 0.5, 0.5], [0.3, 0.6, 0.1, 0.55]])
    found = probabilities_best(values, "max", resolution)
    expected = []
    for i in range(3):
        others = np.delete(values, i, axis=0) - values[i]
        noise = resolution**2 / 2 * (np.eye(2) + 1)
        shape = (np.cov(others) + noise) / 4
        cdf = stats.multivariate_t(others.mean(axis=1), shape, df=3, seed=0).cdf([0.0, 0.0])
        expected.append(float(cdf))
    assert sum(expected) == pytest.approx(1, abs=0.005)
    assert found == pytest.approx(expected, abs=0.015)


def test_groups_that_tie_share_their_draws() -> None:
    """Equal values, 0 among them, and values that are equal but for the rounding of a sum (1e-4: a
    few of the draws fall so near to 0 that it shows); a billionth is no tie (1e-3: but for the few
    draws that are so large that it is)."""
    for mode in ("min", "max"):
        assert probabilities_best(np.zeros((2, 3)), mode) == [0.5, 0.5]
        assert probabilities_best(np.ones((4, 2)), mode) == [0.25] * 4
        rounded = np.array([[0.1 + 0.2, 0.7], [0.3, 0.7], [0.3, 0.7]])
        assert rounded[0, 0] != rounded[1, 0]
        assert probabilities_best(rounded, mode) == pytest.approx([1 / 3] * 3, abs=1e-4)
    apart = np.array([[0.3, 0.7], [0.3 + 1e-9, 0.7 + 1e-9]])
    assert probabilities_best(apart, "max") == pytest.approx([0.0, 1.0], abs=1e-3)
    assert probabilities_best(apart, "min") == pytest.approx([1.0, 0.0], abs=1e-3)


def test_seeds_needed_are_those_of_the_corrected_level() -> None:
    """Three groups are three comparisons: the least n where the noncentral t passes 0.8 at a level
    of 0.05 / 3, here by scipy alone."""
    noise = [0.3, -0.3, 0.1, -0.1]
    groups = {
        name: {i: gap * i + gap + (value if name == "b" else 0.0) for i, value in enumerate(noise)}
        for name, gap in (("a", 1.0), ("b", 1.0), ("c", 1.0))
    }
    groups["b"] = {i: value + 0.2 for i, value in groups["b"].items()}
    groups["c"] = {i: value + 0.1 * (-1) ** i for i, value in groups["c"].items()}
    found = compare(groups)["a", "b"]
    differences = np.array([groups["a"][i] - groups["b"][i] for i in range(4)])
    effect = abs(differences.mean()) / differences.std(ddof=1)

    def needed(level: float) -> int:
        for n in range(2, 1000):
            critical, shift = stats.t.ppf(1 - level / 2, n - 1), effect * n**0.5
            if stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift) >= 0.8:
                return n
        raise AssertionError

    assert needed(0.05 / 3) > needed(0.05)
    assert found.more_seeds == needed(0.05 / 3) - 4


# Simulations, which take a second each


@pytest.mark.parametrize("num_seeds", slow_but([2, 3, 4, 5], 2))
@pytest.mark.parametrize("noise", slow_but([0.3, 0.7, 1.5, 5.0], 1.5))
def test_a_coarse_metric_tells_equal_groups_apart_in_no_more_than_5_of_100_cases(
    num_seeds: int, noise: float
) -> None:
    """Counts of rows, the differences with a deviation of `noise` rows. 2,000 repetitions; three
    deviations of their share are allowed. Without the bound 12 of 100 at two seeds are wrong."""
    draw = np.random.default_rng(num_seeds)
    wrong = [told(counts(draw, num_seeds, noise, gap=0.0)) for _ in range(2000)]
    assert np.mean(wrong) < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


@pytest.mark.parametrize(("num_seeds", "effect"), [(3, 3.26), (5, 1.68)])
def test_a_coarse_metric_finds_what_an_exact_one_would(num_seeds: int, effect: float) -> None:
    """Noise of two rows: the difference that the paired test finds in 80 of 100 cases (G*Power) is
    found as often; three deviations of the share of 1,000, and 2 of 100 for the rounding."""
    draw = np.random.default_rng(num_seeds)
    found = [told(counts(draw, num_seeds, 2.0, gap=2.0 * effect)) for _ in range(1000)]
    assert np.mean(found) > 0.78 - 3 * (0.8 * 0.2 / 1000) ** 0.5


def counts(
    draw: np.random.Generator, num_seeds: int, noise: float, gap: float
) -> dict[str, dict[int, float]]:
    """Two accuracies of 256 rows, with the noise of a seed that both share."""
    seed = 200 + draw.normal(0, 5, num_seeds)
    own = [draw.normal(0, noise / 2**0.5, num_seeds) + shift for shift in (0.0, gap)]
    values = [np.round(seed + each) / 256 for each in own]
    return {name: dict(enumerate(each.tolist())) for name, each in zip("ab", values, strict=True)}


def told(values: dict[str, dict[int, float]]) -> bool:
    return compare(values, resolution=1 / 256)["a", "b"].is_real


def simulated(
    draw: np.random.Generator, num_seeds: int, gaps: list[float]
) -> dict[str, dict[int, float]]:
    """Groups with the same noise of a seed and noise of their own; the difference of two has a
    deviation of 1."""
    seed = draw.normal(0, 3, num_seeds)
    own = {f"{i}": gap + seed + draw.normal(0, 0.5**0.5, num_seeds) for i, gap in enumerate(gaps)}
    return {name: dict(enumerate(values.tolist())) for name, values in own.items()}


def best_is_told(values: dict[str, dict[int, float]]) -> bool:
    """Some other group is told from the one with the least mean."""
    best = min(values, key=lambda name: sum(values[name].values()))
    return any(found.is_real for pair, found in compare(values).items() if best in pair)


@pytest.mark.parametrize("num_groups", slow_but([2, 4], 2))
def test_identical_schedules_are_told_apart_in_no_more_than_5_of_100_cases(num_groups: int) -> None:
    """Though the best is chosen from the same values. 600 repetitions; three deviations of their
    share are allowed."""
    draw = np.random.default_rng(0)
    wrong = [best_is_told(simulated(draw, 5, [0.0] * num_groups)) for _ in range(600)]
    assert np.mean(wrong) < 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5


def test_a_difference_of_two_deviations_is_found_with_the_seeds_that_the_calculation_says() -> None:
    """5 of them, found in at least 80 of 100; three deviations of the share are allowed."""
    num = seeds_needed(2.0, 0.05)
    assert num == 5  # t(0.975, 4) = 2.78 against a shift of 2 sqrt(5) = 4.47
    draw = np.random.default_rng(0)
    found = [best_is_told(simulated(draw, num, [0.0, 2.0])) for _ in range(400)]
    assert np.mean(found) > 0.8 - 3 * (0.8 * 0.2 / 400) ** 0.5


def test_two_one_sided_tests_of_a_margin() -> None:
    """SciPy's one-sided tests give p, with Holm's correction over the three pairs."""
    draw = np.random.default_rng(1)
    rows = {name: draw.normal(mean, 0.01, 8) for name, mean in (("a", 0), ("b", 0.004), ("c", 0.1))}
    groups = {name: dict(enumerate(values)) for name, values in rows.items()}
    raw = {}
    for a, b in (("a", "b"), ("a", "c"), ("b", "c")):
        above = stats.ttest_1samp(rows[a] - rows[b], -0.02, alternative="greater").pvalue
        below = stats.ttest_1samp(rows[a] - rows[b], 0.02, alternative="less").pvalue
        raw[a, b] = max(above, below)
    found = compare(groups, margin=0.02)
    assert found["a", "b"].p_equivalent == pytest.approx(3 * raw["a", "b"], rel=1e-9)
    assert found["a", "b"].is_equivalent
    assert not found["a", "c"].is_equivalent
    assert compare(groups)["a", "b"].p_equivalent is None


def test_values_that_are_equal_are_within_any_margin_if_they_are_no_counts() -> None:
    same = {"a": {0: 0.5, 1: 0.6}, "b": {0: 0.5, 1: 0.6}}
    assert compare(same, margin=1e-6)["a", "b"].p_equivalent == 0
    assert not compare(same, 1 / 256, margin=0.001)["a", "b"].is_equivalent


def test_deviations_between_and_within_folds_are_those_of_a_hand_calculation() -> None:
    """Folds of means 1 and 5; within them, variances 2 and 8: MSW = 5, MSB = 2 x 8 = 16."""
    assert deviations([[0.0, 2.0], [3.0, 7.0]]) == pytest.approx(
        (math.sqrt((16 - 5) / 2), math.sqrt(5)), rel=1e-12
    )
    assert deviations([[0.0, 2.0], [2.0, 0.0]])[0] == 0


def test_sign_flips_are_all_the_equally_likely_signs() -> None:
    """p by writing out the 32 signs of five differences, of which one has the other sign; the
    smallest p of n differences is 2 / 2^n, with Holm's correction for three pairs."""
    a = {0: 0.5, 1: 0.7, 2: 0.4, 3: 0.9, 4: 0.6}
    b = {0: 0.4, 1: 0.5, 2: 0.45, 3: 0.6, 4: 0.5}
    c = {seed: value + 1 + seed / 10 for seed, value in b.items()}
    differences = np.array([a[seed] - b[seed] for seed in a])
    means = [np.mean(np.abs(differences) * signs) for signs in product((-1, 1), repeat=5)]
    p = 2 * np.mean(np.array(means) >= differences.mean() - 1e-12)
    found = by_signs({"a": a, "b": b, "c": c}, "b")
    assert found["a"][0] == pytest.approx(p, abs=1e-12)
    assert found["c"] == (pytest.approx(2 / 32), pytest.approx(3 * 2 / 32))
    assert smallest_p(5) == 2 / 32
    assert by_signs({"a": {0: 1.0}, "b": {0: 2.0}}, "b") == {}


def test_sign_flips_do_not_need_normal_differences() -> None:
    """Ten differences of one sign, one of them an outlier: the t-test takes it for noise, the
    sign-flip test has its smallest p."""
    zeros = dict.fromkeys(range(10), 0.0)
    outlier = {seed: 1.0 + seed / 100 for seed in range(9)} | {9: 40.0}
    paired = compare({"a": outlier, "b": zeros})["a", "b"]
    assert paired.p is not None
    assert paired.p > 0.2
    assert by_signs({"a": outlier, "b": zeros}, "b")["a"] == (2 / 1024, 2 / 1024)
