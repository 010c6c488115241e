"""data.category_encoding=ids: the categories of a table are ids for an embedding."""

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import csv, parquet
from sklearn.preprocessing import OrdinalEncoder

import runner
from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import load
from runner.data.columns import new_rows
from runner.data.dataset import changed
from runner.data.table_files import TableFile
from runner.run.run_folder import read_columns, read_json
from tests.command_line import forked
from tests.data.test_data import dataset
from tests.data.test_table import written
from tests.rows import slow_but

HEADER = ["island", "code", "sex", "species"]
KEYS = ("data=table", "data.category_encoding=ids", "data.categories=[code]", "data.missing=mean")


def rows(num: int = 90) -> list[list[str]]:
    """The island and the code tell the species; sex may be missing, a late code is new."""
    rng = np.random.default_rng(2)
    return [
        [
            ("Biscoe", "Dream", "Torgersen")[(i + (i % 7 == 0)) % 3],
            "77" if i == 80 else str(10 * (i % 4)),
            str(rng.choice(["female", "male", ""])),
            ("Adelie", "Chinstrap", "Gentoo")[i % 3],
        ]
        for i in range(num)
    ]


def reordered(table: list[list[str]]) -> list[list[str]]:
    return [[sex, island, species, code] for island, code, sex, species in table]


def test_ids_are_scikit_learn_s_ordinals_side_by_side(tmp_path: Path) -> None:
    """A category that no training row has is ordinal -1; a column begins with its id."""
    table = rows()
    path = written(tmp_path / "a.csv", table, HEADER)
    data = dataset(*KEYS, f"data.path={path}", "data.split=chronological")
    cells = np.array(table)[:, :3]
    train, others = cells[: len(data.train)], cells[len(data.train) :]
    assert set(others[:, 1]) - set(train[:, 1]) == {"77"}
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1).fit(train)
    num = [len(categories) + 1 for categories in encoder.categories_]
    first = np.cumsum([0, *num])[:-1]
    new = np.array([["Mars", "5", "x"], ["Dream", "77", ""]])
    for values, x in ((train, data.train.x), (others, np.concatenate([data.val.x, data.test.x]))):
        assert x.dtype == np.int32
        np.testing.assert_array_equal(x, encoder.transform(values) + 1 + first)
    assert data.num_tokens == sum(num)
    saved = json.loads(json.dumps(data.description()))
    file = written(tmp_path / "new.csv", new.tolist(), HEADER[:3])
    x, warnings = new_rows(TableFile(file), saved, "data.json")
    np.testing.assert_array_equal(x, encoder.transform(new) + 1 + first)
    assert warnings[0] == (
        "column island: no training row has Mars; they are encoded as one more category"
    )


def test_the_order_of_the_columns_in_the_file_changes_nothing(tmp_path: Path) -> None:
    """A resumed run whose file has another order has the same ids."""
    keys = (*KEYS, "data.target=species")
    path = written(tmp_path / "a.csv", rows(), HEADER)
    other = written(tmp_path / "b.csv", reordered(rows()), ["sex", "island", "species", "code"])
    before = dataset(*keys, f"data.path={path}").description()
    section = parse(compose([*keys, f"data.path={other}"])).data
    now = load(section, before)
    assert changed(before, now.description()) is None
    assert now.columns == tuple(before["columns"])


def test_ids_of_a_table_that_stays_in_a_file_are_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", rows(), HEADER)
    table = tmp_path / "a.parquet"
    parquet.write_table(csv.read_csv(path), table, row_group_size=20)
    keys = (*KEYS, f"data.path={table}")
    resident, streamed = dataset(*keys), dataset(*keys, "data.memory_mb=1")
    assert streamed.train.x[:].dtype == np.int32
    for split in ("train", "val", "test"):
        a, b = getattr(resident, split).x, getattr(streamed, split).x[:]
        np.testing.assert_array_equal(a, b)
    assert resident.num_tokens == streamed.num_tokens


@pytest.mark.slow
@pytest.mark.parametrize("precision", slow_but(["float64", "exact"], "float64"))
def test_both_backends_train_and_predict_alike(tmp_path: Path, precision: str) -> None:
    """Losses and outputs are within 1e-12 in float64, those of exact mode are equal. The outputs of
    new rows are E[id] of each column, joined, times the weights, by hand."""
    written(tmp_path / "a.csv", rows(), HEADER)
    new = [["", "Mars", "10"], ["male", "Dream", "77"], ["x", "Biscoe", "0"]]
    written(tmp_path / "new.csv", new, ["sex", "island", "code"])
    layers = "[{layer: embedding, features: 2}, {layer: flatten}, {layer: dense, units: outputs}]"
    command = (*KEYS, "data.path=a.csv", f"model.layers={layers}", "optimizer.lr=0.05")
    command += (f"trainer.precision={precision}", "trainer.max_epochs=2", "device=cpu")
    backends = ("lightning", "keras", "witness")[: 3 if precision == "exact" else 2]
    done = forked(tmp_path, *((*command, f"backend={name}") for name in backends))
    assert [(each.status, each.err) for each in done] == [(0, "")] * len(backends)
    folders = [tmp_path / each.folder for each in done]
    forked(
        tmp_path, *(("task=predict", f"run={each.folder}", "data.path=new.csv") for each in done)
    )
    tolerance = 0 if precision == "exact" else 1e-12
    losses = [read_columns(folder / "metrics.csv")["val/loss"] for folder in folders]
    outputs = [outputs_of(folder) for folder in folders]
    for one, other in ((losses[0], each) for each in losses[1:]):
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance)
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], rtol=0, atol=tolerance)
    if precision != "exact":
        ids = ids_by_hand(read_json(folders[0] / "data.json")["columns"], new)
        weights = runner.load_run(folders[0]).weights
        joined = weights["embedding_0/embedding"][ids].reshape(len(new), -1)
        expected = joined @ weights["dense_0/kernel"] + weights["dense_0/bias"]
        # rounding of six products in another order
        np.testing.assert_allclose(outputs[0], expected, rtol=0, atol=1e-13)


def outputs_of(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / "predictions.csv", delimiter=",", skiprows=1, usecols=range(3))


def ids_by_hand(columns: list[dict], new: list[list[str]]) -> np.ndarray:
    """The ids of rows [sex, island, code], as docs/data.md defines them."""
    place = {"sex": 0, "island": 1, "code": 2}
    ids = [
        [
            column["first_id"]
            if row[place[column["name"]]] not in column["categories"]
            else column["first_id"] + 1 + column["categories"].index(row[place[column["name"]]])
            for column in columns
        ]
        for row in new
    ]
    return np.array(ids)
