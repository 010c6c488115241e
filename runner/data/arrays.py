"""Rows that were passed in Python, or that the user's own code returns: NumPy arrays, tensors on
the CPU, DataFrames, map-style data sets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from runner import user_code
from runner.data import weights
from runner.data.dataset import (
    Dataset,
    Split,
    check,
    check_classes,
    standardize,
    take,
)
from runner.data.files import Rows, as_float, as_targets, as_text, numbers_as_labels, unscaled
from runner.data.iterable import Batched, Items, Stream, is_batched, is_iterable
from runner.data.mapped import MapStyle, is_map_style
from runner.data.mixing import Alpha
from runner.data.splits import SPLITS, named_splits
from runner.data.stream import StreamedRows
from runner.errors import ConfigError, one_line, show
from runner.section import Count, Holder, OwnCode

Pair = tuple[Any, np.ndarray]  # x, an array or StreamedRows, and y


@dataclass(frozen=True)
class Given:
    """The rows of each split that was passed, and the names of their columns. The rows of "train"
    may have groups and times, for data.split."""

    splits: Mapping[str, Pair | MapStyle | Items]  # at least "train"
    features: tuple[str, ...] = ()
    target: str | None = None
    groups: np.ndarray | None = None
    times: np.ndarray | None = None
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)  # split -> weights of rows
    name: str = "data"  # in an error
    choice: str = "arrays"  # data=arrays

    @property
    def is_iterated(self) -> bool:
        """True if the training rows are an iterable."""
        return isinstance(self.splits["train"], Items)

    def of(self, split: str) -> str:
        """The name of a split in an error."""
        return self.name if len(self.splits) == 1 else f"{self.name}[{split!r}]"


_RETURNS = (
    "it may also be x, y and group, a map-style data set, or a dict of these with the keys train, "
    "val and test"
)


def given(
    data: Any, name: str = "data", module: str = "", again: Callable[[], Any] | None = None
) -> Given:
    """Read the argument `data` of runner.train: (x, y), {"x": x, "y": y}, a map-style data set, or
    a mapping of the splits train, val and test to these. The training rows may be an iterable. A
    mapping may have "group" and "time" too, for data.split, and "weight", the weights of the rows.
    `name` is its name in an error, `module` that of the user's code which made it, and `again`
    calls this code again. Raises ConfigError for anything else."""
    is_split = isinstance(data, Mapping) and "train" in data
    if is_split:
        data = named_splits(data)
        unknown = [key for key in data if key not in SPLITS]
        if unknown:
            raise ConfigError(f"{name} has the splits train, val and test, got {show(unknown[0])}")
    named = {key: data[key] for key in SPLITS if key in data} if is_split else {"train": data}
    parts: dict[str, Any] = {}
    for key, value in named.items():
        source = f"{name}[{key!r}]" if len(named) > 1 else name
        rows: Any = _map_style(value, source, module)
        if key == "train" and is_iterable(value):
            make = again and partial(_train_of, again)
            rows = Items(value, source, module, make)
        parts[key] = _pair(value, source) if rows is None else rows
    pairs = {key: part for key, part in parts.items() if not isinstance(part, MapStyle | Items)}
    features, target = _names(pairs, name)
    arrays = {
        key: (
            _array(x, "x", key),
            _array(y, "y", key).ravel() if _is_column(y) else _array(y, "y", key),
        )
        for key, (x, y) in pairs.items()
    }
    groups, times = (_column(named["train"], key) for key in ("group", "time"))
    found = {key: _column(named[key], "weight") for key in arrays}
    weights = {key: values for key, values in found.items() if values is not None}
    return Given({**parts, **arrays}, features, target, groups, times, weights, name)


def _train_of(again: Callable[[], Any]) -> Any:
    """Return the training rows of what the user's code makes."""
    made = again()
    return made["train"] if isinstance(made, Mapping) else made


def _map_style(data: Any, source: str, module: str) -> MapStyle | None:
    """Return a map-style data set; None for other rows. A list of dicts x and y is one, too."""
    is_list = isinstance(data, list) and data and all(isinstance(row, Mapping) for row in data)
    return MapStyle(source, module, data=data) if is_list or is_map_style(data) else None


def _names(pairs: Mapping[str, tuple[Any, Any]], name: str) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the columns of x and y, if they are DataFrames."""
    if "train" not in pairs:
        return (), None
    x, y = pairs["train"]
    columns = tuple(str(column) for column in x.columns) if hasattr(x, "columns") else ()
    for key, (other, _) in pairs.items():
        if columns and tuple(map(str, getattr(other, "columns", ()))) != columns:
            raise ConfigError(f"{name}[{key!r}] must have the columns of {name}['train']")
    target = y.columns[0] if _is_column(y) else getattr(y, "name", None)
    return columns, target if isinstance(target, str) else None


def _column(data: Any, name: str) -> np.ndarray | None:
    """Return the groups, times or weights that were passed; None if there are none."""
    values = data.get(name) if isinstance(data, Mapping) else None
    return None if values is None else as_text(_array(values, name, "data"))


def _checked_weights(found: Mapping[str, np.ndarray], rows: Given) -> dict[str, np.ndarray]:
    """Check the weights of each split; refuse weights for some splits only."""
    pairs: dict[str, Any] = dict(rows.splits)
    lacking = [split for split in pairs if split not in found]
    if found and lacking:
        raise ConfigError(
            f"{rows.of(lacking[0])} must have weights, because {rows.of(next(iter(found)))} has "
            f"weights"
        )
    return {
        split: weights.checked(values, len(pairs[split][1]), f"weight of {rows.of(split)}")
        for split, values in found.items()
    }


def _is_column(y: Any) -> bool:
    """Return whether y is a DataFrame of one column."""
    return len(getattr(y, "columns", ())) == 1


def _pair(data: Any, name: str) -> tuple[Any, Any]:
    """Return x and y. An array of two rows is no pair."""
    if isinstance(data, Mapping):
        if {"x", "y"} <= set(data) <= {"x", "y", "group", "time", "weight"}:
            return data["x"], data["y"]
        got = ", ".join(show(key) for key in data) or "no keys"
        raise ConfigError(f"{name} must have the keys x and y, got {got}")
    if isinstance(data, Sequence) and not isinstance(data, str) and len(data) == 2:
        return data[0], data[1]
    kind = f"{type(data).__module__}.{type(data).__qualname__}".removeprefix("builtins.")
    count = f" of {len(data)}" if isinstance(data, Sequence) else ""
    if is_iterable(data):  # of validation or test rows
        raise ConfigError(
            f"{name} must have rows by number (__len__ and __getitem__), got {kind}, which can "
            f"only be iterated over, as training rows can; pass the data set that it reads, or "
            f"arrays of its rows"
        )
    raise ConfigError(f"{name} must be (x, y), got {kind}{count}")


def _array(values: Any, name: str, split: str) -> np.ndarray:
    """Convert to an array; copy nothing if it is one."""
    try:
        if hasattr(values, "detach"):  # a tensor of torch that is part of a graph
            values = values.detach()
        return np.asarray(values)
    except Exception as error:  # a tensor on another device, a list of unequal rows
        raise ConfigError(
            f"data: {name} of {split} must be an array, got {type(values).__name__}: "
            f"{show(one_line(error))}"
        ) from None


class Passed(Rows):
    """Rows that are passed as objects, in the form of data=npz. Labels may be text too. Rows of a
    map-style data set are (x, y), or dicts with the fields x and y, or with the fields `inputs` (a
    list joins them to a vector) and `target`. They are read into memory; with `memory_mb` (in 2^20
    bytes), x is read while training, as data=npy reads it."""

    inputs: str | list[str] | None
    target: str | None
    memory_mb: Count | None
    mixup: Alpha
    cutmix: Alpha

    def dataset(self, given: Given) -> Dataset:
        """Check the rows and split them."""
        rows, read = self._read(given)
        pairs: dict[str, Any] = dict(rows.splits)
        x: dict[str, Any] = {
            name: x if isinstance(x, StreamedRows) else as_float(x, "x", rows.of(name))
            for name, (x, _) in pairs.items()
        }
        _check_shapes(x, rows)
        labels, classes = self._labels(rows)
        for name in x:
            values = x[name].rows if isinstance(x[name], StreamedRows) else x[name]
            check(values, labels[name], rows.of(name))
        data = self._split(x, labels, rows, classes)
        check_classes(data, rows.name)
        remedy = "data.standardize=true scales them"
        if self.memory_mb is not None:
            data = replace(data, memory=self.memory_mb * 2**20)
            remedy = "scale them in your code, or begin model.layers with {layer: batch_norm}"
        scaled = () if self.standardize else unscaled(x["train"], rows.name, remedy)
        if self.standardize:
            data = standardize(data, x=True, y=self.task == "regression")
        alone = () if self.task == "transcription" else classes
        numeric = numbers_as_labels(f"{rows.name}: y", len(data.train), alone)
        return replace(data, warnings=(*read, *scaled, *numeric))

    def _read(self, given: Given) -> tuple[Given, list[str]]:
        """Read the rows of map-style data sets. Return warnings too."""
        warnings: list[str] = []
        splits, of_rows = dict(given.splits), dict(given.weights)
        for name, part in given.splits.items():
            if not isinstance(part, MapStyle):
                self._refuse_fields(given.of(name))
                continue
            chosen = part.choose(self.inputs, self.target)
            if self.memory_mb is not None and self.task == "transcription":
                raise ConfigError(
                    f"data.memory_mb must be null with data.task=transcription, whose rows are in "
                    f"memory, got {self.memory_mb}"
                )
            if self.memory_mb is not None and self.standardize:
                raise ConfigError(
                    "data.standardize must be false with data.memory_mb, because the mean of rows "
                    "that are read while training is not known, got true"
                )
            fields = chosen.load(self.memory_mb is not None)
            splits[name] = fields.x, fields.y
            warnings += fields.warnings
            if fields.weight is not None:
                of_rows[name] = fields.weight
            if name == "train":
                group = None if fields.group is None else as_text(fields.group)
                given = replace(given, groups=group, times=fields.time)
                features = () if isinstance(self.inputs, str | None) else tuple(self.inputs)
                is_vector = fields.x.shape[1:] == (len(features),)
                given = replace(given, features=features if is_vector else (), target=self.target)
        given = replace(given, splits=splits)
        return replace(given, weights=_checked_weights(of_rows, given)), warnings

    def _refuse_fields(self, source: str) -> None:
        """Refuse keys for map-style data sets if the rows are arrays."""
        for key in ("inputs", "target", "memory_mb"):
            value = getattr(self, key)
            if value is not None:
                raise ConfigError(
                    f"data.{key} must be null for arrays x and y, got {show(value)}, and {source} "
                    f"is no map-style data set"
                )

    def _labels(self, rows: Given) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Return the targets of each split, with the same classes in all of them."""
        pairs: dict[str, Any] = dict(rows.splits)
        y = {name: values for name, (_, values) in pairs.items()}
        for name, values in y.items():
            if values.ndim == 0:
                raise ConfigError(f"{rows.of(name)}: y must be an array, got one value")
        if self.task == "regression":
            of = self.no_label
            return {n: as_targets(v, "regression", rows.of(n), (), of)[0] for n, v in y.items()}, ()
        is_text = all(v.dtype.kind in "OUb" and v.ndim == 1 for v in y.values())
        if is_text and self.task == "classification":
            return _numbered(y, rows)
        shape = pairs["train"][0].shape[1:]
        for name, values in y.items():
            as_targets(values, self.task, rows.of(name), shape, self.no_label)
        ends = np.cumsum([len(values) for values in y.values()])[:-1]
        every = np.concatenate([*y.values()])
        whole, classes = as_targets(every, self.task, rows.name, shape, self.no_label)
        return dict(zip(y, np.split(whole, ends), strict=True)), classes

    def _split(
        self,
        x: Mapping[str, Any],
        y: Mapping[str, np.ndarray],
        rows: Given,
        classes: tuple[str, ...],
    ) -> Dataset:
        """Take the splits that were passed; split the others off the training rows."""
        labels = y["train"] if self.task == "classification" else None
        parts = self.rows(
            len(y["train"]),
            rows.name,
            labels=labels,
            groups=rows.groups,
            times=rows.times,
            given=x,
        )
        streamed = x["train"] if isinstance(x["train"], StreamedRows) else None
        rows_of_x = x["train"] if streamed is None else np.arange(len(streamed))
        splits = dict(zip(SPLITS, take(rows_of_x, y["train"], parts), strict=True))
        if streamed is not None:
            splits = {name: Split(streamed.taken(s.x), s.y) for name, s in splits.items()}
        splits |= {name: Split(x[name], y[name]) for name in x if name != "train"}
        hashed = (
            x["train"] if streamed is None else np.frombuffer(streamed.sha256.encode(), np.uint8)
        )
        data = Dataset(
            splits["train"],
            splits["val"],
            splits["test"],
            task=self.task,
            classes=classes,
            features=rows.features if len(x["train"].shape) == 2 else (),
            target=rows.target,
            **self.of_sequences,
            folds_sha256=self.folds_sha256(
                hashed, y["train"], rows.groups, rows.times, rows.weights.get("train")
            ),
        )
        own = {name: values for name, values in rows.weights.items() if name != "train"}
        name = f"weight of {rows.name}"
        return weights.weighted(data, rows.weights.get("train"), parts, name, own)


class Iterated(Passed):
    """Rows that are passed as objects, of which the training rows may be an iterable: it yields
    rows, or batches of them, of the forms above. They come in its order; when it ends, the next
    pass begins. Labels are integers below `num_classes`, and x has token ids below `num_tokens` if
    that is set. An epoch of the run is `steps_per_epoch` updates, or the whole run."""

    num_classes: Annotated[int, Field(ge=2)] | None
    num_tokens: Count | None
    steps_per_epoch: Count | None
    batched: Batched

    def dataset(self, given: Given) -> Dataset:
        items = given.splits["train"]
        if isinstance(items, Items):
            return self._stream(items, given)
        for key, default in OF_ITERABLES.items():
            if (value := getattr(self, key)) != default:
                raise ConfigError(
                    f"data.{key} must be {show(default)} for rows that have numbers, got "
                    f"{show(value)}, and {given.name} is no iterable"
                )
        return super().dataset(given)

    def _stream(self, items: Items, given: Given) -> Dataset:
        """Describe the rows of an iterable by its first row; read the other splits."""
        self._refuse_all_rows(items.source)
        records = items.records.choose(self.inputs, self.target)
        unit = is_batched(items, records) if self.batched == "auto" else self.batched
        records = replace(records, unit="batch" if unit else "row")
        stream = Stream(
            items, records, self.task, self.num_classes, self.num_tokens, self.steps_per_epoch
        )
        train = stream.sample(1)
        splits = {name: Split(train.x[:0], train.y[:0]) for name in ("val", "test")}
        splits |= self._other_splits(stream, train, given)
        features = () if isinstance(self.inputs, str | None) else tuple(self.inputs)
        names = map(str, range(self.num_classes or 0))
        return Dataset(
            train,
            splits["val"],
            splits["test"],
            task=self.task,
            classes=tuple(names),
            features=features if train.x.shape[1:] == (len(features),) else (),
            target=self.target,
            num_tokens=self.num_tokens or 0,
            stream=stream,
        )

    def _refuse_all_rows(self, source: str) -> None:
        """Refuse keys that need all training rows before the training."""
        needs = {
            "split": ("random", "data.split divides rows by number"),
            "fold": (None, "folds divide rows by number"),
            "memory_mb": (None, "a chunk of them is in memory at a time"),
            "standardize": (False, "their mean is not known; scale them in your code"),
            "no_label": (None, "labels are whole numbers below data.num_classes"),
        }
        for key, (allowed, why) in needs.items():
            if (value := getattr(self, key)) != allowed:
                raise ConfigError(
                    f"data.{key} must be {show(allowed)} for rows that can only be iterated over, "
                    f"because {why}, got {show(value)} for {source}"
                )
        if self.task == "transcription":
            raise ConfigError(
                f"data.task must be classification or regression for {source}, whose rows can only "
                f"be iterated over, got transcription; pass arrays of them"
            )
        if (self.task == "classification") != (self.num_classes is not None):
            must = "must be set" if self.num_classes is None else "must be null"
            why = (
                "because the labels cannot be counted before the training"
                if self.num_classes is None
                else "with data.task=regression"
            )
            raise ConfigError(
                f"data.num_classes {must} for {source}, whose rows can only be iterated over, {why}"
                f", got {show(self.num_classes)}"
            )

    def _other_splits(self, stream: Stream, train: Split, given: Given) -> dict[str, Split]:
        """Read the validation and test rows, which must be like the training rows."""
        others = {name: part for name, part in given.splits.items() if name != "train"}
        if not others:
            return {}
        rows, _ = self._read(replace(given, splits=others))
        if bool(rows.weights) != (train.weight is not None):
            must, do = ("no weights", "have none") if rows.weights else ("weights", "have weights")
            raise ConfigError(
                f"{given.of(next(iter(others)))} must have {must}, because the training rows {do}"
            )
        pairs: dict[str, Any] = dict(rows.splits)
        _check_shapes({"train": train.x, **{name: x for name, (x, _) in pairs.items()}}, given)
        splits = {}
        for name, (x, y) in pairs.items():
            source = given.of(name)
            check(as_float(x, "x", source), y, source)
            splits[name] = Split(*stream.converted(x, y, source), rows.weights.get(name))
            if splits[name].y.shape[1:] != train.y.shape[1:]:
                raise ConfigError(
                    f"{source}: a row of y must have the shape of a training row, "
                    f"{list(train.y.shape[1:])}, got {list(splits[name].y.shape[1:])}"
                )
        return splits


# the keys of iterables, and their values for other rows
OF_ITERABLES: dict[str, Any] = {
    "num_classes": None,
    "num_tokens": None,
    "steps_per_epoch": None,
    "batched": "auto",
}


class Arrays(Iterated, Holder):
    """Rows that were passed in Python, runner.train(data=...). `val_fraction` and `test_fraction`
    are 0 for a split that was passed."""

    name: Literal["arrays"]

    def load(self) -> Dataset:
        if self.given is None:
            raise ConfigError(
                "data=arrays are rows that were passed in Python, and are in no file; use "
                "runner.train, runner.resume or runner.load_run with data=..."
            )
        return self.dataset(self.given)


class Custom(Iterated, OwnCode):
    """Rows from your own class or function, `_target_`. It is called with all keys that are not
    listed here as arguments. It makes a map-style data set, or returns x and y, or x, y and group,
    or a dict of these by split. `trusted_modules` must name its module."""

    name: Literal["custom"]

    def load(self) -> Dataset:
        try:
            made = user_code.make(self.section)
        except ValueError as error:
            raise ConfigError(f"data.{error}") from error
        if isinstance(made, tuple) and len(made) == 3:
            made = dict(zip(("x", "y", "group"), made, strict=True))
        try:
            again = partial(user_code.make, self.section)
            rows = given(made, self.code, self.code.rpartition(".")[0], again)
        except ConfigError as error:
            what = str(error).removeprefix(self.code).lstrip()
            raise ConfigError(
                f"data._target_ {self.code}: what it returns {what}; {_RETURNS}"
            ) from None
        return self.dataset(rows)


def _check_shapes(x: Mapping[str, Any], rows: Given) -> None:
    for name, values in x.items():
        source = rows.of(name)
        if len(values.shape) < 2 or 0 in values.shape[1:]:
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
                    f"{rows.of(name)}: row {row} of y must be a label, got {show(label)}; "
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
