"""trainer.max_time ends a run by the clock, which the tests wind: it counts a second for each look
at it."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest

import runner
from runner import dispatcher
from runner.config.times import clock, seconds
from runner.errors import ConfigError
from runner.run import time_limit
from runner.run.run_folder import read_json
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but

# 1,280 rows in batches of 100 are 13 updates an epoch, in chunks of 5, 5, 2 and 1
RUN = (
    "device=cpu trainer.batch_size=100 trainer.max_steps=30 trainer.steps_per_call=5 "
    "schedule=linear"
)
KEPT = ("steps", "epochs", "metrics", "best", "stopped_by", "weights_sha256")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1d2s", 86402)],
)
def test_a_time_is_the_sum_of_its_parts(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_seconds_are_shown_as_hours_minutes_and_seconds() -> None:
    assert clock(7325.9) == "2:02:05"


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_run_ends_at_its_time_and_resumes_to_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Looks: before the first chunk, after each chunk, and for each checkpoint. So the fourth
    second is that of the chunk after the first epoch, within the second one, whose evaluation the
    longer run has not."""
    dispatcher.load(backend)
    monkeypatch.chdir(tmp_path)
    whole = runner.train(f"backend={backend} {RUN}", quiet=True)
    monkeypatch.setattr(time_limit, "monotonic", count().__next__)
    line = f"backend={backend} {RUN} trainer.checkpoint_every=1epochs"
    run = runner.train(f"{line} trainer.max_time=6s", quiet=True)
    assert run.result["stopped_by"] == "max_time"
    assert (run.status, run.result["steps"], run.result["epochs"]) == ("completed", 18, 2)
    assert [*run.metrics["step"]] == [13, 18]
    assert run.result["metrics"]["val/loss"] == run.metrics["val/loss"][-1]
    state = read_json(run.folder / "checkpoints" / "last" / "state.json")
    assert state["time"] == {"trained_seconds": 7, "is_over": True}
    with pytest.raises(ConfigError, match=r"has trained for 0:00:07 .* trainer\.max_time=6s"):
        runner.resume(run.folder, quiet=True)
    with pytest.raises(ConfigError, match=r"all of trainer\.max_time=7s"):
        runner.resume(run.folder, "trainer.max_time=7s", quiet=True)
    again = runner.resume(run.folder, "trainer.max_time=null", quiet=True)
    assert {key: again.result[key] for key in KEPT} == {key: whole.result[key] for key in KEPT}
    assert all(np.array_equal(again.trace[name], whole.trace[name]) for name in whole.trace)
    assert [*again.metrics["step"]] == [*whole.metrics["step"]]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_processes_end_at_the_same_update(tmp_path: Path, backend: str) -> None:
    """A time that is over after the first chunk; rank 0 decides."""
    short = ("device=cpu", "devices=2", "trainer.steps_per_call=5", "trainer.max_time=0.001s")
    (done,) = forked(tmp_path, (f"backend={backend}", *short))
    assert (done.status, done.err) == (0, "")
    assert "stopped by time: trainer.max_time=0.001s is over at step 5; to train" in done.out
    assert read_json(tmp_path / done.folder / "result.json")["steps"] == 5
