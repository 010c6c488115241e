"""Refuse configs that exact mode cannot train."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from runner.components.layers import Network, Node
from runner.data.order import InOrder, Order
from runner.errors import ConfigError
from runner.exact import convolutions, layers, losses, optimizers, recurrent
from runner.exact.forms import FORMS
from runner.exact.rules import FEWEST_BITS, SIGNIFICAND, TINY

LONGEST_SUM = 2 ** (SIGNIFICAND - 2 * FEWEST_BITS)  # of products of 16-bit integers
# classes, or steps of a sequence: the sum of so many exponentials <= 2^40 is at most 2^53
_MOST_IN_SOFTMAX = 2**13
_LARGEST_POWER = 8  # of a rate, by repeated products
_MOST_PRODUCTS = 32  # of a power; each is an operation of every update
_MOST_VALUES = 2**24  # rows times outputs of an update: a count has at most 24 bits


def refuse(net: Network, loss: Any, optimizer: Any, order: Order | InOrder) -> None:
    """Raise ConfigError if the rules of exact mode do not cover a part of the run."""
    for node in net.walk():
        _check_has_form("model.layers", node.spec.layer, [*FORMS, "residual", "parallel"])
        if node.spec.layer == "activation":
            _check_has_form("model.layers: activation", node.spec.function, layers.ACTIVATIONS)
        num = longest_sum(node, order.largest_batch)
        if num > LONGEST_SUM:
            raise ConfigError(
                f"trainer.precision=exact sums at most {LONGEST_SUM} products, got {num} at "
                f"{node.name} with trainer.batch_size={order.largest_batch}"
            )
        if node.spec.layer == "attention" and node.input_shape[0] > _MOST_IN_SOFTMAX:
            raise ConfigError(
                f"trainer.precision=exact takes at most {_MOST_IN_SOFTMAX} steps of a "
                f"sequence, got {node.input_shape[0]} at "
                f"{node.name}"
            )
        _check_not_tiny("model.layers: eps", getattr(node.spec, "eps", None))
    _refuse_loss(loss)
    _check_has_form("optimizer", optimizer.name, optimizers.FORMS)
    _refuse_keys(optimizer)
    num_outputs = int(np.prod(net.output_shape))
    num_classes = net.output_shape[-1]
    if loss.name in losses.OF_LABELS and num_classes > _MOST_IN_SOFTMAX:
        raise ConfigError(
            f"trainer.precision=exact takes at most {_MOST_IN_SOFTMAX} classes, got {num_classes}"
        )
    if order.rows_per_step * num_outputs >= _MOST_VALUES:
        raise ConfigError(
            f"trainer.precision=exact takes fewer than {_MOST_VALUES} outputs per update, got "
            f"{order.rows_per_step} rows of {num_outputs}; reduce trainer.batch_size or "
            f"trainer.accumulate_grad_batches"
        )


def _refuse_loss(loss: Any) -> None:
    """Refuse a loss, or values of its keys, without an exact form."""
    own = "soft_cross_entropy"  # is no choice of a config
    _check_has_form("loss", loss.name, [name for name in losses.FORMS if name != own])
    if getattr(loss, "class_weights", None) is not None:
        raise ConfigError(
            "loss.class_weights is not supported with trainer.precision=exact; set it to null"
        )
    gamma = getattr(loss, "gamma", 0)
    if gamma != int(gamma) or gamma > _MOST_PRODUCTS:
        raise ConfigError(
            f"loss.gamma must be a whole number of at most {_MOST_PRODUCTS} with "
            f"trainer.precision=exact, whose powers are products, got {gamma:g}"
        )


def _refuse_keys(optimizer: Any) -> None:
    """Refuse values of the optimizer's keys without an exact form."""
    for key in ("eps", "eps1", "adamw_eps", "d0"):
        _check_not_tiny(f"optimizer.{key}", getattr(optimizer, key, None))
    if optimizer.name == "prodigy":
        _check_not_tiny("optimizer.d0 times optimizer.eps", optimizer.d0 * optimizer.eps)
    power = getattr(optimizer, "weight_lr_power", 0.0)
    if power % 1 or power > _LARGEST_POWER:
        raise ConfigError(
            f"optimizer.weight_lr_power must be a whole number up to {_LARGEST_POWER} with "
            f"trainer.precision=exact, got {power}"
        )


def longest_sum(node: Node, rows: int) -> int:
    """Return how many products the longest sum of a layer has, forward or backward, for
    micro-batches of `rows` rows."""
    positions = rows * int(np.prod(node.output_shape[:-1]))
    match node.spec.layer:
        case "dense" | "gated_dense":
            return max(positions, node.input_shape[-1], node.output_shape[-1])
        case "conv1d" | "conv2d" | "depthwise_conv2d" | "conv2d_transpose":
            return convolutions.longest_sum(node, rows)
        case "gru" | "lstm":
            return recurrent.longest_sum(node, rows)
        case "batch_norm":
            return positions
        case "squeeze_excite":
            return max(rows, node.input_shape[-1], int(np.prod(node.input_shape[:-1])))
        case "layer_norm" | "rms_norm":
            return max(positions, node.input_shape[-1])
        case "group_norm":
            return max(positions, int(np.prod(node.input_shape)) // node.spec.groups)
        case "attention":
            steps, width = node.input_shape
            return max(positions, steps * node.spec.num_heads // node.spec.kv_heads, width)
    return 1


def _check_has_form(key: str, name: str, forms: Iterable[str]) -> None:
    if name not in forms:
        raise ConfigError(
            f"{key}={name} has no exact form; trainer.precision=exact takes {', '.join(forms)}"
        )


def _check_not_tiny(key: str, value: float | None) -> None:
    if value is not None and value <= TINY:
        raise ConfigError(f"{key} must be > 2^-126 with trainer.precision=exact, got {value:g}")
