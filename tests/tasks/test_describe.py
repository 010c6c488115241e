"""task=describe: the tables and the picture of a data set, before any training, without a
framework."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import load
from runner.data.dataset import Dataset, Split
from runner.data.summary import summarize
from runner.report.description import draw
from runner.tasks.describe import report
from tests.command_line import forked, together
from tests.rows import slow_but
from tests.test_isolation import run

SCRIPT = """
import numpy as np
from tests.rows import slow_but
def rows(num):
    return np.random.default_rng(0).random((num, 2)), np.arange(num) % 2
"""


@pytest.mark.slow
def test_it_imports_no_framework(tmp_path: Path) -> None:
    assert run(tmp_path, "task=describe") == set()


def test_it_prints_splits_columns_targets_and_leaves_a_picture(tmp_path: Path) -> None:
    (done,) = forked(tmp_path, ("task=describe", "data=diabetes"))
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[:3] == [
        "data     diabetes: 442 rows, regression",
        "rows     train 310, val 66, test 66",
        "fields   x float64[10], y float64[1]",
    ]
    assert "sex   whole       1        2  1.4677    0.49896         2" in lines
    assert lines[-3] == "no warnings"
    (folder,) = (tmp_path / "outputs" / "descriptions").iterdir()
    assert lines[-2] == f"picture  {(folder / 'describe.png').relative_to(tmp_path)}"
    assert (folder / "describe.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((folder / "describe.json").read_text())
    assert [column["name"] for column in saved["columns"]][:2] == ["age", "sex"]
    assert len(saved["values"]["x"]["scale"]) == 10
    assert saved["rows"] == {"train": 310, "val": 66, "test": 66}
    assert sorted(path.name for path in folder.iterdir()) == ["describe.json", "describe.png"]
    assert list((tmp_path / "outputs").iterdir()) == [folder.parent]


@pytest.mark.slow
def test_every_kind_of_data_is_described(tmp_path: Path) -> None:
    (tmp_path / "own_rows.py").write_text(SCRIPT)
    x, y = np.random.default_rng(1).random((40, 6, 6, 3)), np.arange(40) % 4
    np.savez(tmp_path / "images.npz", x=x * 255, y=y)
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "x.npy", x)
    np.save(tmp_path / "files" / "y.npy", y)
    rows = "".join(f"{i},{i * i % 7},{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "table.csv").write_text(f"number,rest,kind\n{rows}")
    own = (
        "data=custom",
        "data._target_=own_rows.rows",
        "data.num=30",
        "trusted_modules=[own_rows]",
    )
    lines = {
        "npz": ("data=npz", "data.path=images.npz"),
        "npy": ("data=npy", "data.path=files"),
        "csv": ("data=csv", "data.path=table.csv"),
        "custom": own,
        "wine": ("data=wine",),
    }
    done = dict(
        zip(
            lines,
            forked(tmp_path, *(("task=describe", *line) for line in lines.values())),
            strict=True,
        )
    )
    for name, each in done.items():
        assert each.status == 0, (name, each.err)
        assert "picture  outputs/descriptions/" in each.out
    assert "warning: images.npz: x has unscaled values up to" in done["npz"].out
    assert "always guessing" in done["npy"].out
    assert done["csv"].out.count("column number counts the rows") == 1  # not once more by the file
    assert len(list(tmp_path.rglob("describe.png"))) == len(lines)


def test_the_columns_of_a_table_are_described_as_they_are_in_its_file(tmp_path: Path) -> None:
    """Beside the features that they become: type, missing cells, range, categories; columns that
    are left out are not."""
    days = [f"2007-11-{11 + i}" for i in range(12)]
    rows = [
        f"{'' if i == 2 else i / 2},{'red' if i % 3 else 'blue'},{day},{i % 2 == 0},x,{'ab'[i % 2]}"
        for i, day in enumerate(days)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["a,color,day,flag,left,y", *rows, ""]))
    keys = ("data=table", "data.path=t.csv", "data.missing=indicator", "data.drop=[left]")
    whole = ("data.val_fraction=0", "data.test_fraction=0")
    (done,) = forked(tmp_path, ("task=describe", *keys, *whole))
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    start = lines.index("columns of the file, over all of its rows:")
    assert [line.split() for line in lines[start + 1 : start + 7]] == [
        ["name", "type", "missing", "becomes", "cells"],
        ["a", "number", "1", "2", "features", "0", "to", "5.5"],
        ["color", "text", "0", "2", "features", "red", "8,", "blue", "4"],
        ["day", "date", "0", "1", "feature", "2007-11-11", "to", "2007-11-22"],
        ["flag", "boolean", "0", "1", "feature", "0", "to", "1"],
        ["y", "text", "0", "target", "a", "6,", "b", "6"],
    ]
    (path,) = tmp_path.glob("outputs/descriptions/*/describe.json")
    column = json.loads(path.read_text())["original_columns"][1]
    assert column["categories"] == {"red": 8, "blue": 4}
    assert column["becomes"] == ["color=blue", "color=red"]


@pytest.mark.slow
def test_several_data_sets_are_described_in_turn(tmp_path: Path) -> None:
    (done,) = forked(tmp_path, ("-m", "task=describe", "data=iris,diabetes"))
    assert (done.status, done.err) == (0, "")
    heads = [line for line in done.out.splitlines() if line.startswith(("job", "data "))]
    assert [head.split()[1].rstrip(":") for head in heads] == ["0", "iris", "1", "diabetes"]


def test_what_cannot_be_read_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    one, none = forked(
        tmp_path,
        ("task=describe", "data=csv", "data.path=a.csv", "data.task=classification"),
        ("task=describe", "data=npz", "data.path=b.npz"),
    )
    assert (one.status, none.status) == (2, 2)
    assert one.err.count("\n") == none.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_tables_fit_the_terminal(width: int) -> None:
    """A header of a hundred long names: 30 are printed, cut to fit; describe.json has all."""
    x, y = np.random.default_rng(2).random((300, 100)), np.arange(300) % 50
    names = tuple(f"a column with quite a long name, number {i}" for i in range(100))
    rows = [slice(200), slice(200, 250), slice(250, 300)]
    data = Dataset(
        *(Split(x[r], y[r]) for r in rows),
        task="classification",
        classes=tuple(f"class {i}" for i in range(50)),
        features=names,
    )
    lines = report(summarize(data), "csv", width)
    for begin in ("name", "class "):
        first = next(i for i, line in enumerate(lines) if line.startswith(begin))
        assert all(len(line) <= width for line in lines[first : first + 31])
        assert lines[first + 31].startswith("... and ")
    assert "... and 70 more columns, see describe.json" in lines


@pytest.mark.slow
def test_the_terminal_s_width_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", "50")
    (done,) = together(tmp_path, ("task=describe", "data=wine"))
    columns = [line for line in done.out.splitlines() if line.startswith(("nonfl", "name"))]
    assert len(columns) == 2
    assert all(len(line) <= 50 for line in columns)


@pytest.mark.parametrize(
    "kind",
    slow_but(["grey", "color", "sequence", "regression", "many", "extreme"], "color", "extreme"),
)
def test_every_kind_of_picture_is_drawn(kind: str, tmp_path: Path) -> None:
    """Also for one row, 1e5 columns, 500 classes, and values near the limit of float64."""
    random = np.random.default_rng(3)
    shapes = {
        "grey": (40, 5, 5, 1),
        "color": (40, 5, 7, 3),
        "sequence": (40, 9, 2),
        "regression": (9, 5, 5, 1),
        "many": (3, 100_000),
        "extreme": (40, 3),
    }
    x = random.random(shapes[kind]) * (1e300 if kind == "extreme" else 1)
    labels = np.arange(len(x)) % 3
    y = random.random((len(x), 2)) if kind in ("regression", "extreme") else labels
    classes = () if y.ndim == 2 else tuple(f"${i}$" for i in range(500))
    empty = Split(x[:0], y[:0])
    task = "regression" if y.ndim == 2 else "classification"
    data = Dataset(Split(x, y), empty, empty, task, classes, ())
    draw(tmp_path / "a.png", data, summarize(data), "a $title of money$")
    assert (tmp_path / "a.png").stat().st_size > 3000


def test_one_row_is_described() -> None:
    section = parse(compose(["data=digits"])).data
    train = load(section).train
    first = Split(train.x[:1], train.y[:1])
    empty = Split(first.x[:0], first.y[:0])
    data = Dataset(first, empty, empty, "classification", tuple("0123456789"), ())
    found = summarize(data)
    label = str(first.y[0])
    missing = [name for name in "0123456789" if name != label][:5]
    assert [warning.partition(":")[0] for warning in found.warnings] == [
        "1 training row for 64 columns",
        "the training rows have no row of the classes " + ", ".join(missing) + " and 4 more",
    ]
    assert found.rows == {"train": 1, "val": 0, "test": 0}


def test_the_split_and_the_changes_of_images_are_told(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", x=np.random.default_rng(0).random((60, 4, 4, 1)), y=np.arange(60) % 2
    )
    (done,) = forked(
        tmp_path,
        (
            *("task=describe", "data=npz", "data.path=a.npz", "data.split=stratified"),
            *("data.fold=1", "data.split_seed=3", "data.augment.flip=true"),
        ),
    )
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[2:4] == [
        "split    stratified, data.split_seed=3, data.fold=1 of 5",
        "augment  data.augment.flip=true: other changes of the training images in each epoch",
    ]
