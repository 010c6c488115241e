"""Tables that stay in files: the same rows, transforms and losses as in memory, to the bit."""

import gzip
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, feather, parquet

from runner.data import table_stream
from runner.data.dataset import Dataset
from runner.errors import ConfigError
from runner.run.run_folder import read_columns
from tests.command_line import BACKENDS, REPOSITORY, forked, start
from tests.data.test_data import dataset
from tests.data.test_table import penguins, written
from tests.rows import slow_but
from tests.training import difference, train
from tests.warm import until

Write = Callable[[pa.Table, Path], object]
WRITE: dict[str, Write] = {
    "parquet": lambda t, p: parquet.write_table(t, p, row_group_size=50),
    "feather": lambda t, p: feather.write_feather(t, p, chunksize=50),
    "arrow": lambda t, p: feather.write_feather(t, p, compression="uncompressed"),
    "csv": csv.write_csv,
}


def stored(folder: Path, write: Write, rows: list[list[str]] | None = None) -> Path:
    text = written(folder / "a.csv", penguins() if rows is None else rows)
    write(csv.read_csv(text), folder / "a.table")
    return folder / "a.table"


def parts(data: Dataset) -> list[np.ndarray]:
    splits = (data.train, data.val, data.test)
    return [array[:] for split in splits for array in (split.x, split.y)]


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize("missing", ["mean", "median", "most_frequent", "-1.5", "indicator"])
@pytest.mark.parametrize("target", ["species", "bill"])
def test_rows_are_those_in_memory_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str, missing: str, target: str
) -> None:
    monkeypatch.setattr(table_stream, "_ROWS", 7)  # a block may have no cell of a column
    path = stored(tmp_path, WRITE[write])
    task = "classification" if target == "species" else "regression"
    keys = [f"data.path={path}", f"data.missing={missing}", f"data.target={target}"]
    keys += [f"data.task={task}", "data.missing_target=drop", "data.split=stratified"]
    if task == "regression":
        keys[-1] = "data.fold=1"
    resident, streamed = (
        dataset("data=table", *keys),
        dataset("data=table", *keys, "data.memory_mb=1"),
    )
    for a, b in zip(parts(resident), parts(streamed), strict=True):
        assert np.array_equal(a, b)
    one, other = resident.description(), streamed.description()
    hashes = ("sha256", "values_sha256", "folds_sha256")
    assert {k: v for k, v in one.items() if k not in hashes} == {
        k: v for k, v in other.items() if k not in hashes
    }
    assert resident.warnings == streamed.warnings


def test_ids_beside_numbers_are_those_in_memory_to_the_bit(tmp_path: Path) -> None:
    """A training of branches on them has the same losses, to the bit."""
    keys = [f"data.path={stored(tmp_path, WRITE['parquet'])}", "data.target=species"]
    keys += ["data.missing=mean", "data.category_encoding=ids"]
    resident, streamed = (dataset("data=table", *keys, *m) for m in ([], ["data.memory_mb=1"]))
    for a, b in zip(parts(resident), parts(streamed), strict=True):
        assert np.array_equal(a, b)
    assert resident.ids == streamed.ids
    assert max(resident.ids) > 0
    one, other = resident.description(), streamed.description()
    assert [one[key] for key in ("columns", "features", "x_scaling")] == [
        other[key] for key in ("columns", "features", "x_scaling")
    ]
    named = zip(resident.features, resident.ids, strict=True)
    branches = [
        f"[{{layer: columns, names: [{name}]}}"
        + (",{layer: embedding, features: 2},{layer: flatten}]" if num else "]")
        for name, num in named
    ]
    model = (
        f"model.layers=[{{layer: parallel, branches: [{','.join(branches)}]}},"
        "{layer: dense, units: outputs}]"
    )
    runs = [
        train("lightning", ["data=table", *keys, model, "trainer.max_steps=12", *more])
        for more in ([], ["data.memory_mb=1"])
    ]
    assert np.array_equal(runs[0].losses, runs[1].losses)


CELLS = """\
size;day;is new;seen;note;code;review
1,5;2020-01-01;1;;two;01;a good film
;2020-03-02;0;2020-01-01T05:00:00;;02;
-3;2021-01-01;1;;x;01;good, and bad
7,25;2020-01-04 10:00:00;true;;x;02;bad
"""


@pytest.mark.parametrize(
    ("first", "end"), [("\n", "\n"), ("\r\n", "\r\n"), ("\r", "\n"), ("\r", "\r")]
)
def test_a_csv_has_the_rows_in_memory_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, end: str
) -> None:
    """Decimal commas, dates and later times, whole numbers and later truth values, text, labels
    that look like numbers, and texts; each part of the file has one or two rows. The header's line
    ends with `first`, the others with `end`."""
    monkeypatch.setattr(table_stream, "_ROWS", 3)
    monkeypatch.setattr(table_stream, "_PART", 40)
    head, rows = CELLS.split("\n", 1)
    path = tmp_path / "a.csv"
    path.write_text(f"{head}{first}" + (rows * 9).replace("\n", end), newline="")
    keys = [f"data.path={path}", "data.target=code", "data.missing=mean", "data.texts=[review]"]
    resident, streamed = (dataset("data=table", *keys, *m) for m in ([], ["data.memory_mb=1"]))
    for a, b in zip(parts(resident), parts(streamed), strict=True):
        assert np.array_equal(a, b)
    assert resident.columns == streamed.columns
    assert [c["kind"] for c in streamed.columns][:4] == ["number", "date", "boolean", "date"]
    assert resident.classes == streamed.classes == ("01", "02")
    path.write_text(path.read_text().replace("two", '"two\nlines"'))
    with pytest.raises(ConfigError, match="a CSV with cells that may have line breaks"):
        dataset("data=table", *keys, "data.memory_mb=1")


@pytest.mark.parametrize("backend", slow_but([*BACKENDS, "witness"], "witness"))
def test_exact_mode_has_the_same_weights(tmp_path: Path, backend: str) -> None:
    keys = [f"data.path={stored(tmp_path, csv.write_csv)}", "data.target=species"]
    keys += ["data=table", "data.missing=mean", "trainer.precision=exact", "trainer.max_epochs=2"]
    runs = [train(backend, [*keys, f"data.memory_mb={size}"]) for size in ("null", "1")]
    assert np.array_equal(runs[0].losses, runs[1].losses)
    assert difference(runs[0].state.weights, runs[1].state.weights) == 0


def test_a_single_column_has_the_same_bits_too(tmp_path: Path) -> None:
    path = stored(tmp_path, WRITE["parquet"])
    keys = [f"data.path={path}", "data.target=species", "data.columns=[flipper]"]
    keys.append("data.missing=mean")
    resident, streamed = (
        dataset("data=table", *keys),
        dataset("data=table", *keys, "data.memory_mb=1"),
    )
    for a, b in zip(parts(resident), parts(streamed), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_training_has_the_same_losses_and_evaluates_and_predicts(
    tmp_path: Path, backend: str
) -> None:
    stored(tmp_path, WRITE["parquet"])
    keys = ("data=table", "data.path=a.table", "data.target=species", "data.missing=mean")
    short = (f"backend={backend}", "trainer.max_epochs=3", "device=cpu")
    done = [forked(tmp_path, (*keys, *short, *more))[0] for more in ((), ("data.memory_mb=1",))]
    assert [(each.status, each.err) for each in done] == [(0, ""), (0, "")]
    losses = [read_columns(tmp_path / each.folder / "metrics.csv")["val/loss"] for each in done]
    assert np.array_equal(*losses)
    run = f"run={done[1].folder}"
    later = forked(
        tmp_path,
        ("task=evaluate", run),
        ("task=predict", run, "data.path=a.csv"),
        ("task=describe", *keys, "data.memory_mb=1"),
    )
    assert [each.status for each in later] == [0, 0, 0], later


def test_what_cannot_be_streamed_is_refused_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "a.csv.gz"
    text.write_bytes(gzip.compress(written(tmp_path / "a.csv", penguins()).read_bytes()))
    with pytest.raises(ConfigError, match=r"data.memory_mb must be null unless data.path is a Par"):
        dataset("data=table", f"data.path={text}", "data.memory_mb=1")
    path = stored(tmp_path, WRITE["parquet"])
    keys = ["data=table", f"data.path={path}", "data.target=species"]
    with pytest.raises(ConfigError) as in_memory:
        dataset(*keys)
    with pytest.raises(ConfigError) as streamed:
        dataset(*keys, "data.memory_mb=1")
    for refused in (in_memory, streamed):
        assert "missing cells in bill (7, first in row 3)" in str(refused.value)


def kept(folder: Path, then: str) -> subprocess.CompletedProcess[str]:
    """A process with a table in a temporary file, in `folder`/temporary, that does `then`."""
    path = stored(folder, WRITE["parquet"])
    (folder / "temporary").mkdir()
    code = f"""
import os, resource, signal
from runner.__main__ import main
from tests.data.test_data import dataset
keys = ("data.path={path}", "data.target=species", "data.missing=mean", "data.memory_mb=1")
{then}
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(folder / "temporary")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_killed_process_leaves_no_temporary_file(tmp_path: Path) -> None:
    done = kept(
        tmp_path,
        """
data = dataset("data=table", *keys)
print(len(data.train.x[:]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "72\n"), done.stderr
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_run_leaves_no_temporary_file(tmp_path: Path, backend: str) -> None:
    """A grouped convolution, and a table that stays in a file; torch keeps an empty cache."""
    stored(tmp_path, WRITE["parquet"])
    (tmp_path / "temporary").mkdir()
    keys = ("data.path=a.table", "data.target=species", "data.missing=mean", "data.memory_mb=1")
    layers = (
        "[{layer: reshape, shape: [-1, 2]}, {layer: conv1d, filters: 4, kernel_size: 1, groups: 2},"
        " {layer: flatten}, {layer: dense, units: outputs}]"
    )
    run = start(
        tmp_path,
        *("data=table", *keys, f"model.layers={layers}", f"backend={backend}", "device=cpu"),
        *("trainer.max_epochs=1000000", "output.root=out"),
        shell='TMPDIR=$PWD/temporary exec "$@"',
    )
    runs = tmp_path / "out" / "runs"
    try:
        until(lambda: any(runs.glob("*/checkpoints/*")), timeout=120)
    finally:
        run.kill()
        printed = run.communicate()
    assert run.returncode == -signal.SIGKILL, printed
    left = [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]
    assert not left


@pytest.mark.slow
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    done = kept(
        tmp_path,
        """
import sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
sys.argv[1:] = ["task=describe", "data=table", *keys, "device=cpu"]
sys.exit(main())
""",
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: data.memory_mb: the transformed rows need 9600 bytes in the folder for temporary "
        f"files, {tmp_path}/temporary: File too large; TMPDIR=FOLDER before the command chooses "
        "another folder\n"
    )


def test_the_temporary_file_goes_with_the_rows(tmp_path: Path) -> None:
    path = stored(tmp_path, WRITE["parquet"])
    keys = [f"data.path={path}", "data.target=species", "data.missing=mean"]
    data = dataset("data=table", *keys, "data.memory_mb=1")
    file = weakref.ref(data.train.x.file)
    del data
    assert file() is None
