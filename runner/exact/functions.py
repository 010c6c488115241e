"""exp, log, sigmoid, tanh and the normal distribution from tables, with exact products and sums
between two roundings.

In the comparisons below, NaN counts as the largest value, so that no index goes past the end of a
table. The run then fails at the check of the loss and the weights after the chunk.
"""

from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant
from runner.exact.tables import EXP_ENTRIES, EXP_LOW_BITS, LOG_ENTRIES, LOG_GRID, ln2

ONE = 2.0**40  # exp_negative(0): its values have the unit 2^-40
_LARGEST = 31.0  # exp(-31) 2^40 < 1/2


def exp_negative(o: Primitives, d: Tensor) -> Tensor:
    """exp(-d) for d >= 0, as an integer in units of 2^-40. |error| <= 2^-23 exp(-d) + 2^-41.

    d is rounded to 2^-23 and split: exp(-high 2^-9) exp(-low 2^-23) is the exact product of two
    table entries of 26 bits. The relative error is 2^-24 from the rounding of d and 2^-26 from each
    entry.
    """
    fixed = o.rint(o.where(d < _LARGEST, d, _LARGEST) * 2.0**EXP_LOW_BITS)
    high, low = o.split(fixed, EXP_ENTRIES)
    return o.rint(o.take("exp_high", high) * o.take("exp_low", low) * ONE)


def exponentials(o: Primitives, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exponentials over the last axis, which has at most 2^13 values: d = max z - z, e = exp(-d) in
    units of 2^-40, s = the exact sum of e."""
    d = o.r(o.largest(z) - z)
    e = exp_negative(o, d)
    return d, e, o.sum(e, (len(z.shape) - 1,), True)


def log(o: Primitives, s: Tensor) -> Tensor:
    """ln(s 2^-40) of integers 2^40 <= s < 2^53, in units of 2^-34. |error| <= 2^-26.

    s = 2^e f, with f rounded to 2^-26; c = 1 / f to 7 bits. Then ln f = -ln c + ln(1 + t) with
    t = f c - 1, |t| < 2^-7, and ln(1 + t) = t - t^2 / 2 + t^3 / 3; the next term is below 2^-30.
    """
    power, exponent = o.power(s)
    f = o.rint(s * (1.0 / power) * 2.0**26)
    f = o.where(f < 2.0**27, f, 2.0**27 - 1)
    j, _ = o.split(f - 2.0**26, 26 - LOG_ENTRIES)
    t = o.rint((f * 2.0**-26 * o.take("log_inverse", j) - 1.0) * 2.0**34) * 2.0**-34
    square = o.rint(t * t * 2.0**36) * 2.0**-36
    cube = o.rint(square * t * 2.0**36) * 2.0**-36
    third = o.rint(cube * constant(1 / 3) * 2.0**34) * 2.0**-34
    series = o.rint((t - square * 0.5 + third) * 2.0**LOG_GRID)
    return (series + o.take("log_value", j) + (exponent - 40.0) * ln2()) * 2.0**-LOG_GRID


def sigmoid(o: Primitives, x: Tensor) -> tuple[Tensor, Tensor]:
    """(1 / (1 + exp(-x)), 1 / (1 + exp(x))). |error| <= 2^-21 relative, plus 2^-40, of each."""
    e = exp_negative(o, o.abs(x))
    denominator = o.r(e + ONE)
    large, small = o.r(ONE / denominator), o.r(o.r(e) / denominator)
    negative = x < 0.0
    return o.where(negative, small, large), o.where(negative, large, small)


def tanh(o: Primitives, x: Tensor) -> Tensor:
    """(1 - e) / (1 + e) with e = exp(-2 |x|); for |x| < 2^-4, x (1 - x^2 / 3 + 2 x^4 / 15).
    |error| <= 2^-19 |tanh x|.

    The error is largest just above 2^-4, where 1 - e magnifies e's error 2^-23 e by
    1 / sinh(2 |x|) <= 8. From |x| = 1 on it is at most 2^-21.
    """
    magnitude = o.abs(x)
    e = exp_negative(o, magnitude * 2.0)
    far = o.r(o.r(ONE - e) / o.r(ONE + e))
    square = o.r(x * x)
    near = o.r(x * o.r(o.r(square * constant(2 / 15) - constant(1 / 3)) * square + 1.0))
    return o.where(magnitude < 2.0**-4, near, o.where(x < 0.0, -far, far))


def normal(o: Primitives, x: Tensor) -> tuple[Tensor, Tensor]:
    """(Phi(x), phi(x)) of the standard normal distribution. |error| <= 2^-24 of Phi, 2^-23 of phi.

    Phi is a Taylor series to the third power around the middle of a cell, in fixed point; there are
    1,024 cells of width 2^-7.
    """
    magnitude = o.abs(x)
    high, low = o.split(o.rint(o.where(magnitude < 7.999, magnitude, 7.999) * 2.0**23), 16)
    t = (o.real(low) - 2.0**15) * 2.0**-23
    u = o.rint((o.take("phi_3", high) * t + o.take("phi_2", high)) * 2.0**26) * 2.0**-26
    u = o.rint((u * t + o.take("phi_1", high)) * 2.0**30) * 2.0**-30
    u = o.rint((u * t + o.take("phi_0", high)) * 2.0**36) * 2.0**-36
    density = o.r(
        o.r(exp_negative(o, o.r(x * x * 0.5)) * (1 / ONE))
        * constant((2 * 3.141592653589793) ** -0.5)
    )
    return o.r(o.where(x < 0.0, 1.0 - u, u)), density
