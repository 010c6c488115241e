"""The claim: a row of weight w counts w times, in the loss and in the metrics, on both frameworks
and in exact mode."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

import runner
from runner.cli.compose import compose
from runner.components.metrics import Means
from runner.config.schema import parse
from runner.run.run_folder import read_columns
from tests.command_line import forked
from tests.rows import slow_but
from tests.training import Trained, difference, prepare, train

NUM = 48
WITHOUT_EXACT_FORM = ("class_weights",)
SMALL = (
    "model.layers=[{layer: dense, units: 6},{layer: activation, function: tanh},"
    "{layer: dense, units: outputs}]"
)
LOSSES = {
    "cross_entropy": ["loss=cross_entropy", "loss.label_smoothing=0.1"],
    "class_weights": ["loss=cross_entropy", "loss.class_weights=[0.5,2]"],
    "binary_cross_entropy": ["loss=binary_cross_entropy"],
    "mean_squared_error": ["data.task=regression"],
    "huber": ["data.task=regression", "loss=huber", "loss.delta=0.5"],
    "focal": ["loss=focal"],
    "cosine_similarity": ["data.task=regression", "loss=cosine_similarity"],
    "positions": ["loss=cross_entropy"],
}


def arrays(loss: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a label or target each, or a label at each of 3 steps; and weights of 0 to 3."""
    rng = np.random.default_rng(0)
    w = rng.integers(0, 4, NUM)
    if loss == "positions":
        return rng.normal(size=(NUM, 3, 2)), rng.integers(0, 2, (NUM, 3)), w
    x = rng.normal(size=(NUM, 4))
    if loss in ("mean_squared_error", "huber", "cosine_similarity"):
        return x, x[:, :2] + rng.normal(size=(NUM, 2)), w
    return x, (x[:, 0] + x[:, 1] > 0).astype(int), w


def trained(
    backend: str, folder: Path, loss: str, named: dict[str, np.ndarray], *more: str
) -> Trained:
    path = folder / f"{len(list(folder.iterdir()))}.npz"
    np.savez(path, **named)  # type: ignore[arg-type]
    weight = ["data.weight=w"] if "w" in named else []
    return train(
        backend,
        [
            "data=npz", f"data.path={path}", "data.val_fraction=0", "data.test_fraction=0",
            "trainer.monitor=train/loss", SMALL, *weight, "metrics=[]", *LOSSES[loss], *more,
        ],
    )  # fmt: skip


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
@pytest.mark.parametrize("loss", slow_but(LOSSES, "cross_entropy", "huber"))
def test_a_weight_is_a_number_of_repetitions(tmp_path: Path, loss: str, backend: str) -> None:
    """The gradient of the weighted loss, with all N rows in one batch, is that of the repeated
    rows, M in all, times M / N; so is the update of SGD with the rate N / M times as large. The
    tolerance: sums in another order, in float64."""
    x, y, w = arrays(loss)
    common = ("trainer.precision=float64", "trainer.max_steps=4", "optimizer=sgd")
    weighted = trained(
        backend, tmp_path, loss, {"x": x, "y": y, "w": w}, *common,
        f"trainer.batch_size={NUM}", "optimizer.lr=0.1",
    )  # fmt: skip
    total = int(w.sum())
    repeated = trained(
        backend, tmp_path, loss, {"x": x.repeat(w, axis=0), "y": y.repeat(w, axis=0)}, *common,
        f"trainer.batch_size={total}", f"optimizer.lr={0.1 * total / NUM!r}",
    )  # fmt: skip
    assert difference(weighted.state.weights, repeated.state.weights) < 1e-13
    np.testing.assert_allclose(weighted.losses * NUM / total, repeated.losses, rtol=1e-13)


@pytest.mark.parametrize("loss", slow_but(LOSSES))
def test_both_frameworks_agree(tmp_path: Path, loss: str) -> None:
    """The run has accumulation, a short batch and clipping; 1e-12 as in tests/parity."""
    x, y, w = arrays(loss)
    runs = [
        trained(
            backend, tmp_path, loss, {"x": x, "y": y, "w": w / 3}, "trainer.precision=float64",
            "trainer.max_steps=30", "trainer.batch_size=10", "trainer.accumulate_grad_batches=2",
            "trainer.gradient_clip_norm=0.5",
        )
        for backend in ("lightning", "keras")
    ]  # fmt: skip
    np.testing.assert_allclose(runs[0].losses, runs[1].losses, rtol=0, atol=1e-12)
    assert difference(runs[0].state.weights, runs[1].state.weights) < 1e-12


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
@pytest.mark.parametrize(
    "loss", slow_but([name for name in LOSSES if name not in WITHOUT_EXACT_FORM], "cross_entropy")
)
def test_exact_mode_has_the_same_bits(tmp_path: Path, loss: str, backend: str) -> None:
    """Exact mode means the same: within 1e-5 of float64, which is far above 24 bits."""
    x, y, w = arrays(loss)
    more = ("trainer.max_steps=9", "trainer.batch_size=10", "trainer.accumulate_grad_batches=2")
    runs = {
        name: trained(
            name, tmp_path, loss, {"x": x, "y": y, "w": w / 3}, *more, "trainer.precision=exact"
        )
        for name in ("witness", backend)
    }
    np.testing.assert_array_equal(runs[backend].losses, runs["witness"].losses)
    assert difference(runs[backend].state.weights, runs["witness"].state.weights) == 0
    float64 = trained(
        "lightning", tmp_path, loss, {"x": x, "y": y, "w": w / 3}, *more,
        "trainer.precision=float64",
    )  # fmt: skip
    np.testing.assert_allclose(runs["witness"].losses, float64.losses, rtol=1e-5)


def given(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=60) > 0).astype(int)
    return {"x": x, "y": y, "weight": rng.uniform(0, 2, 60)}


def test_the_metrics_are_those_of_scikit_learn_with_sample_weight(tmp_path: Path) -> None:
    """The loss is sum(w l) / N, as keras.Model.evaluate has it; scikit-learn's log_loss divides by
    sum(w). The tolerance: the outputs are float32."""
    val = given(2)
    run = runner.train(
        f"trainer.max_epochs=3 metrics=[accuracy,f1_macro] output.root={tmp_path}",
        data={"train": given(1), "val": val, "test": given(3)},
        quiet=True,
    )
    z, y, w = run.predict(val["x"]), val["y"], val["weight"]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    last = {name: values[-1] for name, values in run.metrics.items()}
    accuracy = accuracy_score(y, z.argmax(1), sample_weight=w)
    assert last["val/accuracy"] == pytest.approx(accuracy, abs=1e-12)
    f1 = f1_score(y, z.argmax(1), average="macro", sample_weight=w)
    assert last["val/f1_macro"] == pytest.approx(f1, abs=1e-12)
    expected = log_loss(y, p, sample_weight=w) * w.mean()
    assert last["val/loss"] == pytest.approx(expected, abs=1e-6)
    assert run.evaluate().keys() == {"test/loss", "test/accuracy", "test/f1_macro"}


def test_the_metrics_of_the_training_rows_have_the_weights_too(tmp_path: Path) -> None:
    """All updates of an epoch have the first weights if the rate is too small to learn, so the mean
    over the epoch is that of all rows at once."""
    rows = given(1)
    run = runner.train(
        f"trainer.max_epochs=1 trainer.batch_size=7 optimizer=sgd optimizer.lr=1e-30 "
        f"data.val_fraction=0 data.test_fraction=0 trainer.monitor=train/loss "
        f"output.root={tmp_path}",
        data=rows,
        quiet=True,
    )
    correct = run.predict(rows["x"]).argmax(1) == rows["y"]
    accuracy = np.average(correct, weights=rows["weight"])
    assert run.metrics["train/accuracy"][-1] == pytest.approx(accuracy, abs=1e-12)


def test_rows_of_a_map_style_data_set_may_have_weights(tmp_path: Path) -> None:
    """The same run as with arrays, by its hash; a field that is the target is no weight."""
    rows = given(1)
    records = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    runs = [
        runner.train(f"trainer.max_steps=4 output.root={tmp_path}", data=data, quiet=True)
        for data in (rows, records)
    ]
    assert runs[0].result["weights_sha256"] == runs[1].result["weights_sha256"]
    assert runs[0].data["sha256"] == runs[1].data["sha256"]
    run = runner.train(
        "data.task=regression data.inputs=x data.target=weight trainer.max_steps=1 "
        f"output.root={tmp_path}",
        data=records,
        quiet=True,
    )
    assert run.data["num_targets"] == 1


def write_table(path: Path, named: dict[str, Any]) -> None:
    names = [*"abcd", "importance", "label"]
    lines = [
        ",".join(map(repr, [*map(float, x), float(w), int(y)]))
        for x, y, w in zip(named["x"], named["y"], named["weight"], strict=True)
    ]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")


@pytest.mark.slow
def test_a_column_of_a_table_has_the_weights(tmp_path: Path) -> None:
    """The column is no feature; a file of validation rows has it too; a resumed run ends with the
    bits of a whole one, within an epoch too."""
    write_table(tmp_path / "train.csv", given(1))
    write_table(tmp_path / "val.csv", given(2))
    common = (
        "data=table", "data.path=train.csv", "data.val_path=val.csv", "data.val_fraction=0",
        "data.weight=importance", "trainer.batch_size=10", "trainer.checkpoint_every=2steps",
    )  # fmt: skip
    whole, half = forked(
        tmp_path, (*common, "trainer.max_steps=12"), (*common, "trainer.max_steps=8")
    )
    assert (whole.status, half.status) == (0, 0)
    (rest,) = forked(tmp_path, (f"resume={half.folder}", "trainer.max_steps=12"))
    assert (rest.status, rest.err) == (0, "")
    described = json.loads((tmp_path / whole.folder / "data.json").read_text())
    assert described["features"] == list("abcd")
    hashes, metrics = [], []
    for folder in (whole.folder, half.folder):
        result = json.loads((tmp_path / folder / "result.json").read_text())
        hashes.append(result["weights_sha256"])
        metrics.append(read_columns(tmp_path / folder / "metrics.csv"))
    assert hashes[0] == hashes[1]
    np.testing.assert_array_equal(metrics[0]["train/accuracy"], metrics[1]["train/accuracy"])
    (done,) = forked(tmp_path, ("task=evaluate", f"run={whole.folder}", "data.path=val.csv"))
    assert (done.status, done.err) == (0, "")
    evaluated = json.loads((tmp_path / whole.folder / "evaluation.json").read_text())
    assert evaluated["test/accuracy"] == pytest.approx(
        float(metrics[0]["val/accuracy"][-1]), abs=1e-12
    )


def test_a_mean_with_weights_depends_on_no_chunk_and_survives_a_checkpoint() -> None:
    rng = np.random.default_rng(0)
    values, w = rng.normal(size=100), rng.uniform(size=100)
    whole, parts = Means(), Means()
    whole.add({"accuracy": values}, w)
    for first, last in ((0, 7), (7, 60), (60, 100)):
        parts.add({"accuracy": values[first:last]}, w[first:last])
        parts = Means(json.loads(json.dumps(parts.state())))
    assert parts.result() == whole.result()
    assert whole.result()["accuracy"] == pytest.approx(np.average(values, weights=w), abs=1e-15)
    nothing = Means()
    nothing.add({"accuracy": values}, np.zeros(100))
    assert nothing.result() == {}


def write_files(folder: Path, data: str, first: int, num: int, name: str) -> None:
    """Write rows whose content is their weight, first to first + num - 1: an image of this grey, a
    sound of this many 128ths, a text of this byte."""
    lines = ["weight,path,label"]
    for i in range(first, first + num):
        content = f"{i}.file"
        if data == "image_folder":
            PIL.Image.new("L", (2, 2), i).save(folder / content, "png")
        elif data == "audio_folder":
            with wave.open(str(folder / content), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(np.full(8, i * 256, "<i2").tobytes())
        else:
            content = chr(i)
        lines.append(f"{i},{content},{'uv'[i % 2]}")
    (folder / name).write_text("\n".join(lines))


FOLDERS = {
    "image_folder": ["data.path=.", "data.table=a.csv"],
    "audio_folder": [
        "data.path=.", "data.table=a.csv", "data.sample_rate=8000", "data.seconds=0.001",
        "data.features=waveform", "data.standardize=false",
    ],
    "text_classes": ["data.path=a.csv", "data.column=path", "data.tokenizer=bytes"],
}  # fmt: skip
ONE = {"image_folder": 255, "audio_folder": 128, "text_classes": 1}  # of a unit of weight, in x


@pytest.mark.parametrize("data", FOLDERS)
def test_a_column_of_a_table_of_files_or_texts_has_the_weights(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row has its own weight, in a table of validation rows too; new rows count equally if
    their table lacks the column."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, data, 65, 20, "a.csv")
    write_files(tmp_path, data, 85, 4, "val.csv")
    keys = [f"data={data}", *FOLDERS[data], "data.weight=weight", "data.val_path=val.csv"]
    section = parse(compose([*keys, "data.val_fraction=0"])).data
    found = section.load()
    shift = 1 if data == "text_classes" else 0  # the ids of bytes are one higher
    for split in (found.train, found.val, found.test):
        units = split.x.reshape(len(split), -1)[:, 0] * ONE[data] - shift
        np.testing.assert_allclose(split.weight, units, rtol=1e-6)  # x may be float32
    rows, _ = section.labelled_rows("val.csv", found.description())
    assert rows.test.weight.tolist() == [85, 86, 87, 88]
    lines = (tmp_path / "val.csv").read_text().splitlines()
    (tmp_path / "new.csv").write_text("\n".join(line.partition(",")[2] for line in lines))
    rows, _ = section.labelled_rows("new.csv", found.description())
    assert rows.test.weight is None


def error(overrides: list[str]) -> str:
    """Return the error of a command that is refused."""
    with pytest.raises(runner.ConfigError) as caught:
        prepare(overrides)
    return str(caught.value)


FOLDER_ERRORS = {
    "data.weight must be a column of a.csv, got wieght; did you mean weight?": [
        "data.weight=wieght"
    ],
    "data.weight must be a column of numbers, got text": ["data.weight=text"],
    "data.weight must be another column than path, label, got label": ["data.weight=label"],
    "a.csv: column low must be finite and >= 0, got -1.0 in row 1": ["data.weight=low"],
    "data.weight must be a column of val.csv, got weight": [
        "data.weight=weight", "data.val_path=val.csv", "data.val_fraction=0"
    ],
    "data.val_path must be a table with the column weight of data.weight, got val, which is a "
    "folder": ["data.weight=weight", "data.val_path=val", "data.val_fraction=0"],
}  # fmt: skip


@pytest.mark.parametrize("message", FOLDER_ERRORS)
def test_columns_of_a_table_of_files_that_are_no_weights_are_refused(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val").mkdir()
    rows = [f"{i}.png,{'uv'[i % 2]},{i},{(-1) ** i},a" for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["path,label,weight,low,text", *rows]))
    (tmp_path / "val.csv").write_text("path,label\n1.png,u\n2.png,v\n")
    assert (
        error(["data=image_folder", *FOLDERS["image_folder"], *FOLDER_ERRORS[message]]) == message
    )


REFUSED = {
    "finite and >= 0, got -1.0 in row 3": np.where(np.arange(60) == 3, -1.0, 1),
    "finite and >= 0, got nan in row 0": np.full(60, np.nan),
    "a number for each of 60 rows, got float64 of shape [59]": np.ones(59),
    "a number for each of 60 rows, got <U1 of shape [60]": np.array(["a"] * 60),
    "above 0 for a row, got 0 for all training rows": np.zeros(60),
}


@pytest.mark.parametrize("message", REFUSED)
def test_weights_that_mean_nothing_are_refused(message: str) -> None:
    with pytest.raises(runner.ConfigError) as caught:
        runner.train(
            "trainer.max_steps=1", data={**given(1), "weight": REFUSED[message]}, quiet=True
        )
    assert str(caught.value) == f"weight of data must be {message}"


TABLE_ERRORS = {
    "data.weight must be a column of train.csv, got importanc; did you mean importance?": [
        "data.weight=importanc"
    ],
    "data.weight must be a column of numbers, got text": ["data.weight=text"],
    "data.weight must not be a target, got label": ["data.weight=label"],
    "train.csv: column a must be finite and >= 0, got -1.0 in row 1": ["data.weight=a"],
    "val.csv lacks the column importance of data.weight": [
        "data.weight=importance", "data.val_path=val.csv", "data.val_fraction=0"
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", TABLE_ERRORS)
def test_columns_that_are_no_weights_are_refused(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{(-1) ** i},{i % 5},{'uv'[i % 2]},{i % 2}" for i in range(40)]
    (tmp_path / "train.csv").write_text("\n".join(["a,importance,text,label", *rows]))
    (tmp_path / "val.csv").write_text("a,text,label\n1,u,0\n2,v,1\n")
    assert error(["data=table", "data.path=train.csv", *TABLE_ERRORS[message]]) == message


def test_splits_have_weights_all_or_none() -> None:
    val = {name: values for name, values in given(2).items() if name != "weight"}
    with pytest.raises(runner.ConfigError) as caught:
        runner.train("trainer.max_steps=1", data={"train": given(1), "val": val}, quiet=True)
    assert str(caught.value) == ("data['val'] must have weights, because data['train'] has weights")


def test_code_of_the_user_s_own_gets_the_weights(tmp_path: Path, backend: str) -> None:
    """A loss f(outputs, (x, y, weight)), and training_step or compute_loss, train as the built-in
    loss with the same weights, also on validation rows. 1e-12: sums in another order."""
    (tmp_path / "mine.py").write_text(OWN[backend])
    x, y, w = arrays("cross_entropy")
    np.savez(tmp_path / "rows.npz", x=x, y=y, w=w)
    line = (
        *("data=npz", "data.path=rows.npz", "data.weight=w", "data.test_fraction=0", "device=cpu"),
        *("trainer.precision=float64", "trainer.max_epochs=2", "trusted_modules=[mine]"),
        *("trainer.batch_size=16", "model=custom", f"backend={backend}"),
    )
    plain, own, steps = each = forked(
        tmp_path,
        (*line, "model._target_=mine.Net"),
        (*line, "model._target_=mine.Net", "loss=custom", "loss._target_=mine.weighted"),
        (*line, "model._target_=mine.Steps"),
    )
    assert [(done.status, done.err) for done in each] == [(0, "")] * 3
    for done in (own, steps):
        for file, column in (("trace.csv", "loss"), ("metrics.csv", "val/loss")):
            expected, found = (
                read_columns(tmp_path / one.folder / file)[column] for one in (plain, done)
            )
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


OWN = {
    "lightning": """
import pytorch_lightning as pl
import torch.nn.functional as F
from torch import nn


def weighted(outputs, batch):
    x, y, w = batch
    return w * F.cross_entropy(outputs, y, reduction="none")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)


class Steps(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, index):
        return weighted(self(batch[0]), batch).mean()

    def validation_step(self, batch, index):
        return weighted(self(batch[0]), batch).mean()
""",
    "keras": """
import keras
from keras import ops


def weighted(outputs, batch):
    x, y, w = batch
    return -w * ops.take_along_axis(ops.log_softmax(outputs), y[:, None], axis=1)[:, 0]


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


class Steps(Net):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(weighted(y_pred, (x, y, sample_weight)))
""",
}


def test_what_takes_no_weights_is_refused() -> None:
    targets = {**given(1), "y": np.arange(60.0)}
    with pytest.raises(runner.ConfigError) as caught:
        runner.train("data.task=regression metrics=[neg_max_error]", data=targets, quiet=True)
    assert str(caught.value) == (
        "metrics: neg_max_error takes no weights of rows, and this data has weights; choose a "
        "metric that is a mean over rows, or leave the weights out"
    )
