"""The optimizers in torch: stock classes, and Lion. runner/components/optimizers.py follows torch's
definitions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from backends.lightning import fast
from runner.components.optimizers import Group
from runner.spec import Weights


class Lion(Optimizer):
    """Lion, which torch does not have: p -= lr sign(beta1 m + (1 - beta1) g); then
    m = beta2 m + (1 - beta2) g."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                g = p.grad.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else p.grad
                m = self.state[p]["exp_avg"]
                p.add_(torch.sign(m * beta1 + g * (1 - beta1)), alpha=-group["lr"])
                m.mul_(beta2).add_(g, alpha=1 - beta2)


class Flat:
    """Small parameters as views of one buffer, and their gradients as views of another, so that one
    kernel updates them all. All updates are elementwise, so the results equal those of separate
    parameters. A large parameter keeps its own buffer and gradient: there, a copy costs more than a
    kernel call."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters, first = parameters, next(iter(parameters.values()))
        self.is_single = len(parameters) == 1
        if self.is_single:
            self.buffer = first
            return
        num = sum(p.numel() for p in parameters.values())
        self.buffer = torch.empty(num, dtype=first.dtype, device=first.device)
        self.buffer.grad = torch.zeros_like(self.buffer)
        values, gradients = self.views(self.buffer), self.views(self.buffer.grad)
        for name, p in parameters.items():
            p.data, p.grad = values[name].copy_(p.detach()), gradients[name]

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return views of a buffer of this size: parameter name -> view with the parameter's shape
        and strides."""
        views, offset = {}, 0
        for name, p in self._parameters.items():
            views[name] = buffer.as_strided(p.shape, p.stride(), buffer.storage_offset() + offset)
            offset += p.numel()
        return views

    @property
    def gradient(self) -> Tensor:
        assert self.buffer.grad is not None
        return self.buffer.grad

    def reset_gradient(self) -> None:
        """Reset the gradient before a backward pass."""
        if self.is_single:
            self.buffer.grad = None
        else:
            self.gradient.zero_()


_LARGE = 2**16  # elements; parameters of this size and more stay separate


def flatten(parameters: Mapping[str, Tensor], groups: Iterable[Group]) -> list[list[Flat]]:
    """Return the buffers of each parameter group; a frozen group has none."""
    flats: list[list[Flat]] = []
    for group in groups:
        if group.is_frozen:
            flats.append([])
            continue
        small = {
            name: parameters[name] for name in group.names if parameters[name].numel() < _LARGE
        }
        large = [Flat({name: parameters[name]}) for name in group.names if name not in small]
        flats.append([*([Flat(small)] if small else []), *large])
    return flats


# optimizer -> slot -> key in torch's state
_STATE = {
    "sgd": {"momentum": "momentum_buffer"},
    "adam": {
        "first_moment": "exp_avg",
        "second_moment": "exp_avg_sq",
        "max_second_moment": "max_exp_avg_sq",
    },
    "adamax": {"first_moment": "exp_avg", "infinity_norm": "exp_inf"},
    "nadam": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
    "rmsprop": {
        "square_average": "square_avg",
        "gradient_average": "grad_avg",
        "momentum": "momentum_buffer",
    },
    "adagrad": {"accumulator": "sum"},
    "adadelta": {"square_average": "square_avg", "delta_average": "acc_delta"},
    "lion": {"first_moment": "exp_avg"},
}
_STATE["adamw"] = _STATE["adam"]
# optimizers with a `step` in their state
_COUNTS = {"adam", "adamw", "adamax", "nadam", "rmsprop", "adagrad", "adadelta"}


def build(spec: Any, flats: Iterable[Sequence[Flat]], groups: Iterable[Group]) -> Optimizer:
    """Build a torch optimizer over the groups' buffers."""
    native = spec.weight_decay_mode == "coupled" or spec.name in ("adam", "adamw", "nadam")
    native_groups = [
        {
            "params": [flat.buffer for flat in group_flats],
            "lr_factor": group.lr_factor,
            "decay_factor": group.decay_factor,
            # the key of this group that holds its weight decay
            "decay_key": "weight_decay" if native else "hook_decay",
            "weight_decay": spec.weight_decay * group.decay_factor if native else 0.0,
            "hook_decay": 0.0 if native else spec.weight_decay * group.decay_factor,
        }
        for group_flats, group in zip(flats, groups, strict=True)
    ]
    optimizer = _OPTIMIZERS[spec.name](spec, native_groups)
    if spec.decays and not native:
        optimizer.register_step_pre_hook(_decay)
    return optimizer


@torch.no_grad()
def _decay(optimizer: Optimizer, *_: Any) -> None:
    """Apply decoupled weight decay before the update, for optimizers without their own:
    p *= 1 - lr lambda."""
    for group in optimizer.param_groups:
        if group["hook_decay"] and group["params"]:
            fast.scale(group["params"], 1 - group["lr"] * group["hook_decay"])


def _adam(s: Any, groups: Any) -> Optimizer:
    betas, decoupled = (s.beta1, s.beta2), s.weight_decay_mode == "decoupled"
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(groups, lr=s.lr, betas=betas, eps=s.eps, amsgrad=s.amsgrad, fused=_fused(groups))


def _fused(groups: Any) -> bool:
    """Return whether torch has a fused kernel for these parameters: on the CPU (float32 and
    float64) and on CUDA."""
    return all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])


_OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda s, groups: torch.optim.SGD(
        groups, lr=s.lr, momentum=s.momentum, nesterov=s.nesterov, fused=_fused(groups)
    ),
    "adam": _adam,
    "adamw": _adam,
    "adamax": lambda s, groups: torch.optim.Adamax(
        groups, lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps
    ),
    "nadam": lambda s, groups: torch.optim.NAdam(
        groups,
        lr=s.lr,
        betas=(s.beta1, s.beta2),
        eps=s.eps,
        momentum_decay=s.momentum_decay,
        decoupled_weight_decay=s.weight_decay_mode == "decoupled",
    ),
    "rmsprop": lambda s, groups: torch.optim.RMSprop(
        groups, lr=s.lr, alpha=s.rho, eps=s.eps, momentum=s.momentum, centered=s.centered
    ),
    "adagrad": lambda s, groups: torch.optim.Adagrad(
        groups, lr=s.lr, eps=s.eps, fused=_fused(groups)
    ),
    "adadelta": lambda s, groups: torch.optim.Adadelta(groups, lr=s.lr, rho=s.rho, eps=s.eps),
    "lion": lambda s, groups: Lion(groups, lr=s.lr, betas=(s.beta1, s.beta2), weight_decay=0.0),
}


def load_slots(
    spec: Any,
    optimizer: Optimizer,
    flats: Iterable[Flat],
    slots: Mapping[str, Weights],
    step: int,
    to_torch: Callable[[np.ndarray], Tensor],
) -> None:
    """Load canonical slots into the optimizer, as its state after `step` updates."""
    for flat in flats:
        state = {}
        for slot, values in slots.items():
            state[_STATE[spec.name][slot]] = buffer = torch.empty_like(flat.buffer)
            for name, view in flat.views(buffer).items():
                view.copy_(to_torch(values[name]))
        if spec.name in _COUNTS:
            state["step"] = torch.tensor(float(step), dtype=torch.float32)
        for scalar, value in spec.scalars(step).items():
            state[scalar] = torch.tensor(value, dtype=torch.float64)
        optimizer.state[flat.buffer] = state


def save_slots(
    spec: Any,
    optimizer: Optimizer,
    flats: Sequence[Flat],
    slots: Iterable[str],
    to_canonical: Callable[[Tensor], np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """Return canonical copies of the optimizer's slots."""
    return {
        slot: {
            name: to_canonical(view)
            for flat in flats
            for name, view in flat.views(
                optimizer.state[flat.buffer][_STATE[spec.name][slot]]
            ).items()
        }
        for slot in slots
    }


def count_skipped_update(optimizer: Optimizer) -> None:
    """Count a skipped update, so that the optimizer's step counts equal the schedule's."""
    for group in optimizer.param_groups:
        for state in (optimizer.state[p] for p in group["params"]):
            if "step" in state:
                state["step"] += 1
            if "mu_product" in state:  # NAdam
                decay = 0.96 ** (float(state["step"]) * group["momentum_decay"])
                state["mu_product"] *= group["betas"][0] * (1 - 0.5 * decay)


def clip_by_global_norm(gradients: list[Tensor], largest: float) -> None:
    """Clip in place: g *= min(1, largest / norm), norm = sqrt(sum of g^2 over all gradients).
    torch's own function divides by norm + 1e-6."""
    norm = torch.linalg.vector_norm(torch.stack(fast.norms(gradients)))
    fast.scale(gradients, torch.clamp(largest / norm, max=1.0))
