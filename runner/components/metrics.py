"""The metrics, and means over an epoch that do not depend on the batches.

z  # outputs [N, C]
y  # labels int[N], or targets float[N, C]

Both are in the data's units, also if training uses standardized targets. Each function returns the
value of every row, float64[N].
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from runner.errors import ConfigError, nearest

Array = np.ndarray
Rows = Callable[[Array, Array], Array]


def accuracy(z: Array, y: Array) -> Array:
    """1 if the largest output (the first one of equals) is that of the label, else 0. With a single
    output: 1 if z > 0 agrees with y > 1/2."""
    if z.shape[1] == 1:
        return ((z[:, 0] > 0) == (y.reshape(-1) > 0.5)).astype(np.float64)
    return (np.argmax(z, axis=1) == y).astype(np.float64)


def top_k_accuracy(k: int) -> Rows:
    """1 if fewer than k outputs are larger than that of the label, else 0."""

    def rows(z: Array, y: Array) -> Array:
        of_label = z[np.arange(len(y)), y][:, None]
        return ((z > of_label).sum(axis=1) < k).astype(np.float64)

    return rows


def mean_absolute_error(z: Array, y: Array) -> Array:
    """The mean over outputs of |z - y|."""
    return np.mean(np.abs(z.astype(np.float64) - y), axis=1)


def choose(names: Sequence[str] | str, task: str, num_outputs: int) -> dict[str, Rows]:
    """Choose metrics by name. `auto` is accuracy for classification, and none for regression, where
    the loss is enough."""
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
    """Means over an epoch: the exact sum of all rows' values, rounded once (math.fsum), divided by
    their number. The result does not depend on the order or on the batches."""

    def __init__(self, state: Mapping[str, tuple[int, list[float]]] | None = None) -> None:
        """Start empty, or from a saved state."""
        saved = state or {}
        self._num = {name: num for name, (num, _) in saved.items()}
        self._values: dict[str, list[Array]] = {
            name: [np.array(parts)] for name, (_, parts) in saved.items()
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
        """The state for a checkpoint: for each mean, the number of rows, and a few numbers that add
        up exactly to the sum of all values."""
        # replace the values by these numbers, so that they are not added again the next time
        for name, values in self._values.items():
            self._values[name] = [np.array(_expansion(np.concatenate(values)))]
        return {name: (num, self._values[name][0].tolist()) for name, num in self._num.items()}


def _expansion(values: Array) -> list[float]:
    """The exact sum as a list of numbers that add up to it: the rounded sum, then the rounded
    remainder, and so on."""
    parts: list[float] = []
    while part := math.fsum([*values, *(-p for p in parts)]):
        parts.append(part)
        if not math.isfinite(part):
            break
    return parts
