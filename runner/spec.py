"""The seam: the interface between the runner (what a run means) and the backends (how a framework
does it), and the data that passes through it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from runner.components import averages, clipping, width
from runner.components.custom import Built, CustomNetwork, Source
from runner.components.layers import Network, Shape, initial_variables
from runner.components.optimizers import LEARNING_RATE, TRAINING_WEIGHTS, Group, kinds
from runner.components.twins import Trace
from runner.data.dataset import Scaling
from runner.data.order import Chunk
from runner.data.source import Batch, Field
from runner.schedules.units import Periods

# "dense_0/kernel" -> float[in, out]: one canonical layout for every framework
Weights = Mapping[str, np.ndarray]
# name -> the optimizer's setting at each update t, rounded once  # [T] each
Tables = Mapping[str, np.ndarray]
Precision = Literal["float32", "float64", "bf16-mixed", "16-mixed", "exact"]
*_first, _last = (name for name in get_args(Precision) if name != "exact")
INEXACT = f"{', '.join(_first)} or {_last}"  # the other precisions, in errors
_MOST_BATCHES, _LARGEST_OUTPUT = 8, 2**22  # of a forward pass; bytes of a layer's output in it


@dataclass(frozen=True)
class ModelSpec:
    """A model for prediction: rows -> outputs."""

    network: Network
    precision: Precision
    device: str  # as configured: auto, cpu, cuda, cuda:N, mps
    batch_size: int
    threads: int  # per operation of the framework; float32 sums depend on it
    tf32: bool  # products of float32 have inputs of 10 bits, on GPUs that have such units

    @property
    def dtype(self) -> np.dtype:
        """The dtype of weights, slots, data and rates. bf16-mixed computes in bfloat16,
        16-mixed in float16; exact computes in float64, with float32 values."""
        return np.dtype(np.float64 if self.precision == "float64" else np.float32)

    @property
    def input_dtype(self) -> np.dtype:
        """The dtype of x: int32 for token ids, else that of the weights."""
        return np.dtype(np.int32) if self.network.takes_tokens else self.dtype

    @property
    def rows_per_pass(self) -> int:
        """The rows of a forward pass in an evaluation: up to eight batches, as long as the output
        of no layer takes more than 4 MB; at least one batch."""
        batch_bytes = self.batch_size * self.network.widest() * self.dtype.itemsize
        return self.batch_size * min(max(_LARGEST_OUTPUT // batch_bytes, 1), _MOST_BATCHES)


@dataclass(frozen=True)
class World:
    """The processes that train one run together, and the number of this one."""

    rank: int = 0
    size: int = 1
    addresses: tuple[str, ...] = ()  # HOST:PORT of each process, for the framework's collectives

    def cut(self, num_rows: int) -> tuple[int, int]:
        """Return the first row of this process's part of a batch, and the one after its last row.
        The parts are consecutive; their sizes differ by at most one row and may be 0."""
        return self.rank * num_rows // self.size, (self.rank + 1) * num_rows // self.size

    def share(self, num_rows: int, batch: int) -> np.ndarray:
        """Return the rows that this process evaluates: those of the batches rank, rank + P, rank +
        2 P, ... of `batch` rows each, in order.  # int64[n]"""
        rows = np.arange(num_rows)
        return rows[rows // batch % self.size == self.rank]

    def part(self, chunk: Chunk) -> Chunk:
        """Return this process's part of a chunk, without fields: its part of each micro-batch."""
        sizes = chunk.batch_sizes
        blocks = (
            block[:, :, slice(*self.cut(size))]
            for block, size in zip(chunk.blocks, sizes, strict=True)
        )
        return chunk._replace(blocks=tuple(map(np.ascontiguousarray, blocks)), sizes=sizes)


@dataclass(frozen=True)
class RunSpec(ModelSpec):
    """Everything that determines the numbers of a training run."""

    fields: Batch  # the training rows' fields that are in memory
    streamed: Mapping[str, Field]  # the other fields; each chunk contains its own rows of them
    loss: Any  # of runner.components.losses
    optimizer: Any  # runner.components.optimizers.Optimizer
    tables: Tables
    groups: Sequence[Group]  # weights by rate and decay; the first group's rate is eta(t)
    gradient_clip_norm: float | None
    gradient_clip_value: float | None
    seed: int
    largest_chunk: int
    epochs: Periods  # the updates at which they begin
    accumulate: int  # micro-batches of an update
    keeps_outputs: bool  # reports contain the network's outputs
    # if the loss is NaN or infinite, an update does not change weights, slots and buffers
    skip_nonfinite: bool
    compile: bool  # compile with torch.compile or XLA, also where that is not the default
    # share of the weights in their average at each update  # float64[T]; None: no average
    average_shares: np.ndarray | None = None
    recomputes: bool = False  # keeps the inputs of the network's blocks alone for the backward pass
    world: World = World()
    # each process of `world` keeps a part of the weights, gradients and slots
    divides: bool = False
    measures_norms: bool = False  # Live.gradient_norms is called: all processes take part
    # False: batch norm in training has the statistics of this process's rows, and each update ends
    # with the mean of the processes' running statistics
    syncs_batch_norm: bool = True

    @property
    def num_steps(self) -> int:
        """T, the number of updates of the whole run."""
        return len(self.tables[LEARNING_RATE])

    @property
    def scales_loss(self) -> bool:
        """True if the gradient is computed with a scale (runner.components.loss_scale)."""
        return self.precision == "16-mixed"

    @property
    def clips(self) -> Sequence[clipping.Clip]:
        """The limits of the gradients: first the trainer's, of all weights without another one."""
        return clipping.rules(self.groups, self.gradient_clip_norm, self.gradient_clip_value)

    @property
    def has_weights(self) -> bool:
        """True if the training rows have weights."""
        return "weight" in self.fields or "weight" in self.streamed

    @property
    def weighs_positions(self) -> bool:
        """True if each position of a row has a weight; their sum is the row's."""
        if not self.has_weights:
            return False
        fields: Mapping[str, Any] = self.fields if "weight" in self.fields else self.streamed
        shape = fields["weight"].shape
        return len(shape) > (1 if "weight" in self.fields else 0)

    @property
    def scheduled(self) -> dict[str, np.ndarray]:
        """The tables of hyperparameters other than the learning rate.  # float64[T] each"""
        rates = {group.rate for group in self.groups} | {LEARNING_RATE}
        return {name: table for name, table in self.tables.items() if name not in rates}


def tables(
    rates: Mapping[str, np.ndarray],
    groups: Iterable[Group],
    hyperparameters: Mapping[str, np.ndarray],
    dtype: np.dtype,
) -> Tables:
    """Build the tables of the optimizer's settings: `learning_rate`, and for groups with another
    factor or schedule `learning_rate*FACTOR/MATCH`, which is the schedule's rate times FACTOR,
    rounded once to `dtype`; then the scheduled hyperparameters in float64. `rates` maps "" to
    eta(t), and Group.scheduled_by to the rates of a schedule of groups.  # [T] each"""
    by_name = {group.rate: group for group in groups}
    by_rate = {
        name: (rates[group.scheduled_by] * group.lr_factor).astype(dtype)
        for name, group in by_name.items()
    }
    return {**by_rate, **hyperparameters}


def read_back(like: Tables, values: Iterable[Any]) -> Tables:
    """Build tables from values that were read from the optimizer, with the names, the order and the
    dtypes of `like`."""
    return {
        name: np.asarray(value, dtype=table.dtype)
        for (name, table), value in zip(like.items(), values, strict=True)
    }


@dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs, independent of the framework.

    Its mappings are sorted by name: safetensors returns tensors in varying order, and the order of
    a mapping would change the rounding of a sum over it.
    """

    step: int  # applied updates so far
    weights: Weights
    # the optimizer's state by its standard name: "momentum", "first_moment", ...; the user's own
    # optimizer has the framework's names
    slots: Mapping[str, Weights]
    buffers: Weights  # batch norm's running statistics

    def for_training(self) -> "TrainState":
        """Return the state with the weights that training continues from. `weights` are those for
        evaluation; with the user's own optimizer, they may differ."""
        return replace(self, weights={**self.weights, **self.slots.get(TRAINING_WEIGHTS, {})})

    def __post_init__(self) -> None:
        slots = {slot: _by_name(values) for slot, values in self.slots.items()}
        ordered = {
            "weights": _by_name(self.weights),
            "slots": _by_name(slots),
            "buffers": _by_name(self.buffers),
        }
        for name, values in ordered.items():
            object.__setattr__(self, name, values)  # the dataclass is frozen


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


@dataclass(frozen=True)
class Report:
    """Results of a chunk of K updates on n rows. Losses and outputs are from before each update."""

    losses: np.ndarray  # dtype[K]
    # [K] each, like RunSpec.tables, but read from the framework's optimizer; then any loss_scale
    applied: Tables
    # float[n, C], in the order of Chunk.rows; None without RunSpec.keeps_outputs
    outputs: np.ndarray | None
    # numbers that the user's own model logged in each update, by column of metrics.csv  # [K] each
    logged: Mapping[str, np.ndarray] = field(default_factory=dict)
    compile_seconds: float = 0.0  # of calls that compiled something, with the rest of their work


@dataclass(frozen=True)
class Measured:
    """Results of code of the user's own on rows that are not trained on, by column of metrics.csv
    for validation: "val/loss", "val_acc", ..."""

    rows: Mapping[str, np.ndarray]  # what is averaged over the rows  # float64[n] each
    numbers: Mapping[str, float] = field(default_factory=dict)  # of all rows together
    outputs: np.ndarray | None = None  # float[n, C], if they were asked for


class Live(Protocol):
    """The model during training, between two chunks."""

    def state(self) -> TrainState: ...

    def measure(
        self, batches: Iterable[Batch], keeps_outputs: bool, numbers: Iterable[int] | None = None
    ) -> Measured:
        """Compute the loss of the user's own code, and what it logs, as in evaluation. `numbers`
        are those of the blocks of batch_size rows among all rows, from which random numbers follow;
        None: 0, 1, 2, ..."""
        ...

    def gradient_norms(self, chunk: Chunk) -> Mapping[str, float]:
        """Return the norm of each weight's gradient in an update, before clipping. The update is
        not made, and nothing changes; `chunk` has it alone."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which `predict` and `measure` use the average of the weights."""
        ...

    def end_epoch(self, is_whole: bool) -> Mapping[str, float]:
        """Return what the user's own model has measured over the epoch's training rows. If the
        epoch is whole, begin the next one."""
        ...

    def predict(self, rows: Batch) -> np.ndarray:
        """Return the network's outputs, as in evaluation.  # float[n, C]"""
        ...

    def use_tables(self, tables: Tables) -> None:
        """Replace the tables by others with the same names, from the next update on."""
        ...


class Divided(Live, Protocol):
    """The model of one of several processes that divide the weights. All of them must call `state`,
    of which rank 0 gets the result, and make equally many forward passes, in the same order:
    `predict` makes one for 8 `batch_size` rows, `measure` one for `batch_size`."""

    def take_part(self, num_passes: int) -> None:
        """Make forward passes that other processes need, and drop the outputs."""
        ...

    def num_bytes(self) -> Mapping[str, int]:
        """Count the bytes of this process's weights and optimizer state. This is local."""
        ...


OnChunk = Callable[[Chunk, Report, Live], bool]  # False ends the training
OnChunkStart = Callable[[Chunk, Live], None]


def ignore(chunk: Chunk, live: Live) -> None:
    """An OnChunkStart that does nothing."""


class Engine(Protocol):
    """Applies updates inside a backend. native.py and exact.py define one each, and loop.py uses
    either. Its tensors are the framework's."""

    def update(
        self, step: Any, batches: Sequence[Mapping[str, Any]], num_rows: int
    ) -> tuple[Any, list[Any]]:
        """Make one update from its micro-batches, num_rows rows in all. Return the input of
        `losses` for this update, and each micro-batch's outputs, from before the update."""
        ...

    def losses(self, loss_terms: Any) -> Any:
        """Return the mean losses of K updates, from what `update` returned.  # [K]"""
        ...

    def state(self, step: int) -> TrainState:
        """Read back the weights, slots and scalars after `step` updates."""


@dataclass(frozen=True)
class About:
    """A backend's description of itself, in backends/NAME/about.py, which imports no framework."""

    name: str
    distribution: str  # what pip installs
    packages: Sequence[str]  # environment.json records their versions
    precisions: Sequence[str]
    exports: Mapping[str, str] = field(default_factory=dict)  # format of task=export -> file
    has_profiler: bool = True
    # raises ConfigError for a config that the backend cannot run
    refuse: Callable[[Any], None] = lambda config: None
    # trainer.compile=auto, on a CPU: whether compiling this network pays within so many updates
    pays_to_compile: Callable[[Network, int], bool] = lambda net, num_steps: False
    # prepares a process of the command line for its framework
    tune: Callable[[], None] = lambda: None
    # environment variables during the framework's import; they replace the user's values
    environment: Mapping[str, str] = field(default_factory=dict)


class Operation(NamedTuple):
    """An operation of a framework, as its profiler records it."""

    name: str
    calls: int
    seconds: float  # of all calls, without the operations inside them


class Profiler(Protocol):
    """The framework's own profiler."""

    trace: Path  # what it has written, for a viewer

    def start(self, live: Live) -> None:
        """Begin to record."""
        ...

    def stop(self) -> Sequence[Operation]:
        """Write the trace. Return the operations, those that take the most time first; none if they
        are unknown."""
        ...


class Backend(Protocol):
    """A framework. A backend never initialises, shuffles, seeds, saves or reports by itself."""

    name: str

    def devices(self) -> Sequence[str]:
        """List the devices of this machine: "cpu", "cuda:0", "mps", ..."""
        ...

    def device_peak_bytes(self, requested: str) -> int | None:
        """Return the largest memory of tensors on the accelerator so far; None on the CPU."""
        ...

    def can_use_threads(self, num: int) -> bool:
        """Return whether this process can train with `num` threads. A framework that cannot change
        the number later fixes it here."""
        ...

    def join(self, world: World) -> None:
        """Join the other processes of the run, if the framework can only do so before it computes.
        A second call does nothing."""
        ...

    def fixed_threads(self) -> int | None:
        """Return the number of threads that a run in Python must use, because the framework has one
        number for the whole process; None if every run can have its own."""
        ...

    def inspect(
        self,
        source: Source,
        input_shape: Shape,
        precision: Precision,
        seed: int,
        example: Batch | None = None,
    ) -> Built:
        """Build the user's own model with the run's seed, and describe it. With some rows as an
        example, try on them what it computes and logs itself."""
        ...

    def check_loss(self, loss: Any, example: Batch, model: ModelSpec) -> None:
        """Try a loss function of the user's own on zeros as outputs. Raise ConfigError if it does
        not fit."""
        ...

    def read_weights(self, path: Path, model: ModelSpec) -> Mapping[str, np.ndarray]:
        """Read a file of the framework with weights of the user's own model, with the names that
        the model has. Raise ConfigError for another kind of file."""
        ...

    def check_optimizer(self, optimizer: Any, model: ModelSpec, groups: Sequence[Group]) -> None:
        """Raise ConfigError if the user's own optimizer cannot train the model."""
        ...

    def train(
        self,
        run: RunSpec,
        start: TrainState,
        chunks: Iterable[Chunk],
        on_chunk: OnChunk,
        on_chunk_start: OnChunkStart = ignore,
    ) -> TrainState:
        """Apply the chunks' updates to `start`; call `on_chunk_start` before and `on_chunk` after
        each chunk. Return the state after the last one."""
        ...

    def observers(self, natives: Mapping[str, Any], has_validation: bool) -> Sequence[Any]:
        """Return observers that call the framework's callbacks, by their names for errors. Raise
        ConfigError for what a callback needs and the runner does not do."""
        ...

    def profiler(self, run: RunSpec, folder: Path) -> Profiler:
        """Return the framework's profiler. It writes into `folder`."""
        ...

    def predict(self, model: ModelSpec, state: TrainState, rows: Batch) -> np.ndarray:
        """Return the network's outputs, as in evaluation.  # float[n, C]"""
        ...

    def trace(self, model: ModelSpec, state: TrainState, rows: Batch, loss: Any) -> Trace:
        """Run one batch through a twin's model, forward and backward; return what every layer
        computed, with the framework's names and layouts. If `loss` is None, it is the mean of the
        squares of all outputs."""
        ...

    def layer_outputs(
        self, model: ModelSpec, state: TrainState, rows: Batch
    ) -> Sequence[tuple[str, np.ndarray]]:
        """Return the output of each layer for some rows, as in training, in the order in which the
        layers end: those inside a layer come before it. Names are those of the framework's
        layers; numbers only."""
        ...

    def measure(
        self,
        model: ModelSpec,
        state: TrainState,
        loss: Any,
        batches: Iterable[Batch],
        keeps_outputs: bool,
    ) -> Measured:
        """Like Live.measure, with the weights of a checkpoint."""
        ...

    def native_model(self, model: ModelSpec, state: TrainState) -> Any:
        """Return the framework's own model with these weights, for evaluation. It has stock layers
        where the framework has them."""
        ...

    def export(
        self,
        model: ModelSpec,
        state: TrainState,
        path: Path,
        x_scaling: Scaling | None = None,
        y_scaling: Scaling | None = None,
    ) -> None:
        """Write the native model to a file that loads without this project. With the scalings, it
        takes raw rows and returns outputs in the data's units."""
        ...


def first_state(network: Network, optimizer: Any, dtype: np.dtype, seed: int) -> TrainState:
    """Return fresh weights and slots, at step 0."""
    if isinstance(network, CustomNetwork):
        weights, buffers = network.built.weights, network.built.buffers
        return TrainState(0, weights, first_slots(network, optimizer, weights), buffers)
    scales = width.scales(optimizer, network)
    values = {
        name: (value * scales[name].first if name in scales else value).astype(dtype)
        for name, value in initial_variables(network, seed).items()
    }
    trainable = {name for name, variable in network.variables().items() if variable.trainable}
    weights = {name: value for name, value in values.items() if name in trainable}
    buffers = {name: value for name, value in values.items() if name not in trainable}
    return TrainState(0, weights, first_slots(network, optimizer, weights), buffers)


def first_slots(network: Network, optimizer: Any, weights: Weights) -> Mapping[str, Weights]:
    """Return the slots before the first update from these weights; some slots hold the weights."""
    slots: Mapping[str, Weights] = optimizer.initial_slots(weights, kinds(optimizer, network))
    return {**slots, **averages.initial_slots(optimizer, weights)}
