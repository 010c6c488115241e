"""Faults of several commands, of a command with jobs of its own, and of what a run writes to."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from runner.run import checkpoint
from runner.run.run_folder import read_json
from tests.faults.rows import RUN, command, fingerprint, folder_of, is_as, leftovers
from tests.warm import run, start, until, wait

SEEDS = (0, 1, 2)


def _multirun(backend: str, *more: str) -> list[str]:
    seeds = ",".join(map(str, SEEDS))
    return [
        "-m",
        *RUN,
        f"backend={backend}",
        f"seed={seeds}",
        "output.root=out",
        "output.multirun=out/m",
        *more,
    ]


def alone(here: Path, backend: str) -> dict[int, dict[str, str]]:
    """Result that each seed's job must have, whichever command trains it."""
    here.mkdir()
    ended = run(here, _multirun(backend))
    assert ended.status == 0, ended.output
    return _fingerprints(here)


def _jobs(here: Path) -> list[Path]:
    return [
        path for path in (here / "out" / "m").iterdir() if path.is_dir() and path.name[0] != "."
    ]


def _fingerprints(here: Path) -> dict[int, dict[str, str]]:
    jobs = _jobs(here)
    assert len(jobs) == len(SEEDS), jobs
    assert all(read_json(job / "result.json")["status"] == "completed" for job in jobs)
    assert not [found for job in jobs for found in leftovers(job)]
    return {read_json(job / "result.json")["seed"]: fingerprint(job) for job in jobs}


def share(
    here: Path, backend: str, draw: random.Random, expected: dict[int, dict[str, str]], number: int
) -> int:
    """Two commands on one multirun, the second within 50 ms or while the first trains: every job
    once. How many the second trained. Every third time one of the two is killed, and a third
    command ends what is left."""
    logs = [here / "a.txt", here / "b.txt"]
    first = start(here, _multirun(backend), logs[0])
    time.sleep(draw.uniform(0, 0.05 if number % 2 else 1.0))
    second = start(here, _multirun(backend), logs[1])
    if number % 3 == 2:
        time.sleep(draw.uniform(0.2, 1.0))
        os.kill(draw.choice([first, second]), signal.SIGKILL)
    ended = [wait(child, log) for child, log in zip((first, second), logs, strict=True)]
    killed = [one.status == 128 + signal.SIGKILL for one in ended]
    assert all(one.status == 0 or was for one, was in zip(ended, killed, strict=True)), [
        one.output for one in ended
    ]
    said = "".join(one.output for one in ended)
    if any(killed):
        last = run(here, _multirun(backend))
        assert last.status == 0, last.output
    else:
        assert said.count("completed: 96 steps") == len(SEEDS), said
        assert f"{len(SEEDS)} of {len(SEEDS)} jobs completed" in said, said
    assert _fingerprints(here) == expected
    return ended[1].output.count("completed: 96 steps")


# A terminal's program does not ignore SIGINT; one that a shell has put in the background does
_AS_IN_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, [sys.executable, "-m", "runner", *sys.argv[1:]])
"""


def parent(
    here: Path, backend: str, draw: random.Random, expected: dict[int, dict[str, str]], number: int
) -> float:
    """SIGTERM, SIGINT (to the whole group, as a terminal sends it) or SIGKILL to the parent of a
    multirun: its jobs save and end, the same command goes on to the same bits. The seconds
    until the last process was gone."""
    which = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[number % 3]
    more = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if number % 2 else []
    log = here / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _AS_IN_A_TERMINAL, *_multirun(backend, *more)],
            cwd=here, stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    until(
        lambda: any((here / "out" / "m").glob("*/checkpoints/last")) or process.poll() is not None,
        timeout=120,
    )
    assert process.poll() is None, log.read_text()
    time.sleep(draw.uniform(0, 0.3))
    children = psutil.Process(process.pid).children(recursive=True)
    since = time.monotonic()
    (os.killpg if which == signal.SIGINT else os.kill)(process.pid, which)
    process.wait(timeout=60)
    left = psutil.wait_procs(children, timeout=60)[1]
    spent = time.monotonic() - since
    assert not left, left
    said = log.read_text()
    if f"{len(SEEDS)} of {len(SEEDS)} jobs completed" in said:  # it was over before the signal
        assert process.returncode == 0, (process.returncode, said)
    else:
        ended = -which if which == signal.SIGKILL else 128 + which
        assert process.returncode == ended, (process.returncode, said)
    assert "Traceback" not in said, said
    for job in _jobs(here):
        if (job / "result.json").is_file() and any((job / "checkpoints").glob("last")):
            steps = len((job / "trace.csv").read_text().splitlines()) - 1
            assert read_json(job / "result.json")["steps"] == steps == checkpoint.read(job)[0].step
    again = run(here, _multirun(backend))
    assert again.status == 0, again.output
    assert _fingerprints(here) == expected
    return spent


def terminal(
    here: Path, backend: str, draw: random.Random, expected: dict[str, str], number: int
) -> None:
    """A reader that goes away at a random moment, or a device that takes nothing: the run completes
    to the same bits."""
    out, err = here / "pipe", here / "err.txt"
    if number % 2:
        child = start(here, command(backend), Path("/dev/full"), err)
    else:
        os.mkfifo(out)
        reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        child = start(here, command(backend), out, err)
        until(lambda: folder_of(here) is not None)
        time.sleep(draw.uniform(0, 0.5))
        os.close(reader)
        os.kill(child, signal.SIGHUP)
    ended = wait(child, err)
    assert (ended.status, ended.output) == (0, ""), ended.output
    folder = folder_of(here)
    assert folder is not None
    is_as(folder, expected)


def file_limit(here: Path, backend: str, draw: random.Random, expected: dict[str, str]) -> bool:
    """Allow no file above a random size, as `ulimit -f` does, from a random moment on. The run ends
    with one line and status 1; if it has a checkpoint, it goes on to the same bits when there is
    room. Return True if the run met the limit."""
    if sys.platform != "linux":
        raise PermissionError("limits of another process are Linux's")
    import resource

    log = here / "log.txt"
    child = start(here, command(backend), log)
    time.sleep(draw.uniform(0, 0.8))
    size = draw.randrange(3000, 20000)  # a checkpoint's largest part has 18 kB
    resource.prlimit(child, resource.RLIMIT_FSIZE, (size, size))
    ended = wait(child, log)
    assert "Traceback" not in ended.output, ended.output
    if ended.status == 0:
        return False
    assert ended.status == 1, ended.output
    told = [line for line in ended.output.splitlines() if line.startswith(("failed: ", "error: "))]
    assert len(told) == 1, ended.output
    assert "File too large" in told[0], ended.output
    folder = folder_of(here)
    if folder is not None and (folder / "checkpoints" / "last").exists():
        again = run(here, [f"resume={folder}", f"backend={backend}"])
        assert again.status == 0, again.output
        is_as(folder, expected)
    return True
