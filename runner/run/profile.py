"""debug=profile: the times of the parts of a run, and the framework's own profiler over some
updates."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from runner.data.order import Chunk, Chunks
from runner.errors import RunError
from runner.plan import LEAST_PROFILED, Plan
from runner.run.observer import Limit
from runner.run.run_folder import writing
from runner.run.validation import validate
from runner.spec import Backend, Live, Operation, Profiler, Report, RunSpec, TrainState
from runner.text.columns import aligned
from runner.text.console import Console

_WARM_UP, _TIMED, _RECORDED = 10, 20, 10  # updates; a short run has fewer
_MOST_OPERATIONS = 10  # that are printed; the file has all
_LONGEST_NAME = 60


class Profile(Limit):
    """Ends the run after updates of warm-up, updates that are timed, and updates that the
    framework's profiler records.

    The profiler makes updates slower, so the times of the parts are those of other updates. A part
    is the wait for rows (data), the calls of the backend (updates), an evaluation of the validation
    rows, or a checkpoint until it is on the disk. Updates that compile are not timed.
    """

    cause = "debug"

    def __init__(self, plan: Plan, path: Path, console: Console) -> None:
        self.plan, self.console, self.folder = plan, console, path / "profile"
        self._num_updates = 0  # of this session
        self._num_timed = 0
        self._seconds = dict.fromkeys(("data", "updates", "evaluation", "checkpoint"), 0.0)
        self._operations: Sequence[Operation] = ()
        self._is_recording = self._is_recorded = False
        self._saving: float | None = None  # the begin of the last checkpoint

    def prepare(self, backend: Backend, run: RunSpec, start: TrainState, chunks: Chunks) -> None:
        left = self.plan.order.total_steps - start.step
        if left < LEAST_PROFILED:
            raise RunError(
                f"debug=profile needs at least {LEAST_PROFILED} updates, and this run has {left} "
                f"left; resume it with a larger trainer.max_epochs or trainer.max_steps"
            )
        self._timed_from = max(1, min(_WARM_UP, left // 4))
        self._recorded_from = self._timed_from + max(1, min(_TIMED, left // 2))
        self._end = min(left, self._recorded_from + _RECORDED)
        self._chunks, self._waited = chunks, 0.0
        self._profiler: Profiler = backend.profiler(run, self.folder)

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        self._data = self._chunks.waited_seconds - self._waited
        self._waited = self._chunks.waited_seconds
        if self._num_updates >= self._recorded_from and not self._is_recording:
            self.folder.mkdir(exist_ok=True)
            self._profiler.start(live)
            self._is_recording = True
        self._began = perf_counter()

    def examine(self, chunk: Chunk, report: Report, live: Live) -> None:
        """Add the chunk's times, before other observers take some."""
        seconds, self._live = perf_counter() - self._began, live
        is_timed = self._timed_from <= self._num_updates < self._recorded_from
        if is_timed and not report.compile_seconds:
            self._seconds["updates"] += seconds
            self._seconds["data"] += self._data
            self._num_timed += chunk.num_steps
        self._num_updates += chunk.num_steps
        if self._num_updates >= self._end:
            self._stop()

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        self.is_over = self._num_updates >= self._end
        return not self.is_over

    def on_finish(self, live: Live) -> None:
        """Evaluate once more: the first time may compile."""
        began = perf_counter()
        if len(self.plan.data.val):
            validate(self.plan, self._live)
            self._seconds["evaluation"] = perf_counter() - began
        self._saving = perf_counter()

    def on_checkpoint(self, folder: Path) -> None:
        if self._saving is not None:
            self._seconds["checkpoint"] = perf_counter() - self._saving

    def on_end(self, result: Mapping[str, Any]) -> None:
        if self._is_recording:  # the run has failed, or a signal came
            self._stop()
        if not self._is_recorded:
            return
        num_recorded = self._num_updates - self._recorded_from
        self.console.say(
            f"profile  {self._num_timed} updates were timed, then {num_recorded} recorded"
        )
        for line in (*self._parts(), "", *_slowest(self._operations)):
            self.console.say(line)
        self.console.say(f"trace    {self._profiler.trace}")

    def _stop(self) -> None:
        self._is_recording, self._is_recorded = False, True
        self._operations = self._profiler.stop()
        path = self.folder / "operations.csv"
        with writing(path), path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["operation", "calls", "seconds"])
            rows.writerows((*each[:2], f"{each.seconds:.9f}") for each in self._operations)

    def _parts(self) -> list[str]:
        """Return the table of the parts: the seconds of one, how many an epoch has, the seconds of
        these, and their share. A checkpoint is written beside the training."""
        epoch, every = self.plan.order.epochs.size(0), self.plan.checkpoints()
        times = {
            "data": float(epoch),
            "updates": float(epoch),
            "evaluation": 1.0,
            "checkpoint": epoch / every.size(0) if every else 0.0,
        }
        num_timed = {"data": self._num_timed, "updates": self._num_timed}
        once = {part: v / max(1, num_timed.get(part, 1)) for part, v in self._seconds.items()}
        total = sum(once[part] * times[part] for part in times if part != "checkpoint") or 1.0
        rows = [["part", "seconds", "an epoch", "seconds", "share"]]
        for part, num in times.items():
            spent = once[part] * num
            share = "beside" if part == "checkpoint" else f"{spent / total:.0%}"
            rows.append([part, f"{once[part]:.6f}", f"{num:.4g}", f"{spent:.4f}", share])
        return aligned(rows, range(1, 5))


def _slowest(operations: Sequence[Operation]) -> list[str]:
    """Return the table of the operations that take the most time, without those inside them."""
    if not operations:
        return ["this release of the framework does not tell its operations; the trace has them"]
    total = sum(operation.seconds for operation in operations) or 1.0
    rows = [["operation", "calls", "seconds", "share"]]
    for name, calls, seconds in operations[:_MOST_OPERATIONS]:
        shown = name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"
        rows.append([shown, str(calls), f"{seconds:.6f}", f"{seconds / total:.0%}"])
    return aligned(rows, range(1, 4))
