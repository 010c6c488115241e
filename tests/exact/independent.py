"""python -m tests.exact.independent: the bits of every optimizer and loss in exact mode, by
fractions and mpmath.

Nothing of runner/exact is used: the formulas of runner/components/optimizers.py and losses.py are
written out once more, a value is a Fraction, one IEEE 754 operation rounds it to float64 and R to
24 bits. Writes golden.json, which the tests compare with; its numbers are float64 in hexadecimal.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from math import isqrt
from pathlib import Path
from typing import Any

import mpmath
import numpy as np

GOLDEN = Path(__file__).with_name("golden.json")
F = Fraction
mpmath.mp.prec = 300
RATES = [F(float(np.float32(rate))) for rate in (0.01, 0.02, 0.005, 0.013)]


def f64(x: Any) -> Fraction:
    """The nearest float64: Python rounds a quotient of integers correctly."""
    return F(float(x))


def r(x: Any) -> Fraction:
    """R: to 24 bits, half to even; 0 where that is at most 2^-126."""
    x = f64(x)
    if x == 0:
        return F(0)
    exponent = int(np.floor(np.log2(float(abs(x)))))
    while abs(x) >= F(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < F(2) ** exponent:
        exponent -= 1
    unit = F(2) ** (exponent - 23)
    rounded = round(x / unit) * unit  # round() of a Fraction is half to even
    return rounded if abs(rounded) > F(2) ** -126 else F(0)


def root(x: Fraction) -> Fraction:
    """The square root to float64: 100 bits by integers, and a last one that says whether there is
    more."""
    if x == 0:
        return F(0)
    shift = 400
    whole = (x.numerator << shift) // x.denominator
    found = isqrt(whole)
    exact = found * found == whole and whole * x.denominator == x.numerator << shift
    return f64(F(2 * found + (not exact), 2 ** (shift // 2 + 1)))


def number(value: float) -> Fraction:
    return r(F(value))


# --- optimizers: one weight, its gradients, the values after every update


class Scalars:
    """Powers of a hyperparameter, by running products in float64."""

    def __init__(self, base: float, num: int) -> None:
        self.values = [F(base)]
        for _ in range(num):
            self.values.append(f64(self.values[-1] * F(base)))


def mean(old: Fraction, new: Fraction, beta: float) -> Fraction:
    return r(old * number(beta) + new * r(f64(1 - F(beta))))


def update(
    s: Mapping[str, Any], w: Fraction, g: Fraction, slots: dict[str, Fraction], t: int
) -> Fraction:
    """The weight after update t; the slots are changed."""
    rate, decay = RATES[t], number(s["weight_decay"])
    if decay and s["weight_decay_mode"] == "coupled":
        g = r(g + w * decay)
    elif decay:
        w = r(w * r(f64(1 - f64(rate * decay))))
    name, eps = s["name"], number(s.get("eps", 1.0))
    if name == "sgd":
        if s["momentum"]:
            slots["momentum"] = r(g + slots["momentum"] * number(s["momentum"]))
            g = (
                r(g + slots["momentum"] * number(s["momentum"]))
                if s["nesterov"]
                else slots["momentum"]
            )
        return r(w - g * rate)
    if name == "adagrad":
        slots["accumulator"] = r(slots["accumulator"] + g * g)
        return r(w - r(g / r(r(root(slots["accumulator"])) + eps)) * rate)
    if name == "adadelta":
        square = slots["square_average"] = mean(slots["square_average"], r(g * g), s["rho"])
        ratio = r(r(root(r(slots["delta_average"] + eps))) / r(root(r(square + eps))))
        step = r(ratio * g)
        slots["delta_average"] = mean(slots["delta_average"], r(step * step), s["rho"])
        return r(w - step * rate)
    if name == "rmsprop":
        spread = slots["square_average"] = mean(slots["square_average"], r(g * g), s["rho"])
        if s["centered"]:
            average = slots["gradient_average"] = mean(slots["gradient_average"], g, s["rho"])
            spread = max(r(spread - average * average), F(0))
        step = r(g / r(r(root(spread)) + eps))
        if s["momentum"]:
            step = slots["momentum"] = r(step + slots["momentum"] * number(s["momentum"]))
        return r(w - step * rate)
    if name == "lion":
        size = mean(slots["first_moment"], g, s["beta1"])
        slots["first_moment"] = mean(slots["first_moment"], g, s["beta2"])
        return r(w - rate * ((size > 0) - (size < 0)))
    m = slots["first_moment"] = mean(slots["first_moment"], g, s["beta1"])
    correction = r(f64(1 - Scalars(s["beta1"], t).values[t]))
    if name == "adamax":
        norm = max(r(slots["infinity_norm"] * number(s["beta2"])), r(abs(g) + eps))
        slots["infinity_norm"] = norm
        return r(w - r(m / norm) * r(rate / correction))
    v = slots["second_moment"] = mean(slots["second_moment"], r(g * g), s["beta2"])
    if s.get("amsgrad"):
        v = slots["max_second_moment"] = max(slots["max_second_moment"], v)
    if name == "ademamix":
        slow = slots["slow_moment"] = mean(slots["slow_moment"], g, s["beta3"])
        size = r(r(root(v)) * r(f64(1 / root(f64(1 - Scalars(s["beta2"], t).values[t])))) + eps)
        step = r(r(r(m / correction) + slow * number(s["alpha"])) / size)
        return r(w - step * rate)
    inverse = r(f64(1 / root(f64(1 - Scalars(s["beta2"], t).values[t]))))
    size = r(r(root(v)) * inverse + eps)
    if name == "nadam":
        falling = Scalars(float(mpmath.mpf(0.96) ** mpmath.mpf(s["momentum_decay"])), t + 1).values
        mu = [f64(F(s["beta1"]) * f64(1 - f64(value / 2))) for value in falling]
        product = mu[0]
        for value in mu[1 : t + 1]:
            product = f64(product * value)
        of_gradient = r(f64(f64(1 - mu[t]) / f64(1 - product)))
        of_moment = r(f64(mu[t + 1] / f64(1 - f64(product * mu[t + 1]))))
        w = r(w - r(g / size) * r(rate * of_gradient))
        return r(w - r(m / size) * r(rate * of_moment))
    return r(w - r(m / size) * r(rate / correction))


# --- optimizers of whole tensors: all weights at once

SHAPES = {"kernel": (3, 2), "bias": (4,)}
Values = list[Fraction]
# of a tensor after an update: (values, slots) from (spec, shape, values, gradient, slots, t, rate)
Slots = dict[str, Any]


def on_grid(values: Values, bits: int) -> tuple[list[int], Fraction]:
    """Whole numbers and the power of two that is their unit."""
    largest = max([*map(abs, values), F(1, 2**200)])
    power = F(2) ** (int(mpmath.floor(mpmath.log(mpmath.mpf(float(largest)), 2))))
    return [round(x * 2 ** (bits - 1) / power) for x in values], power / 2 ** (bits - 1)


def total(values: Values) -> Fraction:
    whole, unit = on_grid(values, min(32, 53 - (len(values) - 1).bit_length()))
    return r(sum(whole) * unit)


def norm(values: Values) -> Fraction:
    return r(root(total([r(x * x) for x in values])))


def product(a: list[Values], b: list[Values]) -> list[Values]:
    """R of a product of matrices, of whole numbers."""
    bits = min(24, (53 - (len(b) - 1).bit_length()) // 2)
    width = len(b[0])
    (whole_a, ua), (whole_b, ub) = (on_grid([x for row in m for x in row], bits) for m in (a, b))
    return [
        [
            r(
                sum(whole_a[i * len(b) + k] * whole_b[k * width + j] for k in range(len(b)))
                * ua
                * ub
            )
            for j in range(width)
        ]
        for i in range(len(a))
    ]


def correction(beta: float, t: int) -> Fraction:
    return r(f64(1 - Scalars(beta, t).values[t]))


def inverse_root(beta: float, t: int) -> Fraction:
    return r(f64(1 / root(f64(1 - Scalars(beta, t).values[t]))))


def power_of(base: float, exponent: float) -> Fraction:
    return F(float(mpmath.mpf(base) ** mpmath.mpf(exponent)))


def moment(slots: Slots, name: str, new: Values, beta: float) -> Values:
    slots[name] = [mean(a, b, beta) for a, b in zip(slots[name], new, strict=True)]
    result: Values = slots[name]
    return result


def squared(g: Values) -> Values:
    return [r(x * x) for x in g]


def scaled(m: Values, v: Values, eps: Fraction, inverse: Fraction) -> Values:
    return [r(a / r(r(root(b)) * inverse + eps)) for a, b in zip(m, v, strict=True)]


def moved(w: Values, d: Values, rate: Fraction) -> Values:
    return [r(a - b * rate) for a, b in zip(w, d, strict=True)]


def ratio(a: Fraction, b: Fraction) -> Fraction:
    return r(a / b) if a > 0 and b > 0 else F(1)


def lamb(s: Any, w: Values, g: Values, slots: Slots, t: int, inner: Fraction) -> Values:
    m = moment(slots, "first_moment", g, s["beta1"])
    v = moment(slots, "second_moment", squared(g), s["beta2"])
    u = scaled(m, v, number(s["eps"]), inverse_root(s["beta2"], t))
    u = [r(x / correction(s["beta1"], t)) for x in u]
    u = [r(x + y * inner) for x, y in zip(u, w, strict=True)] if inner else u
    return moved(w, u, r(RATES[t] * ratio(norm(w), norm(u))))


def lars(s: Any, w: Values, g: Values, slots: Slots, t: int, inner: Fraction) -> Values:
    size = norm(w)
    below = r(norm(g) + size * inner) if inner else norm(g)
    factor = ratio(r(size * number(s["trust_coefficient"])), below)
    d = [r(x + y * inner) for x, y in zip(g, w, strict=True)] if inner else g
    d, momentum = [r(x * factor) for x in d], number(s["momentum"])
    b = slots["momentum"] = [r(x + y * momentum) for x, y in zip(d, slots["momentum"], strict=True)]
    d = [r(x + y * momentum) for x, y in zip(d, b, strict=True)] if s["nesterov"] else b
    return moved(w, d, RATES[t])


def adafactor(s: Any, name: str, w: Values, g: Values, slots: Slots, t: int) -> Values:
    new = power_of(t + 1, s["beta2_decay"])
    old, new, eps = r(f64(1 - new)), r(new), number(s["eps1"])

    def averaged(slot: str, values: Values) -> Values:
        pairs = zip(slots[slot], values, strict=True)
        slots[slot] = [r(a * old + r(b + eps) * new) for a, b in pairs]
        result: Values = slots[slot]
        return result

    if name == "bias":
        v = averaged("square_average", squared(g))
        u = [r(a / r(root(b))) for a, b in zip(g, v, strict=True)]
    else:
        num_in, num_out = SHAPES[name]
        square = squared(g)
        rows = averaged("row_square_average",
            [r(total(square[i * num_out : (i + 1) * num_out]) / num_out) for i in range(num_in)]
        )  # fmt: skip
        columns = averaged(
            "column_square_average", [r(total(square[j::num_out]) / num_in) for j in range(num_out)]
        )
        middle = r(total(rows) / num_in)
        scale = [r(root(r(middle / row))) for row in rows]
        u = [r(r(x * scale[k // num_out]) / r(root(columns[k % num_out]))) for k, x in enumerate(g)]
    size = r(root(r(total(squared(u)) / len(u))))
    step = r(RATES[t] / max(F(1), r(size / number(s["clip_threshold"]))))
    if s["scale_parameter"]:
        step = r(step * max(number(s["eps2"]), r(root(r(total(squared(w)) / len(w))))))
    return moved(w, u, step)


def muon(s: Any, name: str, w: Values, g: Values, slots: Slots, t: int) -> Values:
    if name == "bias":
        m = moment(slots, "first_moment", g, s["adamw_beta1"])
        v = moment(slots, "second_moment", squared(g), s["adamw_beta2"])
        d = scaled(m, v, number(s["adamw_eps"]), inverse_root(s["adamw_beta2"], t))
        return moved(w, d, r(RATES[t] / correction(s["adamw_beta1"], t)))
    num_in, num_out = SHAPES[name]  # taller than wide
    b = moment(slots, "momentum", g, s["momentum"])
    d = [mean(x, y, s["momentum"]) for x, y in zip(b, g, strict=True)] if s["nesterov"] else b
    size = max(norm(d), number(s["eps"]))
    x = [[r(d[i * num_out + j] / size) for i in range(num_in)] for j in range(num_out)]
    c0, c1, c2 = map(number, s["ns_coefficients"])
    for _ in range(s["ns_steps"]):
        gram = product(x, [*map(list, zip(*x, strict=True))])
        square = product(gram, gram)
        inner = [[r(p * c1 + q * c2) for p, q in zip(*two, strict=True)]
            for two in zip(gram, square, strict=True)]  # fmt: skip
        x = [[r(p + q * c0) for p, q in zip(*two, strict=True)]
            for two in zip(product(inner, x), x, strict=True)]  # fmt: skip
    scale = number(0.2 * max(num_in, num_out) ** 0.5)  # match_rms_adamw
    return moved(w, [x[k % num_out][k // num_out] for k in range(len(w))], r(RATES[t] * scale))


def schedule_free(s: Any, w: Values, g: Values, slots: Slots, t: int, inner: Fraction) -> Values:
    d = g
    if s["name"] == "schedule_free_adamw":
        v = moment(slots, "second_moment", squared(g), s["beta2"])
        d = scaled(g, v, number(s["eps"]), inverse_root(s["beta2"], t))
    d = [r(x + y * inner) for x, y in zip(d, w, strict=True)] if inner else d
    c, z = slots["share"], slots["base_weights"]
    step = r(RATES[t] * r(r(number(s["beta1"]) * r(f64(1 - c))) - 1))
    slots["base_weights"] = moved(z, d, RATES[t])
    y = [r(a + c * r(b - a)) for a, b in zip(w, z, strict=True)]
    return [r(a + b * step) for a, b in zip(y, d, strict=True)]


def share(s: Any, numbers: dict[str, Fraction], t: int) -> Fraction:
    """c of a schedule-free optimizer; the sum is a float64."""
    numbers["largest_rate"] = max(numbers["largest_rate"], RATES[t])
    weight = r(power_of(t + 1, s["r"]))
    for _ in range(int(s["weight_lr_power"])):
        weight = r(weight * numbers["largest_rate"])
    numbers["weight_sum"] = f64(numbers["weight_sum"] + weight)
    return r(weight / numbers["weight_sum"])


def prodigy(
    s: Any, w: dict[str, Values], g: dict[str, Values], all_slots: dict[str, Slots],
    numbers: dict[str, Fraction], t: int, inner: Fraction,
) -> dict[str, Values]:  # fmt: skip
    """All tensors together: the estimate, then the weights."""
    d, d0, numerator = r(numbers["distance"]), number(s["d0"]), r(numbers["numerator"])
    step, share = r(d * RATES[t]), r(d / d0)
    beta3 = number(float(root(F(s["beta2"]))))
    slopes, sizes = [], []
    for name, slots in all_slots.items():
        first = slots["first_weights"]
        slopes += [r(a * r(b - c)) for a, b, c in zip(g[name], first, w[name], strict=True)]
        for slot, beta, new, part in (
            ("first_moment", number(s["beta1"]), g[name], r(d * r(f64(1 - F(s["beta1"]))))),
            ("second_moment", number(s["beta2"]), squared(g[name]),
                r(r(d * d) * r(f64(1 - F(s["beta2"]))))),
            ("gradient_sum", beta3, g[name], r(share * step)),
        ):  # fmt: skip
            slots[slot] = [r(a * beta + b * part) for a, b in zip(slots[slot], new, strict=True)]
        sizes += [*map(abs, slots["gradient_sum"])]
    numerator = numbers["numerator"] = r(numerator * beta3 + r(share * step) * total(slopes))
    found = r(r(numerator * number(s["d_coef"])) / total(sizes))
    numbers["largest_distance"] = max(r(numbers["largest_distance"]), found)
    numbers["distance"] = numbers["largest_distance"]
    eps, after = r(numbers["distance"] * number(s["eps"])), {}
    for name, slots in all_slots.items():
        pairs = zip(slots["first_moment"], slots["second_moment"], strict=True)
        before = [r(x * r(f64(1 - f64(step * inner)))) for x in w[name]] if inner else w[name]
        after[name] = moved(before, [r(m / r(r(root(v)) + eps)) for m, v in pairs], step)
    return after


def of_tensors(s: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Train a kernel and a bias for 4 updates with weight decay 0.01, from the first slots `start`;
    return the weights and every slot."""
    w, all_slots = {}, {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        w[name] = [*map(F, drawn(5 + i, shape).reshape(-1))]
        all_slots[name] = {
            slot: [*map(F, values[name].reshape(-1))]
            for slot, values in start.items()
            if name in values and slot != "training_weights"  # those are the weights
        }  # fmt: skip
    numbers = {name: F(float(value)) for name, value in start.get("numbers", {}).items()}
    for t in range(len(RATES)):
        w = _after(s, w, all_slots, numbers, t)
    found = {name: {"weights": w[name], **slots} for name, slots in all_slots.items()}
    hexed = {
        f"{name}/{slot}": hexadecimal(values)
        for name, slots in found.items() for slot, values in slots.items() if slot != "share"
    }  # fmt: skip
    return {**hexed, **{name: hexadecimal([value]) for name, value in numbers.items()}}


def _after(
    s: Mapping[str, Any], w: dict[str, Values], all_slots: dict[str, Slots],
    numbers: dict[str, Fraction], t: int,
) -> dict[str, Values]:  # fmt: skip
    kind, mode, decay = s["name"], s["weight_decay_mode"], number(s["weight_decay"])
    g = {name: [*map(F, drawn(10 * t + i + 20, shape).reshape(-1))]
        for i, (name, shape) in enumerate(SHAPES.items())}  # fmt: skip
    if mode == "coupled":
        g = {name: [r(a + b * decay) for a, b in zip(g[name], w[name], strict=True)] for name in w}
    own = kind == "prodigy" or kind.startswith("schedule_free")
    if mode == "decoupled" and not own:
        shrink = r(f64(1 - f64(RATES[t] * decay)))
        w = {name: [r(x * shrink) for x in values] for name, values in w.items()}
    inner = decay if mode == "layerwise" or (own and mode == "decoupled") else F(0)
    if kind == "prodigy":
        return prodigy(s, w, g, all_slots, numbers, t, inner)
    if own:
        c = share(s, numbers, t)
        all_slots = {name: slots for name, slots in all_slots.items() if not slots.update(share=c)}
    form: Any = {"lamb": lamb, "lars": lars, "adafactor": adafactor, "muon": muon}.get(
        kind, schedule_free
    )
    if kind in ("adafactor", "muon"):
        return {name: form(s, name, w[name], g[name], all_slots[name], t) for name in w}
    return {name: form(s, w[name], g[name], all_slots[name], t, inner) for name in w}


# --- losses: a row of outputs and its target -> the derivatives and the values, before the mean


def exp_negative(d: Fraction) -> Fraction:
    """A whole number of 2^-40, by two entries of 26 bits."""
    fixed = round(min(d, F(31)) * 2**23)

    def entry(k: int, scale: int) -> Fraction:
        value = mpmath.exp(mpmath.mpf(-k) / 2**scale)
        shift = 26 - (0 if k == 0 else int(mpmath.floor(mpmath.log(value, 2))) + 1) - (k == 0)
        return F(int(mpmath.nint(value * mpmath.mpf(2) ** shift))) / F(2) ** shift

    high, low = divmod(fixed, 2**14)
    return F(round(f64(f64(entry(high, 9) * entry(low, 23)) * 2**40)))


def log(s: Fraction) -> Fraction:
    """ln(s 2^-40) on the grid 2^-34."""
    exponent = int(s).bit_length() - 1
    f = min(round(s / 2**exponent * 2**26), 2**27 - 1)
    j = (f - 2**26) >> 19
    c = F(round(F(2**20) / (1 + (j + F(1, 2)) / 128)), 2**20)
    t = F(round(f64(f64(f64(F(f, 2**26) * c) - 1) * 2**34)), 2**34)
    square = F(round(f64(t * t) * 2**36), 2**36)
    cube = F(round(f64(square * t) * 2**36), 2**36)
    third = F(round(f64(cube * number(1 / 3)) * 2**34), 2**34)
    series = round(f64(f64(t - square / 2) + third) * 2**34)
    value = int(mpmath.nint(-mpmath.log(mpmath.mpf(c.numerator) / c.denominator) * 2**34))
    return F(series + value + (exponent - 40) * int(mpmath.nint(mpmath.log(2) * 2**34)), 2**34)


def huber(
    delta: float, z: list[Fraction], y: list[Fraction]
) -> tuple[list[Fraction], list[Fraction]]:
    limit, errors = number(delta), [r(a - b) for a, b in zip(z, y, strict=True)]
    values = [
        r(f64(e * e) / 2) if abs(e) <= limit else r(r(abs(e) - limit / 2) * limit) for e in errors
    ]
    return [max(-limit, min(limit, e)) for e in errors], values


def mean_squared_error(
    z: list[Fraction], y: list[Fraction]
) -> tuple[list[Fraction], list[Fraction]]:
    errors = [r(a - b) for a, b in zip(z, y, strict=True)]
    return [e * 2 for e in errors], [r(e * e) for e in errors]


def binary_cross_entropy(
    z: list[Fraction], y: list[Fraction]
) -> tuple[list[Fraction], list[Fraction]]:
    derivatives, values = [], []
    for a, b in zip(z, y, strict=True):
        e = exp_negative(abs(a))
        whole = r(e + 2**40)
        sigmoid = r(r(e) / whole) if a < 0 else r(F(2**40) / whole)
        derivatives.append(r(sigmoid - b))
        values.append(r(r(max(a, F(0)) - f64(a * b)) + r(log(e + 2**40))))
    return derivatives, values


def cross_entropy(
    smoothing: float, z: list[Fraction], y: list[Fraction]
) -> tuple[list[Fraction], list[Fraction]]:
    d = [r(max(z) - a) for a in z]
    e = [exp_negative(a) for a in d]
    s, num, label = sum(e, F(0)), len(z), y.index(F(1))
    derivatives = [r(r(a - b * s) / r(s)) for a, b in zip(e, y, strict=True)]
    if not smoothing:
        return derivatives, [r(log(s) + d[label])]
    up, down = number(smoothing - smoothing / num), number(-smoothing / num)
    derivatives = [r(g + (up if b else down)) for g, b in zip(derivatives, y, strict=True)]
    bits = min(32, 53 - (num - 1).bit_length())
    largest = max(max(d), F(1, 2**200))
    power = F(2) ** (int(mpmath.floor(mpmath.log(mpmath.mpf(float(largest)), 2))))
    on_grid = sum(round(a * 2 ** (bits - 1) / power) for a in d) * power / 2 ** (bits - 1)
    others = r(r(on_grid) * number(smoothing / num))
    return derivatives, [r(r(log(s) + r(d[label] * number(1 - smoothing))) + others)]


Losses = Callable[[list[Fraction], list[Fraction]], tuple[list[Fraction], list[Fraction]]]
CROSS_ENTROPY = {"name": "cross_entropy", "class_weights": None}
BINARY = {"name": "binary_cross_entropy", "class_weights": None}
LOSSES: dict[str, tuple[dict[str, Any], Losses]] = {
    "mean_squared_error": ({"name": "mean_squared_error"}, mean_squared_error),
    "huber": ({"name": "huber", "delta": 1.0}, lambda z, y: huber(1.0, z, y)),
    "huber_other_delta": ({"name": "huber", "delta": 0.3}, lambda z, y: huber(0.3, z, y)),
    "binary_cross_entropy": (BINARY, binary_cross_entropy),
    "cross_entropy": ({**CROSS_ENTROPY, "label_smoothing": 0.0}, lambda z,
        y: cross_entropy(0.0, z, y)),
    "label_smoothing": ({**CROSS_ENTROPY, "label_smoothing": 0.1}, lambda z,
        y: cross_entropy(0.1, z, y)),
}  # fmt: skip


# --- what is stored


def drawn(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Numbers of 24 bits."""
    return (
        (np.random.default_rng(seed).normal(size=shape) * scale)
        .astype(np.float32)
        .astype(np.float64)
    )


def optimizer(spec: Mapping[str, Any], slots: Mapping[str, float]) -> dict[str, list[str]]:
    """Train 6 weights for 4 updates with weight decay 0.01; return the weights and every slot."""
    weights, gradients = drawn(1, (6,)), drawn(2, (len(RATES), 6))
    after: dict[str, list[Fraction]] = {"weights": [], **{slot: [] for slot in slots}}
    for i in range(6):
        w, own = F(weights[i]), {slot: number(value) for slot, value in slots.items()}
        for t in range(len(RATES)):
            w = update(spec, w, F(gradients[t, i]), own, t)
        after["weights"].append(w)
        for slot, value in own.items():
            after[slot].append(value)
    return {name: hexadecimal(values) for name, values in after.items()}


def rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Outputs [12, 5] and targets: one-hot, or of size 1 around them."""
    z = drawn(3, (12, 5), 2.0)
    if name in ("cross_entropy", "label_smoothing"):
        return z, np.eye(5)[np.arange(12) % 5]
    return z, (
        np.arange(60).reshape(12, 5) % 2.0 if name == "binary_cross_entropy" else drawn(4, (12, 5))
    )


def loss(name: str) -> dict[str, list[str]]:
    z, y = rows(name)
    found = [LOSSES[name][1]([*map(F, a)], [*map(F, b)]) for a, b in zip(z, y, strict=True)]
    kinds = ("derivatives", "values")
    return {
        kind: hexadecimal(value for row in found for value in row[i])
        for i, kind in enumerate(kinds)
    }


def hexadecimal(values: Iterable[Fraction]) -> list[str]:
    return [float(value).hex() for value in values]


def main() -> None:
    from tests.exact.test_golden import OPTIMIZER_ROWS, TENSOR_ROWS, first_slots, spec_of

    specs = {name: spec_of(name) for name in OPTIMIZER_ROWS}
    made = {name: optimizer(spec.model_dump(), spec.slots()) for name, spec in specs.items()}
    for name in TENSOR_ROWS:
        made[name] = of_tensors(spec_of(name).model_dump(), first_slots(spec_of(name)))
    golden = {"optimizers": made, "losses": {name: loss(name) for name in LOSSES}}
    GOLDEN.write_text(json.dumps(golden, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
