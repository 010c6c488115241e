"""A twin: one model of the user's own, written for both frameworks.

Its state has names and layouts that belong to no framework: `KIND_INDEX/ROLE`, such as
`dense_0/kernel` [in, out]. The index counts the layers of a kind in order of definition. Each
backend lists the layers of its own model; from the list follow the names, so a run needs only its
own framework.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from runner.components.custom import CustomNetwork
from runner.components.layers import Shape
from runner.errors import ConfigError, nearest
from runner.random import uniform

Array = np.ndarray


@dataclass(frozen=True)
class Layout:
    """Converts a tensor of a framework to canonical tensors and back. A framework may keep several
    of them in one, such as torch's kernels of attention."""

    to_canonical: Callable[[Array], Sequence[Array]]
    to_native: Callable[[Sequence[Array]], Array]


SAME = Layout(lambda value: [value], lambda values: values[0])


def axes(*order: int) -> Layout:
    """Return the layout whose canonical axes are the framework's axes in this order."""
    back = tuple(np.argsort(order))
    return Layout(lambda value: [value.transpose(order)], lambda values: values[0].transpose(back))


@dataclass(frozen=True)
class Tensor:
    """A tensor of a layer: the framework's name for it, and what it holds."""

    name: str
    roles: tuple[str, ...]
    layout: Layout = SAME


@dataclass(frozen=True)
class TwinLayer:
    """A layer with tensors, as a framework has it."""

    kind: str
    name: str  # the framework's
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Layers:
    """All tensors of a framework's model, by layer, in order of definition."""

    layers: tuple[TwinLayer, ...]
    # tensors that the other framework does not have: their constant values
    constants: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A tensor of a framework, and its canonical names."""

    names: tuple[str, ...]
    tensor: Tensor


@dataclass(frozen=True)
class TwinNetwork(CustomNetwork):
    """The model of the run's backend, with canonical names. `native` is the same model with the
    framework's names."""

    native: CustomNetwork = field(compare=False, repr=False)
    parts: tuple[Part, ...] = field(compare=False, repr=False)
    layer_names: Mapping[str, str] = field(compare=False, repr=False)  # canonical -> framework's

    def to_native(self, values: Mapping[str, Array], like: Mapping[str, Array]) -> dict[str, Array]:
        """Convert canonical values to the framework's names and layouts. Tensors of `like` that no
        canonical value fills keep their value."""
        filled = {
            part.tensor.name: np.ascontiguousarray(
                part.tensor.layout.to_native([values[name] for name in part.names])
            )
            for part in self.parts
            if part.names[0] in values
        }
        return {**like, **filled}

    def to_canonical(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Convert the framework's values to canonical names and layouts."""
        return {
            name: np.ascontiguousarray(value)
            for part in self.parts
            if part.tensor.name in values
            for name, value in zip(
                part.names, part.tensor.layout.to_canonical(values[part.tensor.name]), strict=True
            )
        }

    def native_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the framework's tensors that hold these weights. Raises ConfigError if one of them
        holds other weights too."""
        chosen = set(names)
        native = []
        for part in self.parts:
            inside = chosen & set(part.names)
            if inside and inside != set(part.names):
                other = next(name for name in part.names if name not in inside)
                raise ConfigError(
                    f"optimizer.groups must treat {min(inside)} and {other} alike: both are in "
                    f"the tensor {part.tensor.name}"
                )
            native += [part.tensor.name] if inside else []
        return tuple(native)


def network(native: CustomNetwork, backend: str, table: Mapping[str, str] | None) -> TwinNetwork:
    """Name the tensors of a framework's model. `table` is `model.map`."""
    found = native.built.layers
    assert found is not None
    is_torch = backend == "lightning"
    mapped = [torch if is_torch else keras for torch, keras in (table or {}).items()]
    layers = _by_table(found.layers, mapped, "torch" if is_torch else "Keras")
    counts: Counter[str] = Counter()
    parts, names = [], {}
    for layer in layers:
        canonical = f"{layer.kind}_{counts[layer.kind]}"
        counts[layer.kind] += 1
        names[canonical] = layer.name
        parts += [
            Part(tuple(f"{canonical}/{role}" for role in tensor.roles), tensor)
            for tensor in layer.tensors
        ]
    built = native.built
    twin = TwinNetwork(
        (), native.input_shape, native.source, native.seed, built, native, tuple(parts), names
    )
    values = [
        {
            name: _first(name, value, native.seed)
            for name, value in twin.to_canonical(tensors).items()
        }
        for tensors in (built.weights, built.buffers)
    ]
    constants = {**built.buffers, **found.constants}
    buffers = {name: constants[name] for name in built.buffers}
    own = replace(native, built=replace(built, buffers=buffers))
    return replace(twin, native=own, built=replace(built, weights=values[0], buffers=values[1]))


def _by_table(
    layers: Sequence[TwinLayer], mapped: Sequence[str], framework: str
) -> list[TwinLayer]:
    """Put the layers and tensors of the user's table first, in its order, so that both frameworks
    number them alike. A tensor becomes a layer of its own, of kind `mapped`."""
    rest, first = {layer.name: layer for layer in layers}, []
    for name in mapped:
        if name in rest and rest[name].kind != "parameter":
            first.append(rest.pop(name))
            continue
        owner, tensor = next(
            ((layer, t) for layer in rest.values() for t in layer.tensors if t.name == name),
            (None, None),
        )
        if owner is None or tensor is None or len(tensor.roles) > 1:
            known = [*rest, *(t.name for layer in rest.values() for t in layer.tensors)]
            raise ConfigError(
                f"model.map must name layers or tensors of both models, each once; the {framework} "
                f"model has no {name}{nearest(name, known)}; it has {', '.join(rest)}"
            )
        first.append(TwinLayer("mapped", name, (replace(tensor, roles=("value",)),)))
        others = tuple(t for t in owner.tensors if t is not tensor)
        rest[owner.name] = replace(owner, tensors=others)
    return [*first, *(layer for layer in rest.values() if layer.tensors)]


_ZEROS, _ONES = ("bias", "offset", "mean"), ("scale", "variance")


def _first(name: str, like: Array, seed: int) -> Array:
    """Draw the first value of a tensor, from (seed, name): equal on both frameworks. Biases and
    offsets are 0, scales 1, slopes 0.25. Others are U(-a, a), a = sqrt(6 / (fan_in + fan_out)),
    Glorot and Bengio (2010), with the last two axes as fans."""
    role = name.rpartition("/")[2]
    if role.endswith(_ZEROS):
        return np.zeros_like(like)
    if role in _ONES or role == "slope":
        return np.full_like(like, 0.25 if role == "slope" else 1)
    fans: Shape = (1, 1, *like.shape)[-2:]
    scale = np.prod(like.shape[:-2]) * sum(fans)
    return ((2 * uniform(like.shape, seed, name) - 1) * np.sqrt(6 / scale)).astype(like.dtype)


@dataclass(frozen=True)
class Call:
    """One call of a layer, in order of the forward pass. Arrays have the framework's axes."""

    kind: str
    name: str
    tensors: tuple[str, ...]  # the framework's names
    settings: Mapping[str, Any]  # in the same words on both frameworks
    input: Array
    output: Array


@dataclass(frozen=True)
class Trace:
    """One batch through a framework's model, with its names and layouts."""

    evaluation: Sequence[Call]
    training: Sequence[Call]
    outputs: Array  # of the training pass; several ones are packed
    loss: float
    gradients: Mapping[str, Array]
    buffers: Mapping[str, Array]  # after the training pass
