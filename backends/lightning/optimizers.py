"""The optimizers in torch: the stock classes, whose meaning runner/optimizers.py takes, and Lion."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from backends.lightning.layers import from_canonical, to_canonical
from runner.optimizers import Group
from runner.spec import Weights


class Lion(Optimizer):
    """torch has none. p -= lr sign(beta1 m + (1 - beta1) g); then m = beta2 m + (1 - beta2) g."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
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


# optimizer -> slot -> where torch keeps it
_STATE = {
    "sgd": {"momentum": "momentum_buffer"},
    "adam": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq", "max_second_moment": "max_exp_avg_sq"},
    "adamax": {"first_moment": "exp_avg", "infinity_norm": "exp_inf"},
    "nadam": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
    "rmsprop": {"square_average": "square_avg", "gradient_average": "grad_avg", "momentum": "momentum_buffer"},
    "adagrad": {"accumulator": "sum"},
    "adadelta": {"square_average": "square_avg", "delta_average": "acc_delta"},
    "lion": {"first_moment": "exp_avg"},
}
_STATE["adamw"] = _STATE["adam"]
_COUNTS = {"adam", "adamw", "adamax", "nadam", "rmsprop", "adagrad", "adadelta"}  # those whose state has a `step`


def build(spec: Any, parameters: Mapping[str, Tensor], groups: Iterable[Group]) -> Optimizer:
    """A torch optimizer over canonical names -> parameters in groups of their own rate and weight decay."""
    native = spec.weight_decay_mode == "coupled" or spec.name in ("adam", "adamw", "nadam")
    made = [
        {
            "params": [parameters[name] for name in group.names],
            "lr_factor": group.lr_factor,
            "decay_factor": group.decay_factor,
            "decays_by": "weight_decay" if native else "shrinks",  # the key of the group that says how much
            "weight_decay": spec.weight_decay * group.decay_factor if native else 0.0,
            "shrinks": 0.0 if native else spec.weight_decay * group.decay_factor,
        }
        for group in groups
    ]
    optimizer = _OPTIMIZERS[spec.name](spec, made)
    if spec.decays and not native:
        optimizer.register_step_pre_hook(_shrink)
    return optimizer


@torch.no_grad()
def _shrink(optimizer: Optimizer, *_: Any) -> None:
    """Decoupled weight decay before the update, for the classes that have none: p *= 1 - lr lambda."""
    for group in optimizer.param_groups:
        if group["shrinks"]:
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["shrinks"])


def _adam(s: Any, groups: Any) -> Optimizer:
    betas, decoupled = (s.beta1, s.beta2), s.weight_decay_mode == "decoupled"
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(groups, lr=s.lr, betas=betas, eps=s.eps, amsgrad=s.amsgrad, fused=_fused(groups))


def _fused(groups: Any) -> bool:
    """One kernel for all parameters: on the CPU for floats of 32 and 64 bits, and on CUDA."""
    return all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])


_OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda s, groups: torch.optim.SGD(
        groups, lr=s.lr, momentum=s.momentum, nesterov=s.nesterov, fused=_fused(groups)
    ),
    "adam": _adam,
    "adamw": _adam,
    "adamax": lambda s, groups: torch.optim.Adamax(groups, lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps),
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
    "adagrad": lambda s, groups: torch.optim.Adagrad(groups, lr=s.lr, eps=s.eps, fused=_fused(groups)),
    "adadelta": lambda s, groups: torch.optim.Adadelta(groups, lr=s.lr, rho=s.rho, eps=s.eps),
    "lion": lambda s, groups: Lion(groups, lr=s.lr, betas=(s.beta1, s.beta2), weight_decay=0.0),
}


def load_slots(
    spec: Any, optimizer: Optimizer, parameters: Mapping[str, Tensor], slots: Mapping[str, Weights], step: int
) -> None:
    """Canonical slots into the optimizer's state, as if it had made `step` updates."""
    for name, p in parameters.items():
        state = {_STATE[spec.name][slot]: _like(values[name], p) for slot, values in slots.items()}
        if spec.name in _COUNTS:
            state["step"] = torch.tensor(float(step), dtype=torch.float32)
        for scalar, value in spec.scalars(step).items():
            state[scalar] = torch.tensor(value, dtype=torch.float64)
        optimizer.state[p] = state


def save_slots(
    spec: Any, optimizer: Optimizer, parameters: Mapping[str, Tensor], slots: Iterable[str]
) -> dict[str, dict[str, np.ndarray]]:
    """The optimizer's state as canonical copies."""
    return {
        slot: {name: to_canonical(optimizer.state[p][_STATE[spec.name][slot]]) for name, p in parameters.items()}
        for slot in slots
    }


def _like(value: np.ndarray, p: Tensor) -> Tensor:
    """On the parameter's device, in its dtype and its memory order."""
    return torch.empty_like(p, requires_grad=False).copy_(from_canonical(value))


def clip_by_global_norm(gradients: list[Tensor], largest: float) -> None:
    """g *= min(1, largest / norm), norm = the root of the sum of all squares. torch's own divides by norm + 1e-6."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, torch.clamp(largest / norm, max=1.0))
