"""Refuse models and batches that this machine's memory cannot hold, before anything is
allocated."""

import math
import os
from collections.abc import Iterator

from runner.components.layers import Network, padding_same
from runner.errors import ConfigError
from runner.spec import ModelSpec

_COPIES = 2  # of every weight at least: itself and its gradient


def check(model: ModelSpec, slots: int, rows: int, num_steps: int) -> None:
    """The weights with their gradients and slots, the values of each layer for `rows` rows, and the
    rates of num_steps updates, each alone against all of the machine's memory: a ConfigError in the
    user's keys."""
    size, most = model.dtype.itemsize, memory()
    num = sum(math.prod(variable.shape) for variable in model.network.variables().values())
    if num * (_COPIES + slots) * size > most:
        largest = max(model.network.variables().items(), key=lambda item: math.prod(item[1].shape))
        shape = " x ".join(map(str, largest[1].shape))
        found = f"{num} weights, {largest[0]} is {shape}"
        raise ConfigError(
            f"model.layers must fit into this machine's {_gib(most)} of memory, got {found}"
        )
    for name, values in _values(model.network):
        if values * rows * size > most:
            found = f"{values} values a row at {name} for {rows} rows of trainer.batch_size"
            raise ConfigError(
                f"model.layers must fit into this machine's {_gib(most)} of memory, got {found}"
            )
    if num_steps * 8 > most:
        raise ConfigError(
            f"trainer.max_steps and trainer.max_epochs must leave a table of rates that "
            f"fits into {_gib(most)} of memory, "
            f"got {num_steps} updates"
        )


def memory() -> int:
    """Memory of the machine in bytes; where the system does not say, as much as can be
    addressed."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**47


def _values(network: Network) -> Iterator[tuple[str, int]]:
    """Count the numbers that each layer holds per row: its output, a padded input, attention
    weights."""
    for node in network.walk():
        yield node.name, math.prod(node.output_shape)
        window = getattr(node.spec, "kernel_size", getattr(node.spec, "pool_size", None))
        if window and node.spec.padding == "same":
            pads = [
                sum(padding_same(size, window, node.spec.stride)) for size in node.input_shape[:2]
            ]
            sides = [size + pad for size, pad in zip(node.input_shape[:2], pads, strict=True)]
            yield node.name, math.prod(sides) * node.input_shape[2]
        if node.spec.layer == "attention":
            yield node.name, node.spec.num_heads * node.input_shape[0] ** 2


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
