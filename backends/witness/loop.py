"""Exact mode in NumPy: chunks of updates, one after another."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from runner.data.dataset import Scaling
from runner.data.order import Chunk
from runner.errors import ConfigError
from runner.exact import gradient, optimizers, rules
from runner.exact.layers import Pass
from runner.exact.network import Layout, forward
from runner.exact.reference import NumPy
from runner.spec import ModelSpec, OnChunk, Report, RunSpec, TrainState, Weights, rate_name


class _Live:
    """A run between two chunks."""

    def __init__(self, run: RunSpec, start: TrainState) -> None:
        self.run, self.o, self.layout, self.step = (
            run,
            NumPy(),
            Layout.of(run.network, run.groups),
            start.step,
        )
        self.weights = rules.r(self.layout.pack(start.weights))
        self.slots = {
            slot: rules.r(self.layout.pack(values)) for slot, values in start.slots.items()
        }
        self.buffers = {name: rules.r(value) for name, value in start.buffers.items()}
        self.x = rules.r(run.x)
        self.y = run.y if run.loss.name == "cross_entropy" else rules.r(run.y)
        self.applied = run.applied(run.rates)
        self.tables = optimizers.tables(run.optimizer, len(run.rates), run.hyperparameters)

    def train(self, chunk: Chunk) -> Report:
        losses, outputs = [], []
        for k in range(chunk.num_steps):
            batches = [(self.x[rows], self.y[rows]) for block in chunk.blocks for rows in block[k]]
            g, self.buffers, z = gradient.gradient(
                self.o,
                self.run,
                self.layout,
                self.layout.views(self.o, self.weights),
                self.buffers,
                batches,
                chunk.rows_per_step,
                self.run.seed,
                self.step,
            )
            scalars, scheduled = (
                {name: values[self.step] for name, values in tables.items()}
                for tables in (self.tables, self.run.hyperparameters)
            )
            h = optimizers.InForce(self.o, self.run.optimizer, scheduled, scalars)
            rates = [
                np.float64(self.applied[rate_name(group.lr_factor)][self.step])
                for group, _ in self.layout.parts
            ]
            self.weights, self.slots = optimizers.update_all(
                h, self.layout, self.weights, g, self.slots, rates
            )
            losses += list(
                gradient.losses(
                    self.o, self.run, [(a, y) for a, (_, y) in zip(z, batches, strict=True)], 1
                )
            )
            outputs += z
            self.step += 1
        made = slice(chunk.first_step, chunk.first_step + chunk.num_steps)
        means, joined = (
            np.asarray(values, np.float32) for values in (losses, np.concatenate(outputs))
        )
        return Report(
            means, self.run.as_applied([values[made] for values in self.applied.values()]), joined
        )

    def state(self) -> TrainState:
        rules.finite(self.weights)
        slots = {slot: self.layout.unpack(values) for slot, values in self.slots.items()}
        buffers = {name: np.array(value, np.float32) for name, value in self.buffers.items()}
        return TrainState(self.step, self.layout.unpack(self.weights), slots, buffers)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return predict(self.run, self.state(), x)

    def use_rates(self, rates: np.ndarray) -> None:
        self.applied = self.run.applied(rates)


def devices() -> list[str]:
    return ["cpu"]


def can_use_threads(num: int) -> bool:
    return True


def train(
    run: RunSpec, start: TrainState, chunks: Iterable[Chunk], on_chunk: OnChunk
) -> TrainState:
    live = _Live(run, start)
    with threadpool_limits(run.threads, "blas"):
        for chunk in chunks:
            if not on_chunk(chunk, live.train(chunk), live):
                break
    return live.state()


def predict(model: ModelSpec, state: TrainState, x: np.ndarray) -> np.ndarray:
    values = {name: rules.r(value) for name, value in {**state.weights, **state.buffers}.items()}
    size = model.batch_size * 8
    outputs = [_evaluate(model, values, x[i : i + size]) for i in range(0, len(x), size)]
    return (
        np.concatenate(outputs)
        if outputs
        else np.empty((0, *model.network.output_shape), np.float32)
    )


def native_model(model: ModelSpec, state: TrainState) -> Any:
    raise ConfigError(
        "backend=witness has no native model; backend=lightning and backend=keras have one each"
    )


def export(
    model: ModelSpec,
    state: TrainState,
    path: Path,
    x_scaling: Scaling | None = None,
    y_scaling: Scaling | None = None,
) -> None:
    native_model(model, state)


def _evaluate(model: ModelSpec, values: Weights, x: np.ndarray) -> np.ndarray:
    z, _ = forward(Pass(NumPy(), dict(values)), model.network.nodes, rules.r(x))
    return z.astype(np.float32)
