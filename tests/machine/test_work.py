"""The floating-point operations of a network: torch's own count, and sums by hand."""

from typing import Any

import pytest

from runner.cli.compose import compose
from runner.components.layers import network
from runner.config.schema import parse
from runner.machine.work import flops


def flops_of(overrides: str, shape: tuple[int, ...], outputs: tuple[int, ...] = (10,)) -> int:
    layers = parse(compose([overrides])).model.layers
    return flops(network(layers, shape, outputs[-1], outputs[:-1]))


def counted(modules: Any, *shape: int) -> int:
    """The FLOP of a forward pass of one row, by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        modules(torch.zeros(1, *shape))
    return int(counter.get_total_flops())


CONVOLUTIONS = (
    "model.layers=[{layer: conv2d, filters: 4, kernel_size: 3, stride: 2}, "
    "{layer: conv2d_transpose, filters: 6, kernel_size: 2, stride: 2}, "
    "{layer: flatten}, {layer: dense, units: 10}]"
)
ATTENTION = "model.layers=[{layer: attention, num_heads: 2}]"
EXCITE = "model.layers=[{layer: squeeze_excite, ratio: 2}]"


def test_convolutions_are_those_that_torch_counts() -> None:
    from torch import nn

    modules = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 6, 2, stride=2)),
        *(nn.Flatten(), nn.Linear(8 * 8 * 6, 10)),
    )
    assert flops_of(CONVOLUTIONS, (8, 8, 1)) == 3 * counted(modules, 1, 8, 8)


@pytest.mark.parametrize(
    ("layers", "shape", "outputs", "expected"),
    [
        ("model=mlp", (64,), (10,), 64 * 128 + 128 * 10),
        # 7 steps of 5 numbers; three gates of 64 units, from the input and from the state
        ("model=gru", (7, 5), (10,), 7 * 3 * 64 * (5 + 64) + 64 * 10),
        # queries, keys, values and the result; scores, and their products with the values
        (ATTENTION, (7, 4), (7, 4), 4 * 7 * 4 * 4 + 2 * 7 * 7 * 4),
        # the mean over 6 x 6 pixels alone goes through its two kernels
        (EXCITE, (6, 6, 8), (6, 6, 8), 8 * 4 + 4 * 8),
    ],
)
def test_a_kernel_counts_at_each_of_its_positions(
    layers: str, shape: tuple[int, ...], outputs: tuple[int, ...], expected: int
) -> None:
    assert flops_of(layers, shape, outputs) == 6 * expected
