"""The engine in NumPy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from backends.witness import distributed
from runner.components.optimizers import AVERAGE_WEIGHTS
from runner.data.source import Batch
from runner.exact import gradient, optimizers, rules
from runner.exact.hyperparameters import Hyperparameters
from runner.exact.network import Layout
from runner.exact.reference import NumPy
from runner.exact.state import StateLayout
from runner.spec import RunSpec, TrainState


class Engine:
    """Trains all weights as one float64 vector, with the updates of runner.exact."""

    def __init__(self, run: RunSpec, start: TrainState) -> None:
        together = distributed.connect(run.world) if run.world.size > 1 else None
        self.run, self.o, self.layout = run, NumPy(together), Layout.of(run.network, run.groups)
        self.weights = rules.r(self.layout.pack(start.for_training().weights))
        self.state_layout = StateLayout.of(self.layout, start.slots)
        self.slots = self.state_layout.pack(start.slots)
        self.buffers = {name: rules.r(value) for name, value in start.buffers.items()}
        self.integers = gradient.integer_fields(run)
        self.fields = {name: self.field(name, values) for name, values in run.fields.items()}
        self.tables, self.scheduled = run.tables, run.scheduled
        self.scalars = optimizers.tables_of(run)

    def field(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return a field's integers, or its numbers rounded by R."""
        return values if name in self.integers else rules.r(values)

    def update(
        self, step: int, batches: Sequence[Batch], sizes: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Make one update. Return the mean loss and each micro-batch's outputs, both from before
        the update."""
        o, run, weights = self.o, self.run, self.layout.views(self.o, self.weights)
        g, self.buffers, outputs = gradient.gradient(
            o, run, self.layout, weights, self.buffers, batches, sizes, run.seed, step
        )
        terms = [gradient.loss_terms(z, batch) for z, batch in zip(outputs, batches, strict=True)]
        (loss,) = gradient.losses(o, run, terms, sizes, 1)
        scheduled = {name: self.tables[name][step] for name in self.scheduled}
        scalars = {name: values[step] for name, values in self.scalars.items()}
        rates = [np.float64(self.tables[group.rate][step]) for group, _ in self.layout.parts]
        h = Hyperparameters(o, run.optimizer, scheduled, scalars)
        self.weights, self.slots = optimizers.update_all(
            h, self.state_layout, self.weights, g, self.slots, rates
        )
        return loss, [z.astype(np.float32) for z in outputs]

    def gradient_norms(
        self, step: int, batches: Sequence[Batch], sizes: Sequence[int]
    ) -> dict[str, float]:
        """Compute the gradient of an update without making it. Return its norm for each weight."""
        o, run, weights = self.o, self.run, self.layout.views(self.o, self.weights)
        vector, _, _ = gradient.gradient(
            o,
            run,
            self.layout,
            weights,
            self.buffers,
            batches,
            sizes,
            run.seed,
            step,
            clips=False,
        )
        return gradient.norms(run, self.layout, vector)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network the average of the weights in the block."""
        before, self.weights = self.weights, self.slots[AVERAGE_WEIGHTS]
        try:
            yield
        finally:
            self.weights = before

    def losses(self, loss_terms: Any) -> np.ndarray:
        """Return the updates' losses: `update` has computed them.  # float32[K]"""
        return np.asarray(loss_terms, np.float32)

    def state(self, step: int) -> TrainState:
        buffers = {name: np.array(value, np.float32) for name, value in self.buffers.items()}
        spec = self.run.optimizer
        return self.state_layout.state(spec, step, self.weights, self.slots, buffers)
