"""From a file of raw rows to an answer in its units: training, evaluation, predictions and exports
of scikit-learn's data."""

import csv
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn import datasets
from sklearn.metrics import mean_absolute_error, mean_squared_error

from runner import dispatcher, load_run
from tests.command_line import BACKENDS, ONE_THREAD, REPOSITORY, Done, forked, mlp
from tests.rows import slow_but

both = pytest.mark.parametrize("backend", BACKENDS)

WINE, DIABETES = datasets.load_wine(), datasets.load_diabetes(scaled=False)
NAMES = [str(WINE.target_names[label]) for label in WINE.target]

# Raw rows go into an export in float32: relative 6e-8 of values up to 14 standard deviations from 0
# (wine's alcohol is 13 +- 0.8), moves logits of size 1 by some 1e-5. Ten times that.
EXPORTED = 1e-4

Rows = list[list[Any]]


def write(path: Path, header: Sequence[str], rows: Rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def wine() -> tuple[list[str], Rows]:
    header = [*WINE.feature_names, "cultivar"]
    return header, [[*row, name] for row, name in zip(WINE.data.tolist(), NAMES, strict=True)]


def diabetes() -> tuple[list[str], Rows]:
    header = [*DIABETES.feature_names, "progression"]
    return header, np.column_stack([DIABETES.data, DIABETES.target]).tolist()


class Trained(NamedTuple):
    wine: Path
    diabetes: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Both data sets on each backend; nobody writes into these folders."""
    here = tmp_path_factory.mktemp("real")
    write(here / "wine.csv", *wine())
    write(here / "diabetes.csv", *diabetes())
    short = ("device=cpu", "trainer.max_epochs=8", "optimizer.lr=0.01")
    regression = ("data.task=regression", "metrics=[mean_absolute_error]")
    lines = [
        line
        for backend in BACKENDS
        for line in (
            (f"backend={backend}", "data=csv", "data.path=wine.csv", *short),
            (f"backend={backend}", "data=csv", "data.path=diabetes.csv", *regression, *short),
        )
    ]
    done = forked(here, *lines)
    assert [(each.status, each.err) for each in done] == [(0, "")] * 4
    folders = [here / each.folder for each in done]
    return {backend: Trained(*folders[2 * i : 2 * i + 2]) for i, backend in enumerate(BACKENDS)}


def copied(run: Path, tmp_path: Path) -> Path:
    """The run's folder and its data, in a folder of their own; the run's."""
    for file in run.parents[2].glob("*.csv"):
        shutil.copy(file, tmp_path)
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def standardized(run: Path, raw: np.ndarray) -> np.ndarray:
    """Scale by the mean and deviation of the training rows, read unscaled from the file."""
    section = load_run(run).config.data.model_copy(
        update={"standardize": False, "path": str(run.parents[2] / source(run))}
    )
    train = section.load().train.x
    return np.asarray((raw - train.mean(0)) / train.std(0))


def source(run: Path) -> str:
    return str(load_run(run).config.data.path)


def predictions(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return {
        name: np.array(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)
    }


def softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(z) / np.exp(z).sum(1, keepdims=True))


@pytest.mark.slow
def test_columns_in_other_units_are_named_with_both_ranges(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    """All rows of the file, one column by a thousand, and all of them standardized as for training,
    where all but few columns of wine lie outside their raw range."""
    run = copied(trained["lightning"].wine, tmp_path)
    section = load_run(run).config.data.model_copy(
        update={"standardize": False, "path": str(tmp_path / "wine.csv")}
    )
    train = section.load().train.x
    header, alcohol = WINE.feature_names, WINE.data[:, :1]
    write(tmp_path / "same.csv", header, WINE.data.tolist())
    write(tmp_path / "one.csv", header, np.hstack([alcohol * 1000, WINE.data[:, 1:]]).tolist())
    scaled_rows = (WINE.data - train.mean(0)) / train.std(0)
    write(tmp_path / "scaled.csv", header, scaled_rows.tolist())
    commands = [
        ("task=predict", "run=run", f"data.path={name}.csv") for name in ("same", "one", "scaled")
    ]
    done = [forked(tmp_path, command)[0] for command in commands]
    assert [(each.status, each.err) for each in done] == [(0, "")] * 3
    same, one, scaled = ([*each.out.splitlines()[:-1]] for each in done)
    low, high = alcohol.min() * 1000, alcohol.max() * 1000
    least, largest = train[:, 0].min(), train[:, 0].max()
    begin = (
        "warning: the new rows seem to be in other units than the training rows: "
        "column alcohol holds"
    )
    assert same == []
    assert one == [
        f"{begin} {low:g} to {high:g}, in training {least:g} to {largest:g}; pass values in the "
        f"units of the training data"
    ]
    assert len(scaled) == 1
    assert scaled[0].startswith(begin)


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_loaded_run_predicts_from_raw_rows(trained: dict[str, Trained], backend: str) -> None:
    """NumPy's network on rows scaled by NumPy; targets in the data's units."""
    run = trained[backend].wine
    expected = mlp(dict(load_run(run).weights), standardized(run, WINE.data))
    np.testing.assert_allclose(load_run(run).predict(WINE.data), expected, rtol=0, atol=1e-4)
    assert np.mean(expected.argmax(1) == WINE.target) > 0.95
    run = trained[backend].diabetes
    outputs = load_run(run).predict(DIABETES.data)
    assert mean_absolute_error(DIABETES.target, outputs) < 60  # the mean of all is off by 66
    assert outputs.shape == (442, 1)


def test_columns_of_a_table_are_found_by_name(trained: dict[str, Trained]) -> None:
    class Table:
        """Stand in for a DataFrame, with the parts that are used."""

        def __init__(self, columns: list[str], values: np.ndarray) -> None:
            self.columns, self.values = columns, values

        def __getitem__(self, names: list[str]) -> np.ndarray:
            return self.values[:, [self.columns.index(name) for name in names]]

    run = load_run(trained["lightning"].wine)
    names = ["unused", *WINE.feature_names[::-1]]
    table: Any = Table(names, np.column_stack([np.zeros(178), WINE.data[:, ::-1]]))
    np.testing.assert_array_equal(run.predict(table), run.predict(WINE.data))
    table = Table(names[:-1], table.values[:, :-1])
    with pytest.raises(Exception, match="x lacks the column alcohol, which the run was trained on"):
        run.predict(table)
    with pytest.raises(
        Exception, match=r"a row of x has shape \[12\]; the run was trained on \[13\]"
    ):
        run.predict(WINE.data[:, 1:])
    with pytest.raises(Exception, match=r"the new rows: row 3, column x\[2\] is nan"):
        run.predict(np.where(np.arange(178 * 13).reshape(178, 13) == 3 * 13 + 2, np.nan, WINE.data))
    with pytest.raises(Exception, match=r"scaled and in float32: row 0, column x\[0\] is inf"):
        run.predict(WINE.data[:1] * 1e200)


@both
def test_metrics_are_in_the_data_s_units_and_the_loss_as_trained(
    trained: dict[str, Trained], tmp_path: Path, backend: str
) -> None:
    """Against scikit-learn, of the same predictions; the loss is in units of the training targets'
    variance."""
    run = copied(trained[backend].diabetes, tmp_path)
    (evaluated,) = forked(tmp_path, ("task=evaluate", "run=run"))
    found = json.loads((run / "test.json").read_text())
    loaded = load_run(run)
    section = loaded.config.data.model_copy(
        update={"standardize": False, "path": str(tmp_path / "diabetes.csv")}
    )
    data = section.load()
    outputs = loaded.predict(data.test.x)
    # float32 outputs of two calls, times a deviation of 77
    assert found["test/mean_absolute_error"] == pytest.approx(
        mean_absolute_error(data.test.y, outputs), rel=1e-5
    )
    loss = mean_squared_error(data.test.y, outputs) / data.train.y.var()
    assert found["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert f"test/mean_absolute_error {found['test/mean_absolute_error']:.4f}" in evaluated.out
    during = loaded.metrics
    val, train = (loaded.predict(split.x) for split in (data.val, data.train))
    assert during["val/mean_absolute_error"][-1] == pytest.approx(
        mean_absolute_error(data.val.y, val), rel=1e-5
    )
    # of the training rows over the last epoch, while the weights still moved
    assert during["train/mean_absolute_error"][-1] == pytest.approx(
        mean_absolute_error(data.train.y, train), rel=0.1
    )


@pytest.mark.slow
def test_exports_take_raw_rows_and_a_file_beside_names_them(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    """Cover both tasks and both frameworks, whichever trained the run."""
    dispatcher.load("keras")  # with the threads that tests use
    import keras
    import torch

    for backend, name, x in (
        ("lightning", "wine", WINE.data),
        ("keras", "diabetes", DIABETES.data),
    ):
        here = tmp_path / name
        here.mkdir()
        run = copied(getattr(trained[backend], name), here)
        done = forked(
            here,
            *(
                ("task=export", "run=run", f"format={kind}")
                for kind in ("keras", "torch", "safetensors")
            ),
        )
        assert [(each.status, each.err) for each in done] == [(0, "")] * 3
        expected, raw = load_run(run).predict(x), x.astype(np.float32)
        scale = np.abs(expected).max()
        from_keras = np.asarray(
            keras.models.load_model(run / "model.keras").predict(raw, verbose=0)
        )
        from_torch = (
            torch.export.load(run / "model.pt2").module()(torch.from_numpy(raw)).detach().numpy()
        )
        assert from_keras.dtype == from_torch.dtype == np.float32
        np.testing.assert_allclose(from_keras, expected, rtol=0, atol=EXPORTED * scale)
        np.testing.assert_allclose(from_torch, expected, rtol=0, atol=EXPORTED * scale)
        about = json.loads((run / "model.safetensors.json").read_text())
        scaled = (x - about["x_scaling"]["offset"]) / about["x_scaling"]["scale"]
        outputs = mlp(load_file(run / "model.safetensors"), scaled)
        if about["y_scaling"]:
            outputs = outputs * about["y_scaling"]["scale"] + about["y_scaling"]["offset"]
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=EXPORTED * scale)
        header = (wine() if name == "wine" else diabetes())[0]
        umask = os.umask(0)
        os.umask(umask)
        for file in ("model.keras", "model.pt2", "model.safetensors"):
            said = json.loads((run / f"{file}.json").read_text())
            assert [*said["features"], said["target"]] == header
            assert said["classes"] == (sorted(set(NAMES)) if name == "wine" else [])
            assert said["scales"] == (file != "model.safetensors")
            for each in (run / file, run / f"{file}.json"):
                assert stat.S_IMODE(each.stat().st_mode) == 0o666 & ~umask
        assert not [*run.glob(".*")]


@pytest.mark.slow
def test_exports_in_float64_scale_in_float64(tmp_path: Path) -> None:
    """Raw rows without a rounding: 1e-12 of outputs of some hundreds is sums of 10 products in
    another order."""
    dispatcher.load("keras")  # with the threads that tests use
    import keras
    import torch

    write(tmp_path / "diabetes.csv", *diabetes())
    options = (
        "data=csv",
        "data.path=diabetes.csv",
        "data.task=regression",
        "trainer.precision=float64",
        "model=linear",
    )
    (done,) = forked(tmp_path, (*options, "trainer.max_steps=3", "device=cpu"))
    run, x = tmp_path / done.folder, DIABETES.data
    forked(
        tmp_path,
        *(("task=export", f"run={done.folder}", f"format={kind}") for kind in ("keras", "torch")),
    )
    from_keras = np.asarray(keras.models.load_model(run / "model.keras")(x))
    from_torch = torch.export.load(run / "model.pt2").module()(torch.from_numpy(x)).detach().numpy()
    for outputs in (from_keras, from_torch):
        assert outputs.dtype == np.float64
        np.testing.assert_allclose(outputs, load_run(run).predict(x), rtol=1e-12)


def test_an_export_does_not_take_numbers_that_its_dtype_cannot(tmp_path: Path) -> None:
    """Refused for frameworks; as safetensors, beside its scaling, it is whole."""
    x = np.random.default_rng(0).random((60, 2)) * [1e160, 1]
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(60) % 2)
    options = (
        "data=npz",
        "data.path=a.npz",
        "data.standardize=true",
        "trainer.max_steps=3",
        "device=cpu",
    )
    (run,) = forked(tmp_path, options)
    assert run.status == 0
    kinds = ("keras", "safetensors")
    refused, whole = forked(
        tmp_path, *(("task=export", f"run={run.folder}", f"format={kind}") for kind in kinds)
    )
    assert (refused.status, whole.status) == (2, 0)
    assert refused.err == (
        f"error: format must be safetensors for {run.folder}: x holds values outside the "
        "range of float32, which a model with raw rows cannot have\n"
    )


Change = Callable[[list[str], Rows], tuple[list[str], Rows]]


def with_column(name: str, change: Callable[[Any], Any]) -> Change:
    def made(header: list[str], rows: Rows) -> tuple[list[str], Rows]:
        at = header.index(name)
        return header, [[*row[:at], change(row[at]), *row[at + 1 :]] for row in rows]

    return made


SAME: dict[str, Change] = {
    "columns reordered": lambda header, rows: (header[::-1], [row[::-1] for row in rows]),
    "column added": lambda header, rows: ([*header, "more"], [[*row, 1.5] for row in rows]),
}
CHANGED: dict[str, tuple[Change, str]] = {
    "rows appended": (lambda header, rows: (header, rows + rows[:10]), "its rows are train 112, "),
    "a column gone": (
        lambda header, rows: (header[1:], [row[1:] for row in rows]),
        "its columns are malic_acid, ",
    ),
    "columns swapped": (
        lambda header, rows: ([header[1], header[0], *header[2:]], rows),
        "mean or variance of column alcohol has changed",
    ),
    "a column times 1000": (
        with_column("hue", lambda value: value * 1000),
        "mean or variance of column hue has changed",
    ),
    # the scaled rows are the same to the bit
    "a column times 1024": (
        with_column("hue", lambda value: value * 1024),
        "mean or variance of column hue has changed",
    ),
    "labels flipped": (
        with_column(
            "cultivar", lambda name: {"class_0": "class_1", "class_1": "class_0"}.get(name, name)
        ),
        "its SHA-256 is ",
    ),
    "labels renamed": (
        with_column("cultivar", lambda name: f"new_{name}"),
        "its classes are new_class_0, ",
    ),
    "rows reordered": (lambda header, rows: (header, rows[::-1]), ""),
    "a test row changed": (
        lambda header, rows: (header, [[*rows[0][:-1], "class_2"], *rows[1:]]),
        "its SHA-256 is ",
    ),
}


def test_evaluate_finds_columns_by_name_and_refuses_other_data(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    """Resume refuses it likewise. Nothing is written."""
    runs = {}
    for name, change in {**SAME, **{name: change for name, (change, _) in CHANGED.items()}}.items():
        here = tmp_path / name.replace(" ", "_")
        here.mkdir()
        runs[name] = copied(trained["lightning"].wine, here)
        write(here / "wine.csv", *change(*wine()))
    done: dict[str, Done] = {}
    for name, run in runs.items():
        (done[name],) = forked(run.parent, ("task=evaluate", "run=run"))
    (original,) = forked(
        copied(trained["lightning"].wine, tmp_path).parent, ("task=evaluate", "run=run")
    )
    assert original.status == 0
    for name in SAME:
        assert (done[name].status, done[name].out, done[name].err) == (0, original.out, "")
    for name, (_, said) in CHANGED.items():
        assert done[name].status == 2, name
        assert done[name].err.startswith(
            f"error: task=evaluate: the data is not what run was trained on: {said}"
        ), name
        assert done[name].err.endswith("and task=predict takes new rows without targets\n")
        assert not (runs[name] / "test.json").exists()
    for name in ("a column times 1024", "labels renamed"):
        (resumed,) = forked(runs[name].parent, ("resume=run", "trainer.max_epochs=9"))
        assert resumed.status == 2
        assert f"resume: the data is not what run was trained on: {CHANGED[name][1]}" in resumed.err


@pytest.mark.slow
def test_predictions_have_probabilities_and_replace_no_others(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    run = copied(trained["lightning"].wine, tmp_path)
    header, rows = wine()
    write(tmp_path / "new.csv", header[::-1], [row[::-1] for row in rows])
    write(tmp_path / "other.csv", header, rows[:5])
    np.savez(tmp_path / "new.npz", x=WINE.data)
    paths = ("new.csv", "other.csv", "new.csv", "other.csv", "new.npz")
    done = [forked(tmp_path, ("task=predict", "run=run", f"data.path={path}"))[0] for path in paths]
    names = [
        "predictions.csv",
        "predictions_2.csv",
        "predictions.csv",
        "predictions_2.csv",
        "predictions.npz",
    ]
    nums = [178, 5, 178, 5, 178]
    assert [each.out for each in done] == [
        f"file     run/{name}  ({num} rows)\n" for name, num in zip(names, nums, strict=True)
    ]
    found = predictions(run / "predictions.csv")
    classes = sorted(set(NAMES))
    outputs = np.column_stack([found[f"output_{i}"].astype(float) for i in range(3)])
    probability = np.column_stack([found[f"probability_{name}"].astype(float) for name in classes])
    np.testing.assert_allclose(outputs, load_run(run).predict(WINE.data), rtol=0, atol=1e-5)
    np.testing.assert_allclose(probability, softmax(outputs), rtol=1e-12)
    assert found["label"].tolist() == [classes[i] for i in outputs.argmax(1)]
    with np.load(run / "predictions.npz") as arrays:
        np.testing.assert_allclose(arrays["probability"], probability, rtol=0, atol=1e-5)
        assert arrays["label"].tolist() == found["label"].tolist()


@pytest.mark.slow
def test_with_one_output_the_probabilities_are_of_both_classes(tmp_path: Path) -> None:
    """binary_cross_entropy of scikit-learn's breast_cancer, its labels 0 and 1 by name."""
    data = datasets.load_breast_cancer()
    np.savez(tmp_path / "cancer.npz", x=data.data, y=data.target * 5 - 2)  # -2 and 3
    options = (
        "data=npz",
        "data.path=cancer.npz",
        "data.standardize=true",
        "loss=binary_cross_entropy",
    )
    (run,) = forked(
        tmp_path,
        (*options, "model=linear", "optimizer.lr=0.05", "trainer.max_epochs=3", "device=cpu"),
    )
    (done,) = forked(tmp_path, ("task=predict", f"run={run.folder}", "data.path=cancer.npz"))
    assert (run.status, done.status) == (0, 0)
    with np.load(tmp_path / run.folder / "predictions.npz") as found:
        z = found["outputs"][:, 0]
        np.testing.assert_allclose(
            found["probability"], np.column_stack([1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))])
        )
        assert set(found["label"]) == {"-2", "3"}
        assert np.mean((found["label"] == "3") == data.target) > 0.9


def test_what_is_probably_not_meant_is_said_before_the_training(tmp_path: Path) -> None:
    """trainer.strict refuses it. Digits' levels, 0 to 16, as a user would save them."""
    digits = datasets.load_digits()
    np.savez(tmp_path / "digits.npz", x=digits.images[..., None].astype(np.uint8), y=digits.target)
    line = ("data=npz", "data.path=digits.npz", "model=linear", "trainer.max_steps=2", "device=cpu")
    told, strict, ranged = forked(
        tmp_path,
        line,
        (*line, "trainer.strict=true"),
        (*line[:3], "task=find_lr", "find_lr.num_steps=20"),
    )
    said = "digits.npz: x has unscaled values up to 16; data.standardize=true scales them"
    assert told.status == 0
    assert told.out.startswith(f"warning: {said}\n")
    assert (strict.status, strict.err) == (2, f"error: {said}\n")
    assert ranged.out.startswith(f"warning: {said}\n")


def test_what_cannot_be_trained_on_or_predicted_is_refused_in_one_line(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    """Refuse it on the command line with exit status 2 and nothing written."""
    header, rows = wine()
    copied(trained["lightning"].wine, tmp_path)
    write(tmp_path / "index.csv", ["", *header], [[i, *row] for i, row in enumerate(rows)])
    write(tmp_path / "one.csv", header, [row for row in rows if row[-1] == "class_0"])
    write(tmp_path / "text.csv", header, [["high", *row[1:4], "", *row[5:]] for row in rows])
    write(tmp_path / "gap.csv", header, [*rows[:3], [*rows[3][:5], "?", *rows[3][6:]]])
    os.mkfifo(tmp_path / "pipe.csv")
    expected = {
        (
            "data=csv",
            "data.path=index.csv",
        ): "index.csv: column 1 has no name; if it is an index, leave it out with "
        'data.drop=[""] (pandas: index=False), otherwise name it',
        (
            "data=csv",
            "data.path=one.csv",
        ): "one.csv: column cultivar has a single class, class_0; classification "
        "needs two; use data.task=regression to predict numbers",
        (
            "data=csv",
            "data.path=text.csv",
        ): "text.csv: column magnesium is empty; data.drop=[magnesium] leaves it out",
        (
            "data=csv",
            "data.path=pipe.csv",
        ): "data.path must be a file, got pipe.csv, which is a pipe or a device",
        (
            "task=predict",
            "run=run",
            "data.path=.",
        ): "data.path must be a file, got ., which is a folder",
        (
            "task=predict",
            "run=run",
            "data.path=pipe.csv",
        ): "data.path must be a file, got pipe.csv, which is a pipe or a device",
        (
            "task=predict",
            "run=run",
            "data.path=gap.csv",
        ): "gap.csv: line 5, column total_phenols is '?' where other cells are numbers",
    }
    before = sorted(tmp_path.rglob("*"))
    done = forked(tmp_path, *expected)
    assert [(each.status, each.err) for each in done] == [
        (2, f"error: {said}\n") for said in expected.values()
    ]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_models_of_images_train_on_the_default_data(tmp_path: Path) -> None:
    lines = [
        (f"backend={backend}", "model=cnn", "trainer.max_steps=2", "device=cpu")
        for backend in BACKENDS
    ]
    done = forked(tmp_path, *lines)
    assert [(each.status, each.err) for each in done] == [(0, "")] * 2
    shapes = [
        json.loads((tmp_path / each.folder / "data.json").read_text())["input_shape"]
        for each in done
    ]
    assert shapes == [[8, 8, 1]] * 2
    (evaluated,) = forked(tmp_path, ("task=evaluate", f"run={done[0].folder}"))
    assert evaluated.status == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a limit of the shell stands for a full disk")
@pytest.mark.parametrize(
    ("task", "name"),
    [
        pytest.param("task=export format=torch", "model.pt2", marks=pytest.mark.slow),
        pytest.param("task=export format=keras", "model.keras", marks=pytest.mark.slow),
        ("task=export format=safetensors", "model.safetensors"),
        pytest.param("task=predict data.path=wine.csv", "predictions.csv", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file(
    trained: dict[str, Trained], tmp_path: Path, task: str, name: str
) -> None:
    """6 KB at most a file: run.log has its place, a model none."""
    run = copied(trained["lightning"].wine, tmp_path)
    (run / "run.log").write_text("")
    before = sorted(file.name for file in run.iterdir())
    script = f"ulimit -f 6; exec {sys.executable} -m runner run=run {task}"
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = rf"error: run/{re.escape(name)} cannot be written: File too large, \d+ bytes are free\n"
    assert re.fullmatch(said, done.stderr)
    assert sorted(file.name for file in run.iterdir()) == before
