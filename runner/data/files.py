"""The user's arrays: NPZ files and Python functions, checked before training."""

import math
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np

from runner.data import weights
from runner.data.augment import Augment
from runner.data.cells import NUMBER
from runner.data.dataset import (
    Dataset,
    Task,
    check,
    check_classes,
    largest_of,
    standardize,
    take,
)
from runner.data.mixing import Alpha
from runner.data.splits import Splits, with_own_rows
from runner.data.tokenizer import Tokenizer
from runner.errors import ConfigError, listed, one_line, show, show_path
from runner.section import Mark

Channels = Literal["last", "first"]


def check_channels(shape: Sequence[int], channels: Channels, source: str) -> None:
    """Refuse `channels: first` for rows that are no images."""
    if channels == "first" and len(shape) != 4:
        raise ConfigError(
            f"data.channels must be last if x is not [N, C, H, W], got first and {source} with the "
            f"shape {list(shape)}"
        )


def channels_last(x: np.ndarray) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W, C], without a copy."""
    return np.moveaxis(x, 1, -1)


def seems_channels_first(shape: Sequence[int], channels: Channels, source: str) -> tuple[str, ...]:
    """Warn of rows [1 or 3, S, S], S > 3, which are probably images with the channels first."""
    if channels == "first" or len(shape) != 4:
        return ()
    _, first, height, width = shape
    if first not in (1, 3) or height != width or height <= 3:
        return ()
    return (
        f"{source}: rows of x have the shape {list(shape[1:])}; if these are {first} channels of "
        f"{height} x {width} pixels, set data.channels=first",
    )


class Rows(Splits):
    """The keys of arrays that are split here."""

    task: Task
    standardize: bool
    no_label: int | None

    @property
    def of_sequences(self) -> dict[str, Any]:
        """The fields of the data set that say what y is -1 for."""
        if self.task == "transcription":
            return {"separator": " "}
        return {"no_label": self.no_label}

    def _dataset(
        self,
        source: str,
        x: np.ndarray,
        y: np.ndarray,
        classes: Sequence[str],
        columns: tuple[str, ...] = (),
        target: str | None = None,
        groups: np.ndarray | None = None,
        times: np.ndarray | None = None,
        own: Mapping[str, int] = MappingProxyType({}),
        weight: np.ndarray | None = None,
    ) -> Dataset:
        """Check the rows, split them, and standardize them if asked. The last rows are those of
        splits that have files of their own: split -> number of rows."""
        check(x, y, source)
        num = len(x) - sum(own.values())
        labels = y[:num] if self.task == "classification" else None
        parts = self.rows(num, source, labels=labels, groups=groups, times=times, given=own)
        parts = with_own_rows(parts, num, own)
        data = Dataset(
            *take(x, y, parts),
            task=self.task,
            classes=tuple(classes),
            features=columns,
            target=target,
            folds_sha256=self.folds_sha256(x, y, groups, times, weight),
            **self.of_sequences,
        )
        data = weights.weighted(data, weight, parts, f"{source}: weight")
        check_classes(data, source)
        if self.standardize:
            return standardize(data, x=True, y=self.task == "regression")
        return data

    def _of_arrays(
        self,
        source: str,
        x: np.ndarray,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        times: np.ndarray | None = None,
        own: Mapping[str, int] = MappingProxyType({}),
        weight: np.ndarray | None = None,
    ) -> Dataset:
        x = as_float(x, "x", source)
        if x.ndim < 2 or 0 in x.shape[1:]:
            raise ConfigError(
                f"{source}: x must hold a row of values per sample, got the shape {list(x.shape)}"
            )
        y, classes = as_targets(y, self.task, source, x.shape[1:], self.no_label)
        data = self._dataset(
            source, x, y, classes, groups=groups, times=times, own=own, weight=weight
        )
        remedy = "data.standardize=true scales them"
        scaled = () if self.standardize else unscaled(x, source, remedy)
        alone = () if self.task == "transcription" else classes
        return replace(data, warnings=(*scaled, *numbers_as_labels(f"{source}: y", len(y), alone)))


class _File(Rows):
    path: Annotated[str, Mark(on_run=True)]


class NPZ(_File):
    """An NPZ file with arrays `x` [N, ...] (numbers) and `y`: for classification labels (integers
    [N], or [N, T] at each step of a sequence, [N, H, W] at each pixel of an image; the classes are
    their distinct values), for regression targets ([N] or [N, C]).
    `standardize` scales by the training rows. Images are [N, H, W, C]; with `channels: first` the
    file has [N, C, H, W], and the rows become [H, W, C]. split=grouped needs `group` [N], numbers
    or text; split=chronological sorts by `time` [N], numbers or dates, if there is one. `weight`
    names the array with the weights of the rows [N] (runner.data.weights). The files
    `val_path` and `test_path` have the rows of these splits, in place of a fraction."""

    name: Literal["npz"]
    val_path: Annotated[str | None, Mark(on_run=True)]
    test_path: Annotated[str | None, Mark(on_run=True)]
    channels: Channels
    weight: str | None
    augment: Augment
    mixup: Alpha
    cutmix: Alpha

    def load(self) -> Dataset:
        path = regular_file(self.path)
        followed = {"grouped": ("group",), "chronological": ("time",)}.get(self.split, ())
        named = () if self.weight is None else (self.weight,)
        x, y, *rest = read_npz(path, "x", "y", *named, optional=followed)
        weight = weights.checked(rest.pop(0), len(y), self._weight_of(self.path)) if named else None
        check_channels(x.shape, self.channels, self.path)
        if self.channels == "first":
            x = np.ascontiguousarray(channels_last(x))
        (values,) = rest or (None,)
        groups, times = (values, None) if self.split == "grouped" else (None, values)
        others = {name: self._own_rows(name, x, y) for name in self.own_paths}
        own = {name: len(arrays[0]) for name, arrays in others.items()}
        if others:
            x, y, *rest = (
                np.concatenate(arrays)
                for arrays in zip(
                    (x, y, *([weight] if named else [])), *others.values(), strict=True
                )
            )
            weight = rest[0] if named else None
        data = self._of_arrays(self.path, x, y, groups, times, own, weight)
        hint = seems_channels_first(x.shape, self.channels, self.path)
        return replace(data, warnings=(*hint, *data.warnings))

    def _weight_of(self, path: str) -> str:
        return f"{path}: {self.weight}"

    def _own_rows(self, name: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        """Read x, y and any weights of a split from its own file. They must agree with those of
        data.path."""
        path = self.own_paths[name]
        named = () if self.weight is None else (self.weight,)
        own_x, own_y, *rest = read_npz(regular_file(path, f"data.{name}_path"), "x", "y", *named)
        check_channels(own_x.shape, self.channels, path)
        if self.channels == "first":
            own_x = np.ascontiguousarray(channels_last(own_x))
        for key, own, array in (("x", own_x, x), ("y", own_y, y)):
            if own.ndim == 0 or own.shape[1:] != array.shape[1:]:
                raise ConfigError(
                    f"{path}: {key} must have rows of the shape {list(array.shape[1:])}, as in "
                    f"{self.path}, got the shape {list(own.shape)}"
                )
        check(as_float(own_x, "x", path), own_y, path)
        as_targets(own_y, self.task, path, own_x.shape[1:], self.no_label)
        others = np.setdiff1d(own_y, y)
        others = others if self.no_label is None else others[others != self.no_label]
        if self.task in ("classification", "transcription") and len(others):
            raise ConfigError(
                f"{path}: y must have the classes of {self.path}, got {show(str(others[0]))}, "
                f"which is not one of them"
            )
        weight = [weights.checked(values, len(own_y), self._weight_of(path)) for values in rest]
        return own_x, own_y, *weight


def regular_file(path: str | Path, key: str = "data.path") -> Path:
    """Resolve the path of a regular file; refuse folders, pipes and devices."""
    resolved, mode = locate(path, "file", key)
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ConfigError(f"{key} must be a file, got {show_path(path)}, which is {kind}")
    return resolved


def tokenizer_of(kind: str, texts: Iterable[str], most: int) -> Tokenizer:
    """Make a tokenizer of words, characters or bytes, or read one from its JSON file, for
    `data.tokenizer`. The vocabulary of words and characters is that of the texts."""
    if kind in ("words", "characters"):
        return Tokenizer.most_frequent(kind, texts, most)
    if kind == "bytes":
        return Tokenizer.of_bytes()
    return Tokenizer.of_file(regular_file(kind, "data.tokenizer"), "data.tokenizer")


def locate(path: str | Path, kind: str, key: str = "data.path") -> tuple[Path, int]:
    """Expand ~ or package: in a path; return it with its mode. Raises ConfigError if it does not
    exist."""
    try:
        resolved = _of_package(str(path), key) or Path(path).expanduser()
        return resolved, resolved.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        reason = "which does not exist"
    # a name that is too long, no permission, a null byte, an unknown user
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"which cannot be opened: {getattr(error, 'strerror', None) or error}"
    raise ConfigError(f"{key} must be a {kind}, got {show_path(path)}, {reason}")


def _of_package(path: str, key: str) -> Path | None:
    """The path of package:NAME/FILE, a file of the installed package NAME, which is not imported;
    None for any other path."""
    if not path.startswith("package:"):
        return None
    name, _, file = path.removeprefix("package:").partition("/")
    folder = package_folder(name) if name.isidentifier() else None
    if folder is None:
        raise ConfigError(
            f"{key} is {show_path(path)}, and the package {name} is not installed: "
            f"pip install --no-deps {name}"
        )
    return folder / file


def package_folder(name: str) -> Path | None:
    """Find the folder of an installed package without importing it; None if there is none."""
    spec = find_spec(name)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0]) if folders else None


def read_npz(path: Path, *names: str, optional: Sequence[str] = ()) -> list[np.ndarray]:
    """Read the arrays with these names from an NPZ file, then those of the optional ones that it
    has; pickles are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored = [str(name) for name in archive.files]
            found = [name for name in (*names, *optional) if name in stored]
            arrays = [archive[name] for name in found]
    # a damaged file raises many types of errors, from zipfile, zlib, lzma and NumPy
    except Exception as error:
        text = one_line(error) or type(error).__name__
        raise ConfigError(f"{path} cannot be read as NPZ: {text}") from None
    if not set(names) <= set(found):
        wanted = f"arrays {' and '.join(names)}" if len(names) > 1 else f"an array {names[0]}"
        raise ConfigError(f"{path} must hold {wanted}, got {listed(sorted(stored)) or 'none'}")
    for name, array in zip(found, arrays, strict=True):
        if not isinstance(array, np.ndarray):
            raise ConfigError(f"{path}: {name} must be an array in NPY format, got other bytes")
    return arrays


def numbers_as_labels(name: str, num_rows: int, classes: Sequence[str]) -> tuple[str, ...]:
    """Warn if labels are probably numbers to predict: more than 20 distinct numbers with less than
    10 rows each on average, or mostly distinct numbers."""
    many = len(classes) > 20 and num_rows < 10 * len(classes)
    mostly_distinct = num_rows >= 20 and len(classes) > num_rows / 2
    if not (many or mostly_distinct) or not all(map(_is_finite, classes)):
        return ()
    return (
        f"{name} has {len(classes)} different numbers in {num_rows} rows, each used as a class; "
        f"set data.task=regression to predict numbers",
    )


_UNSCALED_WORDS = "x has unscaled values"
UNSCALED = 10  # values beyond it are probably not scaled


def unscaled(x: Any, source: str, remedy: str) -> tuple[str, ...]:
    """Warn of unscaled values, such as pixels from 0 to 255, which train badly."""
    largest = x.largest if hasattr(x, "largest") else largest_of(x)
    if largest <= UNSCALED:
        return ()
    return (f"{source}: {_UNSCALED_WORDS} up to {largest:g}; {remedy}",)


def without_unscaled(warnings: Sequence[str]) -> tuple[str, ...]:
    """Drop the warning of `unscaled`, for values that turn out to be token ids."""
    return tuple(warning for warning in warnings if _UNSCALED_WORDS not in warning)


def as_float(values: np.ndarray, name: str, source: object) -> np.ndarray:
    if values.dtype.kind not in "iufb" or values.ndim == 0:
        raise ConfigError(
            f"{source}: {name} must be an array of numbers, got {values.dtype} of shape "
            f"{list(values.shape)}"
        )
    return values.astype(as_stored(values.dtype), copy=False)


def as_stored(dtype: np.dtype) -> np.dtype:
    """Return the dtype of numbers in memory: float32 if it represents them exactly, else
    float64."""
    small = dtype.itemsize <= (4 if dtype.kind == "f" else 2)
    return np.dtype(np.float32 if small else np.float64)


def as_text(values: np.ndarray) -> np.ndarray:
    """Convert an array of Python's text to NumPy's, which can be sorted; others are unchanged."""
    is_text = values.dtype.kind == "O" and all(isinstance(value, str) for value in values.flat)
    return values.astype(str) if is_text else values


def as_targets(
    y: np.ndarray,
    task: Task,
    source: object,
    row_shape: Sequence[int] = (),
    no_label: int | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert y. Regression: targets float64[N, C], no classes. Classification: labels int64[N],
    numbered from 0, and the classes' names, the sorted distinct integers of y. Labels of shape [N,
    T], one at each step, need rows of x that begin with T, and labels [N, H, W], one at each pixel,
    images [N, H, W, C]: `row_shape`. Where y is `no_label`, a position has none: -1. Transcription:
    sequences of labels int64[N, L], -1 after the last one of a row, where y is `no_label`."""
    if task == "transcription":
        return _sequences(y, source, no_label)
    if no_label is not None and (task == "regression" or y.ndim < 2):
        raise ConfigError(
            f"data.no_label must be null unless {source} has a label at each position, got "
            f"{no_label}"
        )
    if task == "regression":
        if 0 in y.shape[1:]:
            raise ConfigError(
                f"{source}: y must hold a target per row, got the shape {list(y.shape)}"
            )
        return as_float(y, "y", source).astype(np.float64).reshape(len(y), -1), ()
    positions = y.shape[1:]
    is_one_each = positions == tuple(row_shape[: len(positions)]) and positions[-1:] != (1,)
    if y.ndim == 0 or not is_one_each or y.dtype.kind not in "iu":
        got = f"got {y.dtype} of shape {list(y.shape)}"
        hint = "; set data.task=regression to predict numbers" if y.dtype.kind == "f" else ""
        is_mask = y.ndim == 4 and y.shape[1:3] == tuple(row_shape[:2]) and y.shape[3] == 1
        hint = hint or ("; labels at pixels have the shape [N, H, W]" if is_mask else "")
        is_sequence = y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "iu"
        hint = hint or ("; data.task=transcription takes sequences" if is_sequence else "")
        raise ConfigError(f"{source}: y must be labels, integers of shape [N], {got}{hint}")
    names, labels = np.unique(y, return_inverse=True)
    labels = labels.astype(np.int64).reshape(y.shape)
    if no_label is not None:
        labels, names = _with_gaps(labels, y == no_label, source), names[names != no_label]
    return labels, tuple(str(name) for name in names)


def _sequences(
    y: np.ndarray, source: object, no_label: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the labels of sequences; refuse a row without labels, or with one after the end."""
    if y.ndim != 2 or y.dtype.kind not in "iu" or not y.shape[1]:
        raise ConfigError(
            f"{source}: y must be sequences of labels for data.task=transcription, integers of "
            f"shape [N, L] with data.no_label after the last label of a row, got {y.dtype} of "
            f"shape {list(y.shape)}"
        )
    names, labels = np.unique(y, return_inverse=True)
    labels = labels.astype(np.int64).reshape(y.shape)
    if no_label is not None:
        labels, names = _with_gaps(labels, y == no_label, source), names[names != no_label]
    resumes = ((labels[:, 1:] >= 0) & (labels[:, :-1] < 0)).any(axis=1)
    if resumes.any():
        raise ConfigError(
            f"{source}: row {int(np.argmax(resumes))} of y has a label after "
            f"data.no_label={no_label}, which ends a row's labels"
        )
    return labels, tuple(str(name) for name in names)


def _with_gaps(labels: np.ndarray, is_gap: np.ndarray, source: object) -> np.ndarray:
    """Renumber labels without the number that stands for none, which becomes -1. Raise ConfigError
    for a row without labels."""
    if is_gap.any():
        labels = labels - (labels > labels[is_gap][0])
        labels[is_gap] = -1
    lacking = is_gap.reshape(len(is_gap), -1).all(axis=1)
    if lacking.any():
        raise ConfigError(
            f"{source}: row {int(np.argmax(lacking))} of y has no label; leave it out"
        )
    return labels


def _is_finite(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def numbered(codes: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number labels in the order of `label_key`.

    Args:
        codes: the number of each row's text; -1 for none.  # int64[N]
        texts: the texts.

    Returns:
        The number of each row's class, -1 for none; and the classes that rows have.
    """
    counts = np.bincount(codes + 1, minlength=len(texts) + 1)[1:]
    used = [text for text, count in zip(texts, counts, strict=True) if count]
    classes = tuple(sorted(used, key=label_key(used)))
    number = {name: i for i, name in enumerate(classes)}
    of_code = np.array([*(number.get(text, -1) for text in texts), -1], dtype=np.int64)
    return of_code[codes], classes


def label_key(labels: Sequence[str]) -> Callable[[str], Any]:
    """A sort key for labels: by number if all are numbers, then by text, so that the order of equal
    numbers (1 and 1.0) is always the same."""
    if all(map(_is_finite, labels)):
        return lambda label: (float(label), label)
    return str
