"""callbacks=[throughput]: rows, updates and floating-point operations a second."""

from pathlib import Path
from time import perf_counter
from typing import Any

from runner.data.order import Chunk
from runner.machine.work import flops
from runner.plan import Plan
from runner.run.callbacks.rows import Rows
from runner.run.observer import Epoch
from runner.spec import Backend, Live, Report
from runner.text.console import Console

FILE = "throughput.csv"
COLUMNS = ("rows_per_second", "steps_per_second", "flops_per_second", "peak_share")


class Throughput(Rows):
    """Appends a row to throughput.csv after each epoch: the rows and the updates of the epoch,
    divided by the seconds of the calls that made them; the FLOP of the rows (machine/work.py)
    divided by these seconds, which a model of the user's own does not have; and their share of
    `peak_flops`. Calls that compile do not count; evaluation and checkpoints are not in these
    calls."""

    def __init__(
        self, section: Any, plan: Plan, backend: Backend, path: Path, console: Console
    ) -> None:
        super().__init__(plan, path / FILE, COLUMNS)
        self._peak_flops = section.peak_flops
        self._flops_per_row = flops(plan.network)
        self._num_rows = self._num_steps = 0
        self._seconds = 0.0

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        super().on_chunk_start(chunk, live)
        self._began = perf_counter()

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        if not report.compile_seconds:
            self._seconds += perf_counter() - self._began
            self._num_steps += chunk.num_steps
            self._num_rows += chunk.num_steps * chunk.rows_per_step
        return True

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        values = {}
        if self._num_steps:
            rows_per_second = self._num_rows / self._seconds
            values = {
                "rows_per_second": round(rows_per_second, 3),
                "steps_per_second": round(self._num_steps / self._seconds, 3),
            }
            if self._flops_per_row:
                values["flops_per_second"] = round(self._flops_per_row * rows_per_second)
            if self._peak_flops is not None:
                values["peak_share"] = values["flops_per_second"] / self._peak_flops
        self.append(epoch.step, values)
        self._num_rows = self._num_steps = 0
        self._seconds = 0.0
        return True
