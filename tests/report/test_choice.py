"""The value of a winner that the same runs have chosen."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.answers import value_of_winner
from runner.report.choice import ends, expected_maximum, winners_value
from tests.report.independent import ends_of_choice
from tests.rows import slow_rows

VALUES = np.array([[0.31, 0.35, 0.30, 0.33], [0.33, 0.34, 0.35, 0.33], [0.36, 0.33, 0.34, 0.35]])


def test_the_expected_maximum_is_that_of_the_tables() -> None:
    """Harter (1961), "Expected values of normal order statistics", five decimals."""
    for num, expected in ((1, 0.0), (2, 0.56419), (3, 0.84628), (5, 1.16296), (10, 1.53875)):
        assert expected_maximum(num) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("num_groups", "num"), [(2, 3), (5, 4), (10, 10)])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_ends_are_those_of_a_quadrature(num_groups: int, num: int, shared: float) -> None:
    """3 %: three standard errors of the quantile of 100,000 draws where tails are heaviest."""
    found = ends(num_groups, num, shared)
    assert found == pytest.approx(ends_of_choice(num_groups, num, shared), rel=0.03)
    near, far = found
    student = stats.t.ppf(0.975, num - 1)
    assert near <= student * 1.001
    # where all noise is shared there is no luck in the choice; else the luckiest is far away
    assert far == pytest.approx(student, rel=0.03) if shared == 1.0 else far > 1.02 * student


def test_one_group_has_student_s_interval_and_one_seed_has_none() -> None:
    found = winners_value(VALUES[:1], "min")
    assert found is not None
    expected = stats.t.interval(0.95, 3, loc=VALUES[0].mean(), scale=stats.sem(VALUES[0]))
    assert found.interval == pytest.approx(expected, rel=1e-12)
    assert (found.num_groups, found.luck) == (1, 0.0)
    assert winners_value(VALUES[:, :1], "min") is None


def test_a_metric_that_is_good_when_large_is_the_mirror_image() -> None:
    low, high = winners_value(VALUES, "min"), winners_value(-VALUES, "max")
    assert low is not None
    assert high is not None
    assert low.interval == pytest.approx([-end for end in high.interval[::-1]], rel=1e-12)
    assert low.luck == high.luck > 0
    # luck makes a small mean of a small metric, so the upper end is farther away
    assert low.interval[1] - low.mean > low.mean - low.interval[0]


def test_noise_that_all_groups_share_is_no_luck() -> None:
    """Three rows are equal but for little noise of their own: more than 0.99 of the variance is
    shared. 10 %: with 0.99 the level of an end is 0.027 in place of 0.025."""
    common, own = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.1, 0, 0.1, 0])
    found = winners_value(np.stack([common, common + own, common + 0.1]), "min")
    assert found is not None
    plain = winners_value(common[None], "min")
    assert plain is not None
    assert found.luck < 0.05
    assert found.interval == pytest.approx(plain.interval, rel=0.1)


@pytest.mark.parametrize(
    ("num_groups", "num_seeds", "noise", "lead", "of_seeds"),
    slow_rows(
        [
            (5, 5, "normal", 0.0, 0.0),
            (10, 3, "heavy tails", 0.0, 0.0),
            (2, 10, "normal", 0.0, 3.0),
            (10, 5, "normal", 2.0, 0.0),
        ],
        [(5, 5, "normal", 0.0, 0.0)],
    ),
)
def test_the_interval_holds_the_true_value_of_the_winner(
    num_groups: int, num_seeds: int, noise: str, lead: float, of_seeds: float
) -> None:
    """At least 95 of 100 cases, less three standard deviations of the share."""
    repeats = 200
    _, allowing, bias, without, _ = value_of_winner(
        repeats, num_groups, num_seeds, noise, lead, of_seeds
    )
    assert allowing > 0.95 - 3 * math.sqrt(0.05 * 0.95 / repeats)
    if (lead, of_seeds) == (0.0, 0.0):
        # the mean of the best of equals is low by its luck; three standard errors of the rest
        assert bias < 0
        assert abs(without) < 3 * math.sqrt(0.5 / num_seeds / repeats)
