"""callbacks=[norms]: the norms of gradients and weights."""

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from runner.components.custom import layer_of
from runner.data.order import Chunk
from runner.plan import Plan
from runner.run.callbacks.rows import Rows
from runner.spec import Backend, Live
from runner.text.console import Console

FILE = "norms.csv"


class Norms(Rows):
    """Appends a row to norms.csv for the first update of each period: the norm of its gradient
    before clipping, and the norm of the weights before it.

    A norm is the square root of the sum of the squares of all numbers, of the whole model
    (gradient_norm, weight_norm) and of each layer (gradient_norm/LAYER, weight_norm/LAYER). Frozen
    weights have no gradient. The gradient is computed once more for it, with the rows and the
    dropout masks of the update; the run itself does not change.
    """

    of_updates = True

    def __init__(
        self, section: Any, plan: Plan, backend: Backend, path: Path, console: Console
    ) -> None:
        self._periods = plan.periods("every", section.every)
        names = [name for names in plan.network.layers() for name in names]
        self._layers = list(dict.fromkeys(map(layer_of, names)))
        parts = ["", *(f"/{layer}" for layer in self._layers)]
        columns = [f"{kind}{part}" for part in parts for kind in ("gradient_norm", "weight_norm")]
        super().__init__(plan, path / FILE, columns)

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        super().on_chunk_start(chunk, live)
        if self._periods.index(chunk.first_step) != 0:
            return
        weights = live.state().for_training().weights
        squares = {name: float(np.sum(np.square(v, dtype=float))) for name, v in weights.items()}
        gradients = {name: norm**2 for name, norm in live.gradient_norms(chunk.first).items()}
        values = self._summed("gradient_norm", gradients) | self._summed("weight_norm", squares)
        self.append(chunk.first_step, values)

    def _summed(self, kind: str, squares: Mapping[str, float]) -> dict[str, float]:
        """Return the norms of the layers and of all of them, by column."""
        found = {kind: sqrt(sum(squares.values()))}
        for layer in self._layers:
            own = [square for name, square in squares.items() if layer_of(name) == layer]
            if own:
                found[f"{kind}/{layer}"] = sqrt(sum(own))
        return found
