"""The average of the weights (runner/components/averages.py)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.lightning import fast
from runner.components import averages
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
        self._flats = flats
        self._weights = [flat.buffer for flat in flats]
        self._slots = averages.slots(run.optimizer)
        self._buffers, *self._earlier = (
            [torch.empty_like(weights) for weights in self._weights] for _ in self._slots
        )
        self.views = self._views(self._buffers)
        # those of frozen weights keep their values
        self._frozen = {
            name: v for name, v in start.slots[self._slots[0]].items() if name not in self.views
        }
        for slot, buffers in zip(self._slots, [self._buffers, *self._earlier], strict=True):
            for flat, buffer in zip(flats, buffers, strict=True):
                values = {name: to_torch(start.slots[slot][name]) for name in flat.names}
                flat.fill(buffer, values)

    def _views(self, buffers: Sequence[Tensor]) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for flat, buffer in zip(self._flats, buffers, strict=True):
            views |= flat.views(buffer)
        return views

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after update `step`."""
        share = self._shares[step]
        if self._earlier and 0 < share < 1:
            self._average_ends(averages.num_averaged(share))
        elif share:
            for buffers in [self._buffers, *self._earlier]:
                fast.lerp(buffers, self._weights, share)

    def _average_ends(self, num: int) -> None:
        """Set the average to the mean of the weights and of `num` - 1 earlier ones, and keep the
        weights as the first of these."""
        fast.lerp(self._buffers, self._weights, 1.0)
        for i, earlier in enumerate(self._earlier[: num - 1], 1):
            fast.lerp(self._buffers, earlier, 1 / (i + 1))
        oldest = self._earlier.pop()
        fast.lerp(oldest, self._weights, 1.0)
        self._earlier.insert(0, oldest)

    def save(
        self, to_canonical: Callable[[Tensor], np.ndarray]
    ) -> dict[str, Mapping[str, np.ndarray]]:
        """Return canonical copies of the slots."""
        return {
            slot: {
                **self._frozen,
                **{name: to_canonical(value) for name, value in self._whole(buffers).items()},
            }
            for slot, buffers in zip(self._slots, [self._buffers, *self._earlier], strict=True)
        }

    def num_bytes(self) -> int:
        return sum(each.nbytes for buffers in [self._buffers, *self._earlier] for each in buffers)

    def _whole(self, buffers: Sequence[Tensor]) -> dict[str, Tensor]:
        pairs = zip(self._flats, buffers, strict=True)
        return {name: v for flat, buffer in pairs for name, v in flat.whole(buffer).items()}


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
