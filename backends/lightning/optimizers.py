"""The optimizers in torch: stock classes, and small ones where torch has none or one with another
definition. runner/components/optimizers.py follows torch's definitions where it can."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from backends.lightning import fast
from runner.components.clipping import Clip
from runner.components.optimizers import BASE_WEIGHTS, NUMBERS, Group, joined
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


class Adafactor(Optimizer):
    """Adafactor with the definition of runner.components.optimizers.Adafactor. `canonical` returns
    a view of a tensor with canonical axes."""

    def __init__(self, spec: Any, groups: Any, canonical: Callable[[Tensor], Tensor]) -> None:
        super().__init__(groups, {"lr": spec.lr})
        self.spec, self.canonical = spec, canonical

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        new = _count(self) ** self.spec.beta2_decay
        for group in self.param_groups:
            for p in group["params"]:
                self._update(group, p, _decayed_gradient(group, p), self.state[p], new)

    def _update(
        self, group: Any, p: Tensor, g: Tensor, state: dict[str, Tensor], new: float
    ) -> None:
        s = self.spec
        g = self.canonical(g)
        # sums over squares: torch's norms over the first axis in memory take 10 times as long
        square = g * g
        if g.ndim >= 2:
            rows, columns = state["row_square_average"], state["column_square_average"]
            rows.lerp_(square.mean(-1).add_(s.eps1), new)
            columns.lerp_(square.mean(-2).add_(s.eps1), new)
            scale = (rows.mean(-1, keepdim=True) / rows).sqrt_()
            u = torch.mul(g, scale.unsqueeze(-1), out=square).mul_(columns.rsqrt().unsqueeze(-2))
        else:
            v = state["square_average"].lerp_(square.add_(s.eps1), new)
            u = g / v.sqrt()
        step = group["lr"] / max(1.0, _rms(u) / s.clip_threshold)
        if s.scale_parameter:
            step *= max(s.eps2, _rms(p))
        self.canonical(p).sub_(u, alpha=step)


class _Layerwise(Optimizer):
    """Base class of LAMB and LARS: each parameter has a step in proportion to its norm."""

    def __init__(self, spec: Any, groups: Any, **hyperparameters: Any) -> None:
        super().__init__(groups, {"lr": spec.lr, **hyperparameters})
        self.spec = spec

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        is_layerwise = self.spec.weight_decay_mode == "layerwise"
        for group in self.param_groups:
            decay = group["weight_decay"] if is_layerwise else 0.0
            for p in group["params"]:
                g = p.grad if is_layerwise else _decayed_gradient(group, p)
                self._update(group, p, g, decay, self.state[p])

    def _update(self, group: Any, p: Tensor, g: Tensor, decay: float, state: Any) -> None:
        raise AssertionError("each subclass defines it")


class LAMB(_Layerwise):
    """LAMB: p -= lr |p| / |u| u, u = Adam's update + lambda p."""

    def _update(self, group: Any, p: Tensor, g: Tensor, decay: float, state: Any) -> None:
        beta1, beta2 = group["betas"]
        state["step"] += 1
        t = float(state["step"])
        m = state["first_moment"].mul_(beta1).add_(g, alpha=1 - beta1)
        v = state["second_moment"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        r, root = _corrected_root(v, beta2, t, self.spec.eps)
        # the corrections of both moments, as one factor of u
        u, factor = torch.div(m, root, out=root), r / (1 - beta1**t)
        if decay:
            u.mul_(factor).add_(p, alpha=decay)
            factor = 1.0
        if group["kind"] == "plain":
            p.sub_(u, alpha=group["lr"] * factor)
        else:
            ratio = _ratio(_norm(p), _norm(u) * factor)
            p.addcmul_(u, ratio * (group["lr"] * factor), value=-1.0)


class LARS(_Layerwise):
    """LARS: SGD with the gradient times trust_coefficient |p| / (|g| + lambda |p|)."""

    def _update(self, group: Any, p: Tensor, g: Tensor, decay: float, state: Any) -> None:
        s = self.spec
        d, ratio = (
            g.add(p, alpha=decay) if decay else g,
            torch.ones((), dtype=g.dtype, device=g.device),
        )
        if group["kind"] != "plain":
            size = _norm(p)
            ratio = _ratio(size * s.trust_coefficient, _norm(g) + decay * size)
        if not s.momentum:
            p.addcmul_(d, ratio * group["lr"], value=-1.0)
            return
        b = state["momentum"].mul_(group["momentum"]).addcmul_(d, ratio)
        d = (d * ratio).add_(b, alpha=group["momentum"]) if s.nesterov else b
        p.sub_(d, alpha=group["lr"])


class Muon(Optimizer):
    """Muon for the groups of the kind "", AdamW for the others."""

    def __init__(self, spec: Any, groups: Any, canonical: Callable[[Tensor], Tensor]) -> None:
        super().__init__(groups, {"lr": spec.lr, "momentum": spec.momentum})
        self.spec, self.canonical = spec, canonical

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        t = _count(self)
        for group in self.param_groups:
            update = self._adamw if group["kind"] == "adamw" else self._muon
            for p in group["params"]:
                update(group, p, _decayed_gradient(group, p), self.state[p], t)

    def _adamw(self, group: Any, p: Tensor, g: Tensor, state: dict[str, Tensor], t: float) -> None:
        s = self.spec
        m = state["first_moment"].mul_(s.adamw_beta1).add_(g, alpha=1 - s.adamw_beta1)
        v = state["second_moment"].mul_(s.adamw_beta2).addcmul_(g, g, value=1 - s.adamw_beta2)
        r, root = _corrected_root(v, s.adamw_beta2, t, s.adamw_eps)
        p.addcdiv_(m, root, value=-group["lr"] * r / (1 - s.adamw_beta1**t))

    def _muon(self, group: Any, p: Tensor, g: Tensor, state: dict[str, Tensor], t: float) -> None:
        momentum = group["momentum"]
        b = state["momentum"].lerp_(g, 1 - momentum)
        d = torch.lerp(b, g, 1 - momentum) if self.spec.nesterov else b
        d_view, p_view = self.canonical(d), self.canonical(p)
        if p_view is p:  # of the user's own model, in torch's layout
            d_view, p_view = d.movedim(0, -1), p.movedim(0, -1)
        num_out = p_view.shape[-1]
        x = _orthogonal(d_view.reshape(-1, num_out).T, self.spec).T.reshape(p_view.shape)
        p_view.sub_(x, alpha=group["lr"] * self.spec.ratio(p.numel() // num_out, num_out))


def _orthogonal(x: Tensor, s: Any) -> Tensor:
    """Return x with singular values near 1, by Newton-Schulz steps in x's dtype."""
    is_tall = x.shape[0] > x.shape[1]
    x = (x.T if is_tall else x) / _norm(x).clamp(min=s.eps)
    a, b, c = s.ns_coefficients
    for _ in range(s.ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class ScheduleFree(Optimizer):
    """Schedule-free SGD and AdamW: the parameters are y, the slot `base_weights` is z."""

    def __init__(self, spec: Any, groups: Any, **hyperparameters: Any) -> None:
        super().__init__(groups, {"lr": spec.lr, **hyperparameters})
        self.spec, self.numbers = spec, spec.numbers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        s, numbers = self.spec, self.numbers
        # the first group has the rate eta(t)
        numbers["largest_rate"] = max(self.param_groups[0]["lr"], numbers["largest_rate"])
        t = _count(self)
        weight = t**s.r * numbers["largest_rate"] ** s.weight_lr_power
        numbers["weight_sum"] += weight
        c = weight / numbers["weight_sum"] if numbers["weight_sum"] else 0.0
        for group in self.param_groups:
            for y in group["params"]:
                d, z = self._direction(group, y, t), self.state[y][BASE_WEIGHTS]
                y.lerp_(z, c).add_(d, alpha=group["lr"] * (s.beta1 * (1 - c) - 1))
                z.sub_(d, alpha=group["lr"])

    def _direction(self, group: Any, y: Tensor, t: float) -> Tensor:
        s, decay = self.spec, group["weight_decay"]
        is_coupled = s.weight_decay_mode == "coupled"
        assert y.grad is not None
        g = y.grad
        if decay and (is_coupled or s.name == "schedule_free_sgd"):
            g = g.add(y, alpha=decay)
        if s.name == "schedule_free_sgd":
            return g
        _, beta2 = group["betas"]
        v = self.state[y]["second_moment"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        r, root = _corrected_root(v, beta2, t, s.eps)
        d = torch.div(g, root, out=root).mul_(r)
        return d if is_coupled or not decay else d.add_(y, alpha=decay)


class AdEMAMix(Optimizer):
    """AdEMAMix: Adam's update with a second, slower average of the gradients."""

    def __init__(self, spec: Any, groups: Any) -> None:
        betas = (spec.beta1, spec.beta2, spec.beta3)
        super().__init__(groups, {"lr": spec.lr, "betas": betas, "alpha": spec.alpha})
        self.spec = spec

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        t = _count(self)
        for group in self.param_groups:
            beta1, beta2, beta3 = group["betas"]
            for p in group["params"]:
                g, state = _decayed_gradient(group, p), self.state[p]
                m = state["first_moment"].mul_(beta1).add_(g, alpha=1 - beta1)
                v = state["second_moment"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
                slow = state["slow_moment"].mul_(beta3).add_(g, alpha=1 - beta3)
                r, root = _corrected_root(v, beta2, t, self.spec.eps)
                first = 1 - beta1**t
                d = m.add(slow, alpha=group["alpha"] * first)
                p.addcdiv_(d, root, value=-group["lr"] * r / first)


class Prodigy(Optimizer):
    """Prodigy: Adam with an estimated distance to the solution as its rate."""

    def __init__(self, spec: Any, groups: Any) -> None:
        super().__init__(groups, {"lr": spec.lr})
        self.spec, self.numbers = spec, spec.numbers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        s, numbers, d = self.spec, self.numbers, self.numbers["distance"]
        t = _count(self)
        rate = self.param_groups[0]["lr"]  # the first group has the rate eta(t)
        if rate == 0:
            return
        if s.use_bias_correction:
            rate *= (1 - s.beta2**t) ** 0.5 / (1 - s.beta1**t)
        numbers["numerator"] *= s.beta2**0.5
        total = 0.0
        for group in self.param_groups:
            for p in group["params"]:
                slope, size = self._average(group, p, d, d * rate)
                numbers["numerator"] += d / s.d0 * d * rate * slope
                total += size
        if total:
            self._estimate(s.d_coef * numbers["numerator"] / total)
        eps = numbers["distance"] * s.eps
        for group in self.param_groups:
            step = d * rate * group["lr_factor"]
            for p in group["params"]:
                state = self.state[p]
                if s.weight_decay_mode == "decoupled":
                    p.mul_(1 - step * group["weight_decay"])
                root = state["second_moment"].sqrt().add_(eps)
                p.addcdiv_(state["first_moment"], root, value=-step)

    def _average(self, group: Any, p: Tensor, d: float, step: float) -> tuple[float, float]:
        """Update the averages. Return the sums of g (P - p) and of |s|."""
        s, state, g = self.spec, self.state[p], p.grad
        assert g is not None
        if s.weight_decay_mode == "coupled":
            g = _decayed_gradient(group, p)
        slope = torch.sum(g * (state["first_weights"] - p))
        state["first_moment"].mul_(s.beta1).add_(g, alpha=d * (1 - s.beta1))
        state["second_moment"].mul_(s.beta2).addcmul_(g, g, value=d * d * (1 - s.beta2))
        share = d / s.d0 * (d if s.safeguard_warmup else step)
        sums = state["gradient_sum"].mul_(s.beta2**0.5).add_(g, alpha=share)
        return float(slope), float(sums.abs().sum())

    def _estimate(self, found: float) -> None:
        s, numbers, d = self.spec, self.numbers, self.numbers["distance"]
        if d == s.d0:
            d = max(d, found)
        numbers["largest_distance"] = max(numbers["largest_distance"], found)
        most = numbers["largest_distance"]
        numbers["distance"] = most if s.growth_rate is None else min(most, d * s.growth_rate)


def _corrected_root(v: Tensor, beta2: float, t: float, eps: float) -> tuple[float, Tensor]:
    """Return r = sqrt(1 - beta2^t) and sqrt(v) + r eps: with vhat = v / (1 - beta2^t),
    x / (sqrt(vhat) + eps) is r x / (sqrt(v) + r eps), and r a factor of the step."""
    r = (1 - beta2**t) ** 0.5
    return r, v.sqrt().add_(eps * r)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, or 1 if one of them is 0."""
    return torch.where((a > 0) & (b > 0), a / b, 1.0)


def _decayed_gradient(group: Any, p: Tensor) -> Tensor:
    """The gradient with coupled weight decay."""
    assert p.grad is not None
    return p.grad.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else p.grad


def _rms(x: Tensor) -> float:
    """sqrt(mean of x^2)"""
    return float(torch.linalg.vector_norm(x)) / x.numel() ** 0.5


def _count(optimizer: Optimizer) -> float:
    """Count an update in the state of all parameters; return its number."""
    steps = [state["step"] for state in optimizer.state.values()]
    fast.add(steps, 1)
    return float(steps[0])


class Views:
    """Base class of what an optimizer updates: a buffer with the values of named parameters."""

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return views of a buffer of this size, by the parameters' names."""
        raise AssertionError("each subclass defines it")

    def fill(self, buffer: Tensor, values: Mapping[str, Tensor]) -> None:
        """Copy values of the parameters' shapes into a buffer."""
        for name, view in self.views(buffer).items():
            view.copy_(values[name])

    def whole(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return a buffer's values, with the parameters' shapes."""
        return self.views(buffer)

    def collect(self) -> None:
        """Prepare `gradient` after the backward passes of an update."""


class Flat(Views):
    """Small parameters as views of one buffer, and their gradients as views of another, so that one
    kernel updates them all. All updates are elementwise, so the results equal those of separate
    parameters. A large parameter keeps its own buffer and gradient: there, a copy costs more than a
    kernel call."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters, first = parameters, next(iter(parameters.values()))
        self.names = list(parameters)
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


def flatten(
    parameters: Mapping[str, Tensor], groups: Iterable[Group], joins: Callable[[str], bool]
) -> list[list[Flat]]:
    """Return the buffers of each parameter group, as `joined` says; a frozen group has none."""
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    return [
        [Flat({name: parameters[name] for name in names}) for names in joined(group, sizes, joins)]
        for group in groups
    ]


# optimizer of torch, or Lion -> slot -> key in torch's state; in those of this file, the slot
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
# optimizers with a `step` in their state: torch's, and those of this file, in float64, which is
# exact above 2^24
_COUNTS = {"adam", "adamw", "adamax", "nadam", "rmsprop", "adagrad", "adadelta"}
_OWN_COUNTS = {
    *("adafactor", "lamb", "muon", "schedule_free_sgd", "schedule_free_adamw"),
    *("ademamix", "prodigy"),
}


def build(
    spec: Any,
    flats: Iterable[Sequence[Any]],
    groups: Iterable[Group],
    canonical: Callable[[Tensor], Tensor],
) -> Optimizer:
    """Build a torch optimizer over the groups' buffers. `canonical` returns a view of a parameter
    with canonical axes."""
    native = spec.weight_decay_mode != "decoupled" or spec.has_own_decay
    native = native or spec.name in ("adam", "adamw", "nadam")
    native_groups = [
        {
            "params": [flat.buffer for flat in group_flats],
            "lr_factor": group.lr_factor,
            "rate": group.rate,
            "decay_factor": group.decay_factor,
            "kind": group.kind,
            # the key of this group that holds its weight decay
            "decay_key": "weight_decay" if native else "hook_decay",
            "weight_decay": spec.weight_decay * group.decay_factor if native else 0.0,
            "hook_decay": 0.0 if native else spec.weight_decay * group.decay_factor,
        }
        for group_flats, group in zip(flats, groups, strict=True)
    ]
    if spec.name in _BY_AXES:
        optimizer = _BY_AXES[spec.name](spec, native_groups, canonical)
    else:
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
    "lamb": lambda s, groups: LAMB(s, groups, betas=(s.beta1, s.beta2)),
    "lars": lambda s, groups: LARS(s, groups, momentum=s.momentum),
    "ademamix": AdEMAMix,
    "prodigy": Prodigy,
    "schedule_free_sgd": ScheduleFree,
    "schedule_free_adamw": lambda s, groups: ScheduleFree(s, groups, betas=(s.beta1, s.beta2)),
}
_BY_AXES: dict[str, Any] = {
    "adafactor": Adafactor,
    "muon": Muon,
}  # updates that need the canonical axes


def state_key(spec: Any, slot: str) -> str:
    """Return the key of a slot in the state of torch's optimizer."""
    return _STATE.get(spec.name, {}).get(slot, slot)


def load_slots(
    spec: Any,
    optimizer: Optimizer,
    flats: Iterable[Any],
    slots: Mapping[str, Weights],
    step: int,
    to_torch: Callable[[np.ndarray], Tensor],
) -> None:
    """Load canonical slots into the optimizer, as its state after `step` updates."""
    if NUMBERS in slots:
        optimizer.numbers = {  # type: ignore[attr-defined]
            name: float(value) for name, value in slots[NUMBERS].items()
        }
    for flat in flats:
        state: dict[str, Tensor] = {}
        for slot, values in slots.items():
            if flat.names[0] not in values:
                continue
            if slot in spec.reduced_slots:
                value = np.array(values[flat.names[0]])
                state[slot] = torch.from_numpy(value).to(flat.buffer.device)
                continue
            state[state_key(spec, slot)] = buffer = torch.empty_like(flat.buffer)
            flat.fill(buffer, {name: to_torch(values[name]) for name in flat.names})
        if spec.name in _COUNTS:
            state["step"] = torch.tensor(float(step), dtype=torch.float32)
        if spec.name in _OWN_COUNTS:
            state["step"] = torch.tensor(float(step), dtype=torch.float64)
        for scalar, value in spec.scalars(step).items():
            state[scalar] = torch.tensor(value, dtype=torch.float64)
        optimizer.state[flat.buffer] = state


def save_slots(
    spec: Any,
    optimizer: Optimizer,
    flats: Sequence[Any],
    slots: Iterable[str],
    to_canonical: Callable[[Tensor], np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """Return canonical copies of the optimizer's slots."""

    def of(slot: str, flat: Any) -> dict[str, np.ndarray]:
        state, key = optimizer.state[flat.buffer], state_key(spec, slot)
        if key not in state:
            return {}
        if slot in spec.reduced_slots:
            return {flat.names[0]: state[slot].cpu().numpy().copy()}
        return {name: to_canonical(value) for name, value in flat.whole(state[key]).items()}

    saved = {slot: {k: v for flat in flats for k, v in of(slot, flat).items()} for slot in slots}
    if NUMBERS in saved:
        numbers: Mapping[str, float] = optimizer.numbers  # type: ignore[attr-defined]
        saved[NUMBERS] = {name: np.array(value) for name, value in numbers.items()}
    return saved


def count_skipped_update(optimizer: Optimizer) -> None:
    """Count a skipped update, so that the optimizer's step counts equal the schedule's."""
    for group in optimizer.param_groups:
        for state in (optimizer.state[p] for p in group["params"]):
            if "step" in state:
                state["step"] += 1
            if "mu_product" in state:  # NAdam
                decay = 0.96 ** (float(state["step"]) * group["momentum_decay"])
                state["mu_product"] *= group["betas"][0] * (1 - 0.5 * decay)


Norm = Callable[[list[Tensor]], Tensor]  # tensors -> the Euclidean norm of all of them


def norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(fast.norms(tensors)))


def clip(gradients: list[Tensor], rule: Clip, norm: Norm = norm) -> None:
    """Clip in place, with the definitions of runner.components.clipping."""
    if not gradients:
        return
    if rule.value is not None:
        for gradient in gradients:
            gradient.clamp_(-rule.value, rule.value)
    elif rule.norm is not None:
        fast.scale(gradients, torch.clamp(rule.norm / norm(gradients), max=1.0))
