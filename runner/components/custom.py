"""The user's own model as the runner sees it: shapes, and the names and first values of its
tensors. A backend builds it; names and layouts are the framework's."""

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runner import user_code
from runner.components.layers import Network, Shape, Variable
from runner.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """The origin of a model: a config section with `_target_`, or an object passed in Python."""

    section: Mapping[str, Any] | None
    given: Any = None
    key: str = "model"  # the section's, for errors
    is_twin: bool = False

    def make(self, kind: type, kind_name: str) -> Any:
        """Make the model; an instance is returned as it is, a class or factory is called. Raises
        ConfigError if the result is not a `kind`; `kind_name` is its name for users."""
        if self.section is not None:
            try:
                model = user_code.make(self.section)
            except ValueError as error:
                raise ConfigError(f"{self.key}.{error}") from error
        else:
            model = self.given if isinstance(self.given, kind) else self.given()
        if not isinstance(model, kind):
            raise ConfigError(
                f"{self.name} must make a {kind_name} for this backend, got "
                f"{type(model).__module__}.{type(model).__qualname__}"
            )
        return model

    @property
    def name(self) -> str:
        """The name of the model in errors."""
        if self.section is not None:
            return f"{self.key}._target_ {self.section['_target_']}"
        return f"model {getattr(self.given, '__qualname__', type(self.given).__qualname__)}"


@dataclass(frozen=True)
class Built:
    """A model after a backend has built it: every tensor's first value by the framework's name, in
    order of definition."""

    weights: Mapping[str, np.ndarray]
    buffers: Mapping[str, np.ndarray]  # tensors that are not trained
    output_shape: Shape
    uses_xla: bool = True  # False if XLA cannot compile it
    layers: Any = None  # of a twin: runner.components.twins.Layers


@dataclass(frozen=True)
class CustomNetwork(Network):
    """The user's own model. It has no nodes, since its layers are the framework's."""

    source: Source
    seed: int = field(compare=False)
    built: Built = field(compare=False, repr=False)

    @classmethod
    def of(cls, source: Source, input_shape: Shape, seed: int, built: Built) -> "CustomNetwork":
        return cls((), input_shape, source, seed, built)

    @property
    def output_shape(self) -> Shape:
        return self.built.output_shape

    def variables(self) -> dict[str, Variable]:
        """Map names to variables, in order of definition. Weight decay applies to weights with at
        least two axes; the others are biases and scales of norms."""
        variables = {}
        for values, trainable in ((self.built.weights, True), (self.built.buffers, False)):
            for name, value in values.items():
                decays = trainable and value.ndim > 1
                variables[name] = Variable(name, value.shape, None, trainable, decays)
        return variables

    def layers(self) -> list[list[str]]:
        """The names of the weights of each layer, in order of definition."""
        by_layer: dict[str, list[str]] = {}
        for name in self.built.weights:
            by_layer.setdefault(layer_of(name), []).append(name)
        return list(by_layer.values())


def layer_of(weight: str) -> str:
    """The layer name of a weight: its name up to the last `/`, or in torch up to the last `.`."""
    return re.split(r"[./][^./]*$", weight)[0]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's and NumPy's global generators, which some models use for first weights; restore
    them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
