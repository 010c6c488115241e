"""A parent that has imported a backend and forks a process for each run: a whole run of the
program, from its command line to its exit, without the seconds that the imports take.

`python -m tests.warm BACKEND` is such a parent for other processes, which may not fork themselves:
`Parent` is their side.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple


class Ended(NamedTuple):
    status: int  # as a shell has it: 128 + n after signal n
    seconds: float  # from the first signal to its end, or of all of it
    output: str


def prepare(backend: str) -> None:
    """Import, once, what every run imports, and let Hydra find its plugins."""
    from importlib import import_module

    from runner import dispatcher
    from runner.cli import process
    from runner.cli.compose import compose
    from tests import composed

    process.tune()
    for name in (
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "runner.tasks.train",
        "runner.report.curves",
    ):
        import_module(name)

    composed.install()
    compose([])
    dispatcher.load(backend)
    # what torchmetrics imports, which a run with a LightningModule of the user's own loads: 1.8 s
    for name in ("scipy.signal", "transformers.modeling_utils") if backend == "lightning" else ():
        with suppress(ImportError):
            import_module(name)


def start(folder: Path, arguments: list[str], log: Path, errors: Path | None = None) -> int:
    """`python -m runner ARGUMENTS` in `folder`, forked; its process id. `errors`: where stderr
    goes, if not to the log."""
    child = os.fork()
    if child:
        return child
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = os.open(log, how)
    try:
        os.chdir(folder)
        os.dup2(descriptor, 1)
        os.dup2(descriptor if errors is None else os.open(errors, how), 2)
        faulthandler.enable()  # a crash leaves every thread's stack
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.argv = ["runner", *arguments]
        sys.path.insert(0, str(folder))
        from runner.__main__ import main

        try:
            status = main()
        except SystemExit as end:
            status = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    except BaseException as error:  # as the interpreter would end
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:  # never back into what the parent is in
        os._exit(1)


def wait(child: int, log: Path, since: float | None = None, timeout: float = 60) -> Ended:
    """Until it has ended; one that does not is an error."""
    began = time.monotonic() if since is None else since
    while time.monotonic() < began + timeout:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - began
            return Ended(
                code if code >= 0 else 128 - code,
                seconds,
                log.read_text(encoding="utf-8", errors="replace"),
            )
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"no end within {timeout} s: {log.read_text(errors='replace')[-500:]}")


def run(folder: Path, arguments: list[str]) -> Ended:
    log = folder / "log.txt"
    return wait(start(folder, arguments, log), log)


def until(holds: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.0005)


class Parent:
    """A parent in a process of its own."""

    def __init__(self, backend: str, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "tests.warm", backend]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, folder: Path, arguments: tuple[str, ...], log: Path, errors: Path) -> int:
        return int(self._ask(str(folder), list(arguments), str(log), str(errors)))

    def wait(self, child: int, log: Path) -> int:
        """Its exit status."""
        return int(self._ask(child, str(log)))

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def _serve(backend: str) -> None:
    """Until the other side has ended."""
    prepare(backend)
    from tests import composed

    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request[0], str):
            folder, arguments, log, errors = request
            composed.ahead(arguments)
            answer = start(Path(folder), arguments, Path(log), Path(errors))
        else:
            child, log = request
            answer = wait(child, Path(log), timeout=300).status
        print(answer, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
