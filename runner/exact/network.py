"""A whole network forward and backward, and its weights as one vector."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.components.layers import Network, Node
from runner.components.optimizers import Group
from runner.exact.layers import FORMS, Gradients, Pass
from runner.exact.primitives import Primitives, Tensor

Tape = list[tuple[Node, Any, bool]]  # node, memory, whether anything before it is trained


@dataclass(frozen=True)
class Layout:
    """Places of the trained variables in the vector of all of them: group by group, in order of
    definition, row-major."""

    shapes: Mapping[str, tuple[int, ...]]
    # each group of the optimizer's, and where it stands
    parts: tuple[tuple[Group, slice], ...] = ()

    @classmethod
    def of(cls, network: Network, groups: Iterable[Group] = ()) -> "Layout":
        shapes = {name: v.shape for name, v in network.variables().items() if v.trainable}
        ordered: dict[str, tuple[int, ...]] = {}
        parts, at = [], 0
        for group in groups:
            own = {name: shapes[name] for name in group.names}
            end = at + sum(int(np.prod(shape)) for shape in own.values())
            parts.append((group, slice(at, end)))
            ordered, at = {**ordered, **own}, end
        return cls(ordered or shapes, tuple(parts))

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def pack(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """float64[size]"""
        parts = [np.asarray(values[name], np.float64).reshape(-1) for name in self.shapes]
        return np.concatenate(parts) if parts else np.empty(0)

    def unpack(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The inverse, float32: R's outputs are float32's numbers."""
        return {
            name: np.array(part, np.float32).reshape(self.shapes[name])
            for name, part in self._parts(vector)
        }

    def views(self, o: Primitives, vector: Tensor) -> dict[str, Tensor]:
        return {name: o.reshape(part, self.shapes[name]) for name, part in self._parts(vector)}

    def join(self, o: Primitives, gradients: Gradients) -> Tensor:
        return o.join([gradients[name] for name in self.shapes])

    def _parts(self, vector: Any) -> list[tuple[str, Any]]:
        parts, at = [], 0
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            parts.append((name, vector[at : at + size]))
            at += size
        return parts


def forward(
    p: Pass, nodes: Sequence[Node], x: Tensor, trained: bool = False
) -> tuple[Tensor, Tape]:
    """The output, and what `backward` needs; `trained`: whether something before these nodes is."""
    tape: Tape = []
    for node in nodes:
        if node.spec.layer == "residual":
            (y, main), (z, shortcut) = (forward(p, branch, x, trained) for branch in node.branches)
            x, memory = p.o.r(y + z), (main, shortcut)
        else:
            x, memory = FORMS[node.spec.layer][0](p, node, x)
        tape.append((node, memory, trained))
        trained = trained or _trains(node)
    return x, tape


def backward(p: Pass, tape: Tape, g: Tensor, gradients: Gradients) -> Tensor:
    """The derivative by the tape's input, where anything before it is trained; `gradients` takes
    those by the weights."""
    for node, memory, needs_dx in reversed(tape):
        if node.spec.layer == "residual":
            parts = [backward(p, branch, g, gradients) for branch in memory]
            g = p.o.r(parts[0] + parts[1]) if needs_dx else None
        elif needs_dx or _trains(node):
            g, found = FORMS[node.spec.layer][1](p, node, memory, g, needs_dx)
            gradients.update({f"{node.name}/{name}": value for name, value in found.items()})
    return g


def _trains(node: Node) -> bool:
    inner = any(_trains(other) for branch in node.branches for other in branch)
    return inner or any(variable.trainable for variable in node.variables)
