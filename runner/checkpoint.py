"""TrainState <-> folder: tensors as safetensors, numbers as JSON, a manifest with the SHA-256 of each part; no pickles.

A checkpoint is written beside its place, synced, and renamed into it, so that a name never stands for half of one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from runner.errors import RunError
from runner.spec import TrainState

FORMAT = 1
_PARTS = ("weights.safetensors", "optimizer.safetensors", "state.json")
_MANIFEST = "manifest.json"


def write(folder: Path, state: TrainState, extra: Mapping[str, Any]) -> Path:
    """checkpoints/STEP of a run; `extra` goes into state.json. Its place afterwards."""
    return commit(stage(folder, state, extra), state.step)


def stage(folder: Path, state: TrainState, extra: Mapping[str, Any]) -> Path:
    """All files of a checkpoint, beside its place: not yet one that a reader finds, nor safe from a power cut."""
    beside = folder / "checkpoints" / f".{state.step}.{os.getpid()}"
    beside.mkdir(parents=True)
    slots = {f"{slot}/{name}": value for slot, values in state.slots.items() for name, value in values.items()}
    numbers = {"format": FORMAT, "step": state.step, "buffers": sorted(state.buffers), **extra}
    parts = (
        _serialized({**state.weights, **state.buffers}),
        _serialized(slots),
        [json.dumps(numbers, indent=2).encode()],
    )
    hashes = {name: _write(beside / name, pieces) for name, pieces in zip(_PARTS, parts, strict=True)}
    _write(beside / _MANIFEST, [json.dumps(hashes, indent=2).encode()])
    return beside


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


_DTYPES = {"<f8": "F64", "<f4": "F32"}  # those that a state has, by safetensors' names


def _serialized(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The bytes of safetensors.numpy.save, which copies all of them twice: the header's length, the header, the tensors."""
    header: dict[str, Any] = {}
    end = 0
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _DTYPES[value.dtype.str], "shape": value.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in header:
        yield np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data


def commit(beside: Path, step: int) -> Path:
    """Sync what was staged, then rename it into its place."""
    for name in (*_PARTS, _MANIFEST):
        _sync(f"{beside}/{name}", os.O_RDWR)
    place = beside.with_name(str(step))
    if place.exists():
        shutil.rmtree(place)
    os.rename(beside, place)
    if os.name == "posix":
        _sync(str(place.parent), os.O_RDONLY)
    return place


def num_bytes(state: TrainState) -> int:
    """Of its tensors."""
    groups = (state.weights, state.buffers, *state.slots.values())
    return sum(value.nbytes for values in groups for value in values.values())


def point(folder: Path, name: str, step: int) -> None:
    """checkpoints/last or /best: a symbolic link to the step's folder, replaced in one go."""
    places = f"{folder}/checkpoints"
    beside = f"{places}/.{name}.{os.getpid()}"
    try:
        os.symlink(str(step), beside)
    except OSError:  # a file system without links
        Path(beside).write_text(str(step))
    os.replace(beside, f"{places}/{name}")


def keep(folder: Path, kept: set[int]) -> None:
    """Remove the checkpoints of all other steps."""
    places = f"{folder}/checkpoints"
    for name in os.listdir(places):
        if name.isdigit() and int(name) not in kept:
            for part in os.listdir(f"{places}/{name}"):
                os.unlink(f"{places}/{name}/{part}")
            os.rmdir(f"{places}/{name}")


def steps(folder: Path) -> list[int]:
    """Of the checkpoints that there are, whole or not."""
    return sorted(int(place.name) for place in (folder / "checkpoints").glob("[0-9]*"))


def read(folder: Path, which: str | int = "last") -> tuple[TrainState, dict[str, Any]]:
    """The state of checkpoints/`which` and its state.json, checked against the manifest."""
    place = _place(folder, which)
    try:
        parts = {name: (place / name).read_bytes() for name in _PARTS}
        hashes = dict(json.loads((place / _MANIFEST).read_bytes()))
        for name, part in parts.items():
            if hashlib.sha256(part).hexdigest() != hashes.get(name):
                raise RunError(f"{place / name} does not match its SHA-256 in manifest.json: the checkpoint is damaged")
        numbers: dict[str, Any] = json.loads(parts["state.json"])
        if numbers["format"] != FORMAT:
            raise RunError(f"{place} has checkpoint format {numbers['format']}; this version reads format {FORMAT}")
        step, values, flat = numbers["step"], load(parts["weights.safetensors"]), load(parts["optimizer.safetensors"])
        buffers = {name: values.pop(name) for name in numbers["buffers"]}
    except (OSError, TypeError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"{place} is not a whole checkpoint: {error}") from None
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, value in flat.items():
        slot, _, name = key.partition("/")
        slots.setdefault(slot, {})[name] = value
    return TrainState(step, values, slots, buffers), numbers


def read_newest(folder: Path) -> tuple[TrainState, dict[str, Any], list[RunError]]:
    """`last`, or where it is damaged the newest whole one; and what is wrong with those passed over."""
    damaged: dict[str, RunError] = {}  # by what is said: `last` is one of the steps
    places: list[str | int] = ["last", *reversed(steps(folder))]
    for which in places:
        try:
            return *read(folder, which), [*damaged.values()]
        except RunError as error:
            damaged.setdefault(str(error), error)
    raise next(iter(damaged.values()))


def tidy(folder: Path) -> None:
    """Remove what a process that was killed while it saved has left."""
    for place in (*folder.glob(".*"), *(folder / "checkpoints").glob(".*")):
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()


def _place(folder: Path, which: str | int) -> Path:
    place = folder / "checkpoints" / str(which)
    if place.is_file():
        place = place.with_name(place.read_text().strip())
    if not place.is_dir():
        there = sorted(p.name for p in place.parent.glob("[!.]*")) if place.parent.is_dir() else []
        raise RunError(f"{folder} has no checkpoint {which}; it has {', '.join(there) or 'none'}")
    return place.resolve()


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def weights_sha256(state: TrainState) -> str:
    """Over the canonical weights and buffers in float32, by sorted name: the name in UTF-8, the shape as little-endian
    int64, the values as little-endian float32 in row-major order. Equal hashes mean equal models."""
    digest = hashlib.sha256()
    values = {**state.weights, **state.buffers}
    for name in sorted(values):
        digest.update(name.encode())
        digest.update(np.array(values[name].shape, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(values[name], dtype="<f4").tobytes())
    return digest.hexdigest()
