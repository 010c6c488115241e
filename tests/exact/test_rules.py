"""The rules against exact rationals and 40-digit arithmetic: every bound that a docstring of
runner.exact states."""

import hashlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest

from runner.errors import ConfigError
from runner.exact import functions, rules, self_test
from runner.exact.reference import NumPy
from runner.exact.tables import ln2, table
from tests.exact.common import bits

NUMPY = NumPy()
TABLES = {
    "exp_high": "efedbea27646dc9f",
    "exp_low": "86d371fd7c3cdf4a",
    "log_inverse": "e38f94008203f36b",
    "log_value": "ac9bd9b0b6817920",
    "phi_0": "625fcf7f3b873b01",
    "phi_1": "cffaa41c240a133b",
    "phi_2": "af03fb01b7b71894",
    "phi_3": "e498d00bf4caedd2",
}


def rounded(x: float) -> Fraction:
    """The nearest number of 24 bits, half to even; zero where that is at most 2^-126."""
    _, exponent = np.frexp(x)
    unit = Fraction(2) ** (int(exponent) - 24)
    nearest = round(Fraction(x) / unit) * unit  # Python rounds a Fraction half to even
    return nearest if abs(nearest) > Fraction(2) ** -126 else Fraction(0)


def hostile() -> np.ndarray:
    rng = np.random.default_rng(0)
    sizes = 2.0 ** rng.integers(-160, 120, 2000)
    halves = 1.0 + (2 * rng.integers(0, 2**23, 500) + 1) * 2.0**-24
    edges = [
        0.0,
        -0.0,
        5e-324,
        2.0**-126,
        -(2.0**-126),
        np.nextafter(2.0**-126, 0),
        2.0**-149,
        2.0**127,
    ]
    edges += [2.0**-126 * (1 + sign * 2.0**-k) for k in (23, 24, 25) for sign in (-1, 1)]
    return np.concatenate([rng.normal(size=2000) * sizes, halves, -halves, edges])


def test_r_is_the_nearest_number_of_24_bits_without_subnormals_and_negative_zero() -> None:
    for x, found in zip(hostile().tolist(), rules.r(hostile()).tolist(), strict=True):
        assert Fraction(found) == rounded(x), x
    zeros = rules.r([0.0, -0.0, -1e-40, 5e-324])
    np.testing.assert_array_equal(bits(zeros), 0)


@pytest.mark.parametrize("num", [1, 2, 3, 64, 1000, 8192, 2**20, 2**21])
def test_sums_within_the_budget_are_exact_in_every_order(num: int) -> None:
    """The largest integers that the grid may hold, all of one sign: no sum of them is larger.
    Python's integers say so."""
    product, term = 2 ** rules.product_bits(num), 2 ** rules.sum_bits(num)
    assert num * product**2 <= 2**53
    assert num * term <= 2**53
    assert product <= 2**24
    odd = np.full(min(num, 8192), float(product - 1))
    assert int(odd @ odd) == len(odd) * (product - 1) ** 2
    assert (
        int(np.random.default_rng(0).permutation(odd * odd).sum()) == len(odd) * (product - 1) ** 2
    )


def test_a_sum_beyond_the_budget_is_never_begun() -> None:
    with pytest.raises(AssertionError):
        rules.product_bits(2**21 + 1)


def test_without_the_budget_the_order_of_a_sum_shows() -> None:
    """The negative control: with 27 bits, where product_bits gives 20, two orders of the same
    products differ."""
    rng = np.random.default_rng(0)
    products = np.rint(rng.uniform(-1, 1, 8192) * 2.0**27) * np.rint(
        rng.uniform(-1, 1, 8192) * 2.0**27
    )
    assert float(np.cumsum(products)[-1]) != float(np.cumsum(np.sort(products))[-1])


@pytest.mark.parametrize("per_row", [False, True])
def test_the_grid_is_within_half_a_unit(per_row: bool) -> None:
    x = rules.r(
        np.random.default_rng(1).normal(size=(50, 40)) * 10.0 ** np.arange(-25, 25)[:, None]
    )
    q, unit = NUMPY.grid(x, 20, per_row)
    assert np.abs(q).max() <= 2**20
    np.testing.assert_array_equal(q, np.rint(q))
    np.testing.assert_array_equal(np.frexp(unit)[0], 0.5)
    for value, i, u in zip(
        x.ravel(), q.ravel(), np.broadcast_to(unit, x.shape).ravel(), strict=True
    ):
        assert abs(Fraction(value) - Fraction(i) * Fraction(u)) <= Fraction(u) / 2


def test_total_is_within_its_bound() -> None:
    x = rules.r(np.random.default_rng(2).normal(size=5000))
    error = abs(
        Fraction(float(rules.total(NUMPY, x, (0,), 5000)))
        - sum(map(Fraction, x.tolist()), Fraction(0))
    )
    whole = abs(sum(map(Fraction, x.tolist()), Fraction(0)))
    assert (
        error
        <= Fraction(5000) * Fraction(2) ** -rules.sum_bits(5000) * Fraction(np.abs(x).max())
        + whole / 2**24
    )


Claim = tuple[Callable[[np.ndarray], np.ndarray], Callable[[Any], Any], np.ndarray, float, float]


def _points(low: float, high: float) -> np.ndarray:
    return rules.r(
        np.concatenate(
            [np.random.default_rng(3).uniform(low, high, 3000), [low, high, 0.0, 2.0**-4]]
        )
    )


# function, truth, points, relative bound, absolute bound: the docstrings'
CLAIMS: dict[str, Claim] = {
    "exp_negative": (
        lambda d: functions.exp_negative(NUMPY, d) / functions.ONE,
        lambda d: mpmath.exp(-d),
        _points(0, 40),
        2.0**-23,
        2.0**-41,
    ),
    "log": (
        lambda s: functions.log(NUMPY, np.rint(s * 2.0**40)),
        mpmath.log,
        _points(1, 8000)[:3002],
        0,
        2.0**-26,
    ),
    "sigmoid": (
        lambda x: functions.sigmoid(NUMPY, x)[0],
        lambda x: 1 / (1 + mpmath.exp(-x)),
        _points(-40, 40),
        2.0**-21,
        2.0**-40,
    ),
    "1 - sigmoid": (
        lambda x: functions.sigmoid(NUMPY, x)[1],
        lambda x: 1 / (1 + mpmath.exp(x)),
        _points(-40, 40),
        2.0**-21,
        2.0**-40,
    ),
    "tanh": (lambda x: functions.tanh(NUMPY, x), mpmath.tanh, _points(-12, 12), 2.0**-19, 0),
    "tanh near 2^-4": (
        lambda x: functions.tanh(NUMPY, x),
        mpmath.tanh,
        _points(-0.07, 0.07),
        2.0**-19,
        0,
    ),
    "tanh from 1 on": (
        lambda x: functions.tanh(NUMPY, x),
        mpmath.tanh,
        _points(1, 12)[:3002],
        2.0**-21,
        0,
    ),
    "Phi": (lambda x: functions.normal(NUMPY, x)[0], mpmath.ncdf, _points(-9, 9), 0, 2.0**-24),
    "phi": (lambda x: functions.normal(NUMPY, x)[1], mpmath.npdf, _points(-9, 9), 0, 2.0**-23),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_function_is_within_its_bound(name: str) -> None:
    function, truth, points, relative, absolute = CLAIMS[name]
    with mpmath.workdps(40):
        for x, found in zip(points.tolist(), function(points).tolist(), strict=True):
            right: Any = truth(mpmath.mpf(x))
            assert abs(mpmath.mpf(found) - right) <= relative * abs(right) + absolute, x


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_bits_that_it_had(name: str) -> None:
    """Another entry would be another arithmetic: certificates that exist would no longer be
    repeated."""
    assert hashlib.sha256(table(name).astype("<f8").tobytes()).hexdigest()[:16] == TABLES[name]


def test_tables_are_the_nearest_of_their_grids() -> None:
    """A sample, in 40 digits; log_value belongs to the rounded 1 / f, which is exact in 20 bits."""
    with mpmath.workdps(40):
        for k in (1, 100, 5000, 2**14 - 1):
            for name, scale in (("exp_high", 9), ("exp_low", 23)):
                right = mpmath.exp(-mpmath.mpf(k) / 2**scale)
                assert (
                    abs(mpmath.mpf(float(table(name)[k])) - right) <= right * mpmath.mpf(2) ** -26
                )
        for c, value in zip(table("log_inverse")[::9], table("log_value")[::9], strict=True):
            assert value == mpmath.nint(-mpmath.log(mpmath.mpf(float(c))) * 2**34)
        assert ln2() == mpmath.nint(mpmath.log(2) * 2**34)


class Float32Products(NumPy):
    """A device that multiplies matrices in less than float64."""

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float64)


class KeepsSubnormals(NumPy):
    def r(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x).astype(np.float32).astype(np.float64)


class TransformedSums(NumPy):
    """Sums that are off in the last place, as of a product by Fourier transforms."""

    def sum(self, x: np.ndarray, axes: tuple[int, ...], keep: bool = False) -> np.ndarray:
        return super().sum(x, axes, keep) * (1 + 2.0**-40)


class ReciprocalRoots(NumPy):
    def sqrt(self, x: np.ndarray) -> np.ndarray:
        return (1 / np.sqrt(x.astype(np.float32)) * x).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (Float32Products, "products"),
        (TransformedSums, "sums"),
        (KeepsSubnormals, "roundings"),
        (ReciprocalRoots, "roots"),
    ],
)
def test_the_self_test_refuses_a_device_that_breaks_the_rules(
    broken: type[NumPy], what: str
) -> None:
    with pytest.raises(ConfigError, match=f"device=strange computes other {what}"):
        self_test.check("strange", lambda given: self_test.results(broken(), *given))
    self_test.check("sound", lambda given: self_test.results(NumPy(), *given))
