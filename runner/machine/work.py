"""Count the work of a network: the floating-point operations (FLOP) of its matrix products."""

import math

from runner.components.layers import Network, Node

# layers with kernels that are used once for each position of the input: a step of a recurrence, or
# a pixel that a transposed convolution spreads
_OVER_INPUTS = ("gru", "lstm", "conv2d_transpose")


def flops(net: Network) -> int:
    """Return the FLOP of a training update for one row: three times those of the forward pass,
    which the backward pass does for the gradients of weights and of inputs.

    The forward pass takes 2 P size FLOP for a kernel that is used at P positions (steps of a
    sequence, pixels), and 2 T^2 D for each of the two products of attention, over all T steps,
    masked or not. Other operations do not count: the model FLOPs of PaLM (Chowdhery et al., 2022,
    appendix B).
    """
    return 6 * sum(sum(products(node, _num_uses(node))) for node in net.walk())


def products(node: Node, num_positions: int | None = None) -> list[int]:
    """Count the multiplications of each matrix product of a layer, for one row, with kernels that
    are used at so many positions; None: at those of the output."""
    if num_positions is None:
        num_positions = math.prod(node.output_shape[:-1])
    numbers = [num_positions * math.prod(v.shape) for v in node.variables if v.decays]
    if node.tied:
        numbers.append(num_positions * node.input_shape[-1] * node.output_shape[-1])
    if node.spec.layer == "attention":
        numbers += 2 * [num_positions**2 * node.output_shape[-1]]
    return numbers


def _num_uses(node: Node) -> int | None:
    """Count the positions at which a layer uses its kernels; None: those of its output."""
    if node.spec.layer == "squeeze_excite":  # of the means over all positions
        return 1
    if node.spec.layer in _OVER_INPUTS:
        return math.prod(node.input_shape[:-1])
    return None
