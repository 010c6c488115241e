"""At a run's start: does this device, with these settings, do what the rules take for granted? IEEE
754 float64, whatever its libraries are called. A device that emulates float64, or multiplies by
transforms, is refused."""

from collections.abc import Callable, Sequence

import numpy as np

from runner import random
from runner.errors import ConfigError
from runner.exact.primitives import Primitives, Tensor
from runner.exact.reference import NumPy
from runner.exact.rules import product_bits

_K = 1024
_PADS = ((1, 1), (1, 1))


def inputs() -> list[np.ndarray]:
    """Integers at the edge of the budget, as matrices and images; 24-bit values of all sizes;
    positive ones."""
    limit = 2.0 ** product_bits(_K)
    a, b, images = (
        np.rint((2 * random.uniform(shape, 0, f"self_test/{i}") - 1) * limit)
        for i, shape in enumerate(((8, _K), (_K, 8), (2, 5, 5, 4)))
    )
    spread = 2 * random.uniform((512,), 0, "self_test/3") - 1
    sizes = np.rint(250 * random.uniform((512,), 0, "self_test/4") - 150)
    values = np.concatenate(
        [spread * 2.0**sizes, [0.0, -0.0, 2.0**-126, -(2.0**-126) * (1 - 2.0**-30), 1 + 2.0**-24]]
    )
    return [a, b, images, values, random.uniform(values.shape, 0, "self_test/5") + 2.0**-20]


def outcome(
    o: Primitives, a: Tensor, b: Tensor, images: Tensor, values: Tensor, positive: Tensor
) -> list[Tensor]:
    """Compute what is compared, in the order of `_WHAT`."""
    columns = o.patches(images, 3, 1, _PADS)
    return [
        o.matmul(a, b),
        o.matmul(o.transpose(columns), columns),
        o.sum(a, (0, 1)),
        o.r(values),
        o.grid(values, 20)[0],
        o.r(o.sqrt(o.r(positive))),
        o.r(o.r(values) / o.r(positive)),
    ]


_WHAT = ("products", "convolutions", "sums", "roundings", "grids", "roots", "quotients")


def expected() -> list[np.ndarray]:
    """Compute the same in NumPy, with products and sums in int64."""
    given = inputs()
    found = outcome(NumPy(), *given)
    a, b, columns = (
        x.astype(np.int64) for x in (given[0], given[1], NumPy().patches(given[2], 3, 1, _PADS))
    )
    return [a @ b, columns.T @ columns, a.sum(), *found[3:]]


def check(device: str, run: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]) -> None:
    """`run` gives `outcome` of these inputs on the device, as arrays."""
    for what, found, right in zip(_WHAT, run(inputs()), expected(), strict=True):
        same = np.array_equal(found, right) and np.array_equal(np.signbit(found), np.signbit(right))
        if not (
            same
            or (
                what in ("products", "convolutions", "sums", "grids")
                and np.array_equal(found, right)
            )
        ):
            raise ConfigError(
                f"trainer.precision=exact needs IEEE 754 float64 arithmetic; on "
                f"device={device} {what} are different"
            )
