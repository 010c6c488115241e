"""Forward and backward passes of a whole network, and its weights as one vector."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.components.layers import Network, Node
from runner.components.optimizers import Group
from runner.exact.branches import JOINS, total
from runner.exact.forms import FORMS
from runner.exact.layers import Gradients, Memory, Pass, find_mask, without_padding
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant

Tape = list[tuple[Node, Any, bool]]  # (node, memory, whether a node before it is trained)


@dataclass(frozen=True)
class Layout:
    """Positions of the trainable variables in one vector: group by group, in order of definition,
    row-major."""

    shapes: Mapping[str, tuple[int, ...]]
    # each parameter group and its slice of the vector
    parts: tuple[tuple[Group, slice], ...] = ()

    @classmethod
    def of(cls, network: Network, groups: Iterable[Group] = ()) -> "Layout":
        shapes = {name: v.shape for name, v in network.variables().items() if v.trainable}
        ordered: dict[str, tuple[int, ...]] = {}
        parts, offset = [], 0
        for group in groups:
            group_shapes = {name: shapes[name] for name in group.names}
            end = offset + sum(int(np.prod(shape)) for shape in group_shapes.values())
            parts.append((group, slice(offset, end)))
            ordered, offset = {**ordered, **group_shapes}, end
        return cls(ordered or shapes, tuple(parts))

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def pack(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Concatenate the values of all variables.  # float64[size]"""
        parts = [np.asarray(values[name], np.float64).reshape(-1) for name in self.shapes]
        return np.concatenate(parts) if parts else np.empty(0)

    def unpack(self, vector: np.ndarray, dtype: type = np.float32) -> dict[str, np.ndarray]:
        """Undo `pack`, in float32, which holds R's outputs exactly, or in another dtype."""
        return {
            name: np.array(part, dtype).reshape(self.shapes[name])
            for name, part in self._parts(vector)
        }

    def slices(self) -> dict[str, slice]:
        """Return the slice of each variable."""
        return {name: slice(*part) for name, part in self._bounds()}

    def views(self, o: Primitives, vector: Tensor) -> dict[str, Tensor]:
        return {name: o.reshape(part, self.shapes[name]) for name, part in self._parts(vector)}

    def join(self, o: Primitives, tensors: Mapping[str, Tensor]) -> Tensor:
        return o.join([tensors[name] for name in self.shapes])

    def total(self, o: Primitives, gradients: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Return R of the sums over the processes of what `backward` has found, as one vector. A
        weight that several nodes use has the sum of theirs: R(R(g_3 + g_2) + g_1)."""
        first = [gradients[name][0] for name in self.shapes]
        later = [(name, part) for name in self.shapes for part in gradients[name][1:]]
        sums = o.r(o.over_all(o.join([*first, *(part for _, part in later)])))
        if not later:
            return sums
        tensors, begin = self.views(o, sums[: self.size]), self.size
        for name, _ in later:
            end = begin + int(np.prod(self.shapes[name]))
            part = o.reshape(sums[begin:end], self.shapes[name])
            tensors[name], begin = o.r(tensors[name] + part), end
        return self.join(o, tensors)

    def _parts(self, vector: Any) -> list[tuple[str, Any]]:
        return [(name, vector[begin:end]) for name, (begin, end) in self._bounds()]

    def _bounds(self) -> list[tuple[str, tuple[int, int]]]:
        bounds, offset = [], 0
        for name, shape in self.shapes.items():
            end = offset + int(np.prod(shape))
            bounds.append((name, (offset, end)))
            offset = end
        return bounds


def forward(
    p: Pass, nodes: Sequence[Node], x: Tensor, trained: bool = False
) -> tuple[Tensor, Tape]:
    """Return the output and the tape for `backward`. `trained` says whether a node before these is
    trained. Every layer sees zeros at the padding, so it changes no unit of a grid."""
    tape: Tape = []
    for node in nodes:
        if node.spec.makes_mask:
            find_mask(p, node, x)
        x = without_padding(p, x) if node.is_masked else x
        if node.branches:
            passes, mask, masks = [], p.mask, []
            for branch in node.branches:  # a branch may have a mask of its own
                p.mask = mask
                passes.append(forward(p, branch, x, trained))
                masks.append(p.mask)
            p.mask = mask
            (first, *others), tapes = zip(*passes, strict=True)
            is_kept = _rows_kept(p, node, first)
            parts = [_drop(p, node, is_kept, first), *others]
            x, joined = JOINS[node.spec.joined_by][0](p.o, node, parts)
            memory = tapes, masks, is_kept, joined
        else:
            x, memory = FORMS[node.spec.layer][0](p, node, x)
        tape.append((node, memory, trained))
        trained = trained or _is_trained(p, node)
    return x, tape


def backward(p: Pass, tape: Tape, g: Tensor, gradients: dict[str, list[Tensor]]) -> Tensor:
    """Add the gradients of the weights to `gradients`: for each use, from the last to the first, an
    exact sum over this process's rows. Return the derivative by the tape's input if a node before
    it is trained."""
    for node, memory, needs_dx in reversed(tape):
        if not (needs_dx or _is_trained(p, node)):
            continue
        if node.branches:
            g = _branches_backward(p, node, memory, g, gradients, needs_dx)
        else:
            g, node_gradients = FORMS[node.spec.layer][1](p, node, memory, g, needs_dx)
            _store(p, node, node_gradients, gradients)
        if needs_dx and node.is_masked:
            g = without_padding(p, g)
    return g


def _branches_backward(
    p: Pass,
    node: Node,
    memory: Memory,
    g: Tensor,
    gradients: dict[str, list[Tensor]],
    needs_dx: bool,
) -> Tensor:
    tapes, masks, is_kept, joined = memory
    mask = p.mask
    first, *others = JOINS[node.spec.joined_by][1](p.o, node, joined, g)
    by_output = [_drop(p, node, is_kept, first), *others]
    by_input = []
    for tape, own, part in reversed([*zip(tapes, masks, by_output, strict=True)]):
        p.mask = own
        by_input.append(backward(p, tape, part, gradients))
    p.mask = mask
    return total(p.o, by_input[::-1]) if needs_dx else None


def _store(p: Pass, node: Node, own: Gradients, gradients: dict[str, list[Tensor]]) -> None:
    """Add a node's gradients to those of the nodes after it."""
    for name, value in own.items():
        weight = f"{node.name}/{name}"
        if name == "kernel" and node.tied is not None:
            weight, value = node.tied, p.o.transpose(value)
        gradients.setdefault(weight, []).append(value)


def _rows_kept(p: Pass, node: Node, y: Tensor) -> Tensor:
    """Return the mask of stochastic depth, [N, 1, ...]; None if no row is dropped."""
    rate = node.spec.drop_rate
    if p.is_evaluation or rate == 0:
        return None
    one_per_row = y[(slice(None), *(slice(0, 1) for _ in node.output_shape))]
    return p.o.keep(one_per_row, rate, node.index, p.where)


def _drop(p: Pass, node: Node, is_kept: Tensor, x: Tensor) -> Tensor:
    if is_kept is None or x is None:
        return x
    return p.o.where(is_kept, p.o.r(x * constant(1 / (1 - node.spec.drop_rate))), 0.0)


def _is_trained(p: Pass, node: Node) -> bool:
    return any(name not in p.frozen for name in node.used())
