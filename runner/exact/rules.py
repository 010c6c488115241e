"""The rules of exact arithmetic, as functions: R and what the grid Q may hold.

Every tensor between two operations is an output of R: at most 24 significant bits, no subnormals,
no negative zero, in a float64. Between two roundings stands exact arithmetic, or one operation on
24-bit operands.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from runner.errors import RunError
from runner.exact.primitives import Primitives, Tensor

SIGNIFICAND = 53  # bits of an integer that float64 holds, and all sums of such that stay below
TINY = 2.0**-126  # the smallest normal float32: what is rounded to it, or to less, becomes +0
FEWEST_BITS = 16  # of an operand on the grid; below, training is no longer float32's
MOST_BITS = 24  # of an operand of a product: R's outputs have no more
_SUM_BITS = 32  # of a term of a sum: more than R keeps, since terms differ in size


def r(x: Any) -> np.ndarray:
    """R(x): x rounded to 24 bits, half to even, in a float64; +0 where that is at most 2^-126 in
    magnitude.

    |R(x) - x| <= 2^-24 |x| elsewhere. The zero comes after the rounding, so that R is the same
    whether or not the processor flushes subnormals.
    """
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):
        rounded = x.astype(np.float32)
    return np.where(np.abs(rounded) <= TINY, 0.0, rounded).astype(np.float64)


@lru_cache
def constant(value: float) -> float:
    """A number of the config as the arithmetic takes it: R(value)."""
    return float(r(value))


def log2_ceil(num: int) -> int:
    """ceil(log2 num); 0 for num <= 1."""
    return max(0, int(num) - 1).bit_length()


def product_bits(num: int) -> int:
    """b = min(24, (53 - ceil(log2 num)) // 2): a sum of `num` products of integers |i| <= 2^b is
    exact in any order."""
    bits = min(MOST_BITS, (SIGNIFICAND - log2_ceil(num)) // 2)
    assert 2 * bits + log2_ceil(num) <= SIGNIFICAND
    assert bits >= FEWEST_BITS, "runner.exact.refuse lets no such sum through"
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
    """R of the sum of `num` values on the grid; its error is at most num 2^-b max|x| / 2 and half a
    unit of R."""
    q, unit = o.grid(x, sum_bits(num), per_row)
    return o.r(o.sum(q, axes, keep) * unit)


def divide(o: Primitives, x: Tensor, num: int) -> Tensor:
    """R(x / num) of 24-bit x and a count; a power of two only scales."""
    assert num < 2**24
    return o.r(x * (1.0 / num) if num & (num - 1) == 0 else x / float(num))


def finite(weights: np.ndarray) -> None:
    """Overflow of float32 ends a run: beyond it nothing is determined by the rules."""
    if not np.isfinite(weights).all():
        raise RunError("a weight is not finite: an update went beyond the range of float32")
