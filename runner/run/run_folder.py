"""A run's folder: its name, its lock, and its text files."""

import errno
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic, sleep
from types import NoneType
from typing import Any, TextIO

import numpy as np

from runner.config import yaml_files
from runner.dispatcher import BACKENDS
from runner.errors import ConfigError, RunError, show, show_path
from runner.machine import threads
from runner.run import signals, strict_json
from runner.run.signals import is_alive
from runner.schedules.units import Periods

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# Files that are written to .NAME.PID, then renamed to NAME
_REPLACED = (
    "config.yaml",
    "data.json",
    "environment.json",
    "result.json",
    "certificate.json",
    "test.json",
    "card.json",
    "card.md",
    "evaluation.json",
    "trace.csv",
    "metrics.csv",
    ".owner",
)
# Files of some runs only, which are also written so
_SOMETIMES_REPLACED = ("find_lr.json", "mlflow.json", "trackio.json", "trunk.json", "wandb.json")
# The files of callbacks=[best_checkpoints]: the second one in the list writes ..._1.csv
BEST_CHECKPOINTS = re.compile(r"best_checkpoints(?:_[1-9][0-9]*)?\.csv")
_OWN_FILES = (
    *(*_REPLACED, *_SOMETIMES_REPLACED, "run.log", "curves.png", "events.out.tfevents.twinrun"),
    *("norms.csv", "throughput.csv", "memory.csv"),
)
_HEADERS = {"trace.csv": "step,learning_rate,loss", "metrics.csv": "epoch,step"}  # their beginning
_NAMES = "|".join(map(re.escape, (*_REPLACED, *_SOMETIMES_REPLACED)))
_TEMPORARY = re.compile(rf"\.(?:{_NAMES}|{BEST_CHECKPOINTS.pattern})\.[0-9]+")
# the files that a run, or a task on it, writes
_WRITTEN = ("*.yaml", "*.json", "*.csv", "*.npz", "*.png", "run.log", "model.*", "*tfevents*")

_PACKAGES = (
    *("twinrun", "numpy", "hydra-core"),
    *(package for about in BACKENDS.values() for package in about.packages),
)


# Folders of output.root; each holds a folder per command
PARENTS = ("runs", "multiruns", "find_lr", "comparisons", "previews", "descriptions", "forecasts")


def create(parent: Path, name: str) -> Path:
    """Make a new folder parent/name, or parent/name_2, _3, .... This is atomic, so two runs never
    share a folder."""
    check(parent / name, "output.root", parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = parent / (name if number == 1 else f"{name}_{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1
    except OSError as error:
        raise _not_writable("output.root", parent, error) from None


def _not_writable(key: str, folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{key} must be a folder that can be written to; {show_path(folder)}: {error.strerror}"
    )


# A path as long as that of a job's file below its multirun's folder: JOB/checkpoints/STEP/FILE
_LONG_PATH = "/".join("x" * 128)


def check(folder: Path, key: str, configured: Path) -> None:
    """Refuse a folder if its name, or that of a file in it, is too long for the file system. It is
    below the folder `configured` with `key`. To find out by making it would leave its parents
    behind."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    existing = missing[-1].parent if missing else folder
    try:
        for path in (*(existing / path.name for path in missing), folder / _LONG_PATH):
            with suppress(FileNotFoundError):
                path.lstat()
    except OSError as error:
        raise _not_writable(key, configured, error) from None


def make(folder: Path, key: str) -> None:
    """Make the folder that the user named with `key`, and its parents, unless they exist."""
    check(folder, key, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(key, folder, error) from None


def timestamp() -> str:
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


class InUseError(ConfigError):
    """Raised if another process, `holder`, trains in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.holder = folder, holder(folder) or "another process"
        super().__init__(f"resume: {folder} is in use, another process trains in it: {self.holder}")


_OWNER = ".owner"
# the folders that this process has locked, by device and inode -> the lock
_held: dict[tuple[int, int], int] = {}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder in the block, so that only one process trains in it. The operating system
    releases the lock when the process ends.

    A process can lock a folder again. The file `.owner` names the process that has the lock.
    """
    if fcntl is None:  # no such locks on this system
        yield
        return
    identity = _identity(folder)
    if identity in _held:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUseError(folder) from None
    _held[identity] = descriptor
    try:
        _write_owner(folder)
        yield
    finally:
        remove_owner(folder)
        del _held[identity]
        os.close(descriptor)


def _forget_locks() -> None:
    """Close the locks in a child process, such as a worker of a DataLoader, which may live longer
    than the run."""
    while _held:
        os.close(_held.popitem()[1])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def lock_to_share(folder: Path | None) -> Any:
    """Return this process's lock on a folder in a form that can be pickled, for a child process
    that uses the same lock; None if there is no lock."""
    from multiprocessing.reduction import DupFd

    descriptor = None if folder is None or fcntl is None else _held.get(_identity(folder))
    return None if descriptor is None else DupFd(descriptor)


@contextmanager
def use_lock(folder: Path | None, lock: Any) -> Iterator[None]:
    """Use the parent process's lock on the folder in the block. The lock ends when both processes
    have released it."""
    if folder is None or lock is None:
        yield
        return
    identity, descriptor = _identity(folder), lock.detach()
    _held[identity] = descriptor
    try:
        yield
    finally:
        del _held[identity]
        os.close(descriptor)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


@contextmanager
def exclusive_access(folder: Path) -> Iterator[None]:
    """Wait until no other command is in this block for a multirun's folder, then run the block.
    Blocks are short."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_owner(folder: Path) -> None:
    import psutil

    process = psutil.Process()
    owner = {"pid": process.pid, "began": process.create_time(), "host": platform.node()}
    owner["command"] = signals.command()
    with suppress(RunError):  # the disk is full: the lock works without this file
        write_json(folder / _OWNER, owner)


def holder(folder: Path) -> str | None:
    """Return the name of the process that trains in the folder: `process 123 on HOST`. None if
    there is none or it is unknown."""
    try:
        pid, entries = _owner(folder)
        host, this_host = (
            re.sub(r"[^\w.-]", "", str(name))[:64] for name in (entries["host"], platform.node())
        )
        if host == this_host:
            return f"process {pid}" if is_alive(pid, entries["began"]) else None
        return f"process {pid} on {host}"
    except (ConfigError, ValueError, KeyError, TypeError):
        return None


def remove_owner(folder: Path) -> None:
    """Remove the file that names this process, so that a locked folder can be removed."""
    (folder / _OWNER).unlink(missing_ok=True)


def is_left_behind(folder: Path) -> bool:
    """Return whether the process that trained in the folder was killed: it did not remove its
    `.owner`."""
    return os.path.isfile(folder / _OWNER) and holder(folder) is None


_MOST_SECONDS = 30  # that a process without its command saves


def wait_for_orphan(folder: Path) -> bool:
    """Wait until the process that trains in the folder has ended, if the command that launched it
    was killed: it saves and ends. Return whether it has ended."""
    try:
        entries = _owner(folder)[1]
        command, host = entries["command"], entries["host"]
        if command is None or host != platform.node() or is_alive(*command):
            return False
    except (ConfigError, ValueError, KeyError, TypeError):
        return False
    deadline = monotonic() + _MOST_SECONDS
    while is_held := holder(folder) is not None:
        if monotonic() > deadline:
            break
        sleep(0.05)
    return not is_held


def jobs_in_training(folder: Path) -> dict[str, str]:
    """Return the jobs that other commands are training: folder's name -> process."""
    holders = {path.parent.name: holder(path.parent) for path in folder.glob("*/config.yaml")}
    return {name: process for name, process in sorted(holders.items()) if process is not None}


def owner(folder: Path) -> int | None:
    """Return the process that `.owner` names, or None."""
    try:
        return _owner(folder)[0]
    except (ConfigError, ValueError, KeyError, TypeError):
        return None


def _owner(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the process that `.owner` names, and all entries of the file."""
    entries = read_json(folder / _OWNER)
    return int(entries["pid"]), entries


def restart(folder: Path) -> None:
    """Remove the records of a run that has no checkpoint. run.log and the user's files stay."""
    for name in ("trace.csv", "metrics.csv", "result.json", "curves.png"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into a RunError with the path and the number of free bytes."""
    try:
        yield
    except OSError as error:
        raise RunError(why_unwritten(path, error)) from error


def why_unwritten(path: Path, error: OSError) -> str:
    """Return what the system says of a file that cannot be written, with the number of free bytes
    unless the folder is missing or closed to the user."""
    said = f"{path} cannot be written: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
        return said
    with suppress(OSError):
        said += f", {shutil.disk_usage(path.parent).free} bytes are free"
    return said


def links(folder: Path) -> list[Path]:
    """Return symbolic links in the place of files that a run, or a task on it, writes."""
    return [
        path for path in folder.iterdir() if path.is_symlink() and any(map(path.match, _WRITTEN))
    ]


def records(folder: Path, step: int, epochs: Periods) -> dict[str, list[str]]:
    """Return the lines of trace.csv and metrics.csv up to `step`: the header, a row for each
    update, a row for each whole epoch. A resumed run writes the later rows again, and the row of an
    epoch that a shorter run did not finish."""
    return {
        "trace.csv": _lines(folder / "trace.csv", step, 0, range(step)),
        "metrics.csv": _lines(folder / "metrics.csv", step, 1, epochs.ends(step)),
    }


def _lines(path: Path, step: int, column: int, steps: Sequence[int]) -> list[str]:
    """Return the header and the row of each of `steps`."""
    header = _HEADERS[path.name]
    numbers = {str(number) for number in steps}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            first, *rows = [*file] or [""]
    except OSError as error:
        raise ConfigError(f"resume: {path} cannot be read: {error.strerror}") from None
    num_columns = first.count(",") + 1
    whole_rows = ((row.rstrip("\n").split(","), row) for row in rows if row.endswith("\n"))
    kept = [
        (cells[column], row)
        for cells, row in whole_rows
        if len(cells) == num_columns and cells[column] in numbers and _are_numbers(cells)
    ]
    expected, actual = [*map(str, steps)], [number for number, _ in kept]
    counts = Counter(actual)
    wrong = [number for number in expected if counts[number] != 1]
    wrong += [number for number, other in zip(expected, actual, strict=False) if number != other]
    if wrong or not first.startswith(header):
        required = (
            f"one row for step {wrong[0]}"
            if first.startswith(header)
            else f"the header {header},..."
        )
        raise ConfigError(
            f"resume: {path} must have {required} to resume at step {step}; checkpoint=STEP "
            f"resumes at an earlier one"
        )
    return [first, *(row for _, row in kept)]


def _are_numbers(cells: Iterable[str]) -> bool:
    """Return whether all cells are numbers. An empty cell has no value."""
    try:
        return all(
            not cell or math.isfinite(float(cell)) or cell in ("nan", "inf", "-inf")
            for cell in cells
        )
    except ValueError:
        return False


def rewind(folder: Path, kept: Mapping[str, Sequence[str]]) -> None:
    """Write trace.csv and metrics.csv with only the lines that `records` returned."""
    for name, lines in kept.items():
        _write(folder / name, "".join(lines), is_durable=True, newline="")


def tidy(folder: Path) -> None:
    """Remove temporary files of a process that was killed while writing. Other files stay."""
    for path in temporary_files(folder):
        path.unlink()


def temporary_files(folder: Path) -> list[Path]:
    """Return the temporary files of processes that were killed while writing."""
    return [
        Path(entry.path)
        for entry in os.scandir(folder)
        if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
    ]


def own_files(folder: Path) -> list[Path]:
    """Return the files that a run writes, by their exact names."""
    found = [path for name in _OWN_FILES if os.path.lexists(path := folder / name)]
    return [*found, *best_checkpoints(folder)]


def best_checkpoints(folder: Path) -> list[Path]:
    """Return the files of callbacks=[best_checkpoints] in a run's folder. A folder of this name is
    not the run's own."""
    found = [entry for entry in os.scandir(folder) if BEST_CHECKPOINTS.fullmatch(entry.name)]
    return sorted(folder / e.name for e in found if not e.is_dir(follow_symlinks=False))


def is_abandoned(folder: Path) -> bool:
    """Return whether a folder has nothing but what a process leaves that is killed before it has
    written the config."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(name == _OWNER or _TEMPORARY.fullmatch(name) for name in os.listdir(folder))


def sync_replaced(folder: Path) -> None:
    """Sync the folder, and its files that are written as a whole."""
    for path in (*(folder / name for name in _REPLACED), folder, folder.parent):
        if path.exists():
            sync(path)


def write_config(folder: Path, composed: Mapping[str, Any]) -> None:
    _write(folder / "config.yaml", yaml_files.dump(composed))


def write_json(path: Path, values: Mapping[str, Any], is_durable: bool = False) -> None:
    _write(path, strict_json.dumps(values) + "\n", is_durable)


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole or not at all."""
    _write(path, text)


def _write(path: Path, text: str, is_durable: bool = False, newline: str | None = None) -> None:
    """Replace a file as a whole or not at all. With `is_durable` this also holds after a power cut,
    at the cost of a sync."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # from an earlier process with the same id
    try:
        with writing(path):
            # mode "x" does not follow a link
            with temporary.open("x", encoding="utf-8", newline=newline) as file:
                file.write(text)
            if is_durable:
                sync(temporary)
            temporary.replace(path)
    except RunError:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: str | Path) -> None:
    """Sync a file's content, or a folder's list of files, to the disk."""
    is_folder = os.path.isdir(path)
    if is_folder and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_KINDS = {
    str: "text",
    list: "a list",
    dict: "a mapping",
    int: "a whole number",
    float: "a number",
    NoneType: "null",
}


def read_json(path: Path, needs: Mapping[str, Sequence[type]] | None = None) -> dict[str, Any]:
    """Read a JSON object. Raise ConfigError if the file holds none, or if a key of `needs` is
    missing or has none of its types."""
    if path.exists() and not path.is_file():  # to read a pipe would wait for its writer
        raise ConfigError(f"{path} must be a regular file")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if text.strip() else None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged, it is not JSON: {show(error)}") from None
    if not isinstance(values, dict):
        state = "is empty" if not text.strip() else "holds no JSON object"
        raise ConfigError(f"{path} is damaged, it {state}")
    check_types(path, values, needs or {})
    return values


def check_types(path: Path, values: Mapping[str, Any], needs: Mapping[str, Sequence[type]]) -> None:
    """Raise ConfigError if a key of a file is missing or has none of its types."""
    for key, kinds in needs.items():
        if type(values.get(key)) not in kinds:
            got = show(values[key]) if key in values else "nothing"
            raise ConfigError(
                f"{path} is damaged: {key} must be {' or '.join(_KINDS[k] for k in kinds)}, "
                f"got {got}"
            )


def environment(
    device: str, num_threads: int, command: list[str], code: Mapping[str, str]
) -> dict[str, Any]:
    """Describe the machine and the packages, for a human reader. Of these, only `code`, the hashes
    of the user's own modules and objects, is read back, by `code_of`."""
    return {
        "command": command,
        "code": dict(code),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "git_commit": _git_commit(),
        "device": device,
        "cores": os.cpu_count(),
        "usable_cores": threads.cores(),
        "threads": num_threads,
        "thread_limits": threads.limits(),
    }


def code_of(folder: Path) -> dict[str, str] | None:
    """Return the hashes of the user's own modules that a run used last; None if the folder does not
    record them."""
    try:
        values = read_json(folder / "environment.json")
    except ConfigError:
        return None
    code = [values, *values.get("resumed", [])][-1].get("code")
    return {str(name): str(value) for name, value in code.items()} if code is not None else None


def packages() -> dict[str, str]:
    """Return the versions of this program and of the packages that its numbers depend on. Imports
    none of them."""
    return {name: number for name in _PACKAGES if (number := _version(name))}


def read_columns(path: Path, most: int | None = None) -> dict[str, np.ndarray]:
    """Read trace.csv or metrics.csv: column's name -> float64[rows]; an empty cell is NaN. `most`
    limits the rows in memory, evenly spaced."""
    try:
        return _read_columns(path, most)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {show(error)}") from None


def check_headers(folder: Path) -> None:
    """Raise ConfigError if trace.csv or metrics.csv is missing or has a wrong header."""
    for name, header in _HEADERS.items():
        path = folder / name
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                first = file.readline()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        if not first.startswith(header):
            raise ConfigError(
                f"{path} is damaged: it must begin with {header}, got {show(first.strip())}"
            )


def _read_columns(path: Path, most: int | None) -> dict[str, np.ndarray]:
    with path.open(encoding="utf-8") as file:
        names = file.readline().rstrip("\n").split(",")
        begin = file.tell()
        if not file.readline():
            return {name: np.empty(0) for name in names}
        try:  # fast, for millions of rows
            values = np.loadtxt(_rows(file, begin, most), delimiter=",", ndmin=2)
        except ValueError:  # there is an empty cell
            rows = _rows(file, begin, most)
            values = np.array(
                [
                    [float(cell) if cell else np.nan for cell in row.rstrip("\n").split(",")]
                    for row in rows
                ]
            )
    return {name: values[:, i] for i, name in enumerate(names)}


def _rows(file: TextIO, begin: int, most: int | None) -> Iterable[str]:
    file.seek(begin)
    if most is None:
        return file
    selected = set(points(sum(1 for _ in file), most).tolist())
    file.seek(begin)
    return [row for i, row in enumerate(file) if i in selected]


def points(num: int, most: int) -> np.ndarray:
    """Choose at most `most` points of a line, evenly spaced, with both ends.  # int64[n]"""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(int))


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    try:
        completed = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None
