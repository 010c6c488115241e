"""Refuse models and batches that do not fit into this machine's memory, before any allocation."""

import math
from collections.abc import Iterator

from runner.components.layers import Network
from runner.data.capacity import memory
from runner.errors import ConfigError
from runner.spec import ModelSpec

_COPIES = 2  # arrays per weight besides the optimizer's slots: the weight and its gradient


def check(model: ModelSpec, slots: int, rows: int, num_steps: int) -> None:
    """Raise ConfigError if one of these alone exceeds the machine's memory: the weights with their
    gradients and slots; the values of one layer for `rows` rows; the table of rates of `num_steps`
    updates."""
    size, most = model.dtype.itemsize, memory()
    num = sum(math.prod(variable.shape) for variable in model.network.variables().values())
    if num * (_COPIES + slots) * size > most:
        largest = max(model.network.variables().items(), key=lambda item: math.prod(item[1].shape))
        shape = " x ".join(map(str, largest[1].shape))
        raise ConfigError(
            f"model.layers must fit into this machine's {_gib(most)} of memory, got {num} weights; "
            f"the largest is {largest[0]}, {shape}"
        )
    for name, values in _values(model.network):
        if values * rows * size > most:
            raise ConfigError(
                f"model.layers must fit into this machine's {_gib(most)} of memory, got {values} "
                f"values per row at {name}, with {rows} rows per batch (trainer.batch_size)"
            )
    if num_steps * 8 > most:
        raise ConfigError(
            f"trainer.max_steps and trainer.max_epochs must give a table of rates that fits into "
            f"{_gib(most)} of memory, got {num_steps} updates"
        )


def _values(network: Network) -> Iterator[tuple[str, int]]:
    """Count the numbers that each layer holds per row: its output, a padded input, attention
    weights."""
    for node in network.walk():
        yield node.name, math.prod(node.output_shape)
        if window := getattr(node.spec, "window", None):
            is_transposed = node.spec.layer == "conv2d_transpose"  # its output is padded
            height, width, channels = node.output_shape if is_transposed else node.input_shape
            pads = window.pads((height, width))
            yield node.name, (height + sum(pads[0])) * (width + sum(pads[1])) * channels
        if node.spec.layer == "attention":
            yield node.name, node.spec.num_heads * node.input_shape[0] ** 2


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
