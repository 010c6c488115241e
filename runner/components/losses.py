"""The losses, computed from the network's raw outputs. These are in NumPy float64, for evaluation;
tests compare the backends' native losses with them.

z  # outputs [N, C]
y  # labels int[N], or targets float[N, C]

Each loss returns the value of every row, float64[N].
"""

import math
from typing import Annotated, Any, Literal, Union

import numpy as np
from pydantic import Field

from runner.errors import ConfigError
from runner.section import Fraction, Positive, Section

Array = np.ndarray


class CrossEntropy(Section):
    """-log softmax(z)_y; with `label_smoothing` s the target is (1 - s) one_hot(y) + s / C. Szegedy
    et al. (2016)."""

    name: Literal["cross_entropy"]
    label_smoothing: Fraction

    def rows(self, z: Array, y: Array) -> Array:
        z = z.astype(np.float64)
        shifted = z - z.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        of_label = log_p[np.arange(len(y)), y]
        return -(1 - self.label_smoothing) * of_label - self.label_smoothing * log_p.mean(axis=1)


class BinaryCrossEntropy(Section):
    """The mean over outputs of max(z, 0) - z y + log(1 + exp(-|z|)); z are logits, y in [0, 1]."""

    name: Literal["binary_cross_entropy"]

    def rows(self, z: Array, y: Array) -> Array:
        z = z.astype(np.float64)
        return np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))), axis=1)


class MeanSquaredError(Section):
    """The mean over outputs of (z - y)^2."""

    name: Literal["mean_squared_error"]

    def rows(self, z: Array, y: Array) -> Array:
        return np.mean((z.astype(np.float64) - y) ** 2, axis=1)


class Huber(Section):
    """The mean over outputs of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), e = z - y.
    Huber (1964)."""

    name: Literal["huber"]
    delta: Positive

    def rows(self, z: Array, y: Array) -> Array:
        size = np.abs(z.astype(np.float64) - y)
        return np.mean(
            np.where(size <= self.delta, size**2 / 2, self.delta * (size - self.delta / 2)), axis=1
        )


class Auto(Section):
    """The usual loss of the data's task: cross_entropy for labels, mean_squared_error for
    targets."""

    name: Literal["auto"]


Loss = Annotated[
    Union[CrossEntropy, BinaryCrossEntropy, MeanSquaredError, Huber, Auto],
    Field(discriminator="name"),
]


def choose(loss: Any, task: str, num_classes: int) -> Any:
    """Choose the loss for `auto` by the data's task; refuse a loss that does not fit the data."""
    if loss.name == "auto":
        loss = (
            CrossEntropy(name="cross_entropy", label_smoothing=0.0)
            if task == "classification"
            else MeanSquaredError(name="mean_squared_error")
        )
    labels = task == "classification"
    fits = {"cross_entropy": labels, "binary_cross_entropy": not labels or num_classes == 2}.get(
        loss.name, not labels
    )
    if not fits:
        content = f"labels of {num_classes} classes" if labels else "targets, not labels"
        raise ConfigError(f"loss={loss.name} does not fit this data, which has {content}")
    return loss


def num_outputs(loss: Any, task: str, num_classes: int, num_targets: int) -> int:
    """The number of outputs per row that the network must have."""
    if task == "classification":
        return 1 if loss.name == "binary_cross_entropy" else num_classes
    return num_targets


def targets(loss: Any, y: Array, dtype: np.dtype) -> Array:
    """Convert y for the loss: labels to int64[N], everything else to dtype[N, C]."""
    if loss.name == "cross_entropy":
        return y.astype(np.int64)
    # also for 0 rows, where reshape(0, -1) fails
    return np.ascontiguousarray(y.reshape(len(y), math.prod(y.shape[1:])), dtype=dtype)
