"""Output to the terminal and to run.log.

During a run, everything that a framework prints, from Python or from native code, goes to run.log.
Only lines from this module reach the terminal; they go to run.log too. A run does not depend on the
terminal: it continues when the terminal is closed or cannot be written to.
"""

import errno
import functools
import io
import logging
import os
import select
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from datetime import datetime
from pathlib import Path
from sysconfig import get_path
from typing import Any, TextIO

from runner.errors import printable, show

# no error: the reader has closed the pipe (`| head -1`) or the terminal
_READER_GONE = (errno.EPIPE, errno.EIO)
_DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
_is_kept = False  # all output is also written to files
_current: "Console | None" = None  # set while output is captured
_process_contexts = ExitStack()  # stays open until the process ends
_is_captured = False  # output of libraries goes to a log
_MOST_EPOCHS = 20  # lines of epochs in a notebook
_shows_epochs = True  # without a progress bar


class _Stream(io.FileIO):
    """A file descriptor that raises no errors; `lost` is the first error."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # non-blocking terminal, not ready
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = self.lost or error
            return len(data)


def _text(descriptor: int, encoding: str = "utf-8", closes: bool = False) -> tuple[_Stream, TextIO]:
    raw = _Stream(descriptor, "wb", closefd=closes)
    text = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True
    )
    return raw, text


@contextmanager
def _unfailing_streams() -> Iterator[_Stream | None]:
    """Replace sys.stdout and sys.stderr by streams that raise no errors. Yields stdout's `_Stream`.

    A closed descriptor (`>&-`) is opened on the null device; otherwise the next file to be opened
    would get its number. Streams that do not belong to the process (of a test or a notebook) are
    left unchanged.
    """
    kept = sys.stdout, sys.stderr
    out: _Stream | None = None
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _open_on_null(descriptor)
        if descriptor == 0 or (stream is not None and not _is_own(stream, descriptor)):
            continue
        raw, text = _text(descriptor, getattr(stream, "encoding", None) or "utf-8")
        setattr(sys, name, text)
        out = raw if descriptor == 1 else out
    try:
        yield out
    finally:
        _flush()
        sys.stdout, sys.stderr = kept


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep libraries' log lines and warnings off the terminal; logged errors are shown.

    run.log gets all of them. Python's option -W shows the warnings.
    """
    show_warning, disabled = warnings.showwarning, logging.root.manager.disable
    libraries = tuple({get_path(name) for name in ("stdlib", "purelib", "platlib")})

    def show_to_user(
        message: Any, category: type[Warning], filename: str, *place: Any, **more: Any
    ) -> None:
        is_chatter = issubclass(category, _DEPRECATIONS) or filename.startswith(libraries)
        if _is_captured or sys.warnoptions or not is_chatter:
            show_warning(message, category, filename, *place, **more)

    warnings.showwarning = show_to_user
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        warnings.showwarning = show_warning
        logging.disable(disabled)


def _open_on_null(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def _is_own(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):  # a stream in memory has no descriptor
        return False


def stand() -> None:
    """Make the streams of this process raise no errors until it ends. For a process whose main
    function belongs to another program, such as a launcher's worker."""
    _process_contexts.enter_context(_without_chatter())
    _process_contexts.enter_context(_unfailing_streams())


def leave_out_epochs() -> None:
    """Print no line for an epoch in this process: its output goes to a terminal, but through
    another process, so that it has no progress bar."""
    global _shows_epochs
    _shows_epochs = False


def steady(main: Callable[[], int]) -> Callable[[], int]:
    """Decorate a command so that it does not depend on its terminal.

    Training continues when the terminal hangs up and when nobody reads the output. If the output is
    the command's only result and cannot be written (a full disk), the exit status is 1.
    """

    @functools.wraps(main)
    def run() -> int:
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        before = None if hangup is None else signal.signal(hangup, signal.SIG_IGN)
        try:
            with _without_chatter(), _unfailing_streams() as out:
                try:
                    status = main()
                except SystemExit as end:  # from argparse or a signal
                    status = int(end.code or 0)
                _flush()
                lost = out and out.lost
                if lost and lost.errno not in _READER_GONE:
                    print(
                        f"error: standard output cannot be written: {lost.strerror}",
                        file=sys.stderr,
                    )
                    status = status or int(not _is_kept)
                return status
        finally:
            if hangup is not None:
                signal.signal(hangup, before)

    return run


def kept_in_files() -> None:
    """Note that run.log or the comparison has all further output, so that losing the terminal's
    copy is not an error."""
    global _is_kept
    _is_kept = True


_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(num_bytes: int) -> str:
    """Format a number of bytes in decimal units: 999 B, 1.2 kB, 34 MB."""
    number, unit = float(num_bytes), 0
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return (
        f"{number:.1f} {_UNITS[unit]}" if unit and number < 9.95 else f"{number:.0f} {_UNITS[unit]}"
    )


class Console:
    """Prints lines for the user, and on a terminal a progress bar."""

    def __init__(self, terminal: TextIO, is_sparse: bool = False) -> None:
        """`is_sparse`: without a progress bar, print at most _MOST_EPOCHS of the epochs' lines."""
        self._terminal = terminal
        self._bar: Any = None
        self._task: Any = None
        self._is_sparse = is_sparse
        self._step = self._total = self._printed = 0

    def say_all(self, lines: Iterable[str]) -> None:
        """Print lines."""
        for line in lines:
            self.say(line)

    def greet(self, line: str) -> None:
        """Print a line if a user waits at a terminal; log it in any case."""
        if self._terminal.isatty():
            self.say(line)
        else:
            self._log(line)

    def say(self, line: str) -> None:
        """Print a line. Control characters are escaped: a run folder from elsewhere may contain
        some."""
        line = printable(line)
        self._log(line)
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=self._terminal, flush=True)

    def pass_on(self, text: str, stream: str) -> None:
        """Print the output of another process, of its "stdout" or "stderr", above the progress
        bar."""
        if self._bar is not None and stream == "stdout":
            self._bar.console.print(text, end="", highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, end="", file=getattr(sys, stream), flush=True)

    def epoch(self, line: str) -> None:
        """Print the line of an epoch if there is no progress bar; log it in any case."""
        part = _MOST_EPOCHS * self._step // max(1, self._total)
        is_left_out = self._is_sparse and part == self._printed
        self._printed = part
        if self._bar is None and _shows_epochs and not is_left_out:
            self.say(line)
        else:
            self._log(line)

    @contextmanager
    def progress(self, total_steps: int, done: int) -> Iterator[None]:
        self._total, self._printed = total_steps, _MOST_EPOCHS * done // max(1, total_steps)
        if not self._terminal.isatty():
            yield
            return
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(
            *columns, console=RichConsole(file=self._terminal), transient=True
        ) as self._bar:
            self._task = self._bar.add_task("", total=total_steps, completed=done)
            try:
                yield
            finally:
                bar, self._bar = self._bar, None
                bar.stop()

    def advance(self, step: int, description: str) -> None:
        self._step = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=description)

    @staticmethod
    def _log(line: str) -> None:
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        _write("".join(f"{now}  {part}\n" for part in line.split("\n")))


def tree(values: Mapping[str, Any]) -> str:
    """Draw nested values as a tree: a branch per mapping, list items by their index."""
    from rich.console import Console as RichConsole
    from rich.text import Text
    from rich.tree import Tree

    def grow(branch: Tree, items: Iterable[tuple[Any, Any]]) -> None:
        for key, value in items:
            if isinstance(value, Mapping) and value:
                grow(branch.add(Text(printable(str(key)))), value.items())
            elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
                grow(branch.add(Text(printable(str(key)))), enumerate(value))
            else:
                branch.add(Text(printable(f"{key}: {show(value)}")))

    root = Tree("config")
    grow(root, values.items())
    console = RichConsole(width=120, file=io.StringIO())
    with console.capture() as drawn:
        console.print(root)
    return drawn.get().rstrip()


class Capture:
    """Redirects file descriptors to a temporary file; `into` copies it to a run's log and redirects
    them there."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115  # lives as long as the capture
        _redirect(self._file.fileno(), descriptors)

    def into(self, log: Path) -> None:
        _flush()
        self._file.seek(0)
        with log.open("ab", buffering=0) as file:
            with suppress(OSError):  # on a full disk, writing the run's files reports the error
                file.write(self._file.read())
            _redirect(file.fileno(), self._descriptors)

    def close(self) -> None:
        self._file.close()


@contextmanager
def capture(shown: TextIO | None = None) -> Iterator[tuple[Console, Capture]]:
    """Send output to a log in the block; yield the Console that prints for the user.

    In Python, `shown` is the stream for the user's lines. Then only standard error goes to the log:
    what the user's own code prints is shown where it is printed.
    """
    global _is_captured, _current
    _flush()
    kept_in_files()
    _is_captured = True
    descriptors = (1, 2) if shown is None else (2,)
    kept, disabled = [os.dup(number) for number in descriptors], logging.root.manager.disable
    logging.disable(logging.NOTSET)
    with ExitStack() as stack:
        terminal = shown or stack.enter_context(_text(os.dup(1), closes=True)[1])
        captured = Capture(descriptors)
        if shown is not None:
            stack.enter_context(redirect_stderr(_text(2)[1]))
        _current = Console(terminal, is_sparse=shown is not None)
        try:
            yield _current, captured
        finally:
            _is_captured, _current = False, None
            logging.disable(disabled)
            _flush()
            for descriptor, original in zip(kept, descriptors, strict=True):
                os.dup2(descriptor, original)
                os.close(descriptor)
            captured.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Discard output, from Python and from native code, unless it goes to a run's log. For a
    framework that is loaded before the run has a log: its messages are of no use."""
    if _is_captured:
        yield
        return
    _flush()
    saved = [os.dup(1), os.dup(2)]
    null = os.open(os.devnull, os.O_WRONLY)
    _redirect(null, (1, 2))
    try:
        yield
    finally:
        _flush()
        for descriptor, original in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, original)
        for descriptor in (*saved, null):
            os.close(descriptor)


def _redirect(descriptor: int, originals: Iterable[int]) -> None:
    for original in originals:
        os.dup2(descriptor, original)


def warn(line: str) -> None:
    """Print a warning for the user from code that has no Console."""
    if _current is not None:
        _current.say(f"warning: {line}")
    else:
        print(f"warning: {line}", file=sys.stderr)


def log_traceback() -> None:
    """Write the traceback of the exception that is being handled to run.log."""
    log(traceback.format_exc())


def log(text: str) -> None:
    """Write a text to run.log only."""
    _write(text)


def _write(text: str) -> None:
    """Write to the log without a buffer: text that a full disk rejects must not appear on the
    terminal later."""
    _flush()
    with suppress(OSError):
        os.write(2, text.encode(errors="replace"))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.flush()
