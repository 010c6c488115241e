"""Self-test at the start of a run: check that the device, with the run's settings, computes IEEE
754 float64. It refuses a device that emulates float64 or multiplies by transforms."""

from collections.abc import Callable, Sequence

import numpy as np

from runner import random
from runner.components.layers import Window
from runner.errors import ConfigError
from runner.exact.primitives import Primitives, Tensor
from runner.exact.reference import NumPy
from runner.exact.rules import product_bits

_K = 1024
_WINDOW, _PADS = Window((3, 3), (1, 1), "same"), ((1, 1), (1, 1))


def inputs() -> list[np.ndarray]:
    """Return the largest integers with exact sums, as matrices and images; 24-bit values of all
    magnitudes; positive values."""
    limit = 2.0 ** product_bits(_K)
    a, b, images = (
        np.rint((2 * random.uniform(shape, 0, f"self_test/{i}") - 1) * limit)
        for i, shape in enumerate(((8, _K), (_K, 8), (2, 5, 5, 4)))
    )
    spread = 2 * random.uniform((512,), 0, "self_test/3") - 1
    exponents = np.rint(250 * random.uniform((512,), 0, "self_test/4") - 150)
    values = np.concatenate(
        [
            spread * 2.0**exponents,
            [0.0, -0.0, 2.0**-126, -(2.0**-126) * (1 - 2.0**-30), 1 + 2.0**-24],
        ]
    )
    return [a, b, images, values, random.uniform(values.shape, 0, "self_test/5") + 2.0**-20]


def results(
    o: Primitives, a: Tensor, b: Tensor, images: Tensor, values: Tensor, positive: Tensor
) -> list[Tensor]:
    """Compute the results that are compared, in the order of `_OPERATIONS`."""
    columns = o.patches(images, _WINDOW, _PADS)
    return [
        o.matmul(a, b),
        o.matmul(o.transpose(columns), columns),
        o.sum(a, (0, 1)),
        o.r(values),
        o.grid(values, 20)[0],
        o.r(o.sqrt(o.r(positive))),
        o.r(o.r(values) / o.r(positive)),
    ]


_OPERATIONS = ("products", "convolutions", "sums", "roundings", "grids", "roots", "quotients")


def expected() -> list[np.ndarray]:
    """Compute the results in NumPy, with products and sums in int64."""
    arrays = inputs()
    in_numpy = results(NumPy(), *arrays)
    a, b, columns = (
        x.astype(np.int64)
        for x in (arrays[0], arrays[1], NumPy().patches(arrays[2], _WINDOW, _PADS))
    )
    return [a @ b, columns.T @ columns, a.sum(), *in_numpy[3:]]


def check(device: str, run: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]) -> None:
    """Raise ConfigError if the device's results are not the expected ones. `run` computes `results`
    of the inputs on the device."""
    for operation, result, right in zip(_OPERATIONS, run(inputs()), expected(), strict=True):
        same = np.array_equal(result, right) and np.array_equal(
            np.signbit(result), np.signbit(right)
        )
        if not (
            same
            or (
                operation in ("products", "convolutions", "sums", "grids")
                and np.array_equal(result, right)
            )
        ):
            raise ConfigError(
                f"trainer.precision=exact needs IEEE 754 float64 arithmetic, but "
                f"device={device} computes other {operation}"
            )
