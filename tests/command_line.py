"""The command line, in processes of their own: interpreters of their own, or forks of one that has
imported a backend."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.warm import Parent, until

REPOSITORY = Path(__file__).resolve().parent.parent
BACKENDS = ("lightning", "keras")
OTHER = {"lightning": "keras", "keras": "lightning"}

# What `finished` of conftest.py runs. 1,280 rows in batches of 100 are 12 whole ones and one of 80,
# so 13 updates an epoch; 30 updates are two epochs and 4 updates of a third.
SHORT = (
    "schedule=exponential",
    "schedule.decay_rate=0.5",
    "schedule.decay_steps=10",
    "trainer.batch_size=100",
    "trainer.max_steps=30",
    "device=cpu",
)

# Two processes at once on two cores run faster with a thread each.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
)


class Done(NamedTuple):
    status: int
    out: str
    err: str
    seconds: float

    @property
    def folder(self) -> str:
        """The run's or multirun's folder, as the last lines say it."""
        return next(
            line.removeprefix("folder   ")
            for line in self.out.splitlines()[::-1]
            if line.startswith("folder")
        )


class Finished(NamedTuple):
    done: Done
    path: Path


def _environment() -> dict[str, str]:
    """Return the environment of the tests, without the process that writes for wandb: a run would
    share one that a test has started, and a kill of the run would not end it."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **ONE_THREAD}
    environment.pop("WANDB_SERVICE", None)
    return environment


def start(folder: Path, *arguments: str, shell: str | None = None) -> subprocess.Popen[str]:
    """`python -m runner ARGUMENTS` in `folder`; `shell` is a script that has the command as
    "$@"."""
    command = [sys.executable, "-m", "runner", *arguments]
    return subprocess.Popen(
        command if shell is None else ["sh", "-c", shell, "sh", *command],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_new_process(folder: Path, code: str) -> str:
    """Run a script in an interpreter of its own; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def together(folder: Path, *command_lines: tuple[str, ...]) -> list[Done]:
    """All of them started at once, each an interpreter of its own; what came of each."""
    began = time.time()
    done = []
    for process in [start(folder, *arguments) for arguments in command_lines]:
        out, err = process.communicate(timeout=300)
        done.append(Done(process.returncode, out, err, time.time() - began))
    return done


def forked(folder: Path, *command_lines: tuple[str, ...]) -> list[Done]:
    """The same in forks of an interpreter that has imported the backend: for what does not go by
    how a process starts, nor by an environment that the test has changed."""
    if sys.platform != "linux":  # elsewhere frameworks do not bear it
        return together(folder, *command_lines)
    began = time.time()
    done = []
    with tempfile.TemporaryDirectory() as name:
        started = []
        for i, arguments in enumerate(command_lines):
            parent = _parent(_backend_of(folder, arguments))
            out, err = (Path(name) / f"{i}.{stream}" for stream in ("out", "err"))
            started.append((parent, parent.start(folder, arguments, out, err), out, err))
        for parent, child, out, err in started:
            status = parent.wait(child, err)
            done.append(Done(status, out.read_text(), err.read_text(), time.time() - began))
    return done


def begun(folder: Path, *arguments: str, out: Path, err: Path) -> int:
    """A run on Lightning that is forked as those are, with other files for what it says; its
    process."""
    return _parent("lightning").start(folder, arguments, out, err)


def ended(child: int, err: Path) -> int:
    """Its exit status."""
    return _parent("lightning").wait(child, err)


class Running:
    """A run that is forked as those are and goes on beside the test, which sends it a signal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._texts = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._texts.name) / stream for stream in ("out", "err"))
        self._parent = _parent(_backend_of(folder, arguments))
        self.pid = self._parent.start(folder, arguments, self._out, self._err)
        self._done: Done | None = None

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it is still there, as after a failed assertion."""
        if self._done is None:
            self.end(signal.SIGKILL)
        self._texts.cleanup()

    def until(self, holds: Callable[[], bool], timeout: float = 120) -> None:
        """Wait until `holds()` is true. The error after `timeout` seconds has what was printed."""
        try:
            until(holds, timeout)
        except TimeoutError as error:
            printed = "".join(self._printed())
            raise TimeoutError(f"{error}; the run has printed: {printed}") from None

    def end(self, number: int) -> Done:
        """Send the signal and wait; the exit status is as a shell has it: 128 + n."""
        sent = time.time()
        os.kill(self.pid, number)
        status = self._parent.wait(self.pid, self._err)
        self._done = Done(status, *self._printed(), time.time() - sent)
        return self._done

    def errors(self) -> str:
        """Return stderr so far."""
        return self._printed()[1]

    def _printed(self) -> tuple[str, str]:
        """Return stdout and stderr so far."""
        return self._out.read_text(), self._err.read_text()


def _backend_of(folder: Path, arguments: Sequence[str]) -> str:
    """The backend that is asked for, or else that of the run that is resumed or used."""
    said = dict(argument.partition("=")[::2] for argument in arguments)
    run = folder / (said.get("resume") or said.get("run") or "") / "config.yaml"
    if "backend" not in said and run.is_file():
        said["backend"] = "keras" if "backend: keras\n" in run.read_text() else "lightning"
    return "keras" if said.get("backend") == "keras" else "lightning"


@cache
def _parent(backend: str) -> Parent:
    return Parent(backend, _environment())


def mlp(weights: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The default model's outputs, in NumPy and float64.  # x [N, D] -> float64[N, C]"""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    hidden = np.maximum(x @ w["dense_0/kernel"] + w["dense_0/bias"], 0)
    return hidden @ w["dense_1/kernel"] + w["dense_1/bias"]


def loss_and_accuracy(z: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean of -log softmax(z)_y, and the share of rows whose largest output is the label's."""
    log_sum = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)
    return float(np.mean(log_sum - z[np.arange(len(y)), y])), float(np.mean(z.argmax(1) == y))


def weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    """As contract.md spells it; a shape is int64 numbers. Written again here, so that runner/ has a
    witness."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode("utf-8"))
        digest.update(b"".join(size.to_bytes(8, "little") for size in value.shape))
        digest.update(value.astype("<f4").tobytes("C"))
    return digest.hexdigest()
