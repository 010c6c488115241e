"""The user's own optimizer: any torch.optim.Optimizer, on the parameters as they are."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backends.lightning import layers
from backends.lightning.optimizers import Views
from backends.lightning.steps import optimizers_of
from runner import user_code
from runner.components import averages
from runner.components.optimizers import LEARNING_RATE, TRAINING_WEIGHTS, Custom, Group, OfModule
from runner.errors import ConfigError, RunError
from runner.spec import Weights

# Slots that belong to no weight
_GROUPS, _ATTRIBUTES, _SHARED = "param_groups", "attributes", "state"
# The slot of a Python number has this ending, so that it is read as a number again
_NUMBER, _NONE = ":number", ":none"
# Keys of a parameter group, and attributes of an optimizer, that are torch's or this project's
_GROUP_KEYS = {"params", "lr", "initial_lr", "rate"}
_TORCH_ATTRIBUTES = {"defaults", "state", "param_groups", "step", "_opt_called"}

Slots = dict[str, dict[str, np.ndarray]]


class Gradient(Views):
    """One parameter and its gradient, with the interface of optimizers.Flat."""

    def __init__(self, name: str, parameter: Tensor) -> None:
        self.names, self.buffer = [name], parameter

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        return {self.names[0]: buffer}

    @property
    def gradient(self) -> Tensor:
        assert self.buffer.grad is not None
        return self.buffer.grad

    def reset_gradient(self) -> None:
        """Set the gradient to 0, also that of a parameter without any use."""
        if self.buffer.grad is None:
            self.buffer.grad = torch.zeros_like(self.buffer)
        else:
            self.buffer.grad.zero_()


class OwnOptimizer:
    """Builds the optimizer over the groups of trained weights, applies it, and saves its state.

    Its state is what it keeps in `state` and in its parameter groups, and attributes that are
    tensors or numbers. Optimizers with `train` and `eval`, such as schedule-free ones, have other
    weights for evaluation.
    """

    def __init__(
        self,
        spec: Custom,
        parameters: Mapping[str, Tensor],
        groups: Sequence[Group],
        module: nn.Module | None = None,
    ) -> None:
        """`module` is the user's LightningModule, whose own optimizer `optimizer=module` keeps."""
        self.spec = spec
        trained = [group for group in groups if group.names and not group.is_frozen]
        self.parameters = {name: parameters[name] for group in trained for name in group.names}
        self.gradients = [Gradient(name, p) for name, p in self.parameters.items()]
        native_groups = [{"params": [parameters[n] for n in group.names]} for group in trained]
        if isinstance(spec, OfModule):
            assert isinstance(module, pl.LightningModule)
            (self.native,) = optimizers_of(module)
        else:
            self.native = _make(spec, native_groups)
        self._set_factors(trained)
        self._initial = self._shared_values()
        self.has_modes = all(callable(getattr(self.native, m, None)) for m in ("train", "eval"))
        averages.check_second(spec, self.has_modes)
        if self.has_modes:
            self.native.train()  # type: ignore[attr-defined]

    def _set_factors(self, groups: Sequence[Group]) -> None:
        """Set the rate's table and the factor of the weight decay in the optimizer's own groups."""
        group_of = {self.parameters[name]: group for group in groups for name in group.names}
        for native_group in self.native.param_groups:
            if isinstance(self.spec, OfModule):  # without weights that are frozen
                native_group["params"] = [p for p in native_group["params"] if p in group_of]
                if not native_group["params"]:
                    native_group["rate"] = LEARNING_RATE
                    continue
            own = {group_of[p] for p in native_group["params"]}
            if len(own) != 1:
                raise ConfigError(
                    f"optimizer._target_ {self.spec.code} must keep the groups of optimizer.groups "
                    f"apart, but a group of it has weights of {len(own)} of them"
                )
            (group,) = own
            native_group["rate"] = group.rate
            if group.decay_factor == 1:
                continue
            if "weight_decay" not in native_group:
                raise ConfigError(
                    f"optimizer._target_ {self.spec.code} has no weight_decay in its parameter "
                    f"groups, so optimizer.decay_exclude must be none and weight_decay_factor 1"
                )
            native_group["weight_decay"] *= group.decay_factor

    def step(self) -> None:
        try:
            self.native.step()
        except Exception as error:
            raise RunError(self._blamed(error)) from error

    def _blamed(self, error: Exception) -> str:
        return (
            f"optimizer._target_ {self.spec.code} raised {user_code.blame(error, self.spec.code)}"
        )

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Give the parameters their values for evaluation in the block. Restores them and the state
        afterwards: `eval` and `train` may round."""
        if not self.has_modes:
            yield
            return
        weights = [p.detach().clone() for p in self.parameters.values()]
        slots = self.slots()
        self.native.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.native.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for p, value in zip(self.parameters.values(), weights, strict=True):
                    p.copy_(value)
            self.load(slots)

    def slots(self) -> Slots:
        """Return copies of the optimizer's whole state, in torch's layout."""
        names, slots = {p: name for name, p in self.parameters.items()}, Slots()
        for key, value in self.native.state.items():
            if key in names:
                for slot, item in value.items():
                    self._put(slots, slot, names[key], item)
            else:
                self._put(slots, _SHARED, str(key), value)
        for (slot, name), value in self._shared_values().items():
            before = self._initial.get((slot, name), _Missing)
            is_known = isinstance(value, Tensor | bool | int | float | None)
            if is_known and not _same(value, before):
                self._put(slots, slot, name, value)
            elif not is_known and slot == _GROUPS and before != value:
                self._put(slots, slot, name, value)  # refuses it
        return slots

    def _shared_values(self) -> dict[tuple[str, str], Any]:
        """Return the values that belong to no single weight: those of the parameter groups, and the
        optimizer's attributes."""
        values = {
            (_GROUPS, f"{i}.{key}"): value
            for i, group in enumerate(self.native.param_groups)
            for key, value in group.items()
            if key not in _GROUP_KEYS
        }
        attributes = {
            (_ATTRIBUTES, name): value
            for name, value in vars(self.native).items()
            if name not in _TORCH_ATTRIBUTES
        }
        # copies: the optimizer may change a tensor in place
        return {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in {**values, **attributes}.items()
        }

    def _put(self, slots: Slots, slot: Any, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and not value.is_sparse and value.dtype in _DTYPES:
            ending, array = "", value.detach().cpu().contiguous().clone().numpy()
        elif value is None:
            ending, array = _NONE, np.zeros(0, np.uint8)
        elif isinstance(value, bool | int | float):
            ending, array = _NUMBER, np.array(value)
        else:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            where = f"{slot} of {name}" if slot != _GROUPS else name.partition(".")[2]
            raise ConfigError(
                f"optimizer._target_ {self.spec.code} keeps {where} of type {kind}; a checkpoint "
                f"can hold dense tensors of NumPy's dtypes and numbers"
            )
        if not isinstance(slot, str) or "/" in slot or ":" in slot:
            raise ConfigError(
                f"optimizer._target_ {self.spec.code} keeps state named {slot!r}; a checkpoint "
                f"needs names without / and :"
            )
        slots.setdefault(slot + ending, {})[name] = array

    def load(self, slots: Mapping[str, Weights]) -> None:
        """Load what `slots` returned."""
        self.native.state.clear()
        for name, p in self.parameters.items():
            capturable = any(
                group.get("capturable") or group.get("fused")
                for group in self.native.param_groups
                if any(q is p for q in group["params"])
            )
            for slot, values in slots.items():
                key, _, ending = slot.partition(":")
                if key in (_GROUPS, _ATTRIBUTES, _SHARED, TRAINING_WEIGHTS) or name not in values:
                    continue
                value = _value(values[name], ending, p)
                if isinstance(value, Tensor) and not (key == "step" and not capturable):
                    value = value.to(p.device)
                self.native.state[p][key] = value
        for slot, values in slots.items():
            key, _, ending = slot.partition(":")
            for name, array in values.items() if key in (_GROUPS, _ATTRIBUTES, _SHARED) else ():
                self._set_shared(key, name, _value(array, ending, None))

    def _set_shared(self, slot: str, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.to(next(iter(self.parameters.values())).device)
        if slot == _GROUPS:
            number, _, key = name.partition(".")
            self.native.param_groups[int(number)][key] = value
        elif slot == _ATTRIBUTES:
            setattr(self.native, name, value)
        else:
            self.native.state[name] = value  # type: ignore[index]


class _Missing:
    """Marks a value that did not exist."""


# torch's dtypes that NumPy and safetensors have too
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _value(array: np.ndarray, ending: str, like: Tensor | None) -> Any:
    """Undo `_put`. A tensor of a parameter's shape gets its strides: sums depend on them."""
    if ending:
        return None if f":{ending}" == _NONE else array.item()
    value = torch.from_numpy(np.array(array))
    if like is None or value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)


def _make(spec: Custom, groups: list[dict[str, Any]]) -> Optimizer:
    """Call the user's class or function with the groups of parameters, lr and its arguments."""
    made: Optimizer = spec.make(Optimizer, "torch.optim.Optimizer", groups, lr=spec.lr)
    first = next(iter(inspect.signature(made.step).parameters.values()), None)
    is_positional = first is not None and first.kind is first.POSITIONAL_OR_KEYWORD
    if first is not None and is_positional and first.default is first.empty:
        raise ConfigError(
            f"optimizer._target_ {spec.code} needs a closure that computes the loss again; an "
            f"optimizer of your own gets one gradient per update"
        )
    return made


def check(
    spec: Custom, network: layers.Tensors, groups: Sequence[Group], module: nn.Module | None
) -> None:
    """Raise ConfigError if the optimizer cannot be built, fails at its first update, or has a state
    that a checkpoint cannot hold. Uses one random weight of each shape and group of the network;
    for `optimizer=module` the network itself, which is not used again."""
    tensors = network.named()
    if isinstance(spec, OfModule):
        _try(OwnOptimizer(spec, tensors, groups, module))
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parameters: dict[str, Tensor] = {}
        tried = []
        for group in groups:
            names = [*{tensors[name].shape: name for name in group.names}.values()]
            parameters |= {name: nn.Parameter(torch.randn_like(tensors[name])) for name in names}
            tried.append(replace(group, names=tuple(names)))
        _try(OwnOptimizer(spec, parameters, tried))


def _try(own: OwnOptimizer) -> None:
    """Make one update with random gradients, and load the state that it leaves."""
    for p in own.parameters.values():
        p.grad = torch.randn_like(p) / 100
    try:
        own.step()
    except RunError as error:
        raise ConfigError(f"{error}, at its first update") from error
    own.load(own.slots())
