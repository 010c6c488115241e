"""The losses of runner/components/losses.py: derivatives for updates, values for reports.

z  # outputs [N, C]; y  # one-hot labels or targets [N, C]. The loss of a row is the mean of its V =
`values_per_row` values [N, V]. The derivative is that of the sum of all values.
"""

from collections.abc import Callable
from typing import Any

from runner.components.losses import COSINE_EPS
from runner.exact.functions import ONE, exp_negative, exponentials, log, sigmoid
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant, total


def values_per_row(loss: Any, num_outputs: int) -> int:
    """Return V. A loss of targets is a mean over the outputs, but for a cosine."""
    return (
        1 if loss.name in (*OF_LABELS, "soft_cross_entropy", "cosine_similarity") else num_outputs
    )


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


def soft_cross_entropy(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """softmax(z) Y - y, where Y is the sum of a row's targets y, nearly 1."""
    _, e, s = exponentials(o, z)
    return o.r(o.r(o.r(e) / o.r(s)) * _row_sum(o, y) - y)


def soft_cross_entropy_value(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """Y ln s + sum(y d)"""
    d, _, s = exponentials(o, z)
    return o.r(_row_sum(o, y) * o.r(log(o, s)) + _row_sum(o, o.r(y * d)))


def _row_sum(o: Primitives, x: Tensor) -> Tensor:
    """R of the sum of a row.  # [N, 1]"""
    return total(o, x, (1,), x.shape[1], per_row=True, keep=True)


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


def focal(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """alpha (q^gamma + gamma p q^(gamma - 1) (-ln p)) (softmax(z) - y), where p is softmax(z) at
    the label and q = 1 - p; gamma is a whole number."""
    _, e, s = exponentials(o, z)
    g, gamma = o.r(o.r(e - y * s) / o.r(s)), int(loss.gamma)
    alpha = 1.0 if loss.alpha is None else constant(loss.alpha)
    if gamma == 0:
        return o.r(g * alpha)
    q, p = _focus(o, e, s, y)
    low = _power(o, q, gamma - 1)
    slope = o.r(o.r(o.r(low * p) * _minus_log_p(o, z, y)) * float(gamma))
    return o.r(o.r(o.r(o.r(low * q) + slope) * alpha) * g)


def focal_value(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """alpha q^gamma (-ln p)"""
    _, e, s = exponentials(o, z)
    alpha = 1.0 if loss.alpha is None else constant(loss.alpha)
    power = _power(o, _focus(o, e, s, y)[0], int(loss.gamma))
    return o.r(o.r(power * _minus_log_p(o, z, y)) * alpha)


def _focus(o: Primitives, e: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(1 - p, p) of the label, from exponentials and their sum, which are integers."""
    of_label = o.sum(y * e, (1,), True)  # exact: only one term is not 0
    return o.r(o.r(s - of_label) / o.r(s)), o.r(o.r(of_label) / o.r(s))


def _minus_log_p(o: Primitives, z: Tensor, y: Tensor) -> Tensor:
    d, _, s = exponentials(o, z)
    return o.r(log(o, s) + o.sum(y * d, (1,), True))


def _power(o: Primitives, x: Tensor, num: int) -> Tensor:
    """x^num by num products, each rounded."""
    power = x * 0.0 + 1.0
    for _ in range(num):
        power = o.r(power * x)
    return power


def cosine_similarity(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """cos z / (z . z + eps) - y / sqrt((z . z + eps) (y . y + eps))"""
    cosine, square, size = _cosine(o, z, y)
    return o.r(o.r(o.r(cosine / square) * z) - o.r(y / size))


def cosine_similarity_value(o: Primitives, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    """1 - cos"""
    return o.r(1.0 - _cosine(o, z, y)[0])


def _cosine(o: Primitives, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cos, z . z + eps, sqrt((z . z + eps) (y . y + eps))) of each row.  # [N, 1] each"""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return total(o, o.r(a * b), (1,), z.shape[1], per_row=True, keep=True)

    eps = constant(COSINE_EPS)
    square = o.r(dot(z, z) + eps)
    size = o.r(o.sqrt(o.r(square * o.r(dot(y, y) + eps))))
    return o.r(dot(z, y) / size), square, size


OF_LABELS = ("cross_entropy", "focal")  # the losses whose y are labels

# loss -> (derivative, value)
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "cross_entropy": (cross_entropy, cross_entropy_value),
    "binary_cross_entropy": (binary_cross_entropy, binary_cross_entropy_value),
    "mean_squared_error": (mean_squared_error, mean_squared_error_value),
    "huber": (huber, huber_value),
    "focal": (focal, focal_value),
    "cosine_similarity": (cosine_similarity, cosine_similarity_value),
    "soft_cross_entropy": (soft_cross_entropy, soft_cross_entropy_value),
}
