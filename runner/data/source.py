"""Rows by number: what a data set gives, whatever holds it."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

# field -> [rows, ...]: "x" the inputs, "y" the targets; each with its own dtype
Batch = Mapping[str, np.ndarray]


class Field(NamedTuple):
    """One value of each row."""

    shape: tuple[int, ...]  # without rows
    dtype: np.dtype


class Source(Protocol):
    """Rows by number, as a map-style data set has them."""

    @property
    def fields(self) -> Mapping[str, Field]: ...

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> Batch:
        """The rows with these numbers.  # int64[n] -> [n, ...] each"""
        ...
