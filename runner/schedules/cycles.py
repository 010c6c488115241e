"""Cycles of growing length: find the cycle of a step, and the position in it."""

from fractions import Fraction
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from runner.schedules.ramps import Array
from runner.schedules.units import half_up


class Position(NamedTuple):
    number: Array  # number of the cycle, from 0
    step: Array  # step within the cycle, from 0
    length: Array  # length of the cycle in steps


@lru_cache(maxsize=8)
def cycles(period: Fraction, growth: float) -> "Cycles":
    """Cache the cycles of a schedule, since its table is computed block by block."""
    return Cycles(period, growth)


class Cycles:
    """Cycle i begins at b_i = half_up(P (1 + g + ... + g^(i-1))), but not before b_(i-1) + 1; P =
    `period`, g = `growth`.

    The first steps are rounded, not the lengths. If g = 1 and P is whole, they are the multiples of
    P.
    """

    def __init__(self, period: Fraction, growth: float) -> None:
        self._period, self._growth = period, Fraction(growth)
        self._constant = (
            max(1, period.numerator) if growth == 1 and period.denominator == 1 else None
        )
        self._begins: list[int] = [0]
        self._exact, self._next = Fraction(0), period

    def at(self, t: Array) -> Position:
        """Locate each of the steps t in its cycle.  # int64[n] each"""
        if self._constant is not None:
            number, step = np.divmod(t, self._constant)
            return Position(number, step, np.full(t.shape, self._constant))
        begins = self._until(int(t.max(initial=0)))
        number = np.searchsorted(begins, t, side="right") - 1
        return Position(number, t - begins[number], np.diff(begins)[number])

    def begins(self, end: int) -> list[int]:
        """The first steps of all cycles that begin at or before the step `end`."""
        if self._constant is not None:
            return list(range(0, end + 1, self._constant))
        return [int(begin) for begin in takewhile(lambda begin: begin <= end, self._until(end))]

    def _until(self, last: int) -> Array:
        """The first steps of the cycles, up to the first one after the step `last`."""
        while self._begins[-1] <= last:
            self._exact += self._next
            self._next = _rounded(self._next * self._growth)
            self._begins.append(max(half_up(self._exact), self._begins[-1] + 1))
        return np.array(self._begins)


def _rounded(length: Fraction) -> Fraction:
    """Round to 2^-64 of a step; exact powers of a float have more and more digits."""
    return length.limit_denominator(2**64)
