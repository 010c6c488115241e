"""The losses in torch: the mean over rows, from raw outputs.

z  # [B, C]; y  # labels [B] or targets [B, C]. Labels [B, T] have outputs [B, T, C]; the mean is
over rows and positions.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def build(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the function that computes a batch's mean loss from a runner.components.losses.Loss."""
    if getattr(loss, "class_weights", None) is not None:
        return _weighted(loss)
    match loss.name:
        case "cross_entropy":
            return lambda z, y: F.cross_entropy(
                z.flatten(0, -2), y.flatten(), label_smoothing=loss.label_smoothing
            )
        case "binary_cross_entropy":
            return F.binary_cross_entropy_with_logits
        case "mean_squared_error":
            return F.mse_loss
        case "huber":
            return lambda z, y: F.huber_loss(z, y, delta=loss.delta)
    raise AssertionError(loss.name)


def _weighted(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Build a loss with class weights: the mean over rows of weight * value."""
    weights = torch.tensor(loss.class_weights, dtype=torch.float64)

    def mean(z: Tensor, y: Tensor) -> Tensor:
        rows = weights.to(z.device, z.dtype)[y.reshape(-1).long()]
        if loss.name == "cross_entropy":
            z, y = z.flatten(0, -2), y.flatten()
            values = F.cross_entropy(z, y, reduction="none", label_smoothing=loss.label_smoothing)
        else:
            values = F.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1)
        return (rows * values).mean()

    return mean
