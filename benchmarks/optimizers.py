"""python -m benchmarks.optimizers [--steps 200]: compare torch's clipping and Keras's own
optimizers with Twinrun's.

All of them solve the same problem of ten weights with noisy gradients, in float64. The figure is
the largest difference of a weight after the last update, relative to the largest weight;
docs/optimizers.md has the figures.
"""

import argparse
import os
from collections.abc import Callable

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

LR = 1e-3
Step = Callable[[np.ndarray], None]


def gradient(w: np.ndarray, t: int) -> np.ndarray:
    """Return the gradient of a quadratic with curvatures from 0.1 to 10, plus noise seeded by t."""
    noise = np.random.default_rng(t).normal(size=w.shape)
    return np.geomspace(0.1, 10.0, len(w)) * (w - 1.0) + 0.1 * noise


def rate(t: int, num: int) -> float:
    """Return a rate that falls linearly to 0. With a constant rate, it would not matter whether an
    optimizer multiplies the gradient by the rate inside or outside of its buffers."""
    return LR * (1 - t / num)


def by_torch(
    name: str, num: int, clip: float | None = None, stock_clip: bool = False
) -> np.ndarray:
    """Train with torch's classes, which Twinrun follows, and with Twinrun's clipping or torch's."""
    import torch

    p = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    makers = {
        "sgd": lambda: torch.optim.SGD([p], LR, momentum=0.9),
        "nesterov": lambda: torch.optim.SGD([p], LR, momentum=0.9, nesterov=True),
        "adam": lambda: torch.optim.Adam([p], LR, eps=1e-7),
        "adamax": lambda: torch.optim.Adamax([p], LR, eps=1e-7),
        "rmsprop": lambda: torch.optim.RMSprop([p], LR, alpha=0.9, eps=1e-7),
        "rmsprop_momentum": lambda: torch.optim.RMSprop([p], LR, alpha=0.9, eps=1e-7, momentum=0.9),
        "adagrad": lambda: torch.optim.Adagrad([p], LR, initial_accumulator_value=0.1, eps=1e-7),
        "adadelta": lambda: torch.optim.Adadelta([p], LR, rho=0.95, eps=1e-7),
    }
    optimizer = makers[name]()
    for t in range(num):
        optimizer.param_groups[0]["lr"] = rate(t, num)
        p.grad = torch.from_numpy(gradient(p.detach().numpy(), t))
        if clip is not None and stock_clip:
            torch.nn.utils.clip_grad_norm_([p], clip)
        elif clip is not None:
            p.grad *= min(1.0, clip / float(p.grad.norm()))
        optimizer.step()
    return p.detach().numpy().copy()


def by_keras(name: str, num: int) -> np.ndarray:
    """Train with Keras's own class and the same hyperparameters."""
    import keras
    import tensorflow as tf

    makers = {
        "sgd": lambda: keras.optimizers.SGD(LR, momentum=0.9),
        "nesterov": lambda: keras.optimizers.SGD(LR, momentum=0.9, nesterov=True),
        "adam": lambda: keras.optimizers.Adam(LR, epsilon=1e-7),
        "adamax": lambda: keras.optimizers.Adamax(LR, epsilon=1e-7),
        "rmsprop": lambda: keras.optimizers.RMSprop(LR, rho=0.9, epsilon=1e-7),
        "rmsprop_momentum": lambda: keras.optimizers.RMSprop(
            LR, rho=0.9, epsilon=1e-7, momentum=0.9
        ),
        "adagrad": lambda: keras.optimizers.Adagrad(
            LR, initial_accumulator_value=0.1, epsilon=1e-7
        ),
        "adadelta": lambda: keras.optimizers.Adadelta(LR, rho=0.95, epsilon=1e-7),
    }
    keras.config.set_floatx("float64")
    optimizer, w = makers[name](), keras.Variable(np.zeros(10), dtype="float64")
    optimizer.build([w])
    for t in range(num):
        optimizer.learning_rate = rate(t, num)
        optimizer.apply([tf.constant(gradient(w.numpy(), t))], [w])
    return np.array(w.numpy())


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers")
    parser.add_argument("--steps", type=int, default=200)
    num = parser.parse_args().steps
    print(f"after {num} updates, rates falling from {LR:g} to 0; relative to the largest weight")
    for clip in (0.5, 1e-3):
        ours, stock = (by_torch("sgd", num, clip, stock_clip) for stock_clip in (False, True))
        difference = relative_difference(ours, stock)
        print(f"torch's own clipping at {clip:g} (sgd, momentum 0.9): {difference:.1e}")
    for name in (
        "sgd",
        "nesterov",
        "adam",
        "adamax",
        "rmsprop",
        "rmsprop_momentum",
        "adagrad",
        "adadelta",
    ):
        difference = relative_difference(by_torch(name, num), by_keras(name, num))
        print(f"Keras's own {name}: {difference:.1e}")


if __name__ == "__main__":
    main()
