"""One run of one contestant in a process of its own: its training phase, the whole of it, its
memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.contestants import Contestant, Model, environment
from runner.run.run_folder import read_columns

T = TypeVar("T")

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    train_seconds: float
    # of the training phase, without the first epoch and what it has to trace, compile and import
    later_seconds: float
    first_seconds: float  # from before the process is made to the first batch
    whole_seconds: float  # from before the process is made until it has ended
    peak_megabytes: float
    num_steps: int
    num_epochs: int
    val_accuracy: float

    @property
    def steps_per_second(self) -> float:
        return self.num_steps / self.train_seconds

    @property
    def later_steps_per_second(self) -> float:
        return self.num_steps * (1 - 1 / self.num_epochs) / self.later_seconds


def measure(contestant: Contestant, model: Model, rows: Path) -> Run:
    """A fresh process in a fresh folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = contestant.command(model, rows, folder)
        began = time.time()
        seconds, megabytes, output = execute(
            command, {**os.environ, **environment(model.num_threads)}
        )
        told = _ours(folder) if contestant.backend else json.loads(output.splitlines()[-1])
    first = told["startup"] if contestant.backend else told["began"] - began
    return Run(
        train_seconds=told["train_seconds"],
        later_seconds=told["later_seconds"],
        first_seconds=first,
        whole_seconds=seconds,
        peak_megabytes=megabytes,
        num_steps=told["steps"],
        num_epochs=model.num_epochs,
        val_accuracy=told["val_accuracy"],
    )


@contextmanager
def ours(
    backend: str,
    overrides: Sequence[str],
    num_threads: int | None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[float, float, Path]]:
    """A command line of ours: its seconds and peak megabytes; its outputs are there for as long as
    the block lasts. With no number of threads the environment says nothing of them but
    `variables`."""
    with tempfile.TemporaryDirectory() as name:
        said = [*overrides, f"backend={backend}", "device=cpu", f"output.root={name}"]
        if num_threads is not None:
            said.append(f"trainer.threads={num_threads}")
        command = [sys.executable, "-m", "runner", *said]
        plain = {key: value for key, value in os.environ.items() if key not in environment(1)}
        seconds, megabytes, _ = execute(
            command,
            {
                **plain,
                **(environment(num_threads) if num_threads is not None else {}),
                **(variables or {}),
            },
        )
        yield seconds, megabytes, Path(name)


def _ours(folder: Path) -> dict[str, Any]:
    """Read the result of the only run below `folder`."""
    (path,) = folder.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    # of each epoch, since the process began
    ends = read_columns(path.with_name("metrics.csv"))["seconds"]
    return {
        "startup": result["seconds"]["startup"],
        "train_seconds": result["seconds"]["train"],
        "later_seconds": float(ends[-1] - ends[0]),
        "steps": result["steps"],
        "val_accuracy": result["metrics"]["val/accuracy"],
    }


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """The function's value, out of a process of its own: on Linux the peak memory of a command
    counts what the process that started it had taken before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def execute(command: Sequence[str], variables: Mapping[str, str]) -> tuple[float, float, str]:
    """Seconds, peak resident megabytes and standard output of a command that must end well."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise RuntimeError(
                f"{' '.join(command[1:])} ended with {process.returncode}:\n{errors.read()[-2000:]}"
            )
        return seconds, _megabytes(usage.ru_maxrss), output.read()


def _megabytes(maxrss: int) -> float:
    """ru_maxrss counts kilobytes, on macOS bytes."""
    return maxrss / (2**20 if sys.platform == "darwin" else 2**10)
