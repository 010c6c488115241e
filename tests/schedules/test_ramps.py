"""The curves that phases follow, against their formulas in fractions and in mpmath."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

from runner.schedules import ramps

U = [0.0, 0.125, 0.3, 0.5, 0.77, 1.0]
# Some roundings of 1.1e-16, of values of at most 2; the cosine's end is 0, where only the size
# counts.
CLOSE: dict[str, Any] = {"rtol": 1e-14, "atol": 1e-15}


@pytest.mark.parametrize(
    ("curve", "formula"),
    [
        (ramps.linear, lambda u: 1 - u),
        (ramps.cosine, lambda u: mpmath.cos(mpmath.pi * u / 2) ** 2),
        (lambda u: ramps.polynomial(u, 2.5), lambda u: (1 - u) ** mpmath.mpf(2.5)),
        (lambda u: ramps.polynomial(u, 1.0), lambda u: 1 - u),
        (lambda u: ramps.late(u, 0.5), lambda u: 1 - mpmath.sqrt(u)),
        (lambda u: ramps.late(u, 3.0), lambda u: 1 - u**3),
        (lambda u: ramps.rex(u, 0.0), lambda u: 1 - u),
        (lambda u: ramps.rex(u, 0.75), lambda u: (1 - u) / (1 - 0.75 * u)),
        (lambda u: ramps.rex(u, 0.5), lambda u: (1 - u) / (1 - u / 2)),
        # (1 - tanh x) / 2 = 1 / (1 + exp(2 x))
        (lambda u: ramps.tanh(u, -4.0, 2.5), lambda u: 1 / (1 + mpmath.exp(2 * (6.5 * u - 4)))),
        (
            lambda u: ramps.geometric(u, 0.3, 0.002),
            lambda u: mpmath.mpf(0.3) ** (1 - u) * mpmath.mpf(0.002) ** u,
        ),
        (lambda u: ramps.between(0.3, 0.02, 1 - u), lambda u: 0.3 * (1 - u) + mpmath.mpf(0.02) * u),
        (lambda u: ramps.rise("linear", u), lambda u: u),
        (lambda u: ramps.rise("cosine", u), lambda u: mpmath.sin(mpmath.pi * u / 2) ** 2),
    ],
)
def test_a_curve_is_its_formula(
    curve: Callable[[np.ndarray], np.ndarray], formula: Callable[[mpmath.mpf], mpmath.mpf]
) -> None:
    with mpmath.workdps(40):
        expected = [float(formula(mpmath.mpf(u))) for u in U]
    np.testing.assert_allclose(curve(np.array(U)), expected, **CLOSE)


@pytest.mark.parametrize(
    ("edge", "u"),
    [
        ("left", lambda k, n: Fraction(k, n)),
        ("right", lambda k, n: Fraction(k + 1, n)),
        ("inner", lambda k, n: Fraction(k + 1, n + 1)),
        ("both", lambda k, n: Fraction(k, n - 1) if n > 1 else Fraction(1)),
    ],
)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_progress_by_the_table(
    edge: ramps.Edge, u: Callable[[int, int], Fraction], num_steps: int
) -> None:
    """Before and after the phase it is clipped."""
    k = range(-2, num_steps + 3)
    expected = [float(min(max(u(i, num_steps), Fraction(0)), Fraction(1))) for i in k]
    np.testing.assert_array_equal(ramps.progress(np.array(k), num_steps, edge), expected)


@pytest.mark.parametrize("edge", ["left", "right", "inner", "both"])
def test_a_phase_of_no_steps_is_over(edge: ramps.Edge) -> None:
    assert ramps.progress(np.arange(6).reshape(2, 3), 0, edge).tolist() == [[1.0] * 3] * 2


def test_the_end_is_met_exactly() -> None:
    """0.1 + (0.3 - 0.1) 0 is 0.1; the other way round a rounding would be left."""
    assert ramps.between(0.3, 0.1, np.array([0.0]))[0] == 0.1
