"""Messages between the processes of a run, which may be on several machines.

A message consists of numbers, texts, None, lists, tuples, dicts and arrays. It is sent as JSON,
followed by the arrays in the format of .npy. Nothing is pickled: whoever can reach a port of a run
cannot make it run code.
"""

import io
import json
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_ARRAY, _PAIRS = "array", "pairs"


class LostError(Exception):
    """Another process of the run has ended. The launcher says why."""


class Channel:
    """One end of a connection to another process. It can be passed on to a child process."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def __reduce__(self) -> Any:
        return Channel, (self.connection,)

    def send(self, message: Any) -> None:
        """Send a message. Raises OSError if the other process has ended."""
        content = encode(message)
        with self._sending:
            self.connection.send_bytes(content)

    def receive(self) -> Any:
        """Wait for the next message. Raises LostError if the other process has ended."""
        try:
            return decode(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise LostError from None

    def has_come(self, timeout: float = 0.0) -> bool:
        """Return whether a message, or the end of the other process, comes within `timeout`
        seconds."""
        try:
            return self.connection.poll(timeout)
        except OSError:
            return True


def encode(message: Any) -> bytes:
    """Return a message as bytes."""
    arrays: list[np.ndarray] = []
    text = json.dumps(_plain(message, arrays)).encode()
    file = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(file, array, allow_pickle=False)
    return len(text).to_bytes(8, "little") + text + file.getvalue()


def decode(data: bytes) -> Any:
    """Return the message of some bytes. Tuples have become lists."""
    length = int.from_bytes(data[:8], "little")
    file = io.BytesIO(data[8 + length :])
    return _filled(json.loads(data[8 : 8 + length]), file)


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return a value as JSON has it. Arrays move to `arrays`, in their order."""
    if isinstance(value, np.ndarray | np.generic):
        arrays.append(np.asarray(value))
        return {_ARRAY: None}
    if isinstance(value, Mapping):
        return {_PAIRS: [[_plain(k, arrays), _plain(v, arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(item, arrays) for item in value]
    return value


def _filled(value: Any, file: io.BytesIO) -> Any:
    """Return the value of its JSON. The arrays come from `file`, in their order."""
    if isinstance(value, list):
        return [_filled(item, file) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return np.lib.format.read_array(file, allow_pickle=False)
    return {_filled(k, file): _filled(v, file) for k, v in value[_PAIRS]}
