"""Settings of a process that the command line started. Nothing here runs in a notebook."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from runner import dispatcher
from runner.cli.malloc import keep_freed_pages
from runner.machine import programs
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
