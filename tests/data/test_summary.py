"""The statistics of task=describe against NumPy and scikit-learn, and its warnings: each with a
planted mistake, and without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import load, summary
from runner.data.dataset import Dataset, Scaling, Split, standardize
from runner.data.summary import Summary, summarize

RNG = np.random.default_rng(5)


def described(*overrides: str) -> tuple[Dataset, Summary]:
    data = load(parse(compose(list(overrides))).data)
    return data, summarize(data)


def table(x: np.ndarray, y: np.ndarray, num_val: int = 0, num_test: int = 0) -> Dataset:
    """The first rows for training, the next ones for validation and for the test."""
    cuts = np.split(np.arange(len(x)), [len(x) - num_val - num_test, len(x) - num_test])
    splits = (Split(x[rows], y[rows]) for rows in cuts)
    if y.ndim == 2:
        return Dataset(*splits, task="regression", classes=(), features=())
    names = tuple(f"c{i}" for i in range(int(y.max()) + 1))
    return Dataset(*splits, task="classification", classes=names, features=())


def test_columns_are_those_of_the_raw_training_rows() -> None:
    """The rows of scikit-learn's own reader, found by their number of the target and the values:
    the split is a permutation, so order does not matter to these numbers but which rows do."""
    data, found = described("data=diabetes")
    raw_x, raw_y = load_diabetes(return_X_y=True, scaled=False)
    assert data.x_scaling is not None
    assert data.y_scaling is not None
    x, y = data.x_scaling.invert(data.train.x), data.y_scaling.invert(data.train.y)
    rows = [int(np.abs(raw_x - row).max(axis=1).argmin()) for row in x]
    x, y = raw_x[rows], raw_y[rows]
    assert [column.name for column in found.columns] == load_diabetes().feature_names
    for j, column in enumerate(found.columns):
        values = x[:, j]
        assert column.distinct == len(set(values.tolist()))
        assert (column.kind == "whole") == all(float(v).is_integer() for v in values)
        # 310 values, scaled and back: some units in the last place each
        expected = [values.min(), values.max(), values.mean(), values.std()]
        actual = [column.low, column.high, column.mean, column.deviation]
        assert actual == pytest.approx(expected, rel=1e-12)
    (target,) = found.targets
    assert (target.low, target.high) == (y.min(), y.max())
    # sums of 310 values in another order
    assert [target.mean, target.deviation] == pytest.approx([y.mean(), y.std()], rel=1e-12)
    assert found.rows == {"train": 310, "val": 66, "test": 66}
    assert found.sha256 == data.description()["sha256"]
    assert found.warnings == []


def test_images_are_described_as_a_whole_and_classes_are_counted() -> None:
    data, found = described("data=digits")
    (x,) = found.columns
    assert (x.name, x.low, x.high, x.distinct) == ("x", 0, 1, 17)  # levels 0 ... 16, divided by 16
    # sums of 81,920 values in another order
    expected = [data.train.x.mean(), data.train.x.std()]
    assert [x.mean, x.deviation] == pytest.approx(expected, rel=1e-12)
    labels = load_digits().target
    for i, counts in enumerate(found.classes.values()):
        assert sum(counts.values()) == (labels == i).sum()
        assert counts["val"] == (data.val.y == i).sum()
    assert found.majority is not None
    name, shares = found.majority
    assert name == str(np.bincount(data.train.y).argmax())
    assert shares["val"] == np.mean(data.val.y == int(name))
    assert found.values["flattened_images"] == [8, 8, 1]


def test_several_blocks_give_the_numbers_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(RNG.normal(5, 2, (100, 3)), RNG.normal(size=(100, 2)), 20, 20)
    whole = summarize(data)
    monkeypatch.setattr(summary, "_BLOCK", 21)  # 7 rows
    for a, b in zip(whole.columns, summarize(data).columns, strict=True):
        assert (a.low, a.high, a.distinct) == (b.low, b.high, b.distinct)
        # sums of 60 values in another order
        assert [a.mean, a.deviation] == pytest.approx([b.mean, b.deviation], rel=1e-13)


def test_rows_in_files_are_described_like_rows_in_memory_and_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 integers and 60 * 5 random numbers; the largest block that is read has 10 rows."""
    x = np.hstack([np.arange(60)[:, None] % 50, RNG.random((60, 4))])
    y = np.arange(60) % 3
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "x.npy", x)
    np.save(tmp_path / "files" / "y.npy", y)
    np.savez(tmp_path / "all.npz", x=x, y=y)
    streamed, read = load(parse(compose(["data=npy", f"data.path={tmp_path}/files"])).data), []
    get = type(streamed.train.x).__getitem__
    monkeypatch.setattr(
        type(streamed.train.x),
        "__getitem__",
        lambda self, rows: read.append(len(rows)) or get(self, rows),
    )
    monkeypatch.setattr(summary, "_BLOCK", 50)
    found = summarize(streamed)
    assert max(read) == 10
    _, resident = described("data=npz", f"data.path={tmp_path}/all.npz")
    assert (found.classes, found.duplicates) == (resident.classes, resident.duplicates)
    for a, b in zip(found.columns, resident.columns, strict=True):
        assert (a.low, a.high, a.distinct, a.kind) == (b.low, b.high, b.distinct, b.kind)
        assert a.mean == pytest.approx(b.mean, rel=1e-13)  # sums in another order


def test_more_than_a_thousand_distinct_values_of_a_stream_are_not_counted() -> None:
    x = np.arange(1500.0)[:, None] / 7
    data = table(np.hstack([x, np.floor(x)]), np.arange(1500) % 2)
    assert [c.distinct for c in summarize(data).columns] == [1500, 215]  # in memory: all
    images = Split(x.reshape(-1, 1, 1, 1), data.train.y)
    assert summary._distinct_in_blocks(images, 1) == [None]
    assert summary._distinct_in_blocks(data.train, 2) == [None, 215]


def clean(num: int = 100) -> tuple[np.ndarray, np.ndarray]:
    return RNG.random((num, 4)), np.arange(num) % 2


def planted(number: int, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Clean rows with a column of other values."""
    x, y = clean()
    x[:, number] = values
    return x, y


LABELS = np.arange(100) % 2
WARNINGS: dict[str, tuple[Dataset, str]] = {
    "unscaled": (
        table(*planted(0, RNG.integers(0, 256, 100))),
        "x has unscaled values up to 2",
    ),
    "constant": (
        table(*planted(1, 3.0)),
        "column x[1] has the same value in all training rows",
    ),
    "counts": (
        table(*planted(2, np.random.default_rng(0).permutation(100) + 7.0)),
        "column x[2] counts the rows; if it is an index, leave it out with data.drop",
    ),
    "is the class": (
        table(*planted(3, np.where(LABELS == 1, 0.25, 0.75))),
        "column x[3] has one value per class, so it equals the target y",
    ),
    "duplicates": (
        table(*(np.concatenate([a, a[:3], a[:2]]) for a in clean()), num_val=3, num_test=2),
        "3 of 3 validation rows equal a training row",
    ),
    "missing class": (
        table(clean()[0], np.where(np.arange(100) < 80, LABELS, 0), num_val=20),
        "the validation rows have no row of the class c1",
    ),
    "unbalanced": (
        table(clean()[0], (np.arange(100) >= 91).astype(np.int64)),
        "the classes are unbalanced: 91 training rows of c0, 9 of c1; loss=cross_entropy",
    ),
    "few rows": (
        table(RNG.random((20, 30)), np.arange(20) % 2),
        "20 training rows for 30 columns",
    ),
    "correlated": (
        table(*(lambda x: (x, 5 - 3 * x[:, 1:2]))(RNG.random((100, 4)))),
        "column x[1] has correlation -1 with the target y",
    ),
    "constant target": (
        table(clean()[0], np.full((100, 1), 2.5)),
        "target y is always 2.5 in the training rows",
    ),
    "constant images": (
        table(np.full((100, 4, 4, 1), 0.5), LABELS),
        "x has a single value, 0.5, in all training rows",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_a_planted_mistake_is_named(name: str) -> None:
    data, beginning = WARNINGS[name]
    assert any(warning.startswith(beginning) for warning in summarize(data).warnings)


def test_rows_without_a_mistake_give_no_warning() -> None:
    """Also columns that nearly make one: a noisy copy of the target, whole numbers that are not an
    index, 9 rows of one class to 1 of the other."""
    x, y = clean()
    assert summarize(table(x, y, 20, 20)).warnings == []
    target = RNG.random((100, 1))
    noisy = np.hstack([x, target + RNG.normal(0, 0.01, (100, 1))])
    assert summarize(table(noisy, target)).warnings == []
    gap = np.arange(100.0)
    gap[50] = 49
    assert (
        summarize(standardize(table(np.hstack([x, gap[:, None]]), y), x=True, y=False)).warnings
        == []
    )
    assert summarize(table(x, (np.arange(100) >= 90).astype(np.int64))).warnings == []
    assert summarize(table(x, np.where(np.arange(100) == 50, 2, y), 20)).rows["val"] == 20


def test_mistakes_are_found_in_standardized_columns_too() -> None:
    """Scaling rounds: whole numbers come back as 59.00000000000001, constants as sums."""
    x = np.hstack([RNG.normal(1e3, 1, (200, 1)), np.arange(200)[:, None] + 1e6])
    x = np.hstack([x, np.full((200, 1), 0.1)])
    data = standardize(table(x, 2 * x[:, :1] + 1, 40, 40), x=True, y=True)
    found = summarize(data)
    assert [column.kind for column in found.columns] == ["real", "whole", "real"]
    assert [column.is_constant for column in found.columns] == [False, False, True]
    assert (found.columns[1].low, found.columns[1].high) == (1e6, 1e6 + 119)
    begin = ["column x[2] has the same", "column x[1] counts", "column x[0] has correlation 1 with"]
    assert [w.startswith(b) for w, b in zip(found.warnings, begin, strict=True)] == [True] * 3


def test_classes_far_apart_in_numbers_are_recognised_in_a_column() -> None:
    """A column 50, 7, 300 for the classes 0, 1, 2 has no correlation 1 with them."""
    x, _ = clean(99)
    y = np.arange(99) % 3
    x[:, 0] = np.array([0.5, 0.07, 3.0])[y]
    assert any("x[0] has one value per class" in w for w in summarize(table(x, y)).warnings)
    x[4, 0] = 0.5  # one exception
    assert summarize(table(x, y)).warnings == []


def test_pixels_are_described_in_the_data_s_units_per_channel() -> None:
    pixels = RNG.integers(0, 256, (20, 4, 4, 3)).astype(np.float64)
    y = np.arange(20) % 2
    scaling = Scaling(np.zeros(3), np.full(3, 255.0))
    data = Dataset(
        *(Split(scaling.apply(pixels[rows]), y[rows]) for rows in (slice(10), slice(10, 20), [])),
        task="classification",
        classes=("a", "b"),
        features=(),
        x_scaling=scaling,
    )
    (x,) = summarize(data).columns
    assert (x.kind, x.low, x.high) == ("whole", pixels[:10].min(), pixels[:10].max())
    assert x.mean == pytest.approx(pixels[:10].mean(), rel=1e-12)  # sums in another order


def test_values_near_the_limit_of_float64_have_a_mean() -> None:
    """Sums of such values are infinite. The mean of n values up to 1e308, each divided by n."""
    x = RNG.random((100, 2)) * 1e308
    columns = summarize(table(x, LABELS)).columns
    expected = [float(np.mean(column / 1e308)) * 1e308 for column in x.T]
    assert [column.mean for column in columns] == pytest.approx(expected, rel=1e-12)


def test_a_negative_zero_is_a_zero() -> None:
    x = np.array([[-0.0, 1.0], [0.0, 2.0]])
    data = table(np.repeat(x, 10, axis=0), np.arange(20) % 2, 10)
    assert str(summarize(data).columns[0].low) == "0.0"
    assert summary._row_hashes(Split(x[:1], x[:1])) == summary._row_hashes(Split(x[:1] + 0, x[:1]))
