"""Controls of the rules of exact mode: with every sum's axis shuffled the bits are the same, and
where a rule is switched off they are not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from backends.keras.exact import TensorFlow
from backends.lightning.exact import Torch
from runner.errors import RunError
from runner.exact import functions
from runner.exact.reference import NumPy
from tests.exact.common import BASE, assert_same_bits
from tests.exact.test_same_bits import HARD, MODELS
from tests.exact.ways import TENSORFLOW, TORCH, WAYS, numpy
from tests.parity.test_parity import IMAGES, LAYERS
from tests.rows import slow_but
from tests.training import train

SMALL = (
    "model.layers=[{layer: dense, units: 16},{layer: activation, function: gelu},{layer: dense, "
    "units: outputs}]"
)
TAKE: dict[type, Callable[[Any, Any, int], Any]] = {
    NumPy: lambda x, order, axis: np.take(x, order, axis),
    Torch: lambda x, order, axis: torch.index_select(x, axis, torch.from_numpy(order)),
    TensorFlow: lambda x, order, axis: tf.gather(x, order, axis=axis),
}


def shuffle(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Every product and every sum along its axes in an order drawn anew each time; in a graph each
    time it is traced."""
    rng, take, matmul, total = np.random.default_rng(0), TAKE[kind], kind.matmul, kind.sum  # type: ignore[attr-defined]

    def shuffled_matmul(self: Any, a: Any, b: Any) -> Any:
        order = rng.permutation(int(a.shape[-1]))
        return matmul(self, take(a, order, -1), take(b, order, -2))

    def shuffled_sum(self: Any, x: Any, axes: tuple[int, ...], keep: bool = False) -> Any:
        for axis in axes:
            x = take(x, rng.permutation(int(x.shape[axis])), axis)
        return total(self, x, axes, keep)

    monkeypatch.setattr(kind, "matmul", shuffled_matmul)
    monkeypatch.setattr(kind, "sum", shuffled_sum)


RUNS = {
    "mlp": ["model=mlp", *HARD, "trainer.max_steps=40"],
    "cnn": [*MODELS["cnn"], *HARD, "trainer.max_steps=6"],
    "norms": ["model=mlp", (
        "model.layers=[{layer: dense, units: 24},{layer: layer_norm},{layer: dense, units: "
        "outputs}]"
    ),
              "trainer.max_steps=10"],
    "resnet": [*MODELS["resnet"], *HARD, "trainer.max_steps=4"],
    "attention": [*LAYERS["attention"], *HARD, "trainer.max_steps=4"],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "resnet" else ()) for n in RUNS]
)
@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("lightning", Torch),
        ("witness", NumPy),
        pytest.param("keras", TensorFlow, marks=pytest.mark.slow),
    ],
)
def test_training_with_every_axis_shuffled_is_the_same_run(
    monkeypatch: pytest.MonkeyPatch, name: str, backend: str, kind: type
) -> None:
    overrides = [*BASE, *RUNS[name]]
    expected = train("witness", overrides)
    shuffle(monkeypatch, kind)
    assert_same_bits(train(backend, overrides), expected)


# --- negative controls: what a rule is there for shows as soon as it is off


def test_with_sums_in_float32_their_order_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same grid, but products are added in 24 bits, as a framework's own are."""
    monkeypatch.setattr(
        NumPy, "matmul", lambda self, a, b: (a.astype("f4") @ b.astype("f4")).astype("f8")
    )
    overrides = [*BASE, SMALL, "trainer.max_steps=5"]
    ordered = train("witness", overrides)
    shuffle(monkeypatch, NumPy)
    with pytest.raises(AssertionError):
        assert_same_bits(train("witness", overrides), ordered)


def test_with_the_frameworks_own_exp_training_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where the libraries differ in the last place of every third value."""

    def own(o: Any, d: Any) -> Any:
        e = (
            np.exp(-d.astype("f4")).astype("f8")
            if isinstance(o, NumPy)
            else torch.exp(-d.float()).double()
        )
        return o.rint(e * functions.ONE)

    monkeypatch.setattr("runner.exact.functions.exp_negative", own)
    with pytest.raises(AssertionError):
        assert_same_bits(
            *(
                train(name, [*BASE, SMALL, "trainer.max_steps=10"])
                for name in ("lightning", "witness")
            )
        )


def test_without_the_flush_of_subnormals_roundings_part() -> None:
    """TensorFlow flushes them and keeps the sign of what it flushed; torch and NumPy keep them."""
    values = np.array([2.0**-140, -(2.0**-130), 5e-324, 1.0])

    def plain(o: Any, x: Any) -> list[Any]:
        if o is TENSORFLOW:
            return [tf.cast(tf.cast(x, tf.float32), tf.float64)]
        return [x.float().double() if o is TORCH else x.astype("f4").astype("f8")]

    def flushed(o: Any, x: Any) -> list[Any]:
        return [o.r(x)]

    (kept,) = numpy(plain, values)
    np.testing.assert_array_equal(WAYS["torch"](plain, values)[0], kept)
    for way in ("tensorflow", "graph", "xla"):
        (found,) = WAYS[way](plain, values)
        assert not np.array_equal(found, kept)
        np.testing.assert_array_equal(WAYS[way](flushed, values), numpy(flushed, values))
    np.testing.assert_array_equal(numpy(flushed, values)[0], [0.0, 0.0, 0.0, 1.0])


# --- overflow


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the same overflow
@pytest.mark.parametrize(
    "backend", slow_but(["lightning", "keras", "witness"], "lightning", "witness")
)
def test_beyond_the_range_of_float32_a_run_ends_alike(backend: str) -> None:
    with pytest.raises(RunError, match="beyond the range of float32"):
        train(
            backend,
            [
                *BASE,
                "model=cnn",
                IMAGES,
                "optimizer=sgd",
                "optimizer.lr=1e30",
                "trainer.max_steps=4",
            ],
        )
