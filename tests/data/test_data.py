"""Data sets: the embedded ones are scikit-learn's, a user's own files are checked before anything
trains."""

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets
from sklearn.datasets import load_diabetes, load_digits

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import Dataset, Split
from runner.errors import ConfigError
from runner.random import permutation
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but
from tests.training import prepare


def dataset(*overrides: str) -> Dataset:
    return parse(compose(list(overrides))).data.load()


def splits(data: Dataset) -> list[Split]:
    return [data.train, data.val, data.test]


def whole(data: Dataset, part: str) -> np.ndarray:
    """x or y of all splits."""
    return np.concatenate([getattr(split, part) for split in splits(data)])


def in_order(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows with their targets, sorted, so that two orders of the same rows compare."""
    rows = np.column_stack([x.reshape(len(x), -1), y.reshape(len(y), -1)])
    return rows[np.lexsort(rows.T[::-1])]


def test_digits_are_scikit_learn_s_levels_over_16() -> None:
    data, bunch = dataset("data=digits"), load_digits()
    assert np.array_equal(
        in_order(whole(data, "x"), whole(data, "y")), in_order(bunch.data / 16, bunch.target)
    )
    assert [len(split) for split in splits(data)] == [1280, 256, 261]
    assert data.task == "classification"
    assert data.classes == tuple("0123456789")
    assert data.train.y.dtype == np.int64


def test_digits_as_images_are_the_same_rows_in_8_by_8() -> None:
    flat, images = dataset("data=digits"), dataset("data=digits", "data.images=true")
    assert images.input_shape == (8, 8, 1)
    for a, b in zip(splits(flat), splits(images), strict=True):
        assert np.array_equal(a.x, b.x.reshape(-1, 64))
        assert np.array_equal(a.y, b.y)
    target = load_digits()
    first = np.flatnonzero((target.data / 16 == images.train.x[0].reshape(-1)).all(axis=1))[0]
    assert np.array_equal(images.train.x[0][:, :, 0], target.images[first] / 16)


def test_diabetes_is_scikit_learn_s_unscaled_data_standardized_over_the_training_rows() -> None:
    data, bunch = dataset("data=diabetes"), load_diabetes(scaled=False)
    assert [len(split) for split in splits(data)] == [310, 66, 66]
    assert data.features == tuple(bunch.feature_names)
    assert data.x_scaling is not None
    assert data.y_scaling is not None
    raw = in_order(data.x_scaling.invert(whole(data, "x")), data.y_scaling.invert(whole(data, "y")))
    # Scaled and scaled back: two roundings each way, of values up to 350.
    np.testing.assert_allclose(raw, in_order(bunch.data, bunch.target), rtol=0, atol=1e-12)
    for values in (data.train.x, data.train.y):
        # Means of 310 numbers of size 1.
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-14)
        np.testing.assert_allclose(values.std(axis=0), 1, rtol=1e-14)
    assert abs(data.test.x.mean()) > 1e-6  # the other splits have no say in the scaling


@pytest.mark.parametrize(
    ("name", "rows_of_splits"),
    [("iris", [90, 30, 30]), ("wine", [106, 36, 36]), ("breast_cancer", [341, 114, 114])],
)
def test_a_table_is_scikit_learn_s_standardized_over_the_training_rows(
    name: str, rows_of_splits: list[int]
) -> None:
    data, bunch = dataset(f"data={name}"), getattr(datasets, f"load_{name}")()
    assert [len(split) for split in splits(data)] == rows_of_splits
    assert data.features == tuple(bunch.feature_names)
    assert data.classes == tuple(bunch.target_names)
    assert data.train.y.dtype == np.int64
    assert data.x_scaling is not None
    order = np.argsort(permutation(len(bunch.data), 0, "split"))
    raw = data.x_scaling.invert(whole(data, "x"))[order]
    assert np.array_equal(whole(data, "y")[order], bunch.target)
    # Scaled and scaled back: four roundings, relative to each column's largest value.
    largest = np.abs(bunch.data).max(axis=0)
    np.testing.assert_allclose(raw / largest, bunch.data / largest, rtol=0, atol=1e-15)
    # Means of up to 341 numbers of size 1.
    np.testing.assert_allclose(data.train.x.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(data.train.x.std(axis=0), 1, rtol=1e-14)


def write_npz(path: Path, **arrays: Any) -> list[str]:
    """The overrides that read it."""
    np.savez(path, **arrays)
    return ["data=npz", f"data.path={path}"]


def write_csv(path: Path, text: str, *more: str) -> list[str]:
    path.write_text(text, encoding="utf-8")
    return ["data=csv", f"data.path={path}", *more]


def rows(num: int = 20, features: int = 3) -> np.ndarray:
    """Every value another, so that a row is known by any of them."""
    return np.arange(num * features, dtype=np.float64).reshape(num, features)


LABELS = np.arange(20) % 4


def test_the_splits_of_a_file_are_disjoint_and_together_all_of_it(tmp_path: Path) -> None:
    data = dataset(
        *write_npz(tmp_path / "a.npz", x=rows(), y=LABELS),
        "data.val_fraction=0.25",
        "data.test_fraction=0.1",
    )
    assert [len(split) for split in splits(data)] == [13, 5, 2]
    assert np.array_equal(in_order(whole(data, "x"), whole(data, "y")), in_order(rows(), LABELS))
    assert data.classes == ("0", "1", "2", "3")


def test_the_split_depends_on_its_seed_and_not_on_the_run_s(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "a.npz", x=rows(), y=LABELS)
    first, other_run, other_split = (
        dataset(*file),
        dataset(*file, "seed=5"),
        dataset(*file, "data.split_seed=5"),
    )
    assert np.array_equal(first.test.x, other_run.test.x)
    assert not np.array_equal(first.test.x, other_split.test.x)


@pytest.mark.parametrize(("val", "test"), [(0, 0), (0, 0.5), (0.5, 0)])
def test_a_split_may_be_empty_but_the_training_rows(
    tmp_path: Path, val: float, test: float
) -> None:
    file = write_npz(tmp_path / "a.npz", x=rows(), y=LABELS)
    data = dataset(*file, f"data.val_fraction={val}", f"data.test_fraction={test}")
    assert [len(split) for split in splits(data)] == [
        20 - int(20 * val) - int(20 * test),
        20 * val,
        20 * test,
    ]


def test_npz_holds_images_and_targets_of_several_columns(tmp_path: Path) -> None:
    x, y = rows(20, 12).reshape(20, 2, 3, 2), rows(20, 2)
    data = dataset(*write_npz(tmp_path / "a.npz", x=x, y=y), "data.task=regression")
    assert data.input_shape == (2, 3, 2)
    assert data.train.y.shape == (12, 2)
    assert data.classes == ()
    one = dataset(
        *write_npz(tmp_path / "b.npz", x=x.astype(np.uint8), y=y[:, 0]), "data.task=regression"
    )
    assert one.train.y.shape == (12, 1)
    assert one.train.x.dtype == np.float32  # which holds what the file holds


def test_standardize_leaves_a_constant_column_at_0(tmp_path: Path) -> None:
    x = np.column_stack([rows(20, 1), np.full(20, 7.0)])
    data = dataset(*write_npz(tmp_path / "a.npz", x=x, y=LABELS), "data.standardize=true")
    assert (whole(data, "x")[:, 1] == 0).all()
    np.testing.assert_allclose(data.train.x[:, 0].std(), 1, rtol=1e-14)


@pytest.mark.parametrize(
    "constant", [0.1, 0.3, 1e9 + 0.1, -1e-3, 1e160, 1e300, 1e-170, 5e-324, 0.0]
)
def test_a_constant_is_only_shifted_whatever_its_mean(tmp_path: Path, constant: float) -> None:
    """Also one that rounding has moved by a unit in the last place. 1,001 rows: their mean is
    rounded."""
    moved = np.full(1001, constant)
    moved[::3] = np.nextafter(constant, np.inf)
    x = np.column_stack([np.full(1001, constant), moved])
    data = dataset(
        *write_npz(tmp_path / "a.npz", x=x, y=np.arange(1001) % 4), "data.standardize=true"
    )
    assert data.x_scaling is not None
    assert data.x_scaling.scale.tolist() == [1, 1]
    assert (whole(data, "x")[:, 0] == 0).all()
    assert np.abs(whole(data, "x")[:, 1]).max() <= np.spacing(abs(constant))
    assert data.x_scaling.apply(np.array([[constant + 0.1] * 2])).max() <= 0.2


@pytest.mark.parametrize("size", [1e160, 1e300, 1e307, 1e-170, 1e-300])
def test_values_whose_squares_leave_float64_are_standardized_as_any(
    tmp_path: Path, size: float
) -> None:
    """To a few roundings of what the same values of size 1 give; and data.json holds numbers
    alone."""
    x, y = rows(40, 2) / 80, rows(40, 1) / 40
    options = ("data.standardize=true", "data.task=regression")
    plain = dataset(*write_npz(tmp_path / "a.npz", x=x, y=y), *options)
    data = dataset(*write_npz(tmp_path / "b.npz", x=x * size, y=y * size), *options)
    for part in ("x", "y"):
        np.testing.assert_allclose(whole(data, part), whole(plain, part), rtol=0, atol=1e-14)
    assert data.y_scaling is not None
    np.testing.assert_allclose(
        data.y_scaling.scale / size, np.std(plain.train.y) * plain.y_scaling.scale, rtol=1e-14
    )
    json.dumps(data.description(), allow_nan=False)


@pytest.mark.parametrize(
    ("size", "said"), [(1e160, "too large for float32"), (1e-170, "float32 rounds to 0")]
)
def test_values_that_float32_does_not_hold_are_refused_unless_scaled(
    tmp_path: Path, size: float, said: str
) -> None:
    file = write_npz(tmp_path / "a.npz", x=(1 + rows()) * size, y=LABELS)
    with pytest.raises(ConfigError, match=f"data: x has .*{said}"):
        prepare(file)
    prepare([*file, "data.standardize=true"])
    prepare([*file, "trainer.precision=float64"])


def test_a_row_too_far_from_the_training_rows_to_scale_is_refused(tmp_path: Path) -> None:
    """1e-300 apart in training, 1e300 elsewhere: 1e600 standard deviations."""
    numbers = np.arange(20.0)[:, None]
    held_out = int(dataset(*write_npz(tmp_path / "a.npz", x=numbers, y=LABELS)).val.x[0, 0])
    x = numbers * 1e-300
    x[held_out] = 1e300
    with pytest.raises(ConfigError, match="data: x has values up to inf, too large for float32"):
        prepare([*write_npz(tmp_path / "b.npz", x=x, y=LABELS), "data.standardize=true"])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (range(1, 11), [str(i) for i in range(1, 11)]),
        (range(0, 500, 50), [str(i) for i in range(0, 500, 50)]),
        ([-1, 1], ["-1", "1"]),
        ([0, 2**40], ["0", str(2**40)]),
    ],
)
def test_labels_of_an_npz_are_compacted_and_keep_their_names(
    tmp_path: Path, labels: Sequence[int], classes: list[str]
) -> None:
    y = np.resize(np.array([*labels]), 60)
    data = dataset(*write_npz(tmp_path / "a.npz", x=rows(60), y=y))
    assert list(data.classes) == classes
    named = [int(data.classes[label]) for label in whole(data, "y")]
    assert sorted(zip(whole(data, "x")[:, 0], named, strict=True)) == [
        *zip(rows(60)[:, 0], y, strict=True)
    ]


def test_what_is_probably_not_meant_is_said(tmp_path: Path) -> None:
    """Before the training, as warnings: pixels as they are, a column that counts, numbers taken for
    labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    file = write_npz(tmp_path / "a.npz", x=pixels, y=LABELS)
    (said,) = dataset(*file).warnings
    assert said.endswith(
        f"x has unscaled values up to {pixels.max()}; data.standardize=true scales them"
    )
    assert dataset(*file, "data.standardize=true").warnings == ()
    assert dataset(*write_npz(tmp_path / "b.npz", x=pixels / 255, y=LABELS)).warnings == ()
    cells = [[i + 1, i % 7, i / 8] for i in range(30)]
    text = csv_text(["number", "a", "price"], cells)
    assert dataset(*write_csv(tmp_path / "a.csv", text)).warnings == (
        "column number counts the rows; if it is an index, leave it out with data.drop",
        "column price has 30 different numbers in 30 rows, each used as a class; "
        "set data.task=regression to predict numbers",
    )
    counted = "has 21 different numbers in 200 rows, each used as a class"  # 9.5 rows of each
    cells = [[i % 7 + 0.5, 10 * (i % 21)] for i in range(200)]
    (said,) = dataset(*write_csv(tmp_path / "b.csv", csv_text(["a", "price"], cells))).warnings
    assert said.startswith(f"column price {counted}")
    x, y = np.array(cells)[:, :1], np.array(cells)[:, 1].astype(int)
    (said,) = dataset(*write_npz(tmp_path / "c.npz", x=x, y=y)).warnings
    assert said.startswith(f"{tmp_path / 'c.npz'}: y {counted}")
    assert dataset(*write_npz(tmp_path / "d.npz", x=x, y=y % 20)).warnings == ()
    assert dataset(*write_npz(tmp_path / "e.npz", x=x, y=y), "data.task=regression").warnings == ()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": [[1.0, 2.0], [3.0, np.nan]], "y": [0, 1]},
            r"row 1, column x\[1\] is nan; all values must be finite",
        ),
        (
            {"x": [[np.inf, 2.0], [3.0, 4.0]], "y": [0, 1]},
            r"row 0, column x\[0\] is inf; all values must be finite",
        ),
        (
            {"x": [[[1.0], [-np.inf]]], "y": [0]},
            r"row 0, column x\[1, 0\] is -inf; all values must be finite",
        ),
        (
            {"x": [[1.0], [2.0]], "y": [7, 7]},
            "y has a single class, 7; classification needs two",
        ),
        (
            {"x": [[1.0], [2.0]], "y": [0.0, 1.0]},
            (
                r"y must be labels, integers of shape \[N\], got float64 of shape \[2\]; "
                r"set data.task=regression to predict"
            ),
        ),
        (
            {"x": [[1.0], [2.0]], "y": [[0], [1]]},
            r"y must be labels, integers of shape \[N\], got int64 of shape \[2, 1\]",
        ),
        (
            {"x": [[1.0], [2.0]], "y": [[0, 1], [1, 2]]},
            (
                r"y must be labels, integers of shape \[N\], got int64 of shape \[2, 2\]; "
                r"data.task=transcription takes sequences"
            ),
        ),
        (
            {"x": [[1.0], [2.0]], "y": ["a", "b"]},
            r"y must be labels, integers of shape \[N\], got <U1",
        ),
        ({"x": [[1.0], [2.0], [3.0]], "y": [0, 1]}, "x has 3 rows, y has 2"),
        (
            {"x": [1.0, 2.0], "y": [0, 1]},
            r"x must hold a row of values per sample, got the shape \[2\]",
        ),
        (
            {"x": np.empty((2, 0)), "y": [0, 1]},
            r"x must hold a row of values per sample, got the shape \[2, 0\]",
        ),
        ({"x": 5.0, "y": [0]}, r"x must be an array of numbers, got float64 of shape \[\]"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, "x must be an array of numbers, got <U1"),
        ({"x": [[1j], [2j]], "y": [0, 1]}, "x must be an array of numbers, got complex128"),
        ({"x": np.empty((0, 3)), "y": np.empty(0, dtype=np.int64)}, "holds no rows"),
        ({"x": [[1.0]]}, "must hold arrays x and y, got x"),
        ({"features": [[1.0]], "labels": [0]}, "must hold arrays x and y, got features, labels"),
        ({}, "must hold arrays x and y, got none"),
    ],
)
def test_an_npz_that_cannot_be_trained_on_is_refused_with_the_place(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    path = tmp_path / "bad.npz"
    with pytest.raises(ConfigError, match=message) as refused:
        dataset(*write_npz(path, **{name: np.asarray(value) for name, value in arrays.items()}))
    assert str(path) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_targets_that_are_not_finite_are_refused_with_the_place(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "a.npz", x=rows(2), y=np.array([[1.0, 2.0], [3.0, np.nan]]))
    with pytest.raises(ConfigError, match=r"row 1, column y\[1\] is nan"):
        dataset(*file, "data.task=regression")


def test_a_pickle_in_an_npz_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "sprung").write_text, ("!",))

    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([[Trap()]], dtype=object), y=np.array([0]))
    with pytest.raises(ConfigError, match="cannot be read as NPZ: Object arrays cannot be loaded"):
        dataset("data=npz", f"data.path={path}")
    assert not (tmp_path / "sprung").exists()


def damaged_zip(path: Path) -> None:
    np.savez_compressed(path, x=rows(200), y=np.zeros(200, dtype=np.int64))
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)


def plain_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, rows())


def in_both_headers(path: Path, local: int, central: int, change: Callable[[int], int]) -> None:
    """An NPZ with a byte changed in the local and in the central header of every member."""
    np.savez(path, x=rows(), y=LABELS)
    content = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = -1
        while (at := content.find(sign, at + 1)) >= 0:
            content[at + place] = change(content[at + place])
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    """The bit of the flags that says so."""
    in_both_headers(path, 6, 8, lambda flags: flags | 1)


def unknown_compression(path: Path) -> None:
    in_both_headers(path, 8, 10, lambda _: 77)


def with_member(header: bytes) -> Callable[[Path], None]:
    """x.npy is this NPY header and no data."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(
                "x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            )

    return write


@pytest.mark.parametrize(
    "write",
    [
        encrypted,
        unknown_compression,
        with_member(b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999, 9)}\n"),
        with_member(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}\n"),
        with_member(b"(" * 20000),
        with_member(b"{'descr': 'no such type', 'fortran_order': False, 'shape': (1,)}\n"),
        with_member(b" " * 60000 + b"{}\n"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 and no more"),
        lambda path: path.write_text("x,y\n1,2\n"),
        damaged_zip,
        plain_npy,
    ],
    ids=[
        "encrypted",
        "compression",
        "huge",
        "negative",
        "nested",
        "type",
        "header",
        "empty",
        "cut",
        "text",
        "damaged",
        "npy",
    ],
)
def test_a_file_that_is_no_npz_is_refused_by_name(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(ConfigError, match=rf"{path} cannot be read as NPZ") as refused:
        dataset("data=npz", f"data.path={path}")
    assert len(str(refused.value).splitlines()) == 1


def test_members_that_are_no_arrays_are_refused_and_others_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"no array")
        archive.writestr("y.npy", b"nor this")
        archive.writestr("z\x1b[31m.npy", b"")
    with pytest.raises(ConfigError, match="x must be an array in NPY format, got other bytes"):
        dataset("data=npz", f"data.path={path}")
    (tmp_path / "b.npz").write_bytes(path.read_bytes().replace(b"y.npy", b"Y.npy"))
    with pytest.raises(ConfigError, match=r"must hold arrays x and y, got Y, x, z\\x1b\[31m"):
        dataset("data=npz", f"data.path={tmp_path / 'b.npz'}")
    np.savez(path, x=rows(), y=LABELS, objects=np.array([{}], dtype=object))
    assert len(dataset("data=npz", f"data.path={path}").train) == 12


@pytest.mark.parametrize("data", ["npz", "csv", "npy"])
@pytest.mark.parametrize("kind", ["pipe", "device", "too long", "user"])
def test_only_a_regular_file_is_opened(tmp_path: Path, data: str, kind: str) -> None:
    """A pipe or a device may never end; of a path that cannot be, the reason is said."""
    os.mkfifo(tmp_path / "pipe")
    path = {
        "pipe": f"{tmp_path}/pipe",
        "device": "/dev/zero",
        "too long": "x" * 300,
        "user": "'~nobody_here/a'",
    }[kind]
    is_open = {"pipe": "is a pipe or a device", "device": "is a pipe or a device"}.get(
        kind, "cannot be opened: "
    )
    if data == "npy" and kind in ("pipe", "device"):
        is_open = "is not a folder"
    with pytest.raises(
        ConfigError, match=f"data.path must be a (file|folder), got .*, which {is_open}"
    ):
        dataset(f"data={data}", f"data.path={path}")


@pytest.mark.parametrize("data", ["npz", "csv"])
@pytest.mark.parametrize("name", ["nowhere", ""])
def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path, data: str, name: str) -> None:
    path = tmp_path / name  # with no name it is a folder
    reason = "does not exist" if name else "is a folder"
    with pytest.raises(ConfigError, match=f"data.path must be a file, got {path}, which {reason}"):
        dataset(f"data={data}", f"data.path={path}")


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.9, 0.4)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(
    tmp_path: Path, val: float, test: float
) -> None:
    file = write_npz(tmp_path / "a.npz", x=rows(), y=LABELS)
    with pytest.raises(
        ConfigError, match=r"data.val_fraction \+ data.test_fraction leave no training rows: "
    ):
        dataset(*file, f"data.val_fraction={val}", f"data.test_fraction={test}")


def csv_text(header: Sequence[str], cells: Sequence[Sequence[object]]) -> str:
    return "\n".join(",".join(map(str, row)) for row in [header, *cells]) + "\n"


UNSPLIT = ("data.val_fraction=0", "data.test_fraction=0", "data.standardize=false")


def test_a_csv_has_a_header_numbers_and_its_target_in_the_last_column(tmp_path: Path) -> None:
    cells = [[i, i / 8, ["no", "yes"][i % 2]] for i in range(10)]
    data = dataset(*write_csv(tmp_path / "a.csv", csv_text(["a", "b", "bought"], cells), *UNSPLIT))
    assert data.features == ("a", "b")
    assert data.classes == ("no", "yes")
    x = np.array([[i, i / 8] for i in range(10)])
    assert np.array_equal(in_order(data.train.x, data.train.y), in_order(x, np.arange(10) % 2))


def test_a_target_can_be_any_column_and_a_number(tmp_path: Path) -> None:
    text = csv_text(["price", "a", "b"], [[10.5, 1, 2], [20.5, 3, 4]])
    data = dataset(
        *write_csv(tmp_path / "a.csv", text, *UNSPLIT), "data.target=price", "data.task=regression"
    )
    assert data.features == ("a", "b")
    assert np.array_equal(in_order(data.train.x, data.train.y), [[1, 2, 10.5], [3, 4, 20.5]])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["b", "a", "10"], ("10", "a", "b")),
        (["1.0", "1", "0"], ("0", "1", "1.0")),
        (["nan", "1", "0"], ("0", "1", "nan")),
        (["ja", " ja ", "nein"], ("ja", "nein")),
    ],
)
def test_labels_are_sorted_as_numbers_if_all_are(
    tmp_path: Path, labels: list[str], classes: tuple[str, ...]
) -> None:
    text = csv_text(["a", "y"], [[i, label] for i, label in enumerate(labels)])
    data = dataset(*write_csv(tmp_path / "a.csv", text, *UNSPLIT))
    assert data.classes == classes
    assert [classes[i] for i in data.train.y[np.argsort(data.train.x[:, 0])]] == [
        label.strip() for label in labels
    ]


def test_a_byte_order_mark_blank_lines_and_spaces_are_no_part_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffa , y\r\n\r\n 1 , u\r\n2,v\r\n\r\n".encode())
    data = dataset("data=csv", f"data.path={path}", *UNSPLIT)
    assert data.features == ("a",)
    assert data.classes == ("u", "v")
    assert sorted(data.train.x[:, 0]) == [1, 2]


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (
            "a,b,y\n1,2,u\n3,nan,v\n",
            [],
            r"missing cells in b \(1, first in line 3\); data.missing=median fills them",
        ),
        (
            "a,b,y\n1,2,u\n3,-inf,v\n",
            [],
            "line 3, column b is -inf; all values must be finite",
        ),
        (
            "a,b,y\n1,1e999,u\n",
            [],
            "line 2, column b is inf; all values must be finite",
        ),
        ("a,b,y\n1,2,u\n3,v\n", [], "line 3 has 2 cells, the header has 3"),
        ("a,b,y\n1,2,u\n3,4,v,5\n", [], "line 3 has 4 cells, the header has 3"),
        (
            "a,b,y\n1,2,u\n3,four,v\n",
            [],
            r"line 3, column b is 'four' where other cells are numbers; data.categories=\[b\] .*; "
            r"data.drop=\[b\] leaves it out",
        ),
        (
            "a,b,y\n1,,u\n",
            [],
            r"column b is empty; data.drop=\[b\] leaves it out",
        ),
        ("a,b,y\n1,2,u\n3,4,\n", [], "line 3, column y is empty; a label is needed"),
        (
            "a,y\n1,u\n",
            ["data.task=regression"],
            "line 2, column y is 'u'; a target must be a number, data.task=classification",
        ),
        (
            "a,price\n1,2\n3,nan\n",
            ["data.task=regression"],
            "line 3, column price is empty; a target is needed, or data.missing_target=drop",
        ),
        # as an editor counts: blank lines, and lines inside quotes
        ("a,y\n\n\n1,u\n\nx,v\n", [], "line 6, column a is 'x'"),
        ('a,y\n1,"u\nv\nw"\nx,v\n', [], "line 5, column a is 'x'"),
        ('\n"a",y\r\n1,u\r\nx,v\r\n', [], "line 4, column a is 'x'"),
        (
            "a,b,c,y\n1,red,,u\n2,3,,v\n4,blue,5,w\n",
            [],
            (
                "line 2, column b is 'red' where other cells are numbers; .*; missing cells in "
                r"c \(2, first in line 2\); data.missing=median"
            ),
        ),
        (
            ",".join(f"c{i}" for i in range(12)) + ",y\n" + "1," * 12 + "u\n" + "?," * 12 + "v\n",
            [],
            r"column c7 is '\?' .*; 4 more problems$",
        ),
        (
            "a,y\n1,u\n2,u\n3,u\n",
            [],
            "column y has a single class, u; classification needs two",
        ),
        (",a,y\n0,1,u\n1,2,v\n", [], "column 1 has no name; if it is an index, leave it"),
        ("a,,y\n0,1,u\n1,2,v\n", [], "column 2 has no name"),
        (
            "a;b;y\n1;2;u\n",
            ["data.separator=tab"],
            "has no column besides the target a;b;y; data.separator=semicolon may be what",
        ),
        ("a,b\x1b[31m,y\n1,2,u\n", [], r"line 1 has the control character '\\x1b'; remove it"),
        ("a,b,y\n1,2,u\n1,2,\x00v\n", [], r"line 3 has the control character '\\x00'; remove it"),
        ("a,b,y\n1,2,u\n\x1a", [], r"line 3 has the control character '\\x1a'; remove it"),
        ('a,"b\nc",y\n1,2,u\n', [], r"the column name 'b\\nc' contains a line break"),
        ("a,y\n1," + "u" * 200_000 + "\n", [], "column y has a single class, u+"),
        (
            "a,y\n1,u\n",
            ["data.target=Y"],
            "data.target must be a column of .*, got Y; did you mean y",
        ),
        ("a,a,y\n1,2,u\n", [], "the header repeats column names: a$"),
        ("y\nu\nv\n", [], "has no column besides the target y"),
        ("a,y\n", [], "holds no rows"),
        ("", [], "is empty"),
        ("\n\n", [], "is empty"),
    ],
)
def test_a_csv_that_cannot_be_trained_on_is_refused_with_row_and_column(
    tmp_path: Path, text: str, more: list[str], message: str
) -> None:
    path = tmp_path / "bad.csv"
    with pytest.raises(ConfigError, match=message) as refused:
        dataset(*write_csv(path, text, *more))
    assert str(path) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_csv_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("größe,y\n1,u\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=f"{path} cannot be read as CSV in UTF-8"):
        dataset("data=csv", f"data.path={path}")


def test_the_description_tells_two_data_sets_apart(tmp_path: Path) -> None:
    a = dataset(*write_npz(tmp_path / "a.npz", x=rows(), y=LABELS)).description()
    again = dataset(*write_npz(tmp_path / "b.npz", x=rows(), y=LABELS)).description()
    changed = rows()
    changed[3, 1] += 1e-9
    other = dataset(*write_npz(tmp_path / "c.npz", x=changed, y=LABELS)).description()
    assert a == again
    assert a["sha256"] != other["sha256"]
    assert a["rows"] == {"train": 12, "val": 4, "test": 4}


@pytest.mark.parametrize(
    ("model", "shape"),
    [("mlp", (64,)), ("linear", (64,)), ("cnn", (8, 8, 1)), ("resnet", (8, 8, 1))],
)
def test_digits_are_images_for_a_model_that_needs_them(model: str, shape: tuple[int, ...]) -> None:
    prepared = prepare([f"model={model}"])
    assert prepared.data.input_shape == prepared.network.input_shape == shape
    expected = dataset("data.images=true" if len(shape) > 1 else "data.images=false").train.x
    assert np.array_equal(prepared.data.train.x, expected)


@pytest.mark.parametrize(
    ("layers", "images"),
    [
        (
            "[{layer:reshape,shape:[8,8,1]},{layer:conv2d,filters:2,kernel_size:3},{layer:flatten}",
            False,
        ),
        ("[{layer:dropout,rate:0.1},{layer:batch_norm},{layer:max_pool},{layer:flatten}", True),
        (
            "[{layer:residual,layers:[{layer:conv2d,filters:1,kernel_size:3}]},"
            "{layer:global_average_pool}",
            True,
        ),
        (
            "[{layer:residual,layers:[{layer:activation,function:relu}]},{layer:average_pool},"
            "{layer:flatten}",
            True,
        ),
        ("[{layer:residual,layers:[{layer:dense,units:64}]}", False),
        ("[{layer:activation,function:relu}", False),
    ],
)
def test_the_first_layer_that_asks_for_axes_says_what_a_model_needs(
    layers: str, images: bool
) -> None:
    prepared = prepare([f"model.layers={layers},{{layer:dense,units:outputs}}]"])
    assert (len(prepared.data.input_shape) == 3) == images


def test_numbers_with_underscores_are_text(tmp_path: Path) -> None:
    """Python reads 1_000 as 1000; pandas and spreadsheets do not."""
    path = tmp_path / "rows.csv"
    path.write_text("a,y\n" + "1_000,1\n2,2\n" * 20)
    config = parse(compose(["data=csv", f"data.path={path}", "data.task=regression"]))
    with pytest.raises(
        ConfigError,
        match="line 2, column a is '1_000' where other cells are numbers",
    ):
        config.data.load()


def test_targets_without_a_column_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.ones((20, 2)), y=np.ones((20, 0)))
    config = parse(compose(["data=npz", f"data.path={path}", "data.task=regression"]))
    with pytest.raises(
        ConfigError, match=r"y must hold a target per row, got the shape \[20, 0\]$"
    ):
        config.data.load()


def test_images_with_the_channels_first_are_read_as_the_same_images(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((20, 5, 4, 3))
    first = np.stack([np.stack([row[:, :, c] for c in range(3)]) for row in x])
    last = dataset(*write_npz(tmp_path / "last.npz", x=x, y=LABELS))
    read = write_npz(tmp_path / "first.npz", x=first, y=LABELS)
    assert dataset(*read, "data.channels=first").description() == last.description()
    assert dataset(*read).input_shape == (3, 5, 4)
    with pytest.raises(
        ConfigError,
        match=r"data\.channels must be last if x is not \[N, C, H, W\], got first and .*flat\.npz "
        r"with the shape \[20, 3\]",
    ):
        dataset(*write_npz(tmp_path / "flat.npz", x=rows(), y=LABELS), "data.channels=first")


@pytest.mark.parametrize(
    ("shape", "is_warned"),
    [
        ((20, 3, 8, 8), True),
        ((20, 1, 8, 8), True),
        ((20, 8, 8, 3), False),
        ((20, 2, 8, 8), False),
        ((20, 3, 8, 7), False),
        ((20, 3, 3, 3), False),
        ((20, 3, 8), False),
    ],
)
def test_rows_that_seem_to_have_the_channels_first_are_warned_of(
    tmp_path: Path, shape: tuple[int, ...], is_warned: bool
) -> None:
    data = dataset(*write_npz(tmp_path / "a.npz", x=np.ones(shape), y=LABELS))
    assert data.warnings == (
        (
            f"{tmp_path}/a.npz: rows of x have the shape {list(shape[1:])}; if these are "
            f"{shape[1]} channels of 8 x 8 pixels, set data.channels=first",
        )
        if is_warned
        else ()
    )


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_predictions_take_rows_with_the_channels_first(tmp_path: Path, backend: str) -> None:
    """A run on the file with the channels first and one on the other file are the same run."""
    x = np.random.default_rng(0).random((60, 8, 8, 3))
    np.savez(tmp_path / "last.npz", x=x, y=np.arange(60) % 4)
    np.savez(tmp_path / "first.npz", x=x.transpose(0, 3, 1, 2), y=np.arange(60) % 4)
    common = ("data=npz", f"backend={backend}", "device=cpu", "trainer.max_epochs=1")
    runs = forked(
        tmp_path,
        (*common, "data.path=last.npz"),
        (*common, "data.path=first.npz", "data.channels=first"),
    )
    assert [done.err for done in runs] == ["", ""]
    files = ("last.npz", "first.npz")
    tasks = [
        ("task=predict", f"run={done.folder}", f"data.path={file}")
        for done, file in zip(runs, files, strict=True)
    ]
    assert [done.err for done in forked(tmp_path, *tasks)] == ["", ""]
    found = [np.load(tmp_path / done.folder / "predictions.npz")["outputs"] for done in runs]
    assert np.array_equal(*found)
    (refused,) = forked(tmp_path, (*tasks[1][:2], "data.path=last.npz"))
    assert refused.err == (
        "error: last.npz: a row has shape [8, 8, 3]; the run was trained on [3, 8, 8]\n"
    )
