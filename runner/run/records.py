"""The records of a run, metrics.csv and trace.csv. Rows are only appended."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from runner.data.order import Chunk
from runner.run.observer import Epoch, Observer
from runner.run.run_folder import sync_replaced, writing
from runner.spec import Live, Report

BATCH_SIZE = "batch_size"  # the column of trace.csv of a run whose batch size changes


class Records(Observer):
    """Writes one row per applied update into trace.csv and one per epoch into metrics.csv."""

    def __init__(self, path: Path, metric_columns: Sequence[str], applied: Sequence[str]) -> None:
        """`applied` has the names of RunSpec.tables except learning_rate: columns after step,
        learning_rate and loss."""
        self.path = path
        self._is_synced = False
        self._columns = metric_columns
        self._trace = (path / "trace.csv").open("a", newline="")
        self._metrics = (path / "metrics.csv").open("a", newline="")
        if self._trace.tell() == 0:
            header = ",".join(["step", "learning_rate", "loss", *applied])
            self._append(self._trace, [f"{header}\n"])
        if self._metrics.tell() == 0:
            self._append(self._metrics, [",".join(metric_columns) + "\n"])

    def __exit__(self, *_: object) -> None:
        for file in (self._trace, self._metrics):
            with suppress(OSError):  # rows that could not be written; this was already reported
                file.close()

    @staticmethod
    def _append(file: TextIO, rows: Iterable[str]) -> None:
        """Append rows and flush them, so that the file has whole lines if the process is killed."""
        with writing(Path(file.name)):
            file.writelines(rows)
            file.flush()

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        self.trace(chunk.first_step, report.losses, report.applied)
        return True

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        numbers = {"epoch": epoch.number, "step": epoch.step, "seconds": epoch.seconds}
        self.metrics({**numbers, **epoch.metrics})
        return True

    def trace(self, first_step: int, losses: np.ndarray, applied: Mapping[str, np.ndarray]) -> None:
        """Append the rows of updates. Each number has the shortest text that reads back the
        same."""
        rates, *others = (values[: len(losses)].astype(str) for values in applied.values())
        steps = map(str, range(first_step, first_step + len(losses)))
        rows = zip(steps, rates, losses.astype(str), *others, strict=True)
        self._append(self._trace, (",".join(row) + "\n" for row in rows))

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append the row of an epoch."""
        cells = (str(row.get(column, "")) for column in self._columns)
        self._append(self._metrics, [",".join(cells) + "\n"])

    def sync(self) -> None:
        """Sync both files to the disk. The first call syncs all files of the folder and the folder
        itself."""
        for file in (self._trace, self._metrics):
            os.fsync(file.fileno())
        if not self._is_synced:
            sync_replaced(self.path)
            self._is_synced = True
