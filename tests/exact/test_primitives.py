"""The claim: on hostile values every implementation of the primitives, and every layer forward and
backward over them, gives the bits of the NumPy witness, whose errors test_rules.py bounds. There is
no tolerance but where a bound is stated."""

from collections.abc import Sequence
from functools import cache
from math import fsum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from runner.exact import functions, rules
from runner.exact.layers import Pass
from runner.exact.losses import FORMS as LOSSES
from runner.exact.network import Layout, backward, forward
from runner.exact.primitives import Place, Primitives, Tensor
from tests.exact.common import BASE, bits
from tests.exact.ways import NUMPY, WAYS, WITH_WITNESS, Function, numpy
from tests.parity.test_parity import LAYERS
from tests.rows import slow_but
from tests.training import prepare

# TensorFlow compiles each in seconds
QUICK = slow_but(WAYS, "torch")

SHAPE = (6, 5, 4)
# ties of the rounding to 24 bits, both zeros, the edge of what is flushed, subnormals of float32
# and of float64
EDGES = [
    0.0, -0.0, 1.0, -1.0, 1 + 2.0**-24, 1 + 3 * 2.0**-24, -1 - 2.0**-24, 2.0**-126, -(2.0**-126),
    2.0**-126 * (1 - 2.0**-30),
    2.0**-126 * (1 + 2.0**-24), -(2.0**-126) * (1 + 2.0**-23), 2.0**-126 * (1 - 2.0**-24),
    -(2.0**-126) * (1 - 2.0**-25),
    2.0**-140, -(2.0**-149), 5e-324, 0.5, 31.0, -31.0, 2.0**-4, 7.999, 88.0, 2.0**100,
]  # fmt: skip
ANY = st.one_of(st.sampled_from(EDGES), st.floats(-(2.0**100), 2.0**100, allow_subnormal=True))
MODERATE = st.one_of(
    st.sampled_from([edge for edge in EDGES if abs(edge) < 2**12]),
    st.floats(-(2.0**12), 2.0**12, width=32),
)
hostile = arrays(np.float64, SHAPE, elements=ANY)
quickly = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def assert_as_the_witness(way: str, function: Any, *values: np.ndarray) -> None:
    expected, found = numpy(function, *values), WAYS[way](function, *values)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        a = np.broadcast_to(a, b.shape)
        # a zero there may have a sign: it is only ever multiplied and summed, and R takes it off
        if function is grids:
            a, b = a + 0.0, b + 0.0
        np.testing.assert_array_equal(bits(a), bits(b), err_msg=f"output {i}")


# --- roundings, grids, and what works element by element


def roundings(o: Primitives, x: Tensor) -> Sequence[Tensor]:
    return [o.r(x), o.rint(o.r(x))]


def grids(o: Primitives, x: Tensor) -> Sequence[Tensor]:
    """Of both kinds: integers and their unit."""
    found = []
    for num_bits in (16, 20, 24, 32):
        for per_row in (False, True):
            q, unit = o.grid(o.r(x), num_bits, per_row)
            found += [q, unit]
    return found


def arithmetic(o: Primitives, x: Tensor, z: Tensor) -> Sequence[Tensor]:
    x, z = o.r(x), o.r(z)
    size = o.maximum(o.abs(z), 2.0**-20)
    whole = o.rint(o.maximum(o.abs(x), 1.0) * 2.0**-78)
    return [
        o.r(o.plus(x, whole, 2.0**-7)),
        o.r(o.sqrt(o.abs(x))),
        o.r(x / size),
        o.r(1.0 / size),
        o.r(x * 2.0**-40 * z * 2.0**-80),
        rules.divide(o, x, 3),
        rules.divide(o, x, 64),
        o.maximum(x, z),
        o.where(x < z, x, 0.0),
        o.gate(z, x),
        o.largest(x),
    ]


def tables(o: Primitives, x: Tensor) -> Sequence[Tensor]:
    x = o.r(x)
    e = functions.exp_negative(o, o.abs(x))
    return [
        e,
        functions.log(o, e + functions.ONE),
        *functions.sigmoid(o, x),
        functions.tanh(o, x),
        *functions.normal(o, x),
    ]


def totals(o: Primitives, x: Tensor) -> Sequence[Tensor]:
    x = o.r(x)
    rows, num = SHAPE[1] * SHAPE[2], x.shape[0] * SHAPE[1] * SHAPE[2]
    return [
        rules.total(o, x, (0, 1, 2), num),
        rules.total(o, x, (1, 2), rows, per_row=True, keep=True),
    ]


@pytest.mark.parametrize("way", QUICK)
@pytest.mark.parametrize("function", [roundings, grids, tables, totals], ids=lambda f: f.__name__)
@quickly
@given(x=hostile)
def test_of_one_tensor(way: str, function: Any, x: np.ndarray) -> None:
    if function is tables:
        x = np.clip(x, -(2.0**60), 2.0**60)  # whose square, in phi, is below 2^128
    assert_as_the_witness(way, function, x)


@pytest.mark.parametrize("way", QUICK)
@quickly
@given(x=hostile, z=hostile)
def test_of_two_tensors(way: str, x: np.ndarray, z: np.ndarray) -> None:
    assert_as_the_witness(way, arithmetic, x, z)


# --- products


def product(o: Primitives, a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return [o.matmul(a, b), o.matmul(o.transpose(b), o.transpose(a))]


def at_the_edge(
    rng: np.random.Generator, num: int, num_bits: int, one_sign: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Integers as large as the grid has; of one sign their sums are as large as they can be."""
    limit = 2**num_bits
    a, b = (
        rng.integers(limit - 3, limit, shape, endpoint=True).astype(float)
        for shape in ((5, num), (num, 3))
    )
    sign = np.ones(num) if one_sign else rng.choice([-1.0, 1.0], num)
    return a * sign, b


@pytest.mark.parametrize("way", WITH_WITNESS)
@pytest.mark.parametrize("num", [1, 2, 3, 64, 1000, 8192])
def test_products_on_the_grid_are_those_of_integers(way: str, num: int) -> None:
    rng = np.random.default_rng(num)
    for one_sign in (True, False):
        assert_products_of_integers(way, *at_the_edge(rng, num, rules.product_bits(num), one_sign))


@pytest.mark.parametrize("way", WITH_WITNESS)
def test_without_the_budget_they_are_not(way: str) -> None:
    """The negative control: with three bits more the same claim fails, in every implementation."""
    beyond = at_the_edge(
        np.random.default_rng(0), 8192, rules.product_bits(8192) + 3, one_sign=True
    )
    with pytest.raises(AssertionError):
        assert_products_of_integers(way, *beyond)


def assert_products_of_integers(way: str, a: np.ndarray, b: np.ndarray) -> None:
    right = a.astype(np.int64) @ b.astype(np.int64)
    first, second = WITH_WITNESS[way](product, a, b)
    np.testing.assert_array_equal(first, right)
    np.testing.assert_array_equal(second.T, right)


# --- layers


def _of(overrides: Sequence[str]) -> Any:
    """Forward and backward of a model's layers, as a function of the weights and buffers, the input
    and the gradient."""
    network = prepare([*BASE, *overrides]).network
    layout, variables = Layout.of(network), network.variables()
    buffers = [name for name, variable in variables.items() if not variable.trainable]

    def both(o: Primitives, weights: Tensor, x: Tensor, g: Tensor) -> Sequence[Tensor]:
        ones = {name: o.constant(np.ones(variables[name].shape)) for name in buffers}
        p = Pass(o, {**layout.views(o, o.r(weights)), **ones}, 8, Place(seed=0, step=3))
        y, tape = forward(p, network.nodes, o.r(x), trained=True)
        found: dict[str, list[Tensor]] = {}
        dx = backward(p, tape, o.r(g), found)
        return [
            y,
            dx,
            layout.total(o, found) if found else y,
            *(p.buffers[name] for name in buffers),
        ]

    return both, layout.size, (8, *network.input_shape), (8, *network.output_shape)


# these take real numbers
_OF_NUMBERS = [name for name, overrides in LAYERS.items() if "data=text" not in overrides]
_STANDING = ("activations", "batch_norm", "layer_norm", "conv2d", "pools", "attention")
_QUICK = {(name, "torch") for name in _STANDING}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if (name, way) in _QUICK else mark)
        for name in _OF_NUMBERS
        for way in WAYS
        # the graphs have the primitives of TensorFlow's eager kernels, compiled in seconds each;
        # test_same_bits trains each layer under XLA
        for mark in [pytest.mark.long if way == "xla" else pytest.mark.slow]
        if name in _STANDING or way in ("torch", "tensorflow")
    ],
)
def test_every_layer_forward_and_backward(name: str, way: str) -> None:
    """Numbers from 2^-149 to 2^12 in one tensor, equal ones, subnormals, zeros of both signs, each
    drawn anew four times."""
    function, size, shape_in, shape_out = _of(LAYERS[name])

    @settings(quickly, max_examples=4)
    @given(st.data())
    def check(data: Any) -> None:
        few = arrays(np.float64, (16,), elements=MODERATE)
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        given = []
        for num in (size, int(np.prod(shape_in)), int(np.prod(shape_out))):
            drawn, noise = data.draw(few), rng.normal(size=num) * 2.0 ** rng.integers(-20, 4, num)
            given.append(np.where(rng.random(num) < 0.5, noise, rng.choice(drawn, num)))
        assert_as_the_witness(
            way, function, given[0], given[1].reshape(shape_in), given[2].reshape(shape_out)
        )

    check()


@cache  # so that each is traced once
def _both_of(name: str) -> Function:
    loss = SimpleNamespace(name=name, label_smoothing=0.1, delta=1.0, alpha=0.25, gamma=2.0)
    return lambda o, z, y: [form(o, loss, o.r(z), y) for form in LOSSES[name]]


@pytest.mark.parametrize("way", QUICK)
@pytest.mark.parametrize("name", LOSSES)
@quickly
@given(z=arrays(np.float64, (6, 4), elements=MODERATE), shift=st.integers(0, 3))
def test_every_loss_and_its_derivative(name: str, way: str, z: np.ndarray, shift: int) -> None:
    assert_as_the_witness(way, _both_of(name), z, np.eye(4)[(np.arange(6) + shift) % 4])


@quickly
@given(
    x=arrays(np.float64, (3, 64), elements=MODERATE),
    w=arrays(np.float64, (64, 2), elements=MODERATE),
)
def test_a_product_is_within_its_error(x: np.ndarray, w: np.ndarray) -> None:
    """Against the exact sum of exact products. Each operand is off by half a unit of its grid, u =
    2^(1 - b) times the largest one's power of two, so that a term is off by (|x| uw + |w| ux + ux
    uw) / 2 at most; R adds 2^-24 of the result."""
    x, w = rules.r(x), rules.r(w)
    b = rules.product_bits(64)
    (qx, ux), (qw, uw) = NUMPY.grid(x, b), NUMPY.grid(w, b)
    found = rules.r(NUMPY.matmul(qx, qw) * (ux * uw))
    for i in range(3):
        for j in range(2):
            right = fsum(x[i] * w[:, j])  # the products have 48 bits
            slack = (
                fsum(np.abs(x[i]) * float(uw) + np.abs(w[:, j]) * float(ux) + float(ux * uw)) / 2
            )
            assert abs(found[i, j] - right) <= slack + 2.0**-23 * abs(right) + rules.TINY
