"""The rows for training, validation and test, compared with scikit-learn's definitions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, TimeSeriesSplit

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data.arrays import given
from runner.data.splits import Kind, Parts, assign
from runner.errors import ConfigError
from runner.random import permutation
from tests.data.test_data import LABELS, dataset, rows, splits, write_csv, write_npz

KINDS: Sequence[Kind] = ("random", "stratified", "grouped", "chronological")
NUM_ROWS, NUM_FOLDS = 1003, 7


def features(num_rows: int = NUM_ROWS) -> dict[str, np.ndarray]:
    """Labels of rare and frequent classes, groups of 1 to about 20 rows, and times with ties."""
    draw = np.random.default_rng(0)
    return {
        "labels": np.sort(draw.choice(6, num_rows, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02])),
        "groups": draw.integers(0, 80, num_rows) * draw.integers(0, 2, num_rows),
        "times": draw.integers(0, 500, num_rows),
    }


def divided(split: Kind, fold: int | None = None, **more: Any) -> Parts:
    arguments = {"val_fraction": 0.2, "test_fraction": 0.15, "seed": 3, **more}
    return assign(NUM_ROWS, split=split, fold=fold, num_folds=NUM_FOLDS, **features(), **arguments)


def folds(split: Kind, **more: Any) -> list[Parts]:
    return [divided(split, fold, **more) for fold in range(NUM_FOLDS)]


def sizes_of(parts: Sequence[np.ndarray]) -> list[int]:
    return [len(part) for part in parts]


@pytest.mark.parametrize("split", KINDS)
def test_every_row_lies_in_one_split(split: Kind) -> None:
    parts = divided(split)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(NUM_ROWS))
    assert all(part.dtype == np.int64 for part in parts)


@pytest.mark.parametrize("split", KINDS)
def test_the_split_is_a_function_of_its_seed(split: Kind) -> None:
    first, same, other = divided(split), divided(split), divided(split, seed=4)
    assert all(map(np.array_equal, first, same))
    is_equal = all(map(np.array_equal, first, other))
    assert is_equal == (split == "chronological")  # time has no seed


def test_random_is_the_permutation_of_the_first_version() -> None:
    """Runs that are already made depend on these rows."""
    order = permutation(NUM_ROWS, 3, "split")
    num_val, num_test = round(0.2 * NUM_ROWS), round(0.15 * NUM_ROWS)
    expected = np.split(order, [NUM_ROWS - num_val - num_test, NUM_ROWS - num_test])
    assert all(map(np.array_equal, divided("random"), expected))
    small = assign(10, seed=0, val_fraction=0.2, test_fraction=0.2)
    assert [part.tolist() for part in small] == [[4, 1, 8, 3, 5, 9], [0, 2], [7, 6]]


def test_stratified_gives_each_split_the_share_of_each_class_within_one_row() -> None:
    labels = features()["labels"]
    for seed in range(5):
        parts = divided("stratified", seed=seed)
        for share, part in zip((0.65, 0.2, 0.15), parts, strict=True):
            counts = np.bincount(labels[part], minlength=6)
            # less than one row; the tolerance is for the product
            assert (np.abs(counts - share * np.bincount(labels)) < 1 - 1e-9).all()
            # each of the six classes is rounded; what one lacks the next one gets
            assert abs(len(part) - share * NUM_ROWS) < 1.5


def test_stratified_has_right_totals_with_many_small_classes() -> None:
    """100 classes of 10 rows, of which 0.4 should be for validation: 40 in all."""
    labels = np.repeat(np.arange(100), 10)
    parts = assign(1000, split="stratified", val_fraction=0.04, test_fraction=0.04, labels=labels)
    assert sizes_of(parts) == [920, 40, 40]


def test_the_only_row_of_a_class_is_a_training_row() -> None:
    labels = np.concatenate([np.zeros(40, int), np.arange(1, 11)])
    train, val, test = assign(
        50, split="stratified", val_fraction=0.3, test_fraction=0.3, labels=labels
    )
    assert set(labels[val]) == set(labels[test]) == {0}
    assert set(labels[train]) == set(range(11))


@pytest.mark.parametrize("fold", [None, *range(NUM_FOLDS)])
def test_a_group_lies_in_one_split(fold: int | None) -> None:
    groups = features()["groups"]
    of_part = [set(groups[part]) for part in divided("grouped", fold)]
    assert sum(map(len, of_part)) == len(set(groups))


def test_a_grouped_split_is_larger_than_wanted_by_less_than_one_group() -> None:
    groups = np.repeat(np.arange(100), 10)
    for seed in range(5):
        _, val, test = assign(
            1000,
            split="grouped",
            seed=seed,
            val_fraction=0.201,
            test_fraction=0.15,
            groups=groups,
        )
        assert (len(val), len(test)) == (210, 150)


def test_groups_of_one_row_are_divided_as_random_rows() -> None:
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 5}
    grouped = assign(50, split="grouped", groups=np.arange(50), **fractions)
    assert all(map(np.array_equal, grouped, assign(50, **fractions)))


def test_groups_may_be_text() -> None:
    names = np.array(["a", "b", "c", "d"])[np.arange(40) % 4]
    by_name = assign(40, split="grouped", test_fraction=0.25, groups=names)
    by_number = assign(40, split="grouped", test_fraction=0.25, groups=np.arange(40) % 4)
    assert all(map(np.array_equal, by_name, by_number))


def test_chronological_trains_on_the_past() -> None:
    times = features()["times"]
    train, val, test = divided("chronological")
    assert sizes_of((train, val, test)) == sizes_of(divided("random"))
    assert times[train].max() <= times[val].min() <= times[val].max() <= times[test].min()
    stored = assign(10, split="chronological", val_fraction=0.2, test_fraction=0.2)
    assert [part.tolist() for part in stored] == [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9]]


def test_times_may_be_dates() -> None:
    dates = np.datetime64("2024-01-01") + np.arange(10)[::-1]
    _, _, test = assign(10, split="chronological", test_fraction=0.2, times=dates)
    assert test.tolist() == [1, 0]


@pytest.mark.parametrize("split", KINDS)
def test_the_test_rows_are_the_same_without_and_with_any_fold(split: Kind) -> None:
    test = set(divided(split)[2].tolist())
    assert all(set(part[2].tolist()) == test for part in folds(split))


@pytest.mark.parametrize("split", KINDS)
def test_validation_folds_are_disjoint_and_cover_the_rows_that_are_not_for_the_test(
    split: Kind,
) -> None:
    parts = folds(split)
    together = np.concatenate([val for _, val, _ in parts])
    assert len(set(together.tolist())) == len(together)
    for train, val, test in parts:
        assert not set(train.tolist()) & (set(val.tolist()) | set(test.tolist()))
        if split != "chronological":
            assert len(train) + len(val) + len(test) == NUM_ROWS
    if split == "chronological":  # the first rows are only for training
        others = {*parts[0][0].tolist(), *parts[0][2].tolist()}
        assert set(together.tolist()) == set(range(NUM_ROWS)) - others
    else:
        assert len(together) == NUM_ROWS - len(parts[0][2])


def test_random_folds_have_the_sizes_of_kfold() -> None:
    num = NUM_ROWS - len(divided("random")[2])
    expected = [len(val) for _, val in KFold(NUM_FOLDS).split(np.zeros(num))]
    assert [len(val) for _, val, _ in folds("random")] == expected


def test_stratified_folds_have_the_class_counts_of_stratifiedkfold() -> None:
    labels = features()["labels"]
    parts = folds("stratified")
    rest = np.sort(np.concatenate(parts[0][:2]))
    reference = StratifiedKFold(NUM_FOLDS).split(rest, labels[rest])
    for (_, val, _), (_, expected) in zip(parts, reference, strict=True):
        assert np.array_equal(
            np.bincount(labels[val], minlength=6), np.bincount(labels[rest[expected]], minlength=6)
        )


def test_grouped_folds_have_the_sizes_of_groupkfold() -> None:
    groups = features()["groups"]
    parts = folds("grouped")
    rest = np.concatenate(parts[0][:2])
    reference = GroupKFold(NUM_FOLDS).split(rest, groups=groups[rest])
    assert [len(val) for _, val, _ in parts] == [len(val) for _, val in reference]


def test_chronological_folds_are_those_of_timeseriessplit() -> None:
    parts = folds("chronological")
    times = features()["times"]
    order = np.argsort(times, kind="stable")
    rest = order[: NUM_ROWS - len(parts[0][2])]
    for (train, val, _), (before, window) in zip(
        parts, TimeSeriesSplit(NUM_FOLDS).split(rest), strict=True
    ):
        assert np.array_equal(train, rest[before])
        assert np.array_equal(val, rest[window])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": (
        {"split": "stratified"},
        "data.split=stratified divides the rows of each class, so it needs "
        "data.task=classification; use random, grouped or chronological",
    ),
    "no groups": (
        {"split": "grouped"},
        "data.split=grouped needs the group of each row, and a.npz has none; data.group names the "
        "column of a table, an NPZ file has the array group, a function of data=custom returns x, "
        "y, group, data.table has the column group",
    ),
    "groups of another length": (
        {"split": "grouped", "groups": np.arange(9)},
        "a.npz: x has 10 rows, group has 9",
    ),
    "groups in a table": (
        {"split": "grouped", "groups": np.zeros((10, 2))},
        "a.npz: group must hold numbers or text of shape [N] for data.split=grouped, got float64 "
        "of shape [10, 2]",
    ),
    "groups that are objects": (
        {"split": "grouped", "groups": np.array([None] * 10)},
        "a.npz: group must hold numbers or text of shape [N] for data.split=grouped, got object "
        "of shape [10]",
    ),
    "a group that is missing": (
        {"split": "grouped", "groups": np.where(np.arange(10) == 4, np.nan, 1.0)},
        "a.npz: row 4 of group is nan; data.split=grouped needs a value in every row",
    ),
    "text as times": (
        {"split": "chronological", "times": np.array(["1"] * 10)},
        "a.npz: time must hold numbers or dates of shape [N] for data.split=chronological, got "
        "<U1 of shape [10]",
    ),
    "a date that is missing": (
        {"split": "chronological", "times": np.array(["2024-01-01"] * 9 + ["NaT"], "M8[D]")},
        "a.npz: row 9 of time is NaT; data.split=chronological needs a value in every row",
    ),
    "two groups": (
        {"split": "grouped", "groups": np.arange(10) % 2, "val_fraction": 0.2},
        "data.split=grouped leaves no training rows: a.npz has 2 groups; lower data.val_fraction "
        "or data.test_fraction",
    ),
    "more folds than rows": (
        {"fold": 0, "num_folds": 9},
        "data.num_folds must be <= the number of rows that are not for the test, 8 of a.npz, got 9",
    ),
    "more folds than groups": (
        {"split": "grouped", "groups": np.arange(10) % 4, "fold": 0, "num_folds": 4},
        "data.num_folds must be <= the number of groups that are not for the test, 3 of a.npz, got "
        "4",
    ),
    "as many folds as rows in time": (
        {"split": "chronological", "fold": 0, "num_folds": 8},
        "data.num_folds must be < the number of rows that are not for the test, 8 of a.npz, "
        "because the first rows are only for training, got 8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_split_are_refused_in_one_line(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        assign(10, source="a.npz", **{"test_fraction": 0.2, **arguments})
    assert str(error.value) == message


def test_npz_has_groups_and_times(tmp_path: Path) -> None:
    group = np.array(["p", "q", "r", "s", "t"])[np.arange(20) // 4]
    file = write_npz(tmp_path / "a.npz", x=rows(), y=LABELS, group=group, time=np.arange(20)[::-1])
    grouped = dataset(*file, "data.split=grouped")
    assert [len(split) for split in splits(grouped)] == [12, 4, 4]
    which = [set(group[(split.x[:, 0] // 3).astype(int)]) for split in splits(grouped)]
    assert sum(map(len, which)) == 5
    in_time = dataset(*file, "data.split=chronological")
    assert np.array_equal(in_time.test.x, rows()[[3, 2, 1, 0]])


def test_the_seed_of_a_csv_file_s_split_and_its_folds(tmp_path: Path) -> None:
    text = "a,b\n" + "".join(f"{i},{'no' if i % 5 else 'yes'}\n" for i in range(100))
    file = write_csv(tmp_path / "a.csv", text, "data.standardize=false", "data.split=stratified")
    data = dataset(*file)
    assert [np.bincount(split.y).tolist() for split in splits(data)] == [[48, 12], [16, 4], [16, 4]]
    val = [dataset(*file, f"data.fold={fold}").val for fold in range(5)]
    assert [np.bincount(split.y).tolist() for split in val] == [[13, 3]] * 4 + [[12, 4]]
    together = np.sort(np.concatenate([split.x[:, 0] for split in val]))
    assert np.array_equal(together, np.sort(np.concatenate([data.train.x, data.val.x])[:, 0]))


def test_rows_that_are_passed_in_python_may_have_groups() -> None:
    group = np.arange(20) // 4
    section = parse(compose(["data=arrays", "data.split=grouped"])).data
    data = section.holding(given({"x": rows(), "y": LABELS, "group": group})).load()
    which = [set(group[(split.x[:, 0] // 3).astype(int)]) for split in splits(data)]
    assert [len(split) for split in splits(data)] == [12, 4, 4]
    assert sum(map(len, which)) == 5


def test_scaling_is_of_the_training_rows_of_the_fold(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "a.npz", x=rows(), y=LABELS)
    for fold in range(3):
        data = dataset(*file, "data.standardize=true", f"data.fold={fold}", "data.num_folds=3")
        # means of at most 20 numbers of size 1
        np.testing.assert_allclose(data.train.x.mean(axis=0), 0, atol=1e-14)


def test_a_fold_sets_val_fraction_to_0() -> None:
    file = ["data=npz", "data.path=a.npz"]
    assert compose([*file])["data"]["val_fraction"] == 0.2
    assert compose([*file, "data.fold=1"])["data"]["val_fraction"] == 0
    assert compose([*file, "data.fold=null"])["data"]["val_fraction"] == 0.2
    with pytest.raises(ConfigError, match=r"data.val_fraction must be 0 with data.fold"):
        parse(compose([*file, "data.fold=1", "data.val_fraction=0.2"]))


def test_splits_may_have_files_of_their_own(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "a.npz", x=rows(), y=LABELS)
    np.savez(tmp_path / "b.npz", x=rows(4) + 0.5, y=[3, 2, 1, 0])
    data = dataset(*file, f"data.test_path={tmp_path / 'b.npz'}")
    assert [len(split) for split in splits(data)] == [16, 4, 4]
    assert np.array_equal(data.test.x, rows(4) + 0.5)
    assert data.test.y.tolist() == [3, 2, 1, 0]
    both = dataset(*file, *(f"data.{name}_path={tmp_path / 'b.npz'}" for name in ("val", "test")))
    assert np.array_equal(both.train.x, rows())  # in the order of the file
    assert np.array_equal(both.val.x, both.test.x)
    fold = dataset(*file, f"data.test_path={tmp_path / 'b.npz'}", "data.fold=0")
    assert [len(split) for split in splits(fold)] == [16, 4, 4]


OWN: dict[str, tuple[dict[str, Any], str]] = {
    "another shape": (
        {"x": rows(4, 2), "y": [0, 1, 2, 3]},
        "b.npz: x must have rows of the shape [3], as in a.npz, got the shape [4, 2]",
    ),
    "another class": (
        {"x": rows(4), "y": [0, 1, 2, 7]},
        "b.npz: y must have the classes of a.npz, got 7, which is not one of them",
    ),
    "a value that is missing": (
        {"x": np.where(rows(4) == 4, np.nan, rows(4)), "y": [0, 1, 2, 3]},
        "b.npz: row 1, column x[1] is nan; all values must be finite",
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_files_that_do_not_agree_are_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays, message = OWN[case]
    file = write_npz(Path("a.npz"), x=rows(), y=LABELS)
    np.savez("b.npz", **arrays)
    with pytest.raises(ConfigError) as error:
        dataset(*file, "data.val_path=b.npz")
    assert str(error.value) == message
