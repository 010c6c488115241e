"""The two ways a run can fail, each told to the user in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(Exception):
    """The config is wrong: exit status 2, nothing written, nothing trained."""


class RunError(Exception):
    """The run failed: exit status 1, the traceback is in run.log."""


def nearest(found: object, allowed: Iterable[str]) -> str:
    """`; did you mean "adam"?` if one of the allowed names is close to what was found, else nothing."""
    close = get_close_matches(str(found), list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
