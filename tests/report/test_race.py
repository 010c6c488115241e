"""The tests of a race, without runs: their formulas, and which schedules they drop."""

import math

import numpy as np
import pytest
from scipy import stats

from runner.report import race
from runner.report.race import FIRST_LOOK, Race, log_e, radius
from runner.report.statistics import LEVEL

DIFFERENCES = np.array([0.5, 1.2, 0.3, 2.0])
OTHERS, OTHERS_DF = 4.0, 5  # a sum of squares that is independent of them


def ratio(mean: float, prior: str) -> float:
    """The likelihood ratio of the prior of delta to delta = 0, by sums over a grid of delta and of
    u = 1 / sigma with the measure du / u. D - `mean` is what is tested."""
    values = DIFFERENCES - mean
    num, u = len(values), np.linspace(1e-4, 10, 4001)
    squares = OTHERS + float((values**2).sum())

    def likelihood(delta: float) -> float:
        exponent = -squares * u**2 / 2 + delta * values.sum() * u - num * delta**2 / 2
        return float(np.trapezoid(u ** (num + OTHERS_DF - 1) * np.exp(exponent), u))

    deltas = np.linspace(0, 20, 2001)
    deltas = np.concatenate([-deltas[:0:-1], deltas]) if prior == "normal" else deltas
    sides = 1 if prior == "normal" else 2
    found = [likelihood(delta) for delta in deltas]
    density = sum(
        weight * sides * stats.norm.pdf(deltas, 0, scale) for scale, weight in race._PRIOR.items()
    )
    return float(np.trapezoid(np.array(found) * density, deltas)) / likelihood(0.0)


def known() -> tuple[float, int, int]:
    squares = float(((DIFFERENCES - DIFFERENCES.mean()) ** 2).sum()) + OTHERS
    return squares, len(DIFFERENCES), len(DIFFERENCES) - 1 + OTHERS_DF


@pytest.mark.parametrize("sign", [1, -1])
def test_e_is_the_likelihood_ratio_of_a_half_normal_prior(sign: int) -> None:
    squares, num, df = known()
    total = np.array(sign * DIFFERENCES.sum())
    mean = 0.0 if sign == 1 else 2 * float(DIFFERENCES.mean())  # D - 2 mean has the sum -sum(D)
    # the grid's step of 0.01 leaves an error of about 1e-5
    assert float(log_e(total, np.array(squares), num, df)) == pytest.approx(
        math.log(ratio(mean, "half-normal")), abs=1e-3
    )


def test_a_confidence_sequence_ends_where_the_two_sided_ratio_reaches_1_over_the_level() -> None:
    squares, num, df = known()
    half = radius(squares, num, df)
    for end in (DIFFERENCES.mean() - half, DIFFERENCES.mean() + half):
        assert ratio(float(end), "normal") == pytest.approx(1 / LEVEL, rel=1e-3)


# noise of four schedules, of about one variance
NOISE = np.array([[0.7, -0.9, 0.1], [-0.6, 0.4, 0.8], [0.3, 0.7, -1.0], [0.9, -0.8, 0.2]])


@pytest.mark.parametrize("chaos", [0.0, 1e6])
def test_far_schedules_are_dropped_at_the_first_look_and_the_best_stays(chaos: float) -> None:
    """Means 0, 0.1, 20 and 40 with noise of 1: the last two are told apart, the first two not. A
    fifth schedule that is far too noisy to be judged does not change this."""
    values = np.array([[0.0], [0.1], [20.0], [40.0]]) + NOISE
    if chaos:
        values = np.vstack([values, chaos * NOISE[0]])
    runs = Race(len(values))
    dropped = runs.look({i: row.tolist() for i, row in enumerate(values)})
    assert {each.number for each in dropped} == {2, 3} == {*runs.dropped}
    assert all(each.num_seeds == FIRST_LOOK and each.by in (0, 1, 2) for each in dropped)
    assert all((runs.p[i] < LEVEL) == (i in (2, 3)) for i in range(len(values)))


def test_differences_of_one_row_are_no_evidence() -> None:
    """An accuracy with steps of 0.01: ten equal differences of one row could be chance, which a
    deviation of 0 would hide. Differences of 30 rows are more than that."""
    for rows, is_dropped in ((1, False), (30, True)):
        runs = Race(2, resolution=0.01)
        runs.look({0: [0.5] * 5, 1: [0.5 + 0.01 * rows] * 5})
        assert ({*runs.dropped} == {1}) == is_dropped


def test_equal_runs_are_no_evidence() -> None:
    runs = Race(2)
    assert runs.look({0: [0.5, 0.25, 1.0], 1: [0.5, 0.25, 1.0]}) == []
    assert runs.p == {0: 1.0, 1: 1.0}


def test_a_schedule_is_within_a_margin_far_above_the_noise() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 12)).tolist()
    runs = Race(2)
    runs.look({0: a, 1: b})
    assert runs.p_within({0: a, 1: b}, 10.0) < LEVEL < runs.p_within({0: a, 1: b}, 0.1)
