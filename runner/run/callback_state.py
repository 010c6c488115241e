"""The state of a framework's callback as JSON: numbers, texts, lists, tuples, dicts, NumPy arrays
and the framework's tensors. Arrays are exact: their bytes in base64."""

import base64
import functools
import logging
import math
import re
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

# what a callback may hold without being a state: it cannot change, or is code
_CONSTANT = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type),
    *(functools.partial, PurePath, re.Pattern, logging.Logger),
)


class UnsavedError(Exception):
    """A value that a checkpoint cannot hold. Its text says which."""


def is_constant(value: Any) -> bool:
    """Return whether a value is code, or cannot change."""
    return isinstance(value, _CONSTANT)


def encode(value: Any, name: str) -> Any:
    """Return JSON for a value. Raise UnsavedError for one of another type; `name` is its name."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"@float": repr(value)}
    if type(value) is list:
        return [encode(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
    if type(value) is tuple:
        return {"@tuple": encode(list(value), name)}
    if type(value) is dict:
        items = [(key, encode(inner, f"{name}[{key!r}]")) for key, inner in value.items()]
        if all(isinstance(key, str) and not key.startswith("@") for key in value):
            return dict(items)
        return {"@dict": [[encode(key, f"a key of {name}"), inner] for key, inner in items]}
    if isinstance(value, np.ndarray | np.generic):
        return {"@array": _bytes(np.asarray(value), name)}
    if all(hasattr(value, each) for each in ("numpy", "shape", "dtype")):
        return {"@tensor": _bytes(_array(value, name), name)}
    raise UnsavedError(f"{name} is a {type(value).__module__}.{type(value).__qualname__}")


def decode(value: Any, to_tensor: Callable[[np.ndarray], Any]) -> Any:
    """Undo `encode`. `to_tensor` makes a tensor of the framework."""
    if isinstance(value, list):
        return [decode(inner, to_tensor) for inner in value]
    if not isinstance(value, Mapping):
        return value
    if [*value] == ["@float"]:
        return float(value["@float"])
    if [*value] == ["@tuple"]:
        return tuple(decode(value["@tuple"], to_tensor))
    if [*value] == ["@dict"]:
        return {decode(key, to_tensor): decode(inner, to_tensor) for key, inner in value["@dict"]}
    if [*value] == ["@array"]:
        return _from_bytes(*value["@array"])
    if [*value] == ["@tensor"]:
        return to_tensor(_from_bytes(*value["@tensor"]))
    return {key: decode(inner, to_tensor) for key, inner in value.items()}


def _array(tensor: Any, name: str) -> np.ndarray:
    """Return a framework's tensor as an array."""
    try:
        tensor = tensor.detach().cpu() if hasattr(tensor, "detach") else tensor
        return np.asarray(tensor.numpy())
    except Exception as error:
        raise UnsavedError(f"{name} is a tensor of {tensor.dtype}") from error


def _bytes(array: np.ndarray, name: str) -> list[Any]:
    if array.dtype.kind not in "biufc" or array.dtype.isbuiltin != 1:
        raise UnsavedError(f"{name} is an array of {array.dtype}")
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return [array.dtype.str, list(array.shape), content]


def _from_bytes(dtype: str, shape: list[int], content: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(content), np.dtype(dtype)).reshape(shape).copy()
