"""The operations on float64 tensors that a framework provides for exact mode, about 30. Everything
else is written once, with these.

If several processes train a run, a tensor with rows has those of one process. Two operations reach
over all of them: the maximum that makes a grid, and the sum.

Tensors support + - * / < <= > >= == & ~ with tensors and Python numbers, and slices. Images are
[N, H, W, C]. A `Unit` is a power of two: a number, or a tensor that broadcasts over the integers
that it scales.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from runner.components.layers import Pads, Window

Tensor = Any
Unit = Any


class Place(NamedTuple):
    """The place of a micro-batch in a run, and of this process's first row in it."""

    seed: Any = 0  # of the run
    step: Any = 0
    micro_batch: int = 0
    first_row: int = 0


class Together(Protocol):
    """The processes that train a run. All of them make the same calls in the same order."""

    def largest(self, x: Tensor) -> Tensor:
        """The elementwise maximum over the processes, of a tensor of equal shape in each."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes in float64, not their mean."""
        ...


class Primitives(Protocol):
    def constant(self, value: np.ndarray) -> Tensor:
        """Copy a host array to the device."""
        ...

    def r(self, x: Tensor) -> Tensor:
        """Compute rules.r, also of a Python number if the backend's scalars are Python numbers."""
        ...

    def rint(self, x: Tensor) -> Tensor:
        """Round to the nearest integer, half to even."""
        ...

    def grid(
        self, x: Tensor, bits: int, per_row: bool = False, of_all: bool = False
    ) -> tuple[Tensor, Unit]:
        """Q(x, bits) = (i, u): integers |i| <= 2^bits and u = 2^(1 - bits) 2^floor(log2 max|x|), |x
        - i u| <= u / 2.

        The maximum is over all of x, or over each row [N, 1, ...], and at least 2^-200. `of_all`:
        it is also over x in the other processes, which may have other rows, or none.
        """
        ...

    def over_all(self, x: Tensor) -> Tensor:
        """The sum over the processes. Of multiples of one power of two whose sum has at most 53
        bits it is exact in any order."""
        ...

    def plus(self, a: Tensor, b: Tensor, scale: Unit) -> Tensor:
        """a + b scale, with one rounding: the product is exact."""
        ...

    def sqrt(self, x: Tensor) -> Tensor: ...

    def abs(self, x: Tensor) -> Tensor: ...

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        """Elementwise maximum; b may be a number."""
        ...

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """a where the condition is true, else b; one of the two may be a number."""
        ...

    def gate(self, g: Tensor, y: Tensor) -> Tensor:
        """g where y > 0, else 0."""
        ...

    def sum(self, x: Tensor, axes: tuple[int, ...], keep: bool = False) -> Tensor: ...

    def largest(self, x: Tensor) -> Tensor:
        """The maximum over the last axis, which is kept: [..., 1]."""
        ...

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., M, K] x [..., K, N], summed in any order; the leading axes are the same."""
        ...

    def transpose(self, a: Tensor) -> Tensor:
        """Swap the last two axes."""
        ...

    def permute(self, a: Tensor, axes: Sequence[int]) -> Tensor:
        """Reorder the axes."""
        ...

    def reverse(self, a: Tensor) -> Tensor:
        """Reverse the first axis."""
        ...

    def spread(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Broadcast axes of length 1."""
        ...

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor: ...

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Flatten and concatenate."""
        ...

    def pad(self, x: Tensor, pads: Pads, value: float) -> Tensor:
        """Pad images with `value`."""
        ...

    def patches(self, x: Tensor, window: Window, pads: Pads) -> Tensor:
        """Every window of zero-padded images as a row: [N H' W', height width C]. The values of a
        row are in the order of a kernel's axes."""
        ...

    def fold(self, parts: Sequence[Tensor], window: Window, shape: tuple[int, int]) -> Tensor:
        """Add parts[width a + b][:, i, j] to zeros [N, *shape, C] at the value a, b of the window
        i, j: at [:, stride i + dilation a, stride j + dilation b]. The sums are exact."""
        ...

    def power(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(2^e, e) with e = floor(log2 x) in float64, from the exponent bits of a normal x > 0."""
        ...

    def split(self, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Split integers 0 <= x < 2^31 into indices (x >> bits, x mod 2^bits)."""
        ...

    def real(self, index: Tensor) -> Tensor:
        """Convert an index to float64."""
        ...

    def take(self, table: str, index: Tensor) -> Tensor:
        """Look up tables.table(name)[index]."""
        ...

    def one_hot(self, labels: Tensor, num: int) -> Tensor:
        """int[N] -> float64[N, num]"""
        ...

    def keep(
        self, x: Tensor, rate: float, layer_index: int, where: Place, is_masked: bool = False
    ) -> Tensor:
        """Compute a layer's mask runner.random.keep in the shape of x, a masked sequence or not.
        # bool"""
        ...
