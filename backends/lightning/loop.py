"""Training in chunks: K updates in one `training_step` of a LightningModule, under a Lightning
Trainer.

Legend of shapes: K updates, A micro-batches an update, B rows each, n = all rows of a chunk.
"""

import io
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.lightning import device, exact, layers, losses, optimizers
from backends.lightning.imports import pl
from backends.lightning.schedule import TableLR
from runner.data.dataset import Scaling
from runner.data.order import Chunk
from runner.spec import ModelSpec, OnChunk, Report, RunSpec, TrainState

_PRECISION: dict[str, Any] = {
    "float32": "32-true",
    "float64": "64-true",
    "bf16-mixed": "bf16-mixed",
    "exact": "64-true",
}


class _Native:
    """What most precisions train with: torch.nn, autograd, stock optimizers."""

    def __init__(self, run: RunSpec, start: TrainState, where: torch.device) -> None:
        self.run = run
        self.place = layers.Place(run.seed)
        dtype = torch.from_numpy(np.empty(0, run.dtype)).dtype
        self.network = layers.Network(run.network, self.place).to(where, dtype)
        layers.load_state(self.network, start)
        tensors = self.network.named()
        self.weights = {name: tensors[name] for name in start.weights}
        self.buffer_names, self.slot_names = list(start.buffers), list(start.slots)
        self.loss = losses.build(run.loss)
        self.call = layers.direct(self.network)
        self.forward = (
            layers.compiled(self._forward, self.network) if run.compile else self._forward
        )
        self.compile_seconds, self._compiled_for = 0.0, set[torch.Size]()
        self.one = torch.ones((), dtype=dtype, device=where)
        self.x = None if run.x is None else torch.from_numpy(run.x).to(where)
        self.y = torch.from_numpy(run.y).to(where)
        flats = optimizers.flatten(self.weights, run.groups)
        self.flats = [flat for own in flats for flat in own]
        self.optimizer = optimizers.build(run.optimizer, flats, run.groups)
        optimizers.load_slots(run.optimizer, self.optimizer, self.flats, start.slots, start.step)
        self.apply = optimizers.update(run.optimizer, self.optimizer)
        self._totals: list[Tensor] = []

    def _forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.call(x)
        return z, self.loss(z, y)

    def update(
        self, step: int, batches: Sequence[tuple[Tensor, Tensor]], num_rows: int
    ) -> list[Tensor]:
        """One update from its micro-batches of num_rows rows; the outputs of each."""
        outputs = []
        self.place.step, self.place.micro_batch = step, 0
        for flat in self.flats:
            flat.forget()
        before = (
            [buffer.clone() for buffer in self.network.buffers()] if self.run.skip_nonfinite else []
        )
        shares = []
        for x, y in batches:
            began = time.perf_counter()
            z, share = self.forward(x, y)
            if num_rows != len(x):
                share = share * (len(x) / num_rows)
            _backward(share, self.one)
            if self.run.compile and x.shape not in self._compiled_for:
                self._compiled_for.add(x.shape)
                self.compile_seconds += time.perf_counter() - began
            shares.append(share.detach())
            outputs.append(z.detach())
            self.place.micro_batch += 1
        total = sum(shares[1:], shares[0])
        self._totals.append(total)
        if self.run.skip_nonfinite and not bool(torch.isfinite(total)):
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)
            optimizers.pass_over(self.optimizer)
            return outputs
        if self.run.gradient_clip_norm is not None:
            optimizers.clip_by_global_norm(
                [flat.gradient for flat in self.flats], self.run.gradient_clip_norm
            )
        self.apply()
        return outputs

    def losses(self) -> Tensor:
        """The mean loss, before each update, of the updates since it was last asked for."""
        totals, self._totals = torch.stack(self._totals), []
        return totals

    def state(self, step: int) -> TrainState:
        slots = optimizers.save_slots(
            self.run.optimizer, self.optimizer, self.flats, self.slot_names
        )
        weights, buffers = (
            layers.save(self.network, names) for names in (list(self.weights), self.buffer_names)
        )
        return TrainState(step, weights, slots, buffers)


def _backward(loss: Tensor, one: Tensor) -> None:
    """loss.backward(), without what it looks at before it calls the engine: a fifth of the pass of
    a small network."""
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


class Module(pl.LightningModule):
    """The network, its loss and its optimizer, as the seam's `Live`."""

    def __init__(self, run: RunSpec, start: TrainState, where: torch.device) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run, self.step = run, start.step
        self.work: Any = (exact.Work if run.precision == "exact" else _Native)(run, start, where)
        self.network, self.optimizer = self.work.network, self.work.optimizer
        self.schedule = TableLR(self.optimizer, run, start.step)

    def configure_optimizers(self) -> Any:
        return {"optimizer": self.optimizer, "lr_scheduler": self.schedule}

    def training_step(self, chunk: Chunk, index: int) -> None:
        """The chunk's updates, one after another; its report is left in `self.report`."""
        work = self.work
        applied, outputs = [], []
        where, resident = work.y.device, chunk.x is None
        blocks = [torch.from_numpy(block).to(where) for block in chunk.blocks]
        given = (
            [work.x[b] for b in blocks]
            if resident
            else [torch.from_numpy(x).to(where) for x in chunk.given()]
        )
        # pairs of x  # [B, ...] and y, K * A of each block, which is gathered at once
        data = [
            [*zip(x.flatten(0, 1).unbind(), work.y[block].flatten(0, 1).unbind(), strict=True)]
            for x, block in zip(given, blocks, strict=True)
        ]
        of_each = [(pairs, len(pairs) // chunk.num_steps) for pairs in data]
        for k in range(chunk.num_steps):
            applied.append(self.schedule.read())
            batches = [pair for pairs, num in of_each for pair in pairs[k * num : (k + 1) * num]]
            outputs += work.update(self.step + k, batches, chunk.rows_per_step)
            self.schedule.step()
        self.step += chunk.num_steps
        self._count(chunk.num_steps)
        self.report = Report(
            losses=_to_numpy(work.losses()),
            applied=self.run.as_applied(np.array(applied).T),
            outputs=_to_numpy(torch.cat(outputs)),
            compile_seconds=work.compile_seconds,
        )
        work.compile_seconds = 0.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The Trainer's call before the first update. The gradients stay where they are: the
        optimizer looks there."""
        super().zero_grad(set_to_none=False)

    def _count(self, num_steps: int) -> None:
        """The Trainer counts updates of its own wrapper; these went past it."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for tracker in (progress.total, progress.current):
            tracker.ready += num_steps
            tracker.completed += num_steps

    def state(self) -> TrainState:
        return self.work.state(self.step)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return _predict(self.network, self.run, x)

    def use_rates(self, rates: np.ndarray) -> None:
        self.schedule.use(rates)


class _AfterChunk(pl.Callback):
    """Tells the runner of each chunk, and stops the Trainer when it says so."""

    def __init__(self, on_chunk: OnChunk) -> None:
        self.on_chunk = on_chunk

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = not self.on_chunk(batch, module.report, module)


class _Loader:
    """The chunks as what the Trainer calls batches."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)


@contextmanager
def _subnormals_flushed() -> Iterator[None]:
    """Below the smallest normal number arithmetic gives 0, as TensorFlow's does by itself. What is
    left of the moments of a weight without gradients would stay there for ever, and the processor
    takes tens of times as long for it."""
    kept = bool(torch.tensor(5e-324, dtype=torch.float64) * 1 > 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not kept)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Lightning's logger says at INFO which devices there are and which other products to
    install."""
    logger = logging.getLogger(pl.__name__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@_subnormals_flushed()
@_without_advice()
def train(
    run: RunSpec, start: TrainState, chunks: Iterable[Chunk], on_chunk: OnChunk
) -> TrainState:
    where = device.resolve(run.device)
    module = Module(run, start, where)
    trainer = pl.Trainer(
        **device.trainer_arguments(where),
        precision=_PRECISION[run.precision],
        max_epochs=1,
        callbacks=[_AfterChunk(on_chunk)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # SIGTERM is the runner's, as in Keras: it saves between two chunks. Lightning's handler would
    # end the process.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    with device.threads(run.threads):
        trainer.fit(module, _Loader(chunks))
    return module.state()


def predict(model: ModelSpec, state: TrainState, x: np.ndarray) -> np.ndarray:
    with device.threads(model.threads):
        return _predict(_network(model, state, layers.Place(0)), model, x)


def native_model(model: ModelSpec, state: TrainState) -> nn.Module:
    return _network(model, state, None).cpu().eval()


def export(
    model: ModelSpec,
    state: TrainState,
    path: Path,
    x_scaling: Scaling | None = None,
    y_scaling: Scaling | None = None,
) -> None:
    """A torch.export program with any number of rows; torch.export.load(path).module() is the
    model. It takes raw rows and gives targets in the data's units: around the network it scales in
    float64."""
    network = native_model(model, state)
    if x_scaling or y_scaling:
        network = _Raw(network, x_scaling, y_scaling)
    example = torch.zeros(
        2, *model.network.input_shape, dtype=torch.from_numpy(np.empty(0, model.dtype)).dtype
    )
    rows = {"x": {0: torch.export.Dim("rows", min=1)}}
    content = io.BytesIO()  # where a disk is full, torch's own writer ends the process
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=rows), content)
    path.write_bytes(content.getbuffer())


class _Raw(nn.Module):
    """A network between the scaling of its rows and that of its outputs."""

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


def _network(model: ModelSpec, state: TrainState, place: layers.Place | None) -> nn.Module:
    if place and model.precision == "exact":
        return exact.Network(model, state, device.resolve(model.device))
    network = layers.Network(model.network, place)
    dtype = torch.from_numpy(np.empty(0, model.dtype)).dtype
    network.to(device.resolve(model.device), dtype)
    layers.load_state(network, state)
    return network


def _predict(network: nn.Module, model: ModelSpec, x: np.ndarray) -> np.ndarray:
    where = next(network.parameters()).device
    mixed = torch.autocast(where.type, torch.bfloat16, enabled=model.precision == "bf16-mixed")
    training = network.training
    network.eval()
    with torch.inference_mode(), mixed:
        rows = torch.from_numpy(x).split(model.batch_size * 8)
        outputs = [_to_numpy(network(batch.to(where))) for batch in rows]
    network.train(training)
    return np.concatenate(outputs) if outputs else np.empty((0, *model.network.output_shape))


def _to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
