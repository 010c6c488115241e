"""The loss of a batch: a kernel of losses.py, a function of the user's own, or the steps of the
user's LightningModule."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.lightning import custom, device, layers, losses
from backends.lightning.steps import Steps, tensors
from runner.components import losses as own_losses
from runner.components.outputs import Outputs
from runner.data.source import Batch, blocks_of
from runner.errors import ConfigError
from runner.spec import Measured, ModelSpec

# x, y, and weights if the rows have some -> outputs, mean loss
Forward = Callable[..., tuple[Tensor, Tensor]]


OwnLoss = Callable[[Any, tuple[Tensor, ...]], Tensor]  # outputs, batch -> mean loss or rows


def forward(
    loss: Any,
    function: OwnLoss | None,
    network: nn.Module,
    has_weights: bool = False,
    has_hooks: bool = False,
) -> Forward:
    """Build the forward pass in training. `function` is the user's loss function, if it is one. The
    outputs of a model that computes its own loss are empty. With `has_hooks`, the hooks of the
    network's modules run, also those of built-in layers."""
    if loss.name == "model":
        steps = steps_of(network)
        return lambda x, *others: (x.new_empty(0), steps.train(x, *others))
    call = network.forward if has_hooks else layers.direct(network)
    if function is not None:
        outputs = outputs_of(network)

        def own(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
            z = call(x)
            if not len(x):  # the part of a process without rows
                return z, z.sum()
            return z, function(unpacked(z, outputs), (x, *others)).mean()

        return own
    kernel = losses.build(loss, has_weights)

    def built_in(x: Tensor, *target: Tensor) -> tuple[Tensor, Tensor]:
        z = call(x)
        return z, kernel(z, *target)

    return built_in


def steps_of(network: nn.Module) -> Steps:
    """Return the steps of a network that is a LightningModule with a `training_step`."""
    assert isinstance(network, custom.Network)
    assert network.steps is not None
    return network.steps


def outputs_of(network: nn.Module) -> Outputs | None:
    """Return the outputs of a network that has several ones."""
    return network.outputs if isinstance(network, custom.Network) else None


def unpacked(z: Tensor, outputs: Outputs | None) -> Any:
    """Return a network's outputs as the user's loss gets them."""
    return z if outputs is None else outputs.unpack(z, torch.reshape)


def own_function(loss: Any) -> OwnLoss | None:
    """Return the user's loss function, f(outputs, batch); None if the loss is none."""
    if loss.name != "custom":
        return None
    function: Any = loss.function()
    if loss.code.startswith("torch.nn."):
        return lambda z, batch: function(z, batch[1])
    return function


def check_loss(loss: Any, example: Batch, model: ModelSpec) -> None:
    """Implements `runner.spec.Backend.check_loss`."""
    batch = tensors(example)
    like = torch.from_numpy(np.empty(0, model.dtype))
    shape = (len(batch[0]), *model.network.output_shape)
    z = torch.zeros(shape, dtype=like.dtype, requires_grad=True)
    outputs = model.network.outputs
    value = own_losses.tried(loss, own_function, unpacked(z, outputs), batch, outputs)
    own_losses.check_value(loss, value, isinstance(value, Tensor), len(batch[0]))
    if not value.requires_grad:
        raise ConfigError(
            f"loss._target_ {loss.code} must depend on the outputs through torch's functions"
        )


def measure(
    function: OwnLoss | None,
    network: nn.Module,
    model: ModelSpec,
    batches: Iterable[Batch],
    keeps_outputs: bool,
    seed: Callable[[int], None] = lambda index: None,
) -> Measured:
    """Compute the loss of the user's function, or what the user's own model computes and logs, in
    blocks of batch_size rows. `seed` is called with the number of each block."""
    torch_device = next(network.parameters()).device
    mixed = device.autocast(model.precision, torch_device)
    training = network.training
    network.eval()
    blocks = (
        tuple(values.to(torch_device) for values in tensors(block))
        for batch in batches
        for block in blocks_of(batch, model.batch_size)
    )
    with torch.no_grad(), mixed:
        if function is None:
            measured = steps_of(network).validate(blocks, seed)
        else:
            measured = _own_loss(function, network, blocks, keeps_outputs, seed)
    network.train(training)
    return measured


def _own_loss(
    function: OwnLoss,
    network: nn.Module,
    blocks: Any,
    keeps_outputs: bool,
    seed: Callable[[int], None],
) -> Measured:
    values, outputs, named = [], [], outputs_of(network)
    for i, block in enumerate(blocks):
        seed(i)
        x = block[0]
        z = network(x)
        values.append(function(unpacked(z, named), block).double().expand(len(x)).cpu().numpy())
        if keeps_outputs:
            outputs.append((z.float() if z.dtype in device.SHORT else z).cpu().numpy())
    return Measured(
        {"val/loss": np.concatenate(values)}, {}, np.concatenate(outputs) if outputs else None
    )
