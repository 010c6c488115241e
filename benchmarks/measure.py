"""Run one contestant in a new process; measure its training phase, its total time and its
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
    # the training phase without the first epoch, which traces, compiles and imports
    later_seconds: float
    first_seconds: float  # from the start of the process to the first batch
    whole_seconds: float  # from the start of the process to its end
    peak_megabytes: float
    num_steps: int
    num_epochs: int
    val_accuracy: float
    weights_sha256: str | None  # of Twinrun's

    @property
    def steps_per_second(self) -> float:
        return self.num_steps / self.train_seconds

    @property
    def later_steps_per_second(self) -> float:
        return self.num_steps * (1 - 1 / self.num_epochs) / self.later_seconds


def measure(
    contestant: Contestant,
    model: Model,
    rows: Path,
    checkout: Path = ROOT,
    variables: Mapping[str, str] | None = None,
) -> Run:
    """Measure a contestant in a new process and a new folder. `checkout` has the Twinrun that
    runs. `variables` are further environment variables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = contestant.command(model, rows, folder)
        start_time = time.time()
        known = {**os.environ, **environment(model.num_threads), **(variables or {})}
        seconds, megabytes, output = execute(command, known, checkout)
        result = _ours(folder) if contestant.backend else json.loads(output.splitlines()[-1])
    first = result["startup"] if contestant.backend else result["began"] - start_time
    return Run(
        train_seconds=result["train_seconds"],
        later_seconds=result["later_seconds"],
        first_seconds=first,
        whole_seconds=seconds,
        peak_megabytes=megabytes,
        num_steps=result["steps"],
        num_epochs=model.num_epochs,
        val_accuracy=result["val_accuracy"],
        weights_sha256=result.get("weights_sha256"),
    )


@contextmanager
def ours(
    backend: str,
    overrides: Sequence[str],
    num_threads: int | None,
    variables: Mapping[str, str] | None = None,
    checkout: Path = ROOT,
    module: Sequence[str] = ("runner",),
) -> Iterator[tuple[float, float, Path]]:
    """Run Twinrun's command line; yield its seconds, its peak megabytes and its output folder,
    which exists during the block. If `num_threads` is None, the environment sets no number of
    threads except in `variables`. `module` is the module that runs, and its own arguments."""
    with tempfile.TemporaryDirectory() as name:
        arguments = [*overrides, f"backend={backend}", "device=cpu", f"output.root={name}"]
        if num_threads is not None:
            arguments.append(f"trainer.threads={num_threads}")
        command = [sys.executable, "-m", *module, *arguments]
        inherited = {key: value for key, value in os.environ.items() if key not in environment(1)}
        seconds, megabytes, _ = execute(
            command,
            {
                **inherited,
                **(environment(num_threads) if num_threads is not None else {}),
                "TWINRUN_CACHE": "off",
                **(variables or {}),
            },
            checkout,
        )
        yield seconds, megabytes, Path(name)


def _ours(folder: Path) -> dict[str, Any]:
    """Read the result of the only run below `folder`."""
    (path,) = folder.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    # the end of each epoch, in seconds since the start of the process
    ends = read_columns(path.with_name("metrics.csv"))["seconds"]
    return {
        "startup": result["seconds"]["startup"],
        "train_seconds": result["seconds"]["train"],
        "later_seconds": float(ends[-1] - ends[0]),
        "steps": result["steps"],
        "val_accuracy": result["metrics"]["val/accuracy"],
        "weights_sha256": result["weights_sha256"],
    }


def in_new_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call the function in a new process. On Linux, the peak memory of a command includes the
    memory of the process that started it; so this process must stay small."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def of_checkout(variables: Mapping[str, str], checkout: Path) -> dict[str, str]:
    """Return the environment of a command of a checkout. Python keeps its bytecode, as it does for
    a user."""
    path = os.pathsep.join([str(checkout), *filter(None, [variables.get("PYTHONPATH")])])
    found = {**variables, "PYTHONPATH": path}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def execute(
    command: Sequence[str], variables: Mapping[str, str], checkout: Path = ROOT
) -> tuple[float, float, str]:
    """Run a command in a checkout. It must succeed. Return its seconds, peak resident megabytes
    and standard output."""
    inherited = of_checkout(variables, checkout)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start_time = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=checkout, env=inherited, stdout=output, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start_time
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise RuntimeError(
                f"{' '.join(command[1:])} ended with {process.returncode}:\n{errors.read()[-2000:]}"
            )
        return seconds, _megabytes(usage.ru_maxrss), output.read()


def _megabytes(maxrss: int) -> float:
    """Convert ru_maxrss, which is in kilobytes, on macOS in bytes."""
    return maxrss / (2**20 if sys.platform == "darwin" else 2**10)
