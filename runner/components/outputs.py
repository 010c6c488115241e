"""Models of the user's own with several outputs, a tuple or a dict of tensors.

Between the runner and the backends, the outputs of a row are one row of numbers: `pack` joins the
flattened tensors in order of definition. The user's loss, metrics and files have them by name.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.errors import RunError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Outputs:
    """The names and the shapes of a row of several outputs: the keys of a dict, or the positions
    in a tuple."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    is_dict: bool
    model: str  # for errors

    @property
    def size(self) -> int:
        """The number of values of a row, of all outputs together."""
        return sum(math.prod(shape) for shape in self.shapes)

    def values(self, outputs: Any) -> list[Any]:
        """Return the tensors of a model's outputs in order. Raise RunError if they are not those
        that the model was described with."""
        found = _items(outputs)
        by_name = dict(found or ())
        if found is None or {*by_name} != {*self.names}:
            names = type(outputs).__name__ if found is None else ", ".join(by_name)
            raise RunError(
                f"{self.model} must return the outputs {', '.join(self.names)} in training and in "
                f"evaluation, got {names}"
            )
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tuple(by_name[name].shape[1:]) != shape:
                raise RunError(
                    f"{self.model}: a row of the output {name} must have the shape {list(shape)} "
                    f"in training and in evaluation, got {list(by_name[name].shape[1:])}"
                )
        return [by_name[name] for name in self.names]

    def unpack(self, packed: Any, reshape: Callable[[Any, Any], Any] = np.reshape) -> Any:
        """Split packed rows into a tuple or a dict of the outputs, without a copy in NumPy and
        torch. `reshape` is the framework's.  # [N, size] -> [N, ...] each"""
        parts, begin = [], 0
        for shape in self.shapes:
            end = begin + math.prod(shape)
            parts.append(reshape(packed[:, begin:end], (-1, *shape)))
            begin = end
        return dict(zip(self.names, parts, strict=True)) if self.is_dict else tuple(parts)

    def trial(self, num_rows: int) -> Any:
        """Return random outputs, on which a metric is tried."""
        return self.unpack(np.random.default_rng(0).normal(size=(num_rows, self.size)))

    def named(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs of packed rows by name.  # float[N, ...] each"""
        values = self.unpack(packed)
        parts = values.values() if self.is_dict else values
        return dict(zip(self.names, parts, strict=True))

    def columns(self) -> Iterator[str]:
        """Yield the names of the values of a packed row: output_NAME for an output with one number
        for each row, else output_NAME_I, output_NAME_I_J, ..."""
        for name, shape in zip(self.names, self.shapes, strict=True):
            for index in np.ndindex(*shape):
                yield "_".join(["output", name, *map(str, index)])

    def described(self) -> dict[str, list[int]]:
        """Return the shape of each output of a row, by name."""
        pairs = zip(self.names, self.shapes, strict=True)
        return {name: list(shape) for name, shape in pairs}

    def __str__(self) -> str:
        return ", ".join(f"{name} {shape}" for name, shape in self.described().items())


def describe(
    outputs: Any, is_output: Callable[[Any], bool], shape: Callable[[Any], Shape], model: str
) -> Outputs | None:
    """Describe a model's outputs: a tuple or a dict with text keys, whose values the backend calls
    outputs, such as tensors of floating-point numbers with a row for each row. None for others."""
    items = _items(outputs)
    if not items or not all(is_output(value) for _, value in items):
        return None
    names = tuple(name for name, _ in items)
    shapes = tuple(shape(value) for _, value in items)
    return Outputs(names, shapes, isinstance(outputs, Mapping), model)


def _items(outputs: Any) -> Sequence[tuple[str, Any]] | None:
    """Return names and values; None if they are neither of a tuple nor of a dict."""
    if isinstance(outputs, Mapping):
        items = list(outputs.items())
        return items if all(isinstance(name, str) for name, _ in items) else None
    if isinstance(outputs, tuple | list):
        return [(str(i), value) for i, value in enumerate(outputs)]
    return None
