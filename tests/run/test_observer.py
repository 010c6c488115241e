"""An observer sees every event of a run, in order, and can end it."""

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from runner import dispatcher
from runner.data.order import Chunk
from runner.run.observer import Epoch, Observer
from runner.run.signals import Signals
from runner.run.training import Training
from runner.spec import Live, Report
from runner.text.console import capture
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but
from tests.training import first, prepare

# 1,280 rows in batches of 100 are 13 updates an epoch
OVERRIDES = ["trainer.batch_size=100", "trainer.max_steps=30", "trainer.checkpoint_every=20steps"]


class Seen(Observer):
    def __init__(self, last: int | None = None) -> None:
        self.last, self.events = last, list[tuple[str, Any]]()

    def __enter__(self) -> "Seen":
        self.events.append(("opened", None))
        return self

    def __exit__(self, *_: object) -> None:
        self.events.append(("closed", None))

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        step = chunk.first_step + chunk.num_steps
        self.events.append(("chunk", step))
        return step != self.last

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        self.events.append(("epoch", (epoch.number, epoch.step, epoch.is_whole)))
        return True

    def on_checkpoint(self, folder: Path) -> None:
        assert (folder / "state.json").is_file()
        self.events.append(("checkpoint", int(folder.name)))

    def on_end(self, result: Mapping[str, Any]) -> None:
        self.events.append(("end", result["status"]))

    def state(self) -> dict[str, Any]:
        return {"seen": len(self.events)}


def train(backend: str, path: Path, seen: Seen) -> int:
    prepared = prepare([*OVERRIDES, "device=cpu"])
    spec = prepared.run_spec()
    chunks = prepared.chunks(0, prepared.checkpoints(), adapt=False)
    with (
        capture() as (console, held),
        Signals() as signals,
        Training(
            prepared, path, console, signals, spec.tables, "", monotonic(), observers=[seen]
        ) as training,
    ):
        held.into(path / "run.log")
        start = first(prepared)
        state = dispatcher.load(backend).train(spec, start, chunks, training.on_chunk)
        training.checkpoints.finish()
        training.on_end({"status": "completed"})
    return state.step


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_it_sees_every_event_in_order(tmp_path: Path, backend: str) -> None:
    """A chunk ends at an epoch, before its short last update, at a checkpoint and at the end; an
    epoch comes after its last chunk. Checkpoints are written beside the training."""
    seen = Seen()
    assert train(backend, tmp_path, seen) == 30
    written = [event for event in seen.events if event[0] == "checkpoint"]
    assert written == [("checkpoint", 20), ("checkpoint", 30)]
    assert [event for event in seen.events if event[0] != "checkpoint"] == [
        ("opened", None),
        ("chunk", 12),
        ("chunk", 13),
        ("epoch", (1, 13, True)),
        ("chunk", 20),
        ("chunk", 25),
        ("chunk", 26),
        ("epoch", (2, 26, True)),
        ("chunk", 30),
        ("epoch", (3, 30, False)),
        ("end", "completed"),
        ("closed", None),
    ]


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_it_can_end_the_run_which_leaves_a_checkpoint(tmp_path: Path, backend: str) -> None:
    seen = Seen(last=25)
    assert train(backend, tmp_path, seen) == 25
    assert (tmp_path / "checkpoints" / "25" / "state.json").is_file()
    assert ("chunk", 26) not in seen.events


def test_a_checkpoint_keeps_what_it_says_of_its_state(tmp_path: Path) -> None:
    from runner.run.run_folder import read_json

    train("lightning", tmp_path, Seen())
    # opened, chunks of 12 and 13, an epoch, a chunk of 20
    state = read_json(tmp_path / "checkpoints" / "20" / "state.json")
    assert state["observers"] == {"0 Seen": {"seen": 5}}


MODULE = """
from dataclasses import dataclass

from runner import Observer


@dataclass  # instances have no hash
class Threshold(Observer):
    value: float
    seen: int = 0

    def on_chunk(self, chunk, report, live):
        self.seen += chunk.num_steps
        return True

    def on_epoch(self, epoch, live):
        assert self.seen == epoch.step
        return epoch.metrics["val/accuracy"] < self.value

    def state(self):
        return {"seen": self.seen}

    def load_state(self, state):
        self.seen = state["seen"]


class Bad(Observer):
    def state(self):
        return {"it": object()}


def number():
    return 3
"""


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_an_observer_of_the_config_ends_a_run_and_keeps_its_state(
    tmp_path: Path, backend: str
) -> None:
    """The run is completed; it resumes with a larger threshold, and the count goes on."""
    (tmp_path / "mine.py").write_text(MODULE)
    trusted = "trusted_modules=[mine]"
    callback = "callbacks=[{{_target_: mine.Threshold, value: {}}}]"
    command = ("trainer.max_epochs=8", "device=cpu", trusted, f"backend={backend}")
    (first,) = forked(tmp_path, (*command, callback.format(0.7)))
    assert (first.status, first.err) == (0, "")
    assert "ended by the observer Threshold at step 40" in first.out
    assert "completed: 40 steps" in first.out
    (again,) = forked(tmp_path, (f"resume={first.folder}", trusted, callback.format(0.85)))
    assert (again.status, again.err) == (0, "")
    assert "completed: 80 steps" in again.out


def test_callbacks_that_are_no_observers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    lines = {
        "mine.Bad": "callbacks: the state of Bad must be numbers, texts, lists and dicts: ",
        "mine.number": "callbacks[0]._target_ mine.number must make a runner.Observer or a "
        "callback of the framework, got builtins.int",
        "mine.Threshold": "callbacks[0]._target_ mine.Threshold raised TypeError: ",
    }
    each = forked(
        tmp_path,
        *(
            (f"callbacks=[{{_target_: {name}}}]", "trusted_modules=[mine]", "device=cpu")
            for name in lines
        ),
    )
    for done, words in zip(each, lines.values(), strict=True):
        assert done.status == 2
        assert done.err.startswith(f"error: {words}")
    assert not (tmp_path / "outputs").exists()
