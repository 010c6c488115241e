"""Every optimizer of runner/optimizers.py, on all weights as one vector; formulas and symbols are that module's.

Scalars that need a power are tables of running products, made on the host in float64 by * and / alone; a library's `pow`
differs from machine to machine. Every other scalar is a 24-bit number.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant, r, total

Slots = dict[str, Tensor]
Scalars = Mapping[str, Any]


def tables(spec: Any, num_steps: int) -> dict[str, np.ndarray]:
    """What an update needs besides its rate, by name: float64[num_steps] of 24-bit values; t' = 1 ... num_steps."""
    if spec.name in ("adam", "adamw"):
        return {"correction": r(1 - _powers(spec.beta1, num_steps)), "root": _root(spec, num_steps)}
    if spec.name == "adamax":
        return {"correction": r(1 - _powers(spec.beta1, num_steps))}
    if spec.name == "nadam":
        falling = _powers(_power(0.96, spec.momentum_decay), num_steps + 1)
        mu = spec.beta1 * (1 - 0.5 * falling)
        product = np.multiply.accumulate(mu)
        of_gradient, of_moment = (1 - mu[:-1]) / (1 - product[:-1]), mu[1:] / (1 - product[1:])
        return {"of_gradient": r(of_gradient), "of_moment": r(of_moment), "root": _root(spec, num_steps)}
    return {}


def _powers(base: float, num: int) -> np.ndarray:
    """base^1 ... base^num as running products."""
    return np.multiply.accumulate(np.full(num, base))


def _root(spec: Any, num_steps: int) -> np.ndarray:
    """1 / sqrt(1 - beta2^t'). IEEE 754 asks sqrt and / to be correctly rounded, and NumPy's are."""
    return r(1 / np.sqrt(1 - _powers(spec.beta2, num_steps)))


def _power(base: float, exponent: float) -> float:
    """base^exponent to float64, in decimal arithmetic, which is the same everywhere."""
    with localcontext() as context:
        context.prec = 40
        return float((Decimal(base).ln() * Decimal(exponent)).exp())


def coupled_decay(o: Primitives, spec: Any, w: Tensor, g: Tensor, decays: Tensor | None) -> Tensor:
    """g + lambda p where `decays` (None: everywhere)."""
    with_decay = o.r(o.plus(g, w, constant(spec.weight_decay)))
    return with_decay if decays is None else o.where(decays, with_decay, g)


def decoupled_decay(o: Primitives, spec: Any, w: Tensor, rate: Any, decays: Tensor | None) -> Tensor:
    """p (1 - lr lambda) where `decays`."""
    shrunk = o.r(w * o.r(1.0 - rate * constant(spec.weight_decay)))
    return shrunk if decays is None else o.where(decays, shrunk, w)


def update(
    o: Primitives, spec: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars, decays: Tensor | None
) -> tuple[Tensor, Slots]:
    """(weights, slots) after one update. rate = lr; scalars = this update's entries of `tables`."""
    if spec.weight_decay and spec.weight_decay_mode == "coupled":
        g = coupled_decay(o, spec, w, g, decays)
    elif spec.weight_decay:
        w = decoupled_decay(o, spec, w, rate, decays)
    return FORMS[spec.name](o, spec, w, g, slots, rate, scalars)


def clip(o: Primitives, g: Tensor, largest: float, num: int) -> Tensor:
    """g min(1, largest / norm), norm = the root of the sum of all `num` squares, on the grid of the squares."""
    norm = o.r(o.sqrt(total(o, o.r(g * g), (0,), num)))
    factor = o.where(norm <= constant(largest), 1.0, o.r(constant(largest) / o.where(norm > 0.0, norm, 1.0)))
    return o.r(g * factor)


def _mean(o: Primitives, old: Tensor, new: Tensor, beta: float) -> Tensor:
    """R(beta old + (1 - beta) new): both products are exact."""
    return o.r(o.plus(old * constant(beta), new, constant(1 - beta)))


def _root_eps(o: Primitives, v: Tensor, eps: float, root: Any = None) -> Tensor:
    """sqrt(v) + eps, the root times `root` where that is given."""
    size = o.r(o.sqrt(v))
    return o.r((size if root is None else size * root) + constant(eps))


def sgd(o: Primitives, s: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars) -> tuple[Tensor, Slots]:
    if not s.momentum:
        return o.r(o.plus(w, g, -rate)), {}
    b = o.r(o.plus(g, slots["momentum"], constant(s.momentum)))
    d = o.r(o.plus(g, b, constant(s.momentum))) if s.nesterov else b
    return o.r(o.plus(w, d, -rate)), {"momentum": b}


def adam(
    o: Primitives, s: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars
) -> tuple[Tensor, Slots]:
    m = _mean(o, slots["first_moment"], g, s.beta1)
    v = _mean(o, slots["second_moment"], o.r(g * g), s.beta2)
    after, size = {"first_moment": m, "second_moment": v}, v
    if s.amsgrad:
        size = after["max_second_moment"] = o.maximum(slots["max_second_moment"], v)
    d = o.r(m / _root_eps(o, size, s.eps, scalars["root"]))
    return o.r(o.plus(w, d, -o.r(rate / scalars["correction"]))), after


def adamax(
    o: Primitives, s: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars
) -> tuple[Tensor, Slots]:
    m = _mean(o, slots["first_moment"], g, s.beta1)
    u = o.maximum(o.r(slots["infinity_norm"] * constant(s.beta2)), o.r(o.abs(g) + constant(s.eps)))
    return o.r(o.plus(w, o.r(m / u), -o.r(rate / scalars["correction"]))), {"first_moment": m, "infinity_norm": u}


def nadam(
    o: Primitives, s: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars
) -> tuple[Tensor, Slots]:
    m = _mean(o, slots["first_moment"], g, s.beta1)
    v = _mean(o, slots["second_moment"], o.r(g * g), s.beta2)
    size = _root_eps(o, v, s.eps, scalars["root"])
    w = o.r(o.plus(w, o.r(g / size), -o.r(rate * scalars["of_gradient"])))
    w = o.r(o.plus(w, o.r(m / size), -o.r(rate * scalars["of_moment"])))
    return w, {"first_moment": m, "second_moment": v}


def rmsprop(
    o: Primitives, s: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars
) -> tuple[Tensor, Slots]:
    v = _mean(o, slots["square_average"], o.r(g * g), s.rho)
    after, spread = {"square_average": v}, v
    if s.centered:
        a = after["gradient_average"] = _mean(o, slots["gradient_average"], g, s.rho)
        spread = o.r(v - a * a)
        spread = o.maximum(spread, 0.0)  # rounding alone can make it negative
    d = o.r(g / _root_eps(o, spread, s.eps))
    if s.momentum:
        d = after["momentum"] = o.r(o.plus(d, slots["momentum"], constant(s.momentum)))
    return o.r(o.plus(w, d, -rate)), after


def adagrad(
    o: Primitives, s: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars
) -> tuple[Tensor, Slots]:
    a = o.r(slots["accumulator"] + g * g)
    return o.r(o.plus(w, o.r(g / _root_eps(o, a, s.eps)), -rate)), {"accumulator": a}


def adadelta(
    o: Primitives, s: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars
) -> tuple[Tensor, Slots]:
    eps = constant(s.eps)
    v = _mean(o, slots["square_average"], o.r(g * g), s.rho)
    ratio = o.r(o.r(o.sqrt(o.r(slots["delta_average"] + eps))) / o.r(o.sqrt(o.r(v + eps))))
    d = o.r(ratio * g)
    a = _mean(o, slots["delta_average"], o.r(d * d), s.rho)
    return o.r(o.plus(w, d, -rate)), {"square_average": v, "delta_average": a}


def lion(
    o: Primitives, s: Any, w: Tensor, g: Tensor, slots: Slots, rate: Any, scalars: Scalars
) -> tuple[Tensor, Slots]:
    m = slots["first_moment"]
    u = _mean(o, m, g, s.beta1)
    w = o.r(w + o.where(u > 0.0, -rate, o.where(u < 0.0, rate, 0.0 * u)))
    return w, {"first_moment": _mean(o, m, g, s.beta2)}


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
