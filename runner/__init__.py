"""The meaning of a run: config, schedules, weights, order of the data, files. This package imports
no framework.

from runner import compare, load_run, rates, resume, train
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.api import Answer, Interrupted, compare, resume, train
    from runner.cli.compose import rates
    from runner.errors import ConfigError, RunError, TwinrunError
    from runner.run.observer import Observer
    from runner.run.saved import Run, load_run

__all__ = [
    "Answer",
    "ConfigError",
    "Interrupted",
    "Observer",
    "Run",
    "RunError",
    "TwinrunError",
    "compare",
    "load_run",
    "rates",
    "resume",
    "train",
]

_MODULES = {
    "runner.api": ("Answer", "Interrupted", "compare", "resume", "train"),
    "runner.cli.compose": ("rates",),
    "runner.errors": ("ConfigError", "RunError", "TwinrunError"),
    "runner.run.observer": ("Observer",),
    "runner.run.saved": ("Run", "load_run"),
}


def __getattr__(name: str) -> Any:
    """Import a name on first use: importing one module should not import all of this package."""
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
