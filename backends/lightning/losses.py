"""The losses in torch: the mean over rows, from raw outputs.

z  # [B, C]; y  # labels [B] or targets [B, C]
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def build(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the function that computes a batch's mean loss from a runner.components.losses.Loss."""
    match loss.name:
        case "cross_entropy":
            return lambda z, y: F.cross_entropy(z, y, label_smoothing=loss.label_smoothing)
        case "binary_cross_entropy":
            return F.binary_cross_entropy_with_logits
        case "mean_squared_error":
            return F.mse_loss
        case "huber":
            return lambda z, y: F.huber_loss(z, y, delta=loss.delta)
    raise AssertionError(loss.name)
