"""Settings of a process that the command line started. Nothing here runs in a notebook."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType

from runner import dispatcher
from runner.machine import programs
from runner.machine.malloc import keep_freed_pages
from runner.spec import About


def tune() -> None:
    """Prepare this process for training. The command line and its workers call it once."""
    dispatcher.importing = tuned
    programs.choose()
    if dispatcher.building_threads is None:
        dispatcher.building_threads = 1


def collect_again() -> None:
    """Enable garbage collection, which `runner.__main__` disables while it imports. Freezing what
    there is keeps collections from visiting it."""
    gc.freeze()
    gc.enable()


def in_one_chunk(function: Callable[[], int]) -> int:
    """Call the function with room for all frames below it.

    CPython keeps frames in chunks of 16 KiB. A loop whose calls cross the end of a chunk maps and
    unmaps a chunk in each pass: `import torch` did it 23,000 times, which took 0.1 s. A frame that
    fits into no chunk gets a larger one, and the frames above it share it. This one asks for 80,000
    items; the chunk is 1 MiB, and half of it is left. The items are not used, so the pages are not.
    """
    code = _call.__code__.replace(co_stacksize=80_000)
    status: int = FunctionType(code, {})(function)
    return status


def _call(function: Callable[[], int]) -> int:
    return function()


@contextmanager
def tuned(about: About) -> Iterator[None]:
    """Import a framework without garbage collection. The import makes some hundred thousand objects
    and frees none; freezing them keeps later collections from visiting them."""
    collects = gc.isenabled()
    gc.disable()
    try:
        keep_freed_pages()
        about.tune()  # may import parts of the framework
        yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()
