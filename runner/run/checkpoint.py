"""TrainState <-> folder: tensors as safetensors, numbers as JSON, a manifest with the SHA-256 of
each part; no pickles.

A checkpoint is written beside its place, synced, and renamed into it, so that a name never stands
for half of one.
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
# a checkpoint's folder, by its exact name: 007, 20.bak and ² are not ours
_STEP = r"(?:0|[1-9][0-9]*)"
_STAGED, _POINTER = re.compile(rf"\.{_STEP}\.[0-9]+"), re.compile(r"\.(?:last|best)\.[0-9]+")


def write(folder: Path, state: TrainState, extra: Mapping[str, Any]) -> Path:
    """checkpoints/STEP of a run; `extra` goes into state.json. Its place afterwards."""
    return commit(stage(folder, state, extra), state.step)


def stage(folder: Path, state: TrainState, extra: Mapping[str, Any]) -> Path:
    """All files of a checkpoint, beside its place: not yet one that a reader finds, nor safe from a
    power cut."""
    beside = folder / "checkpoints" / f".{state.step}.{os.getpid()}"
    _remove(beside)  # of an earlier process with this number
    beside.mkdir(parents=True)
    slots = {
        f"{slot}/{name}": value
        for slot, values in state.slots.items()
        for name, value in values.items()
    }
    numbers = {"format": FORMAT, "step": state.step, "buffers": sorted(state.buffers), **extra}
    parts = (
        _serialized({**state.weights, **state.buffers}),
        _serialized(slots),
        [strict_json.dumps(numbers).encode()],
    )
    hashes = {
        name: _write(beside / name, pieces) for name, pieces in zip(_PARTS, parts, strict=True)
    }
    _write(beside / _MANIFEST, [json.dumps(hashes, indent=2).encode()])
    return beside


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write a file; return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


_DTYPES = {"<f8": "F64", "<f4": "F32"}  # those that a state has, by safetensors' names


def _serialized(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The bytes of safetensors.numpy.save, which copies all of them twice: the header's length, the
    header, the tensors."""
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


def commit(beside: Path, step: int) -> Path:
    """Sync what was staged, its folder with it, then rename it into its place and sync that."""
    for name in (*_PARTS, _MANIFEST):
        sync(beside / name)
    sync(beside)
    place = beside.with_name(str(step))
    if place.exists():
        _remove(place)
        if place.exists():  # files of the user's own: they stay where they are
            for file in os.listdir(place):
                os.rename(place / file, beside / file)
            os.rmdir(place)
    os.rename(beside, place)
    sync(place.parent)
    return place


def num_bytes(state: TrainState) -> int:
    """Count the bytes of a state's tensors."""
    groups = (state.weights, state.buffers, *state.slots.values())
    return sum(value.nbytes for values in groups for value in values.values())


def point(folder: Path, name: str, step: int) -> None:
    """checkpoints/last or /best: a symbolic link to the step's folder, replaced in one go."""
    places = f"{folder}/checkpoints"
    beside = f"{places}/.{name}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(beside)  # of an earlier process with this number
    try:
        os.symlink(str(step), beside)
    except OSError:  # a file system without links
        Path(beside).write_text(str(step))
    os.replace(beside, f"{places}/{name}")


def target(folder: Path, name: str) -> int | None:
    """The step that checkpoints/last or /best points to; None: it is no pointer, or not there."""
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


def _remove(place: Path) -> None:
    """A checkpoint's files by their names, and its folder where nothing else is in it."""
    for name in (*_PARTS, _MANIFEST):
        with suppress(FileNotFoundError):
            os.unlink(place / name)
    with suppress(OSError):
        os.rmdir(place)


def steps(folder: Path) -> list[int]:
    """Steps of the existing checkpoints, whole or damaged, in ascending order."""
    try:
        entries = [*os.scandir(folder / "checkpoints")]
    except FileNotFoundError:
        return []
    mine = [
        entry
        for entry in entries
        if re.fullmatch(_STEP, entry.name) and entry.is_dir(follow_symlinks=False)
    ]
    return sorted(
        int(entry.name)
        for entry in mine
        if any(os.path.lexists(f"{entry.path}/{name}") for name in _PARTS)
    )


def read(folder: Path, which: str | int = "last") -> tuple[TrainState, dict[str, Any]]:
    """The state of checkpoints/`which` and its state.json, checked against the manifest."""
    place = find(folder, which)
    try:
        parts = {name: (place / name).read_bytes() for name in _PARTS}
        hashes = dict(json.loads((place / _MANIFEST).read_bytes()))
        for name, part in parts.items():
            if hashlib.sha256(part).hexdigest() != hashes.get(name):
                raise RunError(
                    f"{place / name} does not match its SHA-256 in manifest.json: the "
                    f"checkpoint is damaged"
                )
        numbers: dict[str, Any] = strict_json.with_numbers(json.loads(parts["state.json"]))
        if numbers["format"] != FORMAT:
            raise RunError(
                f"{place} has checkpoint format {numbers['format']}; this version reads "
                f"format {FORMAT}"
            )
        step, values, flat = (
            numbers["step"],
            load(parts["weights.safetensors"]),
            load(parts["optimizer.safetensors"]),
        )
        buffers = {name: values.pop(name) for name in numbers["buffers"]}
    except (OSError, TypeError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"{place} is not a whole checkpoint: {error}") from None
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, value in flat.items():
        slot, _, name = key.partition("/")
        slots.setdefault(slot, {})[name] = value
    return TrainState(step, values, slots, buffers), numbers


def read_newest(folder: Path) -> tuple[TrainState, dict[str, Any], list[Exception]]:
    """`last`, or where it is damaged the newest whole one; and what is wrong with those passed
    over."""
    damaged: dict[str, Exception] = {}  # by what is said: `last` is one of the steps
    places: list[str | int] = ["last", *reversed(steps(folder))]
    for which in places:
        try:
            return *read(folder, which), [*damaged.values()]
        except (RunError, MissingError) as error:
            damaged.setdefault(str(error), error)
    raise next(iter(damaged.values()))


def best_saved(folder: Path, step: int, best: Mapping[str, Any] | None) -> int | None:
    """The best epoch's checkpoint for a run that goes on from `step`, whose state.json has `best`;
    None: there is none."""
    known = [] if best is None else [int(best["step"])]
    known += [pointed] if (pointed := target(folder, "best")) is not None else []
    saved = steps(folder)
    return next((one for one in known if one <= step and one in saved), None)


def go_back(folder: Path, step: int, best: int | None) -> None:
    """Prepare the checkpoints of a run that goes on from a step: point `last` and `best` to what
    they were then, and remove what a process that was killed while saving has left. Later
    checkpoints stay until they are written again or no longer kept."""
    for entry in [*os.scandir(folder / "checkpoints")]:
        if _STAGED.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            _remove(Path(entry.path))
        elif _POINTER.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
    point(folder, "last", step)
    if best is None:
        (folder / "checkpoints" / "best").unlink(missing_ok=True)
    else:
        point(folder, "best", best)


def links(folder: Path) -> Iterator[Path]:
    """Symbolic links where a checkpoint's files belong, and what stands for `last` and `best` but
    is none to a step."""
    places = folder / "checkpoints"
    if places.is_symlink():
        yield places
        return
    for name in ("last", "best"):
        try:
            if target(folder, name) is None and (places / name).exists():
                yield places / name
        except RunError:
            yield places / name
    for entry in os.scandir(places) if places.is_dir() else ():
        if re.fullmatch(_STEP, entry.name):
            own = (Path(entry.path), *(Path(entry.path, name) for name in (*_PARTS, _MANIFEST)))
            yield from (path for path in own if path.is_symlink())


def find(folder: Path, which: str | int) -> Path:
    """The folder of a step, or of `last` or `best`. MissingError where there is none."""
    pointed = target(folder, which) if which in ("last", "best") else None
    place = folder / "checkpoints" / str(which if pointed is None else pointed)
    is_name = which in ("last", "best") or re.fullmatch(_STEP, str(which))
    if not is_name or place.is_symlink() or not place.is_dir():
        pointers = [
            name for name in ("best", "last") if os.path.lexists(folder / "checkpoints" / name)
        ]
        there = [*map(str, steps(folder)), *pointers]
        raise MissingError(
            f"{folder} has no checkpoint {which}; it has {', '.join(there) or 'none'}"
        )
    return place


class MissingError(ConfigError):
    """A run's folder has no such checkpoint."""


def weights_sha256(state: TrainState) -> str:
    """Over the canonical weights and buffers in float32, by sorted name: the name in UTF-8, the
    shape as little-endian int64, the values as little-endian float32 in row-major order. Equal
    hashes mean equal models."""
    digest = hashlib.sha256()
    values = {**state.weights, **state.buffers}
    for name in sorted(values):
        digest.update(name.encode())
        digest.update(np.array(values[name].shape, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(values[name], dtype="<f4").tobytes())
    return digest.hexdigest()
