"""task=clean removes what it shows, and nothing else: files of other names, runs in use and what is
behind symbolic links stay."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.__main__ import main
from runner.machine import programs
from runner.run import checkpoint, run_folder
from runner.spec import TrainState
from runner.tasks.clean import clean
from tests.run_folders import write_run

ALL = ["failed", "checkpoints", "temporary"]


def with_checkpoints(folder: Path, steps: range, best: int) -> Path:
    """A run with checkpoints; the last one is `last`."""
    for step in steps:
        state = TrainState(step, {"w": np.zeros(3, np.float32)}, {}, {})
        checkpoint.write(folder, state, {})
        checkpoint.point(folder, "last", step)
    checkpoint.point(folder, "best", best)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    completed = write_run(tmp_path / "runs", ["schedule=cosine"], 0)
    with_checkpoints(completed, range(1, 5), best=2)
    (completed / "checkpoints/1/notes.txt").write_text("mine")
    (completed / ".result.json.999999").write_text("{")
    (completed / "checkpoints/.7.999999").mkdir()
    (completed / "checkpoints/.7.999999/state.json").write_text("{")
    failed = write_run(tmp_path / "multiruns/m", ["schedule=step"], 1, None)
    with_checkpoints(failed, range(1, 3), best=1)
    for name in ("best_checkpoints_1.csv", ".best_checkpoints.csv.999999", "trunk.json"):
        (failed / name).write_text("")
    kept = write_run(tmp_path / "multiruns/m", ["schedule=linear"], 2, None)
    (kept / "notes.txt").write_text("mine")
    return tmp_path


def paths(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_it_shows_what_it_would_remove_and_removes_it_when_asked(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = paths(root)
    monkeypatch.setenv("TWINRUN_CACHE", "off")
    monkeypatch.setenv("TWINRUN_CACHE_CHOSEN", "")
    monkeypatch.setattr(sys, "argv", ["runner", "task=clean", f"output.root={root}"])
    assert main() == 0
    shown = capsys.readouterr().out.splitlines()
    assert paths(root) == before
    kinds = [re.sub(r" {2,}.*?(\S+)$", r" \1", line) for line in shown[:-1]]
    assert kinds == [
        f"failed {root}/multiruns/m/schedule=linear_2",
        f"failed {root}/multiruns/m/schedule=step_1",
        f"checkpoints {root}/runs/schedule=cosine_0",
        f"temporary {root}/runs/schedule=cosine_0",
    ]
    assert shown[-1].endswith("nothing is removed yet; clean.confirm=true removes them")

    sys.argv.append("clean.confirm=true")
    assert main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 entries removed"
    gone = before - paths(root)
    run = "runs/schedule=cosine_0"
    parts = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    old = {f"{run}/checkpoints/{step}/{part}" for step in (1, 3) for part in parts}
    staged = {f"{run}/checkpoints/.7.999999", f"{run}/checkpoints/.7.999999/state.json"}
    assert {path for path in gone if path.startswith("runs/")} == {
        *(*old, f"{run}/checkpoints/3", f"{run}/.result.json.999999", *staged)
    }  # step 1 has a file of the user, so its folder stays
    step, linear = "multiruns/m/schedule=step_1", "multiruns/m/schedule=linear_2"
    left = {path for path in paths(root) if path.startswith("multiruns/")}
    assert left == {"multiruns/m", linear, f"{linear}/notes.txt"}
    assert step in gone
    assert checkpoint.read(root / run)[0].step == 4
    assert checkpoint.read(root / run, "best")[0].step == 2
    assert clean(root, None, ALL, True) == 0
    assert capsys.readouterr().out == f"nothing to remove below {root}\n"


def test_only_the_chosen_kinds_of_the_selected_runs_are_removed(root: Path) -> None:
    before = paths(root)
    assert clean(root, ["schedule:cosine"], ["failed"], True) == 0
    assert paths(root) == before
    assert clean(root, ["seed:1"], ["failed"], True) == 0
    assert {path.split("/")[2] for path in before - paths(root)} == {"schedule=step_1"}


def test_a_run_in_use_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process is one that holds the lock: here it is this one, as `.owner` says."""
    with run_folder.locked(root / "runs/schedule=cosine_0"):
        before = paths(root / "runs")
        assert clean(root, None, ALL, True) == 0
        assert paths(root / "runs") == before
    assert re.search(r"skipped  \S+cosine_0: process \d+ trains in it", capsys.readouterr().out)


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/1", "checkpoints/1/state.json"])
def test_nothing_is_removed_through_a_symbolic_link(
    root: Path, tmp_path_factory: pytest.TempPathFactory, place: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    failed = root / "multiruns/m/schedule=step_1"
    (failed / place).rename(elsewhere)
    (failed / place).symlink_to(elsewhere)
    there, before = paths(elsewhere.parent), paths(failed)
    assert clean(root, None, ALL, True) == 0
    assert paths(elsewhere.parent) == there
    assert paths(failed) == before


def test_the_checkpoints_of_a_run_without_its_last_one_stay(root: Path) -> None:
    """A reader would go back to an older one."""
    (root / "runs/schedule=cosine_0/checkpoints/last").unlink()
    before = paths(root)
    assert clean(root, None, ["checkpoints"], True) == 0
    assert paths(root) == before


def test_compiled_programs_are_shown_and_removed_but_for_those_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TWINRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TWINRUN_CACHE_CHOSEN", "")  # it is restored after the test
    programs.choose()
    for name in "ab":
        with programs.opened("keras", {"name": name}) as folder:
            assert folder is not None
            (folder / "program.pb").write_bytes(bytes(1000))
    what = ["programs"]
    with programs.opened("keras", {"name": "a"}) as folder:
        assert clean(tmp_path, None, what, False) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[-1].startswith("2 entries, 2.0 kB: nothing is removed yet")
        assert clean(tmp_path, ["seed:0"], what, True) == 0  # no condition on runs selects them
        assert clean(tmp_path, None, what, True) == 1
        assert "not removed, a process uses it" in capsys.readouterr().out
        assert folder is not None
        assert (folder / "program.pb").exists()
    assert [each.path for each in programs.kept(tmp_path / "cache/programs")] == [folder.parent]
