"""Images in folders: their list, and their pixels, which Pillow decodes."""

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator

from runner.data.augment import Augment
from runner.data.capacity import memory
from runner.data.dataset import Dataset, Scaling, Split
from runner.data.files import label_key, locate, numbered, regular_file, unscaled
from runner.data.splits import SPLITS, Splits
from runner.data.table_files import TableFile
from runner.errors import ConfigError, one_line, show, show_path
from runner.section import Mark

# Pillow's other readers run programs (EPS) or are rarely used
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY = ("1", "L", "LA", "La")  # Pillow's modes of one channel, with or without transparency
_LEVELS = 256  # of a pixel's channel
_DEEPEST = 50  # folders in folders
_LARGEST = 65_535  # pixels of a side
_THREADS = 8  # that decode; more wait for memory

Color = Literal["grey", "rgb", "auto"]
T = TypeVar("T")


def _check_size(size: list[int]) -> list[int]:
    if len(size) != 2 or not all(1 <= side <= _LARGEST for side in size):
        raise ValueError(f"[height, width], each from 1 to {_LARGEST}")
    return size


Size = Annotated[list[int], AfterValidator(_check_size)]


@dataclass(frozen=True)
class Listing:
    """The image files of a data set, in order, and their labels."""

    files: Sequence[Path]
    labels: np.ndarray  # int64[N]
    classes: tuple[str, ...]
    splits: Mapping[str, np.ndarray]  # at least "train" -> numbers of its files, int64[n]
    groups: np.ndarray | None = None  # a table's column group  # str[N]


class ImageFolder(Splits):
    """A folder with one folder of images per class, or with the folders train, val and test, which
    hold the class folders. With `table`, a CSV file, the classes are in its column label, and the
    files in its column path; split=grouped follows its column group.

    Rows are [H, W, C] in the order of the sorted paths, or of the table. `size` [H, W] resizes
    (bilinear, Pillow's, which averages when it shrinks); null: all images must have one size.
    `color`: grey is 0.299 R + 0.587 G + 0.114 B (ITU-R 601-2), transparency is dropped; auto: grey
    if all images are. `scaling`: unit divides 0 ... 255 by 255; standardize gives each channel mean
    0 and deviation 1 over the training rows; none. BMP, GIF, JPEG, PNG, PPM, TIFF and WebP of 8
    bits are read, the first picture of a file, turned as its EXIF orientation says. Names that
    begin with a dot are ignored. A split without its own folder is split off the training rows.
    """

    name: Literal["image_folder"]
    path: Annotated[str, Mark(on_run=True)]
    table: str | None
    size: Size | None
    color: Color
    scaling: Literal["unit", "none", "standardize"]
    augment: Augment

    def listing(self) -> Listing:
        """List the files. Raises ConfigError for a folder or table without two classes."""
        root, mode = locate(self.path, "folder")
        if not stat.S_ISDIR(mode):
            raise ConfigError(
                f"data.path must be a folder, got {show_path(self.path)}, which is not a "
                f"folder; a table of paths is data.table"
            )
        listed = _listed(root) if self.table is None else _tabled(root, self.table)
        if len(listed.classes) == 1:
            raise ConfigError(
                f"{show_path(self.path if self.table is None else self.table)} has images of a "
                f"single class, {show(listed.classes[0])}; classification needs two"
            )
        return listed

    def files(self) -> Iterator[Path]:
        """The files and folders that determine the rows."""
        yield Path(self.path).expanduser()
        if self.table is not None:
            yield Path(self.table).expanduser()
        yield from self.listing().files

    def load(self) -> Dataset:
        listed = self.listing()
        pixels = read_images(listed.files, self.size, self.color)
        splits = self._splits(listed)
        if len(np.unique(splits["train"].y)) == 1:
            raise ConfigError(
                f"the training rows of {show_path(self.path)} have a single class, "
                f"{show(listed.classes[splits['train'].y[0]])}; classification needs two"
            )
        scaling = self._scaling(pixels, splits["train"].x)
        scale = scaling.apply if scaling else lambda values: values.astype(np.float32)
        train, val, test = (Split(scale(pixels[splits[name].x]), splits[name].y) for name in SPLITS)
        data = Dataset(train, val, test, "classification", listed.classes, (), x_scaling=scaling)
        data = replace(data, folds_sha256=self.folds_sha256(pixels, listed.labels))
        remedy = "data.scaling=unit scales them"
        return data if scaling else replace(data, warnings=unscaled(pixels, self.path, remedy))

    def _splits(self, listed: Listing) -> dict[str, Split]:
        """Return the numbers of each split's files, and their labels."""
        given, train = listed.splits, listed.splits["train"]
        labels = listed.labels[train]
        parts = self.rows(
            len(train), self.path, labels=labels, groups=listed.groups, given=given.keys()
        )
        numbers = {name: train[part] for name, part in zip(SPLITS, parts, strict=True)}
        numbers |= {name: rows for name, rows in given.items() if name != "train"}
        return {name: Split(rows, listed.labels[rows]) for name, rows in numbers.items()}

    def _scaling(self, pixels: np.ndarray, train: np.ndarray) -> Scaling | None:
        """Return what gives the values that the network sees, per channel."""
        channels = pixels.shape[-1]
        if self.scaling == "none":
            return None
        if self.scaling == "unit":
            return Scaling(np.zeros(channels), np.full(channels, _LEVELS - 1.0))
        counts = np.zeros((channels, _LEVELS), np.int64)
        for row in train:
            for channel in range(channels):
                counts[channel] += np.bincount(pixels[row, ..., channel].ravel(), minlength=_LEVELS)
        levels, number = np.arange(_LEVELS), counts[0].sum()
        mean = counts @ levels / number
        deviation = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(axis=1) / number)
        return Scaling(mean, np.where(deviation > 0, deviation, 1.0))


def _listed(root: Path) -> Listing:
    """List the files of class folders: one folder per class, or train, val and test of these."""
    folders = _folders(root)
    has_splits = bool(folders) and set(folders) <= set(SPLITS)
    if has_splits and "train" not in folders:
        raise ConfigError(
            f"{show_path(root)} holds the folders {', '.join(folders)}, and no train with the "
            f"training rows"
        )
    order = [name for name in SPLITS if name in folders]
    roots = {name: folders[name] for name in order} if has_splits else {"train": root}
    names = [*_folders(roots["train"])]
    classes = sorted(names, key=label_key(names))
    files: list[Path] = []
    labels: list[int] = []
    splits = {}
    for split, place in roots.items():
        start = len(files)
        for label, found in _by_class(place, classes, roots["train"]):
            files += found
            labels += [label] * len(found)
        splits[split] = np.arange(start, len(files))
    return Listing(files, np.array(labels, np.int64), tuple(classes), splits)


def _by_class(root: Path, classes: Sequence[str], train: Path) -> Iterator[tuple[int, list[Path]]]:
    """Yield the labels of the class folders in `root`, and their files."""
    folders = _folders(root)
    if not folders:
        raise ConfigError(
            f"data.path must hold a folder of images for each class, got {show_path(root)} without "
            f"folders"
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
                    f"{show_path(folders[name])} holds no images; add some, or remove it"
                )
            yield label, found


def _folders(root: Path) -> dict[str, Path]:
    """Return the folders in a folder by name, sorted. Refuses images beside them."""
    folders = {}
    for path in _entries(root):
        if path.is_dir():
            folders[path.name] = path
        elif path.suffix.lower() in _SUFFIXES:
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


def _tabled(root: Path, table_path: str) -> Listing:
    """List the files of a table with the columns path, relative to `root`, and label."""
    table = TableFile(regular_file(table_path, "data.table"))
    keys = ["path", "label"]
    for name in keys:
        if name not in table.names:
            raise ConfigError(
                f"data.table must have the columns path and label, got {show_path(table_path)} "
                f"with {show(', '.join(table.names))}"
            )
    keys += [name for name in ("group",) if name in table.names]
    content = table.read(keys, keys)
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
    return Listing(files, numbers, classes, {"train": np.arange(len(files))}, groups)


def read_images(files: Sequence[Path], size: Sequence[int] | None, color: Color) -> np.ndarray:
    """Decode images, several at a time; the result does not depend on how many.

    Returns:
        uint8[N, H, W, C], C = 1 for grey and 3 for rgb.

    Raises:
        ConfigError: a file is no image or a damaged one; without `size`, two images have different
            sizes; the rows do not fit into memory.
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    with _strict_pillow(), ThreadPoolExecutor(threads, "images") as pool:
        if color == "auto":
            modes = _all(pool, _mode, files)
            color = "grey" if all(mode in _GREY for mode in modes) else "rgb"
        first = _all(pool, partial(_pixels, size=size, color=color), files[:1])[0]
        _check_memory(len(files), first.shape)
        pixels = np.empty((len(files), *first.shape), np.uint8)

        def decode(i: int) -> None:
            values = _pixels(files[i], size, color)
            if values.shape != first.shape:
                shapes = [f"{a.shape[0]} x {a.shape[1]}" for a in (first, values)]
                raise ConfigError(
                    f"data.size must be [height, width] for images of different sizes, got null: "
                    f"{show_path(files[0])} has {shapes[0]} pixels, {show_path(files[i])} "
                    f"{shapes[1]}"
                )
            pixels[i] = values

        _all(pool, decode, range(len(files)))
    return pixels


def _all(pool: ThreadPoolExecutor, function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """Apply a function to all items. Raise the error of the first that fails, with the number of
    the others."""

    def attempt(item: Any) -> T | ConfigError:
        try:
            return function(item)
        except ConfigError as error:
            return error

    results = [*pool.map(attempt, items)]
    errors = [result for result in results if isinstance(result, ConfigError)]
    if errors:
        others = f" ({len(errors)} such files)" if len(errors) > 1 else ""
        raise ConfigError(f"{errors[0]}{others}")
    return [result for result in results if not isinstance(result, ConfigError)]


def _check_memory(num: int, shape: Sequence[int]) -> None:
    """Refuse images that do not fit into memory: as bytes, and as float64."""
    needed, most = num * int(np.prod(shape)) * 9, memory()
    if needed > most:
        raise ConfigError(
            f"data.size must give rows that fit into this machine's {most / 2**30:.3g} GiB of "
            f"memory, got {num} images of {shape[0]} x {shape[1]} x {shape[2]}, which take "
            f"{needed / 2**30:.3g} GiB"
        )


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Make Pillow's warning of a decompression bomb an error, and its other warnings silent."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ConfigError(
            "images need Pillow, which is not installed: pip install pillow"
        ) from None
    with warnings.catch_warnings():  # in the main thread: filters are those of all threads
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open an image, without its pixels. An error in the block is one of the file."""
    from PIL import Image, UnidentifiedImageError

    bombs = (Image.DecompressionBombWarning, Image.DecompressionBombError)
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ConfigError(f"{show_path(file)} is not a regular file, so not an image")
        with Image.open(file, formats=_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ConfigError(
                    f"{show_path(file)} has more than 8 bits per channel (Pillow's mode "
                    f"{image.mode}); save it with 8 bits"
                )
            yield image
    except ConfigError:
        raise
    except UnidentifiedImageError:
        raise ConfigError(
            f"{show_path(file)} is not an image in one of the formats {', '.join(_FORMATS)}; "
            f"remove it, or convert it"
        ) from None
    except bombs:
        raise ConfigError(
            f"{show_path(file)} has more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS}; "
            f"it may be a decompression bomb; shrink it"
        ) from None
    except Exception as error:  # a damaged file raises many types of errors
        reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
        raise ConfigError(f"{show_path(file)} cannot be read as an image: {reason}") from None


def _mode(file: Path) -> str:
    with _opened(file) as image:
        return image.mode


def _pixels(file: Path, size: Sequence[int] | None, color: Color) -> np.ndarray:
    """Decode an image: turn it as its EXIF orientation says, convert its colors, resize it.
    # uint8[H, W, C]"""
    from PIL import Image, ImageOps

    with _opened(file) as image:
        turned = ImageOps.exif_transpose(image).convert("L" if color == "grey" else "RGB")
        if size is not None and (turned.height, turned.width) != tuple(size):
            turned = turned.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(turned).reshape(turned.height, turned.width, -1)
