"""The short pass over tests/faults, on both backends, each in a process of its own that forks the
runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from runner.run.run_folder import read_columns, read_json
from tests.command_line import BACKENDS, REPOSITORY, together
from tests.rows import slow_but

FAULTS = (
    "kill",
    "end",
    "end_twice",
    "cut",
    "flip",
    "race",
    "kill_at_end",
    "kill_longer",
    "link",
    "cut_short",
    "terminal",
    "file_limit",
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_what_a_run_survives(backend: str) -> None:
    """Full and read-only disks need the right to mount; where it is missing they say so and are
    left out."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--backend", backend],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for fault in FAULTS:
        (line,) = [
            line
            for line in done.stdout.splitlines()
            if f"  {fault}: " in line and "survived" in line
        ]
        survived, _, tried = line.rpartition(": ")[2].split()[:3]
        assert survived == tried


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_the_locale_nor_the_folder_nor_the_clock_changes_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """The same hashes under the plainest locale, one whose i has no dot, a path that is not ASCII,
    a clock of another zone, and one that falls back by an hour whenever it is asked: no span of
    time is negative."""
    (tmp_path / "sitecustomize.py").write_text(_SET_BACK)  # imported by Python before anything else
    arguments = (f"backend={backend}", "schedule=cosine", "trainer.max_steps=60", "device=cpu")
    found = []
    for name, variables in (
        ("plain", {}),
        ("c", {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}),
        (
            "ığİ Ωμ 試験",
            {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"},
        ),
        ("back", {"PYTHONPATH": str(tmp_path)}),
    ):
        here = tmp_path / name
        here.mkdir()
        with monkeypatch.context() as patched:
            for key, value in variables.items():
                patched.setenv(key, value)
            (done,) = together(here, arguments)
        assert (done.status, done.err) == (0, "")
        (folder,) = (here / "outputs" / "runs").iterdir()
        found.append(
            (
                read_json(folder / "result.json")["weights_sha256"],
                (folder / "trace.csv").read_bytes(),
            )
        )
        spans = [*read_json(folder / "result.json")["seconds"].values()]
        assert all(
            0 <= seconds < 300
            for seconds in [*spans, *read_columns(folder / "metrics.csv")["seconds"]]
        )
    assert found[0] == found[1] == found[2] == found[3]
    assert (tmp_path / "fell back").exists()


# Instead of Python's clock, since the system's is not ours to set
_SET_BACK = """
import time
from pathlib import Path
asked, real = [], time.time
def set_back():
    asked.append(0)
    (Path(__file__).parent / "fell back").touch()
    return real() - 3600 * len(asked)
time.time = set_back
"""
