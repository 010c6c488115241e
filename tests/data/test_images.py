"""data=image_folder: the pixels are Pillow's, the order that of the sorted paths, and what is no
image is refused with its name."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import Dataset, images, load
from runner.errors import ConfigError, RunError
from runner.plan import Plan
from runner.run.run_folder import read_columns, read_json
from runner.run.saved import load_run
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but
from tests.training import difference, prepare, train

WHOLE = ["data.val_fraction=0", "data.test_fraction=0"]  # all rows are training rows
SHAPE = (6, 5)


def pixels(number: int, *shape: int) -> np.ndarray:
    """Other pixels for every number; any color."""
    return np.random.default_rng(number).integers(0, 256, shape or SHAPE, dtype=np.uint8)


def save(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def folder(root: Path, num: int = 4, classes: Sequence[str] = ("cat", "dog")) -> Path:
    """`num` grey images for each class."""
    for i, name in enumerate(classes):
        for j in range(num):
            save(root / name / f"{j}.png", pixels(10 * i + j))
    return root


def section(root: Path, *more: str) -> Any:
    return parse(compose(["data=image_folder", f"data.path={root}", *more])).data


def dataset(root: Path, *more: str) -> Dataset:
    return section(root, *more).load()


def rows(data: Dataset) -> np.ndarray:
    """The training rows, as they were in the files."""
    assert data.x_scaling is not None
    raw = np.rint(data.x_scaling.invert(data.train.x))
    return raw.astype(np.uint8)


def unshuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the rows in the order of the files; how rows are split has its own tests."""
    monkeypatch.setattr("runner.data.splits.permutation", lambda num, *_: np.arange(num))


def test_rows_are_the_pixels_over_255_by_class_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class folders may hold folders. Classes that are numbers are in their order."""
    unshuffled(monkeypatch)
    order = [("2", "b.png"), ("2", "c/a.png"), ("2", "d.png"), ("10", "a.png")]
    for i, (name, file) in enumerate(order):
        save(tmp_path / name / file, pixels(i))
    (tmp_path / "2" / ".DS_Store").write_bytes(b"no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").write_text("beside the class folders")
    data = dataset(tmp_path, *WHOLE)
    assert data.classes == ("2", "10")
    assert data.train.y.tolist() == [0, 0, 0, 1]
    assert data.input_shape == (*SHAPE, 1)
    expected = np.stack([pixels(i) for i in range(4)])[..., None] / 255
    assert np.array_equal(data.train.x, expected)


def test_a_table_names_files_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unshuffled(monkeypatch)
    for i in range(3):
        save(tmp_path / "all" / f"{i}.png", pixels(i))
    table = tmp_path / "labels.csv"
    table.write_text("label,author,path\ndog,ada,2.png\ncat,bob,0.png\ndog,bob,1.png\n")
    data = dataset(tmp_path / "all", f"data.table={table}", *WHOLE)
    assert data.classes == ("cat", "dog")
    assert data.train.y.tolist() == [1, 0, 1]
    assert np.array_equal(rows(data)[..., 0], np.stack([pixels(i) for i in (2, 0, 1)]))


def test_folders_train_val_and_test_are_the_splits(tmp_path: Path) -> None:
    """A split without a folder is split off the training rows."""
    for name, num in (("train", 10), ("test", 3)):
        folder(tmp_path / name, num)
    data = dataset(tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [16, 4, 6]
    folder(tmp_path / "val", 2)
    data = dataset(tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [20, 4, 6]
    assert data.train.y.tolist() == [0] * 10 + [1] * 10
    assert np.array_equal(
        rows(data)[..., 0], [pixels(10 * i + j) for i in (0, 1) for j in range(10)]
    )


def test_splits_may_have_paths_of_their_own(tmp_path: Path) -> None:
    """They have the rows of folders train, val and test; a table's paths begin at its folder, and
    its order is kept. A class that only such a path has is refused, and so are two sources."""
    for name, num in (("train", 10), ("val", 2), ("test", 3)):
        folder(tmp_path / "all" / name, num)
    whole = dataset(tmp_path / "all")
    val, test = (tmp_path / "all" / name for name in ("val", "test"))
    (test / "some.csv").write_text("path,label\ndog/1.png,dog\ncat/2.png,cat\n")
    keys = [f"data.val_path={val}", f"data.test_path={test / 'some.csv'}"]
    data = dataset(tmp_path / "all" / "train", *keys)
    for split in ("train", "val"):
        found, expected = getattr(data, split), getattr(whole, split)
        np.testing.assert_array_equal(found.x, expected.x)
        np.testing.assert_array_equal(found.y, expected.y)
    np.testing.assert_array_equal(data.test.x, whole.test.x[[4, 2]])
    assert data.test.y.tolist() == [1, 0]
    with pytest.raises(ConfigError, match=r"must be null if data\.path holds a folder val"):
        dataset(tmp_path / "all", keys[0])
    with pytest.raises(ConfigError, match=r"which holds the folders train, val, test"):
        dataset(tmp_path / "all" / "train", f"data.val_path={tmp_path / 'all'}")
    save(val / "cow" / "1.png", pixels(1))
    with pytest.raises(ConfigError, match=r"the classes cow, which .* does not have; its classes"):
        dataset(tmp_path / "all" / "train", keys[0])


def test_images_are_resized_as_pillow_does(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", pixels(i, 9 + i, 7, 3))
    data = dataset(tmp_path, "data.size=[4, 8]", *WHOLE)
    expected = {
        np.asarray(
            Image.fromarray(pixels(i, 9 + i, 7, 3)).resize((8, 4), Image.Resampling.BILINEAR)
        ).tobytes()
        for i in range(4)
    }
    assert data.input_shape == (4, 8, 3)
    assert {row.tobytes() for row in rows(data)} == expected


def test_grey_is_a_weighted_sum_and_auto_is_grey_only_if_all_are(tmp_path: Path) -> None:
    colored = pixels(5, *SHAPE, 3)
    save(folder(tmp_path, 1) / "cat" / "colored.png", colored)
    assert dataset(tmp_path, *WHOLE).input_shape == (*SHAPE, 3)
    data = dataset(tmp_path, "data.color=grey", *WHOLE)
    assert data.input_shape == (*SHAPE, 1)
    grey = colored @ np.array([0.299, 0.587, 0.114])
    # Pillow has the weights in units of 2^-16, and rounds.
    assert min(np.abs(row[..., 0] - grey).max() for row in rows(data)) < 0.51
    (tmp_path / "cat" / "colored.png").unlink()
    assert dataset(tmp_path, *WHOLE).input_shape == (*SHAPE, 1)
    assert dataset(tmp_path, "data.color=rgb", *WHOLE).input_shape == (*SHAPE, 3)


def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path: Path) -> None:
    """6: the first row of pixels is the right side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        save(tmp_path / "ab"[i] / "0.png", pixels(i), exif=exif)
    found = {row[..., 0].tobytes() for row in rows(dataset(tmp_path, *WHOLE))}
    assert found == {np.rot90(pixels(i), -1).tobytes() for i in range(2)}


def test_standardized_channels_have_mean_0_and_deviation_1_over_the_training_rows(
    tmp_path: Path,
) -> None:
    for i in range(40):
        save(
            tmp_path / "ab"[i % 2] / f"{i}.png",
            pixels(i, *SHAPE, 3) // np.array([1, 2, 200], np.uint8),
        )
    data = dataset(tmp_path, "data.scaling=standardize")
    # Means of 720 numbers of size 1.
    np.testing.assert_allclose(data.train.x.mean(axis=(0, 1, 2)), 0, atol=1e-14)
    np.testing.assert_allclose(data.train.x.std(axis=(0, 1, 2)), 1, rtol=1e-14)
    assert np.abs(data.val.x.mean(axis=(0, 1, 2))).max() > 1e-4
    for i in range(40):  # a constant channel is only shifted
        save(tmp_path / "ab"[i % 2] / f"{i}.png", np.full(SHAPE, 7, np.uint8))
    assert not dataset(tmp_path, "data.scaling=standardize").train.x.any()


def test_pixels_without_scaling_are_warned_of(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path), "data.scaling=none")
    assert data.train.x.dtype == np.float32
    (warning,) = data.warnings
    assert warning.endswith("; data.scaling=unit scales them")
    assert dataset(tmp_path).warnings == ()


def test_the_number_of_threads_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = []
    for threads in (1, 7):
        monkeypatch.setattr(images, "_THREADS", threads)
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        data.append(dataset(folder(tmp_path, 30)).description())
    assert data[0] == data[1]


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    data = section(folder(tmp_path))
    first = load(data)
    assert load(data) is first
    save(tmp_path / "dog" / "new.png", pixels(9))
    assert len(load(data).train) + len(load(data).val) + len(load(data).test) == 9
    save(tmp_path / "dog" / "new.png", pixels(9) * 0)
    os.utime(tmp_path / "dog" / "new.png", (1, 1))
    assert 0.0 in [row.max() for s in ("train", "val", "test") for row in getattr(load(data), s).x]


def _unequal(root: Path) -> None:
    save(root / "dog" / "3.png", pixels(1, 4, 4))


def _text(root: Path) -> None:
    (root / "dog" / "note.txt").write_text("no image")


def _cut(root: Path) -> None:
    for name in ("1", "2"):
        file = save(root / "dog" / f"{name}.png", pixels(1, 40, 40))
        file.write_bytes(file.read_bytes()[:300])


def _bomb(root: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(root / "cat" / "0.png")


def _deep(root: Path) -> None:
    save(root / "cat" / "0.png", pixels(0).astype(np.uint16) * 200)


def _empty(root: Path) -> None:
    (root / "fox").mkdir()


def _single(root: Path) -> None:
    for file in (root / "dog").iterdir():
        file.unlink()
    (root / "dog").rmdir()


def _circle(root: Path) -> None:
    (root / "dog" / "again").symlink_to(root, target_is_directory=True)


def _circle_of_two(root: Path) -> None:
    (root / "cat" / "x").symlink_to(root / "dog", target_is_directory=True)
    (root / "dog" / "y").symlink_to(root / "cat", target_is_directory=True)


def _nowhere(root: Path) -> None:
    (root / "dog" / "0.png").unlink()
    (root / "dog" / "0.png").symlink_to(root / "gone.png")


def _pipe(root: Path) -> None:
    os.mkfifo(root / "dog" / "5.png")


def _beside(root: Path) -> None:
    save(root / "stray.PNG", pixels(0))


def _no_train(root: Path) -> None:
    (root / "cat").rename(root / "val")
    (root / "dog").rename(root / "test")


def _other_class(root: Path) -> None:
    folder(root / "train")
    folder(root / "val", classes=("cat", "cow"))
    for name in ("cat", "dog"):
        (root / name).rename(root / "train" / f"{name}s")


def _no_folders(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / name).rename(root.parent / name)


def _too_deep(root: Path) -> None:
    (root / "dog" / "/".join("d" * 60)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            _unequal,
            "data.size must be [height, width] for images of different sizes, got null: "
            "cat/0.png has 6 x 5 pixels, dog/3.png 4 x 4",
        ),
        (
            _text,
            "dog/note.txt is not an image in one of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, "
            "WEBP; remove it, or convert it",
        ),
        (
            _cut,
            "dog/1.png cannot be read as an image: image file is truncated (2 such files)",
        ),
        (
            _bomb,
            "cat/0.png has more pixels than Pillow's limit of 89478485; it may be a decompression "
            "bomb; shrink it",
        ),
        (
            _deep,
            "cat/0.png has more than 8 bits per channel (Pillow's mode I;16); save it with 8 bits",
        ),
        (_empty, "fox holds no images; add some, or remove it"),
        (_single, ". has images of a single class, cat; classification needs two"),
        (_circle, "dog/again is a link to a folder that contains it; remove the link"),
        (_circle_of_two, "cat/x/y is a link to a folder that contains it; remove the link"),
        (_nowhere, "dog/0.png cannot be read as an image: No such file or directory"),
        (_pipe, "dog/5.png is not a regular file, so not an image"),
        (
            _beside,
            "stray.PNG lies beside the class folders; move it into the folder of its class, or "
            "name the classes in data.table",
        ),
        (_no_train, ". holds the folders test, val, and no train with the training rows"),
        (
            _other_class,
            "val/cow has no class folder in train, which has cat, cats, dog, dogs",
        ),
        (
            _no_folders,
            "data.path must hold a folder of images for each class, got . without folders",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(
    break_it: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "images"
    break_it(folder(root))
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError) as raised:
        dataset(Path("."), "data.size=null")
    assert str(raised.value) == message


def test_folders_that_lie_too_deep_are_refused(tmp_path: Path) -> None:
    _too_deep(folder(tmp_path))
    with pytest.raises(ConfigError, match=r"d/d lies more than 50 folders deep$"):
        dataset(tmp_path)


def test_rows_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "memory", lambda: 2**20)
    with pytest.raises(
        ConfigError,
        match=r"data\.size must give rows that fit into this machine's 0\.000977 GiB of memory, "
        r"got 8 images of 200 x 200 x 1, which take 0\.00268 GiB",
    ):
        dataset(folder(tmp_path), "data.size=[200, 200]")


def test_splits_follow_classes_and_the_groups_of_a_table(tmp_path: Path) -> None:
    folder(tmp_path, 10)
    data = dataset(tmp_path, "data.split=stratified")
    for split in (data.train, data.val, data.test):
        assert split.y.sum() * 2 == len(split)
    table = tmp_path / "t.csv"
    lines = [
        f"{name}/{i}.png,{name},{group}"
        for name in ("cat", "dog")
        for i, group in enumerate("aabbccddee")
    ]
    table.write_text("\n".join(["path,label,group", *lines]) + "\n")
    data = dataset(tmp_path, f"data.table={table}", "data.split=grouped")
    group_of = {pixels(10 * i + j).tobytes(): j // 2 for i in (0, 1) for j in range(10)}
    scaling = data.x_scaling
    assert scaling is not None
    groups = [
        {group_of[np.rint(scaling.invert(x)).astype(np.uint8).tobytes()] for x in split.x}
        for split in (data.train, data.val, data.test)
    ]
    assert [len(found) for found in groups] == [3, 1, 1]
    assert set.union(*groups) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_8_bits_is_converted_as_pillow_does(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    for i in range(2):
        (tmp_path / "ab"[i]).mkdir()
        image = Image.fromarray(pixels(i, *SHAPE, 3)).convert("L" if mode == "LA" else "RGB")
        image.convert(mode).save(tmp_path / "ab"[i] / f"0.{suffix}")
    color = "L" if mode in ("1", "L", "LA") else "RGB"
    files = (tmp_path / "ab"[i] / f"0.{suffix}" for i in range(2))
    expected = {np.asarray(Image.open(file).convert(color)).tobytes() for file in files}
    assert {row.tobytes() for row in rows(dataset(tmp_path, *WHOLE))} == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "file,label\na.png,b\n",
            "data.table must have the columns path and label, got t.csv with file, label",
        ),
        ("path,label\na.png,b\nb.png,\n", "t.csv: line 3, column label is empty"),
        ("path,label\n", "t.csv holds no rows"),
        (
            "path,label\na.png,b\x1b\n",
            r"t.csv: line 2, column label has the control character '\x1b'; it cannot be used",
        ),
        (
            "path,label\na.png,b\nb.png,b\n",
            "t.csv has images of a single class, b; classification needs two",
        ),
        (
            "path,label\na.png,b\nb.png,c\n",
            "a.png cannot be read as an image: No such file or directory (2 such files)",
        ),
    ],
)
def test_a_table_that_names_no_images_is_refused(
    table: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(table)
    with pytest.raises(ConfigError) as raised:
        dataset(Path("."), "data.table=t.csv")
    assert str(raised.value) == message


def test_training_rows_of_one_class_are_refused(tmp_path: Path) -> None:
    """The only dog is in another split."""
    save(folder(tmp_path, 4, ["cat"]) / "dog" / "0.png", pixels(3))
    half = [f"data.{split}_fraction=0.4" for split in ("val", "test")]
    messages = []
    for seed in range(20):
        try:
            dataset(tmp_path, *half, f"data.split_seed={seed}")
        except ConfigError as error:
            messages.append(str(error))
    assert set(messages) == {
        f"the training rows of {tmp_path} have a single class, {name}; classification needs two"
        for name in ("cat", "dog")
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_the_whole_of_it_on_the_command_line(tmp_path: Path, backend: str) -> None:
    """Train, evaluate, and predict a folder and one image: the first column names the file."""
    folder(tmp_path / "images", 20)
    common = [f"backend={backend}", "trainer.max_epochs=2", "trainer.batch_size=8", "device=cpu"]
    (trained,) = forked(tmp_path, ("data=image_folder", "data.path=images", *common))
    assert (trained.status, trained.err) == (0, "")
    run = tmp_path / trained.folder
    task = (f"run={trained.folder}", "data.path=images")
    tested, all_of_it = forked(tmp_path, ("task=evaluate", task[0]), ("task=predict", *task))
    (one,) = forked(tmp_path, ("task=predict", task[0], "data.path=images/dog/7.png"))
    assert [done.err for done in (tested, all_of_it, one)] == ["", "", ""]
    assert read_json(run / "test.json")["rows"] == 8
    tables = [
        (run / name).read_text().splitlines() for name in ("predictions.csv", "predictions_2.csv")
    ]
    by_path = {line.split(",")[0]: line.split(",", 1)[1] for table in tables for line in table}
    expected = [f"{name}/{file}" for name in ("cat", "dog") for file in sorted(map(str, range(20)))]
    assert [*by_path] == ["path", *(f"{file}.png" for file in expected), "7.png"]
    # In one batch of 40 rows and alone: the order of a float32 sum of 30 products may differ.
    numbers = [
        [float(cell) for cell in by_path[file].split(",")[:4]] for file in ("dog/7.png", "7.png")
    ]
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-6)
    raw = np.stack(
        [pixels(10 * i + int(file.split("/")[1])) for i, file in enumerate(expected[:1])]
    )
    outputs = load_run(run).predict(raw[..., None])
    found = [float(cell) for cell in by_path["cat/0.png"].split(",")[:2]]
    np.testing.assert_allclose(outputs[0], found, rtol=0, atol=1e-6)
    assert len(read_columns(run / "metrics.csv")["epoch"]) == 2
    shutil.copytree(tmp_path / "images" / "dog", tmp_path / "new" / "dog")
    for path, rows in (
        ("images", "8 rows"),
        ("new", "20 new rows"),
    ):  # only its test rows, if known
        (measured,) = forked(tmp_path, ("task=evaluate", task[0], f"data.path={path}"))
        assert measured.err == ""
        assert f"({rows}, " in measured.out
    (tmp_path / "none").mkdir()
    (refused,) = forked(tmp_path, ("task=predict", task[0], "data.path=none"))
    assert refused.err == (
        "error: data.path must be a folder of images, got none, which has no files\n"
    )


def streamed(root: Path, *more: str) -> tuple[Plan, Plan]:
    """Plans with the images in memory, and with those that are decoded while training."""
    common = ["data=image_folder", f"data.path={root}", "model=linear", *more]
    common += ["trainer.batch_size=4", "trainer.max_epochs=2", "trainer.precision=float64"]
    return prepare(common), prepare([*common, "data.memory_mb=1"])


@pytest.mark.parametrize("scaling", ["unit", "standardize", "none"])
def test_images_that_are_decoded_while_training_are_the_same(scaling: str, tmp_path: Path) -> None:
    """Compare bits and order with images in memory, also with augmentation and mixup."""
    folder(tmp_path, num=12)
    save(tmp_path / "cat" / "0.png", pixels(3, *SHAPE, 3))  # colored, so all have three channels
    changes = ["data.augment.crop=2", "data.mixup=0.4"] if scaling == "unit" else []
    resident, read = streamed(tmp_path, f"data.scaling={scaling}", *changes)
    chunks = [[*prepared.chunks(0, None, adapt=False)] for prepared in (resident, read)]
    for name in ("x", "y") if changes else ("x",):
        fields = [
            chunk.fields[name] if chunk.fields else resident.run_spec().fields[name][chunk.rows]
            for chunk in chunks[0]
        ]
        expected = np.concatenate(fields)
        found = np.concatenate([chunk.fields[name] for chunk in chunks[1]])
        np.testing.assert_array_equal(found, expected)
    (a,), (b,) = (prepared.batches(prepared.data.val) for prepared in (resident, read))
    np.testing.assert_array_equal(a["x"], b["x"])
    descriptions = [prepared.data.description() for prepared in (resident, read)]
    for key in ("x_scaling", "x_range", "rows", "classes"):
        assert descriptions[0][key] == descriptions[1][key]
    assert resident.data.warnings == read.data.warnings


def test_the_number_of_threads_changes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, num=6)
    hashes, values = [], []
    for threads in (1, 3):
        monkeypatch.setattr(images, "_THREADS", threads)
        data = dataset(tmp_path, "data.memory_mb=1")
        hashes.append(data.description()["sha256"])
        values.append(data.train.x[np.arange(len(data.train))[::-1]])
    assert hashes[0] == hashes[1]
    np.testing.assert_array_equal(*values)


def test_an_image_that_is_gone_ends_the_run_in_one_line(tmp_path: Path) -> None:
    folder(tmp_path, num=6)
    rows = dataset(tmp_path, "data.memory_mb=1").train.x
    gone = rows.decoder.files[rows.rows[1]]
    gone.unlink()
    words = f"{re.escape(str(gone))} cannot be read as an image: No such file or directory"
    with pytest.raises(RunError, match=words):
        rows[:3]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_on_them_has_the_same_bits(backend: str, tmp_path: Path) -> None:
    folder(tmp_path, num=20)
    common = ["data=image_folder", f"data.path={tmp_path}", "model=linear", "trainer.max_epochs=2"]
    runs = [train(backend, [*common, f"data.memory_mb={size}"]) for size in ("null", "1")]
    np.testing.assert_array_equal(runs[0].losses, runs[1].losses)
    assert difference(runs[0].state.weights, runs[1].state.weights) == 0
