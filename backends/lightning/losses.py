"""The losses in torch: the mean over rows, from raw outputs.

z  # [B, C]; y  # labels [B] or targets [B, C]. Labels [B, T] have outputs [B, T, C]; the mean is
over rows and positions. Sequences of labels [B, L] have outputs [B, T, C + 1].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.lightning import fast
from runner.components.losses import COSINE_EPS


def build(loss: Any, has_weights: bool = False) -> Callable[..., Tensor]:
    """Build the function (z, y) that computes a batch's mean loss from a
    runner.components.losses.Loss. If the rows have weights w [B], it is (z, y, w), the mean of the
    rows' losses times w; of weights of positions [B, T], the sum over a row's positions."""
    values = _values(loss)
    if has_weights:

        def weighted(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
            by_row = values(z, y).reshape(len(w), -1)
            w = w.to(z.dtype)
            if w.ndim == 1:
                return (by_row.mean(1) * w).mean()
            return (by_row * w.flatten(1)).sum(1).mean()

        return weighted
    has_kernel = getattr(loss, "class_weights", None) is None
    match loss.name:  # torch's kernels of a mean
        case "cross_entropy" if has_kernel:
            return partial(_cross_entropy, loss.label_smoothing)
        case "masked_tokens":
            return lambda z, y: F.cross_entropy(z.flatten(0, -2), y.flatten(), ignore_index=-1)
        case "soft_cross_entropy":
            return lambda z, y: -(y * F.log_softmax(z, -1)).sum(-1).mean()
        case "binary_cross_entropy" if has_kernel:
            return F.binary_cross_entropy_with_logits
        case "mean_squared_error":
            return F.mse_loss
        case "huber":
            return lambda z, y: F.huber_loss(z, y, delta=loss.delta)
    return lambda z, y: values(z, y).mean()


def _cross_entropy(label_smoothing: float, z: Tensor, y: Tensor) -> Tensor:
    if z.ndim > 2:  # a view of two dimensions would take as long as a small layer
        z, y = z.flatten(0, -2), y.flatten()
    return fast.cross_entropy(z, y, label_smoothing)


def _focal(loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each label [B, ...], or of each output [B, C]."""
    alpha = 1.0 if loss.alpha is None else loss.alpha
    if y.is_floating_point():  # several labels
        t = (2 * y - 1) * z
        values = torch.exp(-loss.gamma * F.softplus(t, threshold=40)) * F.softplus(-t, threshold=40)
        return values if loss.alpha is None else torch.where(y > 0, alpha, 1 - alpha) * values
    log_p, labels = F.log_softmax(z, -1), y.unsqueeze(-1)
    log_others = log_p.scatter(-1, labels, -torch.inf).logsumexp(-1)
    return -alpha * torch.exp(loss.gamma * log_others) * log_p.gather(-1, labels).squeeze(-1)


def _cosine_similarity(z: Tensor, y: Tensor) -> Tensor:
    sizes = ((z * z).sum(1) + COSINE_EPS) * ((y * y).sum(1) + COSINE_EPS)
    return 1 - (z * y).sum(1) / sizes.sqrt()


def _contrastive(loss: Any, z: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        u = z / ((z * z).sum(1, keepdim=True) + COSINE_EPS).sqrt()
        similarity = u @ u.t() / loss.temperature
    is_self = torch.eye(len(z), dtype=torch.bool, device=z.device)
    # no infinity: a batch of one row has no others
    total = similarity.masked_fill(is_self, -1e30).logsumexp(1, keepdim=True)
    has_label = (y[:, None] == y) & ~is_self
    sums = torch.where(has_label, total - similarity, 0.0).sum(1)
    return sums / has_label.sum(1).clamp(min=1)


def _ctc(z: Tensor, y: Tensor) -> Tensor:
    num_steps = z.new_full((len(z),), z.shape[1], dtype=torch.int64)
    log_p, num_labels = F.log_softmax(z, -1).transpose(0, 1), (y >= 0).sum(1)
    labels, blank = y.clamp(min=0), z.shape[-1] - 1
    return F.ctc_loss(log_p, labels, num_steps, num_labels, blank, reduction="none")


def _values(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the function that computes the loss of each label, or of each row of targets, times its
    class weight.  # [B T] or [B]"""

    def values(z: Tensor, y: Tensor) -> Tensor:
        match loss.name:
            case "cross_entropy":
                smoothing = loss.label_smoothing
                z, y = z.flatten(0, -2), y.flatten()
                return F.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)
            case "binary_cross_entropy":
                return F.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1)
            case "mean_squared_error":
                return F.mse_loss(z, y, reduction="none").mean(1)
            case "huber":
                return F.huber_loss(z, y, reduction="none", delta=loss.delta).mean(1)
            case "focal":
                return _focal(loss, z, y).flatten()
            case "cosine_similarity":
                return _cosine_similarity(z, y)
            case "contrastive":
                return _contrastive(loss, z, y)
            case "ctc":
                return _ctc(z, y)
        raise AssertionError(loss.name)

    if getattr(loss, "class_weights", None) is None:
        return values
    weights = torch.tensor(loss.class_weights, dtype=torch.float64)
    return lambda z, y: weights.to(z.device, z.dtype)[y.reshape(-1).long()] * values(z, y)
