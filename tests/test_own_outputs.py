"""Models of the user's own with several outputs, a tuple or a dict, on both backends: training,
evaluation, prediction, export, resuming, metrics and observers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runner
from runner.components.outputs import Outputs
from runner.run.run_folder import read_columns, read_json
from tests.command_line import forked

# One network of a body and two heads: its outputs as a dict, as a tuple, and side by side.
MODULE = {
    "lightning": """
import torch
import torch.nn.functional as F
from torch import nn


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.drop = nn.Linear(64, 16), nn.Dropout(0.2)
        self.head, self.size = nn.Linear(16, 10), nn.Linear(16, 1)

    def parts(self, x):
        h = self.drop(torch.relu(self.body(x)))
        return self.head(h), self.size(h)[:, 0]

    def forward(self, x):
        logits, size = self.parts(x)
        return torch.cat([logits, size[:, None]], 1)


class Dict(Joined):
    def forward(self, x):
        logits, size = self.parts(x)
        return {"logits": logits, "size": size}


class Tuple(Joined):
    def forward(self, x):
        return self.parts(x)


class Trained(Joined):
    def forward(self, x):
        return self.parts(x) if self.training else super().forward(x)


class More(Tuple):
    def forward(self, x):
        return (*self.parts(x), x) if self.training else self.parts(x)


class Whole(Tuple):
    def forward(self, x):
        return (*self.parts(x), self.parts(x)[0].argmax(1))


class Length(Tuple):
    def forward(self, x):
        return self.head(torch.relu(self.body(x))).reshape(len(x), 10), x.sum(1)


def loss(logits, size, batch):
    x, y = batch
    return F.cross_entropy(logits, y) + 0.1 * F.mse_loss(size, x.mean(1))
""",
    "keras": """
import keras
from keras import ops


class Joined(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = keras.layers.Dense(16, activation="relu")
        self.drop = keras.layers.Dropout(0.2)
        self.head, self.size = keras.layers.Dense(10), keras.layers.Dense(1)

    def parts(self, x, training):
        h = self.drop(self.body(x), training=training)
        return self.head(h), self.size(h)[:, 0]

    def call(self, x, training=False):
        logits, size = self.parts(x, training)
        return ops.concatenate([logits, size[:, None]], axis=1)


class Dict(Joined):
    def call(self, x, training=False):
        logits, size = self.parts(x, training)
        return {"logits": logits, "size": size}


class Tuple(Joined):
    def call(self, x, training=False):
        return self.parts(x, training)


class Whole(Joined):
    def call(self, x, training=False):
        logits, size = self.parts(x, training)
        return logits, size, ops.argmax(logits, axis=1)


class Own(Tuple):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return loss(*y_pred, (x, y))


def loss(logits, size, batch):
    x, y = batch
    log_p = ops.take_along_axis(ops.log_softmax(logits), y[:, None], axis=1)
    return -ops.mean(log_p) + 0.1 * ops.mean((size - ops.mean(x, axis=1)) ** 2)
""",
}
COMMON = """

def of_joined(outputs, batch):
    return loss(outputs[:, :10], outputs[:, 10], batch)


def of_dict(outputs, batch):
    return loss(outputs["logits"], outputs["size"], batch)


def of_tuple(outputs, batch):
    return loss(*outputs, batch)


def hit(outputs, targets):
    return outputs["logits"].argmax(axis=1) == targets


def span(outputs, targets):
    return float(outputs["size"].max() - outputs["size"].min())


def rate(outputs, targets):
    return float((outputs[:, :10].argmax(axis=1) == targets).mean())
"""
MODULE = {name: module + COMMON for name, module in MODULE.items()}
TRUSTED = "trusted_modules=[mine]"
SHORT = ("device=cpu", "trainer.batch_size=160", "trainer.max_epochs=2", TRUSTED)


def own(kind: str, *more: str) -> tuple[str, ...]:
    names = (f"model._target_=mine.{kind}", f"loss._target_=mine.of_{kind.lower()}")
    return ("model=custom", "loss=custom", *names, *SHORT, *more)


def test_several_outputs_train_as_one_output_that_holds_them(here: Path, backend: str) -> None:
    """The same network with its heads side by side, as a dict and as a tuple: equal losses, since
    joining and splitting rows rounds nothing. Its metrics are functions of the outputs."""
    asked = "metrics=[{_target_: mine.hit},{_target_: mine.span}]"
    each = forked(
        here,
        *(
            (*line, f"backend={backend}")
            for line in (
                own("Joined", "metrics=[{_target_: mine.rate, name: hit}]"),
                own("Dict", asked),
                own("Tuple"),
            )
        ),
    )
    assert [(done.status, done.err) for done in each] == [(0, "")] * 3
    assert "outputs  logits [10], size []\n" in each[1].out
    folders = [here / done.folder for done in each]
    traces = [(folder / "trace.csv").read_text() for folder in folders]
    assert traces[0] == traces[1] == traces[2]
    joined, named, _ = (read_columns(folder / "metrics.csv") for folder in folders)
    # one value of all rows and the mean of the rows' values: the same count over the same number
    np.testing.assert_allclose(named["val/hit"], joined["val/hit"], rtol=1e-15)
    assert list(named)[2:4] == ["train/loss", "train/hit"]
    assert (named["val/span"] > 0).all()


@pytest.mark.slow
def test_what_is_done_with_a_run_has_the_outputs_by_name(here: Path, backend: str) -> None:
    """evaluate, predict to NPZ and to CSV, and the exported model, whose outputs have the same
    names; a run in two parts has the bits of one."""
    every = ("trainer.checkpoint_every=1steps", "trainer.keep_checkpoints=null")
    line = (*own("Dict", "metrics=[{_target_: mine.span}]", *every), f"backend={backend}")
    done, part = forked(here, line, (*line, "trainer.max_steps=9"))
    assert [(one.status, one.err) for one in (done, part)] == [(0, "")] * 2
    x = np.random.default_rng(0).uniform(0, 1, (7, 64)).astype(np.float32)
    np.savez(here / "new.npz", x=x)
    columns = ",".join(f"pixel_{i}" for i in range(64))
    np.savetxt(here / "new.csv", x, delimiter=",", header=columns, comments="", fmt="%.9g")
    form, file = {"lightning": ("torch", "model.pt2"), "keras": ("keras", "model.keras")}[backend]
    run = (f"run={done.folder}", TRUSTED)
    each = forked(
        here,
        (*run, "task=evaluate"),
        (*run, "task=predict", "data.path=new.npz"),
        (*run, "task=predict", "data.path=new.csv"),
        (*run, "task=export", f"format={form}"),
        (f"resume={part.folder}", "checkpoint=5", "trainer.max_steps=null", TRUSTED),
    )
    assert [(one.status, one.err) for one in each] == [(0, "")] * 5
    folder = here / done.folder
    assert {"test/loss", "test/span"} <= set(read_json(folder / "test.json"))
    predicted = np.load(folder / "predictions.npz")
    shapes = {name: predicted[name].shape for name in predicted}
    assert shapes == {"output_logits": (7, 10), "output_size": (7,)}
    table = read_columns(folder / "predictions.csv")
    assert list(table) == [*(f"output_logits_{i}" for i in range(10)), "output_size"]
    # CSV has 9 digits of x, and sums in float32 of other batches may differ
    np.testing.assert_allclose(table["output_size"], predicted["output_size"], atol=1e-5)
    assert read_json(folder / f"{file}.json")["outputs"] == {"logits": [10], "size": []}
    found = _exported(folder / file, x, here, backend)
    for name in ("logits", "size"):  # float32 sums in another order
        np.testing.assert_allclose(found[name], predicted[f"output_{name}"], rtol=0, atol=1e-5)
    hashes = [read_json(here / one.folder / "result.json") for one in (done, part)]
    assert hashes[0]["weights_sha256"] == hashes[1]["weights_sha256"]


def _exported(path: Path, x: np.ndarray, here: Path, backend: str) -> dict[str, np.ndarray]:
    if backend == "lightning":
        import torch

        outputs = torch.export.load(path).module()(torch.from_numpy(x))
        return {name: value.detach().numpy() for name, value in outputs.items()}
    import keras

    space: dict[str, object] = {"__name__": "mine"}
    exec(MODULE[backend], space)
    model = keras.models.load_model(path, custom_objects={"Dict": space["Dict"]})
    return {name: value.numpy() for name, value in model(x, training=False).items()}


def test_python_and_observers_get_them_as_the_model_returns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(MODULE["lightning"], space)
    seen = []

    class Look(runner.Observer):
        def on_chunk(self, chunk: Any, report: Any, live: Any) -> bool:
            outputs, sizes = live.predict({"x": x}), report.outputs["size"]
            seen.append((sorted(outputs), outputs["logits"].shape, sizes.shape))
            return True

    x = np.zeros((3, 64), np.float32)
    run = runner.train(
        "device=cpu trainer.batch_size=160 trainer.max_epochs=1",
        model=space["Dict"],
        loss=space["of_dict"],
        metrics={"hit": space["hit"]},
        callbacks=[Look()],
        quiet=True,
    )
    assert seen == [(["logits", "size"], (3, 10), (1280,))]
    predicted = run.predict(x)
    assert {name: value.shape for name, value in predicted.items()} == {
        "logits": (3, 10),
        "size": (3,),
    }


BOTH = {
    "model._target_=mine.Dict": "model._target_ mine.Dict returns several outputs, logits, size, "
    "which only loss=custom takes, or a model that computes its own loss; got loss=auto\n",
    "model._target_=mine.Dict loss=custom loss._target_=mine.of_dict metrics=[accuracy]": (
        "metrics: accuracy needs one output, and model._target_ mine.Dict returns logits, size; "
        "name a function of yours, {_target_: MODULE.FUNCTION}\n"
    ),
    "model._target_=mine.Dict loss=custom loss._target_=mine.of_joined": (
        "loss._target_ mine.of_joined raised TypeError: unhashable type: 'slice' "
    ),
}
ONE = {
    "lightning": {
        "model._target_=mine.Trained loss=custom loss._target_=mine.of_joined": (
            "model._target_ mine.Trained must return a tensor in training and in evaluation, got "
            "tuple\n"
        ),
        "model._target_=mine.More loss=custom loss._target_=mine.of_tuple": (
            "model._target_ mine.More must return the outputs 0, 1 in training and in evaluation, "
            "got 0, 1, 2\n"
        ),
        "model._target_=mine.Whole loss=custom loss._target_=mine.of_tuple": (
            "model._target_ mine.Whole must return a tensor with one row per input row, here 2, or "
            "a tuple or a dict of such tensors of floating-point numbers, got tuple\n"
        ),
    },
    "keras": {
        "model._target_=mine.Whole loss=custom loss._target_=mine.of_tuple": (
            "model._target_ mine.Whole must return a tensor of known shape with one row per input "
            "row, or a tuple or a dict of such tensors of floating-point numbers, got tuple\n"
        ),
    },
}


def test_outputs_that_do_not_fit_are_one_line(here: Path, backend: str) -> None:
    expected = {**BOTH, **ONE[backend]}
    lines = [("model=custom", *line.split(), *SHORT, f"backend={backend}") for line in expected]
    each = forked(here, *lines)
    for line, done, message in zip(expected, each, expected.values(), strict=True):
        assert done.status == 2, line
        assert done.err.startswith(f"error: {message}"), (line, done.err)
        assert done.err.count("\n") == 1, line


@pytest.mark.slow
def test_a_keras_model_s_own_loss_gets_them(tmp_path: Path) -> None:
    """A compute_loss with the outputs as y_pred trains as loss=custom with the same function."""
    (tmp_path / "mine.py").write_text(MODULE["keras"])
    one = ("model=custom", "model._target_=mine.Own", *SHORT)
    each = forked(tmp_path, *((*line, "backend=keras") for line in (own("Tuple"), one)))
    assert [(done.status, done.err) for done in each] == [(0, "")] * 2
    traces = [(tmp_path / done.folder / "trace.csv").read_text() for done in each]
    assert traces[0] == traces[1]


@pytest.mark.slow
def test_an_exporter_that_cannot_follow_the_model_is_one_line(tmp_path: Path) -> None:
    """len(x) is a Python number, so torch.export would fix the number of rows."""
    (tmp_path / "mine.py").write_text(MODULE["lightning"])
    line = ("loss=custom", "loss._target_=mine.of_tuple", "trainer.max_steps=1", *SHORT)
    (done,) = forked(tmp_path, ("model=custom", "model._target_=mine.Length", *line))
    (exported,) = forked(tmp_path, (f"run={done.folder}", "task=export", "format=torch", TRUSTED))
    assert exported.status == 2
    start = "error: format=torch: the framework's exporter cannot follow the model's code: "
    assert exported.err.startswith(start)
    assert exported.err.count("\n") == 1


def test_packed_rows_are_split_by_shape() -> None:
    outputs = Outputs(("a", "b", "c"), ((2,), (), (2, 3)), True, "model")
    packed = np.arange(18.0).reshape(2, 9)
    parts = outputs.named(packed)
    assert {name: value.shape for name, value in parts.items()} == {
        "a": (2, 2),
        "b": (2,),
        "c": (2, 2, 3),
    }
    assert parts["b"].tolist() == [2, 11]
    assert [*outputs.columns()] == [
        *("output_a_0", "output_a_1", "output_b"),
        *(f"output_c_{i}_{j}" for i in range(2) for j in range(3)),
    ]
