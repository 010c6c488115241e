"""Training in chunks: K updates in one `training_step` of a LightningModule, under a Lightning
Trainer.

Legend of shapes: K updates, A micro-batches per update, B rows each, n = all rows of a chunk.
"""

import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn

from backends.lightning import (
    custom,
    device,
    exact,
    fast,
    layers,
    native,
    objective,
    own_optimizer,
    programs,
    tracing,
)
from backends.lightning.schedule import TableLR
from runner.components.loss_scale import SLOT
from runner.components.optimizers import Custom, Group
from runner.data.dataset import Scaling
from runner.data.order import Chunk
from runner.data.source import Batch
from runner.errors import ConfigError
from runner.spec import (
    Measured,
    ModelSpec,
    OnChunk,
    OnChunkStart,
    Report,
    RunSpec,
    Tables,
    TrainState,
    ignore,
    read_back,
)

_PRECISION: dict[str, Any] = {
    "float32": "32-true",
    "float64": "64-true",
    "bf16-mixed": "bf16-mixed",
    "16-mixed": "32-true",  # the engine casts: Lightning has no float16 on the CPU
    "exact": "64-true",
}


class Module(pl.LightningModule):
    """The network, its loss and its optimizer. Implements `runner.spec.Divided`."""

    def __init__(
        self,
        run: RunSpec,
        start: TrainState,
        torch_device: torch.device,
        on_chunk_start: OnChunkStart,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.on_chunk_start = on_chunk_start
        self.run, self.torch_device, self.step = run, torch_device, start.step
        self.engine = _engine(run)(run, start, torch_device)
        self.network, self.optimizer = self.engine.network, self.engine.optimizer
        self.schedule = TableLR(self.optimizer, run, start.step)
        self.steps = getattr(self.engine, "steps", None)

    def configure_optimizers(self) -> Any:
        return {"optimizer": self.optimizer, "lr_scheduler": self.schedule}

    def training_step(self, chunk: Chunk, index: int) -> None:
        """Make the chunk's updates, one after another. Stores the results in `self.report`."""
        self.on_chunk_start(chunk, self)
        engine = self.engine
        applied, loss_terms, outputs, scales = [], [], [], []
        logged: dict[str, list[float]] = {}
        blocks = [[*_batches(fields)] for fields in self.fields_of(chunk)]
        counted = [(block, len(block) // chunk.num_steps) for block in blocks]
        parts = {"sizes": chunk.micro_batch_sizes} if self.run.world.size > 1 else {}
        num_rows, scales_loss = chunk.rows_per_step, self.run.scales_loss
        for k in range(chunk.num_steps):
            applied.append(self.schedule.read())
            if scales_loss:
                scales.append(engine.loss_scale.scale)
            batches = [batch for block, num in counted for batch in block[k * num : (k + 1) * num]]
            loss_term, z = engine.update(self.step + k, batches, num_rows, **parts)
            loss_terms.append(loss_term)
            outputs += z
            if self.steps is not None:
                for name, value in self.steps.take().items():
                    logged.setdefault(name, []).append(value)
            self.schedule.step()
        self.step += chunk.num_steps
        fast.count(self.trainer, chunk.num_steps)
        self.report = Report(
            losses=_to_numpy(engine.losses(loss_terms)),
            applied={
                **read_back(self.run.tables, np.array(applied).T),
                **({SLOT: np.array(scales)} if scales_loss else {}),
            },
            outputs=_to_numpy(torch.cat(outputs)) if self.run.keeps_outputs else None,
            logged={name: np.array(values) for name, values in logged.items()},
            compile_seconds=engine.compile_seconds,
        )
        engine.compile_seconds = 0.0

    def fields_of(self, chunk: Chunk) -> Iterator[dict[str, Tensor]]:
        """Yield the fields of each block, with one gather per field.  # [K, A, B, ...] each"""
        streamed = {name: chunk.by_block(name) for name in chunk.fields}
        for i, block in enumerate(chunk.blocks):
            rows = torch.from_numpy(block).to(self.torch_device)
            in_memory = {name: values[rows] for name, values in self.engine.fields.items()}
            yield in_memory | {
                name: torch.from_numpy(v[i]).to(self.torch_device) for name, v in streamed.items()
            }

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients in place, since the optimizer reads the same memory. The Trainer calls
        this before the first update."""
        super().zero_grad(set_to_none=False)

    def state(self) -> TrainState:
        return self.engine.state(self.step)

    def predict(self, rows: Batch) -> np.ndarray:
        with self.engine.evaluation():
            return _predict(self.network, self.run, rows)

    def measure(
        self, batches: Iterable[Batch], keeps_outputs: bool, numbers: Iterable[int] | None = None
    ) -> Measured:
        run, network, randomness = self.run, self.network, self.engine.randomness
        known = None if numbers is None else [*numbers]

        def seed(index: int) -> None:
            if randomness is not None:
                number = index if known is None else known[index]
                randomness.seed_validation(self.step, number)

        with self.engine.evaluation():
            function = self.engine.own_loss
            return objective.measure(function, network, run, batches, keeps_outputs, seed)

    def take_part(self, num_passes: int) -> None:
        row = np.zeros((1, *self.run.network.input_shape), self.run.input_dtype)
        for _ in range(num_passes):
            self.predict({"x": row})

    def num_bytes(self) -> Mapping[str, int]:
        num_bytes: Mapping[str, int] = self.engine.num_bytes()
        return num_bytes

    def gradient_norms(self, chunk: Chunk) -> Mapping[str, float]:
        batches = [batch for fields in self.fields_of(chunk) for batch in _batches(fields)]
        norms: Mapping[str, float]
        parts = {"sizes": chunk.micro_batch_sizes} if self.run.world.size > 1 else {}
        norms = self.engine.gradient_norms(self.step, batches, chunk.rows_per_step, **parts)
        return norms

    def averaged(self) -> AbstractContextManager[None]:
        averaged: AbstractContextManager[None] = self.engine.averaged()
        return averaged

    def end_epoch(self, is_whole: bool) -> Mapping[str, float]:
        return {} if self.steps is None else self.steps.end_epoch(is_whole)

    def use_tables(self, tables: Tables) -> None:
        self.schedule.use(tables)


def _engine(run: RunSpec) -> Any:
    if run.precision == "exact":
        return exact.Engine
    if run.divides:
        from backends.lightning import sharded  # the import takes half a second

        return sharded.Engine
    return native.Engine


def _batches(fields: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Return a block's micro-batches, in order of use.  # [K, A, B, ...] -> K * A of [B, ...]"""
    columns = [values.flatten(0, 1).unbind() for values in fields.values()]
    return (dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True))


class _AfterChunk(pl.Callback):
    """Calls `on_chunk` after each chunk, and stops the Trainer if it returns False."""

    def __init__(self, on_chunk: OnChunk) -> None:
        self.on_chunk = on_chunk

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = not self.on_chunk(batch, module.report, module)


class _Loader:
    """The chunks as batches for the Trainer."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)


@contextmanager
def _subnormals_flushed() -> Iterator[None]:
    """Flush subnormal numbers to 0 in the block, as TensorFlow does by default. The moments of a
    weight without gradients decay to subnormal numbers and stay there; arithmetic on them takes
    tens of times as long."""
    kept_before = bool(torch.tensor(5e-324, dtype=torch.float64) * 1 > 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not kept_before)


@contextmanager
def _without_info_messages() -> Iterator[None]:
    """Silence Lightning's INFO messages in the block: they list devices and advertise products."""
    logger = logging.getLogger(pl.__name__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@_subnormals_flushed()
@_without_info_messages()
def train(
    run: RunSpec,
    start: TrainState,
    chunks: Iterable[Chunk],
    on_chunk: OnChunk,
    on_chunk_start: OnChunkStart = ignore,
) -> TrainState:
    torch_device = device.resolve(run.device)
    module = Module(run, start, torch_device, on_chunk_start)
    trainer = fast.make_trainer(
        **device.trainer_arguments(torch_device),
        # it would take the processes of a launcher in the environment for its own
        plugins=[LightningEnvironment()] if run.world.size > 1 else None,
        precision=_PRECISION[run.precision],
        max_epochs=1,
        callbacks=[_AfterChunk(on_chunk)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    fast.keep_signal_handlers(trainer)
    with (
        device.settings(run),
        device.random_state(torch_device),
        programs.kept(run) if run.compile else nullcontext(),
    ):
        if module.steps is not None:
            module.steps.begin_fit(start.step, run.num_steps, run.epochs, run.accumulate)
        try:
            trainer.fit(module, _Loader(chunks))
        finally:
            module.engine.close()
        if module.steps is not None:
            module.steps.end_fit()
    return module.state()


def check_optimizer(spec: Custom, model: ModelSpec, groups: Sequence[Group]) -> None:
    network = native.network(model, None)
    own_optimizer.check(spec, network, groups, getattr(network, "model", None))


def predict(model: ModelSpec, state: TrainState, rows: Batch) -> np.ndarray:
    with device.settings(model):
        return _predict(_network(model, state, layers.DropoutState(0)), model, rows)


def layer_outputs(
    model: ModelSpec, state: TrainState, rows: Batch
) -> Sequence[tuple[str, np.ndarray]]:
    dropout_state = layers.DropoutState(0)
    network = _network(model, state, dropout_state)
    torch_device = next(network.parameters()).device
    network.train()
    with (
        torch.no_grad(),
        device.settings(model),
        device.random_state(torch_device),
        device.autocast(model.precision, torch_device),
        tracing.outputs_of_layers(network) as found,
    ):
        custom.Randomness(dropout_state, torch_device).seed()  # as training does
        network(torch.from_numpy(rows["x"]).to(torch_device))
    return [(name, _to_numpy(tensor)) for name, tensor in found]


def measure(
    model: ModelSpec, state: TrainState, loss: Any, batches: Iterable[Batch], keeps_outputs: bool
) -> Measured:
    with device.settings(model):
        network = _network(model, state, layers.DropoutState(0))
        function = objective.own_function(loss)
        return objective.measure(function, network, model, batches, keeps_outputs)


def native_model(model: ModelSpec, state: TrainState) -> nn.Module:
    network = _network(model, state, None).cpu().eval()
    return network.model if isinstance(network, custom.Network) else network


def export(
    model: ModelSpec,
    state: TrainState,
    path: Path,
    x_scaling: Scaling | None = None,
    y_scaling: Scaling | None = None,
) -> None:
    """Write a torch.export program for any number of rows; torch.export.load(path).module() is the
    model. For a path with the suffix .onnx, write an ONNX model. With the scalings, it takes raw
    rows and returns outputs in the data's units. It scales in float64."""
    network = _network(model, state, None).cpu().eval()
    if x_scaling or y_scaling:
        network = _Raw(network, x_scaling, y_scaling)
    example = torch.from_numpy(np.zeros((2, *model.network.input_shape), model.input_dtype))
    rows = {"x": {0: torch.export.Dim("rows", min=1)}}
    if path.suffix == ".onnx":
        several = model.network.outputs
        names = ["y"] if several is None else [*several.names]
        path.write_bytes(_onnx(network, example, rows, names))
        return
    content = io.BytesIO()  # if the disk is full, torch's file writer ends the process
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=rows), content)
    path.write_bytes(content.getbuffer())


def _onnx(network: nn.Module, example: Tensor, rows: Any, names: Sequence[str]) -> bytes:
    """Return the ONNX model that torch's exporter makes of a torch.export program."""
    try:
        import onnxscript  # noqa: F401  what torch.onnx needs
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"format=onnx needs the package {error.name}, which is not installed: pip install "
            f"'twinrun[onnx]'"
        ) from None
    program = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=rows, input_names=["x"],
        output_names=names, external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


class _Raw(nn.Module):
    """A network that takes raw rows and returns outputs in the data's units."""

    x_offset: Tensor
    x_scale: Tensor
    y_offset: Tensor
    y_scale: Tensor

    def __init__(self, network: nn.Module, x: Scaling | None, y: Scaling | None) -> None:
        super().__init__()
        self.network = network
        self.scales_x, self.scales_y = x is not None, y is not None
        for name, scaling in (("x", x), ("y", y)):
            if scaling is not None:
                self.register_buffer(f"{name}_offset", torch.from_numpy(scaling.offset))
                self.register_buffer(f"{name}_scale", torch.from_numpy(scaling.scale))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if self.scales_x:
            x = ((x.double() - self.x_offset) / self.x_scale).to(dtype)
        y: Tensor = self.network(x)
        return (y.double() * self.y_scale + self.y_offset).to(dtype) if self.scales_y else y


def _network(
    model: ModelSpec, state: TrainState, dropout_state: layers.DropoutState | None
) -> nn.Module:
    if dropout_state and model.precision == "exact":
        return exact.Network(model, state, device.resolve(model.device))
    network = native.network(model, dropout_state).to(device.resolve(model.device))
    layers.load_state(network, state)
    return network


def _predict(network: nn.Module, model: ModelSpec, rows: Batch) -> np.ndarray:
    torch_device = next(network.parameters()).device
    mixed = device.autocast(model.precision, torch_device)
    training = network.training
    network.eval()
    # tensors that FSDP2 allocates in inference mode could not be trained with
    divided = getattr(network, "is_divided", False)
    with torch.no_grad() if divided else torch.inference_mode(), mixed:
        parts = torch.from_numpy(rows["x"]).split(model.rows_per_pass)
        outputs = [_to_numpy(network(x.to(torch_device))) for x in parts]
    network.train(training)
    return np.concatenate(outputs) if outputs else np.empty((0, *model.network.output_shape))


def _to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype in device.SHORT else tensor).numpy()
    return array
