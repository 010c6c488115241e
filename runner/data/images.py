"""Images in folders: their list, and their pixels, which Pillow decodes."""

import hashlib
import os
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator

from runner.data.augment import Augment
from runner.data.capacity import memory
from runner.data.dataset import Dataset, Scaling, Split
from runner.data.files import unscaled
from runner.data.folders import Folder, Listing, Media, each
from runner.data.mixing import Alpha
from runner.data.splits import SPLITS
from runner.data.stream import StreamedRows
from runner.errors import ConfigError, RunError, one_line, show_path
from runner.section import Count

# Pillow's other readers run programs (EPS) or are rarely used
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY = ("1", "L", "LA", "La")  # Pillow's modes of one channel, with or without transparency
_LEVELS = 256  # of a pixel's channel
_LARGEST = 65_535  # pixels of a side
_THREADS = 8  # that decode; more wait for memory

Color = Literal["grey", "rgb", "auto"]


def _check_size(size: list[int]) -> list[int]:
    if len(size) != 2 or not all(1 <= side <= _LARGEST for side in size):
        raise ValueError(f"[height, width], each from 1 to {_LARGEST}")
    return size


Size = Annotated[list[int], AfterValidator(_check_size)]


class ImageFolder(Folder):
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
    With `memory_mb` (in 2^20 bytes), images are decoded while training, within this memory, with
    the same values.
    """

    name: Literal["image_folder"]
    media: ClassVar[Media] = Media("images", _SUFFIXES)
    size: Size | None
    color: Color
    scaling: Literal["unit", "none", "standardize"]
    memory_mb: Count | None
    augment: Augment
    mixup: Alpha
    cutmix: Alpha

    def new_rows(
        self, files: Sequence[Path], description: Mapping[str, Any]
    ) -> tuple[np.ndarray, list[str]]:
        color: Color = "grey" if description["input_shape"][2] == 1 else "rgb"
        return read_images(files, self.size, color), []

    def load(self) -> Dataset:
        listed = self.listing()
        if self.memory_mb is not None:
            return self._streamed(listed, self.memory_mb * 2**20)
        pixels = read_images(listed.files, self.size, self.color)
        splits = self.split_numbers(listed)
        self.check_classes(splits["train"].y, listed.classes)
        scaling = self._scaling(_levels(pixels, splits["train"].x))
        scale = scaling.apply if scaling else lambda values: values.astype(np.float32)
        train, val, test = (Split(scale(pixels[splits[name].x]), splits[name].y) for name in SPLITS)
        data = Dataset(train, val, test, "classification", listed.classes, (), x_scaling=scaling)
        folds = self.folds_sha256(pixels, listed.labels, listed.weights)
        data = self.weighted(replace(data, folds_sha256=folds), listed, splits)
        remedy = "data.scaling=unit scales them"
        return data if scaling else replace(data, warnings=unscaled(pixels, self.path, remedy))

    def _streamed(self, listed: Listing, memory: int) -> Dataset:
        """Decode all images once, for the scaling and the hash, and again while training."""
        splits = self.split_numbers(listed)
        self.check_classes(splits["train"].y, listed.classes)
        decoder = Decoder.of(listed.files, self.size, self.color)
        num, shape = len(listed.files), decoder.shape
        digest, is_train = hashlib.sha256(repr((num, shape)).encode()), np.zeros(num, bool)
        is_train[splits["train"].x] = True
        train, others = (np.zeros((shape[-1], _LEVELS), np.int64) for _ in range(2))
        size = max(1, memory // (9 * int(np.prod(shape))))
        for first in range(0, num, size):
            pixels = decoder.pixels(np.arange(first, min(first + size, num)))
            digest.update(pixels.data)
            of_train = is_train[first : first + size]
            train += _levels(pixels, np.flatnonzero(of_train))
            others += _levels(pixels, np.flatnonzero(~of_train))
        scaling = self._scaling(train)
        every = ImageRows.of(decoder, scaling, train, train + others, digest.hexdigest())
        train_rows, val, test = (
            Split(every.taken(splits[name].x), splits[name].y) for name in SPLITS
        )
        hashed = np.frombuffer(every.sha256.encode(), np.uint8)
        data = Dataset(
            train_rows,
            val,
            test,
            "classification",
            listed.classes,
            (),
            x_scaling=scaling,
            memory=memory,
            folds_sha256=self.folds_sha256(hashed, listed.labels, listed.weights),
        )
        remedy = "data.scaling=unit scales them"
        warnings = () if scaling else unscaled(every, self.path, remedy)
        return self.weighted(replace(data, warnings=warnings), listed, splits)

    def _scaling(self, counts: np.ndarray) -> Scaling | None:
        """Return what gives the values that the network sees, per channel, from the numbers of the
        training pixels with each level.  # int64[C, _LEVELS]"""
        channels = len(counts)
        if self.scaling == "none":
            return None
        if self.scaling == "unit":
            return Scaling(np.zeros(channels), np.full(channels, _LEVELS - 1.0))
        levels, number = np.arange(_LEVELS), counts[0].sum()
        mean = counts @ levels / number
        deviation = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(axis=1) / number)
        return Scaling(mean, np.where(deviation > 0, deviation, 1.0))


def read_images(files: Sequence[Path], size: Sequence[int] | None, color: Color) -> np.ndarray:
    """Decode images, several at a time; the result does not depend on how many.

    Returns:
        uint8[N, H, W, C], C = 1 for grey and 3 for rgb.

    Raises:
        ConfigError: a file is no image or a damaged one; without `size`, two images have different
            sizes; the rows do not fit into memory.
    """
    with _strict_pillow():
        decoder = Decoder.of(files, size, color)
        _check_memory(len(files), decoder.shape)
        return decoder.pixels(np.arange(len(files)))


@dataclass(frozen=True)
class Decoder:
    """Decodes images of one size and color, several at a time."""

    files: tuple[Path, ...]
    size: Sequence[int] | None
    color: Color
    shape: tuple[int, ...]  # of all images: [H, W, C]

    @classmethod
    def of(cls, files: Sequence[Path], size: Sequence[int] | None, color: Color) -> "Decoder":
        """Find the color and the size of the images, that of the first one if `size` is None."""
        with _strict_pillow(), _pool() as pool:
            if color == "auto":
                modes = each(pool, _mode, files)
                color = "grey" if all(mode in _GREY for mode in modes) else "rgb"
            first = each(pool, partial(_pixels, size=size, color=color), files[:1])[0]
        return cls(tuple(files), size, color, first.shape)

    def pixels(self, which: np.ndarray) -> np.ndarray:
        """Decode some images.  # int64[n] -> uint8[n, H, W, C]"""
        found = np.empty((len(which), *self.shape), np.uint8)

        def decode(numbered_file: tuple[int, Path]) -> None:
            i, file = numbered_file
            values = _pixels(file, self.size, self.color)
            if values.shape != self.shape:
                shapes = [f"{a[0]} x {a[1]}" for a in (self.shape, values.shape)]
                raise ConfigError(
                    f"data.size must be [height, width] for images of different sizes, got null: "
                    f"{show_path(self.files[0])} has {shapes[0]} pixels, {show_path(file)} "
                    f"{shapes[1]}"
                )
            found[i] = values

        with _pool() as pool:
            each(pool, decode, [(i, self.files[row]) for i, row in enumerate(which)])
        return found


@dataclass(frozen=True)
class ImageRows(StreamedRows):
    """Images that are decoded when they are needed, and scaled."""

    decoder: Decoder
    scaling: Scaling | None
    low: np.ndarray  # the smallest values of the training rows  # [1, 1, C]
    high: np.ndarray

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        scaling: Scaling | None,
        train: np.ndarray,
        every: np.ndarray,
        sha256: str,
    ) -> "ImageRows":
        """Return all rows. `train` and `every` count the levels of the pixels of the training rows
        and of all rows.  # int64[C, _LEVELS]"""
        dtype = np.dtype(np.float32 if scaling is None else np.float64)
        ends = [_ends(counts, scaling) for counts in (train, every)]
        (low, high), (least, largest) = ends
        extent = (float(least.min()), float(largest.max()))
        rows = np.arange(len(decoder.files))
        return cls(rows, dtype, extent, sha256, decoder, scaling, low, high)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.decoder.shape

    @property
    def ranges(self) -> tuple[Any, Any]:
        return self.low, self.high

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        """Decode rows in the requested order.  # int64[n] -> dtype[n, H, W, C]"""
        try:
            pixels = self.decoder.pixels(self.rows[which])
        except ConfigError as error:  # the run has begun
            raise RunError(error) from error
        return pixels.astype(np.float32) if self.scaling is None else self.scaling.apply(pixels)


def _levels(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Count the pixels of each level in some images, per channel.
    # uint8[N, H, W, C], int64[n] -> int64[C, _LEVELS]"""
    counts = np.zeros((pixels.shape[-1], _LEVELS), np.int64)
    for row in rows:
        for channel, of_channel in enumerate(counts):
            of_channel += np.bincount(pixels[row, ..., channel].ravel(), minlength=_LEVELS)
    return counts


def _ends(counts: np.ndarray, scaling: Scaling | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest values of each channel.  # [1, 1, C] each"""
    low, high = (counts > 0).argmax(axis=1), _LEVELS - 1 - (counts[:, ::-1] > 0).argmax(axis=1)
    values = [level[None, None].astype(np.float64) for level in (low, high)]
    low, high = values if scaling is None else map(scaling.apply, values)
    return low, high


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "images")


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
