"""Tables of exp, log and Phi, computed with integers: the same bits on every machine. A process
computes each table once.

A fixed-point number with F fraction bits is an integer n with the value n 2^-F. Every step below
truncates at 2^-F, F = 256, so an entry is correctly rounded unless it is within 2^-200 of a tie.
"""

from collections.abc import Callable
from functools import lru_cache
from math import isqrt

import numpy as np

_F = 256
_ONE = 1 << _F

# exp_high[k] = exp(-k 2^-9), exp_low[k] = exp(-k 2^-23), k < 2^14, 26 significant bits each
EXP_HIGH_BITS = 9
EXP_LOW_BITS = 23
EXP_ENTRIES = 14
# log_inverse[j] = c_j = 1 / (1 + (j + 1/2) 2^-7) to 2^-20; log_value[j] = -ln c_j in units of 2^-34
LOG_ENTRIES = 7
LOG_GRID = 34
# phi_n[k] = the n-th Taylor coefficient of Phi at (k + 1/2) 2^-7, in units of 2^-40, -34, -30, -16
PHI_ENTRIES = 1024
PHI_GRIDS = (40, 34, 30, 16)


@lru_cache
def table(name: str) -> np.ndarray:
    """Return a table by its name.  # float64"""
    return _BUILD[name]()


@lru_cache
def ln2() -> float:
    """ln 2, rounded to units of 2^-34."""
    return float(_round(_ln(2 * _ONE), _F - LOG_GRID))


def _round(n: int, bits: int) -> int:
    """n 2^-bits, rounded to the nearest integer, half to even."""
    quotient, remainder = n >> bits, n & ((1 << bits) - 1)
    half = 1 << (bits - 1)
    return quotient + (remainder > half or (remainder == half and quotient & 1 == 1))


def _significant(n: int, bits: int) -> float:
    """A positive fixed-point number rounded to `bits` significant bits."""
    shift = n.bit_length() - bits
    return float(_round(n, shift)) * 2.0 ** (shift - _F)


def _exp_negative(x: int) -> int:
    """exp(-x), x >= 0 in fixed point: the Taylor series of exp(-x 2^-16), squared 16 times."""
    x >>= 16
    term = total = _ONE
    k = 1
    while term:
        term = (term * x >> _F) // k
        total += -term if k & 1 else term
        k += 1
    for _ in range(16):
        total = total * total >> _F
    return total


def _ln(x: int) -> int:
    """ln x = 2 artanh((x - 1) / (x + 1)), 0 < x <= 2 in fixed point."""
    y = ((x - _ONE) << _F) // (x + _ONE)
    square, term, total, k = y * y >> _F, y, 0, 1
    while abs(term) > k:
        total += term // k
        term = term * square >> _F
        k += 2
    return 2 * total


def _powers(scale: int) -> np.ndarray:
    """exp(-k 2^-scale) for every k < 2^14, each computed from the one before."""
    ratio, value, entries = _exp_negative(1 << (_F - scale)), _ONE, []
    for _ in range(1 << EXP_ENTRIES):
        entries.append(_significant(value, 26))
        value = value * ratio >> _F
    return np.array(entries)


def _log_inverses() -> list[int]:
    num = 1 << LOG_ENTRIES
    return [
        ((1 << 20) * 4 * num + 2 * num + 2 * j + 1) // (2 * (2 * num + 2 * j + 1))
        for j in range(num)
    ]


def _log_values() -> np.ndarray:
    return np.array([float(_round(-_ln(c << (_F - 20)), _F - LOG_GRID)) for c in _log_inverses()])


@lru_cache
def _phi() -> tuple[np.ndarray, ...]:
    """Phi, phi, -h phi / 2 and (h^2 - 1) phi / 6 at h = (k + 1/2) / 128.

    phi(h) = exp(-h^2 / 2) / sqrt(2 pi); Phi(h) = 1/2 + phi(h) sum of h^(2n + 1) / (1 3 5 ... (2n +
    1)).
    """
    scale = (_ONE << _F) // isqrt(2 * _pi() << _F)
    columns: tuple[list[float], ...] = ([], [], [], [])
    for k in range(PHI_ENTRIES):
        h = (2 * k + 1) << (_F - 8)
        square = h * h >> _F
        density = _exp_negative(square >> 1) * scale >> _F
        term, total, n = h, 0, 1
        while term:
            total += term
            n += 2
            term = (term * square >> _F) // n
        values = (
            (_ONE >> 1) + (density * total >> _F),
            density,
            -(h * density >> _F) // 2,
            ((square - _ONE) * density >> _F) // 6,
        )
        for column, value, bits in zip(columns, values, PHI_GRIDS, strict=True):
            column.append(float(_round(value, _F - bits)) * 2.0**-bits)
    return tuple(np.array(column) for column in columns)


def _pi() -> int:
    """Machin (1706): pi = 16 arctan(1/5) - 4 arctan(1/239)."""

    def arctan_inverse(n: int) -> int:
        term, total, k = _ONE // n, 0, 1
        while term:
            total += term // k if k & 2 == 0 else -(term // k)
            term //= n * n
            k += 2
        return total

    return 16 * arctan_inverse(5) - 4 * arctan_inverse(239)


_BUILD: dict[str, Callable[[], np.ndarray]] = {
    "exp_high": lambda: _powers(EXP_HIGH_BITS),
    "exp_low": lambda: _powers(EXP_LOW_BITS),
    "log_inverse": lambda: np.array(_log_inverses()) * 2.0**-20,
    "log_value": _log_values,
    "phi_0": lambda: _phi()[0],
    "phi_1": lambda: _phi()[1],
    "phi_2": lambda: _phi()[2],
    "phi_3": lambda: _phi()[3],
}
