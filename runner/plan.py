"""Build a run from its config: data, network, order, clock, rates. This module refuses everything
that can be refused without a framework."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from runner import dispatcher, schedules
from runner.components import alignment, averages, losses, metrics, optimizers, twins
from runner.components.cancelled import cancelled
from runner.components.custom import Built, CustomNetwork, Source
from runner.components.layers import (
    ANY_STEPS,
    Masking,
    Network,
    Node,
    Shape,
    fits_shape,
    needs_images,
    needs_tokens,
    network,
    show_wanted,
)
from runner.components.outputs import Outputs
from runner.components.twins import TwinNetwork
from runner.config import callbacks
from runner.config.schema import Config, CustomModel, LayerModel, ObjectModel, SizedPart, TwinModel
from runner.data import Dataset, Split, blocks, load, transforms
from runner.data.augment import Augment, augmented
from runner.data.dataset import Task, check_range
from runner.data.files import without_unscaled
from runner.data.iterable import Reader
from runner.data.masking import masked
from runner.data.mixing import Mixing, mixed, mixing_of
from runner.data.order import Chunks, InOrder, Order, begun, one_batch, segments
from runner.data.source import Batch, Field
from runner.data.splits import SPLIT_WORDS
from runner.dispatcher import BACKENDS
from runner.errors import ConfigError, nearest, show
from runner.exact.refuse import refuse
from runner.machine import devices, memory, threads
from runner.machine.work import flops
from runner.schedules import Clock, Plateau, lint
from runner.schedules.plateau import State
from runner.schedules.stall import Stall
from runner.schedules.units import Periods, split
from runner.spec import INEXACT, ModelSpec, RunSpec, Tables, World, tables
from runner.text import console

_NO_CODE = Built({}, {}, ())  # of a network of this project's layers
_MOST_IDS = 2**24
_PROFILED_CHUNK = 5  # updates
LEAST_PROFILED = 3  # updates of debug=profile: one of warm-up, one that is timed, one recorded
_TRIAL_ROWS = 10  # of labels at positions, on which a metric is tried
_CHUNK_BYTES = 16 * 2**20  # limit for the rows and outputs of one call of a framework


@dataclass(frozen=True)
class Plan:
    config: Config
    data: Dataset
    loss: Any
    metrics: dict[str, metrics.Metric]
    network: Network
    order: Order | InOrder
    clock: Clock
    model: ModelSpec
    groups: tuple[optimizers.Group, ...]
    hyperparameters: dict[str, np.ndarray]
    group_rates: dict[str, np.ndarray]  # of schedules in optimizer.groups, by their `match`
    compiled_before: bool | None = None  # what trainer.compile=auto chose before the run resumed

    @property
    def num_parameters(self) -> int:
        variables = self.network.variables().values()
        return sum(int(np.prod(v.shape)) for v in variables if v.trainable)

    def columns(self) -> list[str]:
        """Return the header of metrics.csv. A split without rows has no columns."""
        val = self.val_columns() if len(self.data.val) else []
        average = [f"{column}{self.of_average}" for column in val] if self.of_average else []
        return ["epoch", "step", *self.train_columns(), *val, *average, "seconds"]

    def train_columns(self) -> list[str]:
        """Return the columns of metrics.csv that are measured on the training rows."""
        by_row = [name for name, metric in self.metrics.items() if metric.by_row]
        by_row = by_row if self.keeps_train_outputs else []
        return [*(f"train/{name}" for name in ("loss", *by_row)), *self.built.train_columns]

    def val_columns(self) -> list[str]:
        """Return the columns of metrics.csv that are measured on the validation rows; on the test
        rows, the same ones are measured, also if there are no validation rows."""
        loss = [] if self.has_own_loss else ["val/loss"]
        return [*loss, *(f"val/{name}" for name in self.metrics), *self.built.val_columns]

    @property
    def of_average(self) -> str:
        """The ending of the validation columns that are measured with the average of the weights,
        such as _ema; empty without an average."""
        name = averages.name(self.config.optimizer)
        return "" if name is None else f"_{name}"

    @property
    def has_own_loss(self) -> bool:
        """True if the user's own model computes the loss."""
        return isinstance(self.loss, losses.Model)

    @property
    def is_measured_by_backend(self) -> bool:
        """True if code of the user's own computes the loss, or measures rows itself."""
        return losses.is_own(self.loss) or bool(self.built.val_columns)

    @property
    def built(self) -> Built:
        """The description of the user's own model; an empty one for other models."""
        network = self.network.native if isinstance(self.network, TwinNetwork) else self.network
        return network.built if isinstance(network, CustomNetwork) else _NO_CODE

    @property
    def notes(self) -> list[str]:
        """Sentences about the user's own data and model, and about batch norm by process."""
        notes = [] if self.data.stream is None else [self._note_on_stream()]
        if self.config.num_processes > 1 and not self.config.trainer.sync_batchnorm:
            notes.append(self._note_on_batch_norm())
        if self.network.outputs is not None:
            notes.append(self._note_on_outputs(self.network.outputs))
        if not self.built.is_repeatable:
            notes.append(
                "warning: two forward passes of the model differ under the same seed, so it draws "
                "random numbers that the run cannot seed; a resumed run is not bit-identical to a "
                "whole one"
            )
        is_kept = isinstance(self.config.optimizer, optimizers.OfModule)
        replaced = [m for m in self.built.unused if not (is_kept and m == "configure_optimizers")]
        if not replaced:
            return notes
        model = getattr(self.config.model, "object", None) or self.config.model.name
        return [*notes, f"model    {model}: the config replaces {', '.join(replaced)}"]

    def _note_on_batch_norm(self) -> str:
        """Say what trainer.sync_batchnorm=false does."""
        key, num = "trainer.sync_batchnorm=false", self.config.num_processes
        if not self.normalizes_by_process:
            return f"note: {key} has no effect: the model has no batch norm"
        return (
            f"note: {key}: batch norm has the statistics of the rows of each of {num} processes "
            f"alone, so the results depend on their number"
        )

    def _note_on_outputs(self, outputs: Outputs) -> str:
        """Say which outputs the model has, and in which units they are."""
        units = "" if self.data.y_scaling is None else ", as it returns them, for standardized y"
        return f"outputs  {outputs}{units}"

    def _note_on_stream(self) -> str:
        """Say how the rows of an iterable come, and which splits have no rows."""
        stream, data = self.data.stream, self.config.data
        note = f"stream   {stream.items.source} yields {stream.records.unit}"
        note += "es" if stream.is_batched else "s"
        keys = [f"{name}_fraction" for name in ("val", "test") if not len(getattr(self.data, name))]
        unused = [f"data.{key}={getattr(data, key):g}" for key in keys if getattr(data, key)]
        if unused:
            note += f", of which {' and '.join(unused)} take none; pass those splits as arrays"
        return note

    def checkpoints(self) -> Periods | None:
        """Return the periods after which a checkpoint is written."""
        every = self.config.trainer.checkpoint_every
        return None if every is None else self.periods("trainer.checkpoint_every", every)

    def periods(self, key: str, every: str) -> Periods:
        """Return the periods of a length such as 1epochs, 500steps or 10%, the value of a key."""
        number, unit = split(every)
        epochs = self.order.epochs
        if epochs.are_equal or unit != "epochs":
            return Periods(max(1, self.clock.steps(every)))
        if not number or number.denominator != 1:
            raise ConfigError(
                f"{key} must be whole epochs, steps or % if trainer.batch_size changes, got {every}"
            )
        return epochs.every(int(number))

    def run_spec(self) -> RunSpec:
        """Return the run's spec: tables of every step, and training rows in the run's dtype."""
        trainer, model = self.config.trainer, self.model
        fields: dict[str, np.ndarray] = {}
        streamed = self._streamed
        if "y" not in streamed:
            fields |= self._labelled(self.data.train.y, self.data.train.weight)
        if "x" not in streamed:
            fields["x"] = blocks.converted(self.data.train.x, self.model.input_dtype)
        return RunSpec(
            **vars(model),
            fields=fields,
            streamed=streamed,
            loss=self.loss if self.mixing is None else losses.of_mixed(self.loss),
            optimizer=self.config.optimizer,
            tables=self.tables(),
            groups=self.groups,
            gradient_clip_norm=trainer.gradient_clip_norm,
            gradient_clip_value=trainer.gradient_clip_value,
            seed=self.config.seed,
            largest_chunk=self.largest_chunk(),
            epochs=self.order.epochs,
            accumulate=trainer.accumulate_grad_batches,
            keeps_outputs=self.keeps_train_outputs,
            compile=self.compiles,
            skip_nonfinite=trainer.on_nonfinite == "skip",
            average_shares=averages.shares(self.config.optimizer, self.clock),
            recomputes=trainer.gradient_checkpointing,
            divides=self.config.strategy == "fsdp" and self.config.num_processes > 1,
            measures_norms=any(isinstance(c, callbacks.Norms) for c in self.config.callbacks),
            syncs_batch_norm=not self.normalizes_by_process,
        )

    @property
    def normalizes_by_process(self) -> bool:
        """True if batch norm has the statistics of each of several processes in training."""
        return self.config.num_processes > 1 and self.has_own_statistics

    @property
    def has_own_statistics(self) -> bool:
        """True if batch norm would have the statistics of each process alone."""
        has_norms = bool(_batch_norms(self.network) or self.built.shared)
        return has_norms and not self.config.trainer.sync_batchnorm

    @property
    def compiles(self) -> bool:
        """True if the run is compiled where it need not be. `auto` depends on the config, the
        model, the updates of the whole run and the device, never on a measurement: compiled float32
        has other bits."""
        config, trainer = self.config, self.config.trainer
        if trainer.compile != "auto":
            return trainer.compile
        if self.compiled_before is not None:
            return self.compiled_before
        is_possible = (
            isinstance(config.model, LayerModel)
            and config.num_processes == 1
            and trainer.precision != "exact"
            and not trainer.gradient_checkpointing
            and devices.is_cpu(self.model.device)
        )
        pays = BACKENDS[config.backend].pays_to_compile
        return is_possible and pays(self.network, self.order.total_steps)

    def remark_on_compiling(self) -> str | None:
        """Say what trainer.compile=auto has chosen."""
        if self.config.trainer.compile != "auto":
            return None
        if self.compiled_before is not None:
            return f"compile  {show(self.compiles)}, as before the run resumed"
        num, name = self.order.total_steps, self.config.model.name
        chosen = f"compile  {show(self.compiles)}, as trainer.compile=auto chooses"
        return f"{chosen} for {num:,} updates of model={name}"

    def remark_on_threads(self) -> str | None:
        """Remark on the number of threads, if the user should know of it."""
        trainer, model = self.config.trainer, self.model
        asked = 1 if joins_first(self.config) else trainer.threads
        return threads.remark(asked, model.threads, model.network, model.batch_size)

    @cached_property
    def _rates(self) -> np.ndarray:
        try:
            return schedules.table(self.config.schedule, self.clock, self.config.optimizer.lr)
        except ValueError as error:
            raise ConfigError(f"schedule.{error}") from None

    @property
    def plateau(self) -> Plateau | None:
        """The schedule if it is a plateau, which has a state; else None."""
        return self.config.schedule if isinstance(self.config.schedule, Plateau) else None

    @property
    def early_stopping(self) -> Stall | None:
        """The rule that ends the run early. With patience p, the run ends after p epochs in a row
        that are no better, as in Lightning and Keras."""
        trainer = self.config.trainer
        if trainer.early_stopping_patience is None or self.config.debug == "overfit":
            return None
        return Stall(
            trainer.monitor_mode,
            trainer.early_stopping_patience - 1,
            trainer.early_stopping_min_delta,
        )

    def rates(self, plateau: State | None = None) -> np.ndarray:
        """Return eta(t) of every update; a plateau's rates depend on its state.  # float64[T]"""
        return (
            self.plateau.scaled(self._rates, plateau) if self.plateau and plateau else self._rates
        )

    def tables(self, plateau: State | None = None) -> Tables:
        """Return the optimizer's settings at every update; a plateau's depend on its state."""
        rates = {"": self.rates(plateau), **self.group_rates}
        return tables(rates, self.groups, self.hyperparameters, self.model.dtype)

    def check_schedule(self) -> list[str]:
        """Return warnings of probable mistakes, one line each. Raise ConfigError for the first of
        them with `trainer.strict`, and in any case if the run could learn nothing."""
        config, trainer = self.config, self.config.trainer
        findings = lint.findings(
            config.schedule,
            self.clock,
            self.rates(),
            config.optimizer.lr,
            self.model.dtype,
            trainer.early_stopping_patience,
        )
        for i, entry in self.scheduled_groups():
            key, rates = f"optimizer.groups[{i}].schedule", self.group_rates[entry.match]
            lr, dtype = config.optimizer.lr, self.model.dtype
            findings += lint.of_group(key, entry.schedule, self.clock, rates, lr, dtype)
        findings += [lint.Finding(text) for text in (*self._cancelled(), *self._unused_sizes())]
        for finding in findings:
            if finding.is_error or trainer.strict:
                raise ConfigError(finding.text)
        if trainer.strict and self.data.warnings:
            raise ConfigError(self.data.warnings[0])
        return [*self.data.warnings, *(finding.text for finding in findings)]

    def scheduled_groups(self) -> Iterator[tuple[int, Any]]:
        """Yield the entries of optimizer.groups that have a schedule, with their positions."""
        for i, entry in enumerate(self.config.optimizer.groups):
            if entry.schedule is not None:
                yield i, entry

    def _cancelled(self) -> Iterator[str]:
        """Yield warnings of weights that have only rounding noise as gradient, if the optimizer
        turns it into steps."""
        optimizer = self.config.optimizer
        if isinstance(self.network, CustomNetwork):  # its layers are unknown here
            return
        trained = {name for group in self.groups if group.lr_factor for name in group.names}
        for name, layer in cancelled(self.network).items():
            if optimizer.name == "sgd" or name not in trained:
                continue
            freeze = f"optimizer.groups=[{{match: {name}, lr_factor: 0}}]"
            fix = f"bias: false in {name.partition('/')[0]}" if name.endswith("/bias") else freeze
            yield (
                f"model.layers: {layer} cancels {name}, so its gradient is rounding noise; "
                f"optimizer={optimizer.name} turns it into steps, and the backends differ; "
                f"set {fix}"
            )

    def _unused_sizes(self) -> Iterator[str]:
        """Yield warnings of batch sizes that no update has."""
        sizes, order = self.config.batch_size, self.order
        if isinstance(sizes, int):
            return
        used = {size for *_, size in begun(order, order.total_steps)}
        for i, part in enumerate(sizes):
            if part.size not in used:
                yield (
                    f"trainer.batch_size[{i}]: no update has the size {part.size}: the part begins "
                    f"after the end of the run, or is shorter than an update"
                )

    def largest_chunk(self) -> int:
        """Return the most updates in one call: as configured, or an epoch's, limited by the memory
        of their rows and outputs."""
        if self.config.debug in ("fast", "anomaly", "nondeterminism"):
            return 1
        if self.config.debug == "profile":
            num = max(1, min(_PROFILED_CHUNK, self.order.total_steps // 8))
            return min(num, self._largest_chunk())
        return self._largest_chunk()

    def _largest_chunk(self) -> int:
        configured, memory = self.config.trainer.steps_per_call, self.data.memory
        epochs = self.order.epochs
        num_steps = max(map(epochs.size, range(len(epochs.starts))))  # of the longest epoch
        inputs, outputs = (
            int(np.prod(shape)) for shape in (self.network.input_shape, self.network.output_shape)
        )
        # bytes of an update's rows with one value each
        row_bytes = self.order.rows_per_step * self.model.dtype.itemsize
        if memory is None:
            if configured != "auto":
                return min(int(configured), num_steps)  # a chunk ends with it
            return max(1, min(num_steps, _CHUNK_BYTES // ((inputs + outputs) * row_bytes)))
        copies = 3 if self.mixing is None else 4  # a mixed row is made of two
        sizes = (math.prod(f.shape) * f.dtype.itemsize for f in self._streamed.values())
        needed = copies * self.order.rows_per_step * sum(sizes)
        num_fitting = memory // needed
        if num_fitting == 0:
            least = -(-needed // 2**20)
            raise ConfigError(
                f"data.memory_mb must be at least {least} for three updates of "
                f"{self.order.rows_per_step} rows, "
                f"got {memory // 2**20}"
            )
        wanted = num_steps if configured == "auto" else int(configured)
        return min(wanted, num_fitting)

    @property
    def keeps_outputs(self) -> bool:
        """True if the network's outputs are needed here, for the loss or a metric."""
        return not losses.is_own(self.loss) or bool(self.metrics)

    @property
    def keeps_train_outputs(self) -> bool:
        """True if the outputs of the training rows are needed. For labels at positions, sequences
        of labels and mixed rows, they are not: the loss of an epoch is the mean of its updates'
        losses."""
        has_own_loss = self.data.has_one_label and not losses.couples_rows(self.loss)
        return self.keeps_outputs and has_own_loss and self.mixing is None

    def batches(self, split: Split, share: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield the fields of a split, or of the rows `share`, in order, as in training, for the
        backend's `measure`. New rows without the weights that the training rows have count
        equally."""
        weight = split.weight
        if weight is None and getattr(self.config.data, "weight", None) is not None:
            weight = np.ones(len(split))
        for which in self._blocks(split, share):
            x = np.ascontiguousarray(split.x[which], dtype=self.model.input_dtype)
            fields = {"x": x, "y": losses.targets(self.loss, split.y[which], self.model.dtype)}
            if weight is not None:
                fields["weight"] = weight[which].astype(self.model.dtype)
            yield fields

    def chunks(
        self, start: int, checkpoints: Periods | None, adapt: bool, end: int | None = None
    ) -> Chunks:
        """Return the run's chunks from step `start` to `end`, by default the run's end."""
        order = self.order if end is None else replace(self.order, total_steps=end)
        read = self._read if self._streamed else None
        # code of the user's own may use a framework and its random numbers: not in a thread
        ahead = self.data.stream is None
        chunks = Chunks(order, start, self.largest_chunk(), checkpoints, adapt, read, ahead)
        return replace(chunks, events=self._events())

    def _events(self) -> list[Periods]:
        """Return the periods of callbacks that need a call of the backend to begin with theirs."""
        return [
            self.periods(f"callbacks[{i}].every", callback.every)
            for i, callback in enumerate(self.config.callbacks)
            if isinstance(callback, callbacks.Norms)
        ]

    @cached_property
    def reader(self) -> Reader:
        """Reads the training rows of an iterable."""
        return Reader(self.data.stream, self.order.rows_per_step)

    def _labelled(self, y: np.ndarray, weight: np.ndarray | None) -> Batch:
        """Return the targets of training rows as fields, with their weights if they have some;
        those of positions without a label are 0."""
        if self.data.no_label is not None:
            of_row = 1.0 if weight is None else weight.reshape(-1, *(1 for _ in y.shape[1:]))
            weight, y = losses.position_weights(y) * of_row, np.maximum(y, 0)
        more = {} if weight is None else {"weight": weight.astype(self.model.dtype)}
        return {"y": losses.targets(self.loss, y, self.model.dtype), **more}

    @property
    def _streamed(self) -> dict[str, Field]:
        """The fields of the training rows that come with the chunks, in the run's dtype."""
        if self.data.stream is not None:
            rows = self._converted(self.data.train.read(np.arange(1)))
            return {name: Field(values.shape[1:], values.dtype) for name, values in rows.items()}
        if self.data.overlaps or self.data.mask_rate is not None:
            kinds = {"x": self.model.input_dtype, "y": np.dtype(np.int64)}
            fields = self.data.train.fields
            found = {name: Field(fields[name].shape, kind) for name, kind in kinds.items()}
            if self._weighs_hidden:
                found["weight"] = Field(fields["y"].shape, self.model.dtype)
            return found
        if not self.data.streams and self.augment is None and self.mixing is None:
            return {}
        x = {"x": Field(self.network.input_shape, self.model.input_dtype)}
        if self.mixing is not None:
            y = self._train_targets(np.arange(1))
            return {**x, "y": Field(y.shape[1:], y.dtype)}
        if self.augment is None or not self.data.positions:
            return x
        moved = self._labelled(self.data.train.y[:1], None)
        return x | {name: Field(values.shape[1:], values.dtype) for name, values in moved.items()}

    @property
    def _weighs_hidden(self) -> bool:
        """True if the loss of hidden tokens is the cross-entropy with weights of positions, 1 by
        their number in a row, as in exact mode."""
        return self.data.mask_rate is not None and self.config.trainer.precision == "exact"

    @property
    def augment(self) -> Augment | None:
        """The random changes of the training images; None if there are none."""
        return augment_of(self.config)

    @property
    def mixing(self) -> Mixing | None:
        """The mixing of training rows in pairs; None without it."""
        return mixing_of(self.config.data)

    @cached_property
    def _train_x(self) -> Any:
        """The training rows before they are augmented or mixed, in the run's dtype."""
        return np.ascontiguousarray(self.data.train.x, dtype=self.model.dtype)

    def _rows_of_x(self, rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return training rows in the run's dtype, those that are streamed from their source."""
        if self.data.memory is not None:
            x: np.ndarray = self.data.train.x.converted(rows, dtype, self.data.memory)
            return x
        return self._train_x[rows].astype(dtype, copy=False)

    def _train_targets(self, rows: np.ndarray) -> np.ndarray:
        """Return the targets of training rows as numbers that can be mixed.  # dtype[n, C]"""
        y, num_classes = self.data.train.y[rows], len(self.data.classes)
        return losses.soft_targets(self.loss, y, num_classes, self.model.dtype)

    def _augmented(self, rows: np.ndarray, epoch: int) -> Batch:
        """Read training rows, and change the images at random. Labels at pixels move with them."""
        images = self._rows_of_x(rows, self.model.dtype)
        if self.augment is None:
            return {"x": images}
        num, seed = len(self.data.train), self.config.seed
        black, scaling = np.zeros(images.shape[-1]), self.data.x_scaling
        black = scaling.apply(black) if scaling else black
        change = partial(augmented, rows=rows, num_rows=num, seed=seed, epoch=epoch)
        moved = {"x": change(images, self.augment, black)}
        if self.data.positions:
            labels = self.data.train.y[rows][..., None]
            labels = change(labels, self.augment, np.zeros(1))[..., 0]
            weight = self.data.train.weight
            moved |= self._labelled(labels, None if weight is None else weight[rows])
        return moved

    def _mixed(self, mixing: Mixing, rows: np.ndarray, epoch: int) -> Batch:
        """Read training rows, mixed with their partners."""
        num, seed = len(self.data.train), self.config.seed
        is_exact = self.config.trainer.precision == "exact"
        how = mixed(mixing, self.data.input_shape, rows, num, seed, epoch, is_exact)
        x, other = (self._augmented(which, epoch)["x"] for which in (rows, how.partners))
        y, other_y = (self._train_targets(which) for which in (rows, how.partners))
        return {"x": how.of(x, other), "y": how.targets(y, other_y)}

    def _read(self, rows: np.ndarray, epoch: int) -> Batch:
        """Read the streamed fields of some training rows.  # int64[n] -> [n, ...] each"""
        if self.mixing is not None:
            return self._mixed(self.mixing, rows, epoch)
        if self.augment is not None:
            return self._augmented(rows, epoch)
        if self.data.stream is not None:
            return self._converted(self.reader.read(len(rows) // self.order.rows_per_step))
        fields = self._streamed.items()
        if [*self._streamed] == ["x"]:
            return {name: self._rows_of_x(rows, field.dtype) for name, field in fields}
        batch = self.data.train.read(rows)
        if self.data.mask_rate is not None:
            rate, num, seed = self.data.mask_rate, self.data.num_tokens, self.config.seed
            x, y = masked(batch["x"], rate, num, rows, seed, f"{epoch}")
            batch = {"x": x, "y": y}
            if self._weighs_hidden:
                batch |= {"y": np.maximum(y, 0), "weight": losses.position_weights(y)}
        return {name: batch[name].astype(field.dtype, copy=False) for name, field in fields}

    def _converted(self, rows: Batch) -> Batch:
        """Convert training rows of an iterable to the run's dtypes."""
        x = rows["x"].astype(self.model.input_dtype, copy=False)
        y = losses.targets(self.loss, rows["y"], self.model.dtype)
        weight = {"weight": rows["weight"].astype(self.model.dtype)} if "weight" in rows else {}
        return {"x": x, "y": y, **weight}

    def outputs(self, split: Split, predict: Callable[[Batch], np.ndarray]) -> np.ndarray:
        """Return the network's outputs for all rows of a split.  # float[N, C]"""
        return np.concatenate([outputs for outputs, _ in self.output_blocks(split, predict)])

    def output_blocks(
        self,
        split: Split,
        predict: Callable[[Batch], np.ndarray],
        share: np.ndarray | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the network's outputs and the targets of a split, or of the rows `share`, in blocks
        of rows: all rows at once, if they have one label each and are in memory."""
        for which in self._blocks(split, share):
            x = np.ascontiguousarray(split.x[which], dtype=self.model.input_dtype)
            yield predict({"x": x}), split.y[which]

    def share(self, split: Split, world: World) -> np.ndarray:
        """Return the rows of a split that one of several processes evaluates.  # int64[n]"""
        return world.share(len(split), self._sizes(split)[1])

    @property
    def shares_evaluation(self) -> bool:
        """True if processes can share an evaluation: the user's own model measures nothing over all
        of its rows."""
        return not self.built.val_columns

    def block_numbers(self, split: Split, share: np.ndarray) -> list[int]:
        """Number the blocks of batch_size rows of the rows `share`, as in the whole split."""
        batch, size = self._sizes(split)[1], self.model.batch_size
        numbers = share // batch * -(-batch // size) + share % batch // size
        return [int(number) for number in np.unique(numbers)]

    def num_passes(self, split: Split, share: np.ndarray) -> int:
        """Count the forward passes in which a backend measures the rows `share`."""
        if self.is_measured_by_backend:
            return len(self.block_numbers(split, share))
        return -(-len(share) // self._sizes(split)[1])

    def _blocks(self, split: Split, share: np.ndarray | None) -> Iterator[Any]:
        """Yield the rows of each block of a split, or of the rows `share`. A block consists of
        whole batches, but for the last one."""
        num = len(split) if share is None else len(share)
        size, _ = self._sizes(split)
        for first in range(0, max(num, 1), size):
            part = slice(first, min(first + size, num))
            yield part if share is None else share[part]

    def _sizes(self, split: Split) -> tuple[int, int]:
        """Return the rows of a block, which are in memory together, and those of a batch, which a
        backend predicts at once."""
        unit = self.model.rows_per_pass  # blocks are multiples, so that outputs stay the same
        row_bytes = int(np.prod(self.network.output_shape)) * self.model.dtype.itemsize
        size = unit * max(1, _CHUNK_BYTES // (unit * row_bytes))
        if self.data.memory is not None and not isinstance(split.x, np.ndarray):
            most = None if self.data.has_one_label else size
            size = split.x.block_size(self.data.memory, unit, most)
        elif self.data.has_one_label:
            size = max(unit, len(split))
        return size, min(size, unit)


def plan(
    config: Config, like: Mapping[str, Any] | None = None, data: Dataset | None = None
) -> Plan:
    """Plan a run, or refuse it. `like` is the data.json of a run; it names the data's columns.
    `data` replaces the config's data, to evaluate on other rows."""
    if data is not None:
        return _plan(config, data, is_training=False)
    return _plan(config, _data(config, like), is_training=True)


def replanned(prepared: Plan, config: Config) -> Plan:
    """Plan a run on the data of another run, with a config that differs in other keys."""
    return _plan(config, prepared.data, is_training=True)


def _plan(config: Config, data: Dataset, is_training: bool) -> Plan:
    _check_augment(config, data)
    _check_ids(config, data)
    _check_twin(config)
    loss = _loss(config, data)
    _check_mixing(config, data, loss)
    example = _example(config, data)
    model = model_spec(config, shapes_of(data), example)
    loss = _weighted_or_own(config, loss, data, model, example)
    check_devices(config, data, model.network)
    order = _debugged(config, data, _order(config, data))
    clock = _clock(order, data, model)
    rows = min(order.largest_batch, order.num_rows)
    averages.check(config.optimizer, clock)
    memory.check(model, averages.num_slots(config.optimizer), rows, order.total_steps)
    _check_rows(data, loss, model)
    if is_training:
        _check_batch_norm(model.network, order)
        _check_own_rows(config, model.network, order)
    if config.trainer.precision == "exact":
        refuse(model.network, loss, config.optimizer, order)
        _refuse_exact(config, data)
    _refuse_backend(config)
    _check_tf32(config)
    _check_recomputation(config, model.network)
    prepared = Plan(
        config=config,
        data=data,
        loss=loss,
        metrics=_metrics(config, data, loss, model.network),
        network=model.network,
        order=order,
        clock=clock,
        model=model,
        groups=_groups(config, model.network),
        hyperparameters=optimizers.hyperparameters(config.optimizer, clock),
        group_rates=optimizers.group_rates(config.optimizer, clock),
    )
    _check_watched(prepared)
    _check_throughput(prepared)
    _check_norms(prepared)
    prepared.checkpoints()  # refuses parts of epochs of several lengths
    if data.streams:
        prepared.largest_chunk()  # refuses too little memory
    return prepared


def _loss(config: Config, data: Dataset) -> Any:
    """Choose the loss for the data."""
    loss = losses.choose(config.loss, data.task, len(data.classes), data.positions)
    if losses.couples_rows(loss):
        _check_coupled(config, data)
    if data.mask_rate is None:
        return loss
    masked_loss = losses.of_masked(loss)
    return loss if config.trainer.precision == "exact" else masked_loss


def _check_rows(data: Dataset, loss: Any, model: ModelSpec) -> None:
    """Refuse rows that the run's numbers, or its loss, cannot take."""
    check_range(data, model.dtype)
    _check_padding(data, model.network)
    if isinstance(loss, losses.CTC):
        _check_lengths(data, model.network)


def _check_padding(data: Dataset, net: Any) -> None:
    """Refuse a mask of sequences whose padding was scaled, each step by itself, with the rest."""
    is_scaled = data.x_scaling is not None and data.x_scaling.offset.ndim == 2
    layers = net.walk() if isinstance(net, Network) else ()
    if is_scaled and any(isinstance(node.spec, Masking) for node in layers):
        raise ConfigError(
            "data.standardize must be false for a model with masking: it scales each step by "
            "itself, and padding would have other values than mask_value; scale the values in the "
            "file, before the padding"
        )


def _check_lengths(data: Dataset, net: Network) -> None:
    """Refuse rows with more labels than their outputs can have, whose loss would be infinite."""
    if any(node.spec.makes_mask for node in net.walk() if node is not net.nodes[0]):
        raise ConfigError(
            "loss=ctc needs masking or mask_zero in the first of model.layers, where the steps of "
            "each row are counted before the training"
        )
    splits = {"train": data.train, "val": data.val, "test": data.test}
    for name, part in splits.items():
        mask, needed = _masks(data, net, part.x), alignment.fewest_steps(part.y)
        num_steps = net.output_shape[0] if mask is None else mask.sum(axis=1)
        short = np.flatnonzero(needed > num_steps)
        if len(short):
            row = int(short[0])
            steps = np.broadcast_to(num_steps, len(needed))[row]
            raise ConfigError(
                f"data: {len(short)} of {len(needed)} {SPLIT_WORDS[name]} rows have more labels "
                f"than steps of the outputs; row {row} has {steps} steps, and its "
                f"{alignment.lengths(part.y)[row]} labels need {needed[row]}, one for each, and a "
                f"blank between equal neighbours; leave them out, or use a smaller stride"
            )


def _masks(data: Dataset, net: Network, x: Any) -> np.ndarray | None:
    """Return which steps of rows are no padding; None without a mask.  # bool[N, T]"""
    if data.memory is None:
        return net.mask_of(x)
    masks = []
    for block in x.blocks(data.memory, 1):
        mask = net.mask_of(block)
        if mask is None:
            return None
        masks.append(mask)
    return np.concatenate(masks) if masks else net.mask_of(x[:])


def _check_coupled(config: Config, data: Dataset) -> None:
    """Refuse what divides the batch of a loss that compares its rows, and metrics of classes."""
    trainer, compares = config.trainer, "which compares the rows of a batch"
    accumulate, size = trainer.accumulate_grad_batches, trainer.largest_batch
    asked = [] if config.metrics == "auto" else config.metrics
    of_classes = [metric for metric in asked if isinstance(metric, str)]
    refused: dict[str, tuple[bool, str, Any]] = {
        "trainer.accumulate_grad_batches must be 1": (accumulate > 1, compares, accumulate),
        "devices must be 1": (config.num_processes > 1, compares, config.devices),
        "data.memory_mb must be null": (data.streams, compares, (data.memory or 0) // 2**20),
        "trainer.batch_size must be at least 2": (size < 2, compares, size),
        "metrics must be auto or functions of your own": (
            bool(of_classes), "whose outputs are no classes", show(", ".join(of_classes)),
        ),
    }  # fmt: skip
    for words, (is_found, why, value) in refused.items():
        if is_found:
            raise ConfigError(f"{words} with loss={config.loss.name}, {why}, got {value}")


def _clock(order: Order | InOrder, data: Dataset, model: ModelSpec) -> Clock:
    tokens = data.input_shape[0] if model.network.takes_tokens else 1
    epochs, rows = order.epochs, order.rows_per_step
    return Clock(order.total_steps, epochs.length, rows, tokens, starts=epochs.starts)


def _check_twin(config: Config) -> None:
    if isinstance(config.model, TwinModel) and not config.optimizer.is_elementwise:
        raise ConfigError(
            f"model=twin needs an optimizer that updates every number of a weight by itself, since "
            f"the frameworks join weights into tensors of their own; optimizer="
            f"{config.optimizer.name} uses norms or products of whole weights"
        )


def _example(config: Config, data: Dataset) -> Batch | None:
    """Return the fields of the first training rows, as in training, on which code of the user's own
    is tried; None without such code."""
    has_own_model = not isinstance(config.model, LayerModel | TwinModel)
    if not (has_own_model or config.loss.name == "custom"):
        return None
    rows = data.train.read(np.arange(min(config.trainer.largest_batch, len(data.train))))
    dtype = np.dtype(np.float64 if config.trainer.precision == "float64" else np.float32)
    y = losses.targets(losses.Model(name="model"), rows["y"], dtype)
    weight = {"weight": rows["weight"].astype(dtype)} if "weight" in rows else {}
    return {"x": np.ascontiguousarray(rows["x"], dtype=dtype), "y": y, **weight}


def _weighted_or_own(
    config: Config, loss: Any, data: Dataset, model: ModelSpec, example: Batch | None
) -> Any:
    """Return the loss with its class weights as numbers, or the loss of the user's own code after a
    trial."""
    if data.no_label is not None and (loss.name == "custom" or _has_loss(model.network)):
        raise ConfigError(
            f"data.no_label must be null with a loss of your own, which gets no weights of "
            f"positions, got {data.no_label}"
        )
    if _has_loss(model.network):
        if config.loss.name != "auto":
            raise ConfigError(
                f"loss must be auto for a model that computes its own loss, got {config.loss.name}"
            )
        if config.trainer.compile is True:
            raise ConfigError(
                "trainer.compile must be false for a model that computes its own loss, got true"
            )
        own = losses.Model(name="model")
        _check_mixing(config, data, own)
        return own
    if loss.name == "custom":
        if config.trainer.precision == "exact":
            raise ConfigError(
                f"trainer.precision must be {INEXACT} for a loss of your own, got exact: exact "
                f"mode supports only the losses of this project"
            )
        assert example is not None
        backend = dispatcher.load(config.backend)
        dispatcher.prepare(backend, model.threads)
        backend.check_loss(loss, example, model)
    if data.stream is not None and getattr(loss, "class_weights", None) == "balanced":
        raise ConfigError(
            f"loss.class_weights must be null or a list for {data.stream.items.source}, whose rows "
            f"can only be iterated over, because their labels are not counted, got balanced"
        )
    return loss.weighted(data.train.y, len(data.classes)) if hasattr(loss, "weighted") else loss


def _has_loss(network: Network) -> bool:
    return isinstance(network, CustomNetwork) and network.built.has_loss


def _groups(config: Config, net: Network) -> tuple[optimizers.Group, ...]:
    groups = optimizers.groups(config.optimizer, net)
    if isinstance(net, TwinNetwork):
        for group in groups:
            net.native_names(group.names)  # refuses weights of one tensor in several groups
    return groups


def _metrics(
    config: Config, data: Dataset, loss: Any, network: Network
) -> dict[str, metrics.Metric]:
    """Choose the metrics. One that needs all rows at once needs validation rows."""
    asked, shape = config.metrics, network.output_shape
    if isinstance(loss, losses.Model):
        if asked != "auto":
            raise ConfigError(
                f"metrics must be auto for a model that computes its own loss, since it logs its "
                f"own metrics, got {show(asked)}"
            )
        return {}
    several = network.outputs
    num_axes = 2 if data.separator is not None else 1 + len(data.positions)
    fits = several is None and len(shape) == num_axes
    if asked == "auto" and (not fits or losses.couples_rows(loss)):
        asked = []
    y = (data.val if len(data.val) else data.train).y
    y = y if data.has_one_label else y[:_TRIAL_ROWS]
    sequences = None
    if fits and data.separator is not None:
        sequences = metrics.Sequences(data.classes, data.separator, shape[0])
    chosen = metrics.choose(asked, data.task, shape[-1] if fits else 0, y, several, sequences)
    for name, metric in chosen.items():
        if (data.positions or not metric.by_row) and not len(data.val):
            raise ConfigError(
                f"metrics: {name} is measured on the validation rows, and this data has none"
            )
    if data.train.weight is not None:
        metrics.check_weights(chosen, shape[-1] if fits else 0, y)
    return chosen


def _data(config: Config, like: Mapping[str, Any] | None) -> Dataset:
    """Load the data set, as images or as token ids if the model needs them."""
    data = load(config.data, like)
    if data.stream is not None:
        data = replace(data, train=data.stream.sample(config.trainer.largest_batch))
    if not isinstance(config.model, LayerModel):  # it gets images where data.images is true
        return data
    if needs_tokens(config.model.layers) and not data.num_tokens:
        return _as_tokens(config, data)
    if data.image_shape is None or not needs_images(config.model.layers):
        return data
    if getattr(config.data, "images", "auto") is False:
        raise ConfigError(
            f"data.images must be auto or true for model={config.model.name}, which "
            f"needs images, got false"
        )
    return data.as_images()


def _as_tokens(config: Config, data: Dataset) -> Dataset:
    """Convert the rows to token ids, for a model that begins with an embedding."""
    if data.stream is not None:
        raise ConfigError(
            f"data.num_tokens must be set for {data.stream.items.source}, whose rows can only be "
            f"iterated over, because model.layers begin with embedding, got null"
        )
    if data.streams or data.ids or data.x_scaling is not None or len(data.input_shape) != 1:
        why = (
            "has numbers beside ids"
            if data.ids
            else "streams numbers"
            if data.streams
            else "standardizes them"
            if data.x_scaling is not None
            else f"has rows of shape {list(data.input_shape)}"
        )
        raise ConfigError(
            f"model.layers begin with embedding, which needs rows of token ids, and "
            f"data={config.data.name} {why}"
        )
    tokens = data.as_tokens(f"data={config.data.name}")
    return replace(tokens, warnings=without_unscaled(data.warnings))


def augment_of(config: Config) -> Augment | None:
    """Return the random changes of the training images that the config asks for."""
    augment = getattr(config.data, "augment", None)
    return augment if isinstance(augment, Augment) and augment.is_on else None


def _check_ids(config: Config, data: Dataset) -> None:
    """Refuse ids that the numbers beside them cannot represent."""
    if not data.ids or not isinstance(config.model, LayerModel):
        return
    precision = config.trainer.precision
    if precision in ("bf16-mixed", "16-mixed"):
        raise ConfigError(
            f"trainer.precision must be float32, float64 or exact for ids beside numbers in one "
            f"row, since numbers of 16 bits cannot represent all ids, got {precision}"
        )
    if max(data.ids) > _MOST_IDS:
        raise ConfigError(
            f"data: ids beside numbers must be below 2^24, which float32 represents, got "
            f"{max(data.ids)} ids"
        )


def _check_augment(config: Config, data: Dataset) -> None:
    """Refuse to augment rows that are no images, or that have another scale at each pixel."""
    augment = augment_of(config)
    if augment is None:
        return
    shape = data.input_shape
    if len(shape) != 3:
        hint = "; data.images=true makes them images" if data.image_shape else ""
        raise ConfigError(
            f"data.augment needs rows that are images, [H, W, C], got {list(shape)}{hint}"
        )
    if data.positions and data.positions != shape[:2]:
        raise ConfigError(
            f"data.augment needs one label per image or one per pixel, got {list(data.positions)} "
            f"labels of images of {shape[0]} x {shape[1]} pixels"
        )
    if data.positions and augment.crop:
        raise ConfigError(
            f"data.augment.crop must be 0 for labels at pixels, because black pixels have no "
            f"label, got {augment.crop}; use data.augment.shift"
        )
    for key in ("crop", "shift"):
        if getattr(augment, key) >= min(shape[:2]):
            raise ConfigError(
                f"data.augment.{key} must be less than the sides of the images, {shape[0]} and "
                f"{shape[1]} pixels, got {getattr(augment, key)}"
            )
    if data.x_scaling is not None and data.x_scaling.offset.ndim != 1:
        raise ConfigError(
            "data.augment needs one scale for all pixels, got data.standardize=true, which scales "
            "each pixel by itself; scale x in the file, and set data.standardize=false"
        )


def _check_mixing(config: Config, data: Dataset, loss: Any) -> None:
    """Refuse to mix rows that are not in memory, are no numbers, or have no target that can be
    mixed."""
    mixing = mixing_of(config.data)
    if mixing is None:
        return
    key = "data.mixup" if mixing.mixup is not None else "data.cutmix"
    reasons = {
        "has token ids or categories, which cannot be mixed": data.num_tokens > 0 or any(data.ids),
        "has a label at each position": bool(data.positions),
        "has weights of rows": data.train.weight is not None,
        "is an iterable, whose rows have no numbers": data.stream is not None,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ConfigError(f"{key} must be null for data={config.data.name}, which {reason}")
    if config.debug == "overfit":
        raise ConfigError(
            f"debug=overfit needs {key}=null, since the loss of mixed targets does not reach 0"
        )
    losses.of_mixed(loss)  # refuses those without such targets
    if mixing.cutmix is None:
        return
    if data.task == "regression":
        raise ConfigError(
            "data.cutmix needs labels, and this data has targets; data.mixup mixes targets"
        )
    if len(data.input_shape) != 3:
        hint = "; data.images=true makes them images" if data.image_shape else ""
        raise ConfigError(
            f"data.cutmix needs rows that are images, [H, W, C], got {list(data.input_shape)}{hint}"
        )


def _check_debug(config: Config) -> None:
    """Refuse debug=anomaly where layers are not the framework's, a profile without a profiler, and
    modes that look at one process in several."""
    if config.debug not in ("anomaly", "nondeterminism", "profile"):
        return
    if config.debug == "anomaly" and config.trainer.precision == "exact":
        raise ConfigError(
            f"debug=anomaly needs trainer.precision={INEXACT}, got exact, whose numbers are "
            f"bounded by their grids"
        )
    if config.num_processes > 1:
        raise ConfigError(f"debug={config.debug} needs devices=1, got {config.devices}")
    if config.debug == "profile" and not BACKENDS[config.backend].has_profiler:
        names = [name for name, about in BACKENDS.items() if about.has_profiler]
        raise ConfigError(
            f"debug=profile needs a backend with a profiler, {' or '.join(names)}, got "
            f"backend={config.backend}"
        )


def _debugged(config: Config, data: Dataset, order: Order | InOrder) -> Order | InOrder:
    """Return the order of the config's `debug`, or refuse it."""
    _check_debug(config)
    if config.debug == "profile" and order.total_steps < LEAST_PROFILED:
        raise ConfigError(
            f"debug=profile needs at least {LEAST_PROFILED} updates, got {order.total_steps}; set "
            f"a larger trainer.max_epochs or trainer.max_steps"
        )
    if config.debug not in ("overfit", "nondeterminism"):
        return order
    if isinstance(order, InOrder):
        assert data.stream is not None
        raise ConfigError(
            f"debug={config.debug} needs rows that can be read again, and "
            f"{data.stream.items.source} can only be iterated over; pass the rows of one batch as "
            f"arrays"
        )
    return one_batch(order) if config.debug == "overfit" else order


def _order(config: Config, data: Dataset) -> Order | InOrder:
    """Return the order of the whole run. It ends at max_steps or max_epochs, whichever is
    sooner."""
    trainer, num_rows = config.trainer, len(data.train)
    batch_size, accumulate = config.batch_size, trainer.accumulate_grad_batches
    if not isinstance(batch_size, int):
        if data.stream is None:
            return _changing(config, batch_size, num_rows)
        raise ConfigError(
            f"trainer.batch_size must be one number for {data.stream.items.source}, whose rows can "
            f"only be iterated over, got {len(batch_size)} parts"
        )
    steps_per_epoch: int | None = -(-num_rows // (batch_size * accumulate))
    if data.stream is not None:
        steps_per_epoch = data.stream.steps_per_epoch
        if steps_per_epoch is None and trainer.max_steps is None:
            raise ConfigError(
                f"trainer.max_steps must be set for {data.stream.items.source}, whose rows can "
                f"only be iterated over and are not counted, got null; or set data.steps_per_epoch "
                f"and trainer.max_epochs"
            )
    of_epochs = trainer.max_epochs and steps_per_epoch and trainer.max_epochs * steps_per_epoch
    total_steps = min(limit for limit in (trainer.max_steps, of_epochs) if limit is not None)
    if data.stream is not None:
        return InOrder(batch_size, accumulate, total_steps, steps_per_epoch)
    return Order(num_rows, batch_size, accumulate, config.seed, total_steps)


def check_devices(config: Config, data: Dataset | None = None, net: Network | None = None) -> None:
    """Refuse options that a run on several devices does not support; with its data and its network,
    if they are known."""
    _check_divided(config, net)
    if config.num_processes == 1:
        return
    if isinstance(net, CustomNetwork):
        _check_own_parts(config, net)
    if data is not None and data.stream is not None:
        raise ConfigError(
            f"devices must be 1 with {data.stream.items.source}, whose rows can only be iterated "
            f"over, got {config.devices}"
        )
    trainer = config.trainer
    refused = {
        "trainer.compile=true": trainer.compile is True,
    }
    if config.backend == "keras":
        what = "trainer.gradient_checkpointing=true on Keras"
        refused[what] = trainer.gradient_checkpointing
    for what, is_on in refused.items():
        if is_on:
            raise ConfigError(f"devices must be 1 with {what}, got {config.devices}")
    sizes = config.batch_size
    smallest = sizes if isinstance(sizes, int) else min(part.size for part in sizes)
    if smallest < config.num_processes:
        raise ConfigError(
            f"trainer.global_batch_size must be at least devices={config.devices}, got {smallest}"
        )


def _check_divided(config: Config, net: Network | None) -> None:
    """Refuse to divide weights whose update needs whole ones."""
    if config.strategy != "fsdp":
        return
    optimizer, reason = config.optimizer, None
    if config.trainer.precision == "exact":
        reason = "trainer.precision=exact, which computes with whole weights"
    elif isinstance(config.model, TwinModel):
        reason = "model=twin, whose layouts are of whole weights"
    elif isinstance(optimizer, optimizers.Custom):
        reason = f"optimizer={optimizer.name}, whose updates may need whole weights"
    elif not optimizer.is_elementwise or optimizer.needs_sums:
        reason = f"optimizer={optimizer.name}, whose updates need whole weights"
    elif isinstance(net, CustomNetwork):
        scalars = [name for name, value in net.built.weights.items() if value.ndim == 0]
        reason = f"{net.source.name}, whose {scalars[0]} is one number" if scalars else None
    if reason is not None:
        raise ConfigError(f"strategy must be auto or ddp with {reason}, got fsdp")


def _check_own_parts(config: Config, net: CustomNetwork) -> None:
    """Refuse a model of the user's own that would differ between the processes of a run."""
    name, buffers = net.source.name, net.built.unshared
    if net.built.has_loss:
        raise ConfigError(
            f"devices must be 1 with {name}, which computes its own loss, got {config.devices}; a "
            f"loss of the config, or loss=custom, is supported"
        )
    if buffers:
        raise ConfigError(
            f"devices must be 1 with {name}, whose {buffers[0]} changes without a gradient and so "
            f"would differ between the processes, got {config.devices}"
        )


def _changing(config: Config, sizes: Sequence[SizedPart], num_rows: int) -> Order:
    """Return the order of a run whose batch size changes. A percentage is of what ends the run: the
    rows of max_epochs, or max_steps updates."""
    trainer = config.trainer
    *parts, rest = sizes
    max_epochs, max_steps = trainer.max_epochs, trainer.max_steps

    def order(is_of_epochs: bool) -> Order:
        limit = max_epochs if is_of_epochs else None
        phases = [part.phase(num_rows, limit, max_steps) for part in parts]
        num_epochs = max_epochs or max_steps or 0  # one of them is set
        accumulate = trainer.accumulate_grad_batches
        earlier = segments(num_rows, accumulate, phases, rest.size, num_epochs)
        made = Order(num_rows, rest.size, accumulate, config.seed, 0, earlier)
        limits = [max_steps, max_epochs and made.epochs.begin(max_epochs)]
        return replace(made, total_steps=min(limit for limit in limits if limit is not None))

    made = order(max_epochs is not None)
    return order(False) if made.total_steps == max_steps else made


def _check_own_rows(config: Config, net: Network, order: Order | InOrder) -> None:
    """Refuse batch norm by process where one has no row, or one without a variance, of a batch."""
    own = isinstance(net, CustomNetwork) and bool(net.built.shared)
    if config.trainer.sync_batchnorm or not (own or _batch_norms(net)):
        return
    parts = [*getattr(order, "earlier", ()), order.segment(order.epochs.starts[-1])]
    smallest = min((p.last_row - p.first_row) % p.batch_size or p.batch_size for p in parts)
    fewest, num = 2 if _vector_norms(net) else 1, config.num_processes
    if smallest < fewest * num:
        few = "without rows" if fewest == 1 else f"with fewer than {fewest} rows"
        raise ConfigError(
            f"devices={config.devices} leaves a process {few} in a batch of {smallest}, which "
            f"batch norm does not support with trainer.sync_batchnorm=false; set "
            f"trainer.global_batch_size to a number that leaves a last batch of at least "
            f"{fewest * num} rows"
        )


def _refuse_exact(config: Config, data: Dataset) -> None:
    """Refuse options that exact mode does not support."""
    if config.trainer.on_nonfinite == "skip":
        raise ConfigError(
            "trainer.on_nonfinite=skip is not supported with trainer.precision=exact; "
            "use trainer.on_nonfinite=stop"
        )
    if config.loss.name == "focal" and data.task == "multilabel":
        raise ConfigError(
            "loss=focal of several labels has no exact form; with trainer.precision=exact use "
            "loss=binary_cross_entropy"
        )
    if data.stream is not None:
        raise ConfigError(
            f"trainer.precision=exact needs rows in memory, and the rows of "
            f"{data.stream.items.source} can only be iterated over; pass arrays of them"
        )
    for key in ("compile", "gradient_checkpointing"):
        if getattr(config.trainer, key) is True:
            raise ConfigError(
                f"trainer.{key}=true is not supported with trainer.precision=exact; "
                f"use trainer.{key}=false"
            )


def _check_tf32(config: Config) -> None:
    precision = config.trainer.precision
    if config.trainer.tf32 and precision in ("float64", "exact"):
        raise ConfigError(
            f"trainer.tf32 must be false with trainer.precision={precision}, which has no products "
            f"of float32, got true"
        )


def _check_recomputation(config: Config, net: Network) -> None:
    """Refuse gradient checkpointing where it cannot be, or would change nothing."""
    if not config.trainer.gradient_checkpointing:
        return
    key, model = "trainer.gradient_checkpointing", config.model
    if not isinstance(model, LayerModel):
        raise ConfigError(
            f"{key} must be false for a model of your own, got true; call torch.utils.checkpoint "
            f"or keras.remat in its code"
        )
    if config.trainer.compile is True:
        raise ConfigError(
            f"{key}=true is not supported with trainer.compile=true; set one of them to false"
        )
    if not any(node.branches for node in net.nodes):
        raise ConfigError(
            f"{key}=true needs residual or parallel layers, whose inside it computes again, and "
            f"model={model.name} has none; use false"
        )


def _refuse_backend(config: Config) -> None:
    """Refuse a config that the backend cannot run."""
    about, precision = BACKENDS[config.backend], config.trainer.precision
    if precision not in about.precisions:
        raise ConfigError(
            f"trainer.precision must be {' or '.join(about.precisions)} with "
            f"backend={about.name}, got {precision}"
        )
    about.refuse(config)


def _check_norms(prepared: Plan) -> None:
    """Refuse norms where a backend cannot compute a gradient without an update."""
    config = prepared.config
    for i, callback in enumerate(config.callbacks):
        if not isinstance(callback, callbacks.Norms):
            continue
        key = f"callbacks[{i}] (norms)"
        if isinstance(config.model, TwinModel):
            raise ConfigError(f"{key} needs another model than model={config.model.name}")
        if prepared.has_own_loss:
            raise ConfigError(f"{key} needs a loss of the config; this model computes its own")


def measured(prepared: Plan) -> list[str]:
    """Return the columns of metrics.csv that are measures of the model."""
    others = ("epoch", "step", "seconds")
    return [column for column in prepared.columns() if column not in others]


def _check_watched(prepared: Plan) -> None:
    """Refuse to watch a metric that is not measured."""
    known = measured(prepared)
    watched = {"trainer.monitor": prepared.config.trainer.monitor}
    if prepared.plateau:
        watched["schedule.metric"] = prepared.plateau.metric
    watched |= callbacks.watched(prepared.config.callbacks)
    for key, metric in watched.items():
        if metric not in known:
            raise ConfigError(
                f"{key} must be one of {', '.join(known)}, got {metric}{nearest(metric, known)}"
            )


def _check_throughput(prepared: Plan) -> None:
    """Refuse a share of the peak for a model that has no count of its FLOP."""
    is_own = isinstance(prepared.network, CustomNetwork)
    model = "of your own, whose FLOP are not counted" if is_own else "without matrix products"
    for i, section in enumerate(prepared.config.callbacks):
        peak = getattr(section, "peak_flops", None)
        if peak is not None and not flops(prepared.network):
            raise ConfigError(
                f"callbacks[{i}].peak_flops must be null for a model {model}, got {show(peak)}"
            )


@dataclass(frozen=True)
class Shapes:
    """The shapes of the data, and the names of its columns, that the model depends on."""

    task: Task
    num_classes: int
    num_targets: int
    input_shape: Shape
    positions: Shape = ()
    num_tokens: int = 0
    features: Sequence[str] = ()
    ids: Sequence[int] = ()
    has_gaps: bool = False  # positions may have no label

    @property
    def label_positions(self) -> Shape:
        """The axes of the outputs before the last one."""
        return (ANY_STEPS,) if self.task == "transcription" else self.positions


def shapes_of(data: Dataset) -> Shapes:
    return Shapes(
        data.task,
        len(data.classes),
        data.num_targets,
        data.input_shape,
        data.positions,
        data.num_tokens,
        data.features,
        data.ids,
        data.no_label is not None,
    )


def saved_shapes(data: Mapping[str, Any]) -> Shapes:
    """Read the shapes from a run's data.json."""
    columns = data.get("columns") or ()
    return Shapes(
        data["task"],
        len(data["classes"]),
        data["num_targets"],
        tuple(data["input_shape"]),
        tuple(data.get("positions", ())),
        data.get("num_tokens", 0),
        tuple(data.get("features") or ()),
        () if data.get("num_tokens") else transforms.ids(transforms.read(columns, "data.json")),
        data.get("no_label") is not None,
    )


def model_spec(config: Config, shapes: Shapes, example: Batch | None = None) -> ModelSpec:
    """Return the model's spec, from the config and the data's shapes. What a model of the user's
    own logs is known if it is tried on an example."""
    loss = losses.choose(config.loss, shapes.task, shapes.num_classes, shapes.positions)
    num = losses.num_outputs(loss, shapes.task, shapes.num_classes, shapes.num_targets)
    net = _network(config, shapes, num, example)
    trainer = config.trainer
    batch_size = config.device_batch_rows
    asked = trainer.threads
    if asked == "auto" and joins_first(config):
        asked = 1  # it is built after the number was fixed, so before its size is known
    num_threads = threads.resolve(asked, net, batch_size, config.num_devices)
    return ModelSpec(
        net, trainer.precision, config.device_name, batch_size, num_threads, trainer.tf32
    )


def joins_first(config: Config) -> bool:
    """Return whether the processes of the run join before the user's own model is built."""
    return not isinstance(config.model, LayerModel) and fixes_threads(config)


def fixes_threads(config: Config) -> bool:
    """Return whether code of the user's own fixes the number of threads before the training, in a
    process that cannot be replaced."""
    has_own_model = not isinstance(config.model, LayerModel)
    is_own = isinstance(config.optimizer, optimizers.Custom) or config.loss.name == "custom"
    return (has_own_model or is_own) and config.backend == "keras" and config.num_processes > 1


def _network(config: Config, shapes: Shapes, num_outputs: int, example: Batch | None) -> Network:
    model, input_shape = config.model, shapes.input_shape
    if isinstance(model, LayerModel):
        of_data = (shapes.label_positions, shapes.num_tokens, shapes.features, shapes.ids)
        return network(model.layers, input_shape, num_outputs, *of_data, shapes.has_gaps)
    precision = config.trainer.precision
    if precision == "exact":
        raise ConfigError(
            f"trainer.precision must be {INEXACT} for a model of your own, got exact: exact mode "
            f"supports only the layers of this project"
        )
    source = replace(source_of(config), takes_tokens=bool(shapes.num_tokens))
    asked, building = config.trainer.threads, dispatcher.building_threads
    with nullcontext() if building is None else console.quiet():
        backend = dispatcher.load(config.backend)
        dispatcher.prepare(backend, building or 1 if asked == "auto" else asked)
        built = backend.inspect(source, input_shape, precision, config.seed, example)
    _check_columns(built, source)
    is_free = built.has_loss or config.loss.name == "custom" or _needs_no_loss(config, built)
    wanted = (*shapes.label_positions, num_outputs)
    if not is_free and built.outputs is not None:
        raise ConfigError(
            f"{source.name} returns several outputs, {', '.join(built.outputs.names)}, which only "
            f"loss=custom takes, or a model that computes its own loss; got loss={config.loss.name}"
        )
    if not is_free and not fits_shape(built.output_shape, wanted):
        raise ConfigError(
            f"{source.name} returns rows of shape {list(built.output_shape)}; the loss and the "
            f"data need {show_wanted(wanted)}"
        )
    if built.has_loss and isinstance(model, TwinModel):
        raise ConfigError(
            f"{source.name} computes its own loss, which model=twin does not support; the config "
            f"names the loss of a twin"
        )
    net = CustomNetwork.of(source, input_shape, config.seed, built)
    return twins.network(net, config.backend, model.map) if isinstance(model, TwinModel) else net


def _needs_no_loss(config: Config, built: Built) -> bool:
    """Return whether task=twin compares several outputs without a loss of the config."""
    return config.task == "twin" and config.loss.name == "auto" and built.outputs is not None


def _check_columns(built: Built, source: Source) -> None:
    """Refuse names of logged metrics that metrics.csv cannot have as columns."""
    columns = [*built.train_columns, *built.val_columns]
    for i, column in enumerate(columns):
        if column in columns[:i]:
            raise ConfigError(
                f"{source.name} logs {column} in training and in validation; the columns of "
                f"metrics.csv need two names"
            )
        if column in ("epoch", "step", "seconds") or re.search(r'[,"\s]', column):
            raise ConfigError(
                f"{source.name} logs {show(column)}; a column of metrics.csv must have a name "
                f"without commas, quotes and spaces, and not epoch, step or seconds"
            )


def source_of(config: Config) -> Source:
    """Return the origin of the user's own model for the run's backend."""
    model = config.model
    if isinstance(model, CustomModel | ObjectModel):
        if model.given is not None:
            return Source(None, model.given)
        if isinstance(model, CustomModel):
            return Source(model.section)
        raise ConfigError(
            f"model=object is a model that was passed in Python, {show(model.object)}, and is in "
            f"no file; use runner.train, runner.resume or runner.load_run with model=..."
        )
    assert isinstance(config.model, TwinModel)
    sections = {"lightning": config.model.lightning, "keras": config.model.keras}
    if config.backend not in sections:
        raise ConfigError(
            f"backend must be one of {', '.join(sections)} for model={config.model.name}, got "
            f"{config.backend}"
        )
    section = sections[config.backend].section
    return Source(section, key=f"model.{config.backend}", is_twin=True)


def _batch_norms(net: Network | CustomNetwork) -> list[Node]:
    """Return the batch norms of this project's layers."""
    return [node for node in net.walk() if node.spec.layer == "batch_norm"]


def _vector_norms(net: Network) -> list[str]:
    """Name the batch norms that get one value of each channel of a row: a vector, or one step or
    pixel. One row has no variance."""
    if isinstance(net, CustomNetwork):
        norms = (f"the batch norm {name}".rstrip() for name in net.built.vector_norms)
        return [f"{norm} of {net.source.name}" for norm in norms]
    return [node.name for node in _batch_norms(net) if math.prod(node.input_shape[:-1]) == 1]


def _check_batch_norm(net: Network, order: Order | InOrder) -> None:
    """Refuse batch norm with a batch of one row, which has no variance."""
    batches = [(order.num_rows, order.batch_size)]
    if isinstance(order, Order):
        batches += [(s.last_row - s.first_row, s.batch_size) for s in order.earlier]
    for name in _vector_norms(net):
        if found := next((size for n, size in batches if 1 in (n % size, size)), None):
            raise ConfigError(
                f"trainer.batch_size={found} leaves a batch of one row, which {name} cannot "
                f"normalise"
            )
