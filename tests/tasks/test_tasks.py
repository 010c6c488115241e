"""Tasks for a finished run: evaluate, predict and export on the command line, and
`load_run` in Python."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from runner import dispatcher, load_run
from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import Split
from tests.command_line import (
    BACKENDS,
    OTHER,
    SHORT,
    Done,
    Finished,
    forked,
    loss_and_accuracy,
    mlp,
)

both = pytest.mark.parametrize("backend", BACKENDS)

# float32 against NumPy's float64: sums of 64 and 128 products of size 1
FLOAT32 = 1e-5

# each to the other's
EXPORTS = {"lightning": ("keras", "model.keras"), "keras": ("torch", "model.pt2")}


class Tasks(NamedTuple):
    path: Path
    evaluated: Done
    predicted: Done
    exported: Done


@pytest.fixture(scope="module")
def new_rows() -> Split:
    return parse(compose(["data=digits"])).data.load().test


@pytest.fixture(scope="module")
def tasks(
    finished: dict[str, Finished], new_rows: Split, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tasks]:
    """Copies of the short runs: evaluated as they were, predicted with and exported for the other
    framework."""
    here = tmp_path_factory.mktemp("tasks")
    np.savez(here / "new.npz", x=new_rows.x)
    for backend in BACKENDS:
        shutil.copytree(finished[backend].path, here / backend, symlinks=True)
    evaluated = forked(here, *(("task=evaluate", f"run={b}") for b in BACKENDS))
    other = {b: f"backend={OTHER[b]}" for b in BACKENDS}
    predicted = forked(
        here, *(("task=predict", f"run={b}", "data.path=new.npz", other[b]) for b in BACKENDS)
    )
    exported = forked(
        here, *(("task=export", f"run={b}", f"format={EXPORTS[b][0]}") for b in BACKENDS)
    )
    forked(here, *(("task=export", f"run={b}", "format=safetensors") for b in BACKENDS))
    each = zip(BACKENDS, evaluated, predicted, exported, strict=True)
    return {backend: Tasks(here / backend, *done) for backend, *done in each}


def saved(path: Path) -> dict[str, np.ndarray]:
    """The last checkpoint's weights."""
    return dict(load_file(path / "checkpoints" / "last" / "weights.safetensors"))


@both
def test_evaluate_measures_the_test_split(
    tasks: dict[str, Tasks], new_rows: Split, backend: str
) -> None:
    """Against NumPy's forward pass; said in one line, and in test.json."""
    path, done = tasks[backend].path, tasks[backend].evaluated
    loss, accuracy = loss_and_accuracy(mlp(saved(path), new_rows.x), new_rows.y)
    found = json.loads((path / "test.json").read_text())
    assert found["test/loss"] == pytest.approx(loss, rel=FLOAT32)
    # a share of 261 rows, no tie among them
    assert found["test/accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(
        f"result   test/loss {loss:.4f}  test/accuracy {accuracy:.4f}  (261 rows"
    )
    assert len(done.out.splitlines()) == 2


def test_evaluate_measures_a_run_without_validation_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and the accuracy are those of NumPy."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", x=rng.normal(size=(60, 4)), y=rng.integers(0, 3, 60))
    keys = ("data=npz", "data.path=train.npz", "data.val_fraction=0", "trainer.monitor=train/loss")
    (done,) = forked(tmp_path, (*keys, "trainer.max_epochs=1", "device=cpu"))
    assert (done.status, done.err) == (0, "")
    (tested,) = forked(tmp_path, ("task=evaluate", f"run={done.folder}"))
    assert (tested.status, tested.err) == (0, "")
    values = json.loads((tmp_path / done.folder / "test.json").read_text())
    run = load_run(tmp_path / done.folder)
    test = run.config.data.load().test
    loss, accuracy = loss_and_accuracy(mlp(run.weights, test.x), test.y)
    assert values["test/loss"] == pytest.approx(loss, abs=FLOAT32)
    assert values["test/accuracy"] == accuracy
    assert values["rows"] == 12
    (refused,) = forked(tmp_path, ("task=evaluate", f"run={done.folder}", "data.path=train.npz"))
    assert refused.err == (
        f"error: data.path of task=evaluate names new rows of a table or a folder of class "
        f"folders, and {done.folder} was trained on data=npz\n"
    )


@both
def test_predict_on_the_other_framework_gives_the_outputs_and_labels(
    tasks: dict[str, Tasks], new_rows: Split, backend: str
) -> None:
    path, done = tasks[backend].path, tasks[backend].predicted
    assert (done.status, done.err) == (0, "")
    with np.load(path / "predictions.npz") as found:
        outputs, labels = found["outputs"], found["label"]
    expected = mlp(saved(path), new_rows.x)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=FLOAT32)
    assert labels.tolist() == [str(i) for i in expected.argmax(1)]


def test_predict_warns_of_rows_far_outside_the_training_rows_and_takes_them(
    tasks: dict[str, Tasks], new_rows: Split, tmp_path: Path
) -> None:
    """The digits that a run is trained on are levels over 16, from 0 to 1. Folders of an older
    version have no range."""
    path = shutil.copytree(tasks["lightning"].path, tmp_path / "run", symlinks=True)
    levels = {"as_trained": 1, "of_16": 16, "of_255": 255}
    for name, level in levels.items():
        np.savez(tmp_path / f"{name}.npz", x=(new_rows.x * level).astype(np.float32))
    commands = [("task=predict", "run=run", f"data.path={name}.npz") for name in levels]
    done = [forked(tmp_path, command)[0] for command in commands]
    described = json.loads((path / "data.json").read_text())
    assert described.pop("x_range") == {"low": 0.0, "high": 1.0}
    (path / "data.json").write_text(json.dumps(described))
    done += forked(tmp_path, commands[-1])
    assert [(each.status, each.err) for each in done] == [(0, "")] * 4
    warned = ["\n".join(each.out.splitlines()[:-1]) for each in done]
    begin = "warning: the new rows seem to be in other units than the training rows: x holds 0 to"
    end = "in training 0 to 1; pass values in the units of the training data"
    assert warned == ["", f"{begin} 16, {end}", f"{begin} 255, {end}", ""]
    assert all(each.out.splitlines()[-1].endswith("(261 rows)") for each in done)


def test_predict_warns_of_scaled_rows_after_training_on_unscaled_ones(
    new_rows: Split, tmp_path: Path
) -> None:
    """Rows that are all alike tell nothing of their units."""
    levels = new_rows.x * 255
    np.savez(tmp_path / "levels.npz", x=levels, y=new_rows.y)
    for name, x in (("levels", levels), ("scaled", new_rows.x), ("blank", np.zeros((3, 64)))):
        np.savez(tmp_path / f"new_{name}.npz", x=x)
    train = ("data=npz", "data.path=levels.npz", "trainer.max_steps=2", "device=cpu")
    (trained,) = forked(tmp_path, train)
    out = {}
    for name in ("levels", "scaled", "blank"):
        command = ("task=predict", f"run={trained.folder}", f"data.path=new_{name}.npz")
        (done,) = forked(tmp_path, command)
        assert (done.status, done.err) == (0, "")
        out[name] = done.out.splitlines()[:-1]
    assert out["levels"] == out["blank"] == []
    assert out["scaled"] == [
        "warning: the new rows seem to be in other units than the training rows: x holds 0 to 1, "
        "in training 0 to 255; pass values in the units of the training data"
    ]


@pytest.mark.parametrize(
    "damaged", [{}, {"low": 0.0}, {"low": "a", "high": "b"}, {"low": [0.0], "high": [1.0]}]
)
def test_a_damaged_training_range_is_refused_in_one_line(
    tasks: dict[str, Tasks], tmp_path: Path, damaged: dict[str, Any]
) -> None:
    path = shutil.copytree(tasks["lightning"].path, tmp_path / "run", symlinks=True)
    described = json.loads((path / "data.json").read_text())
    (path / "data.json").write_text(json.dumps({**described, "x_range": damaged}))
    np.savez(tmp_path / "new.npz", x=np.zeros((1, 64)))
    (done,) = forked(tmp_path, ("task=predict", "run=run", "data.path=new.npz"))
    said = "x_range must hold low and high, a number each or one per column"
    assert (done.status, done.out) == (2, "")
    assert done.err == f"error: run/data.json is damaged: {said}\n"


@both
def test_export_for_the_other_framework_loads_there(
    tasks: dict[str, Tasks], new_rows: Split, backend: str
) -> None:
    path, done = tasks[backend].path, tasks[backend].exported
    assert (done.status, done.err) == (0, "")
    place, x = path / EXPORTS[backend][1], new_rows.x.astype(np.float32)
    assert done.out == f"file     {Path(backend) / place.name}\n"
    if place.suffix == ".keras":
        dispatcher.load("keras")  # with the threads that tests use
        import keras

        outputs = np.asarray(keras.models.load_model(place).predict(x, verbose=0))
    else:
        import torch

        outputs = torch.export.load(place).module()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(outputs, mlp(saved(path), new_rows.x), rtol=0, atol=FLOAT32)


def test_an_export_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path: Path) -> None:
    """A folder of a process that is gone; not that of one that runs, nor files of the user's."""
    (done,) = forked(tmp_path, SHORT)
    run = tmp_path / done.folder
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name, file in (
        (f".export-{gone.pid}-ab12", "model.pt2"),
        (f".export-{gone.pid}-cd34", "mine.txt"),
        (f".export-{os.getpid()}-ef56", "model.pt2"),
        (".export-notes-x", "model.pt2"),
    ):
        (run / name).mkdir()
        (run / name / file).write_text("half")
    (done,) = forked(tmp_path, ("task=export", f"run={run}", "format=safetensors"))
    assert (done.status, done.err) == (0, "")
    assert {path.name for path in run.glob(".export-*")} == {
        f".export-{gone.pid}-cd34",
        f".export-{os.getpid()}-ef56",
        ".export-notes-x",
    }


def test_where_one_of_several_runs_is_missing_nothing_is_done_with_the_others(
    finished: dict[str, Finished], tmp_path: Path
) -> None:
    shutil.copytree(finished["lightning"].path, tmp_path / "one", symlinks=True)
    (done,) = forked(tmp_path, ("-m", "task=evaluate", "run=one,two"))
    said = "error: run must be the folder of a run, got two, which holds no config.yaml\n"
    assert (done.status, done.out, done.err) == (2, "", said)
    assert not (tmp_path / "one" / "test.json").exists()


@both
def test_export_as_safetensors_holds_the_canonical_weights(
    tasks: dict[str, Tasks], backend: str
) -> None:
    path = tasks[backend].path
    exported, weights = load_file(path / "model.safetensors"), saved(path)
    assert exported.keys() == weights.keys()
    assert all(np.array_equal(exported[name], weights[name]) for name in weights)


@both
def test_no_task_changes_what_the_run_left(
    tasks: dict[str, Tasks], finished: dict[str, Finished], backend: str
) -> None:
    """Only run.log goes on."""
    before, after = finished[backend].path, tasks[backend].path
    for file in (file for file in before.rglob("*") if file.is_file() and file.name != "run.log"):
        assert (after / file.relative_to(before)).read_bytes() == file.read_bytes()
    assert (after / "run.log").read_bytes().startswith((before / "run.log").read_bytes())


# In Python


@both
def test_a_loaded_run_has_config_records_and_result(
    finished: dict[str, Finished], backend: str
) -> None:
    path = finished[backend].path
    run = load_run(path)
    assert (run.config.backend, run.config.schedule.name, run.config.trainer.batch_size) == (
        backend,
        "exponential",
        100,
    )
    for name, found in (("trace", run.trace), ("metrics", run.metrics)):
        with (path / f"{name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert list(found) == header
        for i, key in enumerate(header):
            assert found[key].tolist() == [float(row[i]) for row in rows]
    assert run.result == json.loads((path / "result.json").read_text())
    weights = saved(path)
    assert run.weights.keys() == weights.keys()
    assert all(np.array_equal(run.weights[name], weights[name]) for name in weights)


@both
def test_a_loaded_run_predicts_as_numpy_does_and_on_either_framework(
    finished: dict[str, Finished], new_rows: Split, backend: str
) -> None:
    path = finished[backend].path
    expected = mlp(saved(path), new_rows.x)
    own, other = (
        load_run(path).predict(new_rows.x),
        load_run(path, backend=OTHER[backend]).predict(new_rows.x),
    )
    np.testing.assert_allclose(own, expected, rtol=0, atol=FLOAT32)
    np.testing.assert_allclose(other, expected, rtol=0, atol=FLOAT32)


@both
def test_a_loaded_run_s_model_is_a_native_one(
    finished: dict[str, Finished], new_rows: Split, backend: str
) -> None:
    path = finished[backend].path
    model: Any = load_run(path).model()
    x = new_rows.x.astype(np.float32)
    if backend == "lightning":
        import torch

        assert isinstance(model, torch.nn.Module)
        with torch.no_grad():
            outputs = model(torch.from_numpy(x)).numpy()
    else:
        dispatcher.load("keras")  # with the threads that tests use
        import keras

        assert isinstance(model, keras.Model)
        outputs = np.asarray(model(x))
    np.testing.assert_allclose(outputs, mlp(saved(path), new_rows.x), rtol=0, atol=FLOAT32)


@both
def test_an_earlier_checkpoint_can_be_loaded(finished: dict[str, Finished], backend: str) -> None:
    """It is of update 26, at the end of epoch 2, whose validation loss is in metrics.csv."""
    path = finished[backend].path
    run = load_run(path, checkpoint=26)
    val = run.plan.data.val
    loss, _ = loss_and_accuracy(run.predict(val.x).astype(np.float64), val.y)
    assert run.metrics["val/loss"][1] == pytest.approx(loss, rel=FLOAT32)
    assert not np.array_equal(
        run.weights["dense_0/kernel"], load_run(path).weights["dense_0/kernel"]
    )


# Regression on a user's CSV: y = 300 a - 200 b + 100 to the last digit, which a linear model learns


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained on each backend, then asked about two rows whose columns stand in another order."""
    here = tmp_path_factory.mktemp("lines")
    a, b = np.random.default_rng(0).uniform(-10, 10, (2, 100))
    with (here / "line.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["a", "b", "y"])
        csv.writer(file).writerows(
            zip(a.tolist(), b.tolist(), (300 * a - 200 * b + 100).tolist(), strict=True)
        )
    (here / "new.csv").write_text("b,name,a\n0,first,1\n2,second,-3\n")
    data = ("data=csv", "data.path=line.csv", "data.task=regression")
    options = (
        *data,
        "model=linear",
        "optimizer=sgd",
        "optimizer.lr=0.1",
        "trainer.max_epochs=60",
        "device=cpu",
    )
    trained = forked(here, *((f"backend={backend}", *options) for backend in BACKENDS))
    predict = [("task=predict", f"run={done.folder}", "data.path=new.csv") for done in trained]
    predicted = forked(here, *predict)
    assert [done.status for done in (*trained, *predicted)] == [0] * 4, (trained, predicted)
    return {backend: here / done.folder for backend, done in zip(BACKENDS, trained, strict=True)}


@pytest.mark.slow
@both
def test_a_regression_has_no_accuracy_columns(lines: dict[str, Path], backend: str) -> None:
    header = (lines[backend] / "metrics.csv").read_text().splitlines()[0]
    assert header == "epoch,step,train/loss,val/loss,seconds"
    assert set(json.loads((lines[backend] / "result.json").read_text())["metrics"]) == {
        "train/loss",
        "val/loss",
    }


@both
def test_predictions_are_in_the_target_s_own_units(lines: dict[str, Path], backend: str) -> None:
    """300 - 0 + 100 and -900 - 400 + 100. 0.1: float32 weights, times the scale of y, about 2,000,
    and some."""
    with (lines[backend] / "predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["y"]
    assert [float(row[0]) for row in rows] == pytest.approx([400, -1200], abs=0.1)


def test_a_prediction_needs_the_run_s_folder_and_the_new_rows_alone(
    lines: dict[str, Path], tmp_path: Path
) -> None:
    """The folder moved to another place, where the file that it was trained on is not."""
    path = lines["lightning"]
    shutil.copytree(path, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "predictions.csv").unlink()
    shutil.copy(path.parents[2] / "new.csv", tmp_path)
    (done,) = forked(tmp_path, ("task=predict", "run=run", "data.path=new.csv"))
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / "run" / "predictions.csv").read_text() == (
        path / "predictions.csv"
    ).read_text()
