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


class _Total(torch.autograd.Function):
    """The sum over the processes. Each process has a part of the loss, so the derivative is the sum
    of the parts' derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Together().sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Total.forward(ctx, gradients[0])


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
    axis = x.ndim - 1 if _has_features_last(norm) else 1
    axes = [i for i in range(x.ndim) if i != axis]
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    num = state.num_rows * math.prod(x.shape[i] for i in axes if i > 0)
    wide = x if x.dtype == torch.float64 else x.float()
    own = float(state.has_rows)
    mean = _Total.apply(own * wide.sum(axes)) / num
    centered = wide - mean.view(shape)
    variance = _Total.apply(own * (centered * centered).sum(axes)) / num
    if norm.track_running_stats:
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            unbiased = variance * (num / (num - 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
            norm.num_batches_tracked.add_(1)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    y = centered * scale.view(shape)
    return (y + norm.bias.view(shape) if norm.affine else y).to(x.dtype)
