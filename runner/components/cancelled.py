"""Find weights that do not affect the output. Their true gradient is 0; the computed gradient is
rounding noise.

The common case is a bias before a batch norm: the norm subtracts the batch's mean, and the bias
with it. Optimizers that divide by the gradient's size (all but sgd) turn the noise into full steps,
which differ between frameworks.

The rules below follow a change of one weight through the later layers. `Change` describes what the
change of a layer's output looks like for any change of that weight.
"""

import math
from collections.abc import Iterator, Sequence
from enum import IntEnum

from runner.components.layers import Network, Node


class Change(IntEnum):
    """The kind of change of a value, from the most specific to the most general."""

    NONE = 0
    CHANNEL = 1  # equal for all rows and all positions of an image or a sequence
    ROWS = 2  # equal for all rows
    ANY = 3


_FIRST = {
    "bias": Change.CHANNEL,
    "offset": Change.CHANNEL,
    "position_embedding": Change.ROWS,
}  # others: ANY


def cancelled(network: Network) -> dict[str, str]:
    """Map each trained weight that does not affect the output to the layer that cancels it. A
    weight that several layers use is one of them if each use is cancelled."""
    found: dict[str, str] = {}
    uses = list(_changes(network.nodes))
    seen = {name for name, change, _ in uses if change != Change.NONE}
    for name, _, by in uses:
        if name not in seen:
            found.setdefault(name, by)
    return found


def _changes(nodes: Sequence[Node]) -> Iterator[tuple[str, Change, str]]:
    """Yield every trained weight of these nodes, the change at their output, and the layer that
    caused this kind of change."""
    for i, node in enumerate(nodes):
        for name, change, by in [*_own(node), *_inner(node)]:
            yield (name, *_through(nodes[i + 1 :], change, by))


def _own(node: Node) -> Iterator[tuple[str, Change, str]]:
    """Yield the node's own weights and the change at its output."""
    for variable in node.variables:
        change = (
            Change.NONE
            if _has_no_effect(node, variable.name)
            else Change.ANY
            if node.spec.layer in ("gru", "lstm", "gated_dense", "squeeze_excite")
            else _FIRST.get(
                node.spec.layer if variable.name == "embedding" else variable.name, Change.ANY
            )
        )
        if variable.trainable:
            yield f"{node.name}/{variable.name}", _narrowed(change, node), node.name
    if node.tied:
        yield node.tied, Change.ANY, node.name


def _has_no_effect(node: Node, variable: str) -> bool:
    """True for attention over a single step (the softmax is 1) and for a layer or group norm of a
    single value (minus its mean it is 0)."""
    if node.spec.layer == "attention":
        return node.input_shape[0] == 1 and variable in ("query", "key")
    return variable == "scale" and _normalizes_single_values(node)


def _normalizes_single_values(node: Node) -> bool:
    if node.spec.layer == "group_norm":
        return math.prod(node.input_shape) == node.spec.groups
    return node.spec.layer == "layer_norm" and node.input_shape[-1] == 1


def _inner(node: Node) -> Iterator[tuple[str, Change, str]]:
    """Yield the weights in a node's branches. The other branches do not change, so the change at
    the output is that of the branch."""
    for branch in node.branches:
        for name, change, by in _changes(branch):
            yield name, _after_join(node, change), by


def _after_join(node: Node, change: Change) -> Change:
    """Return the change of the output for that of a branch: what is dropped and the factors of a
    product differ from row to row."""
    differs = node.spec.joined_by == "multiply" or node.spec.drop_rate > 0
    return Change.ANY if differs and change != Change.NONE else change


def _through(nodes: Sequence[Node], change: Change, by: str) -> tuple[Change, str]:
    for node in nodes:
        if change == Change.NONE:
            break
        change, by = _narrowed(_after(node, change), node), node.name
    return change, by


def _after(node: Node, change: Change) -> Change:
    """The change of the node's output for a change of its input."""
    s = node.spec
    match s.layer:
        case "residual" | "parallel":
            inner = max(_through(branch, change, "")[0] for branch in node.branches)
            return _after_join(node, inner)
        case "batch_norm":
            return Change.NONE if change == Change.CHANNEL else Change.ANY
        case "layer_norm":
            return Change.NONE if _normalizes_single_values(node) else Change.ANY
        case "group_norm":
            has_own_mean = change == Change.CHANNEL and node.input_shape[-1] == s.groups
            is_zero = has_own_mean or _normalizes_single_values(node)
            return Change.NONE if is_zero else Change.ANY
        case (
            "dense"
            | "slice"
            | "average_pool"
            | "position_embedding"
            | "sinusoidal_positions"
            | "upsampling2d"
        ):
            return change
        case "conv2d" | "depthwise_conv2d":
            padded = any(map(any, s.window.pads(node.input_shape)))
            return max(change, Change.ROWS) if padded else change
        case "conv2d_transpose":  # positions of the output differ in how many products they have
            return max(change, Change.ROWS)
        case "conv1d":
            padded = any(s.pads(node.input_shape[0]))
            return max(change, Change.ROWS) if padded else change
        case "max_pool" | "global_max_pool":
            return change if change == Change.CHANNEL else Change.ANY
        case "global_average_pool":
            return Change.CHANNEL if change <= Change.ROWS else Change.ANY
        case "flatten" | "reshape":
            return max(change, Change.ROWS)
        case "dropout":
            return change if s.rate == 0 else Change.ANY
    return Change.ANY


def _narrowed(change: Change, node: Node) -> Change:
    """Turn ROWS into CHANNEL if the output has a single position: a change that is equal for all
    rows is then equal for all positions."""
    has_one_position = all(size == 1 for size in node.output_shape[:-1])
    return Change.CHANNEL if change == Change.ROWS and has_one_position else change
