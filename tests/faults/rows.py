"""The faults. Each function injects one, in a folder of its own, and raises AssertionError where the run does not survive."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner import checkpoint
from runner.errors import RunError
from runner.run_folder import read_json
from tests.warm import Ended, run, start, until, wait

# twelve epochs of eight updates, a checkpoint every three, so that many saves fall inside an epoch; with masks
RUN = [
    "model.layers=[{layer: dense, units: 32},{layer: dropout, rate: 0.2},{layer: dense, units: outputs}]",
    "trainer.batch_size=160",
    "trainer.max_epochs=12",
    "trainer.checkpoint_every=3steps",
    "trainer.steps_per_call=1",
    "schedule=cosine",
    "device=cpu",
]


def command(backend: str, *more: str, root: str = "out") -> list[str]:
    return [*RUN, f"backend={backend}", f"output.root={root}", *more]


def folder_of(here: Path) -> Path | None:
    return next(iter((here / "out" / "runs").glob("*")), None)


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of the last weights and slots, of the trace, and of the metrics but for their seconds."""
    last = folder / "checkpoints" / "last"
    parts = {name: (last / name).read_bytes() for name in ("weights.safetensors", "optimizer.safetensors")}
    parts["trace.csv"] = (folder / "trace.csv").read_bytes()
    rows = (folder / "metrics.csv").read_text().splitlines()
    parts["metrics.csv"] = "\n".join(row.rpartition(",")[0] for row in rows).encode()
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*")]


def uninterrupted(here: Path, backend: str) -> dict[str, str]:
    """What every interrupted run must come to."""
    here.mkdir()
    ended = run(here, command(backend))
    assert ended.status == 0, ended.output
    folder = folder_of(here)
    assert folder is not None
    return fingerprint(folder)


def _begun(here: Path, backend: str, draw: random.Random, while_saving: bool) -> tuple[int, Path, Path]:
    """A run that has its first checkpoint, at a random moment after that; or one while a checkpoint is written."""
    log = here / "log.txt"
    child = start(here, command(backend), log)
    until(lambda: (folder := folder_of(here)) is not None and (folder / "checkpoints" / "last").exists())
    folder = folder_of(here)
    assert folder is not None
    time.sleep(draw.uniform(0, 0.35))
    if while_saving:
        deadline = time.monotonic() + 0.4  # the run may be over by then
        while time.monotonic() < deadline and not any((folder / "checkpoints").glob(".*")):
            pass
    return child, folder, log


def _goes_on(here: Path, folder: Path, backend: str, expected: dict[str, str]) -> None:
    if not (folder / "result.json").is_file() or read_json(folder / "result.json")["status"] != "completed":
        ended = run(here, [f"resume={folder}", f"backend={backend}"])
        assert ended.status == 0, ended.output
    assert read_json(folder / "result.json")["status"] == "completed"
    assert fingerprint(folder) == expected
    assert leftovers(folder) == []


def kill(here: Path, backend: str, draw: random.Random, expected: dict[str, str], number: int) -> bool:
    """kill -9 at a random moment, every third time while a checkpoint is being written; the rest gives the same bits. True
    if it hit a save."""
    child, folder, log = _begun(here, backend, draw, while_saving=number % 3 == 0)
    os.kill(child, signal.SIGKILL)
    wait(child, log)
    hit = any((folder / "checkpoints").glob(".*"))
    _goes_on(here, folder, backend, expected)
    return hit


def end(here: Path, backend: str, draw: random.Random, expected: dict[str, str], number: int) -> float:
    """SIGTERM or SIGINT: 143 or 130 within 5 s, a checkpoint of all updates that the trace has. The seconds that it took."""
    which = (signal.SIGTERM, signal.SIGINT)[number % 2]
    child, folder, log = _begun(here, backend, draw, while_saving=number % 3 == 0)
    since = time.monotonic()
    os.kill(child, which)
    ended = wait(child, log, since)
    if ended.status != 0:  # else it was over before
        assert ended.status == 128 + which, (ended.status, ended.output)
        state, _ = checkpoint.read(folder)
        assert state.step == read_json(folder / "result.json")["steps"]
        assert state.step == len((folder / "trace.csv").read_text().splitlines()) - 1
    assert ended.seconds < 5
    _goes_on(here, folder, backend, expected)
    return ended.seconds


def end_twice(here: Path, backend: str, draw: random.Random, expected: dict[str, str], number: int) -> None:
    """A second signal ends it at once; the checkpoint before is whole."""
    which = (signal.SIGTERM, signal.SIGINT)[number % 2]
    child, folder, log = _begun(here, backend, draw, while_saving=False)
    os.kill(child, which)
    time.sleep(draw.uniform(0, 0.003))
    os.kill(child, which)
    ended = wait(child, log)
    assert ended.status in (0, 128 + which), (ended.status, ended.output)
    checkpoint.read(folder)
    _goes_on(here, folder, backend, expected)


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A tmpfs; where that is not allowed the fault cannot be made."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.decode())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def full(here: Path, backend: str, draw: random.Random) -> None:
    """A disk of 8 MB that is full from some save on: one line with the place and the bytes, the checkpoint before whole."""
    with mounted(here / "disk", "-o", "size=8m"):
        log = here / "log.txt"
        child = start(here, command(backend, root="disk"), log)
        runs = here / "disk" / "runs"
        until(lambda: any(runs.glob("*/checkpoints/last")))
        time.sleep(draw.uniform(0, 0.05))
        with (here / "disk" / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        ended = wait(child, log)
        assert ended.status == 1, ended.output
        (folder,) = runs.glob("*")
        failed = [line for line in ended.output.splitlines() if line.startswith("failed: ")]
        assert len(failed) == 1, ended.output
        assert "No space left on device" in failed[0], ended.output
        assert str(folder.relative_to(here)) in failed[0] or "bytes are free" in failed[0], ended.output
        state, _, damaged = checkpoint.read_newest(folder)
        assert state.step >= 3, damaged


def read_only(here: Path, backend: str) -> float:
    """Refused before anything trains; the seconds that it took."""
    with mounted(here / "disk", "-o", "ro,size=8m"):
        began = time.monotonic()
        ended = run(here, command(backend, root="disk/out"))
        assert ended.status == 2, ended.output
        assert "output.root must be a folder that can be written to" in ended.output
        assert len(ended.output.splitlines()) == 1
        return time.monotonic() - began


def damage(folder: Path, draw: random.Random, cut: bool) -> None:
    """One bit, or everything after some byte, of a part of the last checkpoint: found, named, and the one before is taken."""
    last = (folder / "checkpoints" / "last").resolve()
    part = last / draw.choice(["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
    whole = part.read_bytes()
    try:
        if cut:
            part.write_bytes(whole[: draw.randrange(len(whole))])
        else:
            at = draw.randrange(len(whole))
            part.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        told = None
        try:
            checkpoint.read(folder)
        except RunError as error:
            told = str(error)
        assert told is not None, f"{part.name} was damaged and is read"
        assert last.name in told, told
        state, _, damaged = checkpoint.read_newest(folder)
        assert state.step < int(last.name)
        assert len(damaged) == 1
    finally:
        part.write_bytes(whole)


def race(here: Path, backend: str, source: Path) -> None:
    """Two that go on with one run at the same moment: one does, the other is told so."""
    folder = here / "run"
    shutil.copytree(source, folder, symlinks=True)
    more = [f"resume={folder}", f"backend={backend}"]
    logs = [here / "a.txt", here / "b.txt"]
    children = [start(here, more, log) for log in logs]
    ended: list[Ended] = [wait(child, log) for child, log in zip(children, logs, strict=True)]
    assert sorted(one.status for one in ended) == [0, 2], [one.output for one in ended]
    loser = next(one for one in ended if one.status == 2)
    assert "is in use, another process trains in it" in loser.output or "nothing is left" in loser.output, loser.output
