"""The faults. Each function injects one, in a folder of its own, and raises AssertionError where
the run does not survive."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from runner.errors import RunError
from runner.run import checkpoint
from runner.run.run_folder import read_json
from tests.warm import Ended, run, start, until, wait

# twelve epochs of eight updates, a checkpoint every three, so that many saves fall inside an epoch;
# with masks
RUN = [
    (
        "model.layers=[{layer: dense, units: 32},{layer: dropout, rate: 0.2},{layer: dense, "
        "units: outputs}]"
    ),
    "trainer.batch_size=160",
    "trainer.max_epochs=12",
    "trainer.checkpoint_every=3steps",
    "trainer.steps_per_call=1",
    "schedule=cosine",
    "device=cpu",
]


def command(backend: str, *more: str, root: str = "out") -> list[str]:
    return [*RUN, f"backend={backend}", f"output.root={root}", *more]


TRUST = "trusted_modules=[tests.twin_models]"


# additions with a state of their own: a slot, a number, a position in the data
STATES = {
    "ema": ["optimizer.ema=0.9"],
    "lawa": ["optimizer.lawa=2"],
    "schedule_free": ["optimizer=schedule_free_adamw"],
    "prodigy": ["optimizer=prodigy"],
    "loss_scale": ["trainer.precision=16-mixed"],
    "batch_sizes": ["trainer.batch_size=[{for: 4epochs, size: 160},{for: rest, size: 320}]"],
}


def state_command(backend: str, name: str) -> list[str]:
    """The run with one of the STATES, at a constant rate, so that it can be made longer."""
    own = {said.partition("=")[0] for said in STATES[name]}
    kept = [said for said in command(backend) if said.partition("=")[0] not in {*own, "schedule"}]
    return [*kept, "schedule=constant", *STATES[name]]


def own_command(backend: str) -> list[str]:
    """The run with a model of the user's own, which has two outputs and the framework's dropout."""
    kind = {"lightning": "torch", "keras": "keras"}[backend]
    _, *others = RUN
    return [
        *(*others, f"backend={backend}", "output.root=out", TRUST),
        *("model=custom", f"model._target_=tests.twin_models.{kind}_headed"),
        *("loss=custom", "loss._target_=tests.twin_models.headed"),
        "metrics=[{_target_: tests.twin_models.largest}]",
    ]


def tuned_command(backend: str, trained: Path) -> list[str]:
    """The same from the weights of a run, with a frozen body."""
    frozen = 'optimizer.groups=[{match: "*body*", lr_factor: 0.0}]'
    return [*own_command(backend), f"model.weights={trained}", frozen]


def folder_of(here: Path) -> Path | None:
    return next(iter((here / "out" / "runs").glob("*")), None)


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of the last weights and slots, of the trace, and of the metrics but for their
    seconds."""
    last = folder / "checkpoints" / "last"
    parts = {
        name: (last / name).read_bytes()
        for name in ("weights.safetensors", "optimizer.safetensors")
    }
    parts["trace.csv"] = (folder / "trace.csv").read_bytes()
    rows = (folder / "metrics.csv").read_text().splitlines()
    parts["metrics.csv"] = "\n".join(row.rpartition(",")[0] for row in rows).encode()
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*")]


def uninterrupted(here: Path, said: list[str]) -> dict[str, str]:
    """The results that every interrupted run must reach."""
    here.mkdir()
    ended = run(here, said)
    assert ended.status == 0, ended.output
    folder = folder_of(here)
    assert folder is not None
    return fingerprint(folder)


def _begun(
    here: Path, said: list[str], draw: random.Random, while_saving: bool
) -> tuple[int, Path, Path]:
    """A run that has its first checkpoint, at a random moment after that; or one while a checkpoint
    is written."""
    log = here / "log.txt"
    child = start(here, said, log)
    until(
        lambda: (
            (folder := folder_of(here)) is not None and (folder / "checkpoints" / "last").exists()
        )
    )
    folder = folder_of(here)
    assert folder is not None
    time.sleep(draw.uniform(0, 0.35))
    if while_saving:
        deadline = time.monotonic() + 0.4  # the run may be over by then
        while time.monotonic() < deadline and not any((folder / "checkpoints").glob(".*")):
            pass
    return child, folder, log


def is_as(folder: Path, expected: dict[str, str], may_leave: tuple[str, ...] = ()) -> None:
    """Completed, with the bits of `expected`, and no temporary file but `may_leave`."""
    status, came = read_json(folder / "result.json")["status"], fingerprint(folder)
    assert status == "completed", status
    assert came == expected, [name for name in came if came[name] != expected[name]]
    left = [path for path in leftovers(folder) if Path(path).name not in may_leave]
    assert not left, left


def _goes_on(here: Path, folder: Path, backend: str, expected: dict[str, str], *more: str) -> None:
    """The rest gives the same bits. A run that was killed after its result has nothing to go on
    with, and keeps the file that names its process."""
    result = folder / "result.json"
    if result.is_file() and read_json(result)["status"] == "completed":
        is_as(folder, expected, may_leave=(".owner",))
        return
    ended = run(here, [f"resume={folder}", f"backend={backend}", *more])
    assert ended.status == 0, ended.output
    is_as(folder, expected)


def kill(
    here: Path,
    backend: str,
    said: list[str],
    draw: random.Random,
    expected: dict[str, str],
    number: int,
    *more: str,
) -> bool:
    """kill -9 at a random moment, every third time while a checkpoint is being written; the rest,
    which is resumed with `more`, gives the same bits. True if it hit a save."""
    child, folder, log = _begun(here, said, draw, while_saving=number % 3 == 0)
    os.kill(child, signal.SIGKILL)
    wait(child, log)
    hit = any((folder / "checkpoints").glob(".*"))
    _goes_on(here, folder, backend, expected, *more)
    return hit


def ranks_command(backend: str, num: int) -> list[str]:
    """The run in exact mode, where every number of processes gives the same bits."""
    kept = [said for said in command(backend) if not said.startswith("trainer.batch_size")]
    return [
        *(*kept, "trainer.global_batch_size=160", "trainer.precision=exact"),
        *("trainer.threads=1", f"devices={num}"),
    ]


def kill_rank(
    here: Path, backend: str, draw: random.Random, expected: dict[str, str], number: int
) -> tuple[bool, float]:
    """kill -9 of one of two or three processes of a run: all end with one line that names its rank.
    The rest gives the same bits, every second time with another number of processes. True if the
    run was not over before, and the seconds from the kill to the last process's end."""
    num = draw.choice([2, 3])
    child, folder, log = _begun(here, ranks_command(backend, num), draw, number % 3 == 0)
    started = [
        process
        for process in psutil.Process(child).children()
        if any("spawn_main" in part for part in process.cmdline())
    ]
    rank = draw.randrange(num)
    began = time.monotonic()
    for killed in sorted(started, key=lambda process: process.pid)[rank : rank + 1]:
        killed.kill()
    ended = wait(child, log)
    left = psutil.wait_procs(started, timeout=30)[1]
    seconds = time.monotonic() - began
    assert not left, left
    if is_hit := ended.status != 0:
        assert ended.status == 1, ended.output
        (told,) = (line for line in ended.output.splitlines() if line.startswith("error: "))
        assert told.startswith(f"error: rank {rank} was killed by SIGKILL; "), told
    assert seconds < 30, seconds
    other = draw.choice([other for other in (1, 2, 3) if other != num])
    _goes_on(here, folder, backend, expected, f"devices={other if number % 2 else num}")
    return is_hit, seconds


def kill_at_end(here: Path, backend: str, expected: dict[str, str], number: int) -> bool:
    """kill -9 as soon as the last checkpoint has its name: `resume` writes the files of the run's
    end. Every second time as soon as there is a result. True if there was none."""
    log = here / "log.txt"
    child = start(here, command(backend), log)
    _kill_when(
        child,
        log,
        lambda: (
            (folder := folder_of(here)) is not None
            and (folder / ("checkpoints/96", "result.json")[number % 2]).exists()
        ),
    )
    folder = folder_of(here)
    assert folder is not None
    hit = not (folder / "result.json").is_file()
    _goes_on(here, folder, backend, expected)
    assert (folder / "curves.png").is_file()
    return hit


def _kill_when(child: int, log: Path, holds: Callable[[], bool], later: float = 0.0) -> None:
    """kill -9 so many seconds after it holds; a child for which it never does is killed too, before
    its folder goes."""
    try:
        until(holds, timeout=300)
        time.sleep(later)
    finally:
        os.kill(child, signal.SIGKILL)
        wait(child, log)


def kill_state(
    here: Path,
    backend: str,
    said: list[str],
    draw: random.Random,
    expected: dict[str, str],
    number: int,
) -> None:
    """kill -9 of a run with one of the STATES; every second time of one that had ended after 40
    updates and is made longer. The rest gives the same bits."""
    if number % 2 == 0:
        kill(here, backend, said, draw, expected, number)
        return
    ended = run(here, [*said, "trainer.max_steps=40"])
    assert ended.status == 0, ended.output
    folder, log = folder_of(here), here / "log.txt"
    assert folder is not None
    longer = [f"resume={folder}", f"backend={backend}", "trainer.max_steps=null"]
    child = start(here, longer, log)
    _kill_when(
        child, log, lambda: checkpoint.read_newest(folder)[0].step > 40, draw.uniform(0, 0.2)
    )
    _goes_on(here, folder, backend, expected)


def kill_longer(
    here: Path, backend: str, draw: random.Random, source: Path, expected: dict[str, str]
) -> None:
    """kill -9 while a run of 50 updates that had ended is made one of 96, whose result.json is that
    of the 50 until then; with files of the user's own beside ours, which stay."""
    folder = here / "run"
    shutil.copytree(source, folder, symlinks=True)
    own = [
        folder / name
        for name in (
            ".notes",
            ".git/HEAD",
            "checkpoints/007/x",
            "checkpoints/20.bak/x",
            "checkpoints/.env",
        )
    ]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    before = (folder / "result.json").read_bytes()
    child = start(
        here, [f"resume={folder}", f"backend={backend}", "trainer.max_steps=96"], here / "log.txt"
    )
    _kill_when(
        child,
        here / "log.txt",
        lambda: (folder / "result.json").read_bytes() != before,
        draw.uniform(0, 0.4),
    )
    step = checkpoint.read_newest(folder)[0].step
    if step == 50:  # killed before config.yaml was to say 96
        _retry(here, folder, backend)
    assert [path.read_text() for path in own] == [path.name for path in own]
    for path in (
        *own,
        folder / ".git",
        folder / "checkpoints" / "007",
        folder / "checkpoints" / "20.bak",
    ):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _goes_on(here, folder, backend, expected)


def _retry(here: Path, folder: Path, backend: str) -> None:
    ended = run(here, [f"resume={folder}", f"backend={backend}", "trainer.max_steps=96"])
    assert ended.status == 0, ended.output


# a file of a run's folder, and what may stand in its place
_PLACES = (
    "config.yaml",
    "data.json",
    "environment.json",
    "result.json",
    "trace.csv",
    "metrics.csv",
    "run.log",
    "checkpoints",
    "checkpoints/last",
    "checkpoints/best",
    "checkpoints/50",
    "checkpoints/50/state.json",
)


def link(here: Path, backend: str, draw: random.Random, source: Path) -> None:
    """A symbolic link to elsewhere in the place of one of our files: refused, and nothing is
    written there."""
    folder, elsewhere = here / "run", here / "elsewhere"
    shutil.copytree(source, folder, symlinks=True)
    shutil.copytree(source, elsewhere, symlinks=True)
    place = folder / draw.choice(_PLACES)
    target = elsewhere / place.relative_to(folder)
    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    place.symlink_to(target)
    before = {path: path.lstat().st_mtime_ns for path in elsewhere.rglob("*")}
    ended = run(here, [f"resume={folder}", f"backend={backend}", "trainer.max_steps=96"])
    assert ended.status == 2, ended.output
    assert str(place) in ended.output
    assert len(ended.output.splitlines()) == 1, ended.output
    assert {path: path.lstat().st_mtime_ns for path in elsewhere.rglob("*")} == before


def cut_short(
    here: Path, backend: str, draw: random.Random, source: Path, expected: dict[str, str]
) -> None:
    """A file of the folder that ends at some byte: refused in one line with nothing written, or the
    run goes on to the same bits (where the file is written anew, or what it has lost was not
    needed)."""
    folder = here / "run"
    shutil.copytree(source, folder, symlinks=True)
    files = [folder / name for name in _PLACES[:6]]
    path = draw.choice(files)
    whole = path.read_bytes()
    path.write_bytes(whole[: draw.choice([0, draw.randrange(len(whole))])])
    before = {other: other.lstat().st_mtime_ns for other in folder.rglob("*")}
    ended = run(here, [f"resume={folder}", f"backend={backend}", "trainer.max_steps=96"])
    if ended.status == 0:
        assert path.name != "data.json"
        is_as(folder, expected)
    else:
        assert ended.status == 2, ended.output
        assert len(ended.output.splitlines()) == 1, ended.output
        assert {other: other.lstat().st_mtime_ns for other in folder.rglob("*")} == before


def end(
    here: Path, backend: str, draw: random.Random, expected: dict[str, str], number: int
) -> float:
    """SIGTERM or SIGINT: 143 or 130 within 5 s, a checkpoint of all updates that the trace has. The
    seconds that it took."""
    which = (signal.SIGTERM, signal.SIGINT)[number % 2]
    child, folder, log = _begun(here, command(backend), draw, while_saving=number % 3 == 0)
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


def end_twice(
    here: Path, backend: str, draw: random.Random, expected: dict[str, str], number: int
) -> None:
    """A second signal ends it at once; the checkpoint before is whole."""
    which = (signal.SIGTERM, signal.SIGINT)[number % 2]
    child, folder, log = _begun(here, command(backend), draw, while_saving=False)
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
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        raise PermissionError(done.stderr.decode())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def full(here: Path, backend: str, draw: random.Random) -> None:
    """A disk of 8 MB that is full from some save on: one line with the place and the bytes, the
    checkpoint before whole. The run has 8,000 saves, so that it is never over before."""
    with mounted(here / "disk", "-o", "size=8m"):
        log = here / "log.txt"
        endless = command(backend, "trainer.max_epochs=3000", root="disk")
        child = start(here, [said for said in endless if said != "trainer.max_epochs=12"], log)
        runs = here / "disk" / "runs"
        until(lambda: any(runs.glob("*/checkpoints/last")))
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGSTOP)
        with (here / "disk" / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        os.kill(child, signal.SIGCONT)
        ended = wait(child, log)
        assert ended.status == 1, ended.output
        (folder,) = runs.glob("*")
        failed = [line for line in ended.output.splitlines() if line.startswith("failed: ")]
        assert len(failed) == 1, ended.output
        assert "No space left on device" in failed[0], ended.output
        assert str(folder.relative_to(here)) in failed[0] or "bytes are free" in failed[0], (
            ended.output
        )
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
    """One bit, or everything after some byte, of a part of the last checkpoint: found, named, and
    the one before is taken."""
    last = (folder / "checkpoints" / "last").resolve()
    part = last / draw.choice(
        ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    )
    whole = part.read_bytes()
    try:
        if cut:
            part.write_bytes(whole[: draw.randrange(len(whole))])
        else:
            at = draw.randrange(len(whole))
            part.write_bytes(
                whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
            )
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
    assert (
        "is in use, another process trains in it" in loser.output
        or "nothing is left" in loser.output
    ), loser.output
