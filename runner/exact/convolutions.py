"""Forward and backward passes of the convolutions, with the formulas of components/layers.py, as
exact products of the windows of images or the steps of sequences with the kernel."""

import math
from collections.abc import Callable
from typing import Any

from runner.components.layers import Node
from runner.exact.layers import Gradients, Memory, Pass, biased, fold_windows, windows
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import product_bits


def longest_sum(node: Node, rows: int) -> int:
    """Return how many products the longest sum has in training on `rows` rows."""
    positions = [rows * math.prod(shape[:-1]) for shape in (node.input_shape, node.output_shape)]
    num_in, num_out = node.input_shape[-1], node.output_shape[-1]
    match node.spec.layer:
        case "conv1d":
            widest = max(num_in, num_out) // node.spec.groups
            return max(positions[1], node.spec.kernel_size * widest)
        case "conv2d":
            widest = max(num_in, num_out) // node.spec.groups
        case "depthwise_conv2d":
            widest = node.spec.depth_multiplier
        case _:  # conv2d_transpose
            return max(*positions, math.prod(node.spec.window.size) * max(num_in, num_out))
    return max(positions[1], math.prod(node.spec.window.size) * widest)


def _operands(p: Pass, node: Node, x: Tensor, num: int) -> tuple[Tensor, Any, Tensor, Any, int]:
    """Return x and the kernel on their grids, each with its unit, and the bits of both; `num` is
    the number of products of an output."""
    if not p.is_evaluation:
        num = longest_sum(node, p.rows or 0)
    bits = product_bits(num, node.is_masked and not p.is_evaluation)
    return *p.grid(x, bits), *p.o.grid(p.value(node, "kernel"), bits), bits


def conv2d(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """Multiply every window, as a row [height width in], by the kernel."""
    kernel_shape = node.variables[0].shape
    qx, ux, qw, uw, bits = _operands(p, node, x, math.prod(kernel_shape[:3]))
    columns = p.o.patches(qx, node.spec.window, node.spec.window.pads(node.input_shape))
    kernel = p.o.reshape(qw, (-1, *kernel_shape[2:]))
    y = p.o.reshape(_times_kernel(p.o, columns, kernel, node), (-1, *node.output_shape))
    return biased(p, node, y, ux * uw), (columns, ux, kernel, uw, bits)


def conv2d_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    o, (columns, ux, kernel, uw, bits) = p.o, memory
    qg, ug = p.grid(g, bits)
    rows = o.reshape(qg, (-1, node.output_shape[2]))
    products = _by_kernel(o, columns, rows, math.prod(node.spec.window.size), node)
    gradients = {"kernel": o.reshape(products * (ux * ug), node.variables[0].shape)}
    if node.spec.bias:
        gradients["bias"] = o.sum(rows, (0,)) * ug
    return o.r(_conv2d_dx(p, node, qg, rows, kernel) * (ug * uw)) if needs_dx else None, gradients


def _conv2d_dx(p: Pass, node: Node, qg: Tensor, rows: Tensor, kernel: Tensor) -> Tensor:
    """Differentiate by the input. With stride 1, this is a convolution with the flipped kernel."""
    o, window, (height, width, num_in) = p.o, node.spec.window, node.input_shape
    transposed = _transposed(o, kernel, node)  # [height width, out / G, in]
    if window.stride == (1, 1):
        pads = window.pads(node.input_shape)
        down, across = (
            (span - 1 - low, span - 1 - high)
            for span, (low, high) in zip(window.span, pads, strict=True)
        )
        columns = o.patches(qg, window, (down, across))
        dx = _times_kernel(o, columns, o.reverse(transposed), node)
        return o.reshape(dx, (-1, height, width, num_in))
    parts = [
        o.reshape(
            _times_kernel(o, rows, transposed[i : i + 1], node),
            (-1, *node.output_shape[:2], num_in),
        )
        for i in range(math.prod(window.size))
    ]
    return fold_windows(p, window, parts, node.input_shape)


def _times_kernel(o: Primitives, rows: Tensor, kernel: Tensor, node: Node) -> Tensor:
    """Multiply rows [M, K in] by a kernel [K, in / G, out], group by group: [M, out]."""
    groups, (positions, num_in, num_out) = node.spec.groups, kernel.shape
    flat = o.reshape(kernel, (positions * num_in, num_out))
    if groups == 1:
        return o.matmul(rows, flat)
    kernels = o.permute(o.reshape(flat, (positions * num_in, groups, num_out // groups)), (1, 0, 2))
    products = o.matmul(_by_group(o, rows, positions, groups), kernels)
    return o.reshape(o.permute(products, (1, 0, 2)), (-1, num_out))


def _by_kernel(o: Primitives, columns: Tensor, rows: Tensor, positions: int, node: Node) -> Tensor:
    """Differentiate rows [M, K in] times the kernel, given [M, out]: [K in / G, out], or in a shape
    with the same order."""
    groups = node.spec.groups
    if groups == 1:
        return o.matmul(o.transpose(columns), rows)
    by_group = o.transpose(_by_group(o, columns, positions, groups))
    return o.permute(o.matmul(by_group, _by_group(o, rows, 1, groups)), (1, 0, 2))


def _by_group(o: Primitives, rows: Tensor, positions: int, groups: int) -> Tensor:
    """[M, K C] -> [G, M, K C / G]"""
    num = rows.shape[1] // (positions * groups)
    apart = o.permute(o.reshape(rows, (-1, positions, groups, num)), (2, 0, 1, 3))
    return o.reshape(apart, (groups, -1, positions * num))


def _transposed(o: Primitives, kernel: Tensor, node: Node) -> Tensor:
    """[K, in / G, out] -> [K, out / G, in]"""
    groups, (positions, num_in, num_out) = node.spec.groups, kernel.shape
    if groups == 1:
        return o.transpose(kernel)
    apart = o.reshape(kernel, (positions, num_in, groups, num_out // groups))
    return o.reshape(o.permute(apart, (0, 3, 2, 1)), (positions, num_out // groups, -1))


def depthwise_conv2d(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """Add the products of the values at each position of the windows with the kernel there."""
    o, size = p.o, math.prod(node.spec.window.size)
    qx, ux, qw, uw, bits = _operands(p, node, x, size)
    height, width, channels = (*node.output_shape[:2], node.input_shape[2])
    parts = [o.reshape(part, (-1, height, width, channels, 1)) for part in windows(p, node, qx)]
    kernel = o.reshape(qw, (size, channels, node.spec.depth_multiplier))
    y = parts[0] * kernel[0]
    for i, part in enumerate(parts[1:], 1):
        y = y + part * kernel[i]
    y = o.reshape(y, (-1, *node.output_shape))
    return biased(p, node, y, ux * uw), (parts, ux, kernel, uw, bits)


def depthwise_conv2d_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    o, (parts, ux, kernel, uw, bits) = p.o, memory
    qg, ug = p.grid(g, bits)
    apart = o.reshape(
        qg, (-1, *node.output_shape[:2], node.input_shape[2], node.spec.depth_multiplier)
    )
    sums = [o.sum(part * apart, (0, 1, 2)) for part in parts]
    gradients = {"kernel": o.reshape(o.join(sums) * (ux * ug), node.variables[0].shape)}
    if node.spec.bias:
        gradients["bias"] = o.sum(qg, (0, 1, 2)) * ug
    if not needs_dx:
        return None, gradients
    images = [o.sum(apart * kernel[i], (4,)) for i in range(len(parts))]
    dx = fold_windows(p, node.spec.window, images, node.input_shape)
    return o.r(dx * (ug * uw)), gradients


def conv2d_transpose(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """Add the products of each pixel with the kernel to the output's windows."""
    o, window, (height, width, num_in) = p.o, node.spec.window, node.input_shape
    size, num_out = math.prod(window.size), node.output_shape[2]
    qx, ux, qw, uw, bits = _operands(p, node, x, size * num_in)
    rows, kernel = o.reshape(qx, (-1, num_in)), o.reshape(qw, (size, num_out, num_in))
    parts = [
        o.reshape(o.matmul(rows, o.transpose(kernel[i])), (-1, height, width, num_out))
        for i in range(size)
    ]
    y = fold_windows(p, window, parts, node.output_shape)
    return biased(p, node, y, ux * uw), (rows, ux, kernel, uw, bits)


def conv2d_transpose_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """The derivative by x is the convolution of g with the kernel."""
    o, (rows, ux, kernel, uw, bits), window = p.o, memory, node.spec.window
    qg, ug = p.grid(g, bits)
    columns = o.patches(qg, window, window.pads(node.output_shape))
    by_kernel = o.matmul(o.transpose(columns), rows) * (ux * ug)
    gradients = {"kernel": o.reshape(by_kernel, node.variables[0].shape)}
    if node.spec.bias:
        gradients["bias"] = o.sum(qg, (0, 1, 2)) * ug
    if not needs_dx:
        return None, gradients
    dx = o.matmul(columns, o.reshape(kernel, (-1, node.input_shape[2])))
    return o.r(o.reshape(dx, (-1, *node.input_shape)) * (ug * uw)), gradients


def conv1d(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """y_t = sum over i of x_{t stride + i dilation - low} W_i, with integers; one rounding."""
    o, s, (steps, num_out) = p.o, node.spec, node.output_shape
    qx, ux, qw, uw, bits = _operands(p, node, x, s.kernel_size * node.variables[0].shape[1])
    padded = _padded(p, qx, s.pads(node.input_shape[0]))
    columns = [_rows(p, padded, i * s.dilation, s.stride, steps) for i in range(s.kernel_size)]
    products = None
    for i, column in enumerate(columns):
        product = _times_kernel(o, column, qw[i : i + 1], node)
        products = product if products is None else products + product
    y = biased(p, node, o.reshape(products, (-1, steps, num_out)), ux * uw)
    return y, (columns, ux, qw, uw, bits)


def conv1d_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    o, (columns, ux, qw, uw, bits) = p.o, memory
    qg, ug = p.grid(o.reshape(g, (-1, node.output_shape[1])), bits)
    parts = [_by_kernel(o, column, qg, 1, node) * (ux * ug) for column in columns]
    gradients = {"kernel": o.reshape(o.join(parts), node.variables[0].shape)}
    if node.spec.bias:
        gradients["bias"] = o.sum(qg, (0,)) * ug
    if not needs_dx:
        return None, gradients
    low, high = node.spec.pads(node.input_shape[0])
    num_steps, dx = node.input_shape[0], None
    for i in range(node.spec.kernel_size):
        part = _times_kernel(o, qg, _transposed(o, qw[i : i + 1], node), node)
        part = o.reshape(part, (-1, node.output_shape[0], node.input_shape[1]))
        part = _spread(p, node, part, i * node.spec.dilation, low + num_steps + high)
        dx = part if dx is None else dx + part
    assert dx is not None
    return o.r(dx[:, low : low + num_steps] * (ug * uw)), gradients


def _padded(p: Pass, x: Tensor, pads: tuple[int, int]) -> Tensor:
    """Add zeros at both ends of sequences [N, T, C]."""
    if not any(pads):
        return x
    _, steps, channels = x.shape
    images = p.o.pad(p.o.reshape(x, (-1, steps, 1, channels)), (pads, (0, 0)), 0.0)
    return p.o.reshape(images, (-1, steps + sum(pads), channels))


def _rows(p: Pass, x: Tensor, start: int, stride: int, num: int) -> Tensor:
    """Take `num` steps of every sequence as rows [N num, C]."""
    return p.o.reshape(x[:, start : start + stride * (num - 1) + 1 : stride], (-1, x.shape[2]))


def _spread(p: Pass, node: Node, x: Tensor, start: int, length: int) -> Tensor:
    """Put the steps at start, start + stride, ... of zeros of this length."""
    o, stride, (_, steps, channels) = p.o, node.spec.stride, x.shape
    if stride > 1:
        images = o.pad(o.reshape(x, (-1, steps, 1, channels)), ((0, 0), (0, stride - 1)), 0.0)
        x = o.reshape(images, (-1, steps * stride, channels))
        steps = stride * (steps - 1) + 1
        x = x[:, :steps]
    return _padded(p, x, (start, length - start - steps))


FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "conv1d": (conv1d, conv1d_backward),
    "conv2d": (conv2d, conv2d_backward),
    "depthwise_conv2d": (depthwise_conv2d, depthwise_conv2d_backward),
    "conv2d_transpose": (conv2d_transpose, conv2d_transpose_backward),
}
