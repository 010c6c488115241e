"""The ways in which the primitives are there."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf
import torch

from backends.keras.exact import TensorFlow
from backends.lightning.exact import Torch
from runner.exact.reference import NumPy

# (primitives, *tensors) -> tensors, or numbers where a way has such
Function = Callable[..., Sequence[Any]]

NUMPY = NumPy()
TORCH = Torch(torch.device("cpu"))
TENSORFLOW = TensorFlow()


def numpy(function: Function, *given: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(value, np.float64) for value in function(NUMPY, *given)]


def _torch(function: Function, *given: np.ndarray) -> list[np.ndarray]:
    found = function(TORCH, *(torch.from_numpy(value.copy()) for value in given))
    return [np.array(value, np.float64) for value in found]


def _eager(function: Function, *given: np.ndarray) -> list[np.ndarray]:
    return [np.array(value, np.float64) for value in function(TENSORFLOW, *map(tf.constant, given))]


@cache
def _traced(function: Function, jit: bool) -> Any:
    return tf.function(
        lambda *given: [tf.cast(value, tf.float64) for value in function(TENSORFLOW, *given)],
        jit_compile=jit,
        autograph=False,
    )


def _graph(function: Function, *given: np.ndarray) -> list[np.ndarray]:
    return [np.array(value) for value in _traced(function, False)(*map(tf.constant, given))]


def _xla(function: Function, *given: np.ndarray) -> list[np.ndarray]:
    return [np.array(value) for value in _traced(function, True)(*map(tf.constant, given))]


WAYS: dict[str, Callable[..., list[np.ndarray]]] = {
    "torch": _torch,
    "tensorflow": _eager,
    "graph": _graph,
    "xla": _xla,
}
WITH_WITNESS = {"numpy": numpy, **WAYS}
