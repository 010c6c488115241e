"""Compiled programs on disk, for later runs of the same user that would compile them again.

Layout, below the folder that `choose` records:

    programs/BACKEND-KEY/files/         what the framework's compiler writes and reads
    programs/BACKEND-KEY/contents.json  {"file": [bytes, crc32]} of every file in it
    programs/BACKEND-KEY/lock           shared by the processes that use the folder

KEY is a hash of everything that a program depends on and that its compiler does not check itself:
the framework's version, the processor's instructions, the number of threads. A run opens one folder
and uses it alone. Before it does, every file is compared with contents.json: one that differs is
removed, and so is one that is not listed if no other process may be writing it. So a process that
is killed at any moment, a full disk or a damaged file costs another compilation, never a result.

Nothing here fails a run. Without a usable folder nothing is kept: off, no space, not writable, a
system without file locks.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from runner.errors import ConfigError, show
from runner.text import console

VARIABLE = "TWINRUN_CACHE"  # a folder, or off; the user's
# The folder that the command line has chosen, for the processes that it starts; "": none. A
# notebook has none.
_CHOSEN = "TWINRUN_CACHE_CHOSEN"
LIMIT = 2**30  # bytes of all folders; the one that was used longest ago goes first
FOLDER_LIMIT = 2**26  # bytes of one folder, which a run reads as a whole; a larger one begins anew
_NEEDS = 2**28  # free bytes on the disk
_USED = 3600  # seconds after which the time of the last use is written again
_ATTEMPTS = 20  # to get a lock, one every 10 ms
_REMOVED = ".removed-"  # folders on their way out
_OF_PROCESS = ".process-"  # begins the name of a process's own folder
_LEFT_BEHIND = 7 * 24 * 3600  # seconds after which nobody needs a folder of another machine


def choose() -> None:
    """Choose the folder of a process of the command line, and of those that it starts."""
    os.environ[_CHOSEN] = _chosen(os.environ.get(VARIABLE, ""))


def _chosen(requested: str) -> str:
    if requested == "off" or fcntl is None:
        return ""
    if requested:
        return os.path.abspath(os.path.expanduser(requested))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the standard of these folders ignores it then
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "twinrun") if os.path.isabs(base) else ""


def check() -> None:
    """Refuse a value of TWINRUN_CACHE that cannot be a folder."""
    requested = os.environ.get(VARIABLE, "")
    if requested in ("", "off"):
        return
    path, problem = Path(os.path.expanduser(requested)), None
    try:
        if str(path).startswith("~"):
            problem = f"{path.parts[0]} is no user's folder"
        elif path.exists() and not path.is_dir():
            problem = "which is a file"
    except OSError as error:  # a name that is too long
        problem = error.strerror or str(error)
    if problem is not None:
        raise ConfigError(
            f"the environment variable {VARIABLE} must be a folder or off, got {show(requested)}"
            f", {problem}"
        )


def root() -> Path | None:
    """Return the folder that has the folders of programs; None if none are kept."""
    chosen = os.environ.get(_CHOSEN, "")
    return Path(chosen) / "programs" if chosen and fcntl is not None else None


def usable_root() -> Path | None:
    """Return `root` if it can be written and its disk has space; otherwise None."""
    path = root()
    if path is None:
        return None
    problem = _problem(path)
    if problem is None:
        return path
    if os.environ.get(VARIABLE):  # the user asks for this folder
        _warn(f"{VARIABLE}={os.environ[VARIABLE]} keeps no compiled programs: {problem}")
    return None


@cache
def _warn(text: str) -> None:
    """Print a warning once per process."""
    console.warn(text)


def _problem(path: Path) -> str | None:
    """Return why programs cannot be kept below the path; None if they can."""
    try:
        there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        if not there.is_dir():  # a file, or a link to nothing
            return f"{there} is not a folder"
        if not os.access(there, os.W_OK | os.X_OK):
            return f"{there} is not writable"
        status = path.stat() if there == path else None
        if status is not None and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            return f"others can write to {path}"  # what it holds is run
        if shutil.disk_usage(there).free < _NEEDS:
            return f"less than {_NEEDS >> 20} MB are free"
    except OSError as error:
        return error.strerror or "it cannot be read"
    return None


@cache
def machine() -> str:
    """Return a text that differs between processors with different instructions."""
    lines = []
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if not line.strip():  # the first processor is enough
                break
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                lines.append(line)
    return "\n".join([platform.machine(), platform.processor(), *lines])


class _Seen(NamedTuple):
    """A file as a process has verified it."""

    num_bytes: int
    changed_ns: int


@contextmanager
def opened(backend: str, parts: Mapping[str, object]) -> Iterator[Path | None]:
    """Open the folder of the programs that depend on `parts` and on this machine, in the block.
    Yield the path for the compiler's files, all of them verified; None if none are kept. After the
    block, what is new is listed for later runs."""
    path = usable_root()
    text = json.dumps([machine(), dict(parts)], sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    lock = None
    if path is not None:
        path /= f"{backend}-{key}"
        with suppress(OSError):
            lock = _lock(path)
    if path is None or lock is None:
        yield None
        return
    descriptor, is_alone = lock
    try:
        seen = None
        with suppress(OSError):
            seen = _verify(path, is_alone)
            if is_alone:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield path / "files" if seen is not None else None
        with suppress(OSError):
            if seen is not None and _list_new(path, seen):
                _evict(path.parent)
    finally:
        os.close(descriptor)


def _lock(path: Path) -> tuple[int, bool] | None:
    """Make and lock a folder: alone if no other process uses it, else with those. Return the
    descriptor and whether it is alone; None if another process keeps it for itself."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        (path / "files").mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                if _is_at(path / "lock", descriptor):
                    return descriptor, kind == fcntl.LOCK_EX
                break  # the folder was removed meanwhile
        os.close(descriptor)
        time.sleep(0.01)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether a path still is the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _files(path: Path) -> dict[str, Path]:
    """Return the compiler's files by their names below files/, in order."""
    files = path / "files"
    names = (
        Path(folder, name)
        for folder, _, found in os.walk(files)
        for name in found
        if not name.endswith((".tmp", ".lock"))
    )
    return {str(name.relative_to(files)): name for name in sorted(names)}


def _listed(path: Path) -> dict[str, list[int]]:
    """Return what contents.json lists; nothing if it is missing or damaged."""
    try:
        listed = json.loads((path / "contents.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return listed if isinstance(listed, dict) else {}


def _sum(file: Path) -> list[int]:
    content = file.read_bytes()
    return [len(content), zlib.crc32(content)]


def _verify(path: Path, is_alone: bool) -> dict[str, _Seen]:
    """Remove the files that contents.json does not list with their content; alone, also those that
    it does not list at all. Return the others."""
    listed, files, seen = _listed(path), _files(path), {}
    is_too_large = sum(file.stat().st_size for file in files.values()) > FOLDER_LIMIT
    for name, file in files.items():
        is_wrong = name in listed and listed[name] != _sum(file)
        if is_wrong or (is_alone and (name not in listed or is_too_large)):
            file.unlink(missing_ok=True)
        elif name in listed:
            seen[name] = _seen(file)
    return seen


def _seen(file: Path) -> _Seen:
    status = file.stat()
    return _Seen(status.st_size, status.st_mtime_ns)


def _list_new(path: Path, seen: Mapping[str, _Seen]) -> bool:
    """List the files that are new or have changed since the folder was opened. Return whether there
    are any. Without any, record that the folder was used."""
    new = {}
    for name, file in _files(path).items():
        with suppress(FileNotFoundError):  # another process has replaced it
            if seen.get(name) != _seen(file):
                new[name] = _sum(file)
    contents = path / "contents.json"
    if new:
        _write(contents, json.dumps({**_listed(path), **new}))
    elif contents.exists() and time.time() - contents.stat().st_mtime > _USED:
        os.utime(contents)
    return bool(new)


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole, also as others see it. It need not outlast a power cut: then files
    that it does not list are compiled again."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


@cache
def _here() -> str:
    """Return a text that differs between machines, and between containers of one: the numbers of
    processes mean something here only."""
    names = [platform.node()]
    with suppress(OSError):
        names.append(os.readlink("/proc/self/ns/pid"))
    with suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


def process_folder(path: Path) -> Path:
    """Return the name of a new folder of this process below `path`, after removing those of
    processes of this machine that were killed."""
    import psutil

    pattern = re.compile(rf"{re.escape(_OF_PROCESS)}{_here()}-([0-9]+)-[0-9a-f]+")
    with suppress(OSError):
        for name in os.listdir(path):
            match = pattern.fullmatch(name)
            if match is not None and not psutil.pid_exists(int(match[1])):
                shutil.rmtree(path / name, ignore_errors=True)
    # a killed process with the same number may have left its folder behind
    return path / f"{_OF_PROCESS}{_here()}-{os.getpid()}-{os.urandom(4).hex()}"


def is_of_process(flags: str) -> bool:
    """Return whether a text has the name of such a folder."""
    return _OF_PROCESS in flags


class Kept(NamedTuple):
    """A folder of programs."""

    path: Path
    num_files: int
    num_bytes: int
    used: float  # time.time() of the last use, to an hour


def kept(folder: Path) -> list[Kept]:
    """Return the folders of programs below `folder`, the one that was used last first."""
    found = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            with suppress(OSError):
                if (path / "files").is_dir():
                    found.append(_kept(path))
    return sorted(found, key=lambda each: each.used, reverse=True)


def _kept(path: Path) -> Kept:
    sizes = []
    for file in _files(path).values():
        with suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    contents = path / "contents.json"
    used = (contents if contents.exists() else path).stat().st_mtime
    return Kept(path, len(sizes), sum(sizes), used)


def _evict(folder: Path) -> None:
    """Remove the folders that were used longest ago until the others have at most LIMIT bytes."""
    num_bytes = 0
    for each in kept(folder):
        num_bytes += each.num_bytes
        if num_bytes > LIMIT:
            remove(each.path)
    for path in folder.glob(".*"):  # of processes that were killed
        with suppress(OSError):  # another process removes it
            is_private = path.name.startswith(_OF_PROCESS)
            if time.time() - path.stat().st_mtime > (_LEFT_BEHIND if is_private else _USED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove(path: Path) -> bool:
    """Remove a folder of programs. Return False if a process uses it or it cannot be removed."""
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        away = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=path.parent))
        path.replace(away)  # an empty folder can be replaced; readers see all of it or nothing
        shutil.rmtree(away)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
