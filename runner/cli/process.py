"""Tuning of a process that the command line owns. Nothing here runs in a notebook."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from runner import dispatcher
from runner.cli.malloc import keep_freed_pages
from runner.spec import About


def tune() -> None:
    """Prepare this process for training: called once, by the command line and by its workers."""
    dispatcher.importing = tuned


@contextmanager
def tuned(about: About) -> Iterator[None]:
    """Import a framework without garbage collection: the import makes some hundred thousand objects
    and drops none, and no later collection has to look at them again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        keep_freed_pages()
        about.tune()  # which may import parts of the framework
        yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()
