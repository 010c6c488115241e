"""The interface of a data set: rows by number."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

# field -> [rows, ...]: "x" the inputs, "y" the targets; each with its own dtype
Batch = Mapping[str, np.ndarray]


class Field(NamedTuple):
    """The shape and dtype of one field of a row."""

    shape: tuple[int, ...]  # without rows
    dtype: np.dtype


def blocks_of(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield the fields of `size` rows after another."""
    for i in range(0, len(batch["x"]), size):
        yield {name: values[i : i + size] for name, values in batch.items()}


class Source(Protocol):
    """Rows by number, like a map-style data set."""

    @property
    def fields(self) -> Mapping[str, Field]: ...

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> Batch:
        """Read the rows with these numbers.  # int64[n] -> [n, ...] each"""
        ...
