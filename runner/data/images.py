"""Images in folders: their list, and their pixels, which Pillow decodes."""

import os
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator

from runner.data.augment import Augment
from runner.data.capacity import memory
from runner.data.dataset import Dataset, Scaling, Split
from runner.data.files import unscaled
from runner.data.folders import Folder, Media, each
from runner.data.mixing import Alpha
from runner.data.splits import SPLITS
from runner.errors import ConfigError, one_line, show_path

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
    """

    name: Literal["image_folder"]
    media: ClassVar[Media] = Media("images", _SUFFIXES)
    size: Size | None
    color: Color
    scaling: Literal["unit", "none", "standardize"]
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
        pixels = read_images(listed.files, self.size, self.color)
        splits = self.split_numbers(listed)
        self.check_classes(splits["train"].y, listed.classes)
        scaling = self._scaling(pixels, splits["train"].x)
        scale = scaling.apply if scaling else lambda values: values.astype(np.float32)
        train, val, test = (Split(scale(pixels[splits[name].x]), splits[name].y) for name in SPLITS)
        data = Dataset(train, val, test, "classification", listed.classes, (), x_scaling=scaling)
        folds = self.folds_sha256(pixels, listed.labels, listed.weights)
        data = self.weighted(replace(data, folds_sha256=folds), listed, splits)
        remedy = "data.scaling=unit scales them"
        return data if scaling else replace(data, warnings=unscaled(pixels, self.path, remedy))

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
            modes = each(pool, _mode, files)
            color = "grey" if all(mode in _GREY for mode in modes) else "rgb"
        first = each(pool, partial(_pixels, size=size, color=color), files[:1])[0]
        _check_memory(len(files), first.shape)
        pixels = np.empty((len(files), *first.shape), np.uint8)

        def decode(numbered_file: tuple[int, Path]) -> None:
            i, file = numbered_file
            values = _pixels(file, size, color)
            if values.shape != first.shape:
                shapes = [f"{a.shape[0]} x {a.shape[1]}" for a in (first, values)]
                raise ConfigError(
                    f"data.size must be [height, width] for images of different sizes, got null: "
                    f"{show_path(files[0])} has {shapes[0]} pixels, {show_path(file)} "
                    f"{shapes[1]}"
                )
            pixels[i] = values

        each(pool, decode, [*enumerate(files)])
    return pixels


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
