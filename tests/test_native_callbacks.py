"""Callbacks of Lightning and Keras: their hooks, their state, and what is refused."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runner
from runner import dispatcher
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but
from tests.test_python import nets, quick, sha256

STEPS = 8  # updates of an epoch of `quick`: 1,280 rows in batches of 160


@pytest.fixture(params=slow_but(BACKENDS, "lightning"))
def backend(request: pytest.FixtureRequest) -> str:
    dispatcher.load(request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recorder(backend: str, hooks: tuple[str, ...]) -> Any:
    """A callback that keeps the names of its hooks, with the epoch or batch that they get."""
    base = _base(backend)

    def hook(name: str) -> Any:
        def method(self: Any, *arguments: Any, logs: Any = None) -> None:
            self.seen.append([name, [a for a in arguments if isinstance(a, int)]])

        return method

    made = type("Recorder", (base,), {name: hook(name) for name in hooks})()
    made.seen = []
    return made


def _base(backend: str) -> Any:
    if backend == "keras":
        import keras

        return keras.callbacks.Callback
    import pytorch_lightning

    return pytorch_lightning.Callback


KERAS = (
    *("on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end"),
    *("on_test_begin", "on_test_end", "on_epoch_end", "on_train_end"),
)
LIGHTNING = (
    *("on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"),
    *("on_train_batch_end", "on_validation_start", "on_validation_epoch_start"),
    *("on_validation_epoch_end", "on_validation_end", "on_train_epoch_end", "on_train_end"),
    "on_fit_end",
)


def fitted_by_keras(callback: Any) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(loss="mse")
    x, y = np.zeros((STEPS, 3)), np.zeros((STEPS, 2))
    how = {"batch_size": 1, "epochs": 2, "verbose": 0}
    model.fit(x, y, validation_data=(x, y), callbacks=[callback], **how)


def fitted_by_lightning(callback: Any) -> None:
    import pytorch_lightning
    import torch

    class Net(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def training_step(self, batch: Any) -> Any:
            return self.layer(batch[0]).sum()

        def validation_step(self, batch: Any) -> None: ...

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    rows = torch.utils.data.TensorDataset(torch.zeros(STEPS, 3))
    loader = torch.utils.data.DataLoader(rows)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pytorch_lightning.Trainer(
        max_epochs=2, num_sanity_val_steps=0, accelerator="cpu", callbacks=[callback], **quiet
    )
    trainer.fit(Net(), loader, loader)


@pytest.mark.filterwarnings("ignore")
def test_hooks_are_called_in_the_order_of_the_framework(backend: str) -> None:
    """The order and the numbers of epochs and batches are those of the framework's own `fit` of a
    model with as many batches. Lightning's own loop numbers its batches as we do."""
    hooks, fit = {"keras": (KERAS, fitted_by_keras), "lightning": (LIGHTNING, fitted_by_lightning)}[
        backend
    ]
    expected = recorder(backend, hooks)
    fit(expected)
    callback = recorder(backend, hooks)
    quick(backend, callbacks=[callback])
    assert callback.seen == expected.seen


SOURCE = {
    "lightning": """
import pytorch_lightning as pl
import torch


class Total(pl.Callback):
    def __init__(self, end=None, at=None):
        self.end, self.at, self.total, self.epochs = end, at, torch.zeros(2), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.total += outputs["loss"] * len(batch[0])
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.clamp_(-0.2, 0.2)
        if trainer.global_step == self.at:
            import signal
            signal.raise_signal(signal.SIGINT)

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append((trainer.current_epoch, float(trainer.callback_metrics["val_loss"])))
        trainer.should_stop = trainer.current_epoch == self.end


class Own(Total):
    def state_dict(self):
        return {"total": self.total, "epochs": self.epochs}

    def load_state_dict(self, state):
        self.total, self.epochs = state["total"], state["epochs"]


class Strange(Total):
    def on_train_start(self, trainer, pl_module):
        self.rows = {1, 2}


class Replaces(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        for parameter in pl_module.parameters():
            parameter.data = parameter.data.clone()


class Raises(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        raise OSError("no such file")


class Backward(pl.Callback):
    def on_after_backward(self, trainer, pl_module): ...


class Attribute(pl.Callback):
    def on_train_end(self, t, pl_module):
        t.logger.log_metrics({})


class Sets(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        trainer.max_epochs = 9


class Logs(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("a", 1.0)


class Early(pl.callbacks.EarlyStopping):
    pass
""",
    "keras": """
import keras
import numpy as np


class Total(keras.callbacks.Callback):
    def __init__(self, end=None, at=None):
        super().__init__()
        self.end, self.at, self.total, self.step = end, at, np.zeros(2), 0

    def on_train_begin(self, logs=None):
        self.epochs = []

    def on_train_batch_end(self, batch, logs=None):
        self.total += logs["loss"]
        self.step += 1
        for variable in self.model.trainable_variables:
            variable.assign(keras.ops.clip(variable, -0.2, 0.2))
        if self.step == self.at:
            import signal
            signal.raise_signal(signal.SIGINT)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((epoch, logs["val_loss"]))
        self.model.stop_training = epoch == self.end


class Own(Total):
    def state_dict(self):
        return {"total": self.total, "epochs": self.epochs, "step": self.step}

    def load_state_dict(self, state):
        self.total, self.epochs, self.step = state["total"], state["epochs"], state["step"]


class Strange(Total):
    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.rows = {1, 2}


class Raises(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise OSError("no such file")


class Backward(keras.callbacks.Callback):
    def on_test_batch_end(self, batch, logs=None): ...


class Attribute(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate.assign(0.1)


class Early(keras.callbacks.EarlyStopping):
    pass
""",
}


def callbacks(backend: str, folder: Path) -> Any:
    """The module above. It is a file, so that its source can be read."""
    path = folder / f"callbacks_{backend}.py"
    path.write_text(SOURCE[backend])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", slow_but(["Total", "Own"], "Own"))
@pytest.mark.parametrize("at", slow_but([4, 8, 13], 4))
def test_a_killed_run_resumes_with_the_callbacks_state(
    tmp_path: Path, backend: str, name: str, at: int
) -> None:
    """In the middle of an epoch, at its end, and in the second one: the callback's sum, and the
    weights that it clips, have the bits of a whole run."""
    kind, net = getattr(callbacks(backend, tmp_path), name), nets(backend)["Net"]
    whole = kind()
    expected = quick(backend, model=net, callbacks=[whole])
    with pytest.raises(runner.Interrupted) as stopped:
        quick(backend, model=net, callbacks=[kind(at=at)])
    again = kind()
    assert stopped.value.folder is not None
    run = runner.resume(stopped.value.folder, model=net, callbacks=[again], quiet=True)
    assert np.array_equal(again.total, whole.total)
    assert again.epochs == whole.epochs
    assert len(whole.epochs) == 2
    assert sha256(run) == sha256(expected)
    assert [value for _, value in again.epochs] == pytest.approx(
        run.metrics["val/loss"],
        rel=1e-6,  # callback_metrics are float32 on Lightning
    )
    assert max(np.abs(w).max() for w in run.state.weights.values()) <= np.float32(0.2)


def test_a_callback_ends_the_run(tmp_path: Path, backend: str) -> None:
    kind = callbacks(backend, tmp_path).Total
    run = quick(backend, epochs=4, callbacks=[kind(end=1)])
    assert (run.status, len(run.trace["step"])) == ("completed", 2 * STEPS)


def test_state_that_a_checkpoint_cannot_hold_is_named_on_resume(
    tmp_path: Path, backend: str
) -> None:
    kind = callbacks(backend, tmp_path).Strange
    with pytest.raises(runner.Interrupted) as stopped:
        quick(backend, callbacks=[kind(at=4)])
    assert stopped.value.folder is not None
    with pytest.raises(runner.ConfigError, match=r"Strange cannot resume: self.rows is a builtins"):
        runner.resume(stopped.value.folder, callbacks=[kind()], quiet=True)
    assert runner.resume(stopped.value.folder, quiet=True).status == "completed"


WRONG = {
    "Backward": "not called here; the hooks that are called: on_",
    "Attribute": r"uses (trainer.logger, which is not here|self.model.optimizer, which does not)",
    "Sets": r"on_train_end sets trainer.max_epochs, which has no effect here",
    "Logs": r"uses pl_module.log, which does not work in a callback here",
    "Early": r"is a EarlyStopping; use trainer.early_stopping_patience",
}


def test_callbacks_that_cannot_work_are_refused(tmp_path: Path, backend: str) -> None:
    module = callbacks(backend, tmp_path)
    for name, words in WRONG.items():
        if hasattr(module, name):
            how = {"monitor": "val_loss"} if name == "Early" else {}
            with pytest.raises(runner.ConfigError, match=words):
                quick(backend, callbacks=[getattr(module, name)(**how)])
    for more, words in {
        "trainer.steps_per_call=5": "trainer.steps_per_call must be auto or 1 with",
        "trainer.accumulate_grad_batches=2": "trainer.accumulate_grad_batches must be 1 with",
        "trainer.precision=exact": "got exact; a runner.Observer can",
    }.items():
        with pytest.raises(runner.ConfigError, match=words):
            quick(backend, more, callbacks=[module.Total()])
    other = {"lightning": "keras", "keras": "lightning"}[backend]
    with pytest.raises(runner.ConfigError, match=f"needs backend={backend}, got {other}"):
        quick(other, callbacks=[module.Total()])
    assert not (tmp_path / "outputs").exists()


def test_an_error_in_a_hook_names_it(tmp_path: Path, backend: str) -> None:
    module = callbacks(backend, tmp_path)
    with pytest.raises(runner.RunError, match=r"Raises: on_train_\w+ raised OSError: no such file"):
        quick(backend, callbacks=[module.Raises()])
    if backend == "lightning":
        with pytest.raises(runner.RunError, match="replaced the memory of the parameter"):
            quick(backend, callbacks=[module.Replaces()])


def test_the_command_line_makes_callbacks(tmp_path: Path, backend: str) -> None:
    """The run ends after the first epoch; the state is in the checkpoint, so that it resumes."""
    (tmp_path / "mine.py").write_text(SOURCE[backend])
    common = (f"backend={backend}", "device=cpu", "trainer.max_epochs=3", "trusted_modules=[mine]")
    (done,) = forked(tmp_path, (*common, "callbacks=[{_target_: mine.Total, end: 0}]"))
    assert (done.status, done.err) == (0, "")
    assert "ended by the observer Total at step 40" in done.out
    end = "callbacks=[{_target_: mine.Total, end: 9}]"
    (again,) = forked(tmp_path, (f"resume={done.folder}", "trusted_modules=[mine]", end))
    assert (again.status, again.err) == (0, "")
    assert "completed: 120 steps" in again.out
