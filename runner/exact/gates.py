"""Forward and backward passes of layers that multiply their input by a gate."""

import math
from collections.abc import Callable
from typing import Any

from runner.components.layers import Node
from runner.exact.functions import sigmoid
from runner.exact.layers import (
    ACTIVATIONS,
    Gradients,
    Memory,
    Pass,
    dense_bits,
    product,
    product_backward,
)
from runner.exact.primitives import Tensor
from runner.exact.rules import divide, product_bits


def gated_dense(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    bits = dense_bits(p, node)
    a, gate_factors = product(p, node, "gate_", x, bits)
    value, factors = product(p, node, "", x, bits)
    gate, slope = ACTIVATIONS[node.spec.activation][0](p.o, node.spec, a)
    return p.o.r(gate * value), (gate, slope, value, gate_factors, factors)


def gated_dense_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    o, (gate, slope, value, gate_factors, factors) = p.o, memory
    by_a = ACTIVATIONS[node.spec.activation][1](o, node.spec, slope, o.r(g * value))
    by_gate, gradients = product_backward(p, node, "gate_", gate_factors, by_a, needs_dx)
    by_value, others = product_backward(p, node, "", factors, o.r(g * gate), needs_dx)
    dx = o.reshape(o.r(by_gate + by_value), (-1, *node.input_shape)) if needs_dx else None
    return dx, {**gradients, **others}


def squeeze_excite(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    o, (*positions, channels) = p.o, node.input_shape
    num = math.prod(positions)
    x = o.reshape(x, (-1, num, channels))
    mean = divide(o, p.total(x, (1,), num), num)
    num_products = channels if p.is_evaluation else max(p.rows or 0, channels)
    bits = product_bits(num_products)
    squeezed, first = product(p, node, "squeeze_", o.reshape(mean, (-1, channels)), bits)
    active = o.maximum(squeezed, 0.0)
    excited, second = product(p, node, "excite_", active, bits)
    scale, complement = sigmoid(o, excited)
    y = o.r(x * o.reshape(scale, (-1, 1, channels)))
    return o.reshape(y, (-1, *node.output_shape)), (x, scale, complement, active, first, second)


def squeeze_excite_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    """Differentiate y = x s: ds = sum over positions of g x; dx = g s + dm / P."""
    o, (x, scale, complement, active, first, second) = p.o, memory
    *positions, channels = node.input_shape
    num = math.prod(positions)
    g = o.reshape(g, (-1, num, channels))
    (qg, ug), (qx, ux) = p.grid(g, product_bits(num)), p.grid(x, product_bits(num))
    by_scale = o.r(o.sum(qg * qx, (1,)) * (ug * ux))
    by_excited = o.r(by_scale * o.r(scale * complement))
    by_active, gradients = product_backward(p, node, "excite_", second, by_excited, True)
    by_squeezed = o.gate(by_active, active)
    by_mean, others = product_backward(p, node, "squeeze_", first, by_squeezed, needs_dx)
    gradients = {**others, **gradients}
    if not needs_dx:
        return None, gradients
    through_mean = o.reshape(divide(o, by_mean, num), (-1, 1, channels))
    dx = o.r(g * o.reshape(scale, (-1, 1, channels)) + through_mean)
    return o.reshape(dx, (-1, *node.input_shape)), gradients


FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "gated_dense": (gated_dense, gated_dense_backward),
    "squeeze_excite": (squeeze_excite, squeeze_excite_backward),
}
