"""Read and write checkpoints: a folder with tensors as safetensors, numbers as JSON, and a manifest
with the SHA-256 of each part; no pickles.

A checkpoint is written to a temporary folder, synced, then renamed, so that its name never belongs
to an incomplete one.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from runner.errors import ConfigError, RunError, show
from runner.run import strict_json
from runner.run.run_folder import sync
from runner.spec import TrainState

FORMAT = 1
_PARTS = ("weights.safetensors", "optimizer.safetensors", "state.json")
_MANIFEST = "manifest.json"
# the exact name of a checkpoint's folder; 007, 20.bak and ² are the user's
_STEP = r"(?:0|[1-9][0-9]*)"
_STAGED, _POINTER = re.compile(rf"\.{_STEP}\.[0-9]+"), re.compile(r"\.(?:last|best)\.[0-9]+")


def write(folder: Path, state: TrainState, extra: Mapping[str, Any]) -> Path:
    """Write checkpoints/STEP of a run, with `extra` in its state.json. Return its folder."""
    return commit(stage(folder, state, state_json(state, extra)), state.step)


def state_json(state: TrainState, extra: Mapping[str, Any]) -> bytes:
    """Return the content of state.json: the format, the step, the names of the buffers, `extra`."""
    numbers = {"format": FORMAT, "step": state.step, "buffers": sorted(state.buffers), **extra}
    return strict_json.dumps(numbers, indent=None).encode()


def stage(folder: Path, state: TrainState, numbers: bytes) -> Path:
    """Write all files of a checkpoint, with `numbers` as its state.json, into a temporary folder,
    which readers ignore. They are not synced yet."""
    staged = folder / "checkpoints" / f".{state.step}.{os.getpid()}"
    try:
        os.makedirs(staged)
    except FileExistsError:  # from an earlier process with the same id
        _remove(staged)
        os.makedirs(staged)
    slots = {
        f"{slot}/{name}": value
        for slot, values in state.slots.items()
        for name, value in values.items()
    }
    parts = (
        _serialized({**state.weights, **state.buffers}),
        _serialized(slots),
        [numbers],
    )
    hashes = {
        name: _write(f"{staged}/{name}", pieces) for name, pieces in zip(_PARTS, parts, strict=True)
    }
    _write(f"{staged}/{_MANIFEST}", [json.dumps(hashes, indent=2).encode()])
    return staged


def _write(path: str, pieces: Iterable[bytes | memoryview]) -> str:
    """Write a file; return its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


# a state's dtypes -> safetensors' names
_DTYPES = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "|b1": "BOOL"} | {
    f"{'|' if size == 1 else '<'}{kind}{size}": f"{kind.upper()}{8 * size}"
    for kind in "iu"
    for size in (1, 2, 4, 8)
}


def _serialized(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of safetensors.numpy.save: the header's length, the header, the tensors.
    `save` would copy all of them twice."""
    header: dict[str, Any] = {}
    end = 0
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + value.nbytes
        header[name] = {
            "dtype": _DTYPES[value.dtype.str],
            "shape": value.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in header:
        yield np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data


def commit(staged: Path, step: int) -> Path:
    """Sync a staged checkpoint, then rename its folder to STEP and sync the parent folder."""
    for name in (*_PARTS, _MANIFEST):
        sync(f"{staged}/{name}")
    sync(staged)
    path = staged.with_name(str(step))
    if path.exists():
        _remove(path)
        if path.exists():  # it has files of the user, which must stay in it
            for file in os.listdir(path):
                os.rename(path / file, staged / file)
            os.rmdir(path)
    os.rename(staged, path)
    sync(path.parent)
    return path


def num_bytes(state: TrainState) -> int:
    """Count the bytes of a state's tensors."""
    groups = (state.weights, state.buffers, *state.slots.values())
    return sum(value.nbytes for values in groups for value in values.values())


def point(folder: Path, name: str, step: int) -> None:
    """Point checkpoints/last or /best to a step, by a symbolic link. The replacement is atomic."""
    checkpoints = f"{folder}/checkpoints"
    temporary = f"{checkpoints}/.{name}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(temporary)  # from an earlier process with the same id
    try:
        os.symlink(str(step), temporary)
    except OSError:  # a file system without links
        Path(temporary).write_text(str(step))
    os.replace(temporary, f"{checkpoints}/{name}")


def target(folder: Path, name: str) -> int | None:
    """Return the step that checkpoints/last or /best points to; None if it is missing or not a
    pointer."""
    path = folder / "checkpoints" / name
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
        return None
    step = os.readlink(path) if path.is_symlink() else path.read_text(errors="replace").strip()
    if not re.fullmatch(_STEP, step):
        raise RunError(f"{path} must be a link to a step beside it, got {show(step)}")
    return int(step)


def keep(folder: Path, kept: set[int]) -> None:
    """Remove the checkpoints of all other steps."""
    for step in steps(folder):
        if step not in kept:
            _remove(folder / "checkpoints" / str(step))


def _remove(path: Path) -> None:
    """Remove a checkpoint's files, and its folder if nothing else is in it."""
    for name in (*_PARTS, _MANIFEST):
        with suppress(FileNotFoundError):
            os.unlink(f"{path}/{name}")
    with suppress(OSError):
        os.rmdir(path)


def files(folder: Path, step: int) -> list[Path]:
    """Return the existing files of a checkpoint, then its folder."""
    return _files(folder / "checkpoints" / str(step))


def _files(path: Path) -> list[Path]:
    parts = (path / name for name in (*_PARTS, _MANIFEST))
    return [*(part for part in parts if os.path.lexists(part)), path]


def temporary_files(folder: Path) -> list[Path]:
    """Return what a process leaves that is killed while saving: pointers, and staged checkpoints
    with their files before their folder."""
    staged, pointers = _leftovers(folder)
    return [*pointers, *(file for path in staged for file in _files(path))]


def _leftovers(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the staged checkpoints and the pointers of a process that was killed while saving."""
    staged, pointers = [], []
    checkpoints = folder / "checkpoints"
    for entry in os.scandir(checkpoints) if checkpoints.is_dir() else ():
        is_folder = entry.is_dir(follow_symlinks=False)
        if _STAGED.fullmatch(entry.name) and is_folder:
            staged.append(Path(entry.path))
        elif _POINTER.fullmatch(entry.name) and not is_folder:
            pointers.append(Path(entry.path))
    return staged, pointers


def steps(folder: Path) -> list[int]:
    """Return the steps of the existing checkpoints, whole or damaged, in ascending order."""
    try:
        entries = [*os.scandir(folder / "checkpoints")]
    except FileNotFoundError:
        return []
    step_entries = [
        entry
        for entry in entries
        if re.fullmatch(_STEP, entry.name) and entry.is_dir(follow_symlinks=False)
    ]
    return sorted(
        int(entry.name)
        for entry in step_entries
        if any(os.path.lexists(f"{entry.path}/{name}") for name in _PARTS)
    )


def read(folder: Path, which: str | int = "last") -> tuple[TrainState, dict[str, Any]]:
    """Return the state of checkpoints/`which` and its state.json, checked with the manifest."""
    path = find(folder, which)
    try:
        parts = {name: (path / name).read_bytes() for name in _PARTS}
        hashes = dict(json.loads((path / _MANIFEST).read_bytes()))
        for name, part in parts.items():
            if hashlib.sha256(part).hexdigest() != hashes.get(name):
                raise RunError(
                    f"{path / name} does not match its SHA-256 in manifest.json: the "
                    f"checkpoint is damaged"
                )
        numbers: dict[str, Any] = strict_json.with_numbers(json.loads(parts["state.json"]))
        if numbers["format"] != FORMAT:
            raise RunError(
                f"{path} has checkpoint format {numbers['format']}; this version reads "
                f"format {FORMAT}"
            )
        step, values, flat = (
            numbers["step"],
            load(parts["weights.safetensors"]),
            load(parts["optimizer.safetensors"]),
        )
        buffers = {name: values.pop(name) for name in numbers["buffers"]}
    except (OSError, TypeError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"{path} is not a whole checkpoint: {error}") from None
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, value in flat.items():
        slot, _, name = key.partition("/")
        slots.setdefault(slot, {})[name] = value
    return TrainState(step, values, slots, buffers), numbers


def read_newest(folder: Path) -> tuple[TrainState, dict[str, Any], list[Exception]]:
    """Read `last`, or if it is damaged, the newest whole checkpoint. Return also the errors of the
    damaged ones."""
    damaged: dict[str, Exception] = {}  # by message, since `last` is also one of the steps
    candidates: list[str | int] = ["last", *reversed(steps(folder))]
    for which in candidates:
        try:
            return *read(folder, which), [*damaged.values()]
        except (RunError, MissingError) as error:
            damaged.setdefault(str(error), error)
    raise next(iter(damaged.values()))


def best_saved(folder: Path, step: int, best: Mapping[str, Any] | None) -> int | None:
    """Return the step of the best epoch's checkpoint for a run that resumes at `step`, or None.
    `best` is from that checkpoint's state.json."""
    candidates = [] if best is None else [int(best["step"])]
    candidates += [pointed] if (pointed := target(folder, "best")) is not None else []
    saved = steps(folder)
    return next((other for other in candidates if other <= step and other in saved), None)


def rewind_to(folder: Path, step: int, best: int | None) -> None:
    """Prepare the checkpoints for resuming at a step: point `last` and `best` to the checkpoints of
    that time, and remove temporary files of a process that was killed while saving. Later
    checkpoints stay until they are overwritten or no longer kept."""
    staged, pointers = _leftovers(folder)
    for path in staged:
        _remove(path)
    for path in pointers:
        path.unlink()
    point(folder, "last", step)
    if best is None:
        (folder / "checkpoints" / "best").unlink(missing_ok=True)
    else:
        point(folder, "best", best)


def links(folder: Path) -> Iterator[Path]:
    """Yield symbolic links in the place of a checkpoint's files, and `last` or `best` if they do
    not point to a step."""
    checkpoints = folder / "checkpoints"
    if checkpoints.is_symlink():
        yield checkpoints
        return
    for name in ("last", "best"):
        try:
            if target(folder, name) is None and (checkpoints / name).exists():
                yield checkpoints / name
        except RunError:
            yield checkpoints / name
    for entry in os.scandir(checkpoints) if checkpoints.is_dir() else ():
        if re.fullmatch(_STEP, entry.name):
            paths = (Path(entry.path), *(Path(entry.path, name) for name in (*_PARTS, _MANIFEST)))
            yield from (path for path in paths if path.is_symlink())


def find(folder: Path, which: str | int) -> Path:
    """Return the folder of a step, or of `last` or `best`. Raise MissingError if there is none."""
    pointed = target(folder, which) if which in ("last", "best") else None
    path = folder / "checkpoints" / str(which if pointed is None else pointed)
    is_name = which in ("last", "best") or re.fullmatch(_STEP, str(which))
    if not is_name or path.is_symlink() or not path.is_dir():
        pointers = [
            name for name in ("best", "last") if os.path.lexists(folder / "checkpoints" / name)
        ]
        existing = [*map(str, steps(folder)), *pointers]
        raise MissingError(
            f"{folder} has no checkpoint {which}; it has {', '.join(existing) or 'none'}"
        )
    return path


class MissingError(ConfigError):
    """Raised if a run's folder does not have a checkpoint."""


def weights_sha256(state: TrainState) -> str:
    """Hash the canonical weights and buffers, sorted by name: the name in UTF-8, the shape as
    little-endian int64, the values as little-endian float32 in row-major order. Equal hashes mean
    equal models."""
    digest = hashlib.sha256()
    values = {**state.weights, **state.buffers}
    for name in sorted(values):
        digest.update(name.encode())
        digest.update(np.array(values[name].shape, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(values[name], dtype="<f4").data)  # no copy
    return digest.hexdigest()
