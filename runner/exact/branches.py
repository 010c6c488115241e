"""Forward and backward passes of what joins the outputs of branches.

parts  # the outputs of the branches; y  # the output; g  # the derivative of the loss by y.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

from runner.components.layers import Node
from runner.exact.layers import Memory
from runner.exact.primitives import Primitives, Tensor


def _add(o: Primitives, node: Node, parts: Sequence[Tensor]) -> tuple[Tensor, Memory]:
    """R(R(x_0 + x_1) + x_2)"""
    return total(o, parts), None


def _add_backward(o: Primitives, node: Node, memory: Memory, g: Tensor) -> list[Tensor]:
    return [g] * len(node.branches)


def _multiply(o: Primitives, node: Node, parts: Sequence[Tensor]) -> tuple[Tensor, Memory]:
    """R(R(x_0 x_1) x_2)"""
    products = [*accumulate(parts, lambda a, b: o.r(a * b))]
    return products[-1], (products, parts)


def _multiply_backward(o: Primitives, node: Node, memory: Memory, g: Tensor) -> list[Tensor]:
    """Differentiate the products from the last to the first."""
    products, parts = memory
    found = []
    for before, part in zip(products[-2::-1], parts[:0:-1], strict=True):
        found.append(o.r(g * before))
        g = o.r(g * part)
    return [g, *reversed(found)]


def _concat(o: Primitives, node: Node, parts: Sequence[Tensor]) -> tuple[Tensor, Memory]:
    columns = [
        o.transpose(o.reshape(part, (-1, width)))
        for part, width in zip(parts, _widths(node), strict=True)
    ]
    joined = o.reshape(o.join(columns), (sum(_widths(node)), -1))
    return o.reshape(o.transpose(joined), (-1, *node.output_shape)), None


def _concat_backward(o: Primitives, node: Node, memory: Memory, g: Tensor) -> list[Tensor]:
    ends = [*accumulate(_widths(node))]
    return [g[..., end - width : end] for end, width in zip(ends, _widths(node), strict=True)]


def _widths(node: Node) -> list[int]:
    """Return the last size of each branch's output."""
    return [
        branch[-1].output_shape[-1] if branch else node.input_shape[-1] for branch in node.branches
    ]


def total(o: Primitives, parts: Sequence[Tensor]) -> Tensor:
    """Add tensors, rounded after each addition."""
    *_, last = accumulate(parts, lambda a, b: o.r(a + b))
    return last


JOINS: dict[str, tuple[Callable[..., tuple[Tensor, Memory]], Callable[..., list[Tensor]]]] = {
    "add": (_add, _add_backward),
    "multiply": (_multiply, _multiply_backward),
    "concat": (_concat, _concat_backward),
}
