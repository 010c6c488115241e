"""task=list and the ledger that it prints: what stands in the folders, whatever their state."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.report import ledger
from runner.report.jobs import Job
from runner.run import run_folder
from runner.tasks.compare import compare
from runner.tasks.list_runs import list_runs, size
from tests.run_folders import write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two runs, two jobs of a multirun, one of which failed, and a picture of a preview."""
    write_run(tmp_path / "out/runs", ["schedule=cosine"], 0, 0.5)
    write_run(tmp_path / "out/runs", ["schedule=linear", "backend=keras"], 3, 0.25)
    write_run(tmp_path / "out/multiruns/m", ["schedule=cosine", "optimizer.lr=0.1"], 1, 0.75)
    write_run(tmp_path / "out/multiruns/m", ["schedule=step"], 2, None)
    write_run(tmp_path / "out/find_lr", ["schedule=range_test"], 0, 0.1)
    return tmp_path / "out"


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *overrides: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["runner", "task=list", *overrides])
    assert main() == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_table_has_a_row_for_each_run_and_each_job(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root.parent)
    header, *rows, summary = printed(
        monkeypatch, capsys, "output.root=out", "sort=-val/loss"
    ).splitlines()
    assert " ".join(header.split()) == (
        "date status schedule backend seed steps val/loss size folder"
    )
    # the date has a space, a size too
    cells = [" ".join([*row.split()[2:7], row.split()[-1].removeprefix("out/")]) for row in rows]
    assert cells == [
        "completed cosine lightning 1 80 multiruns/m/schedule=cosine_optimizer.lr=0.1_1",
        "completed cosine lightning 0 80 runs/schedule=cosine_0",
        "completed linear keras 3 80 runs/schedule=linear_backend=keras_3",
        "failed step lightning 2 80 multiruns/m/schedule=step_2",
    ]
    assert [row.split()[7] for row in rows] == ["0.7500", "0.5000", "0.2500", "-"]
    assert summary.startswith("4 runs below out, ")


@pytest.mark.parametrize(
    ("where", "seeds"),
    [
        ("where=status:failed", [2]),
        ("where=[schedule:cos*,seed<1]", [0]),
        ("where=optimizer.lr:1e-1", [1]),  # of config.yaml, which has 0.1
        ("where=val/loss>0.3", [0, 1]),  # a failed run has none
        ("where=[optimizer.name:adam,backend:keras]", [3]),
        ("where=schedule.warmup:null", []),
    ],
)
def test_conditions_select_rows(
    root: Path,
    where: str,
    seeds: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--json prints the same rows for a program: sizes as `du` counts them, numbers as numbers."""
    where = where.replace("seed<1", "'seed<1'")
    out = printed(monkeypatch, capsys, f"output.root={root}", where, "sort=seed", "--json")
    rows = json.loads(out)
    assert [row["seed"] for row in rows] == seeds
    for row in rows:
        result = json.loads((Path(row["folder"]) / "result.json").read_text())
        assert row["metrics"] == result["metrics"]
        assert row["overrides"] == result["overrides"]
        files = [path for path in Path(row["folder"]).rglob("*") if path.is_file()]
        assert row["bytes"] == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        ({"result.json": b"{"}, "damaged"),
        ({"result.json": b"[]"}, "damaged"),
        ({"result.json": b'{"status": 5, "backend": "keras"}'}, "damaged"),
        ({"result.json": b'{"status": "completed"}'}, "damaged"),
        ({"result.json": None, "config.yaml": b"\xff\xfe"}, "damaged"),
        ({"result.json": None, "config.yaml": b"a: [1"}, "damaged"),
        ({"result.json": None}, "unfinished"),
        ({"result.json": None, "config.yaml": b"seed: 7"}, "unfinished"),  # of another version
        ({"config.yaml": None, "trace.csv": None}, "completed"),
    ],
)
def test_a_damaged_or_old_folder_has_a_row(
    tmp_path: Path,
    damage: dict[str, bytes | None],
    status: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_run(tmp_path / "runs", ["schedule=cosine"], 0)
    for name, content in damage.items():
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
    (row,) = ledger.read(tmp_path)
    assert row.status == status
    for sort in ("date", "-bytes", "val/loss", "optimizer.lr"):
        assert list_runs(tmp_path, ["status:*"], sort, as_json=False) == 0
    assert list_runs(tmp_path, None, "date", as_json=True) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_in_which_a_process_trains_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", ["schedule=cosine"], 0)
    with run_folder.locked(folder):
        (row,) = ledger.read(tmp_path)
        assert (row.status, row.as_json()["process"]) == ("training", f"process {os.getpid()}")
    (row,) = ledger.read(tmp_path)
    assert row.status == "completed"


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link to a folder of runs, and one upwards, which would never end."""
    write_run(tmp_path / "elsewhere", ["schedule=cosine"], 0)
    (tmp_path / "out/runs").mkdir(parents=True)
    (tmp_path / "out/runs/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out/runs/up").symlink_to(tmp_path)
    assert ledger.read(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9949, "9.9 kB"), (9950, "10 kB"),
     (999_499, "999 kB"), (999_500, "1.0 MB"), (2 * 10**15, "2000 TB")],
)  # fmt: skip
def test_sizes_have_decimal_units(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_the_runs_that_meet_conditions_are_compared(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders may be given or not. A run that has not ended, or is damaged, is one of them."""
    (write_run(root / "runs", ["schedule=step"], 4) / "result.json").unlink()
    compared: list[list[int]] = []

    def take(folder: Path, jobs: Sequence[Job], _: int, wanted: object) -> int:
        compared.append(sorted(job.seed for job in jobs))
        return 0

    monkeypatch.setattr("runner.report.comparison.compare", take)
    for runs in (None, [str(root / "runs"), str(root / "multiruns/m")]):
        assert compare(runs, root, ["schedule:cosine"]) == 0
        assert compare(runs, root, ["status:*"]) == 0
    assert compared == [[0, 1], [0, 1, 2, 3, 4]] * 2
