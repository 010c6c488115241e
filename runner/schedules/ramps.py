"""How far a phase has come, and the curves it may follow.

With local step k = 0 ... N-1 of a phase of N steps, s = 1 if the start value is skipped and e = 1 if the end value is
not reached within the phase:

    u(k) = (k + s) / (N - 1 + s + e), clipped to [0, 1]

| edge  | u               | who does so                                            |
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
Edge = Literal["left", "right", "inner", "both"]
Shape = Literal["linear", "cosine"]

_SKIPS: dict[str, tuple[int, int]] = {"left": (0, 1), "right": (1, 0), "inner": (1, 1), "both": (0, 0)}

# Rising from 0 to 1 over the progress u; a fall is 1 minus it.
RISE: dict[str, Callable[[Array], Array]] = {
    "linear": lambda u: u,
    "cosine": lambda u: (1 - np.cos(np.pi * u)) / 2,
}


def progress(k: Array, num_steps: int, edge: Edge) -> Array:
    """u(k) of the module's formula, float64 of k's shape. A phase of no steps, or of one with `both`, is over at once."""
    skip_start, skip_end = _SKIPS[edge]
    length = num_steps - 1 + skip_start + skip_end
    if length <= 0:
        return np.ones(k.shape)
    return np.clip((k + skip_start) / length, 0.0, 1.0)
