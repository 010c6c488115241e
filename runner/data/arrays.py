"""Rows that were passed in Python: NumPy arrays, tensors on the CPU, DataFrames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from runner.data.dataset import (
    Dataset,
    Split,
    check,
    check_classes,
    standardize,
    take,
)
from runner.data.files import Rows, as_float, as_targets, as_text, numbers_as_labels, unscaled
from runner.data.splits import SPLITS
from runner.errors import ConfigError, show
from runner.section import Holder


@dataclass(frozen=True)
class Given:
    """The rows of each split that was passed, and the names of their columns. The rows of "train"
    may have groups and times, for data.split."""

    splits: Mapping[str, tuple[np.ndarray, np.ndarray]]  # at least "train" -> x, y
    features: tuple[str, ...] = ()
    target: str | None = None
    groups: np.ndarray | None = None
    times: np.ndarray | None = None
    choice: str = "arrays"  # data=arrays


def given(data: Any) -> Given:
    """Read the argument `data` of runner.train: (x, y), {"x": x, "y": y}, or a mapping of the
    splits train, val and test to these. A mapping may have "group" and "time" too, for data.split.
    Raises ConfigError for anything else."""
    if isinstance(data, Mapping) and "train" in data:
        unknown = [name for name in data if name not in SPLITS]
        if unknown:
            raise ConfigError(f"data has the splits train, val and test, got {show(unknown[0])}")
        parts = {name: _pair(data[name], f"data[{name!r}]") for name in SPLITS if name in data}
    else:
        parts = {"train": _pair(data, "data")}
    x, y = parts["train"]
    columns = tuple(str(name) for name in x.columns) if hasattr(x, "columns") else ()
    for name, (other, _) in parts.items():
        if columns and tuple(map(str, getattr(other, "columns", ()))) != columns:
            raise ConfigError(f"data[{name!r}] must have the columns of data['train']")
    target = y.columns[0] if _is_column(y) else getattr(y, "name", None)
    arrays = {
        key: (
            _array(x, "x", key),
            _array(y, "y", key).ravel() if _is_column(y) else _array(y, "y", key),
        )
        for key, (x, y) in parts.items()
    }
    whole = data["train"] if isinstance(data, Mapping) and "train" in data else data
    groups, times = (_column(whole, name) for name in ("group", "time"))
    return Given(arrays, columns, target if isinstance(target, str) else None, groups, times)


def _column(data: Any, name: str) -> np.ndarray | None:
    """Return the groups or times that were passed; None if there are none."""
    values = data.get(name) if isinstance(data, Mapping) else None
    return None if values is None else as_text(_array(values, name, "data"))


def _is_column(y: Any) -> bool:
    """Return whether y is a DataFrame of one column."""
    return len(getattr(y, "columns", ())) == 1


def _pair(data: Any, name: str) -> tuple[Any, Any]:
    """Return x and y. An array of two rows is no pair."""
    if isinstance(data, Mapping):
        if {"x", "y"} <= set(data) <= {"x", "y", "group", "time"}:
            return data["x"], data["y"]
        got = ", ".join(show(key) for key in data) or "no keys"
        raise ConfigError(f"{name} must have the keys x and y, got {got}")
    if isinstance(data, Sequence) and not isinstance(data, str) and len(data) == 2:
        return data[0], data[1]
    is_map_style = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if is_map_style and not isinstance(data, Sequence) and not hasattr(data, "shape"):
        return _stacked(data, name)
    kind = f"{type(data).__module__}.{type(data).__qualname__}".removeprefix("builtins.")
    count = f" of {len(data)}" if isinstance(data, Sequence) else ""
    raise ConfigError(f"{name} must be (x, y), got {kind}{count}")


def _stacked(data: Any, name: str) -> tuple[Any, Any]:
    """Read all rows of a map-style data set, data[i] -> (x, y)."""
    try:
        pairs = [data[i] for i in range(len(data))]
        x, y = zip(*((_array(x, "x", name), _array(y, "y", name)) for x, y in pairs), strict=True)
        return np.stack(x), np.stack(y)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} must give (x, y) of one shape for each row, got "
            f"{type(data).__name__}: {show(' '.join(str(error).split()))}"
        ) from None


def _array(values: Any, name: str, split: str) -> np.ndarray:
    """Convert to an array; copy nothing if it is one."""
    try:
        if hasattr(values, "detach"):  # a tensor of torch that is part of a graph
            values = values.detach()
        return np.asarray(values)
    except Exception as error:  # a tensor on another device, a list of unequal rows
        raise ConfigError(
            f"data: {name} of {split} must be an array, got {type(values).__name__}: "
            f"{show(' '.join(str(error).split()))}"
        ) from None


class Arrays(Rows, Holder):
    """Arrays x and y that were passed in Python, runner.train(data=(x, y)), in the form of
    data=npz. Labels may be text too. `val_fraction` and `test_fraction` are 0 for a split that was
    passed."""

    name: Literal["arrays"]

    def load(self) -> Dataset:
        rows = self.given
        if rows is None:
            raise ConfigError(
                "data=arrays are rows that were passed in Python, and are in no file; use "
                "runner.train, runner.resume or runner.load_run with data=..."
            )
        x = {name: as_float(x, "x", _source(name, rows)) for name, (x, _) in rows.splits.items()}
        _check_shapes(x, rows)
        labels, classes = self._labels(rows)
        for name in x:
            check(x[name], labels[name], _source(name, rows))
        data = self._split(x, labels, rows, classes)
        check_classes(data, "data")
        scaled = (
            ()
            if self.standardize
            else unscaled(x["train"], "data", "data.standardize=true scales them")
        )
        if self.standardize:
            data = standardize(data, x=True, y=self.task == "regression")
        numeric = numbers_as_labels("data: y", len(data.train), classes)
        return replace(data, warnings=(*scaled, *numeric))

    def _labels(self, rows: Given) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Return the targets of each split, with the same classes in all of them."""
        y = {name: values for name, (_, values) in rows.splits.items()}
        for name, values in y.items():
            if values.ndim == 0:
                raise ConfigError(f"{_source(name, rows)}: y must be an array, got one value")
        if self.task == "regression":
            return {n: as_targets(v, "regression", _source(n, rows))[0] for n, v in y.items()}, ()
        if all(values.dtype.kind in "OUb" and values.ndim == 1 for values in y.values()):
            return _numbered(y, rows)
        shape = rows.splits["train"][0].shape[1:]
        for name, values in y.items():
            as_targets(values, self.task, _source(name, rows), shape)
        ends = np.cumsum([len(values) for values in y.values()])[:-1]
        whole, classes = as_targets(np.concatenate([*y.values()]), self.task, "data", shape)
        return dict(zip(y, np.split(whole, ends), strict=True)), classes

    def _split(
        self,
        x: Mapping[str, np.ndarray],
        y: Mapping[str, np.ndarray],
        rows: Given,
        classes: tuple[str, ...],
    ) -> Dataset:
        """Take the splits that were passed; split the others off the training rows."""
        labels = y["train"] if self.task == "classification" else None
        parts = self.rows(
            len(y["train"]),
            "data",
            labels=labels,
            groups=rows.groups,
            times=rows.times,
            given=x,
        )
        splits = dict(zip(SPLITS, take(x["train"], y["train"], parts), strict=True))
        splits |= {name: Split(x[name], y[name]) for name in x if name != "train"}
        return Dataset(
            splits["train"],
            splits["val"],
            splits["test"],
            task=self.task,
            classes=classes,
            features=rows.features if x["train"].ndim == 2 else (),
            target=rows.target,
            folds_sha256=self.folds_sha256(x["train"], y["train"], rows.groups, rows.times),
        )


def _source(name: str, rows: Given) -> str:
    """The name of a split in an error."""
    return "data" if len(rows.splits) == 1 else f"data[{name!r}]"


def _check_shapes(x: Mapping[str, np.ndarray], rows: Given) -> None:
    for name, values in x.items():
        source = _source(name, rows)
        if values.ndim < 2 or 0 in values.shape[1:]:
            raise ConfigError(
                f"{source}: x must hold a row of values per sample, got the shape "
                f"{list(values.shape)}"
            )
        if values.shape[1:] != x["train"].shape[1:]:
            raise ConfigError(
                f"{source}: a row of x must have the shape of a training row, "
                f"{list(x['train'].shape[1:])}, got {list(values.shape[1:])}"
            )


def _numbered(
    y: Mapping[str, np.ndarray], rows: Given
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Number labels that are text or truth values, sorted."""
    for name, values in y.items():
        for row, label in enumerate(values):
            if not isinstance(label, str | bool | np.bool_):
                raise ConfigError(
                    f"{_source(name, rows)}: row {row} of y must be a label, got {show(label)}; "
                    f"labels are text or integers"
                )
    text = {name: np.array([str(label) for label in values]) for name, values in y.items()}
    names = sorted({str(label) for values in text.values() for label in values})
    number = {label: i for i, label in enumerate(names)}
    labels = {
        name: np.array([number[label] for label in values], dtype=np.int64)
        for name, values in text.items()
    }
    return labels, tuple(names)
