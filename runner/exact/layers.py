"""Forward and backward passes of the layers of runner/components/layers.py, with that module's
formulas.

x  # the input [N, ...]; y  # the output; g  # the derivative of the loss by y. A forward function
returns (y, memory); a backward function takes memory and g and returns (dx, gradients by variable).
dx is None unless needs_dx.

Tensors with rows have those of this process, N of them or none. What depends on other rows goes
through `Pass.grid` and `Pass.over_all`. A gradient is an exact sum over this process's rows, before
R: network.py adds up those of all processes, and rounds.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runner.components.layers import Node, Window
from runner.components.positions import encodings
from runner.exact.functions import exponentials, normal, sigmoid, tanh
from runner.exact.primitives import Place, Primitives, Tensor
from runner.exact.reference import positions
from runner.exact.rules import constant, divide, product_bits, r, sum_bits

Memory = Any
Gradients = dict[str, Tensor]
Grid = tuple[Tensor, Any]  # integers and their unit
Factors = tuple[Tensor, Any, Tensor, Any, int]  # rows, their unit; kernel, its unit; bits
MASKED = -(2.0**100)  # a score that the softmax gives the weight 0
LOWEST = -(2.0**128)  # below every value: the padding of max_pool and global_max_pool


@dataclass
class Pass:
    """One forward pass: training over `rows` rows, of all processes together, or evaluation, where
    no row depends on another."""

    o: Primitives
    values: dict[str, Tensor]  # weights and buffers by canonical name
    rows: int | None = None  # None: evaluation
    where: Place = field(default_factory=Place)
    frozen: Collection[str] = ()  # weights that need no gradient
    # the running statistics after this pass
    buffers: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor = None  # bool[N, T]: false at the padding of sequences; set by `find_mask`
    syncs_batch_norm: bool = True  # False: batch norm has the rows of this process alone

    @property
    def is_evaluation(self) -> bool:
        return self.rows is None

    def grid(self, x: Tensor, bits: int) -> Grid:
        """Q of a tensor with rows: on one grid for all rows in training, on one for each row in
        evaluation."""
        return self.o.grid(x, bits, self.is_evaluation, of_all=not self.is_evaluation)

    def total(self, x: Tensor, axes: tuple[int, ...], num: int) -> Tensor:
        """R of the sums of `num` values of each row, which keep the axes, on the grid of `grid`."""
        q, unit = self.grid(x, sum_bits(num))
        return self.o.r(self.o.sum(q, axes, True) * unit)

    def over_all(self, x: Tensor) -> Tensor:
        """Add up exact sums over the rows of each process, in training."""
        return self.o.over_all(x)

    def value(self, node: Node, name: str) -> Tensor:
        if name == "kernel" and node.tied:
            return self.o.transpose(self.values[node.tied])
        return self.values[f"{node.name}/{name}"]


# --- masks


def find_mask(p: Pass, node: Node, x: Tensor) -> None:
    """Set p.mask to the mask of `masking` or `embedding` for its input x."""
    o, steps = p.o, node.input_shape[0]
    if node.spec.layer == "embedding":
        tokens = o.one_hot(o.reshape(x, (-1,)), node.variables[0].shape[0])
        is_padding = o.reshape(tokens[:, 0], (-1, steps))
    else:
        num_others = o.sum(
            o.where(x == node.spec.mask_value, o.constant(np.zeros((1, 1, 1))), 1.0), (2,)
        )
        is_padding = o.where(num_others == 0.0, _one(o), 0.0)
    # the number of values at or after each step; 1 more at the first step
    is_later, is_first = np.tril(np.ones((steps, steps))), np.eye(1, steps)
    num_values = o.matmul(1.0 - is_padding, o.constant(is_later))
    p.mask = num_values + o.constant(is_first) > 0.0


def without_padding(p: Pass, x: Tensor, value: float = 0.0) -> Tensor:
    """Replace the padding of x [N, T, D] by `value`."""
    return p.o.where(p.o.reshape(p.mask, (-1, x.shape[1], 1)), x, value)


def _num_values(p: Pass) -> Tensor:
    """Count the steps of each row that are not padding.  # float64[N, 1]"""
    return p.o.sum(p.o.where(p.mask, _one(p.o), 0.0), (1,), True)


def _one(o: Primitives) -> Tensor:
    return o.constant(np.ones((1, 1)))


# --- products


def dense(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    return product(p, node, "", x, dense_bits(p, node))


def dense_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    dx, gradients = product_backward(p, node, "", memory, g, needs_dx)
    return p.o.reshape(dx, (-1, *node.input_shape)) if needs_dx else None, gradients


def dense_bits(p: Pass, node: Node) -> int:
    """Return the bits of the operands of products over the last axis."""
    num_in, num_out = node.input_shape[-1], node.output_shape[-1]
    if p.is_evaluation:
        return product_bits(num_in)
    return product_bits(max(_num_rows(p, node), num_in, num_out), node.is_masked)


def product(p: Pass, node: Node, prefix: str, x: Tensor, bits: int) -> tuple[Tensor, Factors]:
    """Return x W + b over the last axis of x, and what the derivatives need. W and b are the
    variables `kernel` and `bias` with this prefix."""
    o: Primitives = p.o
    qx, ux = p.grid(x, bits)
    qw, uw = o.grid(p.value(node, f"{prefix}kernel"), bits)
    num_in, num_out = qw.shape
    rows = o.reshape(qx, (-1, num_in))
    products = o.reshape(o.matmul(rows, qw), (-1, *x.shape[1:-1], num_out))
    return biased(p, node, products, ux * uw, prefix), (rows, ux, qw, uw, bits)


def product_backward(
    p: Pass, node: Node, prefix: str, factors: Factors, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Differentiate `product`; dx has the shape [rows, in]."""
    rows, ux, qw, uw, bits = factors
    qg, ug = p.grid(p.o.reshape(g, (-1, qw.shape[1])), bits)
    kernel, dx = _factors_backward(p, (rows, ux), (qw, uw), (qg, ug), needs_dx)
    gradients = {f"{prefix}kernel": kernel}
    if node.spec.bias:
        gradients[f"{prefix}bias"] = p.o.sum(qg, (0,)) * ug
    return dx, gradients


def _factors_backward(
    p: Pass, x: Grid, kernel: Grid, g: Grid, needs_dx: bool
) -> tuple[Tensor, Tensor]:
    """Differentiate rows x [M, in] times a kernel [in, out], given g [M, out]: by the kernel, and
    by x."""
    (qx, ux), (qw, uw), (qg, ug) = x, kernel, g
    by_kernel = p.o.matmul(p.o.transpose(qx), qg) * (ux * ug)
    return by_kernel, p.o.r(p.o.matmul(qg, p.o.transpose(qw)) * (ug * uw)) if needs_dx else None


def biased(p: Pass, node: Node, products: Tensor, unit: Any, prefix: str = "") -> Tensor:
    """R of products times their unit, plus the layer's bias with this prefix if it has one."""
    if not node.spec.bias:
        return p.o.r(products * unit)
    return p.o.r(p.o.plus(p.value(node, f"{prefix}bias"), products, unit))


def _num_rows(p: Pass, node: Node) -> int:
    """Return how many values the batch of all processes has for each index of the last axis."""
    return (p.rows or 0) * math.prod(node.input_shape[:-1])


# --- pools


def windows(p: Pass, node: Node, x: Tensor, value: float = 0.0) -> list[Tensor]:
    """Pad images with `value` and cut them into windows. Returns an array [N, H', W', C] for each
    position in a window."""
    window, pads = node.spec.window, node.spec.window.pads(node.input_shape)
    x = p.o.pad(x, pads, value) if any(pads[0] + pads[1]) else x
    found = []
    for i in range(math.prod(window.size)):
        rows, columns = positions(window, i, *node.output_shape[:2])
        found.append(x[:, rows, columns])
    return found


def fold_windows(p: Pass, window: Window, parts: list[Tensor], shape: Sequence[int]) -> Tensor:
    """Add the windows' values at their positions in images of this shape, and cut off the
    padding."""
    height, width, _ = shape
    (top, bottom), (left, right) = window.pads(tuple(shape))
    images = p.o.fold(parts, window, (top + height + bottom, left + width + right))
    if not any((top, bottom, left, right)):
        return images
    return images[:, top : top + height, left : left + width]


def max_pool(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    parts = windows(p, node, x, LOWEST)
    y = parts[0]
    for values in parts[1:]:
        y = p.o.maximum(y, values)
    return y, (parts, y)


def max_pool_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Pass g to the first of equal maxima. If windows overlap, the sums are exact."""
    if not needs_dx:
        return None, {}
    (values_of_windows, y), window = memory, node.spec.window
    overlap = any(stride < size for stride, size in zip(window.stride, window.size, strict=True))
    unit: Any = 1.0
    if overlap:
        g, unit = p.grid(g, sum_bits(math.prod(window.size)))
    parts, not_found = [], None
    for values in values_of_windows:
        is_first = values == y if not_found is None else (values == y) & not_found
        not_found = ~is_first if not_found is None else not_found & ~is_first
        parts.append(p.o.where(is_first, g, 0.0))
    dx = fold_windows(p, window, parts, node.input_shape)
    return p.o.r(dx * unit) if overlap else dx, {}


def average_pool(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """Average the values of each window, without the padding; the sums are on one grid."""
    q, unit = p.grid(x, sum_bits(math.prod(node.spec.window.size)))
    parts = windows(p, node, q)
    sums = parts[0]
    for values in parts[1:]:
        sums = sums + values
    return p.o.r(p.o.r(sums * unit) / _counts(p, node)), None


def average_pool_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    if not needs_dx:
        return None, {}
    num = math.prod(node.spec.window.size)
    q, unit = p.grid(p.o.r(g / _counts(p, node)), sum_bits(num))
    return p.o.r(fold_windows(p, node.spec.window, [q] * num, node.input_shape) * unit), {}


def _counts(p: Pass, node: Node) -> Tensor:
    """Count the values of each window, without the padding.  # float64[H', W', 1]"""
    window, pads = node.spec.window, node.spec.window.pads(node.input_shape)
    counts = []
    for axis in (0, 1):
        starts = np.arange(node.output_shape[axis]) * window.stride[axis] - pads[axis][0]
        ends = np.minimum(starts + window.size[axis], node.input_shape[axis])
        counts.append(ends - np.maximum(starts, 0))
    return p.o.constant((counts[0][:, None, None] * counts[1][None, :, None]).astype(np.float64))


def global_average_pool(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    *positions, channels = node.input_shape
    num, axes = math.prod(positions), tuple(range(1, len(positions) + 1))
    sums = p.total(x, axes, num)
    if node.is_masked:
        return p.o.r(p.o.reshape(sums, (-1, channels)) / _num_values(p)), None
    return p.o.reshape(divide(p.o, sums, num), (-1, channels)), None


def global_average_pool_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    if not needs_dx:
        return None, {}
    *positions, channels = node.input_shape
    mean = p.o.r(g / _num_values(p)) if node.is_masked else divide(p.o, g, math.prod(positions))
    dx = p.o.reshape(mean, (-1, *(1 for _ in positions), channels))
    return p.o.spread(dx, (g.shape[0], *positions, channels)), {}


def global_max_pool(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    *positions, channels = node.input_shape
    if node.is_masked:
        x = without_padding(p, x, LOWEST)
    columns = p.o.transpose(p.o.reshape(x, (-1, math.prod(positions), channels)))
    y = p.o.largest(columns)
    return p.o.reshape(y, (-1, channels)), (columns, y)


def global_max_pool_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Divide g by the number of equal maxima."""
    if not needs_dx:
        return None, {}
    o, (columns, y) = p.o, memory
    shape = (g.shape[0], node.output_shape[0], math.prod(node.input_shape[:-1]))
    is_largest = columns == o.spread(y, shape)
    num = o.sum(o.where(is_largest, o.spread(o.constant(np.ones((1, 1, 1))), shape), 0.0), (2,))
    share = o.reshape(o.r(g / num), (-1, shape[1], 1))
    dx = o.where(is_largest, o.spread(share, shape), 0.0)
    return o.reshape(o.transpose(dx), (-1, *node.input_shape)), {}


# --- shapes


def upsampling2d(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    window = node.spec.window
    return fold_windows(p, window, [x] * math.prod(window.size), node.output_shape), None


def upsampling2d_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Add the derivatives of equal pixels, on one grid."""
    if not needs_dx:
        return None, {}
    (height, width, channels), (down, across) = node.input_shape, node.spec.window.size
    copies = p.o.reshape(g, (-1, height, down, width, across, channels))
    sums = p.total(copies, (2, 4), down * across)
    return p.o.reshape(sums, (-1, *node.input_shape)), {}


def shape(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    return p.o.reshape(x, (-1, *node.output_shape)), None


def shape_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    return p.o.reshape(g, (-1, *node.input_shape)), {}


def columns(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """Take columns of the data's rows. Every sum has a single term, so it is exact."""
    places = np.eye(node.input_shape[0])[:, list(node.columns)]
    return p.o.matmul(x, p.o.constant(places)), None


def columns_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    if not needs_dx:
        return None, {}
    return _beside_zeros(p, node, g, np.eye(node.input_shape[0])[list(node.columns)]), {}


def part(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    start, stop = node.spec.ends(node.input_shape)
    return x[..., start:stop], None


def part_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    if not needs_dx:
        return None, {}
    start, stop = node.spec.ends(node.input_shape)
    return _beside_zeros(p, node, g, np.eye(stop - start, node.input_shape[-1], start)), {}


def _beside_zeros(p: Pass, node: Node, g: Tensor, places: np.ndarray) -> Tensor:
    """Put the columns of g at their places among zeros. Every sum has a single term, so it is
    exact."""
    rows = p.o.matmul(p.o.reshape(g, (-1, len(places))), p.o.constant(places))
    return p.o.reshape(rows, (-1, *node.input_shape))


# --- element by element


def activation(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """Return y and what its derivative needs."""
    return ACTIVATIONS[node.spec.function][0](p.o, node.spec, x)


def activation_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    return ACTIVATIONS[node.spec.function][1](p.o, node.spec, memory, g) if needs_dx else None, {}


def _relu(o: Primitives, s: Any, x: Tensor) -> tuple[Tensor, Memory]:
    y = o.maximum(x, 0.0)
    return y, y


def _relu_backward(o: Primitives, s: Any, y: Tensor, g: Tensor) -> Tensor:
    return o.gate(g, y)


def _leaky_relu(o: Primitives, s: Any, x: Tensor) -> tuple[Tensor, Memory]:
    return o.where(x > 0.0, x, o.r(x * constant(s.negative_slope))), x


def _leaky_relu_backward(o: Primitives, s: Any, x: Tensor, g: Tensor) -> Tensor:
    return o.where(x > 0.0, g, o.r(g * constant(s.negative_slope)))


def _times(o: Primitives, s: Any, derivative: Tensor, g: Tensor) -> Tensor:
    return o.r(g * derivative)


def _sigmoid(o: Primitives, s: Any, x: Tensor) -> tuple[Tensor, Memory]:
    y, complement = sigmoid(o, x)
    return y, o.r(y * complement)


def _tanh(o: Primitives, s: Any, x: Tensor) -> tuple[Tensor, Memory]:
    y = tanh(o, x)
    return y, o.r(1.0 - y * y)


def _silu(o: Primitives, s: Any, x: Tensor) -> tuple[Tensor, Memory]:
    """y = x a and y' = a + y (1 - a), where a = sigmoid(x)."""
    a, complement = sigmoid(o, x)
    y = o.r(x * a)
    return y, o.r(y * complement + a)


def _gelu(o: Primitives, s: Any, x: Tensor) -> tuple[Tensor, Memory]:
    """y = x Phi(x); y' = Phi(x) + x phi(x)."""
    cdf, density = normal(o, x)
    return o.r(x * cdf), o.r(x * density + cdf)


def _gelu_tanh(o: Primitives, s: Any, x: Tensor) -> tuple[Tensor, Memory]:
    """(1 + tanh u) / 2 = sigmoid(2 u), 2 u = c x (1 + k x^2), c = 2 sqrt(2 / pi), k = 0.044715.

    With a = sigmoid(2 u): y = x a; y' = a + y (1 - a) c (1 + 3 k x^2).
    """
    c, k = constant(2 * (2 / 3.141592653589793) ** 0.5), 0.044715
    square = o.r(x * x)
    a, complement = sigmoid(o, o.r(o.r(x * c) * o.r(square * constant(k) + 1.0)))
    y = o.r(x * a)
    slope = o.r(o.r(square * constant(3 * k) + 1.0) * c)
    return y, o.r(o.r(y * complement) * slope + a)


ACTIVATIONS: dict[str, tuple[Callable[..., tuple[Tensor, Memory]], Callable[..., Tensor]]] = {
    "relu": (_relu, _relu_backward),
    "leaky_relu": (_leaky_relu, _leaky_relu_backward),
    "sigmoid": (_sigmoid, _times),
    "tanh": (_tanh, _times),
    "silu": (_silu, _times),
    "gelu": (_gelu, _times),
    "gelu_tanh": (_gelu_tanh, _times),
}


def dropout(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    if p.is_evaluation or node.spec.rate == 0:
        return x, None
    mask = p.o.keep(x, node.spec.rate, node.index, p.where, node.is_masked)
    return _drop(p, node, mask, x), mask


def dropout_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    return (g if memory is None else _drop(p, node, memory, g)) if needs_dx else None, {}


def _drop(p: Pass, node: Node, mask: Tensor, x: Tensor) -> Tensor:
    return p.o.where(mask, p.o.r(x * constant(1 / (1 - node.spec.rate))), 0.0)


# --- norms


def _num_normalized(p: Pass, node: Node, x: Tensor) -> int:
    """Return how many values batch norm normalises together for each index of the last axis."""
    rows = (p.rows or 0) if p.syncs_batch_norm else int(x.shape[0])
    return rows * math.prod(node.input_shape[:-1])


def _same(x: Tensor) -> Tensor:
    return x


def batch_norm(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    o, s = p.o, node.spec
    scale, offset, running_mean, running_variance = (p.value(node, v.name) for v in node.variables)
    if p.is_evaluation:
        inverse = _inverse_root(o, running_variance, s.eps)
        return o.r(o.r(x - running_mean) * o.r(scale * inverse) + offset), None
    num, axes = _num_normalized(p, node, x), tuple(range(len(node.input_shape)))
    grid, over_all = (p.grid, p.over_all) if p.syncs_batch_norm else (o.grid, _same)
    q, unit = grid(x, sum_bits(num))
    mean = divide(o, o.r(over_all(o.sum(q, axes)) * unit), num)
    centred = o.r(x - mean)
    q, unit = grid(centred, product_bits(num))
    variance = divide(o, o.r(over_all(o.sum(q * q, axes)) * (unit * unit)), num)
    unbiased = o.r(variance * constant(num / max(1, num - 1)))
    for name, old, new in (("mean", running_mean, mean), ("variance", running_variance, unbiased)):
        p.buffers[f"{node.name}/{name}"] = o.r(
            o.plus(old * constant(s.momentum), new, constant(1 - s.momentum))
        )
    inverse = _inverse_root(o, variance, s.eps)
    normalized = o.r(centred * inverse)
    return o.r(normalized * scale + offset), (normalized, inverse)


def batch_norm_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Differentiate batch norm; n is the normalised input: dx = (g - mean(g) - n mean(g n)) scale /
    root."""
    o, (normalized, inverse), num = p.o, memory, _num_normalized(p, node, g)
    axes, bits = tuple(range(len(node.input_shape))), product_bits(_num_rows(p, node))
    (qg, ug), (qn, un) = p.grid(g, bits), p.grid(normalized, bits)
    sums = [o.sum(qg * qn, axes) * (ug * un), o.sum(qg, axes) * ug]
    gradients = dict(zip(("scale", "offset"), sums, strict=True))
    if not needs_dx:
        return None, gradients
    both = o.join(sums)
    both = o.r(p.over_all(both) if p.syncs_batch_norm else both)
    scale, offset = both[: node.input_shape[-1]], both[node.input_shape[-1] :]
    centred_g = o.r(o.plus(o.r(g - divide(o, offset, num)), normalized, -divide(o, scale, num)))
    return o.r(centred_g * o.r(p.value(node, "scale") * inverse)), gradients


def layer_norm(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    o, num, last = p.o, node.input_shape[-1], (len(node.input_shape),)
    mean = divide(o, p.total(x, last, num), num)
    centred = o.r(x - mean)
    q, unit = p.grid(centred, product_bits(num))
    variance = divide(o, o.r(o.sum(q * q, last, True) * (unit * unit)), num)
    inverse = _inverse_root(o, variance, node.spec.eps)
    normalized = o.r(centred * inverse)
    return o.r(normalized * p.value(node, "scale") + p.value(node, "offset")), (normalized, inverse)


def layer_norm_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Differentiate layer norm; h = g scale: dx = (h - mean(h) - n mean(h n)) / root, means over
    the last axis."""
    o, (normalized, inverse), num = p.o, memory, node.input_shape[-1]
    leading, last = tuple(range(len(node.input_shape))), (len(node.input_shape),)
    bits = product_bits(max(num, _num_rows(p, node)), node.is_masked)
    (qg, ug), (qn, un) = p.grid(g, bits), p.grid(normalized, bits)
    gradients = {
        "scale": o.sum(qg * qn, leading) * (ug * un),
        "offset": o.sum(qg, leading) * ug,
    }
    if not needs_dx:
        return None, gradients
    h = o.r(g * p.value(node, "scale"))
    qh, uh = p.grid(h, bits)
    mean = divide(o, o.r(o.sum(qh, last, True) * uh), num)
    product = divide(o, o.r(o.sum(qh * qn, last, True) * (uh * un)), num)
    return o.r(o.r(o.r(h - mean) - normalized * product) * inverse), gradients


def rms_norm(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    o, num, last = p.o, node.input_shape[-1], (len(node.input_shape),)
    q, unit = p.grid(x, product_bits(num))
    mean_square = divide(o, o.r(o.sum(q * q, last, True) * (unit * unit)), num)
    inverse = _inverse_root(o, mean_square, node.spec.eps)
    normalized = o.r(x * inverse)
    return o.r(normalized * p.value(node, "scale")), (normalized, inverse)


def rms_norm_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Differentiate RMS norm; h = g scale: dx = (h - n mean(h n)) / root, the mean over the last
    axis."""
    o, (normalized, inverse), num = p.o, memory, node.input_shape[-1]
    leading, last = tuple(range(len(node.input_shape))), (len(node.input_shape),)
    bits = product_bits(max(num, _num_rows(p, node)), node.is_masked)
    (qg, ug), (qn, un) = p.grid(g, bits), p.grid(normalized, bits)
    gradients = {"scale": o.sum(qg * qn, leading) * (ug * un)}
    if not needs_dx:
        return None, gradients
    h = o.r(g * p.value(node, "scale"))
    qh, uh = p.grid(h, bits)
    product = divide(o, o.r(o.sum(qh * qn, last, True) * (uh * un)), num)
    return o.r(o.r(h - normalized * product) * inverse), gradients


def group_norm(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    o, num, x = p.o, _group_size(node), _by_group(p, node, x)
    mean = divide(o, p.total(x, (1, 3), num), num)
    centred = o.r(x - mean)
    q, unit = p.grid(centred, product_bits(num))
    variance = divide(o, o.r(o.sum(q * q, (1, 3), True) * (unit * unit)), num)
    inverse = _inverse_root(o, variance, node.spec.eps)
    normalized = o.r(centred * inverse)
    scale, offset = (_by_group(p, node, p.value(node, name)) for name in ("scale", "offset"))
    y = o.r(normalized * scale + offset)
    return o.reshape(y, (-1, *node.output_shape)), (normalized, inverse)


def group_norm_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Differentiate group norm as layer norm, with means over the positions and channels of a
    group."""
    o, (normalized, inverse), num = p.o, memory, _group_size(node)
    g = _by_group(p, node, g)
    bits = product_bits(max(num, _num_rows(p, node)), node.is_masked)
    (qg, ug), (qn, un) = p.grid(g, bits), p.grid(normalized, bits)
    gradients = {
        "scale": o.reshape(o.sum(qg * qn, (0, 1)) * (ug * un), node.variables[0].shape),
        "offset": o.reshape(o.sum(qg, (0, 1)) * ug, node.variables[1].shape),
    }
    if not needs_dx:
        return None, gradients
    h = o.r(g * _by_group(p, node, p.value(node, "scale")))
    qh, uh = p.grid(h, bits)
    mean = divide(o, o.r(o.sum(qh, (1, 3), True) * uh), num)
    product = divide(o, o.r(o.sum(qh * qn, (1, 3), True) * (uh * un)), num)
    dx = o.r(o.r(o.r(h - mean) - normalized * product) * inverse)
    return o.reshape(dx, (-1, *node.input_shape)), gradients


def _by_group(p: Pass, node: Node, x: Tensor) -> Tensor:
    """[N, ..., C] -> [N, positions, G, C / G]; [C] -> [1, 1, G, C / G]"""
    groups, channels = node.spec.groups, node.input_shape[-1]
    positions = math.prod(node.input_shape[:-1]) if len(x.shape) > 1 else 1
    return p.o.reshape(x, (-1, positions, groups, channels // groups))


def _group_size(node: Node) -> int:
    """Return how many values a mean of group norm has."""
    return math.prod(node.input_shape) // int(node.spec.groups)


def _inverse_root(o: Primitives, variance: Tensor, eps: float) -> Tensor:
    return o.r(1.0 / o.r(o.sqrt(o.r(variance + constant(eps)))))


# --- sequences


def masking(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    return x, None


def same_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Differentiate x plus a constant."""
    return g if needs_dx else None, {}


def embedding(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """Multiply one-hot rows by E. Every sum has a single term, so it is exact."""
    num, features = node.variables[0].shape
    rows = p.o.one_hot(p.o.reshape(x, (-1,)), num)
    y = p.o.matmul(rows, p.value(node, "embedding"))
    return p.o.reshape(y, (-1, node.input_shape[0], features)), rows


def embedding_backward(
    p: Pass, node: Node, rows: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Add the derivatives of all positions of each token, on one grid."""
    num_rows = (p.rows or 0) * node.input_shape[0]
    features = node.output_shape[-1]
    q, unit = p.grid(p.o.reshape(g, (-1, features)), sum_bits(num_rows))
    return None, {"embedding": p.o.matmul(p.o.transpose(rows), q) * unit}


def position_embedding(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    return p.o.r(x + p.value(node, "embedding")), None


def position_embedding_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    q, unit = p.grid(g, sum_bits(p.rows or 0))
    return g if needs_dx else None, {"embedding": p.o.sum(q, (0,), True) * unit}


def sinusoidal_positions(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    encoded = encodings(node.input_shape, node.spec.base)
    return p.o.r(x + p.o.constant(r(encoded[None]))), None


def attention(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """s = R(q k^T) c, c = R(1 / sqrt(D / H)); w = R(e) / R(sum e), e = exp(s - max s); y = R(w v)
    O. If causal, later steps have s = MASKED, and e = 0.

    The heads of q that share a head of k and v are the rows of one product."""
    o, (steps, width) = p.o, node.input_shape
    width_bits = dense_bits(p, node)
    shared = node.spec.num_heads // node.spec.kv_heads
    head_bits = product_bits(max(shared * steps, width // node.spec.num_heads), node.is_masked)
    kernels = {name: o.grid(p.value(node, name), width_bits) for name in _KERNELS}

    def project(q: Tensor, unit: Any, name: str) -> Tensor:
        kernel, uw = kernels[name]
        products = o.matmul(o.reshape(q, (-1, width)), kernel)
        return o.r(o.reshape(products, (-1, steps, kernel.shape[1])) * (unit * uw))

    qx, ux = p.grid(x, width_bits)
    heads = {name: _split_heads(p, node, project(qx, ux, name)) for name in _KERNELS[:3]}
    for name in ("query", "key"):
        heads[name] = _rotated(p, node, heads[name])
    parts = [p.grid(value, head_bits) for value in heads.values()]
    (q, uq), (k, uk), (v, uv) = parts
    products = _by_query(p, node, o.matmul(_by_key(p, node, q), o.transpose(k)))
    scores = o.r(o.r(products * (uq * uk)) * _scale(node))
    if node.spec.causal:
        is_earlier = o.constant(np.tril(np.ones((1, 1, steps, steps)))) > 0.0
        scores = o.where(is_earlier, scores, MASKED)
    if node.is_masked:
        scores = o.where(o.reshape(p.mask, (-1, 1, 1, steps)), scores, MASKED)
    _, e, s = exponentials(o, scores)
    weights = o.r(o.r(e) / o.r(s))
    qw, uw = p.grid(weights, head_bits)
    mixed = _by_query(p, node, o.matmul(_by_key(p, node, qw), v))
    qh, uh = p.grid(_join_heads(p, node, o.r(mixed * (uw * uv))), width_bits)
    return project(qh, uh, "output"), (
        qx,
        ux,
        kernels,
        parts,
        weights,
        (qw, uw),
        (qh, uh),
        width_bits,
        head_bits,
    )


def attention_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """ds = w (dw - sum(dw w)) c, the sum over the last axis; dx = (dq Q^T + dk K^T) + dv V^T."""
    o, width = p.o, node.input_shape[1]
    (
        qx,
        ux,
        kernels,
        ((q, uq), (k, uk), (v, uv)),
        weights,
        (qw, uw),
        (qh, uh),
        width_bits,
        head_bits,
    ) = memory

    def project_backward(name: str, x: Tensor, unit: Any, g: Tensor, needs_dx: bool) -> Tensor:
        rows = o.reshape(x, (-1, width))
        g_grid = p.grid(o.reshape(g, (-1, kernels[name][0].shape[1])), width_bits)
        gradients[name], dx = _factors_backward(p, (rows, unit), kernels[name], g_grid, needs_dx)
        return o.reshape(dx, (-1, *node.input_shape)) if needs_dx else None

    gradients: Gradients = {}
    qd, ud = p.grid(_split_heads(p, node, project_backward("output", qh, uh, g, True)), head_bits)
    by_key = _by_key(p, node, qd)
    dw = o.r(_by_query(p, node, o.matmul(by_key, o.transpose(v))) * (ud * uv))
    qdw, udw = p.grid(dw, head_bits)
    row_sums = o.r(o.sum(qdw * qw, (3,), True) * (udw * uw))
    qs, us = p.grid(o.r(o.r(weights * o.r(dw - row_sums)) * _scale(node)), head_bits)
    by_score = _by_key(p, node, qs)
    by_query = o.r(_by_query(p, node, o.matmul(by_score, k)) * (us * uk))
    by_keys = o.r(o.matmul(o.transpose(by_score), _by_key(p, node, q)) * (us * uq))
    derivatives = {
        "query": _rotated(p, node, by_query, back=True),
        "key": _rotated(p, node, by_keys, back=True),
        "value": o.r(o.matmul(o.transpose(_by_key(p, node, qw)), by_key) * (uw * ud)),
    }
    dx = None
    for name, derivative in derivatives.items():
        part = project_backward(name, qx, ux, _join_heads(p, node, derivative), needs_dx)
        dx = part if dx is None else o.r(dx + part)
    return dx, gradients


_KERNELS = ("query", "key", "value", "output")


def _scale(node: Node) -> float:
    return constant(1 / math.sqrt(node.input_shape[1] // node.spec.num_heads))


def _split_heads(p: Pass, node: Node, x: Tensor) -> Tensor:
    """[N, T, H d] -> [N, H, T, d]"""
    (steps, width), num_heads = node.input_shape, node.spec.num_heads
    return p.o.permute(
        p.o.reshape(x, (-1, steps, x.shape[2] * num_heads // width, width // num_heads)),
        (0, 2, 1, 3),
    )


def _join_heads(p: Pass, node: Node, x: Tensor) -> Tensor:
    """[N, H, T, d] -> [N, T, H d]"""
    return p.o.reshape(p.o.permute(x, (0, 2, 1, 3)), (-1, x.shape[2], x.shape[1] * x.shape[3]))


def _by_key(p: Pass, node: Node, x: Tensor) -> Tensor:
    """[N, H, T, ...] -> [N, G, H / G T, ...]: beside each other, the heads that share a key."""
    steps, num_heads, kv_heads = node.input_shape[0], node.spec.num_heads, node.spec.kv_heads
    if num_heads == kv_heads:
        return x
    return p.o.reshape(x, (-1, kv_heads, num_heads // kv_heads * steps, x.shape[3]))


def _by_query(p: Pass, node: Node, x: Tensor) -> Tensor:
    """Undo `_by_key`."""
    num_heads = node.spec.num_heads
    if num_heads == node.spec.kv_heads:
        return x
    return p.o.reshape(x, (-1, num_heads, node.input_shape[0], x.shape[3]))


def _rotated(p: Pass, node: Node, x: Tensor, back: bool = False) -> Tensor:
    """Rotate the pairs of columns by the angles of their steps, or back: x cos + (x S) sin, where
    x S = (-second half, first half). Both products are exact."""
    angles = node.spec.rotations(node.input_shape)
    if angles is None:
        return x
    cos, sin = (p.o.constant(r(np.concatenate([a, a], 1)[None, None])) for a in angles)
    num = x.shape[3] // 2
    swap = p.o.constant(np.kron([[0.0, 1.0], [-1.0, 0.0]], np.eye(num)))
    swapped = p.o.matmul(p.o.reshape(x, (-1, 2 * num)), swap)
    swapped = p.o.reshape(swapped, (-1, *x.shape[1:]))
    return p.o.r(x * cos - swapped * sin if back else x * cos + swapped * sin)


FORMS: dict[
    str, tuple[Callable[..., tuple[Tensor, Memory]], Callable[..., tuple[Tensor, Gradients]]]
] = {
    "dense": (dense, dense_backward),
    "max_pool": (max_pool, max_pool_backward),
    "average_pool": (average_pool, average_pool_backward),
    "global_average_pool": (global_average_pool, global_average_pool_backward),
    "upsampling2d": (upsampling2d, upsampling2d_backward),
    "flatten": (shape, shape_backward),
    "reshape": (shape, shape_backward),
    "slice": (part, part_backward),
    "columns": (columns, columns_backward),
    "activation": (activation, activation_backward),
    "dropout": (dropout, dropout_backward),
    "batch_norm": (batch_norm, batch_norm_backward),
    "layer_norm": (layer_norm, layer_norm_backward),
    "masking": (masking, same_backward),
    "embedding": (embedding, embedding_backward),
    "rms_norm": (rms_norm, rms_norm_backward),
    "group_norm": (group_norm, group_norm_backward),
    "global_max_pool": (global_max_pool, global_max_pool_backward),
    "position_embedding": (position_embedding, position_embedding_backward),
    "attention": (attention, attention_backward),
    "sinusoidal_positions": (sinusoidal_positions, same_backward),
}
