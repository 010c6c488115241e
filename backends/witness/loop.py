"""Training in chunks: K updates, one after another."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from backends.witness.exact import Engine
from runner.data.dataset import Scaling
from runner.data.order import Chunk
from runner.data.source import Batch
from runner.errors import ConfigError
from runner.exact import rules
from runner.exact.layers import Pass
from runner.exact.network import forward
from runner.exact.reference import NumPy
from runner.spec import (
    Measured,
    ModelSpec,
    OnChunk,
    OnChunkStart,
    Report,
    RunSpec,
    Tables,
    TrainState,
    World,
    ignore,
    read_back,
)


class _Live:
    """The engine. Implements `runner.spec.Live`."""

    def __init__(self, run: RunSpec, start: TrainState) -> None:
        self.run, self.engine, self.step = run, Engine(run, start), start.step

    def train(self, chunk: Chunk) -> Report:
        """Make the chunk's updates, one after another."""
        loss_terms, outputs = [], []
        for batches in self._batches(chunk):
            loss_term, z = self.engine.update(self.step, batches, chunk.micro_batch_sizes)
            loss_terms.append(loss_term)
            outputs += z
            self.step += 1
        steps, tables = slice(self.step - chunk.num_steps, self.step), self.engine.tables
        applied = read_back(tables, [values[steps] for values in tables.values()])
        kept = np.concatenate(outputs) if self.run.keeps_outputs else None
        return Report(self.engine.losses(loss_terms), applied, kept)

    def _batches(self, chunk: Chunk) -> Iterator[list[dict[str, np.ndarray]]]:
        """Yield the micro-batches of each update."""
        fields, field = self.engine.fields, self.engine.field
        streamed = {
            name: [field(name, block) for block in chunk.by_block(name)] for name in chunk.fields
        }
        for k in range(chunk.num_steps):
            yield [
                {name: values[rows] for name, values in fields.items()}
                | {name: blocks[i][k, j] for name, blocks in streamed.items()}
                for i, block in enumerate(chunk.blocks)
                for j, rows in enumerate(block[k])
            ]

    def state(self) -> TrainState:
        return self.engine.state(self.step)

    def predict(self, rows: Batch) -> np.ndarray:
        return predict(self.run, self.state(), rows)

    def measure(
        self, batches: Iterable[Batch], keeps_outputs: bool, numbers: Iterable[int] | None = None
    ) -> Measured:
        raise AssertionError("exact mode has no code of the user's own")

    def gradient_norms(self, chunk: Chunk) -> Mapping[str, float]:
        (batches,) = self._batches(chunk)
        return self.engine.gradient_norms(self.step, batches, chunk.micro_batch_sizes)

    def averaged(self) -> AbstractContextManager[None]:
        return self.engine.averaged()

    def end_epoch(self, is_whole: bool) -> Mapping[str, float]:
        return {}

    def use_tables(self, tables: Tables) -> None:
        self.engine.tables = tables


def devices() -> list[str]:
    return ["cpu"]


def can_use_threads(num: int) -> bool:
    return True


def device_peak_bytes(requested: str) -> int | None:
    return None


def join(world: World) -> None:
    """Do nothing: the engine joins the other processes."""


def fixed_threads() -> int | None:
    return None


def train(
    run: RunSpec,
    start: TrainState,
    chunks: Iterable[Chunk],
    on_chunk: OnChunk,
    on_chunk_start: OnChunkStart = ignore,
) -> TrainState:
    live = _Live(run, start)
    with threadpool_limits(run.threads, "blas"):
        for chunk in chunks:
            on_chunk_start(chunk, live)
            if not on_chunk(chunk, live.train(chunk), live):
                break
    return live.state()


def predict(model: ModelSpec, state: TrainState, rows: Batch) -> np.ndarray:
    values = {name: rules.r(value) for name, value in {**state.weights, **state.buffers}.items()}
    x, size = rows["x"], model.rows_per_pass
    x = x if model.network.takes_tokens else rules.r(x)
    outputs = [
        forward(Pass(NumPy(), dict(values)), model.network.nodes, x[i : i + size])[0]
        for i in range(0, len(x), size)
    ]
    if not outputs:
        return np.empty((0, *model.network.output_shape), np.float32)
    return np.concatenate(outputs).astype(np.float32)


def native_model(model: ModelSpec, state: TrainState) -> Any:
    raise ConfigError("backend=witness has no native model; use backend=lightning or backend=keras")


def export(
    model: ModelSpec,
    state: TrainState,
    path: Path,
    x_scaling: Scaling | None = None,
    y_scaling: Scaling | None = None,
) -> None:
    native_model(model, state)
