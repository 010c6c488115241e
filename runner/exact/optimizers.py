"""Every optimizer of runner/components/optimizers.py, on all weights as one vector; formulas and
symbols are that module's.

Scalars that need a power are tables made on the host in float64 by * and / alone; a library's `pow`
differs from machine to machine. Every other scalar is a 24-bit number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from runner.components.optimizers import Group
from runner.exact.network import Layout
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant, r, total

Slots = dict[str, Tensor]
Scalars = Mapping[str, Any]


def tables(spec: Any, num_steps: int, scheduled: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tables of what an update needs besides its rate, by name: float64[num_steps] of 24-bit
    values; t' = 1 ... num_steps. `scheduled`: the hyperparameters that `schedules` moves,
    float64[num_steps]."""

    def powers(name: str) -> np.ndarray:
        """The value in force to the power of t'."""
        return _powers(scheduled.get(name, getattr(spec, name)), num_steps)

    def root() -> np.ndarray:
        """1 / sqrt(1 - beta2^t'). IEEE 754 asks sqrt and / to be correctly rounded, and NumPy's
        are."""
        return r(1 / np.sqrt(1 - powers("beta2")))

    if spec.name in ("adam", "adamw"):
        return {"correction": r(1 - powers("beta1")), "root": root()}
    if spec.name == "adamax":
        return {"correction": r(1 - powers("beta1"))}
    if spec.name == "nadam":
        falling = _powers(_power(0.96, spec.momentum_decay), num_steps + 1)
        mu = spec.beta1 * (1 - 0.5 * falling)
        product = np.multiply.accumulate(mu)
        of_gradient, of_moment = (1 - mu[:-1]) / (1 - product[:-1]), mu[1:] / (1 - product[1:])
        return {"of_gradient": r(of_gradient), "of_moment": r(of_moment), "root": root()}
    return {}


def _powers(base: float | np.ndarray, num: int) -> np.ndarray:
    """base^1 ... base^num as running products; of a base that changes, base[t]^(t + 1), by repeated
    squaring."""
    if not isinstance(base, np.ndarray):
        return np.multiply.accumulate(np.full(num, base))
    exponent, result = np.arange(1, num + 1), np.ones(num)
    while exponent.any():
        result = np.where(exponent & 1, result * base, result)
        base, exponent = base * base, exponent >> 1
    return result


def _power(base: float, exponent: float) -> float:
    """base^exponent to float64, in decimal arithmetic, which is the same everywhere."""
    with localcontext() as context:
        context.prec = 40
        return float((Decimal(base).ln() * Decimal(exponent)).exp())


@dataclass(frozen=True)
class InForce:
    """The hyperparameters of one update: the config's, and those that `schedules` moves, as 24-bit
    numbers."""

    o: Primitives
    spec: Any
    scheduled: Mapping[str, Any]  # name -> its value in float64
    scalars: Scalars  # this update's entries of `tables`

    def __getitem__(self, name: str) -> Any:
        return (
            self.o.r(self.scheduled[name])
            if name in self.scheduled
            else constant(getattr(self.spec, name))
        )

    def rest(self, name: str) -> Any:
        """R(1 - value)"""
        value = self.scheduled.get(name)
        return constant(1 - getattr(self.spec, name)) if value is None else self.o.r(1.0 - value)

    def decay(self, group: Group) -> Any:
        """lambda of a group's weights; None without weight decay."""
        if not (self.spec.decays and group.decay_factor):
            return None
        value = self.scheduled.get("weight_decay")
        if value is None:
            return constant(self.spec.weight_decay * group.decay_factor)
        return self.o.r(value * group.decay_factor)


def update(
    h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any, group: Group
) -> tuple[Tensor, Slots]:
    """(weights, slots) of one group after an update; rate = its lr."""
    o, decay = h.o, h.decay(group)
    if decay is not None and h.spec.weight_decay_mode == "coupled":
        g = o.r(o.plus(g, w, decay))
    elif decay is not None:
        w = o.r(w * o.r(1.0 - rate * decay))
    return FORMS[h.spec.name](o, h, w, g, slots, rate)


def update_all(
    h: InForce, layout: Layout, w: Tensor, g: Tensor, slots: Slots, rates: Sequence[Any]
) -> tuple[Tensor, Slots]:
    """`update` of the whole vector; rates = those of the groups in order."""
    if len(layout.parts) == 1:
        return update(h, w, g, slots, rates[0], layout.parts[0][0])
    after = [
        update(
            h, w[part], g[part], {slot: value[part] for slot, value in slots.items()}, rate, group
        )
        for (group, part), rate in zip(layout.parts, rates, strict=True)
    ]
    return h.o.join([w for w, _ in after]), {
        slot: h.o.join([own[slot] for _, own in after]) for slot in slots
    }


def clip(o: Primitives, g: Tensor, largest: float, num: int) -> Tensor:
    """g min(1, largest / norm), norm = the root of the sum of all `num` squares, on the grid of the
    squares."""
    norm = o.r(o.sqrt(total(o, o.r(g * g), (0,), num)))
    factor = o.where(
        norm <= constant(largest), 1.0, o.r(constant(largest) / o.where(norm > 0.0, norm, 1.0))
    )
    return o.r(g * factor)


def _mean(h: InForce, old: Tensor, new: Tensor, beta: str) -> Tensor:
    """R(beta old + (1 - beta) new): both products are exact."""
    return h.o.r(h.o.plus(old * h[beta], new, h.rest(beta)))


def _root_eps(o: Primitives, v: Tensor, eps: float, root: Any = None) -> Tensor:
    """sqrt(v) + eps, the root times `root` where that is given."""
    size = o.r(o.sqrt(v))
    return o.r((size if root is None else size * root) + constant(eps))


def sgd(
    o: Primitives, h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    if not h.spec.momentum:
        return o.r(o.plus(w, g, -rate)), {}
    b = o.r(o.plus(g, slots["momentum"], h["momentum"]))
    d = o.r(o.plus(g, b, h["momentum"])) if h.spec.nesterov else b
    return o.r(o.plus(w, d, -rate)), {"momentum": b}


def adam(
    o: Primitives, h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = _mean(h, slots["first_moment"], g, "beta1")
    v = _mean(h, slots["second_moment"], o.r(g * g), "beta2")
    after, size = {"first_moment": m, "second_moment": v}, v
    if h.spec.amsgrad:
        size = after["max_second_moment"] = o.maximum(slots["max_second_moment"], v)
    d = o.r(m / _root_eps(o, size, h.spec.eps, h.scalars["root"]))
    return o.r(o.plus(w, d, -o.r(rate / h.scalars["correction"]))), after


def adamax(
    o: Primitives, h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = _mean(h, slots["first_moment"], g, "beta1")
    u = o.maximum(o.r(slots["infinity_norm"] * h["beta2"]), o.r(o.abs(g) + constant(h.spec.eps)))
    return o.r(o.plus(w, o.r(m / u), -o.r(rate / h.scalars["correction"]))), {
        "first_moment": m,
        "infinity_norm": u,
    }


def nadam(
    o: Primitives, h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = _mean(h, slots["first_moment"], g, "beta1")
    v = _mean(h, slots["second_moment"], o.r(g * g), "beta2")
    size = _root_eps(o, v, h.spec.eps, h.scalars["root"])
    w = o.r(o.plus(w, o.r(g / size), -o.r(rate * h.scalars["of_gradient"])))
    w = o.r(o.plus(w, o.r(m / size), -o.r(rate * h.scalars["of_moment"])))
    return w, {"first_moment": m, "second_moment": v}


def rmsprop(
    o: Primitives, h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    v = _mean(h, slots["square_average"], o.r(g * g), "rho")
    after, spread = {"square_average": v}, v
    if h.spec.centered:
        a = after["gradient_average"] = _mean(h, slots["gradient_average"], g, "rho")
        spread = o.r(v - a * a)
        spread = o.maximum(spread, 0.0)  # rounding alone can make it negative
    d = o.r(g / _root_eps(o, spread, h.spec.eps))
    if h.spec.momentum:
        d = after["momentum"] = o.r(o.plus(d, slots["momentum"], h["momentum"]))
    return o.r(o.plus(w, d, -rate)), after


def adagrad(
    o: Primitives, h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    a = o.r(slots["accumulator"] + g * g)
    return o.r(o.plus(w, o.r(g / _root_eps(o, a, h.spec.eps)), -rate)), {"accumulator": a}


def adadelta(
    o: Primitives, h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    eps = constant(h.spec.eps)
    v = _mean(h, slots["square_average"], o.r(g * g), "rho")
    ratio = o.r(o.r(o.sqrt(o.r(slots["delta_average"] + eps))) / o.r(o.sqrt(o.r(v + eps))))
    d = o.r(ratio * g)
    a = _mean(h, slots["delta_average"], o.r(d * d), "rho")
    return o.r(o.plus(w, d, -rate)), {"square_average": v, "delta_average": a}


def lion(
    o: Primitives, h: InForce, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = slots["first_moment"]
    u = _mean(h, m, g, "beta1")
    w = o.r(w + o.where(u > 0.0, -rate, o.where(u < 0.0, rate, 0.0 * u)))
    return w, {"first_moment": _mean(h, m, g, "beta2")}


FORMS: dict[str, Callable[..., tuple[Tensor, Slots]]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adam,
    "adamax": adamax,
    "nadam": nadam,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "lion": lion,
}
