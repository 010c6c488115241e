"""Quantiles of Beta with the same bits everywhere, against SciPy's functions."""

import numpy as np
import pytest
from scipy.special import betainc, betaincinv

from runner.data.beta import quantiles

DRAWS = np.random.default_rng(0).integers(0, 2**53, 2000) * 2.0**-53


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 2.5, 1000.0])
def test_a_quantile_is_scipy_s_up_to_the_distance_of_two_points(alpha: float) -> None:
    found = quantiles(alpha, DRAWS)
    np.testing.assert_allclose(found, betaincinv(alpha, alpha, DRAWS), rtol=0, atol=2.0**-10)
    # the function is exact at a point. 1e-13: SciPy's rounding
    points = np.arange(1, 512) / 1024
    at_points = betainc(alpha, alpha, points)
    is_inside = at_points > 1e-12  # where a draw of 53 bits says something about the quantile
    back = quantiles(alpha, at_points[is_inside])
    np.testing.assert_allclose(betainc(alpha, alpha, back), at_points[is_inside], atol=1e-13)


def test_the_distribution_is_symmetric_and_has_its_ends() -> None:
    some = DRAWS[(DRAWS > 0) & (DRAWS < 0.5)]
    np.testing.assert_array_equal(quantiles(0.3, 1 - some), 1 - quantiles(0.3, some))
    ends = np.array([0.0, 0.5, 1 - 2.0**-53])
    np.testing.assert_array_equal(quantiles(1.0, ends), ends)


def test_the_bits_do_not_depend_on_the_machine() -> None:
    """The four quantiles of Beta(0.4, 0.4) as they were on an x86-64 machine with glibc."""
    found = quantiles(0.4, np.array([0.01, 0.2, 0.5 + 2.0**-20, 0.93]))
    assert [x.hex() for x in found.tolist()] == [
        "0x1.419d49f3e0630p-15",
        "0x1.089eecacfa11cp-4",
        "0x1.00003add8eb4dp-1",
        "0x1.fd895e01e6ac8p-1",
    ]
