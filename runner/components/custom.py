"""A model of the user's own, as the runner sees it: shapes, and the names and first values of its
tensors. Its backend builds it; names and layouts are the framework's."""

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
    """The origin of a model: a section with `_target_`, or an object that was handed in."""

    section: Mapping[str, Any] | None
    given: Any = None

    def make(self, kind: type, kind_name: str) -> Any:
        """Make the model: an instance stays itself, a class or another factory is called. A result
        that is no `kind`, which users know as `kind_name`, is a ConfigError."""
        if self.section is not None:
            try:
                made = user_code.make(self.section)
            except ValueError as error:
                raise ConfigError(f"model.{error}") from error
        else:
            made = self.given if isinstance(self.given, kind) else self.given()
        if not isinstance(made, kind):
            raise ConfigError(
                f"{self.name} must make a {kind_name} for this backend, got "
                f"{type(made).__module__}.{type(made).__qualname__}"
            )
        return made

    @property
    def name(self) -> str:
        """The model in an error."""
        if self.section is not None:
            return f"model._target_ {self.section['_target_']}"
        return f"model {getattr(self.given, '__qualname__', type(self.given).__qualname__)}"


@dataclass(frozen=True)
class Built:
    """A model that a backend has built once: every tensor by the framework's name, in order of
    definition, with its first value."""

    weights: Mapping[str, np.ndarray]
    buffers: Mapping[str, np.ndarray]  # tensors that are not trained
    output_shape: Shape
    uses_xla: bool = True  # TensorFlow may compile it


@dataclass(frozen=True)
class CustomNetwork(Network):
    """A model of the user's own. It has no nodes: its layers are the framework's."""

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
        """Name -> variable, in order of definition. Weights with at least two axes decay: the
        others are biases and the scales of norms."""
        found = {}
        for values, trainable in ((self.built.weights, True), (self.built.buffers, False)):
            for name, value in values.items():
                decays = trainable and value.ndim > 1
                found[name] = Variable(name, value.shape, None, trainable, decays)
        return found

    def layers(self) -> list[list[str]]:
        """The names of the weights of each layer, in order of definition."""
        found: dict[str, list[str]] = {}
        for name in self.built.weights:
            found.setdefault(layer_of(name), []).append(name)
        return list(found.values())


def layer_of(weight: str) -> str:
    """The layer's part of a weight's name: up to the last `/`, or up to the last `.` in torch."""
    return re.split(r"[./][^./]*$", weight)[0]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python and NumPy, which some models draw first weights from; restore
    them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
