"""The position of a run in an iterable of training rows: in each checkpoint, and when the run
resumes."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from runner.data.iterable import Reader
from runner.data.order import Chunk
from runner.errors import ConfigError
from runner.run import callback_state
from runner.run.observer import Observer
from runner.spec import Live, Report


class Position(Observer):
    """Keeps the position in the iterable after the last chunk, for checkpoints."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.position: dict[str, Any] = {}

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        self.position = self.reader.position(chunk.first_step + chunk.num_steps)
        return True

    def state(self) -> dict[str, Any]:
        position = dict(self.position)
        if "state" in position:
            try:
                position["state"] = callback_state.encode(position["state"], "its state_dict()")
            except callback_state.UnsavedError as error:
                del position["state"]
                position["unsaved"] = f"{error}, which a checkpoint cannot hold"
        return {"stream": position}


def resume(
    reader: Reader,
    step: int,
    saved: Mapping[str, Any],
    is_strict: bool,
    say: Callable[[str], None],
    is_stopped: Callable[[], bool],
) -> None:
    """Move to the position of a checkpoint: by the state of the iterable, if the checkpoint has
    it, else by reading the rows before it again.

    Args:
        reader: at the beginning of the run.
        step: the updates that the checkpoint has.
        saved: the entry `stream` of the checkpoint's state.json.
        is_strict: raise ConfigError, rather than warn, if the rows differ from those before.
        say: prints a line.
        is_stopped: returns whether the user has stopped the run.
    """
    source, num_rows = reader.stream.items.source, saved["rows"]
    if "state" in saved and reader.stream.items.has_state:
        state = callback_state.decode(saved["state"], _tensor)
        reader.restore(step, {**saved, "state": state})
        say(f"stream   {source} continues after {num_rows} rows, from its saved state")
        return
    why = saved.get("unsaved", "it has no state_dict and load_state_dict")
    if "unsaved" not in saved and reader.stream.items.has_state:
        why = "this is within its first item"
    say(f"stream   {source} is read again up to row {num_rows}, because {why}")
    for _ in range(step):
        reader.read(1)
        if is_stopped():
            return
    if reader.sha256 == saved["sha256"]:
        return
    differ = f"{source} does not repeat: its first {num_rows} rows differ from those before"
    if is_strict:
        raise ConfigError(f"resume: {differ}; trainer.strict=false resumes with them")
    say(
        f"warning: {differ}, so the results differ from those of an uninterrupted run; shuffle "
        f"with a seed, or define state_dict and load_state_dict"
    )


def _tensor(array: Any) -> Any:
    """Return a tensor of torch, which made the state, if it is imported; else the array."""
    torch = sys.modules.get("torch")
    return array if torch is None else torch.from_numpy(array.copy())
