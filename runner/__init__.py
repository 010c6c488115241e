"""The meaning of a run: config, schedules, weights, order of the data, files. This package imports
no framework.

from runner import load_run, rates
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.cli.compose import rates
    from runner.run.saved import Run, load_run

__all__ = ["Run", "load_run", "rates"]


def __getattr__(name: str) -> Any:
    """Import a name on first use: importing one module should not import all of this package."""
    if name == "rates":
        from runner.cli.compose import rates

        return rates
    if name in ("Run", "load_run"):
        from runner.run import saved

        return getattr(saved, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
