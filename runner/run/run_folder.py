"""A run's folder: its name, and the files that contract every reader can rely on."""

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
from types import NoneType
from typing import Any, TextIO

import numpy as np
from omegaconf import OmegaConf

from runner.dispatcher import BACKENDS
from runner.errors import ConfigError, RunError, show, show_path
from runner.machine import threads
from runner.run import strict_json

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# Files that are written beside their place and then renamed into it: .NAME.PID until then
_REPLACED = (
    "config.yaml",
    "data.json",
    "environment.json",
    "result.json",
    "certificate.json",
    "test.json",
    "trace.csv",
    "metrics.csv",
    ".owner",
)
_HEADERS = {"trace.csv": "step,learning_rate,loss", "metrics.csv": "epoch,step"}  # how they begin
_BESIDE = re.compile(rf"\.(?:{'|'.join(map(re.escape, _REPLACED))})\.[0-9]+")
# what a run or a task on it writes
_WRITTEN = ("*.yaml", "*.json", "*.csv", "*.npz", "*.png", "run.log", "model.*")

_PACKAGES = (
    *("twinrun", "numpy", "hydra-core"),
    *(package for about in BACKENDS.values() for package in about.packages),
)


# Folders of output.root; each holds a folder per command
PARENTS = ("runs", "multiruns", "find_lr", "comparisons", "previews")


def create(parent: Path, name: str) -> Path:
    """A new folder parent/name, or parent/name_2, _3, ...: two runs never share one, since making
    it is atomic."""
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


# As long as the path of a job's file below its multirun's folder: JOB/checkpoints/STEP/FILE
_BELOW = "/".join("x" * 128)


def check(folder: Path, key: str, said: Path) -> None:
    """Refuse a folder, below the one that `key` says, where its name or that of a file in it is too
    long for the file system. Making it would tell too, and leave its parents behind."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    there = missing[-1].parent if missing else folder
    try:
        for path in (*(there / path.name for path in missing), folder / _BELOW):
            with suppress(FileNotFoundError):
                path.lstat()
    except OSError as error:
        raise _not_writable(key, said, error) from None


def make(folder: Path, key: str) -> None:
    """Make the folder that `key` says, with its parents, unless it is there."""
    check(folder, key, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(key, folder, error) from None


def timestamp() -> str:
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


class InUseError(ConfigError):
    """Another process, `holder`, trains in the folder."""

    def __init__(self, folder: Path) -> None:
        self.holder = holder(folder) or "another process"
        super().__init__(f"resume: {folder} is in use, another process trains in it: {self.holder}")


_OWNER = ".owner"
# the folders that this process has locked, by device and inode -> the lock
_held: dict[tuple[int, int], int] = {}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time trains in a folder. The lock is the system's and ends with the process,
    however it ends.

    What this process has locked it may lock again. The holder is named in the folder's `.owner`
    meanwhile.
    """
    if fcntl is None:  # no such locks on this system
        yield
        return
    place = _identity(folder)
    if place in _held:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUseError(folder) from None
    _held[place] = descriptor
    try:
        _write_owner(folder)
        yield
    finally:
        (folder / _OWNER).unlink(missing_ok=True)
        del _held[place]
        os.close(descriptor)


def lent(folder: Path | None) -> Any:
    """This process's lock on a folder, for one that it has started: pickled there, it is the same
    lock. None: it has none."""
    from multiprocessing.reduction import DupFd

    descriptor = None if folder is None or fcntl is None else _held.get(_identity(folder))
    return None if descriptor is None else DupFd(descriptor)


@contextmanager
def borrowed(folder: Path | None, lock: Any) -> Iterator[None]:
    """Work in the folder under the other process's lock, which lasts until both have released
    it."""
    if folder is None or lock is None:
        yield
        return
    place, descriptor = _identity(folder), lock.detach()
    _held[place] = descriptor
    try:
        yield
    finally:
        del _held[place]
        os.close(descriptor)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Take turns with other commands in a multirun's folder. A turn takes moments, so this one
    waits."""
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
    with suppress(RunError):  # a full disk: the lock holds without it
        write_json(folder / _OWNER, owner)


def holder(folder: Path) -> str | None:
    """Name the process that trains in the folder: `process 123 on HOST`. None if there is none or
    it is unknown."""
    import psutil

    try:
        pid, said = _owner(folder)
        host, here = (
            re.sub(r"[^\w.-]", "", str(name))[:64] for name in (said["host"], platform.node())
        )
        if host == here:
            is_alive = psutil.Process(pid).create_time() == said["began"]
            return f"process {pid}" if is_alive else None
        return f"process {pid} on {host}"
    except (ConfigError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def held(folder: Path) -> dict[str, str]:
    """The jobs that other commands are training: folder's name -> who."""
    each = {path.parent.name: holder(path.parent) for path in folder.glob("*/config.yaml")}
    return {name: who for name, who in sorted(each.items()) if who is not None}


def owner(folder: Path) -> int | None:
    """The process that its `.owner` names."""
    try:
        return _owner(folder)[0]
    except (ConfigError, ValueError, KeyError, TypeError):
        return None


def _owner(folder: Path) -> tuple[int, dict[str, Any]]:
    """The process that `.owner` names, and all that it says."""
    said = read_json(folder / _OWNER)
    return int(said["pid"]), said


def restart(folder: Path) -> None:
    """Take back what a run without a checkpoint has recorded; run.log and all that is not the run's
    stay."""
    for name in ("trace.csv", "metrics.csv", "result.json", "curves.png"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into one line with the path and the number of free bytes."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise RunError(
            f"{path} cannot be written: {error.strerror}, {free} bytes are free"
        ) from error


def links(folder: Path) -> list[Path]:
    """Symbolic links in the place of a file that a run, or a task on it, writes."""
    return [
        path for path in folder.iterdir() if path.is_symlink() and any(map(path.match, _WRITTEN))
    ]


def records(folder: Path, step: int, steps_per_epoch: int) -> dict[str, list[str]]:
    """The lines of trace.csv and metrics.csv up to `step`: the header, a row for each update, one
    for each whole epoch. What comes after, with the row of an epoch that a shorter run left
    unfinished, will be made again."""
    return {
        "trace.csv": _lines(folder / "trace.csv", step, 0, range(step)),
        "metrics.csv": _lines(
            folder / "metrics.csv", step, 1, range(steps_per_epoch, step + 1, steps_per_epoch)
        ),
    }


def _lines(path: Path, step: int, column: int, steps: range) -> list[str]:
    """The header and the row of each of `steps`."""
    header = _HEADERS[path.name]
    numbers = {str(one) for one in steps}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            first, *rows = [*file] or [""]
    except OSError as error:
        raise ConfigError(f"resume: {path} cannot be read: {error.strerror}") from None
    num = first.count(",") + 1
    whole = ((row.rstrip("\n").split(","), row) for row in rows if row.endswith("\n"))
    kept = [
        (cells[column], row)
        for cells, row in whole
        if len(cells) == num and cells[column] in numbers and _are_numbers(cells)
    ]
    expected, found = [*map(str, steps)], [number for number, _ in kept]
    counts = Counter(found)
    wrong = [number for number in expected if counts[number] != 1]
    wrong += [number for number, other in zip(expected, found, strict=False) if number != other]
    if wrong or not first.startswith(header):
        what = (
            f"one row for step {wrong[0]}"
            if first.startswith(header)
            else f"the header {header},..."
        )
        raise ConfigError(
            f"resume: {path} must have {what} to go on from step {step}; checkpoint=STEP "
            f"goes on from an earlier one"
        )
    return [first, *(row for _, row in kept)]


def _are_numbers(cells: Iterable[str]) -> bool:
    """An empty cell is one that has no value."""
    try:
        return all(
            not cell or math.isfinite(float(cell)) or cell in ("nan", "inf", "-inf")
            for cell in cells
        )
    except ValueError:
        return False


def rewind(folder: Path, kept: Mapping[str, Sequence[str]]) -> None:
    """Leave of trace.csv and metrics.csv the lines that `records` gave."""
    for name, lines in kept.items():
        _write(folder / name, "".join(lines), is_durable=True, newline="")


def tidy(folder: Path) -> None:
    """Remove what a process that was killed while it wrote a file has left: our own names alone."""
    for entry in [*os.scandir(folder)]:
        if _BESIDE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


def sync_replaced(folder: Path) -> None:
    """Sync all files of the folder that are written as a whole, and the folder itself."""
    for path in (*(folder / name for name in _REPLACED), folder, folder.parent):
        if path.exists():
            sync(path)


def write_config(folder: Path, composed: Mapping[str, Any]) -> None:
    _write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(composed))))


def write_json(path: Path, values: Mapping[str, Any], is_durable: bool = False) -> None:
    _write(path, strict_json.dumps(values) + "\n", is_durable)


def _write(path: Path, text: str, is_durable: bool = False, newline: str | None = None) -> None:
    """Whole or not at all; `is_durable`: after a power cut too, which takes the time of a sync."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of an earlier process with this number
    try:
        with writing(path):
            # which goes through no link
            with beside.open("x", encoding="utf-8", newline=newline) as file:
                file.write(text)
            if is_durable:
                sync(beside)
            beside.replace(path)
    except RunError:
        beside.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """A file's content, or which files a folder has, on the disk."""
    is_folder = path.is_dir()
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
    """A JSON object; a ConfigError in one line where the file holds none, or has a key that it
    `needs` not as one of these types."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if text.strip() else None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged, it is not JSON: {show(error)}") from None
    if not isinstance(values, dict):
        what = "is empty" if not text.strip() else "holds no JSON object"
        raise ConfigError(f"{path} is damaged, it {what}")
    check_types(path, values, needs or {})
    return values


def check_types(path: Path, values: Mapping[str, Any], needs: Mapping[str, Sequence[type]]) -> None:
    """A ConfigError where a key of a file is missing or of none of its types."""
    for key, kinds in needs.items():
        if type(values.get(key)) not in kinds:
            got = show(values[key]) if key in values else "nothing"
            raise ConfigError(
                f"{path} is damaged: {key} must be {' or '.join(_KINDS[k] for k in kinds)}, "
                f"got {got}"
            )


def environment(device: str, num_threads: int, command: Sequence[str]) -> dict[str, Any]:
    """Describe where this runs, for a reader; nothing of it is read back."""
    return {
        "command": ["python", "-m", "runner", *command],
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


def packages() -> dict[str, str]:
    """Versions of this program and of what its numbers depend on; nothing is imported."""
    return {name: found for name in _PACKAGES if (found := _version(name))}


def read_columns(path: Path, most: int | None = None) -> dict[str, np.ndarray]:
    """trace.csv or metrics.csv as float64 columns by name; an empty cell is NaN. `most`: no more
    rows than that, evenly spaced, so that of millions only those are held."""
    try:
        return _read_columns(path, most)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {show(error)}") from None


def check_headers(folder: Path) -> None:
    """A ConfigError where trace.csv or metrics.csv is not there or does not begin as it should."""
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
        try:  # as quick as millions of rows need it
            values = np.loadtxt(_rows(file, begin, most), delimiter=",", ndmin=2)
        except ValueError:  # an empty cell
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
    chosen = set(points(sum(1 for _ in file), most).tolist())
    file.seek(begin)
    return [row for i, row in enumerate(file) if i in chosen]


def points(num: int, most: int) -> np.ndarray:
    """Choose the points of a line that stand for all: evenly spaced, with both ends. int64[n]."""
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
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
