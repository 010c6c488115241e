"""Tables that others made, as they are: through the command line, on both backends, and no worse
than scikit-learn's pipeline with a network of the same size on the same rows."""

import csv
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from sklearn import datasets
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from runner.data.splits import assign
from runner.run.run_folder import read_json
from tests.command_line import BACKENDS, forked
from tests.real import SEEDS, assert_no_worse, equal_losses, real_file

pytestmark = pytest.mark.slow

Rows = list[list[str]]


@dataclass(frozen=True)
class Case:
    """A table, and what is trained on it.

    Attributes:
        write: writes the file into a folder; returns its header and cells as text.
        keys: the keys of data, besides the file.
        targets: the columns to predict.
        text: the columns of text.
        num_epochs, batch_size: of both trainings.
        unused: columns that are no features.
    """

    write: Callable[[Path], tuple[list[str], Rows]]
    file: str
    keys: tuple[str, ...]
    targets: tuple[str, ...]
    text: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    num_epochs: int = 20
    batch_size: int = 16

    @property
    def task(self) -> str:
        named = [key.removeprefix("data.task=") for key in self.keys if "data.task=" in key]
        return named[0] if named else "classification"

    @property
    def data(self) -> tuple[str, ...]:
        targets = f"data.target=[{','.join(self.targets)}]"
        if len(self.targets) == 1:
            targets = f"data.target={self.targets[0]}"
        unused = f"data.drop=[{','.join(self.unused)}]"
        return ("data=table", f"data.path={self.file}", targets, unused, *self.keys)


def copied(source: str, target: Path) -> tuple[list[str], Rows]:
    content = real_file(source).read_text("utf-8")
    target.write_text(content)
    header, *rows = csv.reader(content.splitlines())
    return header, rows


def penguins(here: Path) -> tuple[list[str], Rows]:
    return copied("palmerpenguins/data/penguins.csv", here / "penguins.csv")


def cars(here: Path) -> tuple[list[str], Rows]:
    """Write the records of cars.json as CSV; the years are text, "1970-01-01"."""
    records = json.loads(real_file("vega_datasets/_data/cars.json").read_text("utf-8"))
    header = [*records[0]]
    rows = [["" if r[k] is None else str(r[k]) for k in header] for r in records]
    with (here / "cars.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return header, rows


def diamonds(here: Path) -> tuple[list[str], Rows]:
    source = real_file("plotnine/data/diamonds.csv")
    parquet.write_table(arrow_csv.read_csv(source), here / "diamonds.parquet")
    return copied("plotnine/data/diamonds.csv", here / "diamonds.csv")


def labels(here: Path) -> tuple[list[str], Rows]:
    """Write scikit-learn's made table of three labels that a row can have together."""
    x, y = datasets.make_multilabel_classification(800, 20, n_classes=3, random_state=0)
    header = [*(f"word_{i}" for i in range(20)), *"abc"]
    rows = [[*map(str, a), *map(str, b)] for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    with (here / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return header, rows


CASES = {
    "penguins": Case(
        penguins,
        "penguins.csv",
        ("data.missing=median",),
        ("species",),
        text=("island", "sex"),
    ),
    "cars": Case(
        cars,
        "cars.csv",
        ("data.missing=median", "data.task=regression", "data.missing_target=drop"),
        ("Miles_per_Gallon",),
        text=("Origin",),
        unused=("Name",),
    ),
    "diamonds": Case(
        diamonds,
        "diamonds.parquet",
        ("data.task=regression",),
        ("price",),
        text=("cut", "color", "clarity"),
        num_epochs=5,
        batch_size=256,
    ),
    "labels": Case(labels, "labels.csv", ("data.task=multilabel",), ("a", "b", "c")),
}
WITHOUT_VAL = ("data.val_fraction=0", "trainer.monitor=train/loss")


@pytest.mark.parametrize("name", CASES)
def test_both_backends_read_a_table_alike_and_have_equal_losses(tmp_path: Path, name: str) -> None:
    """The rows, their order and so every batch are the same to the bit: the hash of the data and
    that of the config are equal, and the losses of all updates differ by rounding alone."""
    case = CASES[name]
    case.write(tmp_path)
    batch = f"trainer.batch_size={case.batch_size}"
    equal_losses(tmp_path, *case.data, batch)
    runs = [*(tmp_path / "outputs" / "runs").iterdir()]
    assert len(runs) == len(BACKENDS)
    about = [read_json(run / "data.json") for run in runs]
    assert about[0] == about[1]
    traces = [np.genfromtxt(run / "trace.csv", delimiter=",", names=True) for run in runs]
    np.testing.assert_allclose(traces[0]["loss"], traces[1]["loss"], rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_table_is_learned_no_worse_than_by_scikit_learn(tmp_path: Path, name: str) -> None:
    """The score is the accuracy of the test rows (of all their labels), or the negative mean
    absolute error in the data's units; the predictions are those of task=predict."""
    case = CASES[name]
    header, rows = case.write(tmp_path)
    column = {key: [row[header.index(key)] for row in rows] for key in header}
    kept = [i for i in range(len(rows)) if all(column[key][i] != "" for key in case.targets)]
    train, _, test = (np.array(kept)[part] for part in assign(len(kept), test_fraction=0.2))
    y = np.array([column[key] for key in case.targets]).T
    truth = y[test] if case.task == "classification" else y[test].astype(float)
    scores = []
    for seed in SEEDS:
        outputs = _predicted(case, tmp_path, seed)[test]
        scores.append(_score(case.task, outputs, truth))
    x = _cells(case, column)
    theirs = np.array([_of_scikit_learn(case, x, y, train, test, truth, s) for s in SEEDS])
    ours = np.array(scores)
    print(f"{name}: {ours.mean():.4g} (scikit-learn {theirs.mean():.4g})")
    assert_no_worse(ours, theirs)


def _predicted(case: Case, here: Path, seed: int) -> np.ndarray:
    """Train, and predict the raw file: labels, their probabilities, or numbers.  # [N, C]"""
    keys = (*case.data, *WITHOUT_VAL, "optimizer.lr=0.001", "device=cpu", f"seed={seed}")
    length = (f"trainer.max_epochs={case.num_epochs}", f"trainer.batch_size={case.batch_size}")
    (done,) = forked(here, (*keys, *length))
    assert (done.status, done.err) == (0, "")
    (predicted,) = forked(here, ("task=predict", f"run={done.folder}", f"data.path={case.file}"))
    assert (predicted.status, predicted.err) == (0, "")
    with (here / done.folder / "predictions.csv").open() as file:
        lines = [*csv.DictReader(file)]
    if case.task == "classification":
        return np.array([[line["label"]] for line in lines])
    of_labels = case.task == "multilabel"
    names = [f"probability_{name}" for name in case.targets] if of_labels else case.targets
    return np.array([[float(line[name]) for name in names] for line in lines])


def _score(task: str, outputs: np.ndarray, truth: np.ndarray) -> float:
    if task == "regression":
        return -float(np.abs(outputs - truth).mean())
    predicted = outputs > 0.5 if task == "multilabel" else outputs
    return float(np.mean(predicted == truth))


def _cells(case: Case, column: dict[str, list[str]]) -> np.ndarray:
    """The features in the order of the file: text, and numbers with NaN for a missing cell; a date
    is its number of days.  # object[N, F]"""
    names = [key for key in column if key not in (*case.targets, *case.unused)]
    cells = [[c if key in case.text else _number(c) for c in column[key]] for key in names]
    return np.array(cells, dtype=object).T


def _number(cell: str) -> float:
    if cell in ("", "NA"):
        return np.nan
    return float(date.fromisoformat(cell).toordinal() if cell.count("-") == 2 else cell)


def _of_scikit_learn(
    case: Case,
    x: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    truth: np.ndarray,
    seed: int,
) -> float:
    is_text = np.array([isinstance(cell, str) for cell in x[0]])
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    transform = ColumnTransformer(
        [
            ("numbers", numbers, np.flatnonzero(~is_text)),
            ("text", OneHotEncoder(handle_unknown="ignore"), np.flatnonzero(is_text)),
        ],
        sparse_threshold=0,
    )
    keys: dict[str, Any] = {
        "alpha": 0,
        "batch_size": case.batch_size,
        "learning_rate_init": 1e-3,
        "max_iter": case.num_epochs,
        "random_state": seed,
    }
    network: Any = MLPClassifier(hidden_layer_sizes=(128,), **keys)
    targets: Sequence[Any] = y.ravel() if len(case.targets) == 1 else y.astype(float).astype(int)
    if case.task == "regression":
        network = TransformedTargetRegressor(
            MLPRegressor(hidden_layer_sizes=(128,), **keys), transformer=StandardScaler()
        )
        targets = np.array([_number(cell) for cell in y.ravel()])
    pipeline = make_pipeline(transform, network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(x[train], np.asarray(targets)[train])
    outputs = np.asarray(pipeline.predict(x[test])).reshape(len(test), -1)
    if case.task == "multilabel":
        outputs = outputs - 0.5  # 0 and 1, as the signs of logits
    return _score(case.task, outputs, truth)
