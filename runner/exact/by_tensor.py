"""The updates that are not elementwise: those that need the norms, the axes or the products of a
single weight tensor, and those with numbers of the whole run. Formulas and symbols are those of
runner/components/optimizers.py. Norms and means are sums on a grid.
"""

import math
from collections.abc import Callable
from typing import Any

from runner.components.optimizers import BASE_WEIGHTS, NUMBERS
from runner.exact.hyperparameters import Hyperparameters, Slots, mean, norm, root_eps
from runner.exact.network import Layout
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant, divide, product_bits, total
from runner.exact.state import Unit


def lamb(
    h: Hyperparameters, unit: Unit, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    o, num, decay = h.o, math.prod(unit.shape), _layerwise_decay(h, unit)
    m = mean(h, slots["first_moment"], g, "beta1")
    v = mean(h, slots["second_moment"], o.r(g * g), "beta2")
    u = o.r(m / root_eps(o, v, h.spec.eps, h.scalars["root"]))
    u = o.r(u / h.scalars["correction"])
    u = u if decay is None else o.r(o.plus(u, w, decay))
    if unit.group.kind != "plain":
        rate = o.r(rate * _ratio(o, norm(o, w, num), norm(o, u, num)))
    return o.r(o.plus(w, u, -rate)), {"first_moment": m, "second_moment": v}


def lars(
    h: Hyperparameters, unit: Unit, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    o, s, num, decay = h.o, h.spec, math.prod(unit.shape), _layerwise_decay(h, unit)
    d = g if decay is None else o.r(o.plus(g, w, decay))
    if unit.group.kind != "plain":
        size, below = norm(o, w, num), norm(o, g, num)
        below = below if decay is None else o.r(o.plus(below, size, decay))
        d = o.r(d * _ratio(o, o.r(size * constant(s.trust_coefficient)), below))
    if not s.momentum:
        return o.r(o.plus(w, d, -rate)), {}
    b = o.r(o.plus(d, slots["momentum"], h["momentum"]))
    d = o.r(o.plus(d, b, h["momentum"])) if s.nesterov else b
    return o.r(o.plus(w, d, -rate)), {"momentum": b}


def _layerwise_decay(h: Hyperparameters, unit: Unit) -> Any:
    """Return lambda inside of the scaled update; None without it."""
    return h.decay(unit.group) if h.spec.weight_decay_mode == "layerwise" else None


def _ratio(o: Primitives, a: Tensor, b: Tensor) -> Tensor:
    """R(a / b), or 1 if one of them is 0."""
    are_positive = (a > 0.0) & (b > 0.0)
    return o.where(are_positive, o.r(a / o.where(b > 0.0, b, 1.0)), 1.0)


def adafactor(
    h: Hyperparameters, unit: Unit, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    """Rows and columns have grids of their own: squares differ more in size than a grid holds."""
    o, s, num = h.o, h.spec, math.prod(unit.shape)
    u, new_slots = _by_root_mean_squares(h, unit, g, slots)
    size = o.r(_root_mean_square(o, u, num) / constant(s.clip_threshold))
    step = o.r(rate / o.maximum(size, 1.0))
    if s.scale_parameter:
        step = o.r(step * o.maximum(_root_mean_square(o, w, num), constant(s.eps2)))
    return o.r(o.plus(w, u, -step)), new_slots


def _by_root_mean_squares(
    h: Hyperparameters, unit: Unit, g: Tensor, slots: Slots
) -> tuple[Tensor, Slots]:
    """Return u = g / sqrt(v) as a vector, and the slots."""
    o, eps = h.o, constant(h.spec.eps1)

    def averaged(slot: str, new: Tensor) -> Tensor:
        old = slots[slot] * h.scalars["old_share"]
        return o.r(o.plus(old, o.r(new + eps), h.scalars["new_share"]))

    if len(unit.shape) < 2:
        v = averaged("square_average", o.r(g * g))
        return o.r(g / o.r(o.sqrt(v))), {"square_average": v}
    *window, num_in, num_out = unit.shape
    positions = math.prod(window)
    g = o.reshape(g, (positions, num_in, num_out))
    squares = o.r(g * g)
    rows = averaged("row_square_average", _mean_of_rows(o, squares, num_out))
    columns = averaged(
        "column_square_average", _mean_of_rows(o, o.permute(squares, (0, 2, 1)), num_in)
    )
    of_rows = o.reshape(_mean_of_rows(o, rows, num_in), (positions, 1))
    scale = o.r(o.sqrt(o.r(of_rows / o.reshape(rows, (positions, num_in)))))
    u = o.r(g * o.reshape(scale, (positions, num_in, 1)))
    u = o.r(u / o.reshape(o.r(o.sqrt(columns)), (positions, 1, num_out)))
    return o.reshape(u, (-1,)), {"row_square_average": rows, "column_square_average": columns}


def _mean_of_rows(o: Primitives, x: Tensor, num: int) -> Tensor:
    """Return the mean of every `num` values, as a vector. Each row has a grid."""
    sums = total(o, o.reshape(x, (-1, num)), (1,), num, per_row=True, keep=True)
    return divide(o, o.reshape(sums, (-1,)), num)


def _root_mean_square(o: Primitives, x: Tensor, num: int) -> Tensor:
    return o.r(o.sqrt(divide(o, total(o, o.r(x * x), (0,), num), num)))


def muon(
    h: Hyperparameters, unit: Unit, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    o, s = h.o, h.spec
    if unit.group.kind == "adamw":
        m = mean(h, slots["first_moment"], g, "adamw_beta1")
        v = mean(h, slots["second_moment"], o.r(g * g), "adamw_beta2")
        d = o.r(m / root_eps(o, v, s.adamw_eps, h.scalars["root"]))
        step = o.r(rate / h.scalars["correction"])
        return o.r(o.plus(w, d, -step)), {"first_moment": m, "second_moment": v}
    b = mean(h, slots["momentum"], g, "momentum")
    d = mean(h, b, g, "momentum") if s.nesterov else b
    num_in, num_out = math.prod(unit.shape[:-1]), unit.shape[-1]
    x = o.r(d / o.maximum(norm(o, d, num_in * num_out), constant(s.eps)))
    x = o.reshape(_orthogonal(o, o.reshape(x, (num_in, num_out)), s), (-1,))
    return o.r(o.plus(w, x, -o.r(rate * constant(s.ratio(num_in, num_out))))), {"momentum": b}


def _orthogonal(o: Primitives, x: Tensor, s: Any) -> Tensor:
    """Return x [M, N] with singular values near 1, by Newton-Schulz steps. All sums are of
    products of integers on the grids of the two factors."""
    is_tall = x.shape[0] > x.shape[1]
    x = o.transpose(x) if is_tall else x
    a, b, c = map(constant, s.ns_coefficients)
    for _ in range(s.ns_steps):
        gram = _product(o, x, o.transpose(x))
        x = o.r(o.plus(_product(o, _quintic(o, gram, b, c), x), x, a))
    return o.transpose(x) if is_tall else x


def _quintic(o: Primitives, gram: Tensor, b: float, c: float) -> Tensor:
    """R(b A + c A^2)"""
    return o.r(o.plus(gram * b, _product(o, gram, gram), c))


def _product(o: Primitives, x: Tensor, y: Tensor) -> Tensor:
    """R(x y) of matrices."""
    bits = product_bits(x.shape[1])
    (qx, ux), (qy, uy) = o.grid(x, bits), o.grid(y, bits)
    return o.r(o.matmul(qx, qy) * (ux * uy))


def schedule_free(
    h: Hyperparameters, unit: Unit, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    """The weights are y, the slot `base_weights` is z. y = R(R(y + c R(z - y)) + k d), k =
    R(lr R(R(beta1 R(1 - c)) - 1))."""
    o, s, share, z = h.o, h.spec, h.scalars["share"], slots[BASE_WEIGHTS]
    d, new_slots = g, {}
    if s.name == "schedule_free_adamw":
        v = new_slots["second_moment"] = mean(h, slots["second_moment"], o.r(g * g), "beta2")
        d = o.r(d / root_eps(o, v, s.eps, h.scalars["root"]))
    decay = h.decay(unit.group)
    if decay is not None and s.weight_decay_mode == "decoupled":
        d = o.r(o.plus(d, w, decay))
    moved = o.r(o.plus(w, o.r(z - w), share))
    step = o.r(rate * o.r(o.r(h["beta1"] * o.r(1.0 - share)) - 1.0))
    new_slots[BASE_WEIGHTS] = o.r(o.plus(z, d, -rate))
    return o.r(o.plus(moved, d, step)), new_slots


def schedule_free_share(
    h: Hyperparameters, layout: Layout, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[dict[str, Any], Slots]:
    """Return c and the numbers. The sum of the weights of all updates is a float64: in 24 bits it
    would stall."""
    o = h.o
    largest, weight_sum = slots[NUMBERS][0], slots[NUMBERS][1]
    largest = o.maximum(largest, rate + 0.0 * largest)
    weight = o.r(0.0 * largest + h.scalars["count_weight"])
    for _ in range(int(h.spec.weight_lr_power)):
        weight = o.r(weight * largest)
    weight_sum = weight_sum + weight
    share = o.r(weight / o.where(weight_sum > 0.0, weight_sum, 1.0))
    return {"share": share}, {NUMBERS: o.join([largest, weight_sum])}


def prodigy(
    h: Hyperparameters, unit: Unit, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[Tensor, Slots]:
    """Move the weights; `prodigy_estimate` has updated the slots."""
    o, s, decay = h.o, h.spec, h.decay(unit.group)
    step = o.r(h.scalars["step"] * constant(unit.group.lr_factor))
    if decay is not None and s.weight_decay_mode == "decoupled":
        w = o.r(w * o.r(1.0 - step * decay))
    root = o.r(o.sqrt(slots["second_moment"]))
    d = o.r(slots["first_moment"] / o.r(root + o.r(h.scalars["distance"] * constant(s.eps))))
    return o.r(o.plus(w, d, -step)), {}


def prodigy_estimate(
    h: Hyperparameters, layout: Layout, w: Tensor, g: Tensor, slots: Slots, rate: Any
) -> tuple[dict[str, Any], Slots]:
    """Return the step D and the distance d, and the slots. The sums are over all weights. With the
    rate 0 nothing changes, and D is 0."""
    o, s, num = h.o, h.spec, w.shape[0]
    d, largest, numerator = (o.r(slots[NUMBERS][i]) for i in range(3))
    rate, g = rate + 0.0 * d, _decayed(h, layout, w, g)
    step = o.r(d * rate)
    step = o.r(step * h.scalars["bias_correction"]) if s.use_bias_correction else step
    beta3, ratio = constant(math.sqrt(s.beta2)), o.r(d / constant(s.d0))
    slope = total(o, o.r(g * o.r(slots["first_weights"] - w)), (0,), num)
    numerator = o.r(o.plus(numerator * beta3, o.r(ratio * step), slope))
    m = o.plus(slots["first_moment"] * h["beta1"], g, o.r(d * h.one_minus("beta1")))
    share = o.r(o.r(d * d) * h.one_minus("beta2"))
    v = o.plus(slots["second_moment"] * h["beta2"], o.r(g * g), share)
    share = o.r(ratio * (d if s.safeguard_warmup else step))
    sums = o.r(o.plus(slots["gradient_sum"] * beta3, g, share))
    size = total(o, o.abs(sums), (0,), num)
    found = o.r(o.r(numerator * constant(s.d_coef)) / o.where(size > 0.0, size, 1.0))
    found = o.where(size > 0.0, found, 0.0)
    numbers = o.join([*_distances(o, s, d, largest, found), numerator])
    changed = {
        "first_moment": o.r(m),
        "second_moment": o.r(v),
        "gradient_sum": sums,
        NUMBERS: numbers,
    }
    changed = {slot: o.where(rate > 0.0, new, slots[slot]) for slot, new in changed.items()}
    return {"step": step, "distance": changed[NUMBERS][0]}, changed


def _decayed(h: Hyperparameters, layout: Layout, w: Tensor, g: Tensor) -> Tensor:
    """The gradient of all weights with coupled weight decay; it is 0 for frozen weights."""
    if h.spec.weight_decay_mode != "coupled" or not h.spec.decays:
        return g
    parts = []
    for group, part in layout.parts:
        decay = None if group.is_frozen else h.decay(group)
        own = g[part]
        parts.append(own if decay is None else h.o.r(h.o.plus(own, w[part], decay)))
    return h.o.join(parts)


def _distances(
    o: Primitives, s: Any, d: Tensor, largest: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """Return d and the largest one found so far."""
    largest = o.maximum(largest, found)
    if s.growth_rate is None:
        return largest, largest
    most = o.where(d > constant(s.d0), d, o.maximum(d, found))
    most = o.r(most * constant(s.growth_rate))
    return o.where(largest < most, largest, most), largest


FORMS: dict[str, Callable[..., tuple[Tensor, Slots]]] = {
    "adafactor": adafactor,
    "lamb": lamb,
    "lars": lars,
    "muon": muon,
    "schedule_free_sgd": schedule_free,
    "schedule_free_adamw": schedule_free,
    "prodigy": prodigy,
}
# optimizer -> what comes before the updates of single weights: (h, layout, w, g, slots, eta(t)) of
# all weights -> (scalars, the slots that it changes)
BEFORE: dict[str, Callable[..., tuple[dict[str, Any], Slots]]] = {
    "schedule_free_sgd": schedule_free_share,
    "schedule_free_adamw": schedule_free_share,
    "prodigy": prodigy_estimate,
}
