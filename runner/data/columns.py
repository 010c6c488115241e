"""Rows with named columns: numbers, truth values, dates and text, with missing cells."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

from runner.data import blocks, transforms, weights
from runner.data.blocks import LARGE, each, in_blocks
from runner.data.cells import Column, UnusableError, column
from runner.data.dataset import (
    Dataset,
    Scaling,
    Split,
    check_classes,
    fit_scaling,
)
from runner.data.files import (
    numbered,
    numbers_as_labels,
    tokenizer_of,
)
from runner.data.mixing import Alpha
from runner.data.splits import SPLITS, Parts, Splits
from runner.data.table_files import SEPARATORS, TableFile
from runner.data.transforms import Missing, Transform
from runner.errors import ConfigError, listed, nearest, show, show_path
from runner.section import Count

_LISTS = ("columns", "drop", "categories", "texts")  # keys with several columns
_MOST = 8  # columns in one message
_MANY = 2**16  # rows whose numbers are worth a thread
_WANTED = {  # of a target, by the task
    "regression": "a number, data.task=classification predicts text",
    "multilabel": "0 or 1 with data.task=multilabel",
}
_FILLS = (
    "data.missing=median fills them (or mean, most_frequent, indicator, a number), data.drop "
    "leaves columns out"
)


class NewRows(NamedTuple):
    """Rows of a file that the transforms were not fitted on."""

    x: np.ndarray  # float64[N, features], not scaled
    y: np.ndarray  # labels int64[N], or targets float64[N, C], not scaled
    warnings: list[str]
    weight: np.ndarray | None = None  # float64[N]


_Other = TypeVar("_Other", bound="Columns")


class Columns(Splits):
    """The keys of rows with named columns, and what is done to these.

    Columns of numbers and dates (in days) are one feature each, truth values are 0 or 1, text is
    one feature per category, or ids of its categories or tokens, for embeddings in branches of a
    model (`category_encoding: ids`, `texts`); runner.data.transforms has the definitions. `target`
    (null: the last column) is the column to predict, or a list of them. For classification, labels
    are any text, sorted (as numbers if all are numbers). The column `weight` has the weights of the
    rows (runner.data.weights).
    """

    if TYPE_CHECKING:
        name: str

        @property
        def path(self) -> str:
            """The rows: a file, or their name in an error."""

        def file(self, path: str | Path, key: str = "data.path") -> TableFile:
            """Open the rows; `key` names the file."""

    target: str | list[str] | None
    task: Literal["classification", "regression", "multilabel"]
    columns: list[str] | None
    drop: list[str]
    categories: list[str]
    category_encoding: Literal["one_hot", "ids"]
    max_categories: Count
    texts: list[str]
    tokenizer: str
    max_vocabulary: Count
    context: Count | None
    missing: Missing
    missing_target: Literal["error", "drop"]
    group: str | None
    time: str | None
    weight: str | None
    standardize: bool
    mixup: Alpha
    cutmix: Alpha

    def of(self, section: type[_Other], **keys: Any) -> _Other:
        """Return a section with these columns and other rows."""
        keys |= {name: getattr(self, name) for name in Columns.model_fields}
        other: Any = section.model_construct(**keys)
        return other

    def load(self) -> Dataset:
        file = self.file(self.path)
        targets = self._targets(file.names)
        names = self._features(file.names, targets)
        is_labels = self.task == "classification"
        text = [*self.categories, *self.texts, *(targets if is_labels else [])]
        extra = [n for n in (self.group, self.time, self.weight) if n and n not in names]
        table, order = self._read(file, [*dict.fromkeys([*names, *targets, *extra])], text)
        file.release()
        if is_labels:
            (y, classes, rows), (columns, problems) = blocks.together(
                partial(self._labels, file, table, targets),
                partial(self._columns, file, table, names),
                is_large=table.num_rows > _MANY,
            )
        else:
            columns, problems = self._columns(file, table, [*names, *targets])
            (y, rows), classes = self._values(file, columns, targets, problems), ()
        parts = self._parts(file, table, y, rows, order)
        weight = self.weights(file, table, y)
        fitted = []
        for name in names:
            if name in columns:
                fitted.append(self.fitted(columns[name], parts[0]))
        problems += self._missing_cells(file, fitted, columns)
        if problems:
            raise ConfigError(f"{self.path}: {joined(problems)}")
        if self.category_encoding == "ids":
            fitted = transforms.numbered(fitted)
        del table, file  # their memory is free before x is made
        own = self._own_rows(fitted, targets, classes)
        data = self._dataset(fitted, columns, parts, y, classes, targets, own, weight)
        check_classes(data, self.path)
        warnings = [*index_warnings([columns[name] for name in names])]
        if is_labels:
            warnings += numbers_as_labels(f"column {show(targets[0])}", len(y), classes)
        warnings += unseen(fitted, columns)
        warnings += [text for rows in own.values() for text in rows.warnings]
        return replace(data, warnings=tuple(warnings))

    def _read(
        self, file: TableFile, names: Sequence[str], text: Sequence[str]
    ) -> tuple[Any, np.ndarray | None]:
        """Read columns to a pyarrow.Table, and find the permutation of the rows meanwhile, if the
        file says how many it has."""
        num = file.known_rows or 0
        table, order = blocks.together(
            lambda: file.read(names, text),
            lambda: self.order(num) if num > _MANY else None,
            is_large=num > _MANY,
        )
        if table.num_rows == 0:
            raise ConfigError(f"{self.path} holds no rows")
        return table, order

    def _own_rows(
        self, fitted: Sequence[Transform], targets: Sequence[str], classes: Sequence[str]
    ) -> dict[str, "NewRows"]:
        """Read the splits that have files of their own: val, test -> rows."""
        found = {}
        for name, path in self.own_paths.items():
            file = self.file(path, f"data.{name}_path")
            rows = labelled(self, file, fitted, targets, classes, self.path)
            warnings = [f"{path}: {text}" for text in rows.warnings]
            found[name] = rows._replace(warnings=warnings)
        return found

    def _targets(self, header: Sequence[str]) -> list[str]:
        target = header[-1] if self.target is None else self.target
        targets = [target] if isinstance(target, str) else list(target)
        self._check_names("target", targets, header)
        if not targets:
            raise ConfigError("data.target must name a column, got an empty list")
        if len(targets) > 1 and self.task == "classification":
            raise ConfigError(
                f"data.target must be one column for data.task=classification, got "
                f"{listed(targets)}; data.task=multilabel predicts several columns of 0 and 1, "
                f"data.task=regression several numbers"
            )
        return targets

    def _features(self, header: Sequence[str], targets: Sequence[str]) -> list[str]:
        self._check_names("drop", self.drop, header)
        self._check_names("categories", self.categories, header)
        self._check_names("texts", self.texts, header)
        self._check_names("group", [self.group] if self.group is not None else [], header)
        self._check_names("time", [self.time] if self.time is not None else [], header)
        self._check_names("weight", [self.weight] if self.weight is not None else [], header)
        if self.weight in targets:
            raise ConfigError(f"data.weight must not be a target, got {show(self.weight)}")
        if self.columns is not None:
            self._check_names("columns", self.columns, header)
        chosen = header if self.columns is None else self.columns
        other = {*targets, *self.drop, self.group, self.weight}
        names = [name for name in chosen if name not in other]
        if "" in names:
            raise ConfigError(
                f"{self.path}: column {list(header).index('') + 1} has no name; if it is an index, "
                'leave it out with data.drop=[""] (pandas: index=False), otherwise name it'
            )
        if not names:
            raise ConfigError(
                f"{self.path} has no column besides the target {listed(targets)}"
                f"{_separator(header)}"
            )
        return names

    def _check_names(self, key: str, names: Sequence[str], header: Sequence[str]) -> None:
        known = set(header)
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"data.{key} must be {'columns' if key in _LISTS else 'a column'} of "
                    f"{self.path}, got {show(name)}{nearest(name, header)}"
                )
        if len(set(names)) < len(names):
            raise ConfigError(f"data.{key} names a column twice, got {listed(names)}")

    def _columns(
        self, file: TableFile, table: Any, names: Sequence[str]
    ) -> tuple[dict[str, Column], list[str]]:
        """Convert the columns; describe those that cannot be used."""
        as_text = (*self.categories, *self.texts)
        columns, problems = read_columns(file, table, names, as_text)
        for name in list(columns):
            of = f"column {show(name)}"
            num = len(columns[name].categories)
            if num > self.max_categories and name not in self.texts:
                problems.append(
                    f"{of} has {num} different texts; data.drop=[{show(name)}] leaves it out, "
                    f"data.max_categories={num} allows them, data.texts=[{show(name)}] divides "
                    f"them into words"
                )
            elif infinite := _infinite(file, columns[name]):
                problems.append(infinite)
            elif columns[name].is_empty:
                problems.append(f"{of} is empty; data.drop=[{show(name)}] leaves it out")
                del columns[name]
        return columns, problems

    def _labels(
        self, file: TableFile, table: Any, targets: Sequence[str]
    ) -> tuple[np.ndarray, tuple[str, ...], np.ndarray | None]:
        """Return labels, the names of the classes, and the rows that have a label.  # int64[N]"""
        (target,) = targets
        codes, texts = file.labels(table, target, "a label")
        rows = self._with_target(file, codes < 0, target, "a label is needed")
        return *numbered(codes, texts), rows

    def _values(
        self,
        file: TableFile,
        columns: dict[str, Column],
        targets: Sequence[str],
        problems: list[str],
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return targets, and the rows that have all of them.  # float64[N, C]"""
        found = [columns.pop(name) for name in targets if name in columns]
        num_rows = len(found[0].values) if found else 1
        y = np.zeros((num_rows, len(targets)))
        for i, target in enumerate(found):
            name = show(target.name)
            if target.kind == "text":
                row = int(np.argmax(target.values >= 0))
                problems.append(
                    f"{file.position(row)}, column {name} is "
                    f"{show(repr(target.categories[target.values[row]]))}; a target must be "
                    f"{_WANTED[self.task]}"
                )
                continue
            y[:, i] = target.values
            known = target.values[~np.isnan(target.values)]
            if self.task == "multilabel" and not np.isin(known, (0, 1)).all():
                problems.append(f"column {name} must hold 0 and 1 for data.task=multilabel")
        lacking = np.isnan(y)
        which = int(np.argmax(lacking.any(axis=0)))
        rows = self._with_target(
            file, np.asarray(lacking.any(axis=1)), targets[which], "a target is needed"
        )
        return y, rows

    def _with_target(
        self, file: TableFile, lacks: np.ndarray, target: str, need: str
    ) -> np.ndarray | None:
        """Return the numbers of the rows with a target; None for all rows."""
        if not lacks.any():
            return None
        if self.missing_target == "error":
            row, num = int(np.argmax(lacks)), int(lacks.sum())
            lines = f" ({num} such rows)" if num > 1 else ""
            raise ConfigError(
                f"{file.path}: {file.position(row)}, column {show(target)} is empty{lines}; "
                f"{need}, or data.missing_target=drop leaves these rows out"
            )
        if lacks.all():
            raise ConfigError(f"{file.path}: column {show(target)} is empty")
        return np.flatnonzero(~lacks)

    def _parts(
        self,
        file: TableFile,
        table: Any,
        y: np.ndarray,
        which: np.ndarray | None,
        order: np.ndarray | None = None,
    ) -> Parts:
        """Return the row numbers of training, validation and test, from the rows `which`. `order`
        is the permutation of all rows, if it is known."""
        groups = times = None
        if self.split == "grouped" and self.group is not None:
            groups, _ = file.labels(table, self.group, "a group")
        if self.split == "chronological" and self.time is not None:
            columns, problems = read_columns(file, table, [self.time], ())
            if problems or columns[self.time].kind not in ("number", "date"):
                raise ConfigError(
                    f"data.time must be a column of numbers or dates, got {show(self.time)}"
                )
            times = columns[self.time].values
        followed: dict[str, np.ndarray | None] = {
            "labels": y if self.task == "classification" else None,
            "groups": groups,
            "times": times,
        }
        num_rows = len(y)
        if which is not None:
            num_rows = len(which)
            followed = {k: None if v is None else v[which] for k, v in followed.items()}
        parts = self.rows(num_rows, self.path, **followed, given=self.own_paths, order=order)
        if which is None:
            return parts
        train, val, test = (which[part] for part in parts)
        return train, val, test

    def weights(self, file: TableFile, table: Any, y: np.ndarray) -> np.ndarray | None:
        """Return the weights of all rows of a file; None if there are none.  # float64[N]"""
        if self.weight is None:
            return None
        return column_of_weights(file, table, self.weight, len(y))

    def _missing_cells(
        self, file: TableFile, fitted: Iterable[Transform], columns: Mapping[str, Column]
    ) -> list[str]:
        """Describe missing cells that no transform fills."""
        lacking = missing_cells(file, fitted, columns)
        return [f"missing cells in {lacking}; {_FILLS}"] if lacking else []

    def fitted(self, column: Column, train: np.ndarray) -> Transform:
        """Fit the transform of a column on the training rows."""
        if column.name not in self.texts:
            return transforms.fit(column, train, self.missing)
        texts = (column.categories[i] for i in column.values[train] if i >= 0)
        tokenizer = tokenizer_of(self.tokenizer, texts, self.max_vocabulary).padded(False)
        return transforms.of_tokens(column, train, tokenizer, self.context, self.missing)

    def check_features(self, features: Sequence[str]) -> None:
        """Refuse two features of the same name."""
        if len(set(features)) < len(features):
            (repeated, _), *_ = Counter(features).most_common(1)
            raise ConfigError(
                f"{self.path}: two features have the name {show(repeated)}; rename a column"
            )

    def _dataset(
        self,
        fitted: Sequence[Transform],
        columns: Mapping[str, Column],
        parts: Parts,
        y: np.ndarray,
        classes: tuple[str, ...],
        targets: Sequence[str],
        own: Mapping[str, NewRows],
        weight: np.ndarray | None,
    ) -> Dataset:
        features = [name for transform in fitted for name in transform.features]
        self.check_features(features)
        folds_sha256 = self.folds_sha256(
            y,
            *(columns[t.name].values for t in fitted),
            *(np.array(columns[t.name].categories, np.str_) for t in fitted),
            *(array for rows in own.values() for array in (rows.x, rows.y)),
            weight,
        )
        x, targets_of = transforms.apply_to(fitted, columns, parts), [y[rows] for rows in parts]
        for name, rows in own.items():
            x[SPLITS.index(name)], targets_of[SPLITS.index(name)] = rows.x, rows.y
        is_scaled = np.array([scaled for t in fitted for scaled in t.is_scaled])
        num_ids = transforms.num_ids(fitted)
        x_scaling = scale(x, is_scaled) if self.standardize and not num_ids else None
        scales_y = self.standardize and self.task == "regression"
        y_scaling = scale(targets_of, np.full(len(targets), True)) if scales_y else None
        train, val, test = map(Split, x, targets_of)
        data = Dataset(
            train,
            val,
            test,
            task=self.task,
            classes=classes,
            features=tuple(features),
            x_scaling=x_scaling,
            y_scaling=y_scaling,
            target=targets[0] if len(targets) == 1 else list(targets),
            folds_sha256=folds_sha256,
            columns=tuple(transform.as_json() for transform in fitted),
            ids=() if num_ids else transforms.ids(fitted),
        ).with_ids(num_ids)
        of_own = {name: rows.weight for name, rows in own.items() if rows.weight is not None}
        return weights.weighted(data, weight, parts, "data.weight", of_own)


def labelled_rows(
    section: Columns, file: TableFile, description: Mapping[str, Any], saved: object
) -> tuple[Dataset, list[str]]:
    """Read new rows with their targets for a run, as the test split of a data set.

    Args:
        section: the run's section `data`.
        file: a file with the run's columns and targets, in any order.
        description: the content of data.json.
        saved: the path of data.json, for errors.

    Returns:
        The data set, scaled as in training, with all rows as test rows; and warnings.

    Raises:
        ConfigError: a column is missing or cannot be used, or a label is none of the run's classes.
    """
    target = description["target"]
    targets = [target] if isinstance(target, str) else list(target or ())
    classes = tuple(description["classes"])
    fitted = _saved(file, description, saved)
    found = labelled(section, file, fitted, targets, classes)
    x, y, warnings = found.x, found.y, found.warnings
    x_scaling, y_scaling = (Scaling.of(description[key]) for key in ("x_scaling", "y_scaling"))
    x = x_scaling.apply(x) if x_scaling else x
    y = y_scaling.apply(y) if y_scaling else y
    rows = Split(x, y, found.weight)
    data = Dataset(
        rows,
        rows,
        rows,
        task=section.task,
        classes=classes,
        features=tuple(description["features"]),
        x_scaling=x_scaling,
        y_scaling=y_scaling,
        target=target,
        ids=() if description.get("num_tokens") else transforms.ids(fitted),
    )
    return data.with_ids(description.get("num_tokens", 0)), warnings


def labelled(
    section: Columns,
    file: TableFile,
    fitted: Sequence[Transform],
    targets: Sequence[str],
    classes: Sequence[str],
    source: str | None = None,
) -> NewRows:
    """Read the rows of a file with their targets, by transforms that were fitted on other rows.

    Args:
        section: the keys that say how the file is read.
        file: a file with the columns and targets of those rows, in any order.
        fitted: the transforms.
        targets: the names of the targets.
        classes: the names of the classes, empty for numbers.
        source: the file of those rows; None: the rows that a finished run was trained on.

    Raises:
        ConfigError: a column is missing or cannot be used, or a label is none of the classes.
    """
    absent = [name for name in targets if name not in file.names]
    if absent or not targets:
        raise ConfigError(f"{file.path} lacks the column {show((absent or ['target'])[0])}")
    has_weight = section.weight in file.names
    if source and section.weight is not None and not has_weight:
        raise ConfigError(f"{file.path} lacks the column {show(section.weight)} of data.weight")
    extra = [section.weight] if section.weight is not None and has_weight else []
    table = file.read([*targets, *extra], targets if classes else [])
    if not table.num_rows:
        raise ConfigError(f"{file.path} holds no rows")
    lacking = section.missing_target if source else "error"
    own = section.model_copy(update={"missing_target": lacking})
    if classes:
        codes, names, rows = own._labels(file, table, targets)
        unknown = [name for name in names if name not in classes]
        if unknown:
            of = f"of {source}" if source else "that the run was trained on"
            raise ConfigError(
                f"{file.path}: column {show(targets[0])} has {listed(unknown)}, which is none of "
                f"the classes {of}: {listed(classes)}"
            )
        numbers = [*(classes.index(name) for name in names), -1]
        y = np.array(numbers, dtype=np.int64)[codes]
    else:
        columns, problems = own._columns(file, table, targets)
        y, rows = own._values(file, columns, targets, problems)
        if problems:
            raise ConfigError(f"{file.path}: {joined(problems)}")
    weight = section.weights(file, table, y) if has_weight else None
    x, warnings = _transformed(file, fitted, source)
    found = NewRows(x, y, warnings, weight)
    if rows is None:
        return found
    weight = None if weight is None else weight[rows]
    return found._replace(x=x[rows], y=y[rows], weight=weight)


def read_columns(
    file: TableFile,
    table: Any,
    names: Sequence[str],
    as_text: Sequence[str],
    is_new: bool = False,
) -> tuple[dict[str, Column], list[str]]:
    """Convert columns of a file's table; describe those that cannot be used. If the rows are new
    ones for a finished run, no key can help."""
    commas = file.kind == "csv" and file.delimiter != ","
    found: dict[str, Column | UnusableError] = {}

    def convert(name: str) -> None:
        try:
            made = column(name, table.column(name), as_text=name in as_text, decimal_commas=commas)
            _ = made.is_finite  # kept for later: here it is found on several threads
            found[name] = made
        except UnusableError as error:
            found[name] = error

    each(convert, names, 1 if table.num_rows * table.num_columns < LARGE else None)
    columns, problems = {}, []
    for name in names:
        converted = found[name]
        if isinstance(converted, Column):
            columns[name] = converted
            continue
        where = "" if converted.row is None else f"{file.position(converted.row)}, "
        text = f"data.categories=[{show(name)}] reads text; " if converted.is_mixed else ""
        remedy = "" if is_new else f"; {text}data.drop=[{show(name)}] leaves it out"
        problems.append(f"{where}column {show(name)} {converted.reason}{remedy}")
    return columns, problems


def column_of_weights(file: TableFile, table: Any, name: str, num_rows: int) -> np.ndarray:
    """Return the weights of all rows of a file's table from a column.  # float64[N]"""
    columns, problems = read_columns(file, table, [name], ())
    if problems or columns[name].kind != "number":
        raise ConfigError(f"data.weight must be a column of numbers, got {show(name)}")
    of = f"{show_path(file.path)}: column {show(name)}"
    return weights.checked(columns[name].values, num_rows, of)


def new_rows(
    file: TableFile, description: Mapping[str, Any], saved: object
) -> tuple[np.ndarray, list[str]]:
    """Read new rows of a file for a run, with the transforms of its data.json.

    Args:
        file: a file with the columns that the run was trained on, in any order.
        description: the content of data.json.
        saved: the path of data.json, for errors.

    Returns:
        The rows, not scaled  # float64[N, features]; and warnings.

    Raises:
        ConfigError: a column is missing, or has cells that the transforms do not allow.
    """
    return _transformed(file, _saved(file, description, saved))


def _saved(file: TableFile, description: Mapping[str, Any], saved: object) -> list[Transform]:
    """Return the transforms of a run."""
    fitted = transforms.read(description.get("columns", ()), saved)
    if fitted:
        return fitted
    # a run of an older version, or on arrays
    return [Transform(name, "number") for name in description["features"] or file.names]


def _transformed(
    file: TableFile, fitted: Sequence[Transform], source: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """Transform all rows of a file. `source` is the file that the transforms were fitted on; None
    for those of a finished run, for which no key can help."""
    absent = [t.name for t in fitted if t.name not in file.names]
    if absent:
        has = f"{source} has" if source else "the run was trained on"
        raise ConfigError(f"{file.path} lacks the column {show(absent[0])}, which {has}")
    names = [transform.name for transform in fitted]
    texts = [transform.name for transform in fitted if transform.kind == "text"]
    table = file.read(names, texts)
    columns, problems = read_columns(file, table, names, texts, is_new=source is None)
    for transform in fitted:
        column = columns.get(transform.name)
        if column is not None and not transform.fits(column):
            cell = file.position(int(np.argmax(~column.missing)))
            problems.append(
                f"{cell}, column {show(column.name)} is {column.kind}, in training it was "
                f"{transform.kind}"
            )
        elif column is not None and (infinite := _infinite(file, column)):
            problems.append(infinite)
    if lacking := missing_cells(file, fitted, columns):
        no_value = "the run was trained with data.missing=error, so it has no value for them"
        problems.append(f"missing cells in {lacking}; {_FILLS if source else no_value}")
    if problems:
        raise ConfigError(f"{file.path}: {joined(problems)}")
    return transforms.apply(fitted, columns), unseen(fitted, columns)


def missing_cells(
    file: TableFile, fitted: Iterable[Transform], columns: Mapping[str, Column]
) -> str:
    """List the columns with missing cells that no transform fills, with the first one's place."""
    lacking = []
    for transform in fitted:
        column = columns.get(transform.name)
        if column is None or transform.allows_missing or column.is_finite:
            continue
        missing = column.missing
        if missing.any():
            first = file.position(int(np.argmax(missing)))
            lacking.append(f"{show(transform.name)} ({int(missing.sum())}, first in {first})")
    more = [f"{len(lacking) - _MOST} more columns"] if len(lacking) > _MOST else []
    return ", ".join([*lacking[:_MOST], *more])


def _infinite(file: TableFile, column: Column) -> str | None:
    """Describe the first infinite cell of a column."""
    if column.kind == "text" or column.is_finite or not np.isinf(column.values).any():
        return None
    row = int(np.argmax(np.isinf(column.values)))
    return (
        f"{file.position(row)}, column {show(column.name)} is {column.values[row]}; all values "
        f"must be finite"
    )


def joined(problems: Sequence[str]) -> str:
    more = [f"{len(problems) - _MOST} more problems"] if len(problems) > _MOST else []
    return "; ".join([*problems[:_MOST], *more])


def scale(parts: Sequence[np.ndarray], is_scaled: np.ndarray) -> Scaling:
    """Scale the parts in place, some columns only, by the first part's mean and deviation."""
    scaling = fit_scaling(parts[0])
    scaling = Scaling(
        np.where(is_scaled, scaling.offset, 0.0), np.where(is_scaled, scaling.scale, 1.0)
    )
    for part in parts:
        scale_in_place(scaling, part)
    return scaling


def scale_in_place(scaling: Scaling, values: np.ndarray) -> None:
    offset, divisor = blocks.beside(scaling.offset), blocks.beside(scaling.scale)

    def scale_block(rows: slice) -> None:
        with np.errstate(over="ignore"):
            blocks.by_row(np.subtract, values[rows], offset)
            blocks.by_row(np.divide, values[rows], divisor)

    in_blocks(scale_block, len(values))


def unseen(fitted: Iterable[Transform], columns: Mapping[str, Column]) -> list[str]:
    """Warn of categories that only validation and test rows have."""
    texts = [transform for transform in fitted if transform.kind == "text"]
    unseen = [(each, each.unknown(columns[each.name])) for each in texts]
    return [
        f"column {show(each.name)}: no training row has {listed(categories)}; they are encoded as "
        f"{'none of the categories' if each.first_id is None else 'one more category'}"
        for each, categories in unseen
        if categories
    ]


def index_warnings(columns: Sequence[Column]) -> list[str]:
    """Warn of columns that count the rows: they are probably indexes."""
    return [
        f"column {show(c.name)} counts the rows; if it is an index, leave it out with data.drop"
        for c in columns
        if len(c.values) >= 10
        and c.kind == "number"
        and c.values[-1] - c.values[0] == len(c.values) - 1
        and np.array_equal(c.values - c.values[0], np.arange(len(c.values)))
    ]


def _separator(header: Sequence[str]) -> str:
    """A hint if the names seem to have another separator."""
    text = header[0] if len(header) == 1 else ""
    names = {sign: name for name, sign in SEPARATORS.items()}
    other = next((sign for sign in (";", "\t", "|", ",", " ") if sign in text), None)
    return f"; data.separator={names[other]} may be what separates its cells" if other else ""
