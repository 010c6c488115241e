"""Weights that change no output: their true gradient is 0, and what is computed for it is rounding
noise.

A bias before a batch norm is the common case: the norm subtracts the batch's mean, and the bias
with it. Optimizers that divide by the gradient's size (all but sgd) turn such noise into whole
steps, which differ from framework to framework.

The rules below follow a change of one weight through the layers behind it. `Change` says what the
change of a layer's output has in common for any change of that weight.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum

from runner.components.layers import Network, Node, padding_same


class Change(IntEnum):
    """Changes of a value, from the most special to the most general."""

    NONE = 0
    CHANNEL = 1  # the same for all rows and all places of an image or a sequence
    ROWS = 2  # the same for all rows
    ANY = 3


_FIRST = {"bias": Change.CHANNEL, "offset": Change.CHANNEL, "embedding": Change.ROWS}  # others: ANY


def cancelled(network: Network) -> dict[str, str]:
    """The trained weights that change no output -> the layer that cancels them."""
    return {name: by for name, change, by in _changes(network.nodes) if change == Change.NONE}


def _changes(nodes: Sequence[Node]) -> Iterator[tuple[str, Change, str]]:
    """Every trained weight of these nodes, its change at their end, and the layer that made it
    that."""
    for i, node in enumerate(nodes):
        for name, change, by in [*_own(node), *_inner(node)]:
            yield (name, *_through(nodes[i + 1 :], change, by))


def _own(node: Node) -> Iterator[tuple[str, Change, str]]:
    """The node's own weights, at its output."""
    for variable in node.variables:
        change = (
            Change.NONE if _alone(node, variable.name) else _FIRST.get(variable.name, Change.ANY)
        )
        if variable.trainable:
            yield f"{node.name}/{variable.name}", _narrowed(change, node), node.name


def _alone(node: Node, variable: str) -> bool:
    """The softmax over one step is 1; one feature without its mean is 0."""
    if node.spec.layer == "attention":
        return node.input_shape[0] == 1 and variable in ("query", "key")
    return node.spec.layer == "layer_norm" and node.input_shape[-1] == 1 and variable == "scale"


def _inner(node: Node) -> Iterator[tuple[str, Change, str]]:
    """The weights in a residual's branches, at its output: the other branch does not change."""
    for branch in node.branches:
        yield from _changes(branch)


def _through(nodes: Sequence[Node], change: Change, by: str) -> tuple[Change, str]:
    for node in nodes:
        if change == Change.NONE:
            break
        change, by = _narrowed(_after(node, change), node), node.name
    return change, by


def _after(node: Node, change: Change) -> Change:
    """Follow a change of the node's input to its output."""
    s = node.spec
    match s.layer:
        case "residual":
            return max(_through(branch, change, "")[0] for branch in node.branches)
        case "batch_norm":
            return Change.NONE if change == Change.CHANNEL else Change.ANY
        case "layer_norm":
            return Change.NONE if node.input_shape[-1] == 1 else Change.ANY
        case "dense" | "average_pool" | "position_embedding":
            return change
        case "conv2d":
            sizes = node.input_shape[:2] if s.padding == "same" else ()
            padded = any(any(padding_same(size, s.kernel_size, s.stride)) for size in sizes)
            return max(change, Change.ROWS) if padded else change
        case "max_pool":
            return change if change == Change.CHANNEL else Change.ANY
        case "global_average_pool":
            return Change.CHANNEL if change <= Change.ROWS else Change.ANY
        case "flatten" | "reshape":
            return max(change, Change.ROWS)
        case "dropout":
            return change if s.rate == 0 else Change.ANY
    return Change.ANY


def _narrowed(change: Change, node: Node) -> Change:
    """Narrow a change: with a single position, a change that is the same for all rows is the same
    for all positions."""
    one = all(size == 1 for size in node.output_shape[:-1])
    return Change.CHANNEL if change == Change.ROWS and one else change
