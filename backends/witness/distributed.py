"""Several processes that train one run: their maxima and sums, in NumPy. Rank 0 computes them."""

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection, Listener

import numpy as np

from runner.spec import World

_SECONDS = 60  # the longest wait for rank 0


def connect(world: World) -> "Together":
    """Join the other processes."""
    host, _, port = world.addresses[0].rpartition(":")
    if world.rank > 0:
        return Together([_connected((host, int(port)))], computes=False)
    with Listener((host, int(port)), backlog=world.size) as listener:
        return Together([listener.accept() for _ in range(world.size - 1)], computes=True)


def _connected(address: tuple[str, int]) -> Connection:
    """Connect to rank 0, which may start later."""
    end = time.monotonic() + _SECONDS
    while True:
        try:
            return Client(address)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class Together:
    """The processes. Implements `runner.exact.primitives.Together`. The connections carry the bytes
    of arrays and no objects."""

    def __init__(self, others: Sequence[Connection], computes: bool) -> None:
        self.others, self.computes = others, computes

    def largest(self, x: np.ndarray) -> np.ndarray:
        return self._reduced(np.maximum, x)

    def sum(self, x: np.ndarray) -> np.ndarray:
        return self._reduced(np.add, x)

    def _reduced(self, operation: Callable[..., np.ndarray], x: np.ndarray) -> np.ndarray:
        y = x = np.asarray(x)
        if not self.computes:
            self.others[0].send_bytes(x.tobytes())
            return self._received(self.others[0], x)
        for other in self.others:
            y = operation(y, self._received(other, x))
        for other in self.others:
            other.send_bytes(y.tobytes())
        return y

    def _received(self, other: Connection, like: np.ndarray) -> np.ndarray:
        return np.frombuffer(other.recv_bytes(), like.dtype).reshape(like.shape)
