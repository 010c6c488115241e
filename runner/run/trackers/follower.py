"""An observer that passes a run's records on to a tracker, in a thread of its own.

A tracker gets points when a checkpoint that covers them is on the disk, so a run that is killed and
resumed never repeats one: what was trained after its last checkpoint has not been passed on. When a
run begins, the tracker says which points it has, and gets those that it lacks from the records.
"""

import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.data.order import Chunk
from runner.errors import one_line
from runner.run.observer import Observer
from runner.run.trackers import files
from runner.run.trackers.points import Points, last
from runner.run.trackers.tracker import TrackedRun, Tracker
from runner.spec import Live, Report
from runner.text.console import Console, log

_PATIENCE_SECONDS = 30.0  # without an answer of a tracker
_SHARE = 0.02  # the part of a run's time that a tracker may take
_LONGEST_REST_SECONDS = 60.0  # after a write that has waited, as for a server
_SLOW_SECONDS = 5.0  # a longer wait at the end of a run is worth a warning
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_SHORTEST_SECRET = 4  # characters; a shorter value is not unique enough to be replaced


class Follower(Observer):
    """Passes the points of a run on to one tracker. A failure is one warning; the run goes on.

    The training never waits for the tracker. After each write the thread rests, so that it uses at
    most 2 % of the time of a core. The end of the run waits for the last points, but not for a
    tracker that does not answer: not at all if it has been silent for 30 s, and at most 15 s, or
    2 % of the run's time.
    """

    skips_checkpoints = True

    def __init__(
        self,
        name: str,
        load: Callable[[], Callable[[TrackedRun], Tracker]],
        run: TrackedRun,
        total_steps: int,
        console: Console,
    ) -> None:
        self.name, self.run, self.console = name, run, console
        self._load, self._total_steps = load, total_steps
        self._changed = threading.Condition()
        self._step: int | None = 0  # the updates that may be passed on; None: all
        self._status: str | None = None  # the run's, when it has ended
        self._num_steps: int | None = None  # its updates, when its files are written
        self._called_at: float | None = None  # when the tracker was called that has not answered
        self._error: str | None = None
        self._is_told = self._is_late_told = False
        self._hint: str | None = None  # a command or an address that shows the tracked run

    def __enter__(self) -> "Follower":
        self._began = time.monotonic()
        self._last = last(self.run.path)  # read before the training adds rows
        self._thread = threading.Thread(target=self._follow, name=self.name, daemon=True)
        # A library is imported in this thread. Many parse Python when they are imported, TensorFlow
        # does when it traces, and ast.parse of Python 3.11 fails if two threads use it.
        try:
            self._make = self._load()
        except Exception as error:
            self._fail(error)
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._status = self._status or "failed"
            self._changed.notify()

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        self._tell()
        return True

    def on_checkpoint(self, folder: Path) -> None:
        with self._changed:
            self._step = int(folder.name)
            self._changed.notify()

    def on_end(self, result: Mapping[str, Any]) -> None:
        ended = time.monotonic()
        with self._changed:
            self._step, self._status = None, str(result["status"])
            self._num_steps = result.get("steps")
            self._changed.notify()
        self._wait(ended)
        if self._thread.is_alive():
            self._error = f"no answer in {self._silence():.0f} s"
        self._tell()
        if self._hint is not None:
            self.console.say(f"tracker  {self._hint}")
        waited = time.monotonic() - ended
        is_slow = waited > max(_SLOW_SECONDS, _SHARE * (ended - self._began))
        if is_slow and self._error is None:
            self.console.say(
                f"warning: logger={self.name} is slow: the run has waited {waited:.0f} s for it at "
                f"its end"
            )

    def _wait(self, ended: float) -> None:
        """Wait until the tracker has all, or has not answered for too long."""
        limit = max(_PATIENCE_SECONDS / 2, _SHARE * (ended - self._began))
        while self._thread.is_alive():
            silence, waited = self._silence(), time.monotonic() - ended
            left = min(_PATIENCE_SECONDS - silence, limit - min(silence, waited))
            if left <= 0:
                return
            self._thread.join(left)

    def _silence(self) -> float:
        """Return the seconds since the tracker was called, if it has not answered yet."""
        called_at = self._called_at  # the thread may set it at any moment
        return 0.0 if called_at is None else time.monotonic() - called_at

    def _tell(self) -> None:
        if self._error is not None and not self._is_told:
            self._is_told = True
            then = "the run goes on without it, and adds what it lacks when it is resumed"
            if self._status == "completed":
                then = "it lacks points of the run"
            self.console.say(f"warning: logger={self.name} failed: {self._error}; {then}")
        elif not self._is_late_told and self._silence() > _PATIENCE_SECONDS:
            self._is_late_told = True
            self.console.say(
                f"warning: logger={self.name} has not answered for {_PATIENCE_SECONDS:.0f} s; the "
                f"run goes on, and does not wait for it at its end"
            )

    def _follow(self) -> None:
        """Run the thread: wait for checkpoints, pass on the points that they cover."""
        try:
            self._pass_on()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        log(without_secrets(traceback.format_exc()))
        self._error = why(error)

    def _pass_on(self) -> None:
        with self._asking():
            tracker = self._make(self.run)
        with self._asking():
            done = tracker.open(self._last)
        points = Points(self.run.path, self._total_steps)
        step: int | None = 0
        while True:
            step, status = self._next(step)
            began, used = time.monotonic(), time.thread_time()
            new = [point for point in points.until(step) if point.order > done]
            if new:
                with self._asking():
                    tracker.write(new)
                done = new[-1].order
            if status is not None:
                points.close()
                self._end(tracker, status)
                return
            self._rest(time.monotonic() - began, time.thread_time() - used)

    def _end(self, tracker: Tracker, status: str) -> None:
        try:
            self._keep_files(tracker)
        finally:
            with self._asking():
                tracker.close(status)
        self._hint = tracker.hint

    def _keep_files(self, tracker: Tracker) -> None:
        """Add the files that tracker.artifacts asks for; none of a run that raised an error."""
        for name, path in files.of_run(self.run.path, self.run.artifacts):
            if self._num_steps is not None:
                with self._asking():
                    tracker.keep(name, path, self._num_steps)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Note that the tracker works in this block."""
        self._called_at = time.monotonic()
        try:
            yield
        finally:
            self._called_at = None

    def _rest(self, seconds: float, used: float) -> None:
        """Wait after `seconds` of work, `used` of them on a core, until the run ends at the
        latest."""
        rest = max(used / _SHARE, min(seconds / _SHARE, _LONGEST_REST_SECONDS))
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None, rest)

    def _next(self, step: int | None) -> tuple[int | None, str | None]:
        """Wait for another step than this one, or for the end. Return the step and the status."""
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None or self._step != step)
            return self._step, self._status


def in_time(work: Callable[[], str]) -> str:
    """Return what `work` returns. It runs in a thread; raises TimeoutError after 30 s, and what
    `work` raises."""
    found: list[str | Exception] = []

    def try_it() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    if not found:
        raise TimeoutError(f"no answer in {_PATIENCE_SECONDS:.0f} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def why(error: Exception) -> str:
    """Describe a failure in one line, without secrets."""
    return without_secrets(f"{type(error).__name__}: {one_line(error)}"[:300])


def without_secrets(text: str) -> str:
    """Replace the values of environment variables with names such as API_KEY, and passwords in
    addresses, by ***."""
    text = re.sub(r"//[^/\s@]+@", "//***@", text)
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text
