"""data=npy: rows that stay in their files. What it trains is what data=npz trains on the same
rows."""

import os
from pathlib import Path

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data.dataset import Dataset
from runner.errors import ConfigError
from runner.run.run_folder import read_json
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but
from tests.training import difference, prepare, train

MODEL = [
    "model=linear",
    "trainer.max_epochs=2",
    "trainer.batch_size=16",
    "trainer.precision=float64",
]
X = np.random.default_rng(1).random((210, 8, 8, 1), dtype=np.float32)
Y = np.arange(210) % 3


def write(folder: Path, *lengths: int, x: np.ndarray = X, y: np.ndarray = Y) -> list[str]:
    """Parts of these lengths, or one file where none are said; the overrides to read them."""
    folder.mkdir()
    if not lengths:
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y)
    ends = np.cumsum(lengths)
    for i, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        np.save(folder / f"x_{i}.npy", x[end - length : end])
        np.save(folder / f"y_{i}.npy", y[end - length : end])
    return ["data=npy", f"data.path={folder}"]


def npz(folder: Path) -> list[str]:
    np.savez(folder / "all.npz", x=X, y=Y)
    return ["data=npz", f"data.path={folder / 'all.npz'}"]


def dataset(*overrides: str) -> Dataset:
    return parse(compose(list(overrides))).data.load()


def test_rows_come_from_the_file_they_are_in_in_the_order_asked_for(tmp_path: Path) -> None:
    """Eleven parts, so that the tenth comes after the second, and not by its name before it."""
    lengths = [10, 1, 30, 9, 50, 20, 20, 20, 20, 20, 10]
    parts, whole = dataset(*write(tmp_path / "parts", *lengths)), dataset(*write(tmp_path / "one"))
    order = np.array([100, 3, 3, 77, 0])
    for split in ("train", "val", "test"):
        a, b = getattr(parts, split), getattr(whole, split)
        assert a.x.shape == (len(a.y), 8, 8, 1)
        np.testing.assert_array_equal(np.concatenate(list(a.x.blocks(2**20, 8))), b.x[:])
        np.testing.assert_array_equal(a.y, b.y)
    np.testing.assert_array_equal(parts.train.x[order], X[parts.train.x.rows[order]])
    np.testing.assert_array_equal(parts.train.y[order], Y[parts.train.x.rows[order]])


def test_images_with_the_channels_first_are_read_as_the_same_images(tmp_path: Path) -> None:
    x = np.random.default_rng(2).random((210, 5, 4, 3))
    last = dataset(*write(tmp_path / "last", x=x))
    read = write(tmp_path / "first", 100, 110, x=x.transpose(0, 3, 1, 2))
    first = dataset(*read, "data.channels=first")
    assert first.input_shape == last.input_shape == (5, 4, 3)
    order = np.array([100, 3, 3, 77, 0])
    np.testing.assert_array_equal(first.train.x[order], last.train.x[order])
    assert dataset(*read).warnings == ()
    square = write(tmp_path / "square", x=np.ones((210, 3, 8, 8)))
    (warning,) = dataset(*square).warnings
    assert warning.endswith("3 channels of 8 x 8 pixels, set data.channels=first")
    with pytest.raises(
        ConfigError, match=r"data\.channels must be last if x is not \[N, C, H, W\]"
    ):
        dataset(*write(tmp_path / "flat", x=X[:, 0]), "data.channels=first")


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], marks=pytest.mark.slow),
        ["trainer.accumulate_grad_batches=3"],
        pytest.param(["trainer.steps_per_call=2"], marks=pytest.mark.slow),
    ],
)
def test_training_is_that_of_rows_in_memory(tmp_path: Path, backend: str, more: list[str]) -> None:
    """The last update of an epoch is short. 1e-12: a compiler may fuse what gathers the rows with
    what uses them."""
    held = train(backend, [*npz(tmp_path), *MODEL, *more])
    read = train(backend, [*write(tmp_path / "parts", 100, 110), *MODEL, *more])
    np.testing.assert_allclose(read.losses, held.losses, rtol=1e-12)
    assert difference(read.state.weights, held.state.weights) < 1e-12


def test_chunks_stay_within_the_memory_that_was_given(tmp_path: Path) -> None:
    """Rows of 8 KB, 64 an update: 0.5 MB in float32, three of it held at a time."""
    x, y = np.zeros((2000, 2048), np.float32), np.arange(2000) % 2
    read = [*write(tmp_path / "x", x=x, y=y), "trainer.batch_size=64"]
    assert prepare([*read, "data.memory_mb=3"]).largest_chunk() == 2
    assert prepare([*read, "data.memory_mb=3", "trainer.steps_per_call=500"]).largest_chunk() == 2
    assert prepare([*read, "data.memory_mb=12"]).largest_chunk() == 8
    with pytest.raises(
        ConfigError, match=r"data.memory_mb must be at least 2 for three updates of 64 rows, got 1"
    ):
        prepare([*read, "data.memory_mb=1"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_the_whole_of_it_on_the_command_line(tmp_path: Path, backend: str) -> None:
    """Train and evaluate: the same metrics as with the rows in memory, to float32's rounding."""
    common = [
        "model=cnn",
        f"backend={backend}",
        "schedule=cosine",
        "trainer.max_epochs=2",
        "trainer.batch_size=16",
    ]
    held, read = forked(
        tmp_path, (*npz(tmp_path), *common), (*write(tmp_path / "parts", 100, 110), *common)
    )
    assert (held.err, read.err) == ("", "")
    found = [read_json(tmp_path / done.folder / "result.json")["metrics"] for done in (held, read)]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    tested = forked(tmp_path, *(("task=evaluate", f"run={done.folder}") for done in (held, read)))
    assert [done.status for done in tested] == [0, 0]
    assert tested[0].out.split("(")[0] == tested[1].out.split("(")[0]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            {"x": X[:, 0, 0, 0]},
            r"x\.npy: x must hold a row of numbers per sample, got float32 of shape \[210\]",
        ),
        ({"x": X[:200]}, r"x\.npy: x has 200 rows, y has 210"),
        (
            {"y": Y.astype(float)},
            r"y must be labels, integers of shape \[N\], got float64 of shape \[210\]",
        ),
        ({"y": Y * 0}, "y has a single class, 0; classification needs two"),
        (
            {"x": np.where(np.arange(210)[:, None, None, None] == 7, np.nan, X)},
            r"x\.npy: row 7, column x\[0, 0, 0\] is nan; all values must be finite",
        ),
        ({"x": X[:0], "y": Y[:0]}, "holds no rows"),
        ({"x": X.astype(object)}, r"x\.npy cannot be read as NPY"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, broken: dict[str, np.ndarray], said: str
) -> None:
    read = write(tmp_path / "x", **{"x": X, "y": Y, **broken})
    with pytest.raises(ConfigError, match=said):
        dataset(*read)


@pytest.mark.parametrize("name", ["x.npy", "y.npy", "x_0.npy", "y_0.npy"])
def test_a_pipe_among_the_files_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    read = write(tmp_path / "x", *([210] if "_0" in name else []))
    (tmp_path / "x" / name).unlink()
    os.mkfifo(tmp_path / "x" / name)
    with pytest.raises(
        ConfigError, match=rf"{name} cannot be read as NPY: it is not a regular file"
    ):
        dataset(*read)


def test_what_numpy_reads_besides_is_no_npy(tmp_path: Path) -> None:
    read = write(tmp_path / "x")
    with (tmp_path / "x" / "x.npy").open("wb") as file:
        np.savez(file, x=X)
    with pytest.raises(ConfigError, match=r"x\.npy cannot be read as NPY: it is not an NPY file"):
        dataset(*read)


def test_rows_that_are_far_from_1_are_told_of(tmp_path: Path) -> None:
    (said,) = dataset(*write(tmp_path / "x", x=X * 255)).warnings
    assert "; save them scaled, or begin model.layers with {layer: batch_norm}" in said
    assert dataset(*write(tmp_path / "y")).warnings == ()


def test_so_are_parts_that_do_not_fit_and_folders_without_any(tmp_path: Path) -> None:
    read = write(tmp_path / "x", 100, 110)
    np.save(tmp_path / "x" / "x_1.npy", X[100:].astype(np.float64))
    with pytest.raises(
        ConfigError, match=r"x_1\.npy: rows are float64\[8, 8, 1\], in x_0\.npy float32\[8, 8, 1\]"
    ):
        dataset(*read)
    (tmp_path / "x" / "y_1.npy").unlink()
    with pytest.raises(ConfigError, match=r"y_1\.npy cannot be read as NPY"):
        dataset(*read)
    np.save(tmp_path / "x" / "y_1.npy", np.array(0))
    np.save(tmp_path / "x" / "x_1.npy", X[100:])
    with pytest.raises(
        ConfigError,
        match=r"y must hold a value or row per sample, of the same .* in all parts, got int64\[\]",
    ):
        dataset(*read)
    np.save(tmp_path / "x" / "x_01.npy", X[100:])
    with pytest.raises(
        ConfigError, match=r"holds x_01\.npy and x_1\.npy, which have the same number"
    ):
        dataset(*read)
    (tmp_path / "x" / "x_01.npy").unlink()
    np.save(tmp_path / "x" / "x.npy", X)
    with pytest.raises(ConfigError, match=r"holds x\.npy and parts of it, such as x_0\.npy"):
        dataset(*read)
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"must hold x\.npy and y\.npy, or parts of them"):
        dataset("data=npy", f"data.path={tmp_path / 'none'}")
    with pytest.raises(
        ConfigError, match=r"data\.path must be a folder, got nowhere, which does not exist"
    ):
        dataset("data=npy", "data.path=nowhere")
