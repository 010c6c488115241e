"""The interface of a data set: rows by number."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

# field -> [rows, ...]: "x" the inputs, "y" the targets; each with its own dtype
Batch = Mapping[str, np.ndarray]


class Field(NamedTuple):
    """The shape and dtype of one field of a row."""

    shape: tuple[int, ...]  # without rows
    dtype: np.dtype


class Source(Protocol):
    """Rows by number, like a map-style data set."""

    @property
    def fields(self) -> Mapping[str, Field]: ...

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> Batch:
        """Read the rows with these numbers.  # int64[n] -> [n, ...] each"""
        ...
