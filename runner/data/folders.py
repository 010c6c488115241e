"""Folders of files with a row each: one folder per class, or a table of paths and labels."""

import os
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np

from runner.data import weights
from runner.data.columns import column_of_weights
from runner.data.dataset import Dataset, Scaling, Split
from runner.data.files import label_key, locate, numbered, regular_file
from runner.data.splits import SPLITS, Splits
from runner.data.table_files import TableFile
from runner.errors import ConfigError, listed, nearest, show, show_path
from runner.section import Mark

_DEEPEST = 50  # folders in folders
_MOST_REASONS = 4  # in one message
T = TypeVar("T")


@dataclass(frozen=True)
class Media:
    """The kind of files that a data set reads."""

    plural: str  # "images"
    suffixes: tuple[str, ...]  # of files that must not lie beside the class folders


@dataclass(frozen=True)
class Listing:
    """The files of a data set, in order, and their labels."""

    files: Sequence[Path]
    labels: np.ndarray  # int64[N]
    classes: tuple[str, ...]
    splits: Mapping[str, np.ndarray]  # at least "train" -> numbers of its files, int64[n]
    groups: np.ndarray | None = None  # a table's column group  # str[N]
    weights: np.ndarray | None = None  # a table's column of weights  # float64[N]


class Folder(Splits):
    """The keys of a data set whose rows are files in folders."""

    media: ClassVar[Media]

    path: Annotated[str, Mark(on_run=True)]
    val_path: Annotated[str | None, Mark(on_run=True)]
    test_path: Annotated[str | None, Mark(on_run=True)]
    table: str | None
    weight: str | None

    @property
    def has_texts(self) -> bool:
        """True if the labels are texts, any of which may be new, and no classes."""
        return False

    def listing(self) -> Listing:
        """List the files. Raises ConfigError for a folder or table without two classes."""
        found = self._listing()
        if len(found.classes) == 1 and not self.has_texts:
            raise ConfigError(
                f"{show_path(self.path if self.table is None else self.table)} has "
                f"{self.media.plural} of a single class, {show(found.classes[0])}; classification "
                f"needs two"
            )
        return found

    def _listing(self) -> Listing:
        root, mode = locate(self.path, "folder")
        if not stat.S_ISDIR(mode):
            raise ConfigError(
                f"data.path must be a folder, got {show_path(self.path)}, which is not a "
                f"folder; a table of paths is data.table"
            )
        if self.table is None:
            if self.weight is not None:
                raise ConfigError(
                    f"data.weight must be null without a table that has such a column, data.table, "
                    f"got {show(self.weight)}"
                )
            found = _listed(root, self.media)
        else:
            found = _tabled(root, self.table, weight=self.weight)
        for name, path in self.own_paths.items():
            found = self._with_own(found, name, path)
        return found

    def _with_own(self, found: Listing, name: str, path: str) -> Listing:
        """Add the files of a split that has a folder, or a table, of its own."""
        key = f"data.{name}_path"
        if name in found.splits:
            raise ConfigError(
                f"{key} must be null if data.path holds a folder {name}, got {show_path(path)}"
            )
        root, mode = locate(path, "folder or a table", key)
        if stat.S_ISDIR(mode):
            if self.weight is not None:
                raise ConfigError(
                    f"{key} must be a table with the column {show(self.weight)} of data.weight, "
                    f"got {show_path(path)}, which is a folder"
                )
            own = _listed(root, self.media, key)
        else:
            own = _tabled(root.parent, path, key, self.weight)
        if len(own.splits) > 1:
            raise ConfigError(
                f"{key} must hold a folder of {self.media.plural} for each class, got "
                f"{show_path(path)}, which holds the folders {', '.join(own.splits)}"
            )
        source = self.path if self.table is None else self.table
        return with_split(found, name, own, path, source, self.has_texts)

    def files(self) -> Iterator[Path]:
        """The files and folders that determine the rows."""
        for path in (self.path, self.table, *self.own_paths.values()):
            if path is not None:
                yield Path(path).expanduser()
        yield from self.listing().files

    @abstractmethod
    def new_rows(
        self, files: Sequence[Path], description: Mapping[str, Any]
    ) -> tuple[np.ndarray, list[str]]:
        """Read files for a run, before they are scaled.

        Args:
            files: their paths.
            description: the content of the run's data.json.

        Returns:
            The rows, [N, *input_shape], unless they differ from those of the run; and warnings.
        """

    def labelled_rows(self, path: str, description: Mapping[str, Any]) -> tuple[Dataset, list[str]]:
        """Read new labelled files for a run, as the test split of a data set.

        Args:
            path: a folder of class folders; or a table with the columns path, below the table's
                folder, and label. The classes are some of the run's.
            description: the content of the run's data.json.

        Returns:
            The data set, scaled as in training, with all rows as test rows; and warnings.

        Raises:
            ConfigError: a class is none of the run's, or a file cannot be used.
        """
        found, root = self._new_listing(path)
        classes = tuple(description["classes"])
        labels = self.new_labels(found, classes, path)
        x, warnings = self.new_rows(found.files, description)
        wanted = list(description["input_shape"])
        if list(x.shape[1:]) != wanted:
            raise ConfigError(
                f"{show_path(path)}: a row has shape {list(x.shape[1:])}; the run was trained on "
                f"{wanted}"
            )
        x_scaling = Scaling.of(description["x_scaling"])
        rows = Split(x_scaling.apply(x) if x_scaling else x, labels, found.weights)
        names = tuple(os.path.relpath(file, root) for file in found.files)
        task, separator = description["task"], description.get("separator")
        data = Dataset(rows, rows, rows, task, classes, (), x_scaling=x_scaling)
        return replace(data, row_names=names, separator=separator), warnings

    def new_labels(self, found: Listing, classes: Sequence[str], path: str) -> np.ndarray:
        """Number the labels of new rows by a run's classes. Raise ConfigError for a class that is
        none of these.  # int64[N], or int64[N, L]"""
        return renumbered(found, classes, path)

    def _new_listing(self, path: str) -> tuple[Listing, Path]:
        """List labelled files, and return the folder that their names begin in."""
        root, mode = locate(path, "folder")
        if not stat.S_ISDIR(mode):
            table = _tabled(root.parent, path, "data.path", self.weight, needs_weight=False)
            return table, root.parent
        own = dict.fromkeys(("table", "val_path", "test_path", "weight"))
        return self.model_copy(update={"path": path, **own})._listing(), root

    def check_classes(self, labels: np.ndarray, classes: Sequence[str]) -> None:
        """Refuse training rows of a single class."""
        if len(np.unique(labels)) == 1:
            raise ConfigError(
                f"the training rows of {show_path(self.path)} have a single class, "
                f"{show(classes[labels[0]])}; classification needs two"
            )

    def split_numbers(self, found: Listing) -> dict[str, Split]:
        """Return the numbers of each split's files, and their labels."""
        given, train = found.splits, found.splits["train"]
        labels = None if self.has_texts else found.labels[train]
        parts = self.rows(
            len(train), self.path, labels=labels, groups=found.groups, given=given.keys()
        )
        numbers = {name: train[part] for name, part in zip(SPLITS, parts, strict=True)}
        numbers |= {name: rows for name, rows in given.items() if name != "train"}
        return {name: Split(rows, found.labels[rows]) for name, rows in numbers.items()}

    def weighted(self, data: Dataset, found: Listing, splits: Mapping[str, Split]) -> Dataset:
        """Give the rows of `split_numbers` their weights."""
        parts = (splits["train"].x, splits["val"].x, splits["test"].x)
        return weights.weighted(data, found.weights, parts, "data.weight")


def renumbered(
    new: Listing, classes: Sequence[str], path: str, lacks: str = "the run was not trained on"
) -> np.ndarray:
    """Number the labels of new rows by the classes of others. Raise ConfigError for a class that
    is none of these. `path` names the new rows, `lacks` says who does not have it.  # int64[N]"""
    unknown = [name for name in new.classes if name not in classes]
    if unknown:
        raise ConfigError(
            f"{show_path(path)} has the classes {listed(unknown)}, which {lacks}; its classes are "
            f"{listed(classes)}"
        )
    numbers = np.array([classes.index(name) for name in new.classes], np.int64)
    return numbers[new.labels]


def with_split(
    found: Listing, name: str, own: Listing, path: str, source: str, has_texts: bool = False
) -> Listing:
    """Add a split whose rows come from another place, `path`, to the rows of `source`. If
    `has_texts`, its labels may be new."""
    if has_texts:
        more = [text for text in own.classes if text not in found.classes]
        found = replace(found, classes=(*found.classes, *more))
    labels = renumbered(own, found.classes, path, f"{show_path(source)} does not have")
    start = len(found.labels)
    weight = [w for w in (found.weights, own.weights) if w is not None]
    return replace(
        found,
        files=[*found.files, *own.files],
        labels=np.concatenate([found.labels, labels]),
        weights=np.concatenate(weight) if weight else None,
        splits={**found.splits, name: np.arange(start, start + len(labels))},
    )


def _listed(root: Path, media: Media, key: str = "data.path") -> Listing:
    """List the files of class folders: one folder per class, or train, val and test of these. `key`
    names the folder."""
    folders = _folders(root, media)
    has_splits = bool(folders) and set(folders) <= set(SPLITS)
    if has_splits and "train" not in folders:
        raise ConfigError(
            f"{show_path(root)} holds the folders {', '.join(folders)}, and no train with the "
            f"training rows"
        )
    order = [name for name in SPLITS if name in folders]
    roots = {name: folders[name] for name in order} if has_splits else {"train": root}
    names = [*_folders(roots["train"], media)]
    classes = sorted(names, key=label_key(names))
    files: list[Path] = []
    labels: list[int] = []
    splits = {}
    for split, place in roots.items():
        start = len(files)
        for label, found in _by_class(place, classes, roots["train"], media, key):
            files += found
            labels += [label] * len(found)
        splits[split] = np.arange(start, len(files))
    return Listing(files, np.array(labels, np.int64), tuple(classes), splits)


def _by_class(
    root: Path, classes: Sequence[str], train: Path, media: Media, key: str
) -> Iterator[tuple[int, list[Path]]]:
    """Yield the labels of the class folders in `root`, and their files."""
    folders = _folders(root, media)
    if not folders:
        raise ConfigError(
            f"{key} must hold a folder of {media.plural} for each class, got {show_path(root)} "
            f"without folders"
        )
    other = next((name for name in folders if name not in classes), None)
    if other is not None:
        raise ConfigError(
            f"{show_path(folders[other])} has no class folder in {show_path(train)}, which has "
            f"{show(', '.join(classes))}"
        )
    for label, name in enumerate(classes):
        if name in folders:
            found = [*below(folders[name])]
            if not found:
                raise ConfigError(
                    f"{show_path(folders[name])} holds no {media.plural}; add some, or remove it"
                )
            yield label, found


def _folders(root: Path, media: Media) -> dict[str, Path]:
    """Return the folders in a folder by name, sorted. Refuses files of these media beside them."""
    folders = {}
    for path in _entries(root):
        if path.is_dir():
            folders[path.name] = path
        elif path.suffix.lower() in media.suffixes:
            raise ConfigError(
                f"{show_path(path)} lies beside the class folders; move it into the folder of its "
                f"class, or name the classes in data.table"
            )
    return folders


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{show_path(folder)} cannot be read: {error.strerror}") from None


def below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """List the files in a folder and in its folders, sorted; names that begin with a dot are
    ignored. `above` are the folders that contain it, without links."""
    inside = (*above, folder.resolve())
    for path in _entries(folder):
        if not path.is_dir():
            yield path
            continue
        target = path.resolve()
        if any(place.is_relative_to(target) for place in inside):
            raise ConfigError(
                f"{show_path(path)} is a link to a folder that contains it; remove the link"
            )
        if len(inside) > _DEEPEST:
            raise ConfigError(f"{show_path(path)} lies more than {_DEEPEST} folders deep")
        yield from below(path, inside)


def _tabled(
    root: Path,
    table_path: str,
    key: str = "data.table",
    weight: str | None = None,
    needs_weight: bool = True,
) -> Listing:
    """List the files of a table with the columns path, relative to `root`, and label.

    Args:
        root: the folder that paths begin in.
        table_path: the table.
        key: its name in an error.
        weight: the name of its column of weights.
        needs_weight: False: without this column, all rows count equally.
    """
    table = TableFile(regular_file(table_path, key))
    keys = ["path", "label"]
    for name in keys:
        if name not in table.names:
            raise ConfigError(
                f"{key} must have the columns path and label, got {show_path(table_path)} "
                f"with {show(', '.join(table.names))}"
            )
    keys += [name for name in ("group",) if name in table.names]
    extra = weight_columns(table, weight, keys, needs_weight)
    content = table.read([*keys, *extra], keys)
    if not content.num_rows:
        raise ConfigError(f"{show_path(table_path)} holds no rows")
    columns = {name: table.labels(content, name, "used") for name in keys}
    for name, (codes, _) in columns.items():
        if (codes < 0).any():
            position = table.position(int(np.argmax(codes < 0)))
            raise ConfigError(f"{show_path(table_path)}: {position}, column {name} is empty")
    codes, paths = columns["path"]
    files = [root / paths[i] for i in codes]
    numbers, classes = numbered(*columns["label"])
    groups = None
    if "group" in columns:
        codes, texts = columns["group"]
        groups = np.array(texts)[codes]
    splits = {"train": np.arange(len(files))}
    weight_of = weights_in(table, content, extra, len(files))
    return Listing(files, numbers, classes, splits, groups, weight_of)


def weight_columns(
    table: TableFile, weight: str | None, used: Sequence[str], is_needed: bool
) -> list[str]:
    """Return the name of the column of weights, if the table has one. `used` are its columns with
    another use."""
    if weight is None:
        return []
    if weight in used:
        raise ConfigError(
            f"data.weight must be another column than {listed(used)}, got {show(weight)}"
        )
    if weight in table.names:
        return [weight]
    if is_needed:
        raise ConfigError(
            f"data.weight must be a column of {show_path(table.path)}, got {show(weight)}"
            f"{nearest(weight, table.names)}"
        )
    return []


def weights_in(
    file: TableFile, content: Any, names: Sequence[str], num_rows: int
) -> np.ndarray | None:
    """Return the weights of all rows, in the column that `weight_columns` has found; None without
    one.  # float64[N]"""
    return column_of_weights(file, content, names[0], num_rows) if names else None


def each(pool: Executor, function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """Apply a function to all items, and collect their errors in one.

    Items are files, or (i, file). Files with the same error but for their names are counted.
    """

    def attempt(item: Any) -> T | ConfigError:
        try:
            return function(item)
        except ConfigError as error:
            return error

    results = [*pool.map(attempt, items)]
    groups: dict[str, list[str]] = {}
    for item, result in zip(items, results, strict=True):
        if isinstance(result, ConfigError):
            file = item if isinstance(item, Path) else item[1]
            reason = str(result).replace(show_path(file), "")
            groups.setdefault(reason, []).append(str(result))
    if groups:
        texts = [
            f"{same[0]}{f' ({len(same)} such files)' if len(same) > 1 else ''}"
            for same in groups.values()
        ]
        more = len(texts) - _MOST_REASONS
        others = [f"{more} more kinds of errors"] if more > 0 else []
        raise ConfigError("; also: ".join([*texts[:_MOST_REASONS], *others]))
    return [result for result in results if not isinstance(result, ConfigError)]
