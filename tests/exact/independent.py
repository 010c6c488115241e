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
    from tests.exact.test_golden import OPTIMIZER_ROWS, spec_of

    specs = {name: spec_of(name) for name in OPTIMIZER_ROWS}
    made = {name: optimizer(spec.model_dump(), spec.slots()) for name, spec in specs.items()}
    golden = {"optimizers": made, "losses": {name: loss(name) for name in LOSSES}}
    GOLDEN.write_text(json.dumps(golden, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
