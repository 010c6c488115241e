"""Width scaling (muP): rates and first weights that depend on the width, so that the best rate of a
narrow model stays the best one of a wide model.

r = D / D0; D = the features that the last layer reads, D0 = `optimizer.width_base`. All hidden
sizes should grow in proportion to D, also the number of heads of an attention, so that the size of
a head stays. Relative to the model of width D0, with r = 1 no number changes:

| weights | standard deviation at first | rate, adam | rate, sgd |
| --- | --- | --- | --- |
| input: the kernels of the first layer, embeddings | 1 | 1 | r |
| hidden kernels | r^(-1/2) | 1 / r | 1 |
| output: the kernel of the last layer | 1 / r | 1 / r | 1 / r |
| biases, scales and offsets, but the last bias | as they are | 1 | r |
| the last bias | as it is | 1 | 1 |

`adam` holds for optimizers whose step does not depend on the size of the gradient.

Yang et al., Tensor Programs V (2022): table 3; table 8 is the same with a multiplier of the output
in place of its first weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, NoReturn

from runner.components.layers import Network, Node
from runner.errors import ConfigError

Rule = Literal["adam", "sgd"]
_KERNELS = ("dense", "gated_dense", "attention", "embedding", "position_embedding")
_VECTORS = ("layer_norm", "rms_norm", "batch_norm", "group_norm")
_OF_INPUTS = ("embedding", "position_embedding")


@dataclass(frozen=True)
class Scale:
    """The factors of a weight: of its rate, and of its first values."""

    rate: float = 1.0
    first: float = 1.0


def scales(optimizer: Any, network: Network) -> dict[str, Scale]:
    """Return the factors of all weights by `optimizer.width_base`; none without it.

    Raises ConfigError for an optimizer without a rule, and for a model whose widths are unknown.
    """
    base, rule = optimizer.width_base, optimizer.width_rule
    if base is None:
        return {}
    if rule is None:
        raise ConfigError(
            f"optimizer.width_base must be null with optimizer={optimizer.name}, for which no rule "
            f"of widths is known, got {base}"
        )
    for node in network.walk():
        if node.spec.layer == "parallel":
            _refuse(base, node)
        if node.tied:
            raise ConfigError(
                f"optimizer.width_base is not supported with {node.name}, which is tied to "
                f"{node.tied}: input and output weights have other rates, and it is both; set tie: "
                f"null, got {base}"
            )
    nodes = [node for node in network.walk() if node.trainable() and node.variables]
    kernels = [node for node in nodes if node.spec.layer in _KERNELS]
    _check(base, nodes, kernels)
    ratio = kernels[-1].input_shape[-1] / base
    found: dict[str, Scale] = {}
    for node in nodes:
        role = _role(node, kernels)
        for name, is_kernel, sizes, init in _weights(node):
            if is_kernel:
                rate, first = _rate(role, rule, ratio), _first(role, init, sizes, ratio)
                found[name] = Scale(rate, first)
            else:
                found[name] = Scale(ratio if rule == "sgd" and role != "output" else 1.0)
    return found


def _check(base: int, nodes: list[Node], kernels: list[Node]) -> None:
    for node in nodes:
        if node.spec.layer not in (*_KERNELS, *_VECTORS):
            _refuse(base, node)
    last = nodes[-1] if nodes else None
    has_kernel = last is not None and any(len(v.shape) > 1 for v in last.variables)
    if len(kernels) < 2 or last is None or last.spec.layer != "dense" or not has_kernel:
        raise ConfigError(
            f"optimizer.width_base needs a model of this project's layers with a hidden layer and "
            f"a dense layer as its last one with weights, got {base}"
        )


def _refuse(base: int, node: Node) -> NoReturn:
    raise ConfigError(
        f"optimizer.width_base is not supported with {node.name}; it takes models of "
        f"{', '.join((*_KERNELS, *_VECTORS))}, got {base}"
    )


def _role(node: Node, kernels: list[Node]) -> str:
    if node is kernels[-1]:
        return "output"
    is_first = node is kernels[0] or node.spec.layer in _OF_INPUTS
    return "input" if is_first else "hidden"


def _weights(node: Node) -> Iterator[tuple[str, bool, tuple[int, int], str]]:
    """Yield each weight's name, whether it is a kernel, its numbers of inputs and outputs, and its
    init."""
    for variable in node.variables:
        if variable.trainable:
            is_kernel = node.spec.layer in _KERNELS and len(variable.shape) > 1
            num_in, num_out = variable.shape[-2:] if is_kernel else (1, 1)
            yield f"{node.name}/{variable.name}", is_kernel, (num_in, num_out), str(variable.init)


def _rate(role: str, rule: Rule, ratio: float) -> float:
    rates = {
        "adam": {"input": 1.0, "hidden": 1 / ratio, "output": 1 / ratio},
        "sgd": {"input": ratio, "hidden": 1.0, "output": 1 / ratio},
    }
    return rates[rule][role]


def _first(role: str, init: str, sizes: tuple[int, int], ratio: float) -> float:
    """Return the factor of a kernel's first values: its wanted standard deviation, relative to the
    one that `init` gives with the sizes of this model."""
    num_in, num_out = sizes
    base_in = num_in if role == "input" else num_in / ratio
    base_out = num_out if role == "output" else num_out / ratio
    fans = {
        "glorot_uniform": (num_in + num_out) / (base_in + base_out),
        "he_uniform": num_in / base_in,
    }
    power = {"input": 0.0, "hidden": -0.5, "output": -1.0}[role]
    return sqrt(fans.get(init, 1.0)) * ratio**power
