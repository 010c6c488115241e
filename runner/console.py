"""What the user sees, and run.log, which sees everything.

While a run lasts, whatever a framework prints (from Python or below it) goes to run.log; only what is said here
reaches the terminal, and run.log too.
"""

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from runner.errors import show


class Console:
    """Lines for the user, and a progress bar on a terminal (plain lines elsewhere)."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._bar: Any = None
        self._task: Any = None

    def say(self, line: str) -> None:
        self._log(line)
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=self._terminal, flush=True)

    def epoch(self, line: str) -> None:
        """A line per epoch where there is no bar to show it."""
        if self._bar is None:
            self.say(line)
        else:
            self._log(line)

    @contextmanager
    def progress(self, total_steps: int, done: int) -> Iterator[None]:
        if not self._terminal.isatty():
            yield
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=RichConsole(file=self._terminal), transient=True) as self._bar:
            self._task = self._bar.add_task("", total=total_steps, completed=done)
            try:
                yield
            finally:
                bar, self._bar = self._bar, None
                bar.stop()

    def advance(self, step: int, description: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=description)

    @staticmethod
    def _log(line: str) -> None:
        _write(line + "\n")


def tree(values: Mapping[str, Any]) -> str:
    """Nested values as a drawn tree: a branch per mapping, items of lists by their number."""
    from rich.console import Console as RichConsole
    from rich.text import Text
    from rich.tree import Tree

    def grow(branch: Tree, items: Iterable[tuple[Any, Any]]) -> None:
        for key, value in items:
            if isinstance(value, Mapping) and value:
                grow(branch.add(Text(str(key))), value.items())
            elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
                grow(branch.add(Text(str(key))), enumerate(value))
            else:
                branch.add(Text(f"{key}: {show(value)}"))

    root = Tree("config")
    grow(root, values.items())
    console = RichConsole(width=120, file=io.StringIO())
    with console.capture() as drawn:
        console.print(root)
    return drawn.get().rstrip()


class Capture:
    """File descriptors 1 and 2 go to a temporary file, and from `into` on to a run's log, which gets what came before."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115  # lives as long as the capture

    def into(self, log: Path) -> None:
        _flush()
        self._file.seek(0)
        with log.open("ab") as file:
            file.write(self._file.read())
            file.flush()
            _redirect(file.fileno())


@contextmanager
def capture() -> Iterator[tuple[Console, Capture]]:
    _flush()
    kept = [os.dup(1), os.dup(2)]
    held = Capture()
    terminal = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    _redirect(held._file.fileno())
    try:
        yield Console(terminal), held
    finally:
        _flush()
        for descriptor, original in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, original)
            os.close(descriptor)
        terminal.close()


def _redirect(descriptor: int) -> None:
    for original in (1, 2):
        os.dup2(descriptor, original)


def log_traceback() -> None:
    """Of the exception that is being handled, into run.log."""
    _write(traceback.format_exc())


def _write(text: str) -> None:
    """To the log, past all buffers: what a full disk does not take must not come out on the terminal later."""
    _flush()
    with suppress(OSError):
        os.write(2, text.encode(errors="replace"))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
