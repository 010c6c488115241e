"""The loss of a batch: a kernel of losses.py, a function of the user's own, or the steps of the
user's LightningModule."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.lightning import custom, layers, losses
from backends.lightning.steps import Steps
from runner import user_code
from runner.data.source import Batch
from runner.errors import ConfigError
from runner.spec import Measured, ModelSpec

Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # x, y -> outputs, mean loss


def forward(loss: Any, network: nn.Module) -> Forward:
    """Build the forward pass in training. The outputs of a model that computes its own loss are
    empty."""
    if loss.name == "model":
        steps = steps_of(network)
        return lambda x, y: (x.new_empty(0), steps.train(x, y))
    call = layers.direct(network)
    if loss.name == "custom":
        function = own_function(loss)

        def own(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            z = call(x)
            return z, function(z, (x, y)).mean()

        return own
    kernel = losses.build(loss)

    def built_in(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = call(x)
        return z, kernel(z, y)

    return built_in


def steps_of(network: nn.Module) -> Steps:
    """Return the steps of a network that is a LightningModule with a `training_step`."""
    assert isinstance(network, custom.Network)
    assert network.steps is not None
    return network.steps


def own_function(loss: Any) -> Callable[[Any, tuple[Tensor, ...]], Tensor]:
    """Return the user's loss function, f(outputs, batch)."""
    function = user_code.function(loss.section)
    if user_code.open_package(loss.code) == "torch.nn":
        return lambda z, batch: function(z, batch[1])
    return function


def check_loss(loss: Any, example: Batch, output_shape: Any, dtype: np.dtype) -> None:
    """Implements `runner.spec.Backend.check_loss`."""
    x, y = (torch.from_numpy(example[name]) for name in ("x", "y"))
    like = torch.from_numpy(np.empty(0, dtype))
    z = torch.zeros(len(x), *output_shape, dtype=like.dtype, requires_grad=True)
    name = f"loss._target_ {loss.code}"
    try:
        function = own_function(loss)
    except ValueError as error:
        raise ConfigError(f"loss.{error}") from error
    try:
        value = function(z, (x, y))
    except Exception as error:
        raise ConfigError(
            f"{name} raised {user_code.blame(error, loss.code)}, given outputs of shape "
            f"{list(z.shape)} and y of shape {list(y.shape)}"
        ) from error
    if not isinstance(value, Tensor) or value.shape not in ((), (len(x),)):
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"{name} must return a number, or one for each of {len(x)} rows, as a tensor; got "
            f"{found}"
        )
    if not value.requires_grad:
        raise ConfigError(f"{name} must depend on the outputs through torch's functions")


def measure(
    loss: Any,
    network: nn.Module,
    model: ModelSpec,
    batches: Iterable[Batch],
    keeps_outputs: bool,
    seed: Callable[[int], None] = lambda index: None,
) -> Measured:
    """Compute the loss and what the user's own model logs, in blocks of batch_size rows. `seed` is
    called with the number of each block."""
    device = next(network.parameters()).device
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=model.precision == "bf16-mixed")
    training = network.training
    network.eval()
    blocks = (
        (torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
        for batch in batches
        for x, y in _blocks(batch, model.batch_size)
    )
    with torch.no_grad(), mixed:
        if loss.name == "model":
            measured = steps_of(network).validate(blocks, seed)
        else:
            measured = _own_loss(own_function(loss), network, blocks, keeps_outputs, seed)
    network.train(training)
    return measured


def _blocks(batch: Batch, size: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    x, y = batch["x"], batch["y"]
    return ((x[i : i + size], y[i : i + size]) for i in range(0, len(x), size))


def _own_loss(
    function: Any, network: nn.Module, blocks: Any, keeps_outputs: bool, seed: Callable[[int], None]
) -> Measured:
    values, outputs = [], []
    for i, (x, y) in enumerate(blocks):
        seed(i)
        z = network(x)
        values.append(function(z, (x, y)).double().expand(len(x)).cpu().numpy())
        if keeps_outputs:
            outputs.append((z.float() if z.dtype == torch.bfloat16 else z).cpu().numpy())
    return Measured(
        {"val/loss": np.concatenate(values)}, {}, np.concatenate(outputs) if outputs else None
    )
