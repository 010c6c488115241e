"""The user's own models: an nn.Module instead of layers.Network. Its tensors keep torch's names and
layouts."""

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from backends.lightning import distributed, layers, twin
from backends.lightning.steps import (
    Steps,
    check,
    overrides,
    rate_factors,
    tensors,
    trial,
)
from runner.components.custom import (
    ROWS_OF_REPETITION,
    Built,
    CustomNetwork,
    Source,
    seeded,
)
from runner.components.layers import Shape
from runner.components.outputs import Outputs, describe
from runner.data.source import Batch
from runner.errors import ConfigError, RunError
from runner.random import layer_key, mix
from runner.spec import ModelSpec, Precision
from runner.user_code import blame


class Network(nn.Module):
    """The user's module, with the interface of layers.Network. Converts images [B, H, W, C] to
    [B, C, H, W] for the module, and packs several outputs into one tensor."""

    def __init__(self, model: nn.Module, input_shape: Shape) -> None:
        super().__init__()
        self.model, self.image_in = model, len(input_shape) == 3
        self.outputs: Outputs | None = None
        # of a LightningModule that computes its own loss
        self.steps: Steps | None = None
        if isinstance(model, pl.LightningModule) and overrides(model, "training_step"):
            self.steps = Steps(model, self.to_model)

    def to(self, *args: Any, **kwargs: Any) -> "Network":
        """Move as nn.Module does, and tell a LightningModule, which keeps its device and dtype."""
        super().to(*args, **kwargs)
        if isinstance(self.model, pl.LightningModule):
            self.model.to(*args, **kwargs)
        return self

    def to_model(self, x: Tensor) -> Tensor:
        """Return x with the axes that the module expects."""
        return x.permute(0, 3, 1, 2) if self.image_in else x

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(self.to_model(x))
        if self.outputs is not None:
            y = torch.cat([value.reshape(len(value), -1) for value in self.outputs.values(y)], 1)
        rows: Tensor = y
        return rows

    def named(self) -> dict[str, Tensor]:
        """Return torch's name -> tensor: parameters, then the buffers of the state dict and the
        counts of torchmetrics objects. A tensor with several names appears once."""
        kept = self.model.state_dict(keep_vars=True)
        buffers = {name: b for name, b in self.model.named_buffers() if name in kept}
        return {**dict(self.model.named_parameters()), **buffers, **self.counts()}

    def counts(self) -> dict[str, Tensor]:
        """Return what the module's torchmetrics objects have counted."""
        return {
            f"{name}.{key}": value
            for name, module in self.model.named_modules()
            for key, value in getattr(module, "metric_state", {}).items()
            if isinstance(value, Tensor)
        }

    def to_torch(self, value: np.ndarray) -> Tensor:
        return torch.from_numpy(value.copy())

    def canonical(self, tensor: Tensor) -> Tensor:
        """Return the tensor: torch's axes are the canonical ones of a model of the user's own."""
        return tensor

    def to_canonical(self, tensor: Tensor) -> np.ndarray:
        """Return a copy in torch's layout."""
        value: np.ndarray = tensor.detach().cpu().contiguous().clone().numpy()
        return value


def build(
    network: CustomNetwork, dtype: torch.dtype, dropout_state: layers.DropoutState | None
) -> Network:
    """Build the module, with the values that the user's code gives it. A twin's dropouts draw the
    runner's masks if `dropout_state` is given."""
    built = _build(network.source, network.input_shape, dtype, network.seed)[0]
    if network.source.is_twin and dropout_state is not None:
        twin.use_runner_masks(built.model, dropout_state)
    if dropout_state is None:  # it is exported, with the outputs that the module has
        built.outputs = None
    return built


def inspect(
    source: Source,
    input_shape: Shape,
    precision: Precision,
    seed: int,
    example: Batch | None = None,
) -> Built:
    """Build the module with the run's seed for torch's, Python's and NumPy's generators, and
    describe it. Try the steps of a LightningModule on the example."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    network, output_shape = _build(source, input_shape, dtype, seed)
    tensors = network.named()
    for name, tensor in tensors.items():
        if tensor.dtype in (torch.bfloat16, torch.complex64, torch.complex128) or tensor.is_sparse:
            raise ConfigError(
                f"{source.name}: the tensor {name} must be dense and have a dtype of NumPy, got "
                f"{tensor.dtype}"
            )
    values = {name: network.to_canonical(tensor) for name, tensor in tensors.items()}
    trained = {name for name, tensor in tensors.items() if tensor.requires_grad}
    unused: tuple[str, ...] = ()
    factors: dict[str, float] | None = None
    columns: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
    if network.steps is not None:
        unused = check(network.steps.module, source.name)
        factors = rate_factors(network.steps.module)
        if example is not None:
            columns = _tried(network, example, source.name, seed)
    is_repeatable, changed = True, {*values} - trained
    with _vector_norms(network.model) as vector_norms:
        if example is not None:
            is_repeatable, changed = _tried_twice(network, example, seed, source.name)
    shared = _shared_buffers(network.model)
    return Built(
        weights={name: value for name, value in values.items() if name in trained},
        buffers={name: value for name, value in values.items() if name not in trained},
        output_shape=output_shape,
        outputs=network.outputs,
        layers=twin.find(network.model, tensors) if source.is_twin else None,
        description=re.sub(r" at 0x[0-9a-f]+", "", repr(network.model)),
        has_loss=network.steps is not None,
        train_columns=columns[0],
        val_columns=columns[1],
        unused=unused,
        is_repeatable=is_repeatable,
        unshared=tuple(name for name in values if name in changed - shared - trained),
        shared=tuple(name for name in values if name in shared),
        vector_norms=tuple(vector_norms),
        rate_factors=factors,
        counts=tuple(network.counts()),
    )


def read_weights(path: Path, model: ModelSpec) -> dict[str, np.ndarray]:
    """Implements `runner.spec.Backend.read_weights`: a state dict, as torch.save writes it, or a
    dict with it as `state_dict`, as Lightning's checkpoints are. Only tensors are unpickled."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ConfigError(
            f"model.weights must be a state dict that holds only tensors, got {path}"
        ) from error
    values = values.get("state_dict", values) if isinstance(values, dict) else values
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise ConfigError(f"model.weights must be a state dict, got {path} with other objects")
    return {
        name: (v.float() if v.dtype in (torch.bfloat16, torch.float16) else v).numpy()
        for name, v in values.items()
    }


def _tried(
    network: Network, example: Batch, name: str, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Try the module's steps. Return the columns that they log. The module is not used again, or
    its tensors are restored."""
    assert network.steps is not None
    batch = tensors(example)
    before = {name: tensor.detach().clone() for name, tensor in network.named().items()}
    with seeded(seed), torch.random.fork_rng(devices=[]):
        columns = trial(network.steps, batch, name)
    with torch.no_grad():
        for name, tensor in network.named().items():
            tensor.copy_(before[name])
            tensor.grad = None
    return columns


def _shared_buffers(model: nn.Module) -> set[str]:
    """Return the names of buffers of batch norms that share their statistics (distributed.py)."""
    return {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if distributed.shares_statistics(module)
        for buffer, _ in module.named_buffers(recurse=False)
    }


@contextmanager
def _vector_norms(model: nn.Module) -> Iterator[dict[str, None]]:
    """Collect the names of the batch norms that are called in the block, in training, with one
    value of each channel of a row."""
    found: dict[str, None] = {}

    def note(name: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm.training and inputs and math.prod(inputs[0].shape[2:]) == 1:
            found[name] = None

    hooks = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _tried_twice(network: Network, example: Batch, seed: int, name: str) -> tuple[bool, set[str]]:
    """Return whether two forward passes in training are equal under the same seed of torch, and the
    names of the tensors that a pass changes. Python's and NumPy's generators go on, as they do in
    training. The module is not used again."""
    batch = tuple(values[:ROWS_OF_REPETITION] for values in tensors(example))
    before = {name: tensor.detach().clone() for name, tensor in network.named().items()}
    results, changed = [], set[str]()
    network.train()
    with seeded(seed), torch.random.fork_rng(devices=[]):
        try:
            for _ in range(2):
                torch.manual_seed(seed % 2**63)
                steps = network.steps
                z = network(batch[0]) if steps is None else steps.train(*batch)
                if not isinstance(z, Tensor):
                    raise RunError(
                        f"{name} must return a tensor in training and in evaluation, got "
                        f"{type(z).__name__}"
                    )
                results.append(z.detach())
                with torch.no_grad():
                    for name, tensor in network.named().items():
                        if not torch.equal(tensor, before[name]):
                            changed.add(name)
                        tensor.copy_(before[name])
        except RunError as error:  # other outputs than in evaluation
            raise ConfigError(str(error)) from error
        except Exception:  # it is the run's, which shows it
            return True, {*before}
    return torch.equal(results[0].nan_to_num(), results[1].nan_to_num()), changed


def _build(
    source: Source, input_shape: Shape, dtype: torch.dtype, seed: int
) -> tuple[Network, Shape]:
    """Build the module. Return it and the shape of an output row. A forward pass of two rows of
    zeros also creates the weights of lazy modules."""
    with seeded(seed), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = source.make(nn.Module, "torch.nn.Module", _copy)
        if isinstance(model, pl.LightningModule) and overrides(model, "setup"):
            model.setup("fit")
        network = Network(model, input_shape).to("cpu", dtype)
        if network.steps is not None and not overrides(model, "forward"):
            return network, ()
        training = network.model.training
        network.eval()
        kind = torch.int32 if source.takes_tokens else dtype
        try:
            with torch.no_grad():
                y = network(torch.zeros(2, *input_shape, dtype=kind))
        except Exception as error:
            raise ConfigError(
                f"{source.name} raised {blame(error, type(network.model).__module__)}, given rows "
                f"of shape {list(input_shape)}"
            ) from error
        network.train(training)
    network.outputs = describe(y, _is_output, lambda value: tuple(value.shape[1:]), source.name)
    if network.outputs is not None:
        return network, (network.outputs.size,)
    if not isinstance(y, Tensor) or y.ndim < 1 or len(y) != 2:
        found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ConfigError(
            f"{source.name} must return a tensor with one row per input row, here 2, or a tuple or "
            f"a dict of such tensors of floating-point numbers, got {found}"
        )
    return network, tuple(y.shape[1:])


def _is_output(value: Any) -> bool:
    """Return whether a value is one of several outputs of two rows."""
    is_tensor = isinstance(value, Tensor) and value.is_floating_point()
    return is_tensor and value.ndim > 0 and len(value) == 2


def _copy(model: nn.Module) -> nn.Module:
    """Copy a module that was passed as an instance, without gradients."""
    copied = copy.deepcopy(model)
    copied.zero_grad(set_to_none=True)
    return copied


_VALIDATION = 2**32  # blocks of validation rows count from here, micro-batches from 0


class Randomness:
    """Seeds the generators of the CPU and of the device by (seed, step, micro-batch) before each
    forward pass, so that a resumed run draws the numbers of an uninterrupted one."""

    def __init__(self, dropout_state: layers.DropoutState, device: torch.device) -> None:
        self.dropout_state, self.key = dropout_state, layer_key(dropout_state.seed, 0)
        # not torch.manual_seed: before CUDA is in use it notes every call with its stack
        self.generators: list[Callable[[int], object]] = [torch.default_generator.manual_seed]
        if device.type == "cuda":
            self.generators.append(torch.cuda.manual_seed)
        elif device.type == "mps":
            self.generators.append(torch.mps.manual_seed)

    def seed(self, rank: int = 0) -> None:
        """Seed for the next draws, which differ by the rank of the process."""
        now = self.dropout_state
        seed = mix(mix(self.key + now.step) + now.micro_batch)
        seed = mix(seed + rank) if rank else seed
        for generator in self.generators:
            generator(seed)

    def seed_validation(self, step: int, index: int) -> None:
        """Seed the generators for a block of rows that are not trained on."""
        self.dropout_state.step, self.dropout_state.micro_batch = step, _VALIDATION + index
        self.seed()
