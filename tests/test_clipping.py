"""Clipped gradients on both backends and in exact mode. tests/contract.py has what one update
does."""

import numpy as np
import pytest

from tests.exact.test_same_bits import assert_all_the_same
from tests.parity.test_parity import assert_parity
from tests.rows import slow_but, slow_rows
from tests.training import first, prepare, train

CLIPPED = {
    "value": ["trainer.gradient_clip_value=1e-3"],
    # the weights of an entry have two rates of decay; one layer is frozen
    "groups": [
        "trainer.gradient_clip_value=1e-3", "optimizer=adamw",
        "optimizer.decay_exclude=bias_and_norm",
        "model.layers=[{layer: dense, units: 8},{layer: dense, units: 8},{layer: activation, "
        "function: tanh},{layer: dense, units: 8},{layer: dense, units: outputs}]",
        "optimizer.groups=[{match: dense_1, gradient_clip_norm: 0.01},{match: dense_2, lr_factor: "
        "0},{match: dense_3/kernel, gradient_clip_norm: 0.1, lr_factor: 0.5}]",
    ],
}  # fmt: skip
COMMON = ["trainer.accumulate_grad_batches=3", "schedule=cosine"]


@pytest.mark.parametrize("name", slow_but(CLIPPED))
def test_the_backends_agree(name: str) -> None:
    assert_parity(["trainer.precision=float64", "trainer.max_steps=30", *COMMON, *CLIPPED[name]])


@pytest.mark.parametrize("name", slow_but(CLIPPED))
def test_exact_mode_has_the_same_bits_everywhere(name: str) -> None:
    assert_all_the_same(["trainer.max_steps=8", *COMMON, *CLIPPED[name]])


@pytest.mark.parametrize(
    ("backend", "precision"),
    slow_rows(
        [("lightning", "float32"), ("keras", "float32"), ("witness", "exact")],
        [("lightning", "float32"), ("witness", "exact")],
    ),
)
def test_each_group_has_its_own_norm(backend: str, precision: str) -> None:
    """One update of SGD at rate 1 moves the weights by the clipped gradient. The norm of each
    entry's weights together is its limit, that of all others the trainer's. 1e-5: float32."""
    overrides = [
        *("optimizer=sgd", "optimizer.lr=1.0", "trainer.max_steps=1", "model=mlp"),
        *("trainer.gradient_clip_norm=0.01", f"trainer.precision={precision}"),
        "optimizer.groups=[{match: dense_0, gradient_clip_norm: 0.02}]",
    ]
    start, state = first(prepare(overrides)), train(backend, overrides).state
    steps = {name: state.weights[name].astype(float) - w for name, w in start.weights.items()}

    def norm(layer: str) -> float:
        squares = [np.sum(step**2) for name, step in steps.items() if name.startswith(layer)]
        return float(np.sqrt(sum(squares)))

    assert norm("dense_0") == pytest.approx(0.02, rel=1e-5)
    assert norm("dense_1") == pytest.approx(0.01, rel=1e-5)
