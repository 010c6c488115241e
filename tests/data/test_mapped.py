"""Map-style data sets of the user's own: read into memory or while training, they are the rows that
they give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.utils.data

import runner
from runner.run.run_folder import read_json
from tests.command_line import BACKENDS, forked

MODULE = """\
import numpy as np

X = np.random.default_rng(3).normal(size=(200, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(int) + (X[:, 0] > 1)


class Pairs:
    def __init__(self, num=200):
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, row):
        return X[row], int(Y[row])


class Dicts(Pairs):
    def __getitem__(self, row):
        return {"x": X[row], "y": Y[row]}


class Named(Pairs):
    def __getitem__(self, row):
        return {"id": f"row {row}", "head": X[row, :2], "rest": X[row, 2:], "label": Y[row]}


class Batched(Pairs):
    def __getitem__(self, row):
        raise AssertionError("rows are read by __getitems__")

    def __getitems__(self, rows):
        return [(X[row], int(Y[row])) for row in rows]


class Failing(Pairs):
    def __getitem__(self, row):
        return X[row] / (row != 120), {"a": 1}["b"] if row == 120 else int(Y[row])


def arrays():
    return X, Y


def records():
    return [{"x": x, "y": y} for x, y in zip(X, Y)]


def splits():
    return {"train": Pairs(150), "val": (X[150:170], Y[150:170]), "test": (X[170:], Y[170:])}
"""
OWN = ("data=custom", "trusted_modules=[mine]", "device=cpu", "trainer.max_epochs=2")
FIELDS = ("data.inputs=[head, rest]", "data.target=label")
FORMS: dict[str, tuple[str, ...]] = {
    "pairs": ("data._target_=mine.Pairs",),
    "dicts": ("data._target_=mine.Dicts",),
    "fields": ("data._target_=mine.Named", *FIELDS),
    "rows in batches": ("data._target_=mine.Batched",),
    "pairs, read while training": ("data._target_=mine.Pairs", "data.memory_mb=1"),
    "fields, read while training": ("data._target_=mine.Named", "data.memory_mb=1", *FIELDS),
    "a list of dicts": ("data._target_=mine.records",),
}
X = np.random.default_rng(3).normal(size=(200, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(int) + (X[:, 0] > 1)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def weights(folder: Path) -> list[str]:
    return [read_json(run / "result.json")["weights_sha256"] for run in sorted(folder.glob("*"))]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_form_of_the_rows_trains_as_the_arrays(here: Path, backend: str) -> None:
    """Equal bits of the weights on each backend."""
    lines = [("data._target_=mine.arrays",), *FORMS.values()]
    done = forked(here, *((*OWN, *line, f"backend={backend}") for line in lines))
    assert [(d.status, d.err) for d in done] == [(0, "")] * len(lines)
    assert len(set(weights(here / "outputs" / "runs"))) == 1


class Set:
    """Rows by number; remembers what was read."""

    def __init__(self, x: Any = X, y: Any = Y) -> None:
        self.x, self.y, self.read = x, y, []

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> Any:
        self.read.append(row)
        return self.x[row], self.y[row]


def train(folder: Path, data: Any, *more: str, num_epochs: int = 2) -> runner.Run:
    keys = (f"trainer.max_epochs={num_epochs}", "device=cpu", f"output.root={folder}", *more)
    return runner.train(keys, data=data, quiet=True)


def test_rows_are_read_in_the_order_of_the_run(tmp_path: Path) -> None:
    """After the pass that hashes the rows, and row 0 again: epoch by epoch, each training row
    once."""
    rows = Set()
    run = train(
        tmp_path, rows, "data.memory_mb=1", "data.val_fraction=0", "trainer.monitor=train/loss"
    )
    numbers = run.plan.data.train.x.rows
    num = 2 * len(numbers)
    wanted = np.concatenate([numbers[run.plan.order.epoch(epoch)] for epoch in range(2)])
    assert rows.read[1 : 1 + len(Y)] == list(range(len(Y)))
    assert rows.read[1 + len(Y) : 1 + len(Y) + num] == wanted.tolist()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float64", "bool"])
def test_a_type_of_rows_has_the_values_of_the_rows_in_memory(tmp_path: Path, dtype: str) -> None:
    """int64 becomes float64 first, as in memory: converted to float32 at once, 2**53 + 1 of a
    row could be another number."""
    x = (np.random.default_rng(0).random((60, 3)) * 200).astype(dtype)
    x[0, 0] = 2**24 + 1 if dtype == "int64" else 1
    y = np.arange(60) % 2
    resident = train(tmp_path, Set(x, y))
    streamed = train(tmp_path, Set(x, y), "data.memory_mb=1")
    assert streamed.result["weights_sha256"] == resident.result["weights_sha256"]
    for split in ("train", "val", "test"):
        a, b = (getattr(run.plan.data, split) for run in (resident, streamed))
        assert a.x.dtype == b.x.dtype
        assert np.array_equal(a.x, b.x[:])
    assert resident.evaluate() == streamed.evaluate()


@pytest.mark.slow
def test_a_data_set_of_torch_trains(tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    by_arrays = train(tmp_path, (X, Y)).result["weights_sha256"]
    assert train(tmp_path, data).result["weights_sha256"] == by_arrays
    half = torch.utils.data.Subset(data, range(100))
    assert (
        train(tmp_path, half).result["weights_sha256"]
        == train(tmp_path, (X[:100], Y[:100])).result["weights_sha256"]
    )


def test_splits_and_groups_of_own_code_are_used(here: Path) -> None:
    (done,) = forked(here, (*OWN, "data._target_=mine.splits"))
    assert (done.status, done.err) == (0, "")
    (folder,) = (here / "outputs" / "runs").glob("*")
    assert read_json(folder / "data.json")["rows"] == {"train": 150, "val": 20, "test": 30}


def test_names_of_fields_are_features_of_a_table(tmp_path: Path) -> None:
    rows = [
        {"a": x[0], "b": x[1], "c": "?", "kind": "uv"[y % 2]} for x, y in zip(X, Y, strict=True)
    ]

    class Records(Set):
        def __getitem__(self, row: int) -> Any:
            return rows[row]

    run = train(tmp_path, Records(), "data.inputs=[b, a]", "data.target=kind")
    assert (run.data["features"], run.data["target"]) == (["b", "a"], "kind")
    assert run.data["classes"] == ["u", "v"]
    named = run.predict({"a": X[:5, 0], "b": X[:5, 1]})
    assert np.array_equal(named, run.predict(X[:5, [1, 0]]))


def test_text_labels_of_rows_that_stay_outside_are_numbered(tmp_path: Path) -> None:
    run = train(tmp_path, Set(X, np.array(["no", "yes"])[Y % 2]), "data.memory_mb=1")
    assert run.data["classes"] == ["no", "yes"]


def test_a_run_that_reads_rows_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = train(tmp_path, Set(), "data.memory_mb=1", num_epochs=3)
    part = train(tmp_path, Set(), "data.memory_mb=1")
    resumed = runner.resume(part.folder, "trainer.max_epochs=3", data=Set(), quiet=True)
    assert resumed.result["weights_sha256"] == whole.result["weights_sha256"]
    other = Set(np.where(X[7, 3] == X, 0, X))
    with pytest.raises(runner.ConfigError, match="the data is not what"):
        runner.resume(part.folder, "trainer.max_epochs=4", data=other, quiet=True)


def test_rows_that_change_give_a_warning(tmp_path: Path) -> None:
    class Noisy(Set):
        def __getitem__(self, row: int) -> Any:
            return X[row] + np.random.default_rng().normal(size=6), Y[row]

    run = train(tmp_path, Noisy())
    (warning,) = run.plan.data.warnings
    assert warning.startswith("data: row 0 is different when it is read again")


def _row(change: Callable[[int], Any]) -> Any:
    class Changed(Set):
        def __getitem__(self, row: int) -> Any:
            return change(row)

    return Changed()


def _raise(row: int) -> Any:
    raise KeyError("gone")


BAD: dict[str, tuple[Any, str, str]] = {
    "a row of another shape": (
        _row(lambda i: (X[i][: 5 if i == 9 else 6], Y[i])),
        "",
        "data: x of row 9 has the shape [5], of row 0 [6]; all rows must have one shape",
    ),
    "a row that is no pair": (
        _row(lambda i: X[i].tolist()),
        "",
        "data: row 0 must be (x, y), (x, y, group) or a dict of fields, got list",
    ),
    "a dict of other fields": (
        _row(lambda i: {"image": X[i], "label": Y[i]}),
        "",
        "data.inputs must be a field of the rows of data, image, label, got x",
    ),
    "no such target": (
        _row(lambda i: {"image": X[i], "label": Y[i]}),
        "data.inputs=image data.target=labels",
        "data.target must be a field of the rows of data, image, label, got labels",
    ),
    "fields of pairs": (
        Set(),
        "data.target=label",
        "data.inputs and data.target must be null for rows without names, and row 0 of data is a "
        "tuple",
    ),
    "fields of arrays": (
        (X, Y),
        "data.inputs=x",
        "data.inputs must be null for arrays x and y, got x, and data is no map-style data set",
    ),
    "memory for arrays": (
        (X, Y),
        "data.memory_mb=1",
        "data.memory_mb must be null for arrays x and y, got 1, and data is no map-style data set",
    ),
    "text as x": (
        _row(lambda i: ("word", Y[i])),
        "",
        "data: x of row 0 must be numbers, got word (str)",
    ),
    "none as y": (
        _row(lambda i: (X[i], None)),
        "",
        "data: y of row 0 must be numbers, got null (NoneType)",
    ),
    "no rows": (Set(X[:0], Y[:0]), "", "data holds no rows"),
    "not finite": (
        Set(np.where(X[150, 2] == X, np.inf, X)),
        "data.memory_mb=1",
        "data: row 150, column x[2] is inf; all values must be finite",
    ),
    "its own error": (_row(_raise), "", "data: reading a row raised KeyError('gone')"),
    "standardized": (
        Set(),
        "data.memory_mb=1 data.standardize=true",
        "data.standardize must be false with data.memory_mb, because the mean of rows that are "
        "read while training is not known, got true",
    ),
    "too little memory": (
        Set(np.zeros((200, 300_000), np.uint8)),
        "data.memory_mb=1",
        "data.memory_mb must be at least 110 for three updates of 32 rows, got 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_gives_no_rows_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, keys, message = BAD[case]
    with pytest.raises(runner.ConfigError) as error:
        train(tmp_path, data, *keys.split())
    assert str(error.value) == message
    assert not any(tmp_path.iterdir())


def test_an_error_of_own_rows_names_the_file_and_the_line(here: Path) -> None:
    (done,) = forked(here, (*OWN, "data._target_=mine.Failing"))
    assert done.status == 2
    assert done.err == ("error: mine.Failing: reading a row raised KeyError: 'b' (mine.py:38)\n")
