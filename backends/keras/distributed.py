"""Several processes that train one run: their sums, by TensorFlow's collectives.

tf.distribute.MultiWorkerMirroredStrategy connects the processes. Its variables and `strategy.run`
are not used: they take the mean of the processes' means, which is another number if their parts of
the batch differ in size, and their reduction cannot stand inside a loop of updates. The operation
that the strategy itself uses can: an update makes one all-reduce of all gradients.
"""

import itertools
import signal
import threading
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from runner.spec import World

_GROUP = 1  # the key of the group of all processes


_joined: "Together | None" = None  # a process belongs to one run


def join(world: World) -> None:
    """Implements `runner.spec.Backend.join`."""
    connect(world)


def connect(world: World) -> "Together":
    """Join the other processes, before the first computation of this one; return them. A second
    call returns the same."""
    global _joined
    if _joined is None:
        _join(world)
        _joined = Together(world)
    return _joined


def _join(world: World) -> None:
    cluster = tf.train.ClusterSpec({"worker": list(world.addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type="worker", task_id=world.rank, rpc_layer="grpc"
    )
    ring = tf.distribute.experimental.CommunicationImplementation.RING
    options = tf.distribute.experimental.CommunicationOptions(implementation=ring)
    tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    # TensorFlow has taken over SIGTERM, after which all collectives would hang; take it back
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


class Together:
    """The processes. Implements `runner.exact.primitives.Together`."""

    def __init__(self, world: World) -> None:
        # Every process traces the same functions in the same order, so the keys agree.
        self.num, self.keys = world.size, itertools.count(1)

    def largest(self, x: Any) -> Any:
        return self._reduced(x, "Max")

    def sum(self, x: Any) -> Any:
        return self._reduced(x, "Add")

    def gathered(self, x: Any) -> Any:
        """Return the tensors of all processes, in an order that is the same in all of them. Of a
        small tensor this takes half the time of a sum: P - 1 steps of a ring, a sum 2 (P - 1).
        # [...] -> [P, ...]"""
        parts = tf.raw_ops.CollectiveGatherV2(
            input=x[None],
            group_size=self.num,
            group_key=_GROUP,
            instance_key=next(self.keys),
            ordering_token=[],
            communication_hint="ring",
        )
        return tf.ensure_shape(parts, [self.num, *x.shape])

    def _reduced(self, x: Any, operation: str) -> Any:
        return tf.raw_ops.CollectiveReduceV2(
            input=x,
            group_size=self.num,
            group_key=_GROUP,
            instance_key=next(self.keys),
            ordering_token=[],
            merge_op=operation,
            final_op="Id",
            communication_hint="ring",
        )


def add_up(together: Together, tensors: Sequence[Any]) -> list[Any]:
    """Return the sums of tensors over the processes, with one all-reduce."""
    dtype = tensors[0].dtype
    flat = together.sum(tf.concat([tf.reshape(tf.cast(one, dtype), [-1]) for one in tensors], 0))
    parts = tf.split(flat, [one.shape.num_elements() for one in tensors])
    return [
        tf.cast(tf.reshape(part, one.shape), one.dtype)
        for part, one in zip(parts, tensors, strict=True)
    ]
