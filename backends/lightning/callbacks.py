"""Callbacks of Lightning. They are not called by the real Trainer, whose batches are chunks: their
trainer is a stand-in that counts updates and epochs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from backends.lightning import custom
from backends.lightning.steps import Trainer
from runner.data.order import Chunk
from runner.errors import ConfigError, RunError
from runner.run.native import NativeCallback, attributes_of
from runner.run.observer import Epoch
from runner.spec import Report

_ABSENT = ("logger", "loggers", "callbacks", "datamodule", "val_dataloaders", "train_dataloader")
_ATTRIBUTES = (
    *(name for name in vars(Trainer) if not name.startswith("_") and name not in _ABSENT),
    *sorted(vars(Trainer())),
)
_OF_MODULE = (  # methods and attributes of a LightningModule that cannot work here
    *("log", "log_dict", "logger", "loggers", "optimizers", "lr_schedulers", "manual_backward"),
    *("all_gather", "clip_gradients", "toggle_optimizer", "untoggle_optimizer", "fabric"),
)


class Holder(pl.LightningModule):
    """The `pl_module` of a model that is no LightningModule: `model`, whose attributes it has."""

    def __init__(self, model: nn.Module, trainer: Trainer) -> None:
        super().__init__()
        self.model = model
        self.trainer = trainer  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class LightningCallback(NativeCallback):
    """A callback of Lightning as an observer."""

    base = pl.Callback
    supported = (
        *("on_fit_start", "on_fit_end", "on_train_start", "on_train_end"),
        *("on_train_epoch_start", "on_train_epoch_end"),
        *("on_train_batch_start", "on_train_batch_end"),
        *("on_validation_start", "on_validation_epoch_start"),
        *("on_validation_epoch_end", "on_validation_end"),
    )
    per_batch = ("on_train_batch_start", "on_train_batch_end")
    elsewhere = ("on_test_", "on_predict_", "on_sanity_check_")
    not_state = ()

    def __init__(self, native: Any, name: str, has_validation: bool) -> None:
        super().__init__(native, name, has_validation)
        self.trainer = Trainer()
        self.module: Any = None  # the user's LightningModule, or a Holder of the model
        for function in self.functions():
            self._check_source(function)

    def _check_source(self, function: Any) -> None:
        """Refuse attributes of the trainer and of the module that do not work here."""
        arguments = [argument.arg for argument in function.args.args]
        is_hook = function.name in self.hooks and len(arguments) > 2
        trainer, module = arguments[1:3] if is_hook else ("trainer", "pl_module")
        for name in (trainer, f"{module}.trainer"):
            for attribute, is_set in attributes_of(function, name):
                if is_set and attribute != "should_stop":
                    raise ConfigError(
                        f"{self.name}: {function.name} sets trainer.{attribute}, which has no "
                        f"effect here; a callback may set trainer.should_stop"
                    )
                if attribute not in _ATTRIBUTES:
                    raise ConfigError(
                        f"{self.name}: {function.name} uses trainer.{attribute}, which is not "
                        f"here; the trainer has {', '.join(sorted(vars(Trainer())))}"
                    )
        for name in (module, "self"):
            for attribute, _ in attributes_of(function, name):
                refused = _OF_MODULE if name == module else ("log", "log_dict")
                if attribute in refused and not hasattr(self.native, attribute):
                    raise ConfigError(
                        f"{self.name}: {function.name} uses {name}.{attribute}, which does not "
                        f"work in a callback here; the model's own steps can log"
                    )

    # ---- events

    def on_chunk_start(self, chunk: Chunk, live: Any) -> None:
        live = getattr(live, "live", live)
        if not self.is_begun:
            self._begin(chunk.first_step, live)
        self._now(chunk.first_step, live)
        trainer = self.trainer
        if live.run.epochs.index(chunk.first_step) == 0:
            self.hook("on_train_epoch_start")
        if "on_train_batch_start" in self.hooks:
            index = live.run.epochs.index(chunk.first_step)
            self.hook("on_train_batch_start", self._batch(chunk, live), index)
        trainer.training = True

    def on_chunk(self, chunk: Chunk, report: Report, live: Any) -> bool:
        live = getattr(live, "live", live)
        step = chunk.first_step + chunk.num_steps
        self._now(step - 1, live)
        self.trainer.global_step = step
        if "on_train_batch_end" in self.hooks:
            outputs = {"loss": torch.tensor(report.losses[-1])}
            index = live.run.epochs.index(step - 1)
            self.hook("on_train_batch_end", outputs, self._batch(chunk, live), index)
        self._check_weights(live)
        is_whole = live.run.epochs.index(step) == 0
        if is_whole or step == live.run.num_steps:
            if not is_whole:
                self.keep_state()
            if self.has_validation:
                with self._validating(live):
                    self.hook("on_validation_start")
                    self.hook("on_validation_epoch_start")
        return not self.trainer.should_stop

    def on_epoch(self, epoch: Epoch, live: Any) -> bool:
        live = getattr(live, "live", live)
        values = {name: torch.tensor(value) for name, value in epoch.metrics.items()}
        self.trainer.callback_metrics.update(values)
        self.trainer.callback_metrics.update({n.replace("/", "_"): v for n, v in values.items()})
        if self.has_validation:
            with self._validating(live):
                self.hook("on_validation_epoch_end")
                self.hook("on_validation_end")
        self.hook("on_train_epoch_end")
        self._check_weights(live)
        return not self.trainer.should_stop

    def on_finish(self, live: Any) -> None:
        live = getattr(live, "live", live)
        self.trainer.current_epoch = live.run.epochs.number(self.trainer.global_step)
        self.hook("on_train_end")
        self.hook("on_fit_end")
        self.hook("teardown", "fit")
        self._check_weights(live)

    def hook(self, name: str, *arguments: Any) -> None:
        """Call a hook with the trainer and the module."""
        if name not in self.hooks and not self.overrides(name):
            return
        module = self.module
        before = vars(module).get("log")
        object.__setattr__(module, "log", _refuse_log)
        try:
            self.call(name, self.trainer, module, *arguments)
        finally:
            if before is None:
                object.__delattr__(module, "log")
            else:
                object.__setattr__(module, "log", before)

    # ---- the trainer and the module

    def _begin(self, step: int, live: Any) -> None:
        """Begin or continue a run at `step`, in Lightning's order."""
        self.is_begun = True
        network = live.network
        steps = getattr(network, "steps", None)
        own = network.model if isinstance(network, custom.Network) else network
        self.trainer = Trainer() if steps is None else steps.trainer
        self.module = own
        if not isinstance(own, pl.LightningModule):
            self.module = Holder(own, self.trainer).to(live.torch_device)
        self._weights = {name: p.data_ptr() for name, p in own.named_parameters()}
        trainer, run = self.trainer, live.run
        trainer.max_steps = trainer.estimated_stepping_batches = run.num_steps
        trainer.max_epochs = run.epochs.count(run.num_steps)
        trainer.num_training_batches = run.epochs.size(run.epochs.number(step)) * run.accumulate
        self._now(step, live)
        self.hook("setup", "fit")
        if self.has_own_state:
            self.restore(torch.from_numpy)
        self.hook("on_fit_start")
        self.hook("on_train_start")
        self.restore(torch.from_numpy)  # after hooks that make the attributes new

    def _now(self, step: int, live: Any) -> None:
        self.trainer.global_step = step
        self.trainer.current_epoch = live.run.epochs.number(step)

    def _batch(self, chunk: Chunk, live: Any) -> tuple[Any, Any]:
        """Return the rows of a chunk of one update, as the model gets them."""
        (fields,) = live.fields_of(chunk)
        x, y = (fields[name].flatten(0, 2) for name in ("x", "y"))
        network = live.network
        return (network.to_model(x) if isinstance(network, custom.Network) else x), y

    @contextmanager
    def _validating(self, live: Any) -> Iterator[None]:
        """Set the model to evaluation in the block."""
        network, training = live.network, live.network.training
        self.trainer.validating, self.trainer.training = True, False
        with live.engine.evaluation():
            for module in (network, self.module):
                module.eval()
            try:
                yield
            finally:
                for module in (network, self.module):
                    module.train(training)
                self.trainer.validating, self.trainer.training = False, True

    def _check_weights(self, live: Any) -> None:
        """Raise RunError if the callback has given a parameter another memory: the optimizer would
        not see it."""
        module = self.module.model if isinstance(self.module, Holder) else self.module
        for name, parameter in module.named_parameters():
            if parameter.data_ptr() != self._weights.get(name):
                raise RunError(
                    f"{self.name} replaced the memory of the parameter {name}; change its values "
                    f"in place, with torch.no_grad() and copy_, mul_ or clamp_"
                )


def _refuse_log(*_: Any, **__: Any) -> None:
    raise RunError("log does not work in a callback here; the model's own steps can log")


def observers(natives: Mapping[str, Any], has_validation: bool) -> list[NativeCallback]:
    """Implements `runner.spec.Backend.observers`."""
    return [LightningCallback(native, name, has_validation) for name, native in natives.items()]
