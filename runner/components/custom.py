"""The user's own model as the runner sees it: shapes, and the names and first values of its
tensors. A backend builds it; names and layouts are the framework's."""

import hashlib
import inspect
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import ref

import numpy as np

from runner import user_code
from runner.components.layers import Network, Shape, Variable
from runner.components.outputs import Outputs
from runner.errors import ConfigError, one_line

_WIDENING = 16  # how much larger than input and output a layer's output may be


@dataclass(frozen=True, eq=False)
class Source:
    """The origin of a model: a config section with `_target_`, or an object passed in Python.

    Two sources are equal if they make the same model. The code of an object may have changed
    between two runs of a notebook, so it is never equal to another.
    """

    section: Mapping[str, Any] | None
    given: Any = None
    key: str = "model"  # the section's, for errors
    is_twin: bool = False
    takes_tokens: bool = False  # its rows are token ids
    _made: list[Any] = field(default_factory=list, repr=False)  # the last model of a factory

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Source) or self.given is not None or other.given is not None:
            return self is other
        return (self.section, self.is_twin, self.takes_tokens) == (
            other.section,
            other.is_twin,
            other.takes_tokens,
        )

    def make(self, kind: type, kind_name: str, copy: Callable[[Any], Any]) -> Any:
        """Make the model: a class or factory is called; of an instance, `copy` makes a copy. Raises
        ConfigError if the result is not a `kind`; `kind_name` is its name for users."""
        if self.section is not None:
            try:
                model = user_code.make(self.section)
            except ValueError as error:
                raise ConfigError(f"{self.key}.{error}") from error
        elif is_factory(self.given):
            model = self._call(copy)
        else:
            model = self._copied(self.given, copy) if isinstance(self.given, kind) else self.given
        if not isinstance(model, kind):
            raise ConfigError(
                f"{self.name} must make a {kind_name} for this backend, got "
                f"{type(model).__module__}.{type(model).__qualname__}"
            )
        return model

    def _call(self, copy: Callable[[Any], Any]) -> Any:
        """Call the class or factory. Copy the result if it was returned before: it may be the
        user's own instance, which training must not change."""
        try:
            model = self.given()
        except Exception as error:
            module = str(getattr(self.given, "__module__", ""))
            raise ConfigError(f"{self.name} raised {user_code.blame(error, module)}") from error
        is_repeated = any(made() is model for made in self._made)
        with suppress(TypeError):  # no model: the caller refuses it
            self._made[:] = [ref(model)]
        return self._copied(model, copy) if is_repeated else model

    def _copied(self, model: Any, copy: Callable[[Any], Any]) -> Any:
        try:
            return copy(model)
        except Exception as error:
            raise ConfigError(
                f"{self.name} cannot be copied: {type(error).__name__}: "
                f"{one_line(error)[:200]}; pass the class or a function that makes it"
            ) from error

    @property
    def name(self) -> str:
        """The name of the model in errors."""
        if self.section is not None:
            return f"{self.key}._target_ {self.section['_target_']}"
        named = self.given.func if isinstance(self.given, partial) else self.given
        return f"model {getattr(named, '__qualname__', type(named).__qualname__)}"


def is_factory(value: Any) -> bool:
    """Return whether an object passed in Python is called to make the model: a class, a function, a
    method or a partial call. Anything else is an instance."""
    return inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, partial)


ROWS_OF_REPETITION = 8  # rows on which a model is tried twice; batch norm needs two at least


@dataclass(frozen=True)
class Built:
    """A model after a backend has built it: every tensor's first value by the framework's name, in
    order of definition."""

    weights: Mapping[str, np.ndarray]
    buffers: Mapping[str, np.ndarray]  # tensors that are not trained
    output_shape: Shape  # of packed outputs, if there are several
    outputs: Outputs | None = None  # several ones; None: one tensor
    uses_xla: bool = True  # False if XLA cannot compile it
    layers: Any = None  # of a twin: runner.components.twins.Layers
    has_loss: bool = False  # True: the model computes its own loss
    # columns of metrics.csv that the model logs, measured on training and on validation rows
    train_columns: tuple[str, ...] = ()
    val_columns: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()  # parts of the model that the config replaces
    # of a model with an optimizer of its own: weight -> rate, relative to the first group's
    rate_factors: Mapping[str, float] | None = None
    # buffers that belong to one run: states of random generators, and what metrics have counted
    counts: tuple[str, ...] = ()
    # buffers that a forward pass in training changes, and that several processes would change
    # differently
    unshared: tuple[str, ...] = ()
    # buffers that several processes change in the same way: statistics of whole batches
    shared: tuple[str, ...] = ()
    # batch norms that get one value of each channel of a row, in training
    vector_norms: tuple[str, ...] = ()
    # False: two forward passes in training differ under the same seed
    is_repeatable: bool = True
    description: str = ""  # the layers and their settings, the same for models of the same layout

    def layout_sha256(self) -> str:
        """Hash the description, and the shapes of all tensors in order: equal for two models that
        differ in nothing but their values."""
        shapes = [
            [list(value.shape) for value in values.values()]
            for values in (self.weights, self.buffers)
        ]
        return hashlib.sha256(json.dumps([self.description, shapes]).encode()).hexdigest()


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
    def takes_tokens(self) -> bool:
        return self.source.takes_tokens

    @property
    def output_shape(self) -> Shape:
        return self.built.output_shape

    @property
    def outputs(self) -> Outputs | None:
        return self.built.outputs

    def widest(self) -> int:
        """Estimate the numbers of a row in the largest output of a layer: its layers are not
        known."""
        return _WIDENING * max(math.prod(self.input_shape), math.prod(self.output_shape))

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

    def last_weights(self) -> list[str]:
        """The names of the weights of the last layer."""
        return (self.layers() or [[]])[-1]


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
