"""Handle SIGINT and SIGTERM: finish the current chunk, save, then end the run. A second signal ends
it at once.

SIGUSR1 and SIGUSR2, which schedulers send, are handled in the same way if the launcher of the run
has a handler for them (submitit requeues the job with it). This handler then runs after the run has
saved.

If the jobs of a multirun are separate processes, they end with the command that launched them.
`launching` is the command's side: it receives the signals, asks the jobs to end and waits until
they have saved. `job` is the jobs' side: ten times a second, a thread looks for the file that asks
them to end, and checks that the command is still alive.
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
USER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
# environment variable with PID:START:FILE of the command; FILE asks its jobs to end
_PARENT = "TWINRUN_MULTIRUN"
_POLL_SECONDS = 0.1

_asked: int | None = None  # the signal that ends the runs of this process, from any source
_end_file: Path | None = None  # of the multirun that launched this process
_in_job = False
# processes that train for this one and end when it is asked to end
children: set[int] = set()


class Signals:
    """Handles the signals in a `with` block. `received` is the first signal's number, or None.

    In Python, `keeps_process`, a second signal goes to the handlers of before, so that a second
    Ctrl-C raises KeyboardInterrupt at once; and after the block, the first signal goes to them too.
    """

    def __init__(self, keeps_process: bool = False) -> None:
        self._own: int | None = None
        self._before: dict[int, Any] = {}
        self._keeps_process = keeps_process

    @property
    def received(self) -> int | None:
        return _asked if self._own is None else self._own

    def receive(self, number: int) -> None:
        """Take a signal that another process of the run received."""
        self._own = number

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            handled = [kind for kind in USER if callable(signal.getsignal(kind))]
            self._before = {
                kind: signal.signal(kind, self._on_signal) for kind in (*_KINDS, *handled)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
        if self._own is not None and (self._own in USER or self._keeps_process):
            signal.raise_signal(self._own)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._own = number
        for kind, handler in self._before.items():
            is_final = kind == number and not self._keeps_process
            signal.signal(kind, signal.SIG_DFL if is_final or handler is None else handler)


class Launch:
    """A command that launches jobs as separate processes. `ended` is the signal that it received,
    or None."""

    def __init__(self, file: Path, is_busy: Callable[[], bool]) -> None:
        self.ended: int | None = None
        self._file, self._is_busy = file, is_busy
        self._is_saved = self._is_over = False
        self._thread = threading.Thread(target=self._take_signals, name="signals", daemon=True)

    def start(self) -> None:
        """Begin to take the signals. Python writes the number of each to a pipe, whichever thread
        the system gives it to: BLAS has threads that do not block signals, so that sigwait would
        miss some."""
        self._received, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._thread.start()

    def finish(self) -> None:
        """Note that all jobs are over: a signal that was received no longer ends this process."""
        self._is_over = True

    def close(self) -> None:
        """End the thread that takes the signals."""
        self.finish()
        signal.set_wakeup_fd(self._before)
        os.write(self._wakeup, bytes([signal.SIGTERM]))
        self._thread.join()
        os.close(self._received)
        os.close(self._wakeup)

    def _take_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _KINDS)
        self._take(self._next())
        if self._is_over:
            return
        threading.Thread(target=self._wait_for_jobs, name="jobs", daemon=True).start()
        number = self._next()
        if self._is_saved and not self._is_over:  # that was interrupt_main
            number = self._next()
        if not self._is_over:
            os._exit(128 + number)

    def _next(self) -> int:
        while True:
            number = os.read(self._received, 1)[0]
            if number in _KINDS:
                return number

    def _take(self, number: int) -> None:
        if self._is_over:
            return
        self.ended = number
        try:
            self._file.write_text(str(int(number)))
        except OSError:  # the disk is full: the jobs notice that this process has ended
            os._exit(128 + number)

    def _wait_for_jobs(self) -> None:
        """Wait until all running jobs have saved. The launcher starts no more jobs."""
        time.sleep(3 * _POLL_SECONDS)  # a job that has just begun may not have locked its folder
        while self._is_busy():
            time.sleep(_POLL_SECONDS)
        self._is_saved = True
        if not self._is_over:
            interrupt_main(signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_saved and not self._is_over:
            sys.exit(128 + (self.ended or number))


@contextmanager
def launching(folder: Path, is_busy: Callable[[], bool]) -> Iterator[Launch]:
    """Handle signals while a multirun's jobs run as processes on this machine. `is_busy` returns
    whether one of them trains.

    The block masks the signals, and the jobs inherit the mask. A signal to the whole process group
    then cannot end a job before it has saved.
    """
    import psutil

    launch = Launch(folder.resolve() / f".end.{os.getpid()}", is_busy)
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield launch
        return
    os.environ[_PARENT] = f"{os.getpid()}:{psutil.Process().create_time()!r}:{launch._file}"
    before = {kind: signal.signal(kind, launch._on_signal) for kind in _KINDS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _KINDS)
    launch.start()
    try:
        yield launch
    finally:
        launch.close()
        for kind, handler in before.items():
            signal.signal(kind, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        del os.environ[_PARENT]
        launch._file.unlink(missing_ok=True)


def start_trackers() -> None:
    """Start the resource trackers of Python and joblib. Starting them later would unblock the
    signals."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    with suppress(ImportError):
        from joblib.externals.loky.backend import (  # type: ignore[import-untyped]
            resource_tracker as loky_tracker,
        )

        loky_tracker.ensure_running()


@contextmanager
def job() -> Iterator[int | None]:
    """Run one job of a multirun in the block. Yields the signal that ended the multirun before the
    job began, or None."""
    global _in_job
    follow()
    _in_job = True
    try:
        yield _asked
    finally:
        _in_job = False


def end_multirun(number: int) -> None:
    """End all other jobs after a signal has ended one."""
    if _end_file is None:
        sys.exit(128 + number)
    if _asked is None:
        with suppress(OSError):
            _end_file.write_text(str(number))
        _ask(number)


def command() -> tuple[int, float] | None:
    """Return the number and the start time of the command that launched this process as a job of a
    multirun; None if there is none."""
    process, began, _ = os.environ.get(_PARENT, f"{os.getpid()}:0:").split(":", 2)
    return None if int(process) == os.getpid() else (int(process), float(began))


def follow() -> None:
    """Start to watch the command that launched this process, once per process."""
    global _end_file
    parent = os.environ.get(_PARENT)
    if (
        parent is None
        or _end_file is not None
        or threading.current_thread() is not threading.main_thread()
    ):
        return
    process, began, file = parent.split(":", 2)
    if int(process) == os.getpid():
        return
    from runner.text.console import stand

    stand()
    _end_file = Path(file)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # outside a run; the command receives it too
    signal.signal(signal.SIGTERM, lambda number, frame: end_multirun(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _KINDS)
    threading.Thread(
        target=_watch, args=(int(process), float(began), Path(file)), daemon=True
    ).start()


def _watch(process: int, began: float, file: Path) -> None:
    while True:
        with suppress(OSError):  # no file: the jobs are not asked to end
            _ask(int(file.read_text() or signal.SIGTERM))
        if not is_alive(process, began):
            _ask(signal.SIGTERM)
            while _in_job:
                time.sleep(_POLL_SECONDS)
            os._exit(128 + signal.SIGTERM)
        time.sleep(_POLL_SECONDS)


def is_alive(process: int, began: float) -> bool:
    """Return whether the process of this number, which began at this time, still runs. A zombie
    does not."""
    import psutil

    try:
        running = psutil.Process(process)
        return running.create_time() == began and running.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _ask(number: int) -> None:
    global _asked
    if _asked is None:
        _asked = number
        for process in children:
            with suppress(OSError):
                os.kill(process, number)
