"""Run in a separate process, if the framework of this one is fixed to another number of threads."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.context import SpawnContext
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
    """Call `function(argument)` in the process for this number of threads; return its exit status.
    All calls with this number share the process, with its imports and compiled functions. It writes
    to the same terminal and gets this process's signals."""
    if multiprocessing.parent_process() is not None and dispatcher.building_threads == num_threads:
        raise RunError(
            f"the framework does not use {num_threads} threads in a process that was started for "
            f"them"
        )
    sys.stdout.flush()
    pool, process = _pool(num_threads)
    with forward_signals(process):
        try:
            return pool.submit(_call, function, argument).result()
        except BrokenProcessPool:
            _pool.cache_clear()
            raise RunError(
                f"the process that trains with {num_threads} threads was killed"
            ) from None


def spawn_context() -> SpawnContext:
    """Return the context that starts new interpreters. A new interpreter gets the default start
    method of this process. It does not know joblib's own method, `loky`, which is the default in a
    worker of joblib, so spawn replaces it."""
    known = multiprocessing.get_all_start_methods()
    if multiprocessing.get_start_method(allow_none=True) not in (None, *known):
        multiprocessing.set_start_method("spawn", force=True)
    return multiprocessing.get_context("spawn")


@cache
def _pool(num_threads: int) -> tuple[ProcessPoolExecutor, int]:
    """Start an interpreter; return its executor and its process id."""
    spawn, tuning = spawn_context(), (dispatcher.importing,)
    pool = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(*tuning, num_threads))
    return pool, pool.submit(os.getpid).result()


def _begin(importing: Any, num_threads: int) -> None:
    """Prepare the child process: it ends with its parent, and only the parent passes Ctrl-C on."""
    dispatcher.importing, dispatcher.building_threads = importing, num_threads
    if hasattr(os, "setsid"):
        os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _call(function: Callable[[T], int], argument: T) -> int:
    """Call the function in the child process. If the parent has ended, end: no more work comes."""
    status, parent = function(argument), multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(status)
    return status


@contextmanager
def forward_signals(
    process: int, on_signal: Callable[[int], None] = lambda number: None
) -> Iterator[None]:
    """Forward the signals that this process handles to the other one, in the block; call
    `on_signal` with each.

    A script's shell ignores SIGINT for a command in the background. It is forwarded too, since a
    run of one process handles it; but not in a job of a multirun, where the command receives it.
    SIGUSR1 and SIGUSR2, for which a scheduler's launcher has a handler here but not there, are
    forwarded as SIGTERM, and go to that handler after the block.
    """
    for_launcher: list[int] = []

    def forward(number: int, frame: Any) -> None:
        if number in signals.USER:
            for_launcher.append(number)
            number = signal.SIGTERM
        on_signal(number)
        with suppress(ProcessLookupError):  # it has ended
            os.kill(process, number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in _FORWARDED if callable(signal.getsignal(number))]
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and signals.command() is None:
            handled.append(signal.SIGINT)
        before = {number: signal.signal(number, forward) for number in handled}
    signals.children.add(process)
    try:
        yield
    finally:
        signals.children.discard(process)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in for_launcher[:1]:
            signal.raise_signal(number)
