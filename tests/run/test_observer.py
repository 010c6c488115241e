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
from tests.command_line import BACKENDS
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
    chunks = prepared.chunks(0, prepared.checkpoint_steps(), adapt=False)
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


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_can_end_the_run_which_leaves_a_checkpoint(tmp_path: Path, backend: str) -> None:
    seen = Seen(last=25)
    assert train(backend, tmp_path, seen) == 25
    assert (tmp_path / "checkpoints" / "25" / "state.json").is_file()
    assert ("chunk", 26) not in seen.events


def test_a_checkpoint_keeps_what_it_says_of_its_state(tmp_path: Path) -> None:
    from runner.run.run_folder import read_json

    train("lightning", tmp_path, Seen())
    # opened, chunks of 12 and 13, an epoch, a chunk of 20
    assert read_json(tmp_path / "checkpoints" / "20" / "state.json")["seen"] == 5
