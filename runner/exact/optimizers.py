"""The optimizers of runner/components/optimizers.py, on all weights as one vector, with that
module's formulas and symbols: here the elementwise ones, in by_tensor.py the others.

Scalars with a power are tables, computed on the host in float64 with * and / only: `pow` differs
between machines. All other scalars are 24-bit numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from runner.components import averages
from runner.components.clipping import Clip
from runner.components.optimizers import AVERAGE_WEIGHTS, NUMBERS
from runner.exact import by_tensor
from runner.exact.hyperparameters import Hyperparameters, Slots, mean, norm, root_eps
from runner.exact.network import Layout
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant, r
from runner.exact.state import StateLayout, Unit
from runner.spec import RunSpec

_SHARE = "average_share"  # share of the weights in their average
_STARTS = "average_starts"  # 1 where the average becomes the weights, else 0
_ENDS = "average_ends"  # 1 where the average is that of the latest epochs' ends, else 0


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

    if spec.name in ("adam", "adamw", "ademamix", "lamb"):
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
    return _tables_of_newer(spec, num_steps, root)


def _tables_of_newer(spec: Any, num: int, root: Callable[[], np.ndarray]) -> dict[str, np.ndarray]:
    if spec.name == "muon":
        beta1, beta2 = (_powers(beta, num) for beta in (spec.adamw_beta1, spec.adamw_beta2))
        return {"correction": r(1 - beta1), "root": r(1 / np.sqrt(1 - beta2))}
    if spec.name == "adafactor":
        new = _powers_of_counts(spec.beta2_decay, num)
        return {"old_share": r(1 - new), "new_share": r(new)}
    if spec.name in ("schedule_free_sgd", "schedule_free_adamw"):
        own = {"root": root()} if spec.name == "schedule_free_adamw" else {}
        return {**own, "count_weight": r(_powers_of_counts(spec.r, num))}
    if spec.name == "prodigy" and spec.use_bias_correction:
        beta1, beta2 = (_powers(beta, num) for beta in (spec.beta1, spec.beta2))
        return {"bias_correction": r(np.sqrt(1 - beta2) / (1 - beta1))}
    return {}


def _powers_of_counts(exponent: float, num: int) -> np.ndarray:
    """Return 1^exponent ... num^exponent."""
    if exponent == 0:
        return np.ones(num)
    return np.array([_power(float(t), exponent) for t in range(1, num + 1)])


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


def before(
    h: Hyperparameters, layout: Layout, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Hyperparameters, Slots]:
    """Do what an optimizer does for all weights together, before `update`; rate = eta(t). Return
    the hyperparameters with what was found, and the slots that change."""
    if h.spec.name not in by_tensor.BEFORE:
        return h, {}
    found, changed = by_tensor.BEFORE[h.spec.name](h, layout, w, g, slots, rate)
    return replace(h, scalars={**h.scalars, **found}), changed


def update(
    h: Hyperparameters, unit: Unit, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    """Return the weights of a unit after an update, and its slots that change; rate = the learning
    rate of its group. A frozen group does not change."""
    if unit.group.is_frozen:
        return w, {}
    o, decay, mode = h.o, h.decay(unit.group), h.spec.weight_decay_mode
    if decay is not None and mode == "coupled":
        g = o.r(o.plus(g, w, decay))
    elif decay is not None and mode == "decoupled" and not h.spec.has_own_decay:
        w = o.r(w * o.r(1.0 - rate * decay))
    if h.spec.name in ELEMENTWISE:
        w, new_slots = ELEMENTWISE[h.spec.name](o, h, w, g, slots, rate)
    else:
        w, new_slots = by_tensor.FORMS[h.spec.name](h, unit, w, g, slots, rate)
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
    ends, average, newer, made = h.scalars[_ENDS], w, w, {}
    for slot in earlier:
        average = o.r(o.plus(average, o.r(slots[slot] - average), h.scalars[slot]))
        made[slot] = slots[slot] * (1.0 - starts - ends) + w * starts + newer * ends
        newer = slots[slot]
    takes = starts + ends
    return {**made, AVERAGE_WEIGHTS: slots[AVERAGE_WEIGHTS] * (1.0 - takes) + average * takes}


def update_all(
    h: Hyperparameters,
    state: StateLayout,
    w: Tensor,
    g: Tensor,
    slots: Slots,
    rates: Sequence[Any],
) -> tuple[Tensor, Slots]:
    """Update the whole vector; rates = the groups' learning rates, in order."""
    h, changed = before(h, state.weights, w, g, slots, rates[0])
    slots, units = {**slots, **changed}, [*state.units(h.spec, state.weights.size)]
    if len(units) == 1 and h.spec.is_elementwise:
        new, own = update(h, units[0], w, g, slots, rates[units[0].number])
        return new, {**slots, **own}
    weights: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {slot: [] for slot in slots if slot != NUMBERS}
    for unit in units:
        own = {slot: slots[slot][part] for slot, part in unit.slots.items()}
        rate = rates[unit.number]
        new, new_slots = update(h, unit, w[unit.weights], g[unit.weights], own, rate)
        weights.append(new)
        for slot, value in {**own, **new_slots}.items():
            parts[slot].append(value)
    joined = {slot: h.o.join(values) for slot, values in parts.items()}
    return h.o.join(weights), {**slots, **joined}


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
    size = norm(o, g, num)
    factor = o.where(size <= largest, 1.0, o.r(largest / o.where(size > 0.0, size, 1.0)))
    return o.r(g * factor)


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
    m = mean(h, slots["first_moment"], g, "beta1")
    v = mean(h, slots["second_moment"], o.r(g * g), "beta2")
    new_slots, v_or_max = {"first_moment": m, "second_moment": v}, v
    if h.spec.amsgrad:
        v_or_max = new_slots["max_second_moment"] = o.maximum(slots["max_second_moment"], v)
    d = o.r(m / root_eps(o, v_or_max, h.spec.eps, h.scalars["root"]))
    return o.r(o.plus(w, d, -o.r(rate / h.scalars["correction"]))), new_slots


def adamax(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = mean(h, slots["first_moment"], g, "beta1")
    u = o.maximum(o.r(slots["infinity_norm"] * h["beta2"]), o.r(o.abs(g) + constant(h.spec.eps)))
    return o.r(o.plus(w, o.r(m / u), -o.r(rate / h.scalars["correction"]))), {
        "first_moment": m,
        "infinity_norm": u,
    }


def nadam(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = mean(h, slots["first_moment"], g, "beta1")
    v = mean(h, slots["second_moment"], o.r(g * g), "beta2")
    root = root_eps(o, v, h.spec.eps, h.scalars["root"])
    w = o.r(o.plus(w, o.r(g / root), -o.r(rate * h.scalars["gradient_factor"])))
    w = o.r(o.plus(w, o.r(m / root), -o.r(rate * h.scalars["moment_factor"])))
    return w, {"first_moment": m, "second_moment": v}


def rmsprop(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    v = mean(h, slots["square_average"], o.r(g * g), "rho")
    new_slots, variance = {"square_average": v}, v
    if h.spec.centered:
        a = new_slots["gradient_average"] = mean(h, slots["gradient_average"], g, "rho")
        variance = o.r(v - a * a)
        variance = o.maximum(variance, 0.0)  # rounding can make it negative
    d = o.r(g / root_eps(o, variance, h.spec.eps))
    if h.spec.momentum:
        d = new_slots["momentum"] = o.r(o.plus(d, slots["momentum"], h["momentum"]))
    return o.r(o.plus(w, d, -rate)), new_slots


def adagrad(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    a = o.r(slots["accumulator"] + g * g)
    return o.r(o.plus(w, o.r(g / root_eps(o, a, h.spec.eps)), -rate)), {"accumulator": a}


def adadelta(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    eps = constant(h.spec.eps)
    v = mean(h, slots["square_average"], o.r(g * g), "rho")
    ratio = o.r(o.r(o.sqrt(o.r(slots["delta_average"] + eps))) / o.r(o.sqrt(o.r(v + eps))))
    d = o.r(ratio * g)
    a = mean(h, slots["delta_average"], o.r(d * d), "rho")
    return o.r(o.plus(w, d, -rate)), {"square_average": v, "delta_average": a}


def ademamix(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = mean(h, slots["first_moment"], g, "beta1")
    v = mean(h, slots["second_moment"], o.r(g * g), "beta2")
    slow = mean(h, slots["slow_moment"], g, "beta3")
    d = o.r(o.plus(o.r(m / h.scalars["correction"]), slow, h["alpha"]))
    d = o.r(d / root_eps(o, v, h.spec.eps, h.scalars["root"]))
    return o.r(o.plus(w, d, -rate)), {
        "first_moment": m,
        "second_moment": v,
        "slow_moment": slow,
    }


def lion(
    o: Primitives, h: Hyperparameters, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    m = slots["first_moment"]
    u = mean(h, m, g, "beta1")
    w = o.r(w + o.where(u > 0.0, -rate, o.where(u < 0.0, rate, 0.0 * u)))
    return w, {"first_moment": mean(h, m, g, "beta2")}


ELEMENTWISE: dict[str, Callable[..., tuple[Tensor, Slots]]] = {
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
FORMS = (*ELEMENTWISE, *by_tensor.FORMS)
