"""Endless rows of fixed random networks: workloads that see no row twice.

Every run reads the same rows in the same order, whatever its seed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_CHUNK = 1024  # rows that are drawn at a time
_VAL_ROWS = 2000

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def classes(dims: int = 32, hidden: int = 64, num_classes: int = 10) -> dict[str, Any]:
    """Labels drawn from the softmax of a network with one hidden layer (ReLU)."""
    fixed = np.random.default_rng(7)
    first = 3 * fixed.normal(size=(dims, hidden)) / dims**0.5
    second = 3 * fixed.normal(size=(hidden, num_classes)) / hidden**0.5

    def draw(random: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        x = random.normal(size=(num, dims)).astype(np.float32)
        logits = np.maximum(x @ first, 0) @ second
        return x, (logits + random.gumbel(size=logits.shape)).argmax(axis=1)

    return _splits(draw)


def values(dims: int = 16, hidden: int = 32, noise: float = 0.3) -> dict[str, Any]:
    """Values of a network with one hidden layer (sine), with noise."""
    fixed = np.random.default_rng(11)
    first = 2 * fixed.normal(size=(dims, hidden)) / dims**0.5
    second = 2 * fixed.normal(size=(hidden, 1)) / hidden**0.5

    def draw(random: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        x = random.normal(size=(num, dims)).astype(np.float32)
        y = np.sin(x @ first) @ second + noise * random.normal(size=(num, 1))
        return x, y.astype(np.float32)

    return _splits(draw)


def _splits(draw: Draw) -> dict[str, Any]:
    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        random = np.random.default_rng(1)
        while True:
            yield from zip(*draw(random, _CHUNK), strict=True)

    return {"train": rows, "val": draw(np.random.default_rng(2), _VAL_ROWS)}
