"""Checkpoints that newer ones would replace at once are not written, and nothing else changes."""

import errno
import random
import signal
import time
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from runner.errors import RunError
from runner.run import checkpoint, checkpoints
from runner.run.checkpoints import Checkpoints
from runner.run.run_folder import read_json
from runner.spec import TrainState
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but


class Save(NamedTuple):
    step: int
    best: int
    others: Sequence[int]
    pause: float  # seconds before it


def saves(draw: random.Random, num: int) -> list[Save]:
    """A run that keeps its three best checkpoints, by values that go up and down."""
    values: dict[int, float] = {}
    found = []
    for step in range(3, 3 * num + 1, 3):
        values[step] = draw.random()
        best = sorted(values, key=lambda one: -values[one])[:3]
        found.append(Save(step, best[0], best, draw.choice([0.0, 0.0, 0.0, 0.004])))
    return found


def state(step: int) -> TrainState:
    values = {"w": np.full(3, step, np.float32)}
    return TrainState(step, values, {"momentum": values}, {})


def write(path: Path, all_saves: Sequence[Save], writes_each: bool = False) -> list[int]:
    """Save all of them. Return the steps that observers were told of."""
    path.mkdir(exist_ok=True)
    told = []

    def has_named_ones(folder: Path) -> None:
        """Check that the disk has all checkpoints that this one names: a run may be killed now."""
        told.append(int(folder.name))
        named: Collection[int] = read_json(folder / "state.json")["named"]
        assert {*named} <= {*checkpoint.steps(path)}

    with Checkpoints(path, 2, lambda: None, has_named_ones, None) as writer:
        writer.writes_each = writes_each
        for save in all_saves:
            time.sleep(save.pause)
            extra = {"named": [save.best, *save.others]}
            is_last = save is all_saves[-1]
            writer.save(state(save.step), extra, save.best, save.others, is_last)
        writer.finish()
    return told


def content(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_a_written_state_takes_no_memory_while_the_next_is_awaited(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, 2, lambda: None, lambda _: None, None) as writer:
        saved = state(3)
        writer.save(saved, {}, 3, is_last=True)
        writer.finish()
        still_there = weakref.ref(saved)
        del saved
        assert still_there() is None


def test_the_folder_is_that_of_a_run_that_writes_each_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_PACE_SECONDS", 0.005)
    num_told = 0
    for seed in range(8):
        all_saves = saves(random.Random(seed), 20)
        each, few = tmp_path / f"each_{seed}", tmp_path / f"few_{seed}"
        assert write(each, all_saves, writes_each=True) == [save.step for save in all_saves]
        told = write(few, all_saves)
        assert told == sorted(told)
        num_told += len(told)
        assert content(few) == content(each)
    assert num_told < 8 * 20


def test_states_that_are_too_large_to_wait_are_all_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_PACE_SECONDS", 1000.0)
    monkeypatch.setattr(checkpoints, "_MOST_WAITING", 0)
    all_saves = saves(random.Random(0), 5)
    assert write(tmp_path, all_saves) == [save.step for save in all_saves]


def test_a_state_that_cannot_be_written_ends_the_run_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(*_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(tmp_path, 2, lambda: None, lambda folder: None, None) as writer:
        writer.save(state(3), {}, 3)
        writer.finish()
        monkeypatch.setattr(checkpoint, "stage", stage)
        writer.save(state(6), {}, 3)
        with pytest.raises(RunError, match=r"/6 cannot .* the last whole checkpoint is that of"):
            writer.finish()
        writer.finish()  # nothing is left to write
    assert checkpoint.read(tmp_path)[0].step == 3


def test_an_observer_that_exits_in_the_writer_ends_the_run(tmp_path: Path) -> None:
    """SystemExit would end the thread alone, and the training would wait for it without end."""

    def leave(folder: Path) -> None:
        raise SystemExit(3)

    with Checkpoints(tmp_path, 2, lambda: None, leave, None) as writer:
        writer.save(state(3), {}, 3, is_last=True)
        with pytest.raises(SystemExit, match="3"):
            writer.finish()
        assert checkpoint.read(tmp_path)[0].step == 3


MODULE = """
import os
import time
from pathlib import Path

from runner import Observer
from runner.run import checkpoints

checkpoints._PACE_SECONDS = 1000.0


class Ended(Observer):
    def __init__(self, number):
        self.number = number

    def on_chunk(self, chunk, report, live):
        while chunk.first_step >= 40 and not any(Path().glob("outputs/runs/*/checkpoints/last")):
            time.sleep(0.001)
        if chunk.first_step >= 160:
            os.kill(os.getpid(), self.number)
        return True
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_run_that_ends_while_states_wait_resumes_to_the_same_bits(
    tmp_path: Path, backend: str, number: int
) -> None:
    """An epoch has 40 updates. A kill within the fifth leaves the checkpoint of the first, and the
    records of all updates until then; SIGTERM writes what waits."""
    (tmp_path / "mine.py").write_text(MODULE)
    line = (f"backend={backend}", "device=cpu", "trainer.max_epochs=6", "output.root=outputs")
    ended = f"callbacks=[{{_target_: mine.Ended, number: {int(number)}}}]"
    (done,) = forked(tmp_path, (*line, ended, "trusted_modules=[mine]"))
    assert done.status == 128 + number, done.err
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    num_rows = len((folder / "trace.csv").read_text().splitlines()) - 1
    assert num_rows > 160
    last = checkpoint.target(folder, "last")
    if number == signal.SIGKILL:
        assert (last, checkpoint.steps(folder)) == (40, [40])
    else:
        assert last == num_rows
        assert {160, last} <= {*checkpoint.steps(folder)}
    (resumed,) = forked(tmp_path, (f"resume={folder}", "callbacks=[]"))
    (whole,) = forked(tmp_path, line)
    assert (resumed.status, whole.status) == (0, 0), resumed.err
    folders = [folder, tmp_path / whole.folder]
    results = [read_json(path / "result.json") for path in folders]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["best"] == results[1]["best"]
    files = [content(path / "checkpoints") for path in folders]
    assert files[0].keys() == files[1].keys()
    for name in files[0]:
        if name.endswith((".safetensors", "last", "best")):
            assert files[0][name] == files[1][name]
    assert (folder / "trace.csv").read_bytes() == (folders[1] / "trace.csv").read_bytes()
