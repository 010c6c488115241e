"""The claims of a comparison are wrong in at most 5 of 100 cases: simulations of benchmarks.answers
with fixed draws. docs/statistics.md has longer ones."""

import numpy as np
import pytest

from benchmarks.answers import (
    RACES,
    by_sign_flips,
    covered,
    fixed,
    raced,
    ranked,
    tuned,
    wrong,
)
from tests.rows import slow_but

# three standard deviations of a share of 5 %
ALLOWED = 3 * 0.05**0.5 * 0.95**0.5


@pytest.mark.parametrize("noise", slow_but(["normal", "heavy tails", "counts"], "normal"))
@pytest.mark.parametrize("num_groups", slow_but([2, 5], 2))
def test_claims_are_wrong_in_at_most_5_of_100_cases(num_groups: int, noise: str) -> None:
    repeats = 200
    different, equivalent, covered = wrong(repeats, num_groups, 5, noise)
    assert different < 0.05 + ALLOWED / repeats**0.5
    assert equivalent < 0.05 + ALLOWED / repeats**0.5
    assert covered > 0.95 - ALLOWED / repeats**0.5


@pytest.mark.parametrize("noise", slow_but(["normal", "heavy tails", "counts"], "heavy tails"))
def test_sign_flips_find_a_difference_of_equal_groups_in_at_most_5_of_100_cases(noise: str) -> None:
    """The level can be reached: the smallest p of two groups with 8 seeds is 2 / 256. A lead of two
    deviations is found nearly always."""
    repeats = 100
    _, told = by_sign_flips(repeats, 2, 8, noise, 0.0)
    assert told < 0.05 + ALLOWED / repeats**0.5
    _, found = by_sign_flips(repeats, 2, 8, noise, 2.0)
    assert found > 0.8


@pytest.mark.slow
def test_equal_groups_are_told_apart_over_workloads_in_at_most_5_of_100_cases() -> None:
    """Four workloads of three seeds, where a lead of 30 % is named nearly always."""
    repeats = 60
    named = ranked(repeats, 2, 4, 3, 0.0)
    assert named < 0.05 + ALLOWED / repeats**0.5
    found = ranked(repeats, 2, 4, 3, 0.3)
    assert found > 0.8


@pytest.mark.parametrize("num_seeds", slow_but([3, 5, 10], 3))
@pytest.mark.parametrize("lead", slow_but([0.0, 0.1, 0.3], 0.3))
def test_the_interval_of_a_score_over_workloads_contains_it_in_95_of_100_cases(
    num_seeds: int, lead: float
) -> None:
    repeats = 100
    assert covered(repeats, 2, 2, num_seeds, lead) > 0.95 - ALLOWED / repeats**0.5


def test_a_winner_that_was_tuned_on_other_seeds_has_its_true_value() -> None:
    """The first of two schedules is better by 8 deviations, so it always wins: on the seeds that
    chose its rate, its mean is the least of five equal means of deviation s, which is 1.163 s below
    the truth (the expected minimum of five normal values); on others it is unbiased."""
    repeats, num_seeds, lead = 300, 3, 8.0
    named, bias, _, _, other, covered = tuned(repeats, 2, num_seeds, lead)
    own, of_seeds = 0.5**0.5 / num_seeds**0.5, 3 / num_seeds**0.5
    allowed = 3 * np.hypot(own, of_seeds) / repeats**0.5
    assert bias == pytest.approx(-1.163 * own, abs=allowed)
    assert other == pytest.approx(0, abs=allowed)
    assert abs(covered - 0.95) < ALLOWED / repeats**0.5
    assert named > 0.9


@pytest.mark.parametrize("noise", slow_but(["normal", "heavy tails", "counts"], "heavy tails"))
@pytest.mark.parametrize("num_groups", slow_but([2, 5, 10], 5))
def test_a_race_drops_one_of_the_best_in_at_most_5_of_100_cases(
    num_groups: int, noise: str
) -> None:
    """All schedules are equal, so each one that is dropped is one of the best; it looks after every
    one of 10 seeds."""
    repeats = 200
    _, _, wrong_drops = raced(repeats, np.zeros(num_groups), noise, 10)
    assert wrong_drops < 0.05 + ALLOWED / repeats**0.5


def test_a_race_of_distinct_schedules_takes_half_of_the_runs_of_a_fixed_design() -> None:
    """Eight schedules whose means lie two standard deviations of a run apart. Twelve seeds of each
    name the best at most as often as the race does."""
    gaps = RACES["8 schedules, each 2 from the next"]
    runs, named, wrong_drops = raced(50, gaps, "normal", 12)
    assert runs < 0.5 * 12 * len(gaps)
    assert named >= fixed(50, gaps, 12, is_pooled=False)
    assert wrong_drops == 0
