"""The ledger: the runs below output.root as rows with a status, metrics, a date and a size.

A row is read from a run's small files. Folders that are damaged, old or in use have rows too.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from os.path import isdir, isfile
from pathlib import Path
from types import NoneType
from typing import Any

from runner.config import yaml_files
from runner.config.schema import Config
from runner.errors import ConfigError, nearest, show
from runner.run import run_folder
from runner.run.strict_json import with_numbers
from runner.section import keys, value_at

COLUMNS = ("folder", "status", "schedule", "backend", "seed", "steps", "epochs", "date", "bytes")
_OTHER_FOLDERS = tuple(name for name in run_folder.PARENTS if name not in ("runs", "multiruns"))
_DEEPEST = 8  # levels of folders below output.root

# The keys that are read from result.json, and their types
_RESULT: dict[str, Sequence[type]] = {
    "status": (str,),
    "backend": (str,),
    "schedule": (str,),
    "metrics": (dict,),
}


@dataclass(frozen=True)
class Entry:
    """A run's folder, and its result.json, which is empty if it is missing or damaged."""

    folder: Path
    result: Mapping[str, Any]
    problem: str | None  # why the run is damaged
    holder: str | None  # the process that trains in the folder

    @property
    def status(self) -> str:
        """training: a process works in the folder; damaged: result.json or config.yaml cannot be
        read; unfinished: there is no result.json; else the status of result.json: completed,
        interrupted or failed."""
        if self.holder is not None:
            return "training"
        if self.problem is not None:
            return "damaged"
        return str(self.result.get("status", "unfinished"))

    @property
    def schedule(self) -> str | None:
        return self._name("schedule", "schedule.name")

    @property
    def backend(self) -> str | None:
        return self._name("backend", "backend")

    def _name(self, column: str, key: str) -> str | None:
        name = self.result[column] if column in self.result else value_at(self.config, key)
        return None if name is None else str(name)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics after the last epoch; those that are no numbers are left out."""
        values = with_numbers(self.result.get("metrics", {}))
        return {k: float(v) for k, v in values.items() if type(v) in (int, float)}

    @cached_property
    def bytes(self) -> int:
        """The size of all files in the folder. Symbolic links count as themselves."""
        return sum(_bytes(path) for path in _files(self.folder))

    @cached_property
    def time(self) -> float:
        """The time of the run's newest record, in seconds since 1970."""
        names = ("config.yaml", "trace.csv", "metrics.csv", "result.json")
        return max((_modified(self.folder / name) for name in names), default=0.0)

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.time).isoformat(" ", "minutes")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.yaml as it was written; empty if it cannot be read."""
        try:
            return _config(self.folder / "config.yaml")
        except ConfigError:
            return {}

    def value(self, column: str) -> Any:
        """Return a cell: a column of COLUMNS, a metric, or a dotted key of the config; None if the
        run does not have it."""
        if column in ("folder", "status", "schedule", "backend", "date", "bytes"):
            return getattr(self, column)
        if column in ("seed", "steps", "epochs") and column in self.result:
            return self.result[column]
        if column in self.metrics:
            return self.metrics[column]
        return value_at(self.config, column)

    def as_json(self) -> dict[str, Any]:
        """Return the row for a program: COLUMNS, all metrics, the best epoch and the overrides."""
        cells = {name: self.value(name) for name in COLUMNS}
        kept = {name: self.result.get(name) for name in ("best", "overrides", "error")}
        date = datetime.fromtimestamp(self.time).astimezone().isoformat(timespec="seconds")
        return {
            **cells,
            "folder": str(self.folder),
            "date": date,
            "metrics": self.metrics,
            **{name: value for name, value in kept.items() if value is not None},
            **({} if self.problem is None else {"problem": self.problem}),
            **({} if self.holder is None else {"process": self.holder}),
        }


def read(root: Path) -> list[Entry]:
    """Read all runs below a folder, the jobs of multiruns too, in the order of their folders."""
    return [entry(folder) for folder in _folders(root)]


def entry(folder: Path) -> Entry:
    """Read a run's folder. Raises nothing for what is in it."""
    path, holder = folder / "result.json", run_folder.holder(folder)
    try:
        if not os.path.lexists(path):
            _config(folder / "config.yaml")
            return Entry(folder, {}, None, holder)
        result = run_folder.read_json(path, _RESULT)
        optional = {
            "seed": (int,),
            "steps": (int,),
            "epochs": (int,),
            "best": (dict, NoneType),
            "overrides": (list,),
            "error": (str,),
        }
        given = {name: kinds for name, kinds in optional.items() if name in result}
        run_folder.check_types(path, result, given)
        return Entry(folder, result, None, holder)
    except ConfigError as error:
        return Entry(folder, {}, str(error), holder)


def _folders(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the folders of runs: those with a config.yaml or a result.json. Nothing is looked for
    inside a run, in hidden folders or behind symbolic links."""
    try:
        names = sorted(
            each.name
            for each in os.scandir(folder)
            if each.is_dir(follow_symlinks=False) and not each.name.startswith(".")
        )
    except OSError:
        return
    for path in (folder / name for name in names if name not in _OTHER_FOLDERS):
        if isfile(path / "config.yaml") or isfile(path / "result.json"):
            yield path
        elif depth < _DEEPEST:
            yield from _folders(path, depth + 1)


def _config(path: Path) -> Mapping[str, Any]:
    return yaml_files.values(yaml_files.read_text(path), path)


def _files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):  # does not follow links
        yield from (f"{parent}/{name}" for name in names)


def _bytes(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:  # removed meanwhile
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


@dataclass(frozen=True)
class Condition:
    """A condition on a cell: `COLUMN:VALUE`, `COLUMN<NUMBER` or `COLUMN>NUMBER`."""

    column: str
    sign: str
    wanted: str

    def holds(self, row: Entry) -> bool:
        """Return whether a run meets the condition. A missing cell is `null`, and neither smaller
        nor larger than a number. `*` and `?` in VALUE stand for any text and any character."""
        cell = row.value(self.column)
        number, bound = _number(cell), _number(self.wanted)
        if self.sign == "<":
            return number is not None and bound is not None and number < bound
        if self.sign == ">":
            return number is not None and bound is not None and number > bound
        same = number is not None and number == bound
        return same or fnmatchcase(show_cell(cell), self.wanted)


def show_cell(cell: Any) -> str:
    """Format a value of the config as on the command line, in full."""
    named = {None: "null", True: "true", False: "false"}
    return named[cell] if cell is None or isinstance(cell, bool) else str(cell)


def _number(cell: Any) -> float | None:
    try:
        return None if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        return None


def conditions(where: Sequence[str] | None) -> list[Condition]:
    """Parse the key `where`. Raises ConfigError for a wrong condition."""
    parsed = []
    for i, text in enumerate(where or ()):
        match = re.fullmatch(r"([^:<>]+)([:<>])(.+)", text.strip())
        if match is None:
            raise ConfigError(
                f"where[{i}] must be COLUMN:VALUE, COLUMN<NUMBER or COLUMN>NUMBER, got {show(text)}"
            )
        column, sign, wanted = (part.strip() for part in match.groups())
        check_column(f"where[{i}]", column)
        bound = _number(wanted)
        if sign != ":" and (bound is None or math.isnan(bound)):
            raise ConfigError(f"where[{i}] must compare with a number, got {show(text)}")
        parsed.append(Condition(column, sign, wanted))
    return parsed


def check_column(key: str, column: str) -> None:
    """Refuse the name of a column that no run can have."""
    known = [*COLUMNS, *keys(Config)]
    if "/" not in column and column.partition(".")[0] not in known:
        raise ConfigError(
            f"{key} must name a column ({', '.join(COLUMNS)}), a metric such as val/loss or a key "
            f"of the config, got {show(column)}{nearest(column, known)}"
        )


def select(rows: Sequence[Entry], where: Sequence[Condition]) -> list[Entry]:
    """Return the runs that meet all conditions."""
    return [row for row in rows if all(condition.holds(row) for condition in where)]


def ordered(rows: Sequence[Entry], by: str) -> list[Entry]:
    """Sort by a column, `-COLUMN` from the largest value. Numbers come before text, and runs
    without a value last."""
    column, is_reversed = by.removeprefix("-"), by.startswith("-")
    cells = [(row.time if column == "date" else row.value(column), row) for row in rows]
    numbers = [(n, row) for cell, row in cells if (n := _number(cell)) is not None and n == n]
    texts = [(show_cell(c), row) for c, row in cells if c is not None and _number(c) is None]
    rest = [row for cell, row in cells if cell is None or _number(cell) != _number(cell)]
    parts: list[list[tuple[Any, Entry]]] = [numbers, texts]
    found = [sorted(part, key=lambda pair: pair[0], reverse=is_reversed) for part in parts]
    return [*(row for part in found for _, row in part), *rest]


def check_root(root: Path) -> None:
    """Refuse an output.root that is something other than a folder."""
    if os.path.lexists(root) and not isdir(root):
        raise ConfigError(f"output.root must be a folder, got {root}")
