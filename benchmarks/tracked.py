"""Run the command line with clocks around its tracker.

    python -m benchmarks.tracked FILE KEY=VALUE ...

`FILE` gets a `Cost` as JSON. The clocks count the time of the processor, so a measurement does not
depend on what else the machine does. A run has one tracker.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import psutil

from runner.__main__ import main as run_command
from runner.run.trackers.follower import Follower

# the events that Training passes to a tracker while the run trains
_EVENTS = ("on_chunk_start", "on_chunk", "on_epoch", "on_finish", "on_checkpoint", "state")


@dataclass
class Cost:
    """The cost of a tracker for a run, in seconds of the processor, in all its threads and
    processes; and how long the run waited."""

    load: float = 0.0  # the import of the library, on the thread that trains
    open: float = 0.0  # until it can take points
    beside: float = 0.0  # from then until the last update, calls of the observer included
    last: float = 0.0  # after the last update
    wait: float = 0.0  # seconds that the run waited at its end


class _Clocks:
    """Clocks of a tracker's calls, threads and processes."""

    def __init__(self) -> None:
        self.cost = Cost()
        self._own: WeakSet[threading.Thread] = WeakSet()  # the tracker's threads
        self._calls = 0.0  # of the observer
        self._of_ended = 0.0  # seconds of those that have ended
        self._lock = threading.Lock()
        self._loads_in: threading.Thread | None = None
        self._used = [0.0]  # seconds at the start, when it was open, and at the last update

    def install(self) -> None:
        """Put the clocks around Follower and threading.Thread."""
        self._follow_threads()
        for name in _EVENTS:
            setattr(Follower, name, self._counted(getattr(Follower, name)))
        enter, follow, end = Follower.__enter__, Follower._next, Follower.on_end

        def timed_enter(follower: Follower) -> Follower:
            self._used = [_seconds_of_processes()]
            self._loads_in, began = threading.current_thread(), time.thread_time()
            try:
                return enter(follower)
            finally:
                self._loads_in = None
                self.cost.load = time.thread_time() - began

        def timed_next(follower: Follower, step: int | None) -> tuple[int | None, str | None]:
            self._note_open()
            return follow(follower, step)

        def timed_end(follower: Follower, result: Mapping[str, Any]) -> None:
            self._note_open()  # if the run has ended before
            start, opened, last = *self._used, self._now()
            began = time.monotonic()
            end(follower, result)
            self.cost.wait = time.monotonic() - began
            self.cost.open, self.cost.last = opened - start, self._now() - last
            self.cost.beside = self._calls + last - opened

        Follower._next = timed_next  # type: ignore[method-assign]
        Follower.__enter__ = timed_enter  # type: ignore[method-assign]
        Follower.on_end = timed_end  # type: ignore[method-assign]

    def _note_open(self) -> None:
        if len(self._used) == 1:
            self._used.append(self._now())

    def _counted(self, event: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return event(*arguments)
            finally:
                self._calls += time.thread_time() - began

        return counted

    def _follow_threads(self) -> None:
        """Count the threads that a tracker's library starts when it is imported, and those that the
        tracker's threads start."""
        start = threading.Thread.start

        def followed_start(thread: threading.Thread) -> None:
            parent = threading.current_thread()
            if parent is self._loads_in or parent in self._own:
                self._own.add(thread)
                thread.run = partial(self._run, thread, thread.run)  # type: ignore[method-assign]
            start(thread)

        threading.Thread.start = followed_start  # type: ignore[method-assign]

    def _run(self, thread: threading.Thread, run: Callable[[], None]) -> None:
        try:
            run()
        finally:
            with self._lock:
                self._own.discard(thread)
                self._of_ended += time.thread_time()

    def _now(self) -> float:
        """Return the seconds that the tracker's threads and all processes have used."""
        return self._seconds_of_threads() + _seconds_of_processes()

    def _seconds_of_threads(self) -> float:
        with self._lock:
            live = [each.ident for each in self._own if each.is_alive() and each.ident is not None]
            clocks = map(time.pthread_getcpuclockid, live)
            return self._of_ended + sum(map(time.clock_gettime, clocks))


def _seconds_of_processes() -> float:
    """Return the processor time of all child processes, those that have ended included."""
    ended = os.times()
    total = ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def main() -> int:
    file = Path(sys.argv[1])
    sys.argv = ["runner", *sys.argv[2:]]
    clocks = _Clocks()
    clocks.install()
    status = run_command()
    file.write_text(json.dumps(asdict(clocks.cost)) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
