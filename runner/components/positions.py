"""The angles of rotary and sinusoidal positions."""

from decimal import Context, Decimal, localcontext
from functools import lru_cache

import numpy as np

_DIGITS = 50


@lru_cache
def rotations(num_steps: int, num_pairs: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Return cos(t a_i) and sin(t a_i) for step t, with a_i = base^(-i / num_pairs), base >= 1.

    They are computed with 50 decimal digits and rounded once: the same bits on every machine, which
    NumPy's functions do not promise.  # float64[num_steps, num_pairs] each
    """
    cos, sin = np.empty((num_steps, num_pairs)), np.empty((num_steps, num_pairs))
    with localcontext(Context(prec=_DIGITS)):
        for i in range(num_pairs):
            c, s = _cos_sin(Decimal(base) ** (Decimal(-i) / num_pairs))
            x, y = Decimal(1), Decimal(0)
            for t in range(num_steps):
                cos[t, i], sin[t, i] = float(x), float(y)
                x, y = x * c - y * s, x * s + y * c
    return cos, sin


def encodings(shape: tuple[int, ...], base: float) -> np.ndarray:
    """Return the sinusoidal encodings of a sequence.  # float64[shape]"""
    num_steps, features = shape
    cos, sin = rotations(num_steps, features // 2, base)
    return np.stack([sin, cos], -1).reshape(shape)


def _cos_sin(angle: Decimal) -> tuple[Decimal, Decimal]:
    """Return the cosine and the sine of an angle of at most 1, from their series."""
    sums, term = [Decimal(0)] * 4, Decimal(1)  # the sums of the terms 0, 1, 2, 3 modulo 4
    for n in range(1, _DIGITS):
        sums[(n - 1) % 4] += term
        term = term * angle / n
    return sums[0] - sums[2], sums[1] - sums[3]
