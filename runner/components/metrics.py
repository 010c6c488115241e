"""The metrics, and sums over an epoch that do not depend on how it was cut into batches.

z  # outputs [N, C]; y  # labels int[N] or targets float[N, C], both in the data's units even where
the targets are trained on standardized; each function gives the value of every row, float64[N].
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from runner.errors import ConfigError, nearest

Array = np.ndarray
Rows = Callable[[Array, Array], Array]


def accuracy(z: Array, y: Array) -> Array:
    """1 where the largest output is the label's (the first of equals), else 0. One output: where z
    > 0 is y > 1/2."""
    if z.shape[1] == 1:
        return ((z[:, 0] > 0) == (y.reshape(-1) > 0.5)).astype(np.float64)
    return (np.argmax(z, axis=1) == y).astype(np.float64)


def top_k_accuracy(k: int) -> Rows:
    """1 where fewer than k outputs are larger than the label's, else 0."""

    def rows(z: Array, y: Array) -> Array:
        of_label = z[np.arange(len(y)), y][:, None]
        return ((z > of_label).sum(axis=1) < k).astype(np.float64)

    return rows


def mean_absolute_error(z: Array, y: Array) -> Array:
    """The mean over outputs of |z - y|."""
    return np.mean(np.abs(z.astype(np.float64) - y), axis=1)


def choose(names: Sequence[str] | str, task: str, num_outputs: int) -> dict[str, Rows]:
    """The metrics by name. `auto`: accuracy for classification, none for regression (the loss says
    it)."""
    if names == "auto":
        names = ["accuracy"] if task == "classification" else []
    return {name: _find(name, task, num_outputs) for name in names}


def _find(name: str, task: str, num_outputs: int) -> Rows:
    fitting: Mapping[str, Rows] = (
        {"accuracy": accuracy}
        if task == "classification"
        else {"mean_absolute_error": mean_absolute_error}
    )
    if name in fitting:
        return fitting[name]
    match = re.fullmatch(r"top_([1-9]\d*)_accuracy", name)
    ranks = task == "classification" and num_outputs > 1
    if match and ranks:
        return top_k_accuracy(int(match[1]))
    allowed = [*fitting, *(["top_5_accuracy"] if ranks else [])]
    raise ConfigError(
        f"metrics must be auto or a list of {', '.join(allowed)} ({task}), got "
        f"{name}{nearest(name, allowed)}"
    )


class Means:
    """Means over an epoch: the exact sum of every row's value, rounded once (math.fsum), by their
    number; so the order and the batches do not matter."""

    def __init__(self, state: Mapping[str, tuple[int, list[float]]] | None = None) -> None:
        """Empty, or as `state` said."""
        said = state or {}
        self._num = {name: num for name, (num, _) in said.items()}
        self._values: dict[str, list[Array]] = {
            name: [np.array(parts)] for name, (_, parts) in said.items()
        }

    def add(self, rows: Mapping[str, Array]) -> None:
        for name, values in rows.items():
            self._num[name] = self._num.get(name, 0) + len(values)
            self._values.setdefault(name, []).append(values)

    def result(self) -> dict[str, float]:
        return {
            name: math.fsum(np.concatenate(self._values[name])) / num
            for name, num in self._num.items()
            if num
        }

    def state(self) -> dict[str, tuple[int, list[float]]]:
        """Return what a checkpoint keeps: the number of rows of each mean, and a few numbers whose
        sum is exactly theirs."""
        # the next time only what has come since is added up
        for name, values in self._values.items():
            self._values[name] = [np.array(_expansion(np.concatenate(values)))]
        return {name: (num, self._values[name][0].tolist()) for name, num in self._num.items()}


def _expansion(values: Array) -> list[float]:
    """The exact sum as numbers that add up to it: the sum rounded, then what is left of it rounded,
    ..."""
    parts: list[float] = []
    while part := math.fsum([*values, *(-p for p in parts)]):
        parts.append(part)
        if not math.isfinite(part):
            break
    return parts
