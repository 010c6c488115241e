"""Callbacks of Keras. They are not called by `fit`, whose batches are chunks: their epochs and
batches are those of the run."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from runner.components.custom import CustomNetwork
from runner.data.order import Chunk
from runner.errors import ConfigError
from runner.run.native import NativeCallback, attributes_of
from runner.run.observer import Epoch
from runner.spec import Report

_OF_MODEL = (  # attributes of a compiled model, which the runner's is not for its user
    *("compile", "fit", "evaluate", "optimizer", "loss", "compiled", "compute_metrics"),
    *("train_on_batch", "test_on_batch", "train_step", "train_function", "make_train_function"),
)


class KerasCallback(NativeCallback):
    """A callback of Keras as an observer."""

    base = keras.callbacks.Callback
    supported = (
        *("on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end"),
        *("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end"),
        *("on_test_begin", "on_test_end"),
    )
    per_batch = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    elsewhere = ("on_predict_",)
    not_state = ("_model", "params")

    def __init__(self, native: Any, name: str, has_validation: bool) -> None:
        super().__init__(native, name, has_validation)
        self.model: Any = None
        self.loss_sum, self.num_rows = 0.0, 0  # of the epoch so far
        for function in self.functions():
            for attribute, _ in attributes_of(function, "self.model"):
                if attribute in _OF_MODEL:
                    raise ConfigError(
                        f"{self.name}: {function.name} uses self.model.{attribute}, which does not "
                        f"work in a callback here: the config's loss, optimizer and schedule train "
                        f"the model"
                    )

    # ---- events

    def on_chunk_start(self, chunk: Chunk, live: Any) -> None:
        run = _run(live)
        epoch, batch = run.epochs.number(chunk.first_step), run.epochs.index(chunk.first_step)
        if not self.is_begun:
            self._begin(live)
        if batch == 0:
            self.loss_sum, self.num_rows = 0.0, 0
            self.call("on_epoch_begin", epoch, {})
        if self.is_per_batch:
            self.call("on_train_batch_begin", batch, {})

    def on_chunk(self, chunk: Chunk, report: Report, live: Any) -> bool:
        run, step = _run(live), chunk.first_step + chunk.num_steps
        if self.is_per_batch:
            self.loss_sum += float(report.losses[-1]) * chunk.rows_per_step
            self.num_rows += chunk.rows_per_step
            logs = {"loss": self.loss_sum / self.num_rows}
            self.call("on_train_batch_end", run.epochs.index(step - 1), logs)
        is_whole = run.epochs.index(step) == 0
        if is_whole or step == run.num_steps:
            if not is_whole:
                self.keep_state()
            if self.has_validation:
                self.call("on_test_begin", {})
        return self._goes_on()

    def on_epoch(self, epoch: Epoch, live: Any) -> bool:
        logs = {
            name.removeprefix("train/").replace("val/", "val_"): float(value)
            for name, value in epoch.metrics.items()
        }
        if self.has_validation:
            measured = {n.removeprefix("val_"): v for n, v in logs.items() if n.startswith("val_")}
            self.call("on_test_end", measured)
        self.logs = logs
        self.call("on_epoch_end", epoch.number - 1, dict(logs))
        return self._goes_on()

    def on_finish(self, live: Any) -> None:
        self.call("on_train_end", dict(getattr(self, "logs", {})))

    def own_state(self) -> dict[str, Any]:
        return {"epoch": [self.loss_sum, self.num_rows]} if self.is_per_batch else {}

    # ---- the model

    def _begin(self, live: Any) -> None:
        """Begin or continue a run."""
        self.is_begun, run = True, _run(live)
        live = getattr(live, "live", live)
        is_own = isinstance(run.network, CustomNetwork)
        self.model = live.own_model() if is_own else live
        self.model.stop_training = False
        self.native.set_model(self.model)
        epochs = run.epochs.count(run.num_steps)
        self.native.set_params({"verbose": 0, "epochs": epochs, "steps": run.epochs.size(0)})
        if self._loaded is not None and self.is_per_batch:
            self.loss_sum, self.num_rows = self._loaded["epoch"]
        self.call("on_train_begin", {})
        self.restore(_tensor)  # after the hook, which may make the attributes new

    def _goes_on(self) -> bool:
        return not self.model.stop_training


def _run(live: Any) -> Any:
    return getattr(live, "live", live).engine.run


def _tensor(value: np.ndarray) -> Any:
    return tf.constant(value)


def observers(natives: Mapping[str, Any], has_validation: bool) -> list[NativeCallback]:
    """Implements `runner.spec.Backend.observers`."""
    return [KerasCallback(native, name, has_validation) for name, native in natives.items()]
