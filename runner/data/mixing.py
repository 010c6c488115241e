"""Mixup and CutMix: training rows that are mixed in pairs, the same ones on every backend, and
after a resume."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from runner.data.beta import quantiles
from runner.random import uniform

Alpha = Annotated[float, Field(gt=0, le=1000)] | None
_DRAWS = 5  # numbers of a row in an epoch: partner, kind, share, y and x of a rectangle


@dataclass(frozen=True)
class Mixing:
    """Mixes each training row with another one, its partner j: any training row, each with the same
    probability. The share is lambda ~ Beta(alpha, alpha).

    mixup: x = lambda x_i + (1 - lambda) x_j. Zhang et al. (2018), section 2.

    cutmix: a rectangle of the image is the partner's. It has floor(floor(S r) / 2) pixels on each
    side of its centre along a side of S pixels, r = sqrt(1 - lambda). The centre is any pixel, and
    what lies outside the image is cut off. Then 1 - lambda is the rectangle's share of the pixels.
    Yun et al. (2019), equations 1 and 2, with the rounding of the authors' code.

    The targets are lambda y_i + (1 - lambda) y_j in both. With both, each row has one of them, with
    probability 1/2.
    """

    mixup: float | None  # alpha
    cutmix: float | None  # alpha; rows are images [H, W, C]


@dataclass(frozen=True)
class Mixed:
    """The partners of some rows, and what is taken from them."""

    partners: np.ndarray  # int64[n]
    shares: np.ndarray  # lambda, that of the row itself  # float64[n]
    # the first and one after the last of the partner's pixels: y, y, x, x  # int64[n, 4]
    rectangles: np.ndarray | None
    is_cut: np.ndarray  # bool[n]
    is_exact: bool = False  # mix in float64 and round once, as exact mode does

    def of(self, own: np.ndarray, partner: np.ndarray) -> np.ndarray:
        """Mix rows.  # float[n, ...] twice -> float[n, ...]"""
        mixed = self._blended(np.where(self.is_cut, 1.0, self.shares), own, partner)
        if self.rectangles is not None:
            y, x = (np.arange(size) for size in own.shape[1:3])
            top, bottom, left, right = self.rectangles.T[..., None]
            rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
            is_inside = rows[:, :, None] & columns[:, None, :] & self.is_cut[:, None, None]
            mixed[is_inside] = partner[is_inside]
        return mixed

    def targets(self, own: np.ndarray, partner: np.ndarray) -> np.ndarray:
        """Mix targets.  # float[n, C] twice -> float[n, C]"""
        return self._blended(self.shares, own, partner)

    def _blended(self, shares: np.ndarray, own: np.ndarray, partner: np.ndarray) -> np.ndarray:
        """Return shares own + (1 - shares) partner.  # float64[n], float[n, ...] twice"""
        shares = shares.astype(own.dtype).reshape(-1, *(1 for _ in own.shape[1:]))
        if self.is_exact:  # each operation has one result
            shares = shares.astype(np.float64)
        blended: np.ndarray = shares * own + (1 - shares) * partner
        return blended.astype(own.dtype, copy=False)


def mixed(
    mixing: Mixing,
    row_shape: tuple[int, ...],
    rows: np.ndarray,
    num_rows: int,
    seed: int,
    epoch: int,
    is_exact: bool = False,
) -> Mixed:
    """Choose how rows are mixed; a function of (seed, epoch, row).

    Args:
        mixing: the kinds of mixing.
        row_shape: the shape of a row; [H, W, C] with cutmix.
        rows: the numbers of the training rows.  # int64[n]
        num_rows: the number of all training rows.
        seed: the run's seed.
        epoch: the number of the epoch.
        is_exact: whether the bits must be the same on every machine; see runner.data.beta.
    """
    partner, kind, draw, y, x = _draws(num_rows, seed, epoch)[rows].T
    is_cut = np.full(len(rows), mixing.cutmix is not None)
    if mixing.mixup is not None and mixing.cutmix is not None:
        is_cut = kind < 0.5
    shares = _shares(mixing, is_cut, draw, is_exact)
    rectangles = None
    if mixing.cutmix is not None:
        height, width, _ = row_shape
        ends = [_side(height, y, shares), _side(width, x, shares)]
        rectangles = np.stack([*ends[0], *ends[1]], axis=1)
        (top, bottom), (left, right) = ends
        area = (bottom - top) * (right - left)
        shares = np.where(is_cut, 1 - area / (height * width), shares)
    return Mixed((partner * num_rows).astype(np.int64), shares, rectangles, is_cut, is_exact)


def _shares(mixing: Mixing, is_cut: np.ndarray, draws: np.ndarray, is_exact: bool) -> np.ndarray:
    """Return lambda, the quantiles of each row's Beta distribution.  # float64[n]"""
    cutmix, mixup = mixing.cutmix or 1.0, mixing.mixup or 1.0
    if is_exact:
        return np.where(is_cut, quantiles(cutmix, draws), quantiles(mixup, draws))
    from scipy.special import betaincinv  # the inverse of the distribution function of Beta

    alphas = np.where(is_cut, cutmix, mixup)
    shares: np.ndarray = betaincinv(alphas, alphas, draws)
    return shares


def _side(size: int, draws: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of a rectangle's side along an axis of `size` pixels.
    # float64[n], float64[n] -> int64[n], int64[n]"""
    centre = (draws * size).astype(np.int64)
    half = (size * np.sqrt(1 - shares)).astype(np.int64) // 2
    return np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)


@lru_cache(maxsize=2)
def _draws(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The random numbers of all rows in an epoch.  # float64[num_rows, _DRAWS]"""
    return uniform((num_rows, _DRAWS), seed, f"mixing/{epoch}")


def mixing_of(data: Any) -> Mixing | None:
    """Return the mixing that a section of data asks for; None if there is none."""
    mixing = Mixing(getattr(data, "mixup", None), getattr(data, "cutmix", None))
    return None if mixing == Mixing(None, None) else mixing
