"""Quantiles of the symmetric Beta distribution that have the same bits on every machine."""

from decimal import Context, Decimal, localcontext
from functools import lru_cache

import numpy as np

_DIGITS = 40  # of the table's arithmetic; float64 has 17
# 0, 2^-60, 2^-59, ... 2^-10, 2^-9, and then every 2^-10 up to 1/2
_POINTS = np.array([0.0, *2.0 ** np.arange(-60, -9), *np.arange(2, 513) * 2.0**-10])


def quantiles(alpha: float, draws: np.ndarray) -> np.ndarray:
    """Return the x with F(x) = u, for the distribution function F of Beta(alpha, alpha).

    F is exact at 562 points and linear between them, so x differs from the quantile by less than
    the distance of two points, at most 2^-10; near 0 and 1 the points are as dense as powers of 2.
    The table of F comes from decimal arithmetic, which is correctly rounded, and every step from u
    to x is a single operation of IEEE 754. Libraries' quantiles differ in the last bits.

    Args:
        alpha: > 0.
        draws: u in [0, 1), multiples of 2^-53.  # float64[n]
    """
    table = _table(alpha)
    low = np.minimum(draws, 1 - draws)  # F(x) = 1 - F(1 - x)
    i = np.minimum(np.searchsorted(table, low, side="right") - 1, len(table) - 2)
    share = (low - table[i]) / (table[i + 1] - table[i])
    x = _POINTS[i] + share * (_POINTS[i + 1] - _POINTS[i])
    return np.where(draws <= 0.5, x, 1 - x)


@lru_cache
def _table(alpha: float) -> np.ndarray:
    """Return F at the points, B(x) / (2 B(1/2)) with the incomplete beta function

    B(x) = x^a (1 - x)^a / a sum_n t_n x^n, t_0 = 1, t_(n+1) = t_n (2 a + n) / (a + 1 + n).

    All terms are positive. DLMF 8.17.8, https://dlmf.nist.gov/8.17#E8.  # float64[562]
    """
    with localcontext(Context(prec=_DIGITS)):
        a = Decimal(alpha)
        terms = _terms(a)
        values = [_incomplete(a, Decimal(x), terms) for x in _POINTS.tolist()]
        return np.array([float(value / (2 * values[-1])) for value in values])


def _terms(a: Decimal) -> list[Decimal]:
    """Return t_n, up to a part of 10^-40 of the sum at x = 1/2."""
    terms, total, power = [Decimal(1)], Decimal(1), Decimal(1)
    while terms[-1] * power > total.scaleb(-_DIGITS):
        n = len(terms) - 1
        terms.append(terms[-1] * (2 * a + n) / (a + 1 + n))
        power /= 2
        total += terms[-1] * power
    return terms


def _incomplete(a: Decimal, x: Decimal, terms: list[Decimal]) -> Decimal:
    """a B(x)"""
    if not x:
        return Decimal(0)
    total = Decimal(0)
    for term in reversed(terms):
        total = total * x + term
    return (a * (x.ln() + (1 - x).ln())).exp() * total
