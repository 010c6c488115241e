"""Several processes that train one run: their sums, by torch.distributed with gloo.

Lightning's own strategy is not used here. Its launcher starts the command again for each process,
where the runner passes on the config that it has composed; and DistributedDataParallel reduces
gradients in hooks of `nn.Module.__call__` and takes the mean of the processes' means, which is
another number if their parts of the batch differ in size. Each process has a Trainer of its own
device, and an update makes one all-reduce of all gradients.
"""

import math
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from backends.lightning.layers import DropoutState
from runner.run import pulse
from runner.spec import World


def connect(world: World) -> "Together":
    """Join the other processes."""
    if (name := _interface(world.addresses[world.rank])) is not None:
        # gloo would look up the name of the machine, and may find an address that others cannot use
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    address = f"tcp://{world.addresses[0]}"
    dist.init_process_group("gloo", init_method=address, rank=world.rank, world_size=world.size)
    return Together()


class Together:
    """The processes. Implements `runner.exact.primitives.Together`."""

    def largest(self, x: Tensor) -> Tensor:
        return self._reduced(x, dist.ReduceOp.MAX)

    def sum(self, x: Tensor) -> Tensor:
        return self._reduced(x, dist.ReduceOp.SUM)

    def gathered(self, x: Tensor) -> Tensor:
        """Return the tensors of all processes, by rank.  # [...] -> [P, ...]"""
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        pulse.count()
        dist.all_gather(parts, x)
        return torch.stack(parts)

    def _reduced(self, x: Tensor, operation: Any) -> Tensor:
        y = x.clone(memory_format=torch.contiguous_format)
        pulse.count()
        dist.all_reduce(y, operation)
        return y


def _interface(address: str) -> str | None:
    """Return the name of the network interface that has the address HOST:PORT; None if no one
    has it."""
    with suppress(OSError):
        host = socket.gethostbyname(address.rpartition(":")[0])
        for name, found in psutil.net_if_addrs().items():
            addresses = [one.address for one in found]
            if host in addresses or (host.startswith("127.") and "127.0.0.1" in addresses):
                return name
    return None


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the processes, with one all-reduce."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    pulse.count()
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def _shape(x: Tensor) -> list[int]:
    """Return the shape in which values of the channels, on axis 1, are broadcast over x."""
    return [-1 if i == 1 else 1 for i in range(x.ndim)]


class _Normalized(torch.autograd.Function):
    """Batch norm by the mean and variance of the rows of all processes, with one exchange forward
    and one backward (the Keras backend's `_BatchNorm._by_total` has the formulas).

    x  # float[B, C, ...] of which this process has `own` of `num` values of each channel
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Any, bias: Any, own: int, num: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels, axes = x.shape[1], [i for i in range(x.ndim) if i != 1]
        statistics = x.new_zeros(2 * channels + 1)
        if own:
            mean = x.mean(axes)
            variance = (x - mean.view(_shape(x))).square().mean(axes)  # var takes 8 times as long
            torch.cat([mean, variance, x.new_full((1,), own)], out=statistics)
        means, variances, counts = Together().gathered(statistics).split([channels, channels, 1], 1)
        mean = (counts * means).sum(0) / num
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / num
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if len(x) else x.clone()
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.own, ctx.num, ctx.eps = own, num, eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, mean, variance = ctx.saved_tensors
        r = torch.rsqrt(variance + ctx.eps)
        dx, sums = torch.zeros_like(x), x.new_zeros(2, x.shape[1])
        if ctx.own:  # the derivatives for sums over the rows of this process
            dx, *sums_of_own = torch.ops.aten.native_batch_norm_backward(
                gradients[0], x, weight, None, None, mean, r, True, ctx.eps, [True] * 3
            )
            sums = torch.stack(sums_of_own)
        means = Together().gathered(sums).sum(0) / ctx.num
        if ctx.own:
            g, b = means - sums / ctx.own
            scale, shape = r if weight is None else weight * r, _shape(x)
            centered = x - mean.view(shape)
            dx -= torch.addcmul((scale * b).view(shape), centered, (scale * r * g).view(shape))
        needed = ctx.needs_input_grad[1:3]
        own = [part if is_needed else None for part, is_needed in zip(sums, needed, strict=True)]
        return dx, *own, None, None, None


def share_statistics(network: nn.Module, state: DropoutState) -> None:
    """Let batch norm use the mean and variance of the whole micro-batch in training."""
    for norm in batch_norms(network):
        own = norm.forward
        norm.forward = partial(_normalize, norm, own, state)


def batch_norms(network: nn.Module) -> list[Any]:
    """Return the batch norms that several processes support."""
    return [module for module in network.modules() if shares_statistics(module)]


def shares_statistics(module: nn.Module) -> bool:
    """Return whether a module is a batch norm that can use the statistics of all processes: torch's
    own, with a fixed momentum. nn.SyncBatchNorm needs a GPU."""
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return False
    is_own = type(module).forward is not nn.modules.batchnorm._BatchNorm.forward
    return module.momentum is not None and (not is_own or _has_features_last(module))


def _has_features_last(norm: Any) -> bool:
    return bool(getattr(norm, "has_features_last", False))


def _normalize(norm: Any, own: Any, state: DropoutState, x: Tensor) -> Tensor:
    if not norm.training:
        return own(x)  # type: ignore[no-any-return]
    wide = x if x.dtype == torch.float64 else x.float()
    is_sequence = _has_features_last(norm) and x.ndim == 3
    wide = wide.transpose(1, 2) if is_sequence else wide
    size = math.prod(wide.shape[2:])
    num = state.num_rows * size
    y, mean, variance = _Normalized.apply(
        wide, norm.weight, norm.bias, state.own_rows * size, num, norm.eps
    )
    if norm.track_running_stats:
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            unbiased = variance * (num / (num - 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
            norm.num_batches_tracked.add_(1)
    return (y.transpose(1, 2) if is_sequence else y).to(x.dtype)
