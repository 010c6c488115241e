"""The average of the weights (runner/components/averages.py)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.lightning import fast
from runner.components.optimizers import AVERAGE_WEIGHTS
from runner.spec import RunSpec, TrainState


class Average:
    """Averages the trained weights, a buffer of `flats` at a time."""

    def __init__(
        self,
        run: RunSpec,
        flats: Sequence[Any],
        start: TrainState,
        to_torch: Callable[[np.ndarray], Tensor],
    ) -> None:
        assert run.average_shares is not None
        self._shares = run.average_shares.tolist()
        self._weights = [flat.buffer for flat in flats]
        self._buffers = [torch.empty_like(weights) for weights in self._weights]
        self.views: dict[str, Tensor] = {}
        for flat, buffer in zip(flats, self._buffers, strict=True):
            self.views |= flat.views(buffer)
        # those of frozen weights keep their values
        self._frozen = dict(start.slots[AVERAGE_WEIGHTS])
        for name, view in self.views.items():
            view.copy_(to_torch(self._frozen.pop(name)))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after update `step`."""
        share = self._shares[step]
        if share:
            fast.lerp(self._buffers, self._weights, share)

    def save(self, to_canonical: Callable[[Tensor], np.ndarray]) -> dict[str, np.ndarray]:
        """Return a canonical copy."""
        return {**self._frozen, **{name: to_canonical(view) for name, view in self.views.items()}}


@contextmanager
def swapped(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give weights other values in the block."""
    before = {name: weights[name].detach().clone() for name in values}
    with torch.no_grad():
        for name, value in values.items():
            weights[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                weights[name].copy_(value)
