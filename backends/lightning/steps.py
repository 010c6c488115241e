"""The user's LightningModule: its steps, its hooks and what it logs, called in Lightning's order.

The module is not fitted by a Trainer of its own: the updates are made here, in chunks. The module's
`trainer` is a stand-in with the numbers that modules read, such as `current_epoch`.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from runner.components.clipping import Clip
from runner.data.source import Batch
from runner.errors import ConfigError, RunError
from runner.schedules.units import Periods
from runner.spec import Measured
from runner.user_code import blame

# Methods that would change the numbers of a run, and that are never called here
_REFUSED = (
    "backward",
    "configure_model",
    "on_after_batch_transfer",
    "on_before_batch_transfer",
    "on_load_checkpoint",
    "on_save_checkpoint",
    "optimizer_step",
    "optimizer_zero_grad",
    "transfer_batch_to_device",
)
# Methods that are not called here, which the user should know
_UNUSED = (
    "configure_callbacks",
    "configure_optimizers",
    "lr_scheduler_step",
    "on_before_backward",
    "on_before_zero_grad",
    "prepare_data",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
)


def overrides(module: pl.LightningModule, method: str) -> bool:
    """Return whether the user's class defines a method of LightningModule."""
    return getattr(type(module), method, None) is not getattr(pl.LightningModule, method, None)


class Trainer:
    """The `trainer` of the user's module. It has the numbers below and nothing else."""

    world_size = num_nodes = num_devices = 1
    global_rank = local_rank = node_rank = 0
    is_global_zero = True
    logger, loggers, callbacks, datamodule = None, (), (), None
    sanity_checking = barebones = fast_dev_run = False
    val_dataloaders = train_dataloader = progress_bar_callback = None

    def __init__(self) -> None:
        self.current_epoch = self.global_step = 0
        self.max_epochs = self.max_steps = self.num_training_batches = 0
        self.estimated_stepping_batches = 0
        self.training = self.validating = self.should_stop = False
        self.callback_metrics: dict[str, Tensor] = {}
        self.logged_metrics = self.progress_bar_metrics = self.callback_metrics

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"self.trainer has no {name} here; it has {', '.join(sorted(vars(self)))}"
        )


class Log:
    """Takes the place of `self.log` during a step."""

    def __init__(self) -> None:
        # name -> values with their numbers of rows; or a torchmetrics object, which counts itself
        self.values: dict[str, list[tuple[Any, int]]] = {}
        self.objects: dict[str, Any] = {}
        self.reductions: dict[str, str] = {}
        self.num_rows = 1

    def __call__(
        self,
        name: str,
        value: Any,
        *args: Any,
        reduce_fx: Any = "mean",
        batch_size: int | None = None,
        **_: Any,
    ) -> None:
        if hasattr(value, "compute") and hasattr(value, "reset"):
            self.objects[name] = value
            return
        kind = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "")
        if kind not in ("mean", "min", "max", "sum"):
            raise RunError(f"self.log({name!r}): reduce_fx must be mean, min, max or sum")
        self.reductions[name] = kind
        value = value.detach() if isinstance(value, Tensor) else value
        self.values.setdefault(name, []).append((value, batch_size or self.num_rows))

    def take(self) -> dict[str, list[tuple[float, int]]]:
        """Return the values since the last call, as numbers."""
        values, self.values = self.values, {}
        return {name: [(float(v), rows) for v, rows in each] for name, each in values.items()}


def _mean(values: Iterable[tuple[float, int]]) -> float:
    values = [*values]
    return math.fsum(v * rows for v, rows in values) / sum(rows for _, rows in values)


class Steps:
    """A LightningModule's steps and hooks."""

    def __init__(self, module: pl.LightningModule, to_model: Callable[[Tensor], Tensor]) -> None:
        self.module, self.to_model = module, to_model
        self.trainer, self.log = Trainer(), Log()
        self.has_validation = overrides(module, "validation_step")
        module.trainer = self.trainer  # type: ignore[assignment]
        object.__setattr__(module, "log", self.log)  # not in the module's state
        self.batch_index = 0
        self._num_arguments = {
            name: len(inspect.signature(getattr(module, name)).parameters)
            for name in ("training_step", "validation_step", "test_step")
        }

    # ---- training

    def begin_fit(self, step: int, num_steps: int, epochs: Periods, per_update: int) -> None:
        """Begin or continue a run at `step`."""
        trainer = self.trainer
        self.epochs, self.per_update = epochs, per_update
        trainer.max_steps = trainer.estimated_stepping_batches = num_steps
        trainer.max_epochs = epochs.count(num_steps)
        self._now(step)
        trainer.training = True
        self._call("on_fit_start")
        self._call("on_train_start")

    def end_fit(self) -> None:
        self._call("on_train_end")
        self._call("on_fit_end")
        self.trainer.training = False

    def begin_update(self, step: int) -> None:
        self._now(step)
        index = self.epochs.index(step)
        self.batch_index = index * self.per_update
        if index == 0:
            self._call("on_train_epoch_start")

    def _now(self, step: int) -> None:
        trainer, epoch = self.trainer, self.epochs.number(step)
        trainer.global_step, trainer.current_epoch = step, epoch
        trainer.num_training_batches = self.epochs.size(epoch) * self.per_update

    def train(self, x: Tensor, *others: Tensor) -> Tensor:
        """Call `training_step` on a micro-batch: x, y, and weights if the rows have some. Return
        its loss."""
        batch, index = (self.to_model(x), *others), self.batch_index
        self.log.num_rows = len(x)
        self._call("on_train_batch_start", batch, index)
        returned = self._step("training_step", batch, index)
        loss = returned.get("loss") if isinstance(returned, Mapping) else returned
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise RunError(
                f"training_step must return the loss, a tensor with one number and a gradient, or "
                f"a dict with it as loss; got {found}"
            )
        self._returned = returned, batch
        return loss.reshape(())

    def end_batch(self) -> None:
        """Call after the update of a micro-batch, or after its backward pass if others follow."""
        returned, batch = self._returned
        self._call("on_train_batch_end", returned, batch, self.batch_index)
        self.batch_index += 1

    def end_backward(self) -> None:
        self._call("on_after_backward")

    def clip(self, optimizer: Any, rule: Clip, clip: Callable[..., None]) -> None:
        """Clip the gradients, by the module's `configure_gradient_clipping` if it has one. `clip`
        clips by a norm or a value."""
        largest, algorithm = rule.largest, rule.algorithm
        self._call("on_before_optimizer_step", optimizer)
        if overrides(self.module, "configure_gradient_clipping"):
            object.__setattr__(self.module, "clip_gradients", clip)
            self.module.configure_gradient_clipping(optimizer, largest, algorithm)
        elif largest is not None:
            clip(optimizer, largest, algorithm)

    def take(self) -> dict[str, float]:
        """Return the means of what the last update has logged, by column."""
        values = self.log.take()
        for name in values:
            if self.log.reductions[name] != "mean":
                raise RunError(f"self.log({name!r}): reduce_fx must be mean in training_step")
        return {column(name, "train"): _mean(v) for name, v in values.items()}

    def end_epoch(self, is_whole: bool) -> dict[str, float]:
        """Return what torchmetrics objects have counted, and what `on_train_epoch_end` logs."""
        numbers = {}
        if is_whole:
            self._call("on_train_epoch_end")
            numbers = {column(name, "train"): _mean(v) for name, v in self.log.take().items()}
        for name, metric in self.log.objects.items():
            numbers[column(name, "train")] = float(metric.compute())
            if is_whole:
                metric.reset()
        return numbers

    # ---- validation

    def validate(
        self, blocks: Iterable[tuple[Tensor, ...]], seed: Callable[[int], None]
    ) -> Measured:
        """Call `validation_step` on each block, with its hooks."""
        if not self.has_validation:
            return Measured({})
        training, self.log = self.log, Log()
        object.__setattr__(self.module, "log", self.log)
        self.trainer.validating = True
        rows: dict[str, list[np.ndarray]] = {}
        try:
            for hook in ("on_validation_start", "on_validation_epoch_start"):
                self._call(hook)
            for i, block in enumerate(blocks):
                seed(i)
                for name, value in self._validate(block, i).items():
                    rows.setdefault(name, []).append(np.full(len(block[0]), value))
            self._call("on_validation_epoch_end")
            last = {name: [v for v, _ in each] for name, each in self.log.take().items()}
            numbers = {column(name, "val"): v[-1] for name, v in last.items()}
            for name, metric in self.log.objects.items():
                numbers[column(name, "val")] = float(metric.compute())
                metric.reset()
            reduced = self._reduced(rows)
            self._call("on_validation_end")
        finally:
            self.log = training
            object.__setattr__(self.module, "log", training)
            self.trainer.validating = False
        means = {name: np.concatenate(v) for name, v in rows.items() if name not in reduced}
        return Measured(means, {**reduced, **numbers})

    def _validate(self, block: tuple[Tensor, ...], index: int) -> dict[str, float]:
        x, *others = block
        batch = self.to_model(x), *others
        self.log.num_rows = len(x)
        self._call("on_validation_batch_start", batch, index)
        returned = self._step("validation_step", batch, index)
        self._call("on_validation_batch_end", returned, batch, index)
        values = {column(name, "val"): _mean(v) for name, v in self.log.take().items()}
        loss = returned.get("loss") if isinstance(returned, Mapping) else returned
        if isinstance(loss, Tensor) and loss.numel() == 1:
            values["val/loss"] = float(loss)
        return values

    def _reduced(self, rows: Mapping[str, list[np.ndarray]]) -> dict[str, float]:
        """Reduce values that were logged with another reduction than the mean."""
        reduced = {}
        for name, kind in self.log.reductions.items():
            values = [float(v[0]) for v in rows.get(column(name, "val"), [])]
            if kind != "mean" and values:
                by_kind = {"min": min(values), "max": max(values), "sum": math.fsum(values)}
                reduced[column(name, "val")] = by_kind[kind]
        return reduced

    # ---- both

    def _step(self, name: str, batch: Any, index: int) -> Any:
        arguments = (batch, index)[: max(1, self._num_arguments[name])]
        return getattr(self.module, name)(*arguments)

    def _call(self, hook: str, *arguments: Any) -> None:
        if overrides(self.module, hook):
            getattr(self.module, hook)(*arguments)


def column(name: str, split: str) -> str:
    """Return the column of metrics.csv for a name given to `self.log`: the name itself. The loss
    has one column: names such as val_loss are val/loss."""
    return f"{split}/loss" if name in (f"{split}_loss", f"{split}/loss") else name


def check(module: pl.LightningModule, name: str) -> tuple[str, ...]:
    """Refuse a module that the steps cannot train; return the methods that are not called."""
    if not module.automatic_optimization:
        raise ConfigError(
            f"{name} sets automatic_optimization=False, as modules with several optimizers do; "
            f"only modules with one optimizer and automatic optimization are supported"
        )
    for method in _REFUSED:
        if overrides(module, method):
            raise ConfigError(
                f"{name} defines {method}, which is not called here and may change its results; "
                f"remove it"
            )
    made = optimizers_of(module)
    if len(made) > 1:
        raise ConfigError(
            f"{name} has {len(made)} optimizers in configure_optimizers; only modules with one "
            f"optimizer are supported"
        )
    return tuple(method for method in _UNUSED if overrides(module, method))


def optimizers_of(module: pl.LightningModule) -> list[Optimizer]:
    """Return the optimizers of `configure_optimizers`, without schedulers; none if it cannot run
    here: the config's optimizer replaces it, so its errors do not matter."""
    if not overrides(module, "configure_optimizers"):
        return []
    try:
        made: Any = module.configure_optimizers()
    except Exception:
        return []
    if isinstance(made, tuple | list) and made and isinstance(made[0], tuple | list):
        made = made[0]  # optimizers, schedulers
    each = made if isinstance(made, tuple | list) else [made]
    each = [one.get("optimizer") if isinstance(one, Mapping) else one for one in each]
    return [one for one in each if isinstance(one, Optimizer)]


def rate_factors(module: pl.LightningModule) -> dict[str, float] | None:
    """Map each parameter of the module's own optimizer to its rate, relative to that of the first
    group; None if it has no optimizer."""
    made = optimizers_of(module)
    if not made:
        return None
    names = {p: name for name, p in module.named_parameters()}
    groups = made[0].param_groups
    first = groups[0]["lr"]
    return {names[p]: g["lr"] / first for g in groups for p in g["params"] if p in names}


def tensors(batch: Batch) -> tuple[Tensor, ...]:
    """Return x, y, and weights if the rows have some."""
    names = [name for name in ("x", "y", "weight") if name in batch]
    return tuple(torch.from_numpy(batch[name]) for name in names)


def trial(
    steps: Steps, batch: tuple[Tensor, ...], name: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Try one training step and one validation step. Return the columns that they log."""
    try:
        steps.begin_fit(0, 1, Periods(1), 1)
        steps.begin_update(0)
        steps.train(*batch).backward()
        steps.end_batch()
        train = [*steps.take()]
        steps.module.eval()
        with torch.no_grad():
            measured = steps.validate([batch], lambda index: None)
        steps.module.train()
        train += steps.end_epoch(is_whole=True)
        steps.end_fit()
    except (ConfigError, RunError) as error:
        raise ConfigError(f"{name}: {error}") from error
    except Exception as error:
        reason = blame(error, type(steps.module).__module__)
        raise ConfigError(
            f"{name} raised {reason}, given {len(batch[0])} rows of the data"
        ) from error
    train_columns = tuple(dict.fromkeys(c for c in train if c != "train/loss"))
    val_columns = tuple(dict.fromkeys([*measured.rows, *measured.numbers]))
    first = [c for c in val_columns if c == "val/loss"]
    return train_columns, (*first, *(c for c in val_columns if c not in first))
