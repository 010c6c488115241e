"""SIGINT and SIGTERM end the chunk in hand, not the process: the run saves and says so. A second one ends it at once."""

import signal
import threading
from types import FrameType
from typing import Any

_KINDS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """While it lasts, `received` is the number of the first of the two signals that came, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._on_signal) for kind in _KINDS}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for kind, handler in self._before.items():
            signal.signal(kind, signal.SIG_DFL if kind == number or handler is None else handler)
