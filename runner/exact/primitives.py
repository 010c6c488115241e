"""The operations that a framework provides for exact mode: some 25, on float64 tensors. Everything
else is written once, over these.

Tensors have the operators + - * / < <= > >= == & ~ and slices, among themselves and with Python
numbers. Images are [N, H, W, C]. `Unit` is a power of two: a number, or a tensor that spreads over
what it belongs to.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Tensor = Any
Unit = Any
Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)


class Primitives(Protocol):
    def constant(self, value: np.ndarray) -> Tensor:
        """A host array on the device."""
        ...

    def r(self, x: Tensor) -> Tensor:
        """rules.r; of a Python number too where scalars are Python numbers."""
        ...

    def rint(self, x: Tensor) -> Tensor:
        """The nearest integer, half to even."""
        ...

    def grid(self, x: Tensor, bits: int, per_row: bool = False) -> tuple[Tensor, Unit]:
        """Q(x, bits) = (i, u): integers |i| <= 2^bits and u = 2^(1 - bits) 2^floor(log2 max|x|), |x
        - i u| <= u / 2.

        The maximum is over all of x, or of each row [N, 1, ...]; where it is 0 it counts as 2^-200.
        """
        ...

    def plus(self, a: Tensor, b: Tensor, scale: Unit) -> Tensor:
        """a + b scale: one operation, since the product is exact."""
        ...

    def sqrt(self, x: Tensor) -> Tensor: ...

    def abs(self, x: Tensor) -> Tensor: ...

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        """b may be a number."""
        ...

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """One of a and b is a tensor, the other may be a number."""
        ...

    def gate(self, g: Tensor, y: Tensor) -> Tensor:
        """g where y > 0, else 0."""
        ...

    def sum(self, x: Tensor, axes: tuple[int, ...], keep: bool = False) -> Tensor: ...

    def largest(self, x: Tensor) -> Tensor:
        """The maximum over the last axis, which stays: [..., 1]."""
        ...

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., M, K] x [..., K, N], in any order of summation; what stands before agrees."""
        ...

    def transpose(self, a: Tensor) -> Tensor:
        """The last two axes exchanged."""
        ...

    def permute(self, a: Tensor, axes: Sequence[int]) -> Tensor:
        """The axes in another order."""
        ...

    def reverse(self, a: Tensor) -> Tensor:
        """The first axis from its end."""
        ...

    def spread(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Axes of 1 repeated."""
        ...

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor: ...

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Flattened, one after another."""
        ...

    def pad(self, x: Tensor, pads: Pads, value: float) -> Tensor:
        """Images with a border of `value`."""
        ...

    def patches(self, x: Tensor, size: int, stride: int, pads: Pads) -> Tensor:
        """Every window of zero-padded images as a row, [N H' W', size size C], in the order of a
        kernel's axes."""
        ...

    def fold(
        self, parts: Sequence[Tensor], size: int, stride: int, shape: tuple[int, int]
    ) -> Tensor:
        """Images [N, *shape, C] with parts[size a + b][:, i, j] added at [:, stride i + a, stride j
        + b]: exact terms."""
        ...

    def power(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(2^e, e), e = floor(log2 x) as a float64, from the exponent's bits of a normal x > 0."""
        ...

    def split(self, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """A whole number 0 <= x < 2^31 as indices (x >> bits, x mod 2^bits)."""
        ...

    def real(self, index: Tensor) -> Tensor:
        """An index as a float64."""
        ...

    def take(self, table: str, index: Tensor) -> Tensor:
        """tables.table(name)[index]"""
        ...

    def one_hot(self, labels: Tensor, num: int) -> Tensor:
        """int[N] -> float64[N, num]"""
        ...

    def keep(
        self, x: Tensor, rate: float, seed: Any, layer_index: int, step: Any, micro_batch: int
    ) -> Tensor:
        """runner.random.keep of a layer in the shape of x: bool."""
        ...
