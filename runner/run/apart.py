"""Runs in a process of their own, where this one's framework has taken another number of threads
for good."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from runner import dispatcher
from runner.errors import RunError
from runner.run import signals

T = TypeVar("T")
_FORWARDED = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


def run(function: Callable[[T], int], argument: T, num_threads: int) -> int:
    """`function(argument)`, its exit status, in the process that runs everything with so many
    threads: what it imported and compiled serves the next one. It writes to the same terminal; this
    process's signals are passed on to it."""
    sys.stdout.flush()
    pool, process = _pool(num_threads)
    with _passed_on(process):
        try:
            return pool.submit(_call, function, argument).result()
        except BrokenProcessPool:
            _pool.cache_clear()
            raise RunError(
                f"the process that trains with {num_threads} threads was killed"
            ) from None


@cache
def _pool(num_threads: int) -> tuple[ProcessPoolExecutor, int]:
    """A fresh interpreter, and its process id."""
    spawn, tuning = multiprocessing.get_context("spawn"), (dispatcher.importing,)
    pool = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=tuning)
    return pool, pool.submit(os.getpid).result()


def _begin(importing: Any) -> None:
    """Prepare the child process: it ends with its parent, and Ctrl-C reaches it through the parent
    alone."""
    dispatcher.importing = importing
    if hasattr(os, "setsid"):
        os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_it, daemon=True).start()


def _call(function: Callable[[T], int], argument: T) -> int:
    """Run in the child process. Without its parent it would wait for more work for ever."""
    status, parent = function(argument), multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(status)
    return status


@contextmanager
def _passed_on(process: int) -> Iterator[None]:
    """Signals that this process handles go to the other one as long as the block lasts."""

    def pass_on(number: int, frame: Any) -> None:
        os.kill(process, number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in _FORWARDED if callable(signal.getsignal(number))]
        before = {number: signal.signal(number, pass_on) for number in handled}
    signals.children.add(process)
    try:
        yield
    finally:
        signals.children.discard(process)
        for number, handler in before.items():
            signal.signal(number, handler)
