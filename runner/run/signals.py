"""SIGINT and SIGTERM end the chunk in hand, not the process: the run saves and says so. A second
one ends it at once.

So does a scheduler's own signal, SIGUSR1 or SIGUSR2, where whoever launched the run waits for it
(submitit does, to have the job queued again): that handler runs when the run has saved.

Jobs of a multirun that are processes of their own end with the command that launched them.
`launching` is the command's side: it takes the signals, asks the jobs to end, and waits until they
have saved. `job` is theirs: a thread looks ten times a second for the file that asks them to end,
and whether the command is still there.
"""

import os
import signal
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

_KINDS = (signal.SIGINT, signal.SIGTERM)
# not on Windows
_USER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
_PARENT = "TWINRUN_MULTIRUN"  # process, its start, and the file that asks its jobs to end
_LOOK = 0.1  # seconds

_asked: int | None = None  # the signal with which this process's runs are to end, whoever got it
_end_file: Path | None = None  # of the multirun that this process was launched by
_in_job = False
# processes that train for this one, which are to end when it is asked to
children: set[int] = set()


class Signals:
    """While it lasts, `received` is the number of the first of these signals that came, or None."""

    def __init__(self) -> None:
        self._own: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def received(self) -> int | None:
        return _asked if self._own is None else self._own

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            awaited = [kind for kind in _USER if callable(signal.getsignal(kind))]
            self._before = {
                kind: signal.signal(kind, self._on_signal) for kind in (*_KINDS, *awaited)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
        if self._own is not None and self._own in _USER:
            signal.raise_signal(self._own)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._own = number
        for kind, handler in self._before.items():
            signal.signal(kind, signal.SIG_DFL if kind == number or handler is None else handler)


class Launch:
    """A command that launches jobs as processes of their own; `ended`: the signal that it got, if
    any."""

    def __init__(self, file: Path, is_busy: Callable[[], bool]) -> None:
        self.ended: int | None = None
        self._file, self._is_busy = file, is_busy
        self._is_saved = self._is_over = False
        self._thread = threading.Thread(target=self._take_signals, name="signals", daemon=True)

    def _take_signals(self) -> None:
        self._take(signal.sigwait(_KINDS))
        if self._is_over:
            return
        threading.Thread(target=self._wait_for_jobs, name="jobs", daemon=True).start()
        number = signal.sigwait(_KINDS)
        if not self._is_over:
            os._exit(128 + number)

    def _take(self, number: int) -> None:
        if self._is_over:
            return
        self.ended = number
        try:
            self._file.write_text(str(int(number)))
        except OSError:  # a full disk: the jobs see that nobody is here any more
            os._exit(128 + number)

    def _wait_for_jobs(self) -> None:
        """Wait until all jobs have saved; the launcher does not need to start those that are
        left."""
        time.sleep(3 * _LOOK)  # one that began just before may not hold its folder yet
        while self._is_busy():
            time.sleep(_LOOK)
        self._is_saved = True
        if not self._is_over:
            interrupt_main(signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_saved:
            sys.exit(128 + (self.ended or number))


@contextmanager
def launching(folder: Path, is_busy: Callable[[], bool]) -> Iterator[Launch]:
    """Around the launching of a multirun's jobs as processes of this machine. `is_busy`: whether
    one of them trains.

    The signals are blocked, which what is started inherits, so that those that reach a whole group
    of processes do not end a job before it can save.
    """
    import psutil

    launch = Launch(folder.resolve() / f".end.{os.getpid()}", is_busy)
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield launch
        return
    os.environ[_PARENT] = f"{os.getpid()}:{psutil.Process().create_time()!r}:{launch._file}"
    before = {kind: signal.signal(kind, launch._on_signal) for kind in _KINDS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _KINDS)
    launch._thread.start()
    try:
        yield launch
    finally:
        launch._is_over = True
        with suppress(ProcessLookupError):
            signal.pthread_kill(launch._thread.ident or 0, signal.SIGTERM)
        launch._thread.join()
        for kind, handler in before.items():
            signal.signal(kind, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        del os.environ[_PARENT]
        launch._file.unlink(missing_ok=True)


def start_trackers() -> None:
    """Python's and joblib's trackers of resources: starting one later would unblock the signals
    again."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    with suppress(ImportError):
        from joblib.externals.loky.backend import (  # type: ignore[import-untyped]
            resource_tracker as of_loky,
        )

        of_loky.ensure_running()


@contextmanager
def job() -> Iterator[int | None]:
    """Run one job of a multirun; yields the signal that ended the multirun before the job began, or
    None."""
    global _in_job
    _follow()
    _in_job = True
    try:
        yield _asked
    finally:
        _in_job = False


def end_multirun(number: int) -> None:
    """End all other jobs after one that a signal has ended."""
    if _end_file is None:
        sys.exit(128 + number)
    if _asked is None:
        with suppress(OSError):
            _end_file.write_text(str(number))
        _ask(number)


def _follow() -> None:
    """Follow the command that launched this job's process; done once per process."""
    global _end_file
    said = os.environ.get(_PARENT)
    if (
        said is None
        or _end_file is not None
        or threading.current_thread() is not threading.main_thread()
    ):
        return
    process, began, file = said.split(":", 2)
    if int(process) == os.getpid():
        return
    from runner.text.console import stand

    stand()
    _end_file = Path(file)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # outside a run; the command gets it too
    signal.signal(signal.SIGTERM, lambda number, frame: end_multirun(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _KINDS)
    threading.Thread(
        target=_watch, args=(int(process), float(began), Path(file)), daemon=True
    ).start()


def _watch(process: int, began: float, file: Path) -> None:
    while True:
        with suppress(OSError):  # nobody asks
            _ask(int(file.read_text() or signal.SIGTERM))
        if not _is_alive(process, began):
            _ask(signal.SIGTERM)
            while _in_job:
                time.sleep(_LOOK)
            os._exit(128 + signal.SIGTERM)
        time.sleep(_LOOK)


def _is_alive(process: int, began: float) -> bool:
    import psutil

    try:
        found = psutil.Process(process)
        return found.create_time() == began and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _ask(number: int) -> None:
    global _asked
    if _asked is None:
        _asked = number
        for process in children:
            with suppress(OSError):
                os.kill(process, number)
