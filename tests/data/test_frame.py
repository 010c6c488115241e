"""Tables that were passed in Python: the same rows as those of a file with the same table."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv

import runner
from runner.data.cells import NULLS
from tests.data.test_table import penguins, written

KEYS = "backend=lightning device=cpu data.target=species data.missing=median"


def read(path: Path) -> Any:
    """A file's table by pyarrow, with the missing cells that pandas and this project know."""
    return csv.read_csv(
        str(path), convert_options=csv.ConvertOptions(null_values=NULLS, strings_can_be_null=True)
    )


def of_pandas(path: Path) -> Any:
    frame = pytest.importorskip("pandas").read_csv(path, parse_dates=["measured"])
    frame.index = frame.index[::-1] * 3  # an index is no column
    return frame


def of_polars(path: Path) -> Any:
    polars = pytest.importorskip("polars")
    return polars.read_csv(path, null_values=list(NULLS), try_parse_dates=True)


KINDS: dict[str, Callable[[Path], Any]] = {
    "an Arrow table": read,
    "a reader of record batches": lambda path: read(path).to_reader(7),
    "a dict of lists": lambda path: read(path).to_pydict(),
    "a dict of arrays": lambda path: {
        name: column.to_numpy() for name, column in zip(*_parts(path), strict=True)
    },
    "a list of dicts": lambda path: [
        {name: cell for name, cell in record.items() if cell is not None}
        for record in read(path).to_pylist()
    ],
    "dictionary columns": lambda path: pa.table(
        [c.dictionary_encode() if pa.types.is_string(c.type) else c for c in _parts(path)[1]],
        names=_parts(path)[0],
    ),
    "pandas": of_pandas,
    "polars": of_polars,
}


def _parts(path: Path) -> tuple[list[str], list[Any]]:
    table = read(path)
    return table.column_names, table.columns


@pytest.fixture(scope="module")
def of_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, runner.Run]:
    folder = tmp_path_factory.mktemp("file")
    path = written(folder / "penguins.csv", penguins())
    return path, train(folder, f"data=table data.path={path}")


def train(folder: Path, more: str = "", num_epochs: int = 1, **objects: Any) -> runner.Run:
    keys = f"{KEYS} trainer.max_epochs={num_epochs} output.root={folder / 'out'} {more}"
    return runner.train(keys, quiet=True, **objects)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_in_memory_is_the_data_set_of_its_file(
    kind: str, of_file: tuple[Path, runner.Run], tmp_path: Path
) -> None:
    """Text, dates, truth values and missing cells: equal values by their hash, equal transforms,
    weights and metrics; raw rows of either give the outputs of the other's run."""
    path, file = of_file
    run = train(tmp_path, data=KINDS[kind](path))
    for key in ("sha256", "columns", "features", "x_scaling", "target"):
        assert run.data[key] == file.data[key], key
    assert run.config.data.name == "frame"
    assert run.evaluate() == file.evaluate()
    expected = file.predict(read(path))
    assert np.array_equal(run.predict(KINDS[kind](path)), expected)
    # the rows of the run are recognised, so only its test rows are measured
    assert file.evaluate(KINDS[kind](path)) == file.evaluate()
    assert run.evaluate(path) == file.evaluate()


def test_new_rows_may_have_other_columns_in_another_order_and_no_target(
    of_file: tuple[Path, runner.Run],
) -> None:
    path, run = of_file
    table = read(path)
    names = [name for name in reversed(table.column_names) if name != "species"]
    other = table.select(names).append_column("note", pa.array(["?"] * table.num_rows))
    assert np.array_equal(run.predict(other), run.predict(table))
    with pytest.raises(runner.ConfigError, match="x lacks the column sex, which the run was"):
        run.predict(table.drop_columns(["sex"]))


def test_predict_takes_features_that_are_already_transformed(
    of_file: tuple[Path, runner.Run],
) -> None:
    _, run = of_file
    data = run.plan.data
    raw = data.x_scaling.invert(data.test.x) if data.x_scaling else data.test.x
    columns = {name: raw[:, i] for i, name in enumerate(run.data["features"])}
    outputs = run.outputs({"x": data.test.x.astype(np.float32)})
    # the scaling is inverted and applied again: its rounding, in float32
    assert np.allclose(run.predict(columns), outputs, rtol=1e-5, atol=1e-6)


def test_new_labelled_rows_in_memory_are_measured(of_file: tuple[Path, runner.Run]) -> None:
    path, run = of_file
    table = read(path).slice(0, 30)
    metrics = run.evaluate(table)
    labels = np.array(run.data["classes"])[run.predict(table).argmax(axis=1)]
    hits = np.mean(labels == np.array(table["species"].to_pylist()))
    assert metrics["test/accuracy"] == pytest.approx(hits, abs=1e-12)  # a mean of 30 zeros and ones


def test_a_run_on_a_table_in_memory_resumes_with_it_and_refuses_another(tmp_path: Path) -> None:
    path = written(tmp_path / "penguins.csv", penguins())
    whole = train(tmp_path, num_epochs=2, data=read(path))
    part = train(tmp_path, data=read(path))
    with pytest.raises(runner.ConfigError, match="the data is not what"):
        runner.resume(part.folder, "trainer.max_epochs=2", data=read(path).slice(1), quiet=True)
    resumed = runner.resume(part.folder, "trainer.max_epochs=2", data=read(path), quiet=True)
    assert resumed.result["weights_sha256"] == whole.result["weights_sha256"]


def test_splits_of_tables_are_those_of_files(tmp_path: Path) -> None:
    rows = penguins()
    parts = {"train": rows[:80], "val": rows[80:100], "test": rows[100:]}
    paths = {name: written(tmp_path / f"{name}.csv", part) for name, part in parts.items()}
    keys = f"data=table data.path={paths['train']}"
    for name in ("val", "test"):
        keys += f" data.{name}_path={paths[name]} data.{name}_fraction=0"
    run = train(tmp_path, data={name: read(path) for name, path in paths.items()})
    assert run.data["rows"] == {"train": 80, "val": 20, "test": 20}
    assert run.data["sha256"] == train(tmp_path, keys).data["sha256"]


def test_groups_and_times_are_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "penguins.csv", penguins())
    keys = "data.split=grouped data.group=island"
    run = train(tmp_path, keys, data=read(path))
    assert (
        run.data["sha256"] == train(tmp_path, f"{keys} data=table data.path={path}").data["sha256"]
    )


def test_columns_of_python_objects_are_read_as_a_file_s(tmp_path: Path) -> None:
    """Numbers as text are numbers, as in a CSV; integers beyond int64 are rounded to float64."""
    data = {
        "a": ["1.5", "2", "NA", 4.0, None] * 4,
        "b": [2**70, 1, 2, 3, 4] * 4,
        "y": ["u", "v", "u", "v", "v"] * 4,
    }
    run = runner.train(
        "trainer.max_epochs=1 trainer.monitor=train/loss device=cpu data.missing=0.5 "
        "data.standardize=false data.val_fraction=0 data.test_fraction=0 "
        f"output.root={tmp_path}",
        data=data,
        quiet=True,
    )
    x = run.plan.data.train.x
    assert sorted(x[:, 0]) == sorted([1.5, 2.0, 0.5, 4.0, 0.5] * 4)
    assert x[:, 1].max() == 2.0**70


A = {"a": [1.0, 2.0, 3.0], "y": ["u", "v", "u"]}  # the last column is the target
BAD: dict[str, tuple[Any, str]] = {
    "two lengths": (
        {**A, "b": [1]},
        "data: the columns of a table have the same length, got 3 cells in a and 1 in b",
    ),
    "an array with two axes": (
        {"a": np.zeros((3, 2)), "y": ["u", "v", "u"]},
        "data must be (x, y), or a table with one cell per row in each column, got the shape "
        "[3, 2] in a",
    ),
    "a column of lists": (
        {"a": [1, [2], 3], "y": ["u", "v", "u"]},
        "data: column a must have one value per row, got list [2]",
    ),
    "a name that is no text": (
        {1: [1], "y": ["u"]},
        "data: the name of a column must be text, got 1",
    ),
    "an empty column": (
        {"b": [None] * 3, **A},
        "data: column b is empty; data.drop=[b] leaves it out",
    ),
    "mixed cells": (
        {"b": [1, "x", 3], **A},
        "data: row 1, column b is 'x' where other cells are numbers; data.categories=[b] reads "
        "text; data.drop=[b] leaves it out",
    ),
    "missing cells": (
        {"b": [1.0, None, np.nan], **A},
        "data: missing cells in b (2, first in row 1); data.missing=median fills them (or mean, "
        "most_frequent, indicator, a number), data.drop leaves columns out",
    ),
    "no rows": ({"a": [], "y": []}, "data holds no rows"),
    "names twice": (
        pa.table([[1, 2], [1, 2], ["u", "v"]], names=["a", "a", "y"]),
        "data: the header repeats column names: a",
    ),
    "a column of an Arrow table": (
        pa.chunked_array([[1, 2]]),
        "data must be a table, got ChunkedArray: ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_table_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, message = BAD[case]
    with pytest.raises(runner.ConfigError) as error:
        runner.train(f"output.root={tmp_path}", data=data, quiet=True)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_tables_need_neither_pandas_nor_polars(tmp_path: Path) -> None:
    """They are imported by a user who has them, never here."""
    source = Path(importlib.import_module("runner.data.frame").__file__ or "").read_text("utf-8")
    assert "import pandas" not in source
    assert "polars" not in [
        line.split()[1] for line in source.splitlines() if line[:7] == "import "
    ]
