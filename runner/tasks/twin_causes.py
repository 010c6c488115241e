"""Checks of usual causes of a difference: NumPy computes a layer with each cause, and the result is
compared with the frameworks' outputs."""

from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np

Array = np.ndarray
_SAME = 1e-9  # far above rounding in float64, far below what any of these causes makes


def confirmed(
    kind: str, weights: Mapping[str, Array], x: Array, outputs: Mapping[str, Array]
) -> Iterator[str]:
    """Yield what each framework's output of a layer is, where it is not the layer's definition.
    Yields nothing if no variant fits. `weights` are canonical, by role; `outputs` by framework."""
    variants = _VARIANTS.get(kind)
    if variants is None:
        return
    made = [*variants(weights, x)]
    found = {
        name: next((variant for variant, value in made if _is_same(y, value)), None)
        for name, y in outputs.items()
    }
    definition = made[0][0] if made else None
    for name, variant in found.items():
        others = [other for other in found if found[other] == definition]
        if variant is None and others:
            yield f"{name}'s output is not {definition}; {others[0]}'s is"
        elif variant is not None and variant != definition:
            yield f"{name}'s output is {variant}"


def _is_same(y: Array, value: Array) -> bool:
    if y.ndim == value.ndim - 1:  # the last step of a sequence
        value = value[:, -1]
    return y.shape == value.shape and bool(np.abs(y - value).max(initial=0) <= _SAME)


def _dense(weights: Mapping[str, Array], x: Array) -> Iterator[tuple[str, Array]]:
    kernel, bias = weights["kernel"], weights.get("bias", 0.0)
    if x.shape[-1] != len(kernel):
        return
    yield "x kernel + bias", x @ kernel + bias
    yield "x kernel, without the bias", x @ kernel
    if kernel.shape[0] == kernel.shape[1]:
        yield "x kernel^T + bias: its kernel is transposed", x @ kernel.T + bias


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _lstm(weights: Mapping[str, Array], x: Array) -> Iterator[tuple[str, Array]]:
    """Yield an LSTM with its blocks of weights in every order of the gates."""
    kernel, recurrent = weights["input_kernel"], weights["recurrent_kernel"]
    for order in permutations("ifgo"):
        h = c = np.zeros((len(x), len(recurrent)))
        steps = []
        for t in range(x.shape[1]):
            sums = x[:, t] @ kernel + weights.get("bias", 0.0) + h @ recurrent
            gate = dict(zip(order, np.split(sums, 4, axis=1), strict=True))
            c = _sigmoid(gate["f"]) * c + _sigmoid(gate["i"]) * np.tanh(gate["g"])
            h = _sigmoid(gate["o"]) * np.tanh(c)
            steps.append(h)
        yield f"an LSTM with its gates in the order {', '.join(order)}", np.stack(steps, 1)


def _gru(weights: Mapping[str, Array], x: Array) -> Iterator[tuple[str, Array]]:
    """Yield a GRU with its blocks of weights in every order of the gates, and with the reset gate
    after and before the recurrent product."""
    kernel, recurrent = weights["input_kernel"], weights["recurrent_kernel"]
    biases = [weights.get(f"{name}_bias", 0.0) for name in ("input", "recurrent")]
    for is_after in (True, False):
        for order in permutations("zrn"):
            h = np.zeros((len(x), len(recurrent)))
            steps = []
            names = dict(zip(order, range(3), strict=True))
            for t in range(x.shape[1]):
                inputs = np.split(x[:, t] @ kernel + biases[0], 3, axis=1)
                states = np.split(h @ recurrent + biases[1], 3, axis=1)
                z, r = (_sigmoid(inputs[names[n]] + states[names[n]]) for n in "zr")
                n = names["n"]
                if is_after:
                    new = inputs[n] + r * states[n]
                else:
                    bias = np.split(np.zeros(recurrent.shape[1]) + biases[1], 3)[n]
                    new = inputs[n] + (r * h) @ np.split(recurrent, 3, axis=1)[n] + bias
                h = z * h + (1 - z) * np.tanh(new)
                steps.append(h)
            reset = "after" if is_after else "before"
            yield (
                f"a GRU with its gates in the order {', '.join(order)} of Keras's blocks and the "
                f"reset gate {reset} the product",
                np.stack(steps, 1),
            )


_VARIANTS = {"dense": _dense, "lstm": _lstm, "gru": _gru}
