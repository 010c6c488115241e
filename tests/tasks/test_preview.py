"""task=preview: the table that trains, before any training, without a framework, in a moment."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runner import rates
from runner.cli.compose import CONF
from runner.report.rates import draw
from tests.command_line import REPOSITORY, forked, together
from tests.rows import slow_but
from tests.test_isolation import run


@pytest.mark.slow
def test_it_imports_no_framework(tmp_path: Path) -> None:
    assert run(tmp_path, "task=preview", "schedule=one_cycle") == set()


def test_it_says_the_turning_points_the_sum_and_the_picture(tmp_path: Path) -> None:
    overrides = (
        "task=preview",
        "schedule=wsd",
        "schedule.warmup=10%",
        "schedule.decay_shape=linear",
    )
    (done,) = forked(tmp_path, overrides)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "schedule wsd  optimizer.lr 0.001  800 steps = 20 epochs of 40"
    assert lines[1].split() == ["step", "epoch", "of", "run", "rate"]
    rows = {int(row[0]): float(row[3]) for row in (line.split() for line in lines[2:-2])}
    # W = 80, the decay begins at 640: both sides of each, the ends, the middle
    assert rows == {0: 1.25e-5, 79: 1e-3, 80: 1e-3, 400: 1e-3, 639: 1e-3, 640: 1e-3, 799: 6.25e-6}
    # the sum: 1e-3 * (80 * 81 / 160 + 560 + 160 * 161 / 320)
    assert lines[-2] == "sum of rates 0.681  mean 0.00085125  largest 0.001"
    picture = tmp_path / lines[-1].removeprefix("picture  ")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.png")] == [
        ("outputs", "previews")
    ]


def test_groups_with_a_schedule_of_their_own_are_columns_and_curves(tmp_path: Path) -> None:
    """dense_0 has half of a linear fall from 1e-3 over 80 updates, after 8 of warm-up; its sum is
    0.5 (4.5 + 36.5) 1e-3. In a multirun, it is a line."""
    groups = (
        "optimizer.groups=[{match: dense_0, lr_factor: 0.5, schedule: {name: linear, warmup: 10%}}]"
    )
    command = ("task=preview", "trainer.max_epochs=2", groups)
    alone, several = forked(tmp_path, command, ("-m", *command, "optimizer.lr=1e-3,1e-2"))
    assert (alone.status, alone.err, several.status, several.err) == (0, "", 0, "")
    lines = [line.split() for line in alone.out.splitlines()]
    assert lines[1] == ["step", "epoch", "of", "run", "rate", "dense_0"]
    assert {int(row[0]): row[3:] for row in lines[2:-3]} == {
        0: ["0.001", "6.25e-05"], 7: ["0.001", "0.0005"], 8: ["0.001", "0.0005"],
        40: ["0.001", "0.000277778"], 79: ["0.001", "6.94444e-06"],
    }  # fmt: skip
    assert lines[-2][:6] == ["sum", "of", "rates", "of", "dense_0", "0.0205"]
    rows = [line.split()[:3] for line in several.out.splitlines()[1:-1]]
    assert rows == [
        ["optimizer.lr=0.001", "80", "0.001"], ["optimizer.lr=0.001", "dense_0", "80"],
        ["optimizer.lr=0.01", "80", "0.01"], ["optimizer.lr=0.01", "dense_0", "80"],
    ]  # fmt: skip


def test_several_are_a_line_each_and_one_picture(tmp_path: Path) -> None:
    (done,) = forked(tmp_path, ("-m", "task=preview", "schedule=linear,cosine", "optimizer.lr=0.1"))
    assert (done.status, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    expected = rates("schedule=linear", total_steps=800, lr=0.1)
    assert lines[1] == ["linear", "800", "0.1", "0.1", "0", "0.000125", f"{expected.sum():.6g}"]
    assert [line[0] for line in lines[1:]] == ["linear", "cosine", "picture"]
    assert len(list(tmp_path.rglob("*.png"))) == 1


@pytest.mark.slow
def test_glob_shows_every_schedule_that_needs_nothing_else_said(tmp_path: Path) -> None:
    (done,) = forked(tmp_path, ("-m", "task=preview", "schedule=glob(*)", "trainer.max_steps=50"))
    assert (done.status, done.err) == (0, "")
    shown = [
        line.split()[0]
        for line in done.out.splitlines()
        if not line.startswith(("warning", "picture", " "))
    ]
    assert shown == [
        file.stem
        for file in sorted((CONF / "schedule").glob("[!_]*.yaml"))
        if "???" not in file.read_text(encoding="utf-8")
    ]
    (some,) = forked(
        tmp_path, ("-m", "task=preview", "schedule=glob(cosine*)", "trainer.max_steps=50")
    )
    assert [line.split()[0] for line in some.out.splitlines()[1:-1]] == [
        "cosine",
        "cosine_restarts",
    ]


def test_a_warning_is_said_and_with_strict_refused(tmp_path: Path) -> None:
    late = ("task=preview", "schedule=linear", "schedule.duration=1000steps")
    warned, refused = forked(tmp_path, late, (*late, "trainer.strict=true"))
    said = (
        "schedule.duration: extends to step 1000, but the run has only 800 steps; the last rate "
        "is 0.000201"
    )
    assert warned.out.splitlines()[0] == f"warning: {said}"
    assert (refused.status, refused.out, refused.err) == (2, "", f"error: {said}\n")
    assert len(list((tmp_path / "outputs" / "previews").iterdir())) == 1


@pytest.mark.slow
def test_the_terminal_shows_nothing_of_matplotlib_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matplotlib warns of a folder for its settings that cannot be made, as on a read-only disk."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "file" / "folder"))
    (done,) = together(tmp_path, ("task=preview",))
    assert (done.status, done.err) == (0, "")


NO_PYPLOT = """
import sys
from pathlib import Path
import numpy as np
from runner.report.rates import draw
draw(Path(sys.argv[1]), {"a": np.ones(9)}, 1.0)
assert "matplotlib.pyplot" not in sys.modules
"""


def test_its_picture_needs_no_pyplot(tmp_path: Path) -> None:
    """pyplot would open windows, keep figures, and take time for its import."""
    subprocess.run(
        [sys.executable, "-c", NO_PYPLOT, str(tmp_path / "a.png")], cwd=REPOSITORY, check=True
    )


@pytest.mark.slow
def test_it_takes_about_a_second(tmp_path: Path) -> None:
    """1.5 s on an idle machine; the fastest of three, and 4 s, since the cores of this one are
    shared."""
    seconds = []
    for _ in range(3):
        began = time.time()
        forked(tmp_path, ("task=preview", "schedule=cosine"))
        seconds.append(time.time() - began)
    assert min(seconds) < 4


@pytest.mark.parametrize("num", slow_but([1, 8, 9], 1, 8))
def test_a_picture_of_a_long_table_is_drawn_from_a_part_of_it(tmp_path: Path, num: int) -> None:
    tables = {f"curve {i}": np.linspace(0, 1, 10**6) for i in range(num)}
    began = time.perf_counter()
    draw(tmp_path / "rates.png", tables, 1.0)
    assert time.perf_counter() - began < 10  # it is a second; not a minute
    assert (tmp_path / "rates.png").stat().st_size > 5000
