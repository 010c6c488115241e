"""Weights of rows: how much each row counts in the loss and in the metrics.

With the weights w of a batch of N rows, its loss is sum(w l) / N for the rows' losses l, as for
keras.Model.fit's `sample_weight`; scikit-learn's and torch's means divide by sum(w) instead. So the
gradient of a row does not depend on the other rows, and weights of mean 1 keep the meaning of the
learning rate. The mean of a metric m over rows is sum(w m) / sum(w), as in scikit-learn.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from runner.data.dataset import Dataset
from runner.data.splits import SPLIT_WORDS, SPLITS, Parts
from runner.errors import ConfigError, show


def checked(values: np.ndarray, num_rows: int, name: str, first_row: int = 0) -> np.ndarray:
    """Return weights as float64[N]. Raise ConfigError, with `name`, if they are not one number >= 0
    per row. `first_row` is the number of the first one."""
    values = np.asarray(values)
    if values.shape != (num_rows,) or values.dtype.kind not in "iuf":
        raise ConfigError(
            f"{name} must be a number for each of {num_rows} rows, got {values.dtype} of shape "
            f"{list(values.shape)}"
        )
    weights = values.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise ConfigError(
            f"{name} must be finite and >= 0, got {show(float(weights[bad[0]]))} in row "
            f"{first_row + bad[0]}"
        )
    return weights


def weighted(
    data: Dataset,
    weight: np.ndarray | None,
    parts: Parts,
    name: str,
    own: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Dataset:
    """Give rows their weights. Raise ConfigError, with `name`, if all weights of a split are 0.

    Args:
        data: the data set, whose splits are the rows `parts`.
        weight: of all rows that were divided; None: the data has no weights.
        parts: the numbers of the training, validation and test rows.
        name: of the weights in an error.
        own: the weights of splits that have rows of their own.
    """
    if weight is None:
        return data
    found = {}
    for split, rows in zip(SPLITS, parts, strict=True):
        of_split, values = getattr(data, split), own.get(split, weight[rows])
        if len(of_split) and not values.any():
            words = SPLIT_WORDS[split]
            raise ConfigError(f"{name} must be above 0 for a row, got 0 for all {words} rows")
        found[split] = replace(of_split, weight=values)
    return replace(data, **found)
