"""The rules of exact arithmetic: the rounding R and the number of bits on the grid Q.

Every tensor between two operations is an output of R: float64 values with at most 24 significant
bits, no subnormals and no negative zero. Between two roundings, all arithmetic is exact, or there
is one operation on 24-bit operands.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from runner.errors import IF_DIVERGED, RunError
from runner.exact.primitives import Primitives, Tensor

SIGNIFICAND = 53  # bits: float64 holds every integer up to 2^53, so sums up to there are exact
TINY = 2.0**-126  # the smallest normal float32; R makes this and smaller magnitudes +0
FEWEST_BITS = 16  # of an operand on the grid; with fewer, training is less accurate than in float32
MOST_BITS = 24  # of an operand of a product; R's outputs have no more
_SUM_BITS = 32  # of a term of a sum; more than R keeps, since terms differ in magnitude
# the K of a masked sequence is at least this: up to there, longer padding changes no number of bits
_MASKED_PRODUCTS = 2**13


def r(x: Any) -> np.ndarray:
    """R(x): x rounded to 24 bits, half to even, as float64. A result of magnitude <= 2^-126 becomes
    +0; otherwise |R(x) - x| <= 2^-24 |x|.

    The comparison with 2^-126 comes after the rounding: so R is the same whether or not the
    processor flushes subnormals.
    """
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):
        rounded = x.astype(np.float32)
    return np.where(np.abs(rounded) <= TINY, 0.0, rounded).astype(np.float64)


@lru_cache
def constant(value: float) -> float:
    """Round a number of the config: R(value)."""
    return float(r(value))


def log2_ceil(num: int) -> int:
    """ceil(log2 num); 0 for num <= 1."""
    return max(0, int(num) - 1).bit_length()


def product_bits(num: int, is_masked: bool = False) -> int:
    """b = min(24, (53 - ceil(log2 num)) // 2): a sum of `num` products of integers |i| <= 2^b is
    exact in any order. At most 20 in a masked sequence, whatever its length up to 2^13 products."""
    num = max(num, _MASKED_PRODUCTS) if is_masked else num
    bits = min(MOST_BITS, (SIGNIFICAND - log2_ceil(num)) // 2)
    assert 2 * bits + log2_ceil(num) <= SIGNIFICAND
    assert bits >= FEWEST_BITS, "runner.exact.refuse refuses longer sums"
    return bits


def sum_bits(num: int) -> int:
    """b = min(32, 53 - ceil(log2 num)): a sum of `num` integers |i| <= 2^b is exact in any
    order."""
    bits = min(_SUM_BITS, SIGNIFICAND - log2_ceil(num))
    assert bits + log2_ceil(num) <= SIGNIFICAND
    return bits


def total(
    o: Primitives,
    x: Tensor,
    axes: tuple[int, ...],
    num: int,
    per_row: bool = False,
    keep: bool = False,
) -> Tensor:
    """R of the sum of `num` values on the grid. The error is at most num 2^-b max|x| / 2, plus half
    a unit of R."""
    q, unit = o.grid(x, sum_bits(num), per_row)
    return o.r(o.sum(q, axes, keep) * unit)


def divide(o: Primitives, x: Tensor, num: int) -> Tensor:
    """R(x / num) of 24-bit x and a count. Dividing by a power of two is exact scaling."""
    assert num < 2**24
    return o.r(x * (1.0 / num) if num & (num - 1) == 0 else x / float(num))


def finite(weights: np.ndarray) -> None:
    """Raise RunError if a weight is not finite: the rules do not cover overflow of float32."""
    if not np.isfinite(weights).all():
        raise RunError(
            f"a weight is not finite: an update went beyond the range of float32; {IF_DIVERGED}"
        )
