"""Choice of the rows of a table of tests that belong to the default suite."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(names: Iterable[object], *quick: object) -> list[Any]:
    """All rows; by default the `quick` ones stand for the rest, which are marked slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def long_but(
    names: Iterable[object], slow: Iterable[object], quick: Iterable[object] = ()
) -> list[Any]:
    """All rows of a grid; the `quick` ones by default, the `slow` ones in the slow suite, and the
    rest with `-m long`, since those state the same claim of other cases."""
    quick, slow = [*quick], [*slow]
    return [
        pytest.param(
            *(name if isinstance(name, tuple) else (name,)),
            marks=() if name in quick else pytest.mark.slow if name in slow else pytest.mark.long,
        )
        for name in names
    ]


def slow_rows(rows: Iterable[tuple[Any, ...]], quick: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The same for rows of several parameters."""
    quick = set(quick)
    return [pytest.param(*row, marks=() if row in quick else pytest.mark.slow) for row in rows]


def of_lengths(
    names: Iterable[object], num_updates: int, quick: Iterable[object] = (), longest: int = 300
) -> list[Any]:
    """Each row with so many updates, in the slow suite unless it is `quick`, and with as many as
    the parity table has by `-m long`."""
    names = [*names]
    slow = [(name, num_updates) for name in names]
    quick_rows = [(name, num_updates) for name in quick]
    return long_but([*slow, *((name, longest) for name in names)], slow, quick_rows)
