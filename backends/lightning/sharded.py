"""Weights, gradients and the optimizer's state divided among the processes, by torch's FSDP2
(`fully_shard`). The Keras backend has no counterpart: TensorFlow's strategies keep all weights in
every process.

Lightning's ModelParallelStrategy calls the same function, but its loop would make one update per
call and take the mean of the processes' means. Here the engine keeps its loop. FSDP2 gathers a
unit's weights before its forward and backward pass, and adds up its gradients over the processes
after it, so that each process has the sum of its own part. An elementwise update of the part is
that part of the whole update.

P processes keep ceil(N / P) of the N rows (first axis) of each parameter; the last ones may have
fewer or none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from backends.lightning import layers, native, optimizers
from backends.lightning.average import swapped
from runner.components.optimizers import BASE_WEIGHTS, Group
from runner.run import pulse
from runner.spec import World

_LARGE = 2**16  # weights; a block or layer of this size and more is gathered by itself
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def divide(network: Any, world: World) -> None:
    """Divide the parameters among the processes. Blocks and large layers are gathered one after
    another; all other parameters together, for the whole update."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # fully_shard needs it
    mesh = init_device_mesh("cpu", (world.size,))
    for unit in [*_units(network), network]:
        sharded: Any = fully_shard(unit, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)  # the sum: each process has a part of the loss
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor
        unit.register_forward_pre_hook(lambda *_: pulse.count())
    network.is_divided = True


def _units(network: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered by themselves: elements of a list of modules, since a
    list's elements are called as modules. The inside of another module may not be: torch's
    attention reads the weights of a layer in it. A module that shares a parameter with another one,
    as a tied layer does, is not among them."""
    body = network.body if isinstance(network, layers.Network) else network
    owners: dict[Tensor, int] = {}
    for module in body.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    tied = {id(m.embedding) for m in body.modules() if hasattr(m, "embedding")}

    def is_unit(module: nn.Module) -> bool:
        own = [*module.parameters()]
        is_shared = any(owners[p] > 1 or id(p) in tied for p in own)
        is_large = sum(p.numel() for p in own) >= _LARGE
        return is_large and not is_shared and not isinstance(module, _LISTS)

    def found(module: nn.Module) -> list[nn.Module]:
        is_list = isinstance(module, _LISTS)
        units = []
        for child in module.children():
            units += [child] if is_list and is_unit(child) else found(child)
        return units

    return found(body)


class Shard(optimizers.Views):
    """The part of a parameter that this process has, with the interface of optimizers.Flat."""

    def __init__(self, name: str, parameter: Tensor, world: World) -> None:
        assert isinstance(parameter, DTensor)
        self.names, self._parameter, self._world = [name], parameter, world
        self.buffer = local(parameter)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        return {self.names[0]: buffer}

    def fill(self, buffer: Tensor, values: Mapping[str, Tensor]) -> None:
        """Copy this process's part of a whole value into a buffer."""
        rows = -(-self._parameter.shape[0] // self._world.size)
        begin = min(self._world.rank * rows, self._parameter.shape[0])
        buffer.copy_(values[self.names[0]][begin : begin + len(buffer)])

    def whole(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return the value of all processes, in rank 0; the others get an empty tensor. All
        processes must call it."""
        return {self.names[0]: gathered(buffer, self._parameter.shape, self._world)}

    def collect(self) -> None:
        """Give the buffer the sum of the gradients that FSDP2 has left in the parameter."""
        gradient = self._parameter.grad
        self.buffer.grad = torch.zeros_like(self.buffer) if gradient is None else local(gradient)

    @property
    def gradient(self) -> Tensor:
        assert self.buffer.grad is not None
        return self.buffer.grad

    def reset_gradient(self) -> None:
        self._parameter.grad = self.buffer.grad = None


def local(tensor: Tensor) -> Tensor:
    """Return this process's part, without a copy."""
    assert isinstance(tensor, DTensor)
    with torch.no_grad():
        part: Tensor = tensor.to_local()
    return part.detach()


def gathered(part: Tensor, shape: Sequence[int], world: World) -> Tensor:
    """Return the value of this shape of which each process has a part, in rank 0; the others get an
    empty tensor. gloo gathers parts of one size, so short ones are padded."""
    rows = -(-shape[0] // world.size)
    padded = part.new_zeros(rows, *shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(world.size)] if world.rank == 0 else None
    pulse.count()
    dist.gather(padded, parts, dst=0)
    return part.new_empty(0) if parts is None else torch.cat(parts)[: shape[0]]


def whole(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Return whole tensors in rank 0, the others get empty ones in place of divided ones."""
    return {
        name: gathered(local(tensor), tensor.shape, world)
        if isinstance(tensor, DTensor)
        else tensor.detach()
        for name, tensor in tensors.items()
    }


def parts(
    weights: Mapping[str, Tensor], groups: Sequence[Group], world: World
) -> list[list["Shard"]]:
    """Return this process's part of each trained parameter, by parameter group."""
    return [
        [] if group.is_frozen else [Shard(name, weights[name], world) for name in group.names]
        for group in groups
    ]


def norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of a gradient of which each process has other parts: the root of the sum of
    its squares over all of them."""
    squares = optimizers.norm(tensors).square()
    pulse.count()
    dist.all_reduce(squares)
    return squares.sqrt()


class Engine(native.Engine):
    """The engine with divided weights."""

    norm = staticmethod(norm)

    def _join(self) -> None:
        super()._join()
        divide(self.network, self.world)

    def _flatten(self) -> Sequence[Sequence[Any]]:
        return parts(self.weights, self.run.groups, self.world)

    def _add_up(self, loss: Tensor) -> None:
        """Replace the loss by its sum and statistics by their means; FSDP2 adds up gradients."""
        for flat in self.flats:
            flat.collect()
        self._reduce([loss])

    def _norms(self) -> dict[str, float]:
        parts = [flat.gradient.double() for flat in self.flats]
        squares = torch.stack([part.square().sum() for part in parts])
        pulse.count()
        dist.all_reduce(squares)
        names = [name for flat in self.flats for name in flat.names]
        return dict(zip(names, squares.sqrt().tolist(), strict=True))

    def _agree(self, is_true: bool) -> bool:
        answer = torch.tensor(float(is_true))
        pulse.count()
        dist.all_reduce(answer, dist.ReduceOp.MIN)
        return bool(answer)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Return a context in which the network has its weights for evaluation. Each forward pass
        gathers every unit and drops it again. In training, FSDP2 keeps the outermost one for the
        backward pass; without one, further passes would use the same values."""
        network: Any = self.network
        network.set_reshard_after_forward(True, recurse=False)
        try:
            with swapped(self._parts(), self._evaluated()):
                yield
        finally:
            network.set_reshard_after_forward(False, recurse=False)

    def averaged(self) -> AbstractContextManager[None]:
        assert self.average is not None
        return swapped(self._parts(), self.average.views)

    def _parts(self) -> dict[str, Tensor]:
        """Return this process's part of each weight."""
        return {name: local(weight) for name, weight in self.weights.items()}

    def _evaluated(self) -> dict[str, Tensor]:
        """Return this process's part of the weights for evaluation, if training has others."""
        if BASE_WEIGHTS not in self.slot_names:
            return {}
        spec, states = self.run.optimizer, self.optimizer.state
        key = optimizers.state_key(spec, BASE_WEIGHTS)
        weights = {flat.names[0]: flat.buffer.numpy() for flat in self.flats}
        base = {flat.names[0]: states[flat.buffer][key].numpy() for flat in self.flats}
        found = spec.averaged(weights, base)
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def num_bytes(self) -> dict[str, int]:
        """Implements `runner.spec.Divided`."""
        slots = [value for state in self.optimizer.state.values() for value in state.values()]
        optimizer = sum(value.nbytes for value in slots if isinstance(value, Tensor))
        return {
            "weights": sum(local(weight).nbytes for weight in self.weights.values()),
            "optimizer": optimizer + (0 if self.average is None else self.average.num_bytes()),
        }

    def _save(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        tensors = self.network.named()
        values = whole({name: tensors[name] for name in names}, self.world)
        return {name: self.network.to_canonical(value) for name, value in values.items()}
