"""Random changes of training images: the same pixels on every backend, and after a resume."""

from functools import lru_cache

import numpy as np

from runner.random import uniform
from runner.section import Index, Section

_DRAWS = 5  # numbers of a row in an epoch: flip, crop y and x, shift y and x


class Augment(Section):
    """Random changes of training images, in this order: a mirror image (left to right) with
    probability 1/2; a shift by -S ... S pixels in each direction, which repeats the pixels at the
    edge; a cut of the image's size out of the image with C black pixels on each side. Each whole
    number of pixels is equally likely."""

    flip: bool
    crop: Index  # C
    shift: Index  # S

    @property
    def is_on(self) -> bool:
        return self.flip or self.crop > 0 or self.shift > 0


def augmented(
    images: np.ndarray,
    augment: Augment,
    black: np.ndarray,
    rows: np.ndarray,
    num_rows: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Change images at random; a function of (seed, epoch, row).

    Args:
        images: the images of `rows`.  # dtype[n, H, W, C]
        augment: which changes.
        black: a black pixel.  # [C]
        rows: the numbers of the training rows.  # int64[n]
        num_rows: the number of all training rows.
        seed: the run's seed.
        epoch: the number of the epoch.

    Returns:
        # dtype[n, H, W, C]
    """
    num, height, width, channels = images.shape
    draws = _draws(num_rows, seed, epoch)[rows]
    crop, shift = _offsets(draws[:, 1:3], augment.crop), _offsets(draws[:, 3:5], augment.shift)
    y, y_inside = _sources(height, crop[:, 0], shift[:, 0])
    x, x_inside = _sources(width, crop[:, 1], shift[:, 1])
    if augment.flip:
        x = np.where(draws[:, :1] < 0.5, width - 1 - x, x)
    row_starts = (np.arange(num)[:, None] * height + y) * width
    pixels = images.reshape(-1, channels)
    changed: np.ndarray = pixels.take(row_starts[:, :, None] + x[:, None, :], axis=0)
    if augment.crop:
        changed[~(y_inside[:, :, None] & x_inside[:, None, :])] = black
    return changed


@lru_cache(maxsize=2)
def _draws(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The random numbers of all rows in an epoch; those of a row do not depend on the number of
    rows.  # float64[num_rows, _DRAWS]"""
    return uniform((num_rows, _DRAWS), seed, f"augment/{epoch}")


def _offsets(draws: np.ndarray, most: int) -> np.ndarray:
    """U[0, 1) -> whole numbers from -most to most.  # int64, the shape of `draws`"""
    return np.floor(draws * (2 * most + 1)).astype(np.int64) - most


def _sources(size: int, crop: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find where the pixels along one axis come from, and which are not black.
    # int64[n], int64[n] -> int64[n, size], bool[n, size]"""
    positions = np.arange(size) + crop[:, None]
    inside = (positions >= 0) & (positions < size)
    return np.clip(positions - shift[:, None], 0, size - 1), inside
