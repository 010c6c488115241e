"""task=clean: show what can be removed below output.root, and remove it if clean.confirm=true.

Four kinds can be removed: runs that failed; the checkpoints of completed runs, except for the last
and the best; temporary files of processes that were killed; and the compiled programs of this user,
which belong to no run. Only files that a run writes are removed, by their exact names. Other files
stay, and so does a folder that holds some.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from runner.errors import ConfigError, RunError, one_line, printable
from runner.machine import programs
from runner.report import ledger
from runner.report.ledger import Entry
from runner.run import checkpoint, run_folder
from runner.run.callbacks import best_checkpoints
from runner.run.saved import refuse_links
from runner.text.columns import aligned
from runner.text.console import size


@dataclass(frozen=True)
class Removal:
    """The parts of one run that can be removed."""

    kind: str
    entry: Entry
    what: str  # for the table
    paths: tuple[Path, ...]  # files, and folders that are removed if they are empty then

    @property
    def bytes(self) -> int:
        return sum(path.lstat().st_size for path in self.paths if not _is_folder(path))

    @property
    def folder(self) -> Path:
        return self.entry.folder

    def remove(self) -> str | None:
        """Remove it while no other process can train in the folder. Return why not, or None."""
        return _remove(self)


@dataclass(frozen=True)
class Programs:
    """A folder of compiled programs."""

    kept: programs.Kept
    kind = "programs"

    @property
    def what(self) -> str:
        used = time.strftime("%Y-%m-%d", time.localtime(self.kept.used))
        num = self.kept.num_files
        return f"{num} {'file' if num == 1 else 'files'}, used {used}"

    @property
    def bytes(self) -> int:
        return self.kept.num_bytes

    @property
    def folder(self) -> Path:
        return self.kept.path

    def remove(self) -> str | None:
        """Remove it. Return why not, or None."""
        return None if programs.remove(self.folder) else "not removed, a process uses it"


def _programs(what: Sequence[str], where: Sequence[str] | None) -> list[Programs]:
    """Return the folders of compiled programs. None meets a condition on runs."""
    folder = programs.root()
    if "programs" not in what or where is not None or folder is None:
        return []
    return [Programs(each) for each in programs.kept(folder)]


def clean(root: Path, where: Sequence[str] | None, what: Sequence[str], confirm: bool) -> int:
    """Print a row for each thing that can be removed of the runs that meet the conditions, and
    without conditions a row for each folder of compiled programs; with `confirm`, remove it. Return
    1 if something could not be removed."""
    selected = ledger.conditions(where)
    ledger.check_root(root)
    rows = ledger.select(ledger.read(root), selected)
    of_runs, notes = plan(rows, what)
    found: list[Removal | Programs] = [*of_runs, *_programs(what, where)]
    status = 0
    for note in notes:
        print(f"skipped  {printable(note)}")
    for removal, line in zip(found, _table(found), strict=True):
        problem = removal.remove() if confirm else None
        if problem is not None:
            status = 1
        print(printable(line if problem is None else f"{line}: {problem}"))
    total = f"{len(found)} {'entry' if len(found) == 1 else 'entries'}"
    if not found:
        print(f"nothing to remove below {printable(str(root))}")
    elif confirm:
        print(f"{total} removed" if status == 0 else f"{total}, some of which are still there")
    else:
        num_bytes = size(sum(removal.bytes for removal in found))
        print(f"{total}, {num_bytes}: nothing is removed yet; clean.confirm=true removes them")
    return status


def plan(rows: Sequence[Entry], what: Sequence[str]) -> tuple[list[Removal], list[str]]:
    """Return what can be removed, and a note for each run that is left alone: another process
    trains in it, or it has symbolic links in the place of its files."""
    found, notes = [], []
    for row in rows:
        try:
            removals = _of_run(row, what)
        except (ConfigError, RunError, OSError) as error:
            notes.append(one_line(error))
            continue
        if removals and row.holder is not None:
            notes.append(f"{row.folder}: {row.holder} trains in it")
        else:
            found += removals
    return found, notes


def _of_run(row: Entry, what: Sequence[str]) -> list[Removal]:
    """Return what can be removed of a run, at most one entry of each kind in `what`."""
    refuse_links(row.folder, "task=clean")
    made = [_KINDS[kind](row) for kind in _KINDS if kind in what]
    if made and made[0] is not None and made[0].kind == "failed":
        made = made[:1]  # it has the temporary files too
    return [removal for removal in made if removal is not None and removal.paths]


def _failed(row: Entry) -> Removal | None:
    if row.status != "failed":
        return None
    steps = checkpoint.steps(row.folder)
    checkpoints = row.folder / "checkpoints"
    paths = [path for step in steps for path in checkpoint.files(row.folder, step)]
    paths += [path for name in ("last", "best") if os.path.lexists(path := checkpoints / name)]
    paths += [path for path in run_folder.own_files(row.folder) if path not in paths]
    paths += _leftovers(row.folder)
    folders = [checkpoints] if checkpoints.is_dir() else []
    error = one_line(row.result.get("error", "failed"))
    return Removal("failed", row, error[:60], (*paths, *folders, row.folder))


def _checkpoints(row: Entry) -> Removal | None:
    if row.status != "completed":
        return None
    last = checkpoint.target(row.folder, "last")
    steps = checkpoint.steps(row.folder)
    if last not in steps:  # what a reader would fall back to must stay
        return None
    kept = {last, checkpoint.target(row.folder, "best"), *best_checkpoints.listed(row.folder)}
    old = [step for step in steps if step not in kept]
    paths = tuple(path for step in old for path in checkpoint.files(row.folder, step))
    return Removal("checkpoints", row, f"{len(old)} of {len(steps)} checkpoints", paths)


def _temporary(row: Entry) -> Removal | None:
    paths = tuple(_leftovers(row.folder))
    files = [path for path in paths if not _is_folder(path)]
    return Removal("temporary", row, f"{len(files)} files of killed processes", paths)


_KINDS: Mapping[str, Callable[[Entry], Removal | None]] = {
    "failed": _failed,
    "checkpoints": _checkpoints,
    "temporary": _temporary,
}


def _leftovers(folder: Path) -> list[Path]:
    return [*run_folder.temporary_files(folder), *checkpoint.temporary_files(folder)]


def _remove(removal: Removal) -> str | None:
    """Remove it while no other process can train in the folder. Return why not, or None."""
    folder = removal.entry.folder
    try:
        with run_folder.exclusive_access(folder.parent), run_folder.locked(folder):
            now = _of_run(replace(ledger.entry(folder), holder=None), [removal.kind])
            still = {path for each in now for path in each.paths}
            for path in removal.paths:
                if path in still and not _is_folder(path):
                    path.unlink(missing_ok=True)
            if folder in removal.paths:
                run_folder.remove_owner(folder)
            for path in removal.paths:
                if path in still and _is_folder(path):
                    with suppress(OSError):  # it holds other files, which stay
                        path.rmdir()
    except run_folder.InUseError as error:
        return f"not removed, {error.holder} trains in it"
    except (ConfigError, RunError, OSError) as error:
        return f"not removed, {one_line(error)}"
    return None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _table(found: Sequence[Removal | Programs]) -> list[str]:
    return aligned([(r.kind, size(r.bytes), r.what, str(r.folder)) for r in found])
