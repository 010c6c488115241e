"""debug=fast executes everything once; debug=overfit fits one batch, or warns; debug=anomaly names
the layer, the update and the rows of the first NaN; debug=nondeterminism names the layer that draws
random numbers without a seed."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runner
from runner import dispatcher
from runner.data.order import Order, one_batch
from runner.errors import ConfigError, RunError
from runner.run.debug import Anomaly
from runner.run.nondeterminism import Nondeterminism, _Update
from runner.spec import TrainState
from tests.command_line import forked, loss_and_accuracy, mlp
from tests.training import prepare


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Import the backend here, then go to a folder of the test's own."""
    dispatcher.load(backend)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_folder")
def test_fast_makes_two_updates_and_validates_one_batch(backend: str) -> None:
    """The schedule is that of the whole run."""
    line = f"backend={backend} device=cpu schedule=linear trainer.batch_size=100"
    run = runner.train(f"{line} debug=fast", quiet=True)
    assert (run.status, run.result["steps"], run.result["stopped_by"]) == ("completed", 2, "debug")
    rates = runner.rates("schedule=linear", total_steps=260, lr=1e-3)[:2]
    assert np.array_equal(run.trace["learning_rate"].astype(np.float32), rates.astype(np.float32))
    x, y = run.plan.data.val.x[:100], run.plan.data.val.y[:100]
    loss, accuracy = loss_and_accuracy(mlp(run.weights, x), y)
    metrics = run.result["metrics"]
    assert (metrics["val/accuracy"], metrics["val/loss"]) == (accuracy, pytest.approx(loss, 1e-6))
    assert {"curves.png", "checkpoints"} <= {path.name for path in run.folder.iterdir()}


def test_every_update_of_one_batch_has_the_rows_of_the_first_one() -> None:
    """The last update of an epoch has as many rows as in the run, here 7 - 2 * 3."""
    order = Order(num_rows=7, batch_size=3, accumulate=1, seed=0, total_steps=6)
    rows = [one_batch(order).chunk(step, 1).rows.tolist() for step in range(6)]
    first = order.chunk(0, 1).rows.tolist()
    assert rows == [first, first, first[:1]] * 2


LOSS = {
    "lightning": """
import torch

def shuffled(outputs, batch):
    x, y = batch
    return torch.nn.functional.cross_entropy(outputs, y[torch.randperm(len(y))])
""",
    "keras": """
import keras
import tensorflow as tf

def shuffled(outputs, batch):
    x, y = batch
    y = tf.random.shuffle(y)
    return keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)
""",
}


def test_overfit_fits_one_batch_and_warns_of_labels_that_are_shuffled_within_it(
    tmp_path: Path, backend: str
) -> None:
    (tmp_path / "mine.py").write_text(LOSS[backend])
    line = (f"backend={backend}", "device=cpu", "debug=overfit", "optimizer.lr=0.01")
    bug = ("loss=custom", "loss._target_=mine.shuffled", "trusted_modules=[mine]")
    good, bad = forked(
        tmp_path,
        (*line, "output.root=good"),
        (*line, *bug, "output.root=bad", "trainer.max_steps=100"),
    )
    assert (good.status, good.err) == (0, "")
    assert "overfit  the loss of one batch fell from 2.351 to 0.0" in good.out
    assert "warning" not in good.out
    assert (bad.status, bad.err) == (0, "")
    assert "warning: debug=overfit: the loss of one batch went from 2." in bad.out
    assert "which is not near 0" in bad.out


@pytest.mark.parametrize("mode", ["overfit", "nondeterminism"])
def test_rows_that_cannot_be_read_again_are_refused(mode: str) -> None:
    def rows():  # type: ignore[no-untyped-def]
        yield np.zeros((32, 3)), np.zeros(32, int)

    with pytest.raises(ConfigError, match=f"debug={mode} needs rows that can be read again"):
        runner.train(
            f"debug={mode} trainer.max_steps=2 data.batched=true data.num_classes=2 "
            "data.steps_per_epoch=1",
            data=rows,
            quiet=True,
        )


MODEL = {
    "lightning": """
import torch

class Planted(torch.nn.Module):
    def forward(self, x):
        return torch.where(x.sum(1, keepdim=True) > LIMIT, torch.nan, x)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Identity()
        self.planted = Planted()
        self.last = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.planted(self.first(x)))
""",
    "keras": """
import keras

class Planted(keras.layers.Layer):
    def call(self, x):
        return keras.ops.where(keras.ops.sum(x, 1, keepdims=True) > LIMIT, float("nan"), x)

class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Identity(name="first")
        self.planted = Planted(name="planted")
        self.last = keras.layers.Dense(10, name="last")

    def call(self, x):
        return self.last(self.planted(self.first(x)))
""",
}


@pytest.mark.usefixtures("in_a_folder")
def test_anomaly_names_the_layer_the_update_and_the_row_of_a_planted_nan(backend: str) -> None:
    """A layer is NaN for the row with the largest sum, which the order has in a known update."""
    prepared = prepare(["device=cpu"])
    sums = np.asarray(prepared.data.train.x, np.float32).sum(1)
    row, limit = int(sums.argmax()), float(np.sort(sums)[-2:].mean())
    step = [*prepared.order.epoch(0)].index(row) // 32
    space: dict[str, Any] = {"__name__": "notebook", "LIMIT": limit}
    exec(MODEL[backend], space)
    line = f"backend={backend} device=cpu debug=anomaly"
    expected = (
        f"debug=anomaly: the loss of update {step} is nan: the output of layer planted is nan in "
        f"1 of 32 rows: training rows {row}"
    )
    with pytest.raises(RunError, match=re.escape(expected)):
        runner.train(line, model=space["Net"], quiet=True)


def test_anomaly_names_the_weight_or_the_slot_that_an_update_makes_infinite() -> None:
    chunk: Any = SimpleNamespace(first_step=4)
    report: Any = SimpleNamespace(losses=np.array([0.5]))
    good, bad = {"dense_0/bias": np.zeros(2)}, {"dense_0/bias": np.array([0.0, -np.inf])}
    nothing: Any = None
    for weights, moments, expected in (
        (bad, good, "update 4 made dense_0/bias -inf: its loss was 0.5"),
        (good, bad, "update 4 made the optimizer's momentum of dense_0/bias -inf"),
    ):
        state = TrainState(5, weights, {"momentum": moments}, {})
        live: Any = SimpleNamespace(state=lambda state=state: state)
        with pytest.raises(RunError, match=f"^debug=anomaly: {expected}"):
            Anomaly(nothing, nothing).examine(chunk, report, live)


DRAWS = {
    "lightning": """
class Noise(torch.nn.Module):
    def forward(self, x):
        return x + DRAW()

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.2)
        self.noise = Noise()
        self.last = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.noise(self.dropout(x)))
""",
    "keras": """
class Noise(keras.layers.Layer):
    def call(self, x):
        return x + DRAW()

class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.2)
        self.noise = Noise(name="noise")
        self.last = keras.layers.Dense(10)

    def call(self, x):
        return self.last(self.noise(self.dropout(x)))
""",
}


@pytest.mark.usefixtures("in_a_folder")
def test_nondeterminism_names_a_layer_that_draws_without_a_seed(backend: str) -> None:
    """Dropout before it draws too, but under the run's seed. Without the draw, all is the same. On
    Keras, the layer draws while it is traced."""
    first = {"lightning": "import torch\n", "keras": "import keras\n"}
    line = f"backend={backend} device=cpu debug=nondeterminism"
    draws = np.random.default_rng(0)
    for draw in (lambda: np.float32(0), lambda: np.float32(draws.random())):
        space: dict[str, Any] = {"__name__": "notebook", "DRAW": draw}
        exec(first[backend] + DRAWS[backend], space)
        if draw() == 0:
            run = runner.train(line, model=space["Net"], quiet=True)
            assert (run.result["steps"], run.result["stopped_by"]) == (10, "debug")
            said = "10 updates made twice: every loss, weight and slot had the same bits"
            assert said in (run.folder / "run.log").read_text()
            continue
        expected = (
            r"debug=nondeterminism: the loss of update 0 was [\d.]+, then [\d.]+: layer noise "
            r"returns two outputs"
        )
        with pytest.raises(RunError, match=expected):
            runner.train(line, model=space["Net"], quiet=True)


def test_nondeterminism_names_the_field_the_weight_or_the_slot_that_differs() -> None:
    chunk: Any = SimpleNamespace(first_step=3, fields={"x": np.zeros(2)})
    other_rows: Any = SimpleNamespace(first_step=3, fields={"x": np.ones(2)})
    report: Any = SimpleNamespace(losses=np.ones(1), outputs=None, applied={})
    a, b = {"dense_0/bias": np.zeros(2)}, {"dense_0/bias": np.array([0.0, 0.5])}
    nothing: Any = None
    for now, weights, moments, expected in (
        (other_rows, a, a, "the rows of update 3 differ when they are read again: field x"),
        (chunk, b, a, "the loss of update 3 was the same, but dense_0/bias was not, by at most "
         "0.5 in 1 of 2 numbers"),
        (chunk, a, b, "the loss of update 3 was the same, but the optimizer's momentum of"),
    ):  # fmt: skip
        states = [TrainState(4, w, {"momentum": m}, {}) for w, m in ((a, a), (weights, moments))]
        found = Nondeterminism(nothing, nothing)
        found._first = [_Update(chunk.fields, report, states[0])]
        live: Any = SimpleNamespace(state=lambda states=states: states[1])
        with pytest.raises(RunError, match=f"^debug=nondeterminism: {expected}"):
            found.examine(now, report, live)
