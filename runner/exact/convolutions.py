"""Forward and backward passes of the convolutions of sequences, as sums of exact products, one for
each position of the kernel."""

from collections.abc import Callable
from typing import Any

from runner.components.layers import Node
from runner.exact.layers import Gradients, Memory, Pass
from runner.exact.primitives import Tensor
from runner.exact.rules import product_bits


def conv1d(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    """y_t = sum over i of x_{t stride + i dilation - low} W_i, with integers; one rounding."""
    o, s, (steps, num_out) = p.o, node.spec, node.output_shape
    num_in = node.input_shape[1]
    bits = product_bits(
        s.kernel_size * num_in
        if p.is_evaluation
        else max((p.rows or 0) * steps, s.kernel_size * max(num_in, num_out))
    )
    qx, ux = o.grid(x, bits, p.is_evaluation)
    qw, uw = o.grid(p.value(node, "kernel"), bits)
    padded = _padded(p, qx, s.pads(node.input_shape[0]))
    columns = [_rows(p, padded, i * s.dilation, s.stride, steps) for i in range(s.kernel_size)]
    products = None
    for i, column in enumerate(columns):
        product = o.matmul(column, qw[i])
        products = product if products is None else products + product
    y, unit = o.reshape(products, (-1, steps, num_out)), ux * uw
    y = o.r(o.plus(p.value(node, "bias"), y, unit) if s.bias else y * unit)
    return y, (columns, ux, qw, uw, bits)


def conv1d_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    o, (columns, ux, qw, uw, bits) = p.o, memory
    qg, ug = o.grid(o.reshape(g, (-1, node.output_shape[1])), bits)
    parts = [o.r(o.matmul(o.transpose(column), qg) * (ux * ug)) for column in columns]
    gradients = {"kernel": o.reshape(o.join(parts), node.variables[0].shape)}
    if node.spec.bias:
        gradients["bias"] = o.r(o.sum(qg, (0,)) * ug)
    if not needs_dx:
        return None, gradients
    low, high = node.spec.pads(node.input_shape[0])
    num_steps, dx = node.input_shape[0], None
    for i in range(node.spec.kernel_size):
        part = o.reshape(o.matmul(qg, o.transpose(qw[i])), (-1, node.output_shape[0], qw.shape[1]))
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
    "conv1d": (conv1d, conv1d_backward)
}
