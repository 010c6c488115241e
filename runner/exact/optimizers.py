"""The optimizers of runner/components/optimizers.py, on all weights as one vector, with that
module's formulas and symbols.

Scalars with a power are tables, computed on the host in float64 with * and / only: `pow` differs
between machines. All other scalars are 24-bit numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from runner.components import averages
from runner.components.clipping import Clip
from runner.components.optimizers import AVERAGE_WEIGHTS, Group
from runner.exact.network import Layout
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant, r, total
from runner.spec import RunSpec

_SHARE = "average_share"  # share of the weights in their average
_STARTS = "average_starts"  # 1 where the average becomes the weights, else 0
_ENDS = "average_ends"  # 1 where the average is that of the latest epochs' ends, else 0

Slots = dict[str, Tensor]
Scalars = Mapping[str, Any]


def tables_of(run: RunSpec) -> dict[str, np.ndarray]:
    """Return `tables` of a run, with the shares of the weights in their average."""
    each = tables(run.optimizer, run.num_steps, run.scheduled)
    if run.average_shares is None:
        return each
    shares = run.average_shares
    each[_STARTS] = (shares == 1).astype(np.float64)
    _, *earlier = averages.slots(run.optimizer)
    if not earlier:
        return {**each, _SHARE: r(shares)}
    ends = (shares > 0) & (shares < 1)
    nums = np.array([averages.num_averaged(share) if share else 1 for share in shares])
    own = {slot: r(np.where(nums > i, 1 / (i + 1), 0.0)) for i, slot in enumerate(earlier, 1)}
    return {**each, **own, _ENDS: ends.astype(np.float64)}


def tables(spec: Any, num_steps: int, scheduled: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tables of the scalars that an update needs besides its learning rate: name ->
    float64[num_steps] of 24-bit values, for t' = 1 ... num_steps. `scheduled` has the values of the
    scheduled hyperparameters, float64[num_steps] each."""

    def powers(name: str) -> np.ndarray:
        """The hyperparameter's value at t', to the power of t'."""
        return _powers(scheduled.get(name, getattr(spec, name)), num_steps)

    def root() -> np.ndarray:
        """1 / sqrt(1 - beta2^t'). IEEE 754 requires sqrt and / to be correctly rounded; NumPy's
        are."""
        return r(1 / np.sqrt(1 - powers("beta2")))

    if spec.name in ("adam", "adamw", "ademamix"):
        return {"correction": r(1 - powers("beta1")), "root": root()}
    if spec.name == "adamax":
        return {"correction": r(1 - powers("beta1"))}
    if spec.name == "nadam":
        decay = _powers(_power(0.96, spec.momentum_decay), num_steps + 1)
        mu = spec.beta1 * (1 - 0.5 * decay)
        product = np.multiply.accumulate(mu)
        gradient_factor, moment_factor = (
            (1 - mu[:-1]) / (1 - product[:-1]),
            mu[1:] / (1 - product[1:]),
        )
        return {
            "gradient_factor": r(gradient_factor),
            "moment_factor": r(moment_factor),
            "root": root(),
        }
    return {}


def _powers(base: float | np.ndarray, num: int) -> np.ndarray:
    """Return base^1 ... base^num as running products; for an array, base[t]^(t + 1) by repeated
    squaring."""
    if not isinstance(base, np.ndarray):
        return np.multiply.accumulate(np.full(num, base))
    exponent, result = np.arange(1, num + 1), np.ones(num)
    while exponent.any():
        result = np.where(exponent & 1, result * base, result)
        base, exponent = base * base, exponent >> 1
    return result


def _power(base: float, exponent: float) -> float:
    """Return base^exponent in float64, computed in decimal arithmetic: the same on every
    machine."""
    with localcontext() as context:
        context.prec = 40
        return float((Decimal(base).ln() * Decimal(exponent)).exp())


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of one update as 24-bit numbers, constant or scheduled."""

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

    def one_minus(self, name: str) -> Any:
        """R(1 - value)"""
        value = self.scheduled.get(name)
        return constant(1 - getattr(self.spec, name)) if value is None else self.o.r(1.0 - value)

    def decay(self, group: Group) -> Any:
        """lambda of a group, or None without weight decay."""
        if not (self.spec.decays and group.decay_factor):
            return None
        value = self.scheduled.get("weight_decay")
        if value is None:
            return constant(self.spec.weight_decay * group.decay_factor)
        return self.o.r(value * group.decay_factor)


def update(
    h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any, group: Group
) -> tuple[Tensor, Slots]:
    """Return (weights, slots) of one group after an update; rate = its learning rate. A frozen
    group does not change."""
    if group.is_frozen:
        return w, slots
    o, decay = h.o, h.decay(group)
    if decay is not None and h.spec.weight_decay_mode == "coupled":
        g = o.r(o.plus(g, w, decay))
    elif decay is not None:
        w = o.r(w * o.r(1.0 - rate * decay))
    w, new_slots = FORMS[h.spec.name](o, h, w, g, slots, rate)
    return w, {**new_slots, **_averaged(h, w, slots)}


def _averaged(h: Hyperparameters, w: Tensor, slots: Slots) -> Slots:
    """Return the slots of the average of the weights after an update."""
    if AVERAGE_WEIGHTS not in slots:
        return {}
    o, starts = h.o, h.scalars[_STARTS]
    _, *earlier = averages.slots(h.spec)
    if not earlier:
        average = slots[AVERAGE_WEIGHTS] * (1.0 - starts) + w * starts  # one of them, exactly
        moved = o.r(o.plus(average, o.r(w - average), h.scalars[_SHARE]))
        return {AVERAGE_WEIGHTS: moved}
    ends, mean, newer, made = h.scalars[_ENDS], w, w, {}
    for slot in earlier:
        mean = o.r(o.plus(mean, o.r(slots[slot] - mean), h.scalars[slot]))
        made[slot] = slots[slot] * (1.0 - starts - ends) + w * starts + newer * ends
        newer = slots[slot]
    takes = starts + ends
    return {**made, AVERAGE_WEIGHTS: slots[AVERAGE_WEIGHTS] * (1.0 - takes) + mean * takes}


def update_all(
    h: Hyperparameters, layout: Layout, w: Tensor, g: Tensor, slots: Slots, rates: Sequence[Any]
) -> tuple[Tensor, Slots]:
    """Update the whole vector; rates = the groups' learning rates, in order."""
    if len(layout.parts) == 1:
        return update(h, w, g, slots, rates[0], layout.parts[0][0])
    updated = [
        update(
            h, w[part], g[part], {slot: value[part] for slot, value in slots.items()}, rate, group
        )
        for (group, part), rate in zip(layout.parts, rates, strict=True)
    ]
    return h.o.join([w for w, _ in updated]), {
        slot: h.o.join([group_slots[slot] for _, group_slots in updated]) for slot in slots
    }


def clip(o: Primitives, g: Tensor, rules: Sequence[Clip], layout: Layout) -> Tensor:
    """Clip the gradient by all weights as one vector; it is 0 for frozen weights."""
    rest, *others = rules
    if not others:
        return _clipped(o, g, rest, layout.size)
    parts = {group: g[part] for group, part in layout.parts if group.names}
    for rule in rules:
        members = [group for group in parts if group.names[0] in rule.names]
        if not members:
            continue
        joined = o.join([parts[group] for group in members])
        clipped, begin = _clipped(o, joined, rule, joined.shape[0]), 0
        for group in members:
            end = begin + parts[group].shape[0]
            parts[group], begin = clipped[begin:end], end
    return o.join([*parts.values()])


def _clipped(o: Primitives, g: Tensor, rule: Clip, num: int) -> Tensor:
    """Clip by the rule. Minima and maxima are exact; the `num` squares of a norm are summed on
    their grid."""
    if rule.value is not None:
        most = constant(rule.value)
        return o.where(g > most, most, o.where(g < -most, -most, g))
    if rule.norm is None:
        return g
    largest = constant(rule.norm)
    norm = o.r(o.sqrt(total(o, o.r(g * g), (0,), num)))
    factor = o.where(norm <= largest, 1.0, o.r(largest / o.where(norm > 0.0, norm, 1.0)))
    return o.r(g * factor)


def _mean(h: Hyperparameters, old: Tensor, new: Tensor, beta: str) -> Tensor:
    """R(beta old + (1 - beta) new): both products are exact."""
    return h.o.r(h.o.plus(old * h[beta], new, h.one_minus(beta)))


def _root_eps(o: Primitives, v: Tensor, eps: float, root: Any = None) -> Tensor:
    """sqrt(v) + eps, or sqrt(v) root + eps if `root` is given."""
    sqrt_v = o.r(o.sqrt(v))
    return o.r((sqrt_v if root is None else sqrt_v * root) + constant(eps))


def sgd(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    if not h.spec.momentum:
        return o.r(o.plus(w, g, -rate)), {}
    b = o.r(o.plus(g, slots["momentum"], h["momentum"]))
    d = o.r(o.plus(g, b, h["momentum"])) if h.spec.nesterov else b
    return o.r(o.plus(w, d, -rate)), {"momentum": b}


def adam(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = _mean(h, slots["first_moment"], g, "beta1")
    v = _mean(h, slots["second_moment"], o.r(g * g), "beta2")
    new_slots, v_or_max = {"first_moment": m, "second_moment": v}, v
    if h.spec.amsgrad:
        v_or_max = new_slots["max_second_moment"] = o.maximum(slots["max_second_moment"], v)
    d = o.r(m / _root_eps(o, v_or_max, h.spec.eps, h.scalars["root"]))
    return o.r(o.plus(w, d, -o.r(rate / h.scalars["correction"]))), new_slots


def adamax(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = _mean(h, slots["first_moment"], g, "beta1")
    u = o.maximum(o.r(slots["infinity_norm"] * h["beta2"]), o.r(o.abs(g) + constant(h.spec.eps)))
    return o.r(o.plus(w, o.r(m / u), -o.r(rate / h.scalars["correction"]))), {
        "first_moment": m,
        "infinity_norm": u,
    }


def nadam(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = _mean(h, slots["first_moment"], g, "beta1")
    v = _mean(h, slots["second_moment"], o.r(g * g), "beta2")
    root = _root_eps(o, v, h.spec.eps, h.scalars["root"])
    w = o.r(o.plus(w, o.r(g / root), -o.r(rate * h.scalars["gradient_factor"])))
    w = o.r(o.plus(w, o.r(m / root), -o.r(rate * h.scalars["moment_factor"])))
    return w, {"first_moment": m, "second_moment": v}


def rmsprop(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    v = _mean(h, slots["square_average"], o.r(g * g), "rho")
    new_slots, variance = {"square_average": v}, v
    if h.spec.centered:
        a = new_slots["gradient_average"] = _mean(h, slots["gradient_average"], g, "rho")
        variance = o.r(v - a * a)
        variance = o.maximum(variance, 0.0)  # rounding can make it negative
    d = o.r(g / _root_eps(o, variance, h.spec.eps))
    if h.spec.momentum:
        d = new_slots["momentum"] = o.r(o.plus(d, slots["momentum"], h["momentum"]))
    return o.r(o.plus(w, d, -rate)), new_slots


def adagrad(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    a = o.r(slots["accumulator"] + g * g)
    return o.r(o.plus(w, o.r(g / _root_eps(o, a, h.spec.eps)), -rate)), {"accumulator": a}


def adadelta(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    eps = constant(h.spec.eps)
    v = _mean(h, slots["square_average"], o.r(g * g), "rho")
    ratio = o.r(o.r(o.sqrt(o.r(slots["delta_average"] + eps))) / o.r(o.sqrt(o.r(v + eps))))
    d = o.r(ratio * g)
    a = _mean(h, slots["delta_average"], o.r(d * d), "rho")
    return o.r(o.plus(w, d, -rate)), {"square_average": v, "delta_average": a}


def ademamix(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = _mean(h, slots["first_moment"], g, "beta1")
    v = _mean(h, slots["second_moment"], o.r(g * g), "beta2")
    slow = _mean(h, slots["slow_moment"], g, "beta3")
    d = o.r(o.plus(o.r(m / h.scalars["correction"]), slow, h["alpha"]))
    d = o.r(d / _root_eps(o, v, h.spec.eps, h.scalars["root"]))
    return o.r(o.plus(w, d, -rate)), {
        "first_moment": m,
        "second_moment": v,
        "slow_moment": slow,
    }


def lion(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
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
    "ademamix": ademamix,
}
_NORM = "it needs the norm of each weight tensor, and all weights are one vector here"
_AVERAGES = (
    "its weights for evaluation are not those that it trains, and only one vector is kept here"
)
# optimizers of the config without one -> the reason
WITHOUT_FORM = {
    "adafactor": "its slots have other shapes than the weights, which are one vector here",
    "lamb": _NORM,
    "lars": _NORM,
    "muon": "it multiplies matrices of single weights, and all weights are one vector here",
    "prodigy": "its rate comes from sums over all weights, which have no grid here",
    "schedule_free_sgd": _AVERAGES,
    "schedule_free_adamw": _AVERAGES,
}
