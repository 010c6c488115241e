"""A Keras session of a run's own, so that a notebook's session stays as it was. Lightning has no
counterpart: torch has no session.

Keras counts the names of layers, and keeps its policy, in a global state that
`keras.utils.clear_session` replaces. This module is the only one that uses the private module of
this state; if a release does not have it, a run uses the process's session.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import local
from typing import Any

import keras

from runner.errors import ConfigError

STATES = ("GLOBAL_STATE_TRACKER", "GLOBAL_SETTINGS_TRACKER")
_is_isolated = False

if keras.backend.backend() != "tensorflow":  # a notebook may have imported it before
    raise ConfigError(
        f"backend=keras needs Keras on TensorFlow, and this process has imported Keras on "
        f"{keras.backend.backend()}; set KERAS_BACKEND=tensorflow before the first import of keras"
    )


def module() -> Any:
    """Return the module of Keras's global state; None if this release has none."""
    try:
        found = import_module("keras.src.backend.common.global_state")
    except ImportError:
        return None
    return found if all(isinstance(getattr(found, name, None), local) for name in STATES) else None


@contextmanager
def isolated() -> Iterator[None]:
    """Use a new session in the block, and restore the process's session afterwards. In another such
    block, use its session."""
    global _is_isolated
    states = None if _is_isolated else module()
    if states is None:
        yield
        return
    before = {name: getattr(states, name) for name in STATES}
    for name in STATES:
        setattr(states, name, local())
    _is_isolated = True
    try:
        yield
    finally:
        _is_isolated = False
        for name, value in before.items():
            setattr(states, name, value)
