"""Tables as they are: text, dates, truth values, missing cells, any separator and format."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import feather, parquet
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import runner
from runner.data import table_files
from runner.data.columns import new_rows
from runner.data.dataset import Dataset
from runner.data.table_files import TableFile
from runner.errors import ConfigError
from runner.run.run_folder import read_columns
from tests.command_line import REPOSITORY, forked, in_new_process
from tests.data.test_data import dataset
from tests.rows import slow_but

HEADER = ["species", "island", "bill", "flipper", "sex", "measured", "tagged"]
UNSPLIT = ("data.val_fraction=0", "data.test_fraction=0")


def penguins(num: int = 120) -> list[list[str]]:
    """Rows with text, missing cells, dates and truth values; the bill tells the species."""
    rng = np.random.default_rng(5)
    return [
        [
            ("Adelie", "Chinstrap", "Gentoo")[i % 3],
            str(rng.choice(["Torgersen", "Biscoe", "Dream"])),
            "" if i % 17 == 3 else f"{40 + 6 * (i % 3) + rng.normal():.2f}",
            "NA" if i % 23 == 5 else str(190 + int(rng.integers(30))),
            str(rng.choice(["male", "female", ""])),
            f"20{10 + i % 9}-0{1 + i % 8}-1{i % 10}",
            str(rng.choice(["True", "False"])),
        ]
        for i in range(num)
    ]


def written(path: Path, rows: list[list[str]], header: list[str] = HEADER, **kwargs: Any) -> Path:
    with path.open("w", newline="", encoding=kwargs.pop("encoding", "utf-8")) as file:
        csv.writer(file, **kwargs).writerows([header, *rows])
    return path


def table(path: Path, *more: str) -> Dataset:
    return dataset("data=table", f"data.path={path}", "data.target=species", *more)


def numbers(column: int, rows: list[list[str]]) -> np.ndarray:
    """A column of numbers, with NaN for missing cells.  # float64[N, 1]"""
    cells = [row[column] for row in rows]
    return np.array([float(cell) if cell not in ("", "NA") else np.nan for cell in cells])[:, None]


@pytest.mark.parametrize("missing", ["mean", "median", "most_frequent", "-1.5", "indicator"])
def test_the_transforms_are_scikit_learn_s_pipeline(tmp_path: Path, missing: str) -> None:
    """Fit on the training rows: SimpleImputer and StandardScaler for numbers, OneHotEncoder for
    text. Expected within 1e-12, the rounding of a mean that is summed in another order."""
    rows = penguins()
    data = table(
        written(tmp_path / "a.csv", rows), f"data.missing={missing}", "data.drop=[measured]"
    )
    order = _order_of(data, rows)
    train = [rows[i] for i in order[: len(data.train)]]
    constant = missing == "-1.5"
    strategy = "constant" if constant else "mean" if missing == "indicator" else missing
    imputer = SimpleImputer(strategy=strategy, fill_value=-1.5 if constant else None)
    parts = []
    for column in (2, 3):
        scaled = make_pipeline(imputer, StandardScaler()).fit(numbers(column, train))
        parts.append(scaled.transform(numbers(column, rows)))
        if missing == "indicator":
            parts.append(np.isnan(numbers(column, rows)).astype(float))
    text = np.array([[row[1], row[4]] for row in rows], dtype=object)
    if missing == "most_frequent":
        fitted = SimpleImputer(strategy="most_frequent", missing_values="")
        text = fitted.fit(text[order[: len(data.train)]]).transform(text)
    onehot = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    encoded = onehot.fit(text[order[: len(data.train)]]).transform(text)
    islands = len(onehot.categories_[0])
    tagged = np.array([[row[6] == "True"] for row in rows], dtype=float)
    expected = np.hstack([encoded[:, :islands], *parts, encoded[:, islands:], tagged])
    assert np.abs(_x(data) - expected[order]).max() < 1e-12


def _x(data: Dataset) -> np.ndarray:
    return np.concatenate([data.train.x, data.val.x, data.test.x])


def _order_of(data: Dataset, rows: list[list[str]]) -> np.ndarray:
    """The rows of train, validation and test, in order: as those of a table with a number alone."""
    from runner.random import permutation

    return permutation(len(rows), 0, "split")


def test_dates_are_days_and_truth_values_are_0_and_1(tmp_path: Path) -> None:
    rows = [["1970-01-02", "true", "1"], ["2000-03-01", "false", "2"]]
    path = written(tmp_path / "a.csv", rows, ["day", "flag", "y"])
    data = dataset(
        "data=csv", f"data.path={path}", *UNSPLIT, "data.task=regression", "data.standardize=false"
    )
    # date(2000, 3, 1).toordinal() - date(1970, 1, 1).toordinal() = 11017
    assert sorted(data.train.x.tolist()) == [[1, 1], [11017, 0]]


@pytest.mark.parametrize(
    "write",
    [
        lambda p, t: p.write_bytes(t),
        lambda p, t: p.write_bytes(gzip.compress(t)),
        lambda p, t: p.write_bytes(bz2.compress(t)),
        lambda p, t: p.write_bytes(lzma.compress(t)),
        lambda p, t: p.write_bytes(pa.Codec("zstd").compress(t, asbytes=True)),
        lambda p, t: zipfile.ZipFile(p, "w").writestr("a.csv", t),
        lambda p, t: p.write_bytes(t.replace(b",", b";")),
        lambda p, t: p.write_bytes(t.replace(b",", b"\t")),
        lambda p, t: p.write_bytes(t.replace(b",", b"|").replace(b"\n", b"\r\n")),
        lambda p, t: p.write_bytes(t.replace(b",", b";").replace(b".", b",")),
        lambda p, t: p.write_bytes("\ufeff".encode() + t),
        lambda p, t: p.write_bytes(t.decode().encode("utf-16")),
        lambda p, t: parquet.write_table(arrow_csv.read_csv(io.BytesIO(t)), p),
        lambda p, t: feather.write_feather(arrow_csv.read_csv(io.BytesIO(t)), p),
    ],
)
def test_a_table_is_the_same_in_every_format(
    tmp_path: Path, write: Callable[[Path, bytes], object]
) -> None:
    rows = [[f"{i / 8}", "red" if i % 3 else "blue", "ja" if i % 2 else "nein"] for i in range(20)]
    text = "\n".join(",".join(row) for row in [["a", "color", "y"], *rows]).encode() + b"\n"
    plain, other = tmp_path / "plain.csv", tmp_path / "other"
    plain.write_bytes(text)
    write(other, text)
    expected, data = (dataset("data=table", f"data.path={p}", *UNSPLIT) for p in (plain, other))
    assert data.features == ("a", "color=blue", "color=red")
    assert data.description() == expected.description()


def test_latin_1_is_read_where_it_is_named_and_explained_where_not(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("größe,y\n1,u\n2,v\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"line 1 has the byte 0xf6; .*data.encoding"):
        dataset("data=csv", f"data.path={path}", *UNSPLIT)
    data = dataset("data=csv", f"data.path={path}", *UNSPLIT, "data.encoding=latin-1")
    assert data.features == ("größe",)


def test_several_targets_are_several_outputs_and_truth_values_are_labels(tmp_path: Path) -> None:
    rows = [[str(i), str(i % 2), "True" if i % 3 else "False"] for i in range(30)]
    path = written(tmp_path / "a.csv", rows, ["a", "odd", "third"])
    both = [f"data.path={path}", "data.target=[odd,third]"]
    data = dataset("data=table", *both, "data.task=multilabel", *UNSPLIT)
    assert data.y_scaling is None
    assert sorted(map(tuple, data.train.y.astype(int).tolist())) == sorted(
        (i % 2, int(i % 3 > 0)) for i in range(30)
    )
    assert dataset("data=table", *both, "data.task=regression").num_targets == 2
    with pytest.raises(
        ConfigError, match=r"one column for data.task=classification, got odd, third"
    ):
        dataset("data=table", *both)


def test_predictions_have_the_probability_of_each_of_several_labels(tmp_path: Path) -> None:
    """1 / (1 + exp(-z)), in columns with the names of the targets."""
    rows = [[str(i), str(i % 2), str(int(i % 3 > 0))] for i in range(30)]
    path = written(tmp_path / "a.csv", rows, ["a", "odd", "third"])
    keys = [f"data.path={path}", "data.target=[odd,third]", "data.task=multilabel"]
    short = ["data=table", "trainer.max_steps=2", "metrics=[accuracy,f1_macro]", "device=cpu"]
    run = runner.train([*keys, *short, f"output.root={tmp_path}"], quiet=True)
    (done,) = forked(tmp_path, ("task=predict", f"run={run.folder}", f"data.path={path}"))
    assert (done.status, done.err) == (0, "")
    found = read_columns(run.folder / "predictions.csv")
    assert list(found) == ["output_0", "output_1", "probability_odd", "probability_third"]
    for i, name in enumerate(("odd", "third")):
        np.testing.assert_allclose(
            found[f"probability_{name}"], 1 / (1 + np.exp(-found[f"output_{i}"])), rtol=1e-14
        )
    assert {"val/accuracy", "val/f1_macro"} <= set(run.metrics)
    text = written(tmp_path / "b.csv", [["1", "y", "0"]] * 3, ["a", "odd", "third"])
    message = "column odd is 'y'; a target must be 0 or 1 with data.task=multilabel"
    with pytest.raises(ConfigError, match=message):
        dataset("data=table", f"data.path={text}", *keys[1:])


def test_a_code_can_be_a_category_and_a_name_is_refused(tmp_path: Path) -> None:
    rows = [[str(10115 + i % 3), f"name {i}", str(i), "uv"[i % 2]] for i in range(60)]
    path = written(tmp_path / "a.csv", rows, ["zip", "name", "a", "y"])
    with pytest.raises(
        ConfigError, match=r"column name has 60 different texts; data.drop=\[name\]"
    ):
        dataset("data=csv", f"data.path={path}")
    data = dataset(
        "data=csv", f"data.path={path}", *UNSPLIT, "data.drop=[name]", "data.categories=[zip]"
    )
    assert data.features == ("zip=10115", "zip=10116", "zip=10117", "a")


def test_rows_without_a_target_are_refused_or_left_out(tmp_path: Path) -> None:
    rows = [[str(i), "" if i in (3, 7) else "uv"[i % 2]] for i in range(20)]
    path = written(tmp_path / "a.csv", rows, ["a", "y"])
    with pytest.raises(ConfigError, match=r"line 5, column y is empty \(2 such rows\); a label"):
        dataset("data=csv", f"data.path={path}", *UNSPLIT)
    data = dataset(
        "data=csv",
        f"data.path={path}",
        *UNSPLIT,
        "data.missing_target=drop",
        "data.standardize=false",
    )
    assert sorted(data.train.x[:, 0]) == [i for i in range(20) if i not in (3, 7)]
    assert data.classes == ("u", "v")


def test_all_problems_of_a_file_are_in_one_message(tmp_path: Path) -> None:
    rows = [["1", "x", "1", "", "u"], ["inf", "3", "", "", "v"], ["2", "5", "3", "", "v"]]
    path = written(tmp_path / "a.csv", rows, ["a", "b", "c", "d", "y"])
    with pytest.raises(ConfigError) as refused:
        dataset("data=csv", f"data.path={path}", *UNSPLIT)
    assert str(refused.value) == (
        f"{path}: line 2, column b is 'x' where other cells are numbers; data.categories=[b] reads "
        "text; data.drop=[b] leaves it out; line 3, column a is inf; all values must be finite; "
        "column d is empty; data.drop=[d] leaves it out; missing cells in c (1, first in line 3); "
        "data.missing=median fills them (or mean, most_frequent, indicator, a number), data.drop "
        "leaves columns out"
    )


def test_new_rows_may_have_another_order_unknown_categories_and_missing_cells(
    tmp_path: Path,
) -> None:
    """The values are what the transforms in data.json say, calculated by hand."""
    rows = [["1", "red", "u"], ["3", "blue", "v"], ["", "red", "u"], ["5", "blue", "v"]]
    path = written(tmp_path / "a.csv", rows, ["a", "color", "y"])
    data = dataset("data=csv", f"data.path={path}", *UNSPLIT, "data.missing=mean")
    saved = json.loads(json.dumps(data.description()))
    new = written(
        tmp_path / "new.csv", [["x", "green", "2"], ["x", "red", ""]], ["z", "color", "a"]
    )
    x, warnings = new_rows(TableFile(new), saved, "data.json")
    # a, color=blue, color=red; the mean of 1, 3 and 5 is 3
    assert x.tolist() == [[2, 0, 0], [3, 0, 1]]
    assert warnings == [
        "column color: no training row has green; they are encoded as none of the categories"
    ]
    strict = dataset("data=csv", f"data.path={path}", *UNSPLIT, "data.drop=[a]").description()
    gap = written(tmp_path / "gap.csv", [[""], ["red"]], ["color"])
    with pytest.raises(
        ConfigError, match=r"gap.csv: missing cells in color \(1, first in line 2\)"
    ):
        new_rows(TableFile(gap), strict, "data.json")


@pytest.mark.slow
def test_a_table_trains_to_the_same_losses_on_both_backends(tmp_path: Path) -> None:
    """In float64 the losses differ by less than 1e-12, as for any data; predictions on the raw file
    have a row for each of its rows."""
    path = written(tmp_path / "penguins.csv", penguins())
    command = (
        "data=table",
        f"data.path={path.name}",
        "data.target=species",
        "data.missing=median",
        "trainer.precision=float64",
        "trainer.max_epochs=3",
    )
    backends = ("lightning", "keras")
    done = forked(tmp_path, *((*command, f"backend={b}", f"output.root={b}") for b in backends))
    assert [run.status for run in done] == [0, 0], done
    folders = [next((tmp_path / b / "runs").iterdir()) for b in backends]
    losses = [_column(folder / "metrics.csv", "val/loss") for folder in folders]
    assert np.abs(np.subtract(*losses)).max() < 1e-12
    (done_predict,) = forked(
        tmp_path,
        ("task=predict", f"run={folders[1].relative_to(tmp_path)}", "data.path=penguins.csv"),
    )
    assert done_predict.status == 0, done_predict
    assert len(_column(folders[1] / "predictions.csv", "output_0")) == 120


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_a_run_is_evaluated_on_new_labelled_rows(tmp_path: Path, backend: str) -> None:
    """The same rows in another file give the test split's numbers; other rows give the mean over
    the lines of evaluation.csv, whose loss is the cross-entropy of its outputs."""
    rows = penguins()
    written(tmp_path / "a.csv", rows)
    written(tmp_path / "copy.csv", rows)
    written(tmp_path / "new.csv", [row[::-1] for row in rows[:7]], HEADER[::-1])
    keys = ("data=table", "data.path=a.csv", "data.target=species", "data.missing=mean")
    (done,) = forked(tmp_path, (*keys, f"backend={backend}", "trainer.max_epochs=2"))
    assert done.status == 0, done
    folder = next((tmp_path / "outputs" / "runs").iterdir())
    name = str(folder.relative_to(tmp_path))
    results = forked(
        tmp_path,
        ("task=evaluate", f"run={name}"),
        ("task=evaluate", f"run={name}", "data.path=copy.csv"),
        ("task=evaluate", f"run={name}", "data.path=new.csv"),
    )
    assert [each.status for each in results] == [0, 0, 0], results
    assert results[0].out.split("\n")[0] == results[1].out.split("\n")[0]
    assert "7 new rows" in results[2].out
    found = json.loads((folder / "evaluation.json").read_text())
    with (folder / "evaluation.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert [line["species"] for line in lines] == [row[0] for row in rows[:7]]
    z = np.array([[float(line[f"output_{i}"]) for i in range(3)] for line in lines])
    labels = [("Adelie", "Chinstrap", "Gentoo").index(line["species"]) for line in lines]
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(7), labels]
    # float32 outputs are written with all their digits
    assert found["test/loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert found["test/accuracy"] == pytest.approx((z.argmax(axis=1) == labels).mean())


def _column(path: Path, name: str) -> np.ndarray:
    with path.open() as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def test_columns_can_say_how_a_table_is_split(tmp_path: Path) -> None:
    """Groups stay together; chronological takes the last dates for the test."""
    rows = [[f"g{i % 7}", f"2020-01-{28 - i:02}", str(i), "uv"[i % 2]] for i in range(28)]
    path = written(tmp_path / "a.csv", rows, ["who", "day", "a", "y"])
    named = [f"data.path={path}", "data.standardize=false", "data.drop=[day]"]
    data = dataset("data=table", *named, "data.split=grouped", "data.group=who")
    assert data.features == ("a",)
    groups = [{int(a) % 7 for a in split.x[:, 0]} for split in (data.train, data.val, data.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 7
    by_time = dataset("data=table", *named, "data.split=chronological", "data.time=day")
    assert by_time.test.x[:, -1].tolist() == [5, 4, 3, 2, 1, 0]  # round(0.2 * 28) last days


def test_splits_may_have_tables_of_their_own(tmp_path: Path) -> None:
    """Their columns come in another order, with an unknown category and a missing cell; the values
    are those of the training rows' mean and deviation, by hand: 3 and sqrt(8/3)."""
    rows = [["1", "red", "u"], ["3", "blue", "v"], ["5", "red", "u"], ["", "blue", "v"]]
    path = written(tmp_path / "a.csv", rows, ["a", "color", "y"])
    val = written(
        tmp_path / "val.csv", [["v", "green", "7"], ["u", "red", ""]], ["y", "color", "a"]
    )
    own = [f"data.path={path}", f"data.val_path={val}", "data.missing=mean"]
    data = dataset("data=table", *own, "data.test_fraction=0")
    assert [len(split) for split in (data.train, data.val, data.test)] == [4, 2, 0]
    assert data.features == ("a", "color=blue", "color=red")
    # the mean of 1, 3, 5 fills the fourth cell, so the deviation is sqrt((4 + 4) / 4)
    np.testing.assert_allclose(data.val.x, [[4 / np.sqrt(2), 0, 0], [0, 0, 1]], rtol=1e-15)
    assert data.val.y.tolist() == [1, 0]
    assert data.warnings == (
        f"{val}: column color: no training row has green; they are encoded as none of the "
        f"categories",
    )
    saved = data.description()
    x, _ = new_rows(TableFile(val), saved, "data.json")
    assert np.array_equal(
        (x - saved["x_scaling"]["offset"]) / saved["x_scaling"]["scale"], data.val.x
    )


def test_a_fold_can_have_test_rows_of_its_own(tmp_path: Path) -> None:
    """Their targets are scaled as those of the training rows are; the folds divide data.path."""
    rows = [[str(i), str(2 * i)] for i in range(20)]
    path = written(tmp_path / "a.csv", rows, ["a", "y"])
    test = written(tmp_path / "test.csv", [["40", "20"], ["", "9"]], ["y", "a"])
    keys = ["data=table", f"data.path={path}", "data.task=regression", f"data.test_path={test}"]
    data = dataset(*keys, "data.fold=1", "data.missing_target=drop")
    assert [len(split) for split in (data.train, data.val, data.test)] == [16, 4, 1]
    assert data.x_scaling is not None
    assert data.y_scaling is not None
    assert data.y_scaling.invert(data.test.y) == pytest.approx(np.array([[40.0]]))
    assert data.x_scaling.invert(data.test.x) == pytest.approx(np.array([[20.0]]))
    other = dataset(*keys, "data.fold=2", "data.missing_target=drop")
    assert data.folds_sha256 == other.folds_sha256
    with pytest.raises(ConfigError, match=r"test.csv: line 3, column y is empty; a target is need"):
        dataset(*keys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,y\n1,u\n", "val.csv lacks the column color, which a.csv has"),
        ("a,color\n1,red\n", "val.csv lacks the column y"),
        ("a,color,y\n", "val.csv holds no rows"),
        (
            "a,color,y\n1,red,w\n",
            "val.csv: column y has w, which is none of the classes of a.csv: u, v",
        ),
        ("a,color,y\n1,red,\n", "val.csv: line 2, column y is empty; a label is needed, or "),
        (
            "a,color,y\n1,red,u\n,red,u\n",
            "val.csv: missing cells in a (1, first in line 3); data.missing=median fills them",
        ),
        ("a,color,y\nx,red,u\n", "val.csv: line 2, column a is text, in training it was number"),
        ("a,color,y\ninf,red,u\n", "val.csv: line 2, column a is inf; all values must be fin"),
    ],
)
def test_a_table_that_does_not_agree_with_the_training_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("a.csv"), [["1", "red", "u"], ["2", "blue", "v"]], ["a", "color", "y"])
    Path("val.csv").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        dataset("data=table", "data.path=a.csv", "data.val_path=val.csv", *UNSPLIT)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,y\n1,u\n\xfc,v\n", "line 3 has the byte 0xfc; save it in UTF-8, or set data.encoding"),
        (b"a;y\n1.234,5;u\n2.345,5;v\n", "line 2, column a is '1.234,5': a number must have no "),
        (b"a,y\n1,u\n,\n", "line 3, column y is empty; a label is needed"),
        (b"a,y\n1e400,u\n2,v\n", "line 2, column a is inf; all values must be finite"),
        (b"a,y\n1,u\n\n  \n2,v\n", "line 4 has 1 cell, the header has 2"),
        (gzip.compress(b"a,y\n1,u\n2,v\n", mtime=0)[:-9], "cannot be decompressed as gzip"),
        (b"PAR1" + b"x" * 50 + b"PAR1", "cannot be read as Parquet"),
        (b"ARROW1" + b"x" * 50, "cannot be read as Arrow"),
        (b"FEA1", "is in the first version of Feather"),
        (b"\x00" * 1000, "line 1 has the control character"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        dataset("data=table", f"data.path={path}", *UNSPLIT)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_a_table_may_have_100000_columns(tmp_path: Path) -> None:
    num, path = 100_000, tmp_path / "wide.csv"
    names = ",".join(f"c{i}" for i in range(num))
    rows = [",".join(str(i % 7 + row) for i in range(num)) for row in range(2)]
    path.write_text(f"{names},y\n{rows[0]},u\n{rows[1]},v\n")
    x = dataset("data=table", f"data.path={path}", "data.standardize=false", *UNSPLIT).train.x
    np.testing.assert_array_equal(np.sort(x, axis=0), np.arange(num) % 7 + [[0], [1]])


@pytest.mark.parametrize("kind", ["list", "struct", "bytes"])
def test_types_without_numbers_or_text_are_refused(tmp_path: Path, kind: str) -> None:
    values: dict[str, list[Any]] = {
        "list": [[1], [2]],
        "struct": [{"k": 1}] * 2,
        "bytes": [b"x"] * 2,
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"a": values[kind], "b": [1, 2], "y": ["u", "v"]}), path)
    with pytest.raises(
        ConfigError, match=r"column a has the type .*; data.drop=\[a\] leaves it out"
    ):
        dataset("data=table", f"data.path={path}", *UNSPLIT)
    with pytest.raises(ConfigError, match=r"column a has the type .*; it cannot be a label"):
        dataset("data=table", f"data.path={path}", *UNSPLIT, "data.target=a")


def test_a_group_must_be_text_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"g": [[1], [2]], "a": [1, 2], "y": ["u", "v"]}), path)
    with pytest.raises(ConfigError, match=r"column g has the type .*; it cannot be a group"):
        dataset("data=table", f"data.path={path}", "data.split=grouped", "data.group=g")


@pytest.mark.parametrize("seed", slow_but(range(5), 0, 1))
def test_no_row_is_lost_in_a_damaged_csv(tmp_path: Path, seed: int) -> None:
    """A file with random bytes changed is refused in one line, or has as many rows as Python's csv
    module finds."""
    rng = np.random.default_rng(seed)
    plain = b"a,b,y\n" + b"".join(b"%d,%d,%d\n" % (i, i * i % 7, i % 2) for i in range(30))
    path = tmp_path / "a.csv"
    for _ in range(20):
        content = bytearray(plain)
        for place in rng.integers(len(content), size=3):
            content[place] = rng.choice([*b',;"\n\r\t\x00\x80 .e-'])
        path.write_bytes(content)
        refused = ""
        try:
            data = dataset("data=csv", f"data.path={path}", "data.missing=mean")
        except ConfigError as error:
            refused = str(error)
        assert len(refused.splitlines()) <= 1
        if refused:
            continue
        delimiter = TableFile(path).delimiter
        text = io.StringIO(content.decode(), newline="")
        records = [row for row in csv.reader(text, delimiter=delimiter) if row]
        assert sum(map(len, (data.train, data.val, data.test))) == len(records) - 1


LOAD = {
    "keras": """
import keras
outputs = np.asarray(keras.models.load_model(f"{folder}/model.keras")(x))
""",
    "torch": """
import torch
model = torch.export.load(f"{folder}/model.pt2").module()
outputs = model(torch.from_numpy(x)).detach().numpy()
""",
}


NUMBERS = ("data.drop=[tagged]",)
IDS = (
    "data.drop=[tagged,bill,measured]",
    "data.categories=[flipper]",
    "data.category_encoding=ids",
    "model=category_embedding",
)
TEXTS = (
    "data.drop=[tagged]",
    "data.texts=[island]",
    "data.category_encoding=ids",
    "model.layers=[{layer: parallel, branches: [[{layer: columns, names: [island]},{layer: "
    "embedding, features: 3, mask_zero: true},{layer: global_average_pool}],[{layer: columns, "
    "names: [sex]},{layer: embedding, features: 2},{layer: flatten}],[{layer: columns, names: "
    "['bill*', 'flipper*', 'measured*']}]]},{layer: dense, units: outputs}]",
)


@pytest.mark.slow
@pytest.mark.parametrize("more", slow_but([NUMBERS, IDS, TEXTS], NUMBERS))
@pytest.mark.parametrize("format", slow_but(LOAD, "torch"))
def test_an_export_predicts_a_table_without_this_project(
    tmp_path: Path, format: str, more: tuple[str, ...]
) -> None:
    """The function of docs/data.md and the export give the outputs of task=predict for a file with
    another order of columns, an unknown category and missing cells. In float64; 1e-12 is far above
    the rounding of sums in another order."""
    written(tmp_path / "a.csv", penguins())
    keys = ("data=table", "data.path=a.csv", "data.target=species", "data.missing=indicator")
    short = ("trainer.precision=float64", "trainer.max_epochs=2", "device=cpu")
    (done,) = forked(tmp_path, (*keys, *short, *more))
    assert (done.status, done.err) == (0, "")
    new = [["male", "", "NA", "2012-03-04", "Elsewhere"], ["", "41.5", "200", "", "Biscoe"]]
    written(tmp_path / "new.csv", new, ["sex", "bill", "flipper", "measured", "island"])
    run = f"run={done.folder}"
    predicted, exported = forked(
        tmp_path,
        ("task=predict", run, "data.path=new.csv"),
        ("task=export", run, f"format={format}"),
    )
    assert (predicted.status, exported.status) == (0, 0)
    page = (REPOSITORY / "docs" / "data.md").read_text("utf-8")
    function = page.partition("### A table without this project")[2].split("```python\n")[1]
    name = {"keras": "model.keras", "torch": "model.pt2"}[format]
    code = [
        "import sys; sys.modules['runner'] = None  # importing it fails",
        function.partition("```")[0],
        f"folder = {done.folder!r}",
        f"x = table_rows('new.csv', json.load(open(f'{{folder}}/{name}.json')))",
        LOAD[format],
        "print(json.dumps(outputs.tolist()))",
    ]
    outputs = np.array(json.loads(in_new_process(tmp_path, "\n".join(code)).splitlines()[-1]))
    for i in range(3):
        expected = _column(tmp_path / done.folder / "predictions.csv", f"output_{i}")
        np.testing.assert_allclose(outputs[:, i], expected, rtol=1e-12)


def test_cells_with_quotes_and_line_breaks_are_those_of_the_csv_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the blocks end that are searched for quotes, and those that are parsed."""
    monkeypatch.setattr(table_files, "_SCANNED", 13)
    monkeypatch.setattr(table_files, "_BLOCK", 400)
    rng = np.random.default_rng(0)
    simple = ["plain", '"x,""y"" z"', '"q"', '""', '"\'"', "1"]
    broken = ['"a\nb"', '"\r\n\n"', '"a\n"', 'a"b', 'a"b",']
    is_divided = []
    for number in range(40):
        known = simple if number % 2 else simple + broken
        rows = [f"{i},{known[rng.integers(len(known))]},z" for i in range(60)]
        path = tmp_path / f"{number}.csv"
        text = "n,t,v" + ",w" * any('",,' in row for row in rows) + "\n"
        rows = [row if '",,' in row or ",w" not in text else f"{row}," for row in rows]
        path.write_bytes((text + "\n".join(rows)).encode())
        with path.open(newline="") as lines:
            expected = [row[1] for row in csv.reader(lines)][1:]
        file = TableFile(path)
        found = file.read(["t"], ["t"]).column("t").to_pylist()
        assert ["" if cell is None else cell for cell in found] == expected
        is_divided.append(not file.has_newlines_in_cells)
    assert is_divided == [number % 2 == 1 for number in range(40)]
