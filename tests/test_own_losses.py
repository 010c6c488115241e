"""Losses, metrics and training steps of the user's own, through the command line and on both
backends."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import runner
from runner.run.run_folder import read_columns, read_json
from tests.command_line import forked

MODULE = {
    "lightning": """
import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn


def mean(outputs, batch):
    x, y = batch
    return F.cross_entropy(outputs, y)


def rows(outputs, batch, factor=1.0):
    x, y = batch
    assert x.shape[0] == y.shape[0]
    return factor * F.cross_entropy(outputs, y, reduction="none")


def wrong_shape(outputs, batch):
    return outputs


def raises(outputs, batch):
    return outputs.no_such_thing


def detached(outputs, batch):
    return outputs.detach().sum()


class Net(nn.Module):
    def __init__(self, rate=0.0):
        super().__init__()
        self.body = nn.Linear(64, 16)
        self.drop = nn.Dropout(rate)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.body(x))))


class Steps(pl.LightningModule):
    def __init__(self, rate=0.0, clip=None):
        super().__init__()
        net = Net(rate)
        self.body, self.drop, self.head, self.clip = net.body, net.drop, net.head, clip
        self.accuracy = torchmetrics.MeanMetric()
        self.hooks = []

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.body(x))))

    def _measure(self, batch):
        x, y = batch
        assert (self.dtype, self.device) == (x.dtype, x.device)
        z = self(x)
        return F.cross_entropy(z, y), (z.argmax(1) == y).float()

    def training_step(self, batch, batch_idx):
        loss, hits = self._measure(batch)
        self.accuracy.update(hits)
        self.log("counted", self.accuracy)
        self.log_dict({"hits": hits.mean(), "epoch_number": float(self.current_epoch)})
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        loss, hits = self._measure(batch)
        self.log("val_loss", loss)
        self.log("val_hits", hits.mean())
        self.log("val_rows", float(len(hits)), reduce_fx="sum")

    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        self.clip_gradients(optimizer, gradient_clip_val=self.clip or gradient_clip_val)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Groups(Steps):
    def configure_optimizers(self):
        groups = [
            {"params": self.body.parameters(), "lr": 0.001},
            {"params": self.head.parameters()},
        ]
        optimizer = torch.optim.RAdam(groups, lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Head(Steps):
    def configure_optimizers(self):
        return [torch.optim.RAdam(self.head.parameters(), lr=0.5)]


class NoForward(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch):
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        return {"loss": F.cross_entropy(self.layer(batch[0]), batch[1])}

    def on_validation_epoch_end(self):
        self.log("epochs", self.current_epoch + 1)


class Twice(Steps):
    def validation_step(self, batch, batch_idx):
        self.log("hits", 1.0)


class Comma(Steps):
    def validation_step(self, batch, batch_idx):
        self.log("a,b", 1.0)


class Two(Steps):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


class Manual(Steps):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Backward(Steps):
    def backward(self, loss):
        loss.backward()


class Nothing(Steps):
    def training_step(self, batch, batch_idx):
        return None


class Fails(Steps):
    def validation_step(self, batch, batch_idx):
        return self.no_such_thing
""",
    "keras": """
import keras
import numpy as np
from keras import ops


def rows(outputs, batch, factor=1.0):
    x, y = batch
    p = ops.log_softmax(outputs)
    return -factor * ops.take_along_axis(p, y[:, None], axis=1)[:, 0]


def mean(outputs, batch):
    return ops.mean(rows(outputs, batch))


def wrong_shape(outputs, batch):
    return outputs


def raises(outputs, batch):
    return outputs.no_such_thing


def detached(outputs, batch):
    return ops.sum(ops.stop_gradient(outputs))


class Net(keras.Model):
    def __init__(self, rate=0.0):
        super().__init__()
        self.body = keras.layers.Dense(16, activation="relu")
        self.drop = keras.layers.Dropout(rate)
        self.head = keras.layers.Dense(10)

    def call(self, x, training=False):
        return self.head(self.drop(self.body(x), training=training))


class Steps(Net):
    def __init__(self, rate=0.0):
        super().__init__(rate)
        self.hits = keras.metrics.SparseCategoricalAccuracy(name="hits")

    @property
    def metrics(self):
        return [self.hits]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.hits.update_state(y, y_pred)
        return mean(y_pred, (x, y))


class Fails(Steps):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.no_such_thing


class Train(Steps):
    def train_step(self, data):
        return {}
""",
}
METRICS = """

def bias(z, y, power=1):
    return np.mean((z.argmax(axis=1) - y) ** power)


def hit(z, y):
    return z.argmax(axis=1) == y


def matrix(z, y):
    return z
"""
MODULE = {name: module + METRICS for name, module in MODULE.items()}
TRUSTED = "trusted_modules=[mine]"
SHORT = ("device=cpu", "trainer.batch_size=160", "trainer.max_epochs=2", TRUSTED)
FLOAT64 = ("trainer.precision=float64", "model=mlp", *SHORT)
OWN = ("model=custom", "model._target_=mine.Steps", *SHORT)


def columns(here: Path, *lines: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
    """metrics.csv of each run."""
    each = forked(here, *lines)
    assert [(done.status, done.err) for done in each] == [(0, "")] * len(lines)
    return [read_columns(here / done.folder / "metrics.csv") for done in each]


def test_an_own_cross_entropy_trains_as_ours(here: Path, backend: str) -> None:
    """As a mean and as rows, in float64. 1e-12: the sums may be taken in another order."""
    ours, mean, rows = columns(
        here,
        (f"backend={backend}", *FLOAT64),
        (f"backend={backend}", *FLOAT64, "loss=custom", "loss._target_=mine.mean"),
        (f"backend={backend}", *FLOAT64, "loss=custom", "loss._target_=mine.rows"),
    )
    assert list(ours) == list(mean) == list(rows)
    for name in set(ours) - {"seconds"}:
        np.testing.assert_allclose(mean[name], ours[name], rtol=0, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(rows[name], ours[name], rtol=0, atol=1e-12, err_msg=name)


def test_arguments_of_an_own_loss(here: Path, backend: str) -> None:
    """Twice the loss at half the rate is the same run with SGD, to the rounding of float64."""
    own = ("loss=custom", "loss._target_=mine.rows", "optimizer=sgd", *FLOAT64)
    one, two = columns(
        here,
        (f"backend={backend}", *own, "optimizer.lr=0.1"),
        (f"backend={backend}", *own, "optimizer.lr=0.05", "loss.factor=2.0"),
    )
    np.testing.assert_allclose(two["val/loss"], 2 * one["val/loss"], rtol=0, atol=1e-12)


def test_class_weights_are_the_same_on_every_backend(here: Path, backend: str) -> None:
    """The backend's loss of each update is NumPy's of metrics.csv: with one update an epoch they
    are of the same rows. 1e-12: the sums may be taken in another order."""
    line = ("loss=cross_entropy", "loss.class_weights=balanced", "loss.label_smoothing=0.1")
    whole = ("trainer.batch_size=1280", "trainer.precision=float64", "trainer.max_epochs=3")
    (done,) = forked(here, (f"backend={backend}", *line, *whole, "device=cpu"))
    assert (done.status, done.err) == (0, "")
    trace, rows = (read_columns(here / done.folder / name) for name in ("trace.csv", "metrics.csv"))
    np.testing.assert_allclose(trace["loss"], rows["train/loss"], rtol=0, atol=1e-12)


def test_own_metrics_are_columns(here: Path, backend: str) -> None:
    """One number for all validation rows, or one for each row, which is then accuracy."""
    asked = "[accuracy,f1_macro,{_target_: mine.bias, power: 2, name: square},{_target_: mine.hit}]"
    (found,) = columns(here, (f"backend={backend}", *SHORT, f"metrics={asked}"))
    of_rows = ["loss", "accuracy", "f1_macro", "square", "hit"]
    assert [name for name in found if name.startswith("val/")] == [f"val/{n}" for n in of_rows]
    assert [name for name in found if name.startswith("train/")] == [
        f"train/{n}" for n in ("loss", "accuracy", "hit")
    ]
    for split in ("train", "val"):
        assert np.array_equal(found[f"{split}/hit"], found[f"{split}/accuracy"])


def test_own_steps_train_as_the_config_s_loss(here: Path, backend: str) -> None:
    """The same network and loss once as the model's own steps, with its metrics as columns. Its
    mean of an epoch is over the batches' float32 means: 1e-6."""
    plain = ("model=custom", "model._target_=mine.Net", *SHORT)
    ours, own = columns(here, (f"backend={backend}", *plain), (f"backend={backend}", *OWN))
    train, val = {
        "lightning": ("hits", "val_hits"),
        "keras": ("train/hits", "val/hits"),
    }[backend]
    pairs = {"train/loss": "train/loss", "val/loss": "val/loss"}
    pairs |= {train: "train/accuracy", val: "val/accuracy"}
    for name, like in pairs.items():
        np.testing.assert_allclose(own[name], ours[like], rtol=0, atol=1e-6, err_msg=name)
    if backend == "lightning":
        assert own["epoch_number"].tolist() == [0, 1]
        assert own["val_rows"].tolist() == [256, 256]
        np.testing.assert_allclose(own["counted"], own["hits"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_own_steps_in_two_parts_are_those_of_one(here: Path, backend: str) -> None:
    """From inside an epoch on, with dropout and with what the metrics have counted so far."""
    command = (*OWN, f"backend={backend}", "model.rate=0.3", "trainer.checkpoint_every=1steps")
    kept = ("trainer.keep_checkpoints=null",)
    whole, part = forked(here, (*command, *kept), (*command, *kept, "trainer.max_steps=11"))
    assert (whole.status, part.status) == (0, 0), whole.err + part.err
    step = random.Random(1).randrange(1, 11)
    resume = (f"resume={part.folder}", f"checkpoint={step}", "trainer.max_steps=null", TRUSTED)
    (resumed,) = forked(here, resume)
    assert (resumed.status, resumed.err) == (0, "")
    results = [read_json(here / done.folder / "result.json") for done in (whole, part)]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    one, two = (read_columns(here / done.folder / "metrics.csv") for done in (whole, part))
    for name in set(one) - {"seconds"}:
        assert np.array_equal(one[name], two[name]), name


def test_own_steps_are_evaluated(here: Path, backend: str) -> None:
    """On the test rows, with the columns of validation under the name of the split."""
    (done,) = forked(here, (*OWN, f"backend={backend}"))
    (evaluated,) = forked(here, (f"run={done.folder}", "task=evaluate", TRUSTED))
    assert (evaluated.status, evaluated.err) == (0, "")
    found = json.loads((here / done.folder / "test.json").read_text())
    name = {"lightning": "test/val_hits", "keras": "test/hits"}[backend]
    assert 0.1 < found[name] <= 1  # a guess has 0.1
    assert found["test/loss"] > 0


@pytest.mark.slow
def test_a_module_s_clipping_is_used(tmp_path: Path) -> None:
    """A LightningModule that clips to 0.05 is the run with trainer.gradient_clip_norm=0.05."""
    (tmp_path / "mine.py").write_text(MODULE["lightning"])
    run = (*OWN, "trainer.precision=float64")
    each = forked(tmp_path, (*run, "model.clip=0.05"), (*run, "trainer.gradient_clip_norm=0.05"))
    assert [(done.status, done.err) for done in each] == [(0, "")] * 2
    traces = [(tmp_path / done.folder / "trace.csv").read_text() for done in each]
    assert traces[0] == traces[1]


@pytest.mark.slow
def test_a_module_s_own_optimizer_is_kept(tmp_path: Path) -> None:
    """Its groups have the ratio of their rates, and the run is that of optimizer=custom with the
    same groups. Weights that it does not have stay as they are. In two parts it ends the same."""
    (tmp_path / "mine.py").write_text(MODULE["lightning"])
    names = ("Groups", "Groups", "Head", "Groups")
    module, part, head, custom = (
        (
            "model=custom",
            f"model._target_=mine.{name}",
            *SHORT,
            "schedule=linear",
            "optimizer.lr=0.002",
        )
        for name in names
    )
    kept = ("optimizer=module",)
    same = ("optimizer=custom", "optimizer._target_=torch.optim.RAdam")
    factor = "optimizer.groups=[{match: 'head.*', lr_factor: 10.0}]"
    each = forked(
        tmp_path,
        (*module, *kept),
        (*part, *kept, "trainer.checkpoint_every=5steps", "trainer.keep_checkpoints=null"),
        (*head, *kept),
        (*custom, *same, factor),
    )
    assert [(done.status, done.err) for done in each] == [(0, "")] * 4
    folders = [tmp_path / done.folder for done in each]
    rates = read_columns(folders[0] / "trace.csv")
    np.testing.assert_allclose(rates["learning_rate*10.0"], 10 * rates["learning_rate"], rtol=1e-6)
    hashes = [read_json(folder / "result.json")["weights_sha256"] for folder in folders]
    assert hashes[0] == hashes[1] == hashes[3]
    (resumed,) = forked(tmp_path, (f"resume={each[1].folder}", "checkpoint=5", TRUSTED))
    assert (resumed.status, resumed.err) == (0, "")
    assert read_json(folders[1] / "result.json")["weights_sha256"] == hashes[0]
    first, last = (
        load_file(folder / "checkpoints" / "last" / "weights.safetensors")
        for folder in folders[1:3]
    )
    assert not np.array_equal(first["body.weight"], last["body.weight"])


@pytest.mark.slow
def test_a_module_without_forward_trains_but_has_no_outputs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE["lightning"])
    (done,) = forked(tmp_path, ("model=custom", "model._target_=mine.NoForward", *SHORT))
    assert (done.status, done.err) == (0, "")
    assert read_columns(tmp_path / done.folder / "metrics.csv")["epochs"].tolist() == [1, 2]
    np.savez(tmp_path / "new.npz", x=np.zeros((3, 64)))
    run = (f"run={done.folder}", TRUSTED)
    evaluated, predicted, exported = forked(
        tmp_path,
        (*run, "task=evaluate"),
        (*run, "task=predict", "data.path=new.npz"),
        (*run, "task=export", "format=torch"),
    )
    assert (evaluated.status, evaluated.err) == (0, "")
    expected = (
        f"error: the model of {done.folder} has no forward(x), which predictions and exports need\n"
    )
    assert [(each.status, each.err) for each in (predicted, exported)] == [(2, expected)] * 2


@pytest.mark.slow
def test_an_instance_with_its_own_steps_trains_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the columns that it logs, and resumes from the object."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(MODULE["lightning"], space)
    settings = "device=cpu trainer.batch_size=160 trainer.max_epochs=1"
    run = runner.train(settings, model=space["Steps"](), quiet=True)
    assert {"train/loss", "hits", "counted", "val/loss", "val_hits"} <= set(run.metrics)
    longer = runner.resume(run, "trainer.max_epochs=2", quiet=True)
    assert longer.metrics["epoch_number"].tolist() == [0, 1]
    assert set(longer.evaluate()) == {"test/loss", "test/val_hits", "test/val_rows"}


BOTH = {
    "loss=custom loss._target_=mine.wrong_shape": "loss._target_ mine.wrong_shape must return a "
    "number, or one for each of 160 rows, as a tensor; got [160, 10]",
    "loss=custom loss._target_=mine.raises": "loss._target_ mine.raises raised AttributeError: ",
    "loss=custom loss._target_=mine.detached": "loss._target_ mine.detached must depend on the "
    "outputs through ",
    "loss=custom loss._target_=mine.none": "loss._target_ must be importable, got mine.none: ",
    "model=custom model._target_=mine.Steps loss=cross_entropy": "loss must be auto for a model "
    "that computes its own loss, got cross_entropy",
    "model=custom model._target_=mine.Steps metrics=[f1_macro]": "metrics must be auto for a model "
    "that computes its own loss, since it logs its own metrics, got ['f1_macro']",
    "model=custom model._target_=mine.Steps trainer.compile=true": "trainer.compile must be false "
    "for a model that computes its own loss, got true",
    "model=custom model._target_=mine.Fails": "model._target_ mine.Fails raised AttributeError: "
    "'Fails' object has no attribute 'no_such_thing'",
    "metrics=[{_target_:mine.matrix}]": "metrics[0]._target_ mine.matrix must return a number, or "
    "one for each of 256 rows, got an array of shape [256, 10]",
}
ONE = {
    "lightning": {
        "model=custom model._target_=mine.Two": "model._target_ mine.Two has 2 optimizers in "
        "configure_optimizers; only modules with one optimizer are supported",
        "model=custom model._target_=mine.Net optimizer=module": "optimizer=module needs a "
        "LightningModule with training_step and configure_optimizers (backend=lightning)",
        "model=custom model._target_=mine.Steps optimizer=module optimizer.layer_decay=0.5": (
            "optimizer.layer_decay must be 1.0 with optimizer=module, whose parameter groups are "
            "the module's, got 0.5"
        ),
        "model=custom model._target_=mine.Twice": "model._target_ mine.Twice logs hits in training "
        "and in validation; the columns of metrics.csv need two names",
        "model=custom model._target_=mine.Comma": "model._target_ mine.Comma logs a,b; a column of "
        "metrics.csv must have a name without commas, quotes and spaces",
        "model=custom model._target_=mine.Manual": "model._target_ mine.Manual sets "
        "automatic_optimization=False, as modules with several optimizers do; ",
        "model=custom model._target_=mine.Backward": "model._target_ mine.Backward defines "
        "backward, which is not called here and may change its results; remove it",
        "model=custom model._target_=mine.Nothing": "model._target_ mine.Nothing: training_step "
        "must return the loss, a tensor with one number and a gradient, or a dict with it as "
        "loss; got NoneType",
    },
    "keras": {
        "model=custom model._target_=mine.Train": "model._target_ mine.Train defines train_step, "
        "which is not called here: the runner makes the updates; define compute_loss instead",
    },
}


def test_own_code_that_does_not_fit_is_one_line(here: Path, backend: str) -> None:
    expected = {**BOTH, **ONE[backend]}
    lines = [(*line.split(), *SHORT, f"backend={backend}") for line in expected]
    each = forked(here, *lines)
    for line, done, message in zip(expected, each, expected.values(), strict=True):
        assert done.status == 2, line
        assert done.err.startswith(f"error: {message}"), line
        assert done.err.count("\n") == 1, line
    assert not (here / "outputs").exists()
