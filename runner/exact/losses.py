"""The losses of runner/components/losses.py: derivatives for updates, values for reports.

z  # outputs [N, C]; y  # one-hot labels or targets [N, C]. The loss of a row is the mean of its V =
`values_per_row` values [N, V]. The derivative is that of the sum of all values.
"""

from collections.abc import Callable
from typing import Any

from runner.exact.functions import ONE, exp_negative, exponentials, log, sigmoid
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant, total


def values_per_row(loss: Any, num_outputs: int) -> int:
    """Return V. A loss of targets is a mean over the outputs."""
    return 1 if loss.name == "cross_entropy" else num_outputs


def cross_entropy(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """(e - y s) / s; with label smoothing a over C classes + a (y - 1 / C)."""
    _, e, s = exponentials(o, z)
    g = o.r(o.r(e - y * s) / o.r(s))
    a, num = loss.label_smoothing, z.shape[1]
    return g if a == 0 else o.r(g + o.where(y > 0.0, y * constant(a - a / num), constant(-a / num)))


def cross_entropy_value(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """ln s + d_y; with label smoothing ln s + (1 - a) d_y + a mean(d)."""
    d, _, s = exponentials(o, z)
    label_term = o.sum(y * d, (1,), True)  # exact: only one term is not 0
    a, num = loss.label_smoothing, z.shape[1]
    if a == 0:
        return o.r(log(o, s) + label_term)
    smoothing_term = o.r(total(o, d, (1,), num, per_row=True, keep=True) * constant(a / num))
    return o.r(o.r(log(o, s) + o.r(label_term * constant(1 - a))) + smoothing_term)


def binary_cross_entropy(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """sigmoid(z) - y"""
    return o.r(sigmoid(o, z)[0] - y)


def binary_cross_entropy_value(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """max(z, 0) - z y + ln(1 + exp(-|z|))"""
    return o.r(o.r(o.maximum(z, 0.0) - z * y) + o.r(log(o, exp_negative(o, o.abs(z)) + ONE)))


def mean_squared_error(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """2 (z - y)"""
    return o.r(z - y) * 2.0


def mean_squared_error_value(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """(z - y)^2"""
    error = o.r(z - y)
    return o.r(error * error)


def huber(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """z - y, clipped to [-delta, delta]."""
    error, delta = o.r(z - y), constant(loss.delta)
    return o.where(error < -delta, -delta, o.where(error > delta, delta, error))


def huber_value(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2)."""
    error, delta = o.r(z - y), constant(loss.delta)
    magnitude = o.abs(error)
    return o.where(
        magnitude <= delta, o.r(error * error * 0.5), o.r(o.r(magnitude - delta * 0.5) * delta)
    )


# loss -> (derivative, value)
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "cross_entropy": (cross_entropy, cross_entropy_value),
    "binary_cross_entropy": (binary_cross_entropy, binary_cross_entropy_value),
    "mean_squared_error": (mean_squared_error, mean_squared_error_value),
    "huber": (huber, huber_value),
}
