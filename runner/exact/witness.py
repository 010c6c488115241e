"""Exact mode in NumPy: the primitives, and a backend of its own, which no framework has touched. Slow, and the oracle."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from runner import random
from runner.data.dataset import Scaling
from runner.data.order import Chunk
from runner.errors import ConfigError, RunError
from runner.exact import gradient, optimizers, rules
from runner.exact.layers import Pass
from runner.exact.network import Layout, forward
from runner.exact.primitives import Pads
from runner.exact.tables import table
from runner.spec import ModelSpec, OnChunk, Report, RunSpec, TrainState, Weights, rate_name

Array = np.ndarray
_EXPONENT = 0x7FF0000000000000  # of a float64's bits


class NumPy:
    """The primitives."""

    def constant(self, value: Array) -> Array:
        return value

    def r(self, x: Any) -> Array:
        return rules.r(x)

    def rint(self, x: Array) -> Array:
        return np.rint(x)

    def grid(self, x: Array, bits: int, per_row: bool = False) -> tuple[Array, Array]:
        axes = tuple(range(1, x.ndim)) if per_row else None
        largest = np.max(np.abs(x), axis=axes, keepdims=per_row, initial=0.0)
        power, _ = self.power(np.maximum(largest, 2.0**-200))
        return np.rint(x * (2.0 ** (bits - 1) / power)), power * 2.0 ** (1 - bits)

    def plus(self, a: Array, b: Array, scale: Any) -> Array:
        return a + b * scale

    def sqrt(self, x: Array) -> Array:
        return np.sqrt(x)

    def abs(self, x: Array) -> Array:
        return np.abs(x)

    def maximum(self, a: Array, b: Array) -> Array:
        return np.maximum(a, b)

    def where(self, condition: Array, a: Any, b: Any) -> Array:
        return np.where(condition, a, b)

    def gate(self, g: Array, y: Array) -> Array:
        return np.where(y > 0.0, g, 0.0)

    def sum(self, x: Array, axes: tuple[int, ...], keep: bool = False) -> Array:
        return np.sum(x, axis=axes, keepdims=keep)

    def largest(self, x: Array) -> Array:
        return np.max(x, axis=-1, keepdims=True)

    def matmul(self, a: Array, b: Array) -> Array:
        return a @ b

    def transpose(self, a: Array) -> Array:
        return np.swapaxes(a, -1, -2)

    def permute(self, a: Array, axes: Sequence[int]) -> Array:
        return np.transpose(a, axes)

    def reverse(self, a: Array) -> Array:
        return a[::-1]

    def spread(self, x: Array, shape: Sequence[int]) -> Array:
        return np.broadcast_to(x, shape)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(shape)

    def join(self, parts: Sequence[Array]) -> Array:
        return np.concatenate([part.reshape(-1) for part in parts])

    def pad(self, x: Array, pads: Pads, value: float) -> Array:
        return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)

    def patches(self, x: Array, size: int, stride: int, pads: Pads) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(self.pad(x, pads, 0.0), (size, size), (1, 2))
        chosen = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)  # [N, H', W', size, size, C]
        return chosen.reshape(-1, size * size * x.shape[3])

    def fold(self, parts: Sequence[Array], size: int, stride: int, shape: tuple[int, int]) -> Array:
        num, height, width, channels = parts[0].shape
        whole = np.zeros((num, *shape, channels))
        for i, part in enumerate(parts):
            a, b = divmod(i, size)
            whole[:, a : a + stride * height : stride, b : b + stride * width : stride][:, :height, :width] += part
        return whole

    def power(self, x: Array) -> tuple[Array, Array]:
        bits = np.atleast_1d(x).view(np.int64) & _EXPONENT
        power, exponent = bits.view(np.float64), (bits >> 52) - 1023.0
        return power.reshape(np.shape(x)), exponent.reshape(np.shape(x))

    def split(self, x: Array, bits: int) -> tuple[Array, Array]:
        whole = x.astype(np.int64)
        return whole >> bits, whole & ((1 << bits) - 1)

    def real(self, index: Array) -> Array:
        return index.astype(np.float64)

    def take(self, name: str, index: Array) -> Array:
        return table(name)[index]

    def one_hot(self, labels: Array, num: int) -> Array:
        return np.eye(num)[labels]

    def keep(self, x: Array, rate: float, seed: int, layer_index: int, step: int, micro_batch: int) -> Array:
        return random.keep(x.size, rate, random.layer_key(seed, layer_index), step, micro_batch).reshape(x.shape)


class _Live:
    """A run between two chunks."""

    def __init__(self, run: RunSpec, start: TrainState) -> None:
        self.run, self.o, self.layout, self.step = run, NumPy(), Layout.of(run.network, run.groups), start.step
        self.weights = rules.r(self.layout.pack(start.weights))
        self.slots = {slot: rules.r(self.layout.pack(values)) for slot, values in start.slots.items()}
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
            rates = [np.float64(self.applied[rate_name(group.lr_factor)][self.step]) for group, _ in self.layout.parts]
            self.weights, self.slots = optimizers.update_all(h, self.layout, self.weights, g, self.slots, rates)
            losses += list(gradient.losses(self.o, self.run, [(a, y) for a, (_, y) in zip(z, batches, strict=True)], 1))
            outputs += z
            self.step += 1
        made = slice(chunk.first_step, chunk.first_step + chunk.num_steps)
        means, joined = (np.asarray(values, np.float32) for values in (losses, np.concatenate(outputs)))
        return Report(means, self.run.as_applied([values[made] for values in self.applied.values()]), joined)

    def state(self) -> TrainState:
        finite(self.weights)
        slots = {slot: self.layout.unpack(values) for slot, values in self.slots.items()}
        buffers = {name: np.array(value, np.float32) for name, value in self.buffers.items()}
        return TrainState(self.step, self.layout.unpack(self.weights), slots, buffers)

    def predict(self, x: Array) -> Array:
        return predict(self.run, self.state(), x)

    def use_rates(self, rates: Array) -> None:
        self.applied = self.run.applied(rates)


def finite(weights: Array) -> None:
    """Overflow of float32 ends a run: beyond it nothing is determined by the rules."""
    if not np.isfinite(weights).all():
        raise RunError("a weight is not finite: an update went beyond the range of float32")


name = "witness"


def devices() -> list[str]:
    return ["cpu"]


def can_use_threads(num: int) -> bool:
    return True


def train(run: RunSpec, start: TrainState, chunks: Iterable[Chunk], on_chunk: OnChunk) -> TrainState:
    live = _Live(run, start)
    with threadpool_limits(run.threads, "blas"):
        for chunk in chunks:
            if not on_chunk(chunk, live.train(chunk), live):
                break
    return live.state()


def predict(model: ModelSpec, state: TrainState, x: Array) -> Array:
    values = {name: rules.r(value) for name, value in {**state.weights, **state.buffers}.items()}
    size = model.batch_size * 8
    outputs = [_evaluate(model, values, x[i : i + size]) for i in range(0, len(x), size)]
    return np.concatenate(outputs) if outputs else np.empty((0, *model.network.output_shape), np.float32)


def native_model(model: ModelSpec, state: TrainState) -> Any:
    raise ConfigError("backend=witness has no native model; backend=lightning and backend=keras have one each")


def export(
    model: ModelSpec, state: TrainState, path: Path, x_scaling: Scaling | None = None, y_scaling: Scaling | None = None
) -> None:
    native_model(model, state)


def _evaluate(model: ModelSpec, values: Weights, x: Array) -> Array:
    z, _ = forward(Pass(NumPy(), dict(values)), model.network.nodes, rules.r(x))
    return z.astype(np.float32)
