"""Iterables as training rows: their order is the run's order, and a run that resumes finds its
position again."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
import torch.utils.data

import runner
from runner.data.iterable import Items, Reader, Stream
from runner.run.run_folder import read_json
from tests.command_line import BACKENDS, Running, forked, in_new_process
from tests.rows import slow_but, slow_rows

MODULE = """\
import time
from pathlib import Path

import numpy as np

X = np.random.default_rng(3).normal(size=(200, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(int) + (X[:, 0] > 1)


def rows():
    \"\"\"Waits before update 20 of 8 rows until there is a file.\"\"\"
    for i in range(200):
        while i == 160 and not Path("go").exists():
            time.sleep(0.001)
        yield X[i], Y[i]


class Places:
    \"\"\"Batches of 3 rows, and a position.\"\"\"

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while self.place < 200:
            while self.place == 162 and not Path("go").exists():
                time.sleep(0.001)
            part = slice(self.place, self.place + 3)
            self.place += 3
            yield X[part], Y[part]
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def failing():
    yield X[0], Y[0]
    raise KeyError("gone")


def splits():
    return {"train": rows(), "val": (X[:50], Y[:50]), "test": (X[50:90], Y[50:90])}
"""
X = np.random.default_rng(3).normal(size=(200, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(int) + (X[:, 0] > 1)
KEYS = ("data.num_classes=3", "trainer.monitor=train/loss", "device=cpu", "trainer.batch_size=8")
OWN = (
    "data=custom",
    "trusted_modules=[mine]",
    *KEYS,
    "data.val_fraction=0",
    "data.test_fraction=0",
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def rows() -> Iterator[Any]:
    yield from zip(X, Y, strict=True)


def train(folder: Path, data: Any, *more: str, num: int | None = 40) -> runner.Run:
    keys = [*KEYS, f"output.root={folder}", *([f"trainer.max_steps={num}"] if num else [])]
    names = [key.partition("=")[0] for key in more]
    keys = [key for key in keys if key.partition("=")[0] not in names] + [*more]
    return runner.train(keys, data=data, quiet=True)


def weights(run: runner.Run) -> str:
    return str(run.result["weights_sha256"])


@pytest.mark.parametrize(
    ("backend", "accumulate"),
    [("lightning", 1), *(pytest.param(b, 5, marks=pytest.mark.slow) for b in BACKENDS)],
)
def test_rows_train_as_the_same_rows_of_arrays_in_the_same_order(
    tmp_path: Path, backend: str, accumulate: int
) -> None:
    """Equal weights of the model and equal metrics, where the iterable yields the order of the run
    with arrays. The metrics are means with the weights of rows, which an iterable has in float32:
    1e-6. XLA may fuse the gather of arrays with what uses them, and round differently: 1e-4."""
    more = (f"trainer.accumulate_grad_batches={accumulate}", "trainer.max_epochs=2")
    more = (*more, f"backend={backend}")
    split = ("data.val_fraction=0", "data.test_fraction=0", "data.num_classes=null")
    weight = np.random.default_rng(5).random(200)
    arrays = train(tmp_path, {"x": X, "y": Y, "weight": weight}, *more, *split, num=None)
    train_rows, epochs = arrays.plan.data.train, iter(range(2))

    def in_order() -> Iterator[Any]:
        batch = train_rows.read(arrays.plan.order.epoch(next(epochs)))
        for i in range(200):
            yield {name: values[i] for name, values in batch.items()}

    steps = f"data.steps_per_epoch={200 // (8 * accumulate)}"
    streamed = train(tmp_path, in_order, steps, *more, num=None)
    assert backend == "keras" or weights(streamed) == weights(arrays)
    rel = 1e-6 if backend == "lightning" else 1e-4
    assert streamed.result["metrics"] == pytest.approx(arrays.result["metrics"], rel=rel)
    assert len(streamed.metrics["epoch"]) == 2


@pytest.mark.slow
def test_every_form_of_an_iterable_trains_the_same(tmp_path: Path) -> None:
    tensors = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    dicts = [{"image": x, "label": y} for x, y in zip(X, Y, strict=True)]

    class Shards(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return rows()

        def __len__(self) -> int:
            return 200

    forms: dict[str, tuple[Any, ...]] = {
        "a function": (rows,),
        "a loader of batches": (torch.utils.data.DataLoader(tensors, batch_size=7),),
        "a loader of rows": (torch.utils.data.DataLoader(tensors, batch_size=None),),
        "an iterable data set of torch": (Shards(),),
        "dicts": (partial(iter, dicts), "data.inputs=image", "data.target=label"),
        "joined fields": (
            lambda: ({"a": x[:2], "b": x[2:], "y": y} for x, y in rows()),
            "data.inputs=[a,b]",
        ),
        "batches": (lambda: iter([(X, Y)]), "data.batched=true"),
        "rows in the same memory": (partial(_same_memory, 1),),
        "batches in the same memory": (partial(_same_memory, 3), "data.batched=true"),
    }
    found = {name: weights(train(tmp_path, *form, num=30)) for name, form in forms.items()}
    assert found == dict.fromkeys(forms, found["a function"])


@pytest.mark.slow
def test_a_data_set_of_tensorflow_trains_the_same_on_both_backends(tmp_path: Path) -> None:
    """The weights of each backend are those of the rows of a function."""
    code = f"""
import numpy as np, runner
import tensorflow as tf
X = np.random.default_rng(3).normal(size=(200, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(int) + (X[:, 0] > 1)
batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(7)
for backend in ("lightning", "keras"):
    keys = [*{KEYS}, "output.root={tmp_path}", "trainer.max_steps=30", "backend=" + backend]
    runs = [runner.train(keys, data=data, quiet=True) for data in (batches, lambda: zip(X, Y))]
    print(runs[0].result["weights_sha256"] == runs[1].result["weights_sha256"])
"""
    assert in_new_process(tmp_path, code).split()[-2:] == ["True", "True"]


@pytest.mark.slow
def test_both_backends_get_the_same_rows(here: Path) -> None:
    """Equal hashes of the rows; losses to 1e-12, the rounding of sums in float64."""
    (here / "go").touch()
    line = (*OWN, "data._target_=mine.splits", "trainer.precision=float64", "trainer.max_steps=30")
    losses, hashes = [], []
    for backend in BACKENDS:
        (done,) = forked(here, (*line, f"backend={backend}"))
        assert (done.status, done.err) == (0, "")
        folder = here / done.folder
        losses.append(np.loadtxt(folder / "trace.csv", delimiter=",", skiprows=1)[:, 2])
        hashes.append(read_json(folder / "checkpoints/30/state.json")["stream"]["sha256"])
        assert "val/loss" in read_json(folder / "result.json")["metrics"]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
@pytest.mark.parametrize(
    ("form", "said"),
    slow_rows(
        [
            ("rows", "mine.rows is read again up to row 1"),  # 120 or 160
            ("Places", "mine.Places continues after 1"),
        ],
        [("Places", "mine.Places continues after 1")],
    ),
)
def test_a_killed_run_resumes_to_the_same_bits(
    here: Path, backend: str, form: str, said: str
) -> None:
    """The iterable waits, so that the kill comes between two checkpoints."""
    line = (*OWN, f"data._target_=mine.{form}", f"backend={backend}", "trainer.max_steps=60")
    line = (*line, "trainer.checkpoint_every=5steps")
    line = (*line, "data.batched=true") if form == "Places" else line
    runs = here / "outputs" / "runs"
    last = "*/checkpoints/last"
    with Running(here, *line, "trainer.steps_per_call=1") as running:
        running.until(lambda: any(path.readlink().name in ("15", "20") for path in runs.glob(last)))
        running.end(SIGKILL)
    (folder,) = runs.glob("*")
    (here / "go").touch()
    (whole,) = forked(here, line)
    (resumed,) = forked(here, (f"resume={folder}", "trusted_modules=[mine]"))
    assert (whole.err, resumed.err) == ("", "")
    assert said in resumed.out, resumed.out
    found = [read_json(path / "result.json") for path in (folder, here / whole.folder)]
    assert found[0]["resumed_from"] in (15, 20)
    assert found[0]["weights_sha256"] == found[1]["weights_sha256"]
    positions = [
        read_json(path / "checkpoints/60/state.json")["stream"]["sha256"]
        for path in (folder, here / whole.folder)
    ]
    assert positions[0] == positions[1]


def _same_memory(num: int) -> Iterator[Any]:
    """Yield rows, or batches of them, that overwrite the previous ones."""
    x, y = X[:num].copy(), Y[:num].copy()
    for i in range(0, 200 - 200 % num, num):
        x[:], y[:] = X[i : i + num], Y[i : i + num]
        yield (x[0], y[0]) if num == 1 else (x, y)
    if 200 % num:
        yield X[-(200 % num) :], Y[-(200 % num) :]


class Uneven:
    """Batches of different sizes, and a position that is the number of batches."""

    def __init__(self, sizes: tuple[int, ...] = (5, 1, 8, 3, 3, 12, 2)) -> None:
        self.ends, self.place = np.cumsum([0, *sizes]), 0

    def __iter__(self) -> Iterator[Any]:
        while self.place < len(self.ends) - 1:
            part = slice(*self.ends[self.place : self.place + 2])
            self.place += 1
            yield X[part], Y[part]
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def reader() -> Reader:
    items = Items(Uneven(), "data")
    records = items.records.choose(None, None)
    unit = type(records)(records.source, unit="batch")
    return Reader(Stream(items, unit, "classification", 3, None, None), rows_per_step=4)


def test_a_reader_continues_from_every_step() -> None:
    """The rows after any update are the same, from the state of the iterable; batches end within
    updates, and updates within batches."""
    whole = reader()
    rows_of = [whole.read(1)["x"] for _ in range(25)]
    positions = whole._positions
    assert np.array_equal(np.concatenate(rows_of), np.concatenate([X[:34]] * 3)[:100])
    for step in range(1, 25):
        position = positions[step]
        assert position["rows"] == 4 * step
        if step == 1:  # within the first batch, which was looked at before the run
            assert "state" not in position
            continue
        again = reader()
        again.restore(step, position)
        np.testing.assert_array_equal(again.read(1)["x"], rows_of[step])
        again.read(25 - step - 1) if step < 24 else None
        assert again.sha256 == whole.sha256


def test_the_hash_does_not_depend_on_the_chunks() -> None:
    one, several = reader(), reader()
    one.read(20)
    for num in (3, 1, 16):
        several.read(num)
    assert one.sha256 == several.sha256


def test_rows_that_do_not_repeat_are_found(tmp_path: Path) -> None:
    seeds = iter(range(9))

    def shuffled() -> Iterator[Any]:
        order = np.random.default_rng(next(seeds)).permutation(200)
        yield from zip(X[order], Y[order], strict=True)

    part = train(tmp_path, shuffled, num=20)
    differ = "data does not repeat: its first 160 rows differ from those before"
    keys = "trainer.max_steps=30"
    with pytest.raises(runner.ConfigError) as error:
        runner.resume(part, f"{keys} trainer.strict=true", data=shuffled, quiet=True)
    assert str(error.value) == f"resume: {differ}; trainer.strict=false resumes with them"
    resumed = runner.resume(part, keys, data=shuffled, quiet=True)
    assert f"warning: {differ}" in (resumed.folder / "run.log").read_text()


def test_an_iterator_is_read_once(tmp_path: Path) -> None:
    assert train(tmp_path, rows(), num=25).status == "completed"
    with pytest.raises(runner.RunError, match=r"data ended after 200 rows, in update 25, and an"):
        train(tmp_path, rows(), num=26)


def test_token_ids_are_embedded(tmp_path: Path) -> None:
    ids = np.arange(160).reshape(20, 8) % 7

    def windows() -> Iterator[Any]:
        yield from zip(ids, (ids + 1) % 7, strict=True)

    keys = ("data.num_tokens=7", "data.num_classes=7", "trainer.precision=float64")
    layers = "model.layers=[{layer: embedding, features: 8}, {layer: dense, units: outputs}]"
    run = train(tmp_path, windows, *keys, layers, "model=mlp", "optimizer.lr=0.05", "metrics=[]")
    assert run.metrics["train/loss"][-1] < np.log(7)


def _changed(number: int, item: Any) -> Callable[[], Iterator[Any]]:
    """Return rows, the `number`-th of them replaced."""
    return lambda: (item if i == number else row for i, row in enumerate(rows()))


BAD: dict[str, tuple[Any, str, str]] = {
    "no length of the run": (
        rows,
        "trainer.max_steps=null",
        "trainer.max_steps must be set for data, whose rows can only be iterated over and are not "
        "counted, got null; or set data.steps_per_epoch and trainer.max_epochs",
    ),
    "no number of classes": (
        rows,
        "data.num_classes=null",
        "data.num_classes must be set for data, whose rows can only be iterated over, because the "
        "labels cannot be counted before the training, got null",
    ),
    "no rows": (lambda: iter(()), "", "data holds no rows"),
    "too few rows": (
        lambda: iter([(X[0], Y[0])] * 5),
        "",
        "data holds 5 rows, fewer than trainer.batch_size=8",
    ),
    "a function that makes no rows": (
        lambda: 5,
        "",
        "data must make an iterable of rows, got int",
    ),
    "batches that may be rows": (
        lambda: iter([(X, Y)]),
        "",
        "data.batched must be true or false for data: x of its first item has the shape [200, 6] "
        "and y [200], which may be a batch of 200 rows or one row",
    ),
    "rows that are no batches": (
        lambda: iter([(X[0], Y[0])]),
        "data.batched=true",
        "data: y of batch 0 must have an axis of rows, got 1; data.batched=false reads single rows",
    ),
    "an empty batch": (
        lambda: iter([(X[:5], Y[:5]), (X[:0], Y[:0])]),
        "data.batched=true",
        "data: batch 1 has no rows",
    ),
    "targets of another type": (
        _changed(3, (X[0], 0.5)),
        "",
        "data: y of row 3 has the type float64, of the first row int64; all rows must have one "
        "type",
    ),
    "a negative weight": (
        lambda: ({"x": x, "y": y, "weight": 5 - i} for i, (x, y) in enumerate(rows())),
        "",
        "weight of data must be finite and >= 0, got -1.0 in row 6",
    ),
    "a weight missing": (
        lambda: ({"x": X[0], "y": 0, **({"weight": 1.0} if i < 3 else {})} for i in range(9)),
        "",
        "data: row 3 has the fields x, y, the first one has x, y, weight",
    ),
    "validation rows without weights": (
        {"train": lambda: ({"x": x, "y": y, "weight": 1.0} for x, y in rows()), "val": (X, Y)},
        "",
        "data['val'] must have weights, because the training rows have weights",
    ),
    "validation rows with weights": (
        {"train": rows, "val": {"x": X, "y": Y, "weight": np.ones(200)}},
        "",
        "data['val'] must have no weights, because the training rows have none",
    ),
    "another shape": (
        _changed(3, (X[0][:5], 0)),
        "",
        "data: x of row 3 has rows of the shape [5], the first row has [6]; all rows must have one "
        "shape",
    ),
    "another type": (
        _changed(3, (X[0].astype(np.float64), 0)),
        "",
        "data: x of row 3 has the type float64, of the first row float32; all rows must have one "
        "type",
    ),
    "a class too many": (
        _changed(3, (X[0], 3)),
        "",
        "data: y must have labels from 0 to data.num_classes - 1, 2, got 3 in row 3",
    ),
    "labels that are numbers": (
        lambda: zip(X, Y + 0.5, strict=True),
        "",
        "data: y must have labels, integers from 0 to 2, one per row or one at each position, got "
        "float64 of shape [] in row 0; set data.task=regression to predict numbers",
    ),
    "not finite": (
        _changed(3, (X[0] * np.inf, 0)),
        "",
        "data: row 3, column x[0] is inf; all values must be finite",
    ),
    "three fields": (
        lambda: zip(X, Y, Y, strict=True),
        "",
        "data: row 0 must be (x, y) or a dict of fields, got a tuple of 3",
    ),
    "standardized": (
        rows,
        "data.standardize=true",
        "data.standardize must be false for rows that can only be iterated over, because their "
        "mean is not known; scale them in your code, got true for data",
    ),
    "folds": (
        rows,
        "data.fold=0",
        "data.fold must be null for rows that can only be iterated over, because folds divide rows "
        "by number, got 0 for data",
    ),
    "in memory": (
        rows,
        "data.memory_mb=1",
        "data.memory_mb must be null for rows that can only be iterated over, because a chunk of "
        "them is in memory at a time, got 1 for data",
    ),
    "stratified": (
        rows,
        "data.split=stratified",
        "data.split must be random for rows that can only be iterated over, because data.split "
        "divides rows by number, got stratified for data",
    ),
    "a fraction": (
        rows,
        "data.val_fraction=0.1",
        "data.val_fraction must be 0 for rows that can only be iterated over; pass "
        "data={'train': ..., 'val': ...}, got 0.1",
    ),
    "balanced weights": (
        rows,
        "loss=cross_entropy loss.class_weights=balanced",
        "loss.class_weights must be null or a list for data, whose rows can only be iterated over, "
        "because their labels are not counted, got balanced",
    ),
    "exact mode": (
        rows,
        "trainer.precision=exact",
        "trainer.precision=exact needs rows in memory, and the rows of data can only be iterated "
        "over; pass arrays of them",
    ),
    "an embedding without a number of tokens": (
        rows,
        "model=gpt",
        "data.num_tokens must be set for data, whose rows can only be iterated over, because "
        "model.layers begin with embedding, got null",
    ),
    "validation rows without numbers": (
        {"train": rows, "val": rows()},
        "",
        "data['val'] must have rows by number (__len__ and __getitem__), got generator, which can "
        "only be iterated over, as training rows can; pass the data set that it reads, or arrays "
        "of its rows",
    ),
    "validation rows of another shape": (
        {"train": rows, "val": (X[:, :5], Y)},
        "",
        "data['val']: a row of x must have the shape of a training row, [6], got [5]",
    ),
    "validation rows of another class": (
        {"train": rows, "val": (X, Y + 1)},
        "",
        "data['val']: y must have labels from 0 to data.num_classes - 1, 2, got 3 in row 12",
    ),
    "keys of an iterable for arrays": (
        (X, Y),
        "",
        "data.num_classes must be null for rows that have numbers, got 3, and data is no iterable",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_train_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, keys, message = BAD[case]
    with pytest.raises(runner.ConfigError) as error:
        train(tmp_path, data, *keys.split())
    assert str(error.value) == message
    assert not any(tmp_path.iterdir())


def test_an_error_of_the_iterable_names_its_file_and_line(here: Path) -> None:
    (done,) = forked(here, (*OWN, "data._target_=mine.failing", "trainer.max_steps=5"))
    assert done.status == 2
    assert done.err == "error: mine.failing: reading it raised KeyError: 'gone' (mine.py:42)\n"


def test_a_description_needs_rows_with_numbers(here: Path) -> None:
    (done,) = forked(here, (*OWN, "data._target_=mine.rows", "task=describe"))
    assert (done.status, done.err) == (
        2,
        "error: task=describe needs rows with numbers, and the rows of mine.rows can only be "
        "iterated over; task=train checks them while it reads them\n",
    )
