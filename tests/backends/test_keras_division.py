"""Divisions by a scalar in the optimizers of Keras."""

from types import SimpleNamespace
from typing import Any

import numpy as np


def test_products_have_the_bits_of_quotients() -> None:
    """NumPy divides as IEEE 754 says. x has drawn significands in many magnitudes, and the largest
    and smallest significands; among the divisors are those whose quotients are hardest to round:
    1 - 2^-24 and its neighbours, and bias corrections of Adam."""
    import tensorflow as tf

    from backends.keras.optimizers import Adam

    rng = np.random.default_rng(0)
    drawn = rng.integers(2**23, 2**24, 100_000) * 2.0 ** rng.integers(-100, 60, 100_000)
    near = (2.0**23 + np.arange(2000)) * 2.0**-30, (2.0**24 - np.arange(1, 2000)) * 2.0**-30
    x = np.concatenate([drawn, *near, [0.0, np.inf, np.nan]]).astype(np.float32)
    divisors = [
        *np.sqrt(1 - 0.999 ** np.arange(1, 20)),
        *(1 - np.arange(1, 8) * 2.0**-24),
        *(0.5 + np.arange(8) * 2.0**-24),
        *rng.uniform(1e-3, 1, 20),
    ]
    optimizer: Any = SimpleNamespace(uses_products=True)
    for divisor in divisors:
        found = Adam.divided(optimizer, tf.constant(x), tf.constant(divisor, tf.float64)).numpy()
        np.testing.assert_array_equal(found, x / np.float32(divisor))
