"""The primitives in NumPy. The self-test compares a device with them, and backend=witness trains
with them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from runner import random
from runner.components.layers import Pads, Window
from runner.exact import rules
from runner.exact.primitives import Place, Together
from runner.exact.tables import table

Array = np.ndarray
_EXPONENT = 0x7FF0000000000000  # mask of the exponent's bits in a float64


def sliding(x: Array, window: Window) -> Array:
    """View the windows of [N, H, W, ...] as [N, H', W', ..., height, width]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, window.span, (1, 2))
    (down, across), (a, b) = window.stride, window.dilation
    return windows[:, ::down, ::across, ..., ::a, ::b]


def positions(window: Window, index: int, height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of the `index`-th value of height x width windows."""
    starts = divmod(index, window.size[1])
    rows, columns = (
        slice(start * dilation, start * dilation + stride * (num - 1) + 1, stride)
        for start, dilation, stride, num in zip(
            starts, window.dilation, window.stride, (height, width), strict=True
        )
    )
    return rows, columns


class NumPy:
    """The primitives in NumPy. `together` are the processes of a run of several."""

    def __init__(self, together: Together | None = None) -> None:
        self.together = together

    def constant(self, value: Array) -> Array:
        return value

    def r(self, x: Any) -> Array:
        return rules.r(x)

    def rint(self, x: Array) -> Array:
        return np.rint(x)

    def grid(
        self, x: Array, bits: int, per_row: bool = False, of_all: bool = False
    ) -> tuple[Array, Array]:
        axes = tuple(range(1, x.ndim)) if per_row else None
        largest = np.max(np.abs(x), axis=axes, keepdims=per_row, initial=0.0)
        if of_all and self.together is not None:
            largest = self.together.largest(largest)
        power, _ = self.power(np.maximum(largest, 2.0**-200))
        return np.rint(x * (2.0 ** (bits - 1) / power)), power * 2.0 ** (1 - bits)

    def over_all(self, x: Array) -> Array:
        return x if self.together is None else np.asarray(self.together.sum(x))

    def plus(self, a: Array, b: Array, scale: Any) -> Array:
        return a + b * scale

    def sqrt(self, x: Array) -> Array:
        return np.sqrt(x)

    def abs(self, x: Array) -> Array:
        return np.abs(x)

    def maximum(self, a: Array, b: Array) -> Array:
        return np.maximum(a, b)

    def where(self, condition: Array, a: Any, b: Any) -> Array:
        return np.where(condition, a, b)

    def gate(self, g: Array, y: Array) -> Array:
        return np.where(y > 0.0, g, 0.0)

    def sum(self, x: Array, axes: tuple[int, ...], keep: bool = False) -> Array:
        return np.sum(x, axis=axes, keepdims=keep)

    def largest(self, x: Array) -> Array:
        return np.max(x, axis=-1, keepdims=True)

    def matmul(self, a: Array, b: Array) -> Array:
        return a @ b

    def transpose(self, a: Array) -> Array:
        return np.swapaxes(a, -1, -2)

    def permute(self, a: Array, axes: Sequence[int]) -> Array:
        return np.transpose(a, axes)

    def reverse(self, a: Array) -> Array:
        return a[::-1]

    def spread(self, x: Array, shape: Sequence[int]) -> Array:
        return np.broadcast_to(x, shape)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(shape)

    def join(self, parts: Sequence[Array]) -> Array:
        return np.concatenate([part.reshape(-1) for part in parts])

    def pad(self, x: Array, pads: Pads, value: float) -> Array:
        return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)

    def patches(self, x: Array, window: Window, pads: Pads) -> Array:
        windows = sliding(self.pad(x, pads, 0.0), window)  # [N, H', W', C, height, width]
        size = math.prod(window.size) * x.shape[3]
        return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size)

    def fold(self, parts: Sequence[Array], window: Window, shape: tuple[int, int]) -> Array:
        num, height, width, channels = parts[0].shape
        images = np.zeros((num, *shape, channels))
        for i, part in enumerate(parts):
            a, b = positions(window, i, height, width)
            images[:, a, b] += part
        return images

    def power(self, x: Array) -> tuple[Array, Array]:
        bits = np.atleast_1d(x).view(np.int64) & _EXPONENT
        power, exponent = bits.view(np.float64), (bits >> 52) - 1023.0
        return power.reshape(np.shape(x)), exponent.reshape(np.shape(x))

    def split(self, x: Array, bits: int) -> tuple[Array, Array]:
        integers = x.astype(np.int64)
        return integers >> bits, integers & ((1 << bits) - 1)

    def real(self, index: Array) -> Array:
        return index.astype(np.float64)

    def take(self, name: str, index: Array) -> Array:
        return table(name)[index]

    def one_hot(self, labels: Array, num: int) -> Array:
        return np.eye(num)[labels.astype(np.int64)]

    def keep(
        self, x: Array, rate: float, layer_index: int, where: Place, is_masked: bool = False
    ) -> Array:
        key, size = random.layer_key(where.seed, layer_index), math.prod(x.shape[1:])
        place = (where.step, where.micro_batch, where.first_row * size)
        mask = random.keep(x.size, rate, key, *place, size if is_masked else None)
        return mask.reshape(x.shape)
