"""The progress within a phase, and the shapes of a phase.

For the step k = 0 ... N-1 of a phase of N steps, with s = 1 if the start value is skipped and e = 1
if the end value is not reached within the phase:

    u(k) = (k + s) / (N - 1 + s + e), clipped to [0, 1]

| edge  | u               | used by                                                |
| ----- | --------------- | ------------------------------------------------------ |
| left  | k / N           | torch, Keras, Optax, Hugging Face, timm, Composer      |
| right | (k + 1) / N     | torchtitan's warm-up: its first update is not wasted   |
| inner | (k + 1) / (N+1) | NeMo's and nanoGPT's warm-up                           |
| both  | k / (N - 1)     | MMEngine, Ignite's warm-up, OneCycle's first phase     |
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

Array = np.ndarray
Fall = Callable[[Array], Array]  # from 1 to 0 over the progress u
Edge = Literal["left", "right", "inner", "both"]
Shape = Literal["linear", "cosine"]

_SKIPS: dict[str, tuple[int, int]] = {
    "left": (0, 1),
    "right": (1, 0),
    "inner": (1, 1),
    "both": (0, 0),
}


def progress(k: Array, num_steps: int, edge: Edge) -> Array:
    """Compute u(k) by the formula above, in float64. A phase of no steps, or of a single step with
    `both`, has u = 1."""
    skip_start, skip_end = _SKIPS[edge]
    length = num_steps - 1 + skip_start + skip_end
    if length <= 0:
        return np.ones(k.shape)
    return np.clip((k + skip_start) / length, 0.0, 1.0)


# Shapes of a fall from 1 to 0 over the progress u; a rise is 1 minus a fall.


def linear(u: Array) -> Array:
    """1 - u"""
    return 1 - u


def cosine(u: Array) -> Array:
    """(1 + cos(pi u)) / 2"""
    return (1 + np.cos(np.pi * u)) / 2


def polynomial(u: Array, power: float) -> Array:
    """(1 - u)^p: with p > 1, steeper at the beginning."""
    return np.power(1 - u, power)


def late(u: Array, power: float) -> Array:
    """1 - u^p: with p > 1, steeper at the end. p = 1/2 is WSD's 1 - sqrt (Haegele et al. 2024)."""
    return 1 - np.power(u, power)


def rex(u: Array, bend: float) -> Array:
    """z / ((1 - d) + d z), z = 1 - u: d = 0 is linear, a larger d falls later."""
    z = 1 - u
    return z / ((1 - bend) + bend * z)


def tanh(u: Array, lower: float, upper: float) -> Array:
    """(1 - tanh(a (1 - u) + b u)) / 2, a = `lower`, b = `upper`: nearly 1 at u = 0, nearly 0 at u =
    1."""
    return (1 - np.tanh(lower * (1 - u) + upper * u)) / 2


def geometric(u: Array, start: float, end: float) -> Array:
    """start (end / start)^u: from start to end by the same factor at each step."""
    return start * np.power(end / start, u)


def between(start: float | Array, end: float, fall: Array) -> Array:
    """end + (start - end) g: start where the fall g is 1, exactly end where it is 0."""
    return (start - end) * fall + end


def rise(shape: Shape, u: Array) -> Array:
    """The rise of a warm-up from 0 to 1: u, or (1 - cos(pi u)) / 2."""
    return u if shape == "linear" else (1 - np.cos(np.pi * u)) / 2
