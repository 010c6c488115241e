"""A file of numbers that grows by rows, as trace.csv does."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.data.order import Chunk
from runner.plan import Plan
from runner.run.observer import Observer
from runner.run.run_folder import writing
from runner.spec import Live


class Rows(Observer):
    """An observer that appends rows to a file of the run's folder. The first column is `step`.

    When a run resumes, rows of updates that it makes again are removed, and so is the row of an
    evaluation within an epoch, which a longer run does not have.
    """

    of_updates = False  # a row is of an update, counted from 0; else of the updates so far

    def __init__(self, plan: Plan, path: Path, columns: Sequence[str]) -> None:
        self.plan, self.file, self.columns = plan, path, ["step", *columns]
        self._is_begun = False

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._begin(chunk.first_step)

    def _begin(self, step: int) -> None:
        """Write the header and the rows from before update `step`."""
        end = self.end(step, self.plan.order.is_epoch(step))
        width = len(self.columns)  # in an earlier version, a file could have fewer columns
        kept = [row + [""] * (width - len(row)) for row in _before(end, _rows(self.file))]
        _write(self.file, [self.columns, *kept])

    @classmethod
    def end(cls, step: int, is_epoch: bool) -> int:
        """Return the first step that has no row when a run resumes at `step`, where an epoch ends
        if `is_epoch`."""
        return step + (is_epoch and not cls.of_updates)

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a row. A missing value is an empty cell."""
        row = [str(step), *(str(values.get(name, "")) for name in self.columns[1:])]
        with writing(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(",".join(row) + "\n")


def cut(path: Path, end: int) -> None:
    """Remove the rows from step `end` on, if there is such a file."""
    header, *rows = _rows(path) or [[]]
    kept = _before(end, rows)
    if len(kept) < len(rows):
        _write(path, [header, *kept])


def _rows(path: Path) -> list[list[str]]:
    """Return all rows of a file, the header included; none if it is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return [row for row in csv.reader(file) if row]


def _before(end: int, rows: Sequence[list[str]]) -> list[list[str]]:
    """Return the rows of steps before `end`, without the header."""
    return [row for row in rows if row[0].isdigit() and int(row[0]) < end]


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with writing(path), path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
