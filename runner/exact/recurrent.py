"""Forward and backward passes of recurrent layers, with the formulas of components/layers.py.

x  # [N, T, D]; a  # gates before their functions [N, G U]; h, c  # states [N, U].

The products of all inputs with the kernel are one exact product. Each step has one more, of the
state with the recurrent kernel. In the backward pass, the derivatives of all steps by the gates are
collected, and the gradients of the weights are exact sums over all rows and steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

from runner.components.layers import Node
from runner.exact.functions import sigmoid, tanh
from runner.exact.layers import Gradients, Memory, Pass
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import product_bits

Step = Any  # what the backward pass needs of a step


def recurrent(p: Pass, node: Node, x: Tensor) -> tuple[Tensor, Memory]:
    bits = product_bits(longest_sum(node, p.rows or 1), node.is_masked)
    qx, ux = p.grid(x, bits)
    outputs, memories = [], []
    for prefix in node.spec.prefixes:
        y, memory = _direction(p, node, qx, ux, prefix, bits)
        outputs.append(y)
        memories.append(memory)
    return _beside(p.o, outputs), (qx, ux, memories, bits)


def recurrent_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    qx, ux, memories, bits = memory
    units, gradients, dx = node.spec.units, {}, None
    for i, prefix in enumerate(node.spec.prefixes):
        part = g[..., i * units : (i + 1) * units]
        one_dx, found = _direction_backward(
            p, node, (qx, ux, memories[i], bits), part, prefix, needs_dx
        )
        gradients.update(found)
        dx = one_dx if dx is None or not needs_dx else p.o.r(dx + one_dx)
    return dx, gradients


def longest_sum(node: Node, rows: int) -> int:
    """Return how many products the longest sum has."""
    steps, num_in = node.input_shape
    return max(rows * steps, num_in, node.variables[0].shape[1])


def _direction(
    p: Pass, node: Node, qx: Tensor, ux: Any, prefix: str, bits: int
) -> tuple[Tensor, Memory]:
    """Run over the steps in one direction. Padding keeps the state. Returns the output and the
    memory."""
    o, s, (steps, num_in) = p.o, node.spec, node.input_shape
    qw, uw = o.grid(p.value(node, f"{prefix}kernel"), bits)
    qu, uu = o.grid(p.value(node, f"{prefix}recurrent_kernel"), bits)
    bias, recurrent_bias = _biases(p, node, prefix)
    num_gates = qw.shape[1]
    products = o.reshape(o.matmul(o.reshape(qx, (-1, num_in)), qw), (-1, steps, num_gates))
    a = o.r(products * (ux * uw) if bias is None else o.plus(bias, products, ux * uw))
    h = o.r(a[:, 0, : s.units] * 0.0)
    state, outputs, memories = (h, h), [h] * steps, []
    order = range(steps - 1, -1, -1) if prefix else range(steps)
    for t in order:
        qh, uh = p.grid(state[0], bits)
        product = o.matmul(qh, qu)
        unit = uh * uu
        b = o.r(product * unit if recurrent_bias is None else o.plus(recurrent_bias, product, unit))
        new, step = _CELLS[s.layer][0](o, a[:, t], b, state, s.units)
        state = _unless_padding(p, node, t, new, state)
        outputs[t] = state[0]
        memories.append((t, qh, uh, step))
    y = _stack(o, outputs) if s.return_sequences else state[0]
    return y, (memories, qw, uw, qu, uu)


def _unless_padding(
    p: Pass, node: Node, t: int, new: Sequence[Tensor], old: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Return the new tensors [N, ...] for rows whose step t is not padding, else the old ones."""
    if not node.is_masked:
        return tuple(new)
    is_value = p.o.reshape(p.mask[:, t], (-1, 1))
    return tuple(p.o.where(is_value, a, b) for a, b in zip(new, old, strict=True))


def _biases(p: Pass, node: Node, prefix: str) -> tuple[Tensor, Tensor]:
    """Return the bias of the inputs and that of the states. LSTM has the first one only."""
    if not node.spec.bias:
        return None, None
    bias = p.value(node, f"{prefix}bias")
    return (bias[0], bias[1]) if node.spec.layer == "gru" else (bias, None)


def _direction_backward(
    p: Pass, node: Node, memory: Memory, g: Tensor, prefix: str, needs_dx: bool
) -> tuple[Tensor, Gradients]:
    o, s, (steps, num_in) = p.o, node.spec, node.input_shape
    qx, ux, (memories, qw, uw, qu, uu), bits = memory
    zero = o.r((g[:, 0] if s.return_sequences else g) * 0.0)
    dh, dc = (zero if s.return_sequences else g), zero
    by_input, by_state = [zero] * steps, [zero] * steps  # [N, G U]: derivatives by the gates
    for t, _, _, step in reversed(memories):
        if s.return_sequences:
            dh = o.r(dh + g[:, t])
        found = _CELLS[s.layer][1](o, step, dh, dc)
        by_input[t], by_state[t], direct, dc = _unless_padding(
            p, node, t, found, (0.0, 0.0, dh, dc)
        )
        q, u = p.grid(by_state[t], bits)
        dh = o.r(o.plus(direct, o.matmul(q, o.transpose(qu)), u * uu))
    num_gates = qw.shape[1]
    qa, ua = p.grid(o.reshape(_stack(o, by_input), (-1, num_gates)), bits)
    rows = o.reshape(qx, (-1, num_in))
    gradients = {f"{prefix}kernel": o.matmul(o.transpose(rows), qa) * (ux * ua)}
    qb, ub = p.grid(o.reshape(o.join([by_state[t] for t, *_ in memories]), (-1, num_gates)), bits)
    # the states of a step have a unit of their own; as values, they have 24 bits
    states = o.join([o.r(qh * uh) for _, qh, uh, _ in memories])
    qh, uh = p.grid(o.reshape(states, (-1, s.units)), bits)
    by_kernel = o.matmul(o.transpose(qh), qb) * (uh * ub)
    gradients[f"{prefix}recurrent_kernel"] = by_kernel
    if s.bias:
        biases = [o.sum(qa, (0,)) * ua, o.sum(qb, (0,)) * ub]
        gradients[f"{prefix}bias"] = (
            o.reshape(o.join(biases), (2, num_gates)) if s.layer == "gru" else biases[0]
        )
    if not needs_dx:
        return None, gradients
    dx = o.r(o.matmul(qa, o.transpose(qw)) * (ua * uw))
    return o.reshape(dx, (-1, steps, num_in)), gradients


def _stack(o: Primitives, parts: Sequence[Tensor]) -> Tensor:
    """T tensors [N, U] -> [N, T, U]"""
    joined = o.reshape(o.join(parts), (len(parts), -1, parts[0].shape[-1]))
    return o.permute(joined, (1, 0, 2))


def _beside(o: Primitives, parts: Sequence[Tensor]) -> Tensor:
    """Tensors [..., U] -> [..., n U]"""
    if len(parts) == 1:
        return parts[0]
    *middle, width = parts[0].shape[1:]
    joined = o.permute(o.reshape(o.join(parts), (len(parts), -1, width)), (1, 0, 2))
    return o.reshape(joined, (-1, *middle, len(parts) * width))


def _gru(
    o: Primitives, a: Tensor, b: Tensor, state: tuple[Tensor, Tensor], units: int
) -> tuple[tuple[Tensor, Tensor], Step]:
    """h' = z (h - n) + n, z = sigmoid(a_z + b_z), r = sigmoid(a_r + b_r), n = tanh(r b_n + a_n)."""
    h, _ = state
    z, not_z = sigmoid(o, o.r(a[:, :units] + b[:, :units]))
    reset, not_r = sigmoid(o, o.r(a[:, units : 2 * units] + b[:, units : 2 * units]))
    b_n = b[:, 2 * units :]
    n = tanh(o, o.r(reset * b_n + a[:, 2 * units :]))
    change = o.r(h - n)
    h = o.r(z * change + n)
    return (h, h), (z, not_z, reset, not_r, b_n, n, change)


def _gru_backward(o: Primitives, step: Step, dh: Tensor, dc: Tensor) -> tuple[Tensor, ...]:
    z, not_z, reset, not_r, b_n, n, change = step
    by_n = o.r(o.r(dh * not_z) * o.r(1.0 - n * n))
    by_r = o.r(o.r(by_n * b_n) * o.r(reset * not_r))
    by_z = o.r(o.r(dh * change) * o.r(z * not_z))
    by_input = _beside(o, [by_z, by_r, by_n])
    return by_input, _beside(o, [by_z, by_r, o.r(by_n * reset)]), o.r(dh * z), dc


def _lstm(
    o: Primitives, a: Tensor, b: Tensor, state: tuple[Tensor, Tensor], units: int
) -> tuple[tuple[Tensor, Tensor], Step]:
    """c' = f c + i g; h' = o tanh(c')."""
    total = o.r(a + b)
    parts = [total[:, k * units : (k + 1) * units] for k in range(4)]
    (i, not_i), (f, not_f), (out, not_out) = (sigmoid(o, parts[k]) for k in (0, 1, 3))
    g, (_, c) = tanh(o, parts[2]), state
    new = o.r(f * c + o.r(i * g))
    squashed = tanh(o, new)
    memory = (i, not_i, f, not_f, g, out, not_out, c, squashed)
    return (o.r(out * squashed), new), memory


def _lstm_backward(o: Primitives, step: Step, dh: Tensor, dc: Tensor) -> tuple[Tensor, ...]:
    i, not_i, f, not_f, g, out, not_out, c, squashed = step
    dc = o.r(o.r(dh * out) * o.r(1.0 - squashed * squashed) + dc)
    by_gates = _beside(
        o,
        [
            o.r(o.r(dc * g) * o.r(i * not_i)),
            o.r(o.r(dc * c) * o.r(f * not_f)),
            o.r(o.r(dc * i) * o.r(1.0 - g * g)),
            o.r(o.r(dh * squashed) * o.r(out * not_out)),
        ],
    )
    return by_gates, by_gates, o.r(dh * 0.0), o.r(dc * f)


_CELLS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "gru": (_gru, _gru_backward),
    "lstm": (_lstm, _lstm_backward),
}
_FORM = (recurrent, recurrent_backward)
FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {"gru": _FORM, "lstm": _FORM}
