"""The data that flows, and the seam between what a run means (runner/) and how a framework does it
(backends/)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from runner.components.layers import Network, initial_variables
from runner.components.optimizers import Group
from runner.data.dataset import Scaling
from runner.data.order import Chunk

# "dense_0/kernel" -> float[in, out]: one canonical layout for every framework
Weights = Mapping[str, np.ndarray]
Precision = Literal["float32", "float64", "bf16-mixed", "exact"]


@dataclass(frozen=True)
class ModelSpec:
    """What turns rows into outputs: enough to predict."""

    network: Network
    precision: Precision
    device: str  # what was asked for: auto, cpu, cuda, cuda:N, mps
    batch_size: int
    threads: int  # of one operation of the framework: sums of float32 depend on it

    @property
    def dtype(self) -> np.dtype:
        """Of weights, slots, data and rates; bf16-mixed computes in bfloat16, exact in float64 that
        holds float32's numbers."""
        return np.dtype(np.float64 if self.precision == "float64" else np.float32)


@dataclass(frozen=True)
class RunSpec(ModelSpec):
    """Everything that fixes the numbers of a training run."""

    x: np.ndarray | None  # dtype[N, ...], the training rows; None: each chunk brings its own
    y: np.ndarray  # labels int64[N], or targets dtype[N, C]
    loss: Any  # runner.losses.Loss
    optimizer: Any  # runner.optimizers.Optimizer
    rates: np.ndarray  # float64[T]: eta(t); cast once to dtype, looked up, never computed again
    hyperparameters: Mapping[str, np.ndarray]  # scheduled ones by name, float64[T]
    groups: Sequence[Group]  # of weights, by rate and decay; the first one's rate is eta(t)
    gradient_clip_norm: float | None
    seed: int
    largest_chunk: int
    # an update whose loss is NaN or infinite leaves weights, slots and buffers as they were
    skip_nonfinite: bool
    compile: bool  # by torch.compile or XLA, what is not compiled anyway

    @property
    def applied_names(self) -> list[str]:
        """What the framework's optimizer is set to at every update: `learning_rate`,
        `learning_rate*FACTOR` of the groups with another rate, then the scheduled
        hyperparameters."""
        return [
            *dict.fromkeys(rate_name(group.lr_factor) for group in self.groups),
            *self.hyperparameters,
        ]

    def applied(self, rates: np.ndarray) -> dict[str, np.ndarray]:
        """`applied_names` -> the values of every update: lr_factor eta(t) rounded once to dtype;
        float64 of the others."""
        factors = {rate_name(group.lr_factor): group.lr_factor for group in self.groups}
        tables = {name: (rates * factor).astype(self.dtype) for name, factor in factors.items()}
        return {**tables, **self.hyperparameters}

    def as_applied(self, values: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """What was read back of K updates, [K] for each of `applied_names`, as a report has it."""
        return {
            name: np.asarray(
                value, dtype=np.float64 if name in self.hyperparameters else self.dtype
            )
            for name, value in zip(self.applied_names, values, strict=True)
        }


def rate_name(factor: float) -> str:
    return "learning_rate" if factor == 1 else f"learning_rate*{factor!r}"


@dataclass(frozen=True)
class TrainState:
    """Everything a continuation needs, and nothing of a framework. Its mappings are sorted by name,
    whatever order they come in: safetensors returns tensors in another order each time, and a sum
    in the order of a mapping rounds by it.
    """

    step: int  # applied updates so far
    weights: Weights
    # the optimizer's memory by its standard name: "momentum", "first_moment", ...
    slots: Mapping[str, Weights]
    buffers: Weights  # batch norm's running statistics

    def __post_init__(self) -> None:
        slots = {slot: _by_name(values) for slot, values in self.slots.items()}
        ordered = {
            "weights": _by_name(self.weights),
            "slots": _by_name(slots),
            "buffers": _by_name(self.buffers),
        }
        for name, values in ordered.items():
            object.__setattr__(self, name, values)  # the way of a frozen dataclass


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


@dataclass(frozen=True)
class Report:
    """What a chunk of K updates on n rows did. Losses and outputs are of the weights before each
    update."""

    losses: np.ndarray  # dtype[K]
    applied: Mapping[
        str, np.ndarray
    ]  # [K] each, as RunSpec.applied names them: read back from the framework's optimizer
    outputs: np.ndarray  # float[n, C], in the order of Chunk.rows
    compile_seconds: float = 0.0  # of calls that were compiled first, their own work included


class Live(Protocol):
    """The model while it trains, between two chunks."""

    def state(self) -> TrainState: ...

    def predict(self, x: np.ndarray) -> np.ndarray: ...

    def use_rates(self, rates: np.ndarray) -> None:
        """Another table eta(t) than RunSpec's, from the next update on.  # float64[T]"""
        ...


OnChunk = Callable[[Chunk, Report, Live], bool]  # False ends the training


class Backend(Protocol):
    """A framework. It never initialises, shuffles, seeds, saves or reports by itself."""

    name: str

    def devices(self) -> Sequence[str]:
        """What is there: "cpu", "cuda:0", "mps", ..."""
        ...

    def can_use_threads(self, num: int) -> bool:
        """Return whether this process can train with so many threads. A framework that keeps its
        first number takes it here."""
        ...

    def train(
        self, run: RunSpec, start: TrainState, chunks: Iterable[Chunk], on_chunk: OnChunk
    ) -> TrainState:
        """Apply the chunks' updates to `start`, telling each; the state after the last."""
        ...

    def predict(self, model: ModelSpec, state: TrainState, x: np.ndarray) -> np.ndarray:
        """The network's outputs for rows x, float[N, C], as in evaluation."""
        ...

    def native_model(self, model: ModelSpec, state: TrainState) -> Any:
        """The framework's own model with these weights, of stock parts where the framework has
        them, for evaluation."""
        ...

    def export(
        self,
        model: ModelSpec,
        state: TrainState,
        path: Path,
        x_scaling: Scaling | None = None,
        y_scaling: Scaling | None = None,
    ) -> None:
        """The same in a file that loads without this project, with the scalings around it: from raw
        rows to outputs in the data's units."""
        ...


def first_state(network: Network, optimizer: Any, dtype: np.dtype, seed: int) -> TrainState:
    """Fresh weights and slots at step 0."""
    values = {name: value.astype(dtype) for name, value in initial_variables(network, seed).items()}
    trainable = {name for name, variable in network.variables().items() if variable.trainable}
    weights = {name: value for name, value in values.items() if name in trainable}
    buffers = {name: value for name, value in values.items() if name not in trainable}
    return TrainState(0, weights, optimizer.initial_slots(weights), buffers)
