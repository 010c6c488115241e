"""SIGINT and SIGTERM end the chunk in hand, not the process: the run saves and says so. A second one ends it at once.

So does a scheduler's own signal, SIGUSR1 or SIGUSR2, where whoever launched the run waits for it (submitit does, to have
the job queued again): that handler runs when the run has saved.
"""

import signal
import threading
from types import FrameType
from typing import Any

_KINDS = (signal.SIGINT, signal.SIGTERM)
_USER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))  # not on Windows


class Signals:
    """While it lasts, `received` is the number of the first of these signals that came, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            awaited = [kind for kind in _USER if callable(signal.getsignal(kind))]
            self._before = {kind: signal.signal(kind, self._on_signal) for kind in (*_KINDS, *awaited)}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
        if self.received is not None and self.received in _USER:
            signal.raise_signal(self.received)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for kind, handler in self._before.items():
            signal.signal(kind, signal.SIG_DFL if kind == number or handler is None else handler)
