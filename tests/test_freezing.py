"""Weights with lr_factor 0: no gradient is computed for them, on any backend."""

from pathlib import Path

import numpy as np
import pytest

from runner.run.run_folder import read_json
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but
from tests.training import first, prepare, train

ROWS = "device=cpu"
FROZEN = "optimizer.groups=[{match: dense_0, lr_factor: 0}]"
BOTH = pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
EXACT = "trainer.precision=exact"
# backend, precision
ENGINES = [
    ("lightning", "float32"),
    ("lightning", "exact"),
    ("witness", "exact"),
    pytest.param("keras", "float32", marks=pytest.mark.slow),
    pytest.param("keras", "exact", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("backend", "precision"), ENGINES)
def test_frozen_weights_and_their_slots_keep_their_values(backend: str, precision: str) -> None:
    """Also those of adamax, where an update without a gradient would change the slot."""
    overrides = [
        *(ROWS, FROZEN, "optimizer=adamax", "optimizer.weight_decay=0.1", "trainer.max_steps=3"),
        f"trainer.precision={precision}",
    ]
    start, state = first(prepare(overrides)), train(backend, overrides).state
    for name, value in start.weights.items():
        assert np.array_equal(state.weights[name], value) == name.startswith("dense_0"), name
        for slot, values in start.slots.items():
            same = np.array_equal(state.slots[slot][name], values[name])
            assert same == name.startswith("dense_0"), (slot, name)


@pytest.mark.parametrize(("backend", "precision"), ENGINES)
def test_the_clipped_norm_is_that_of_the_trained_weights(backend: str, precision: str) -> None:
    """One update of SGD at rate 1 with the whole data as a batch moves the trained weights by the
    clipped gradient, so the norm of their step is c. 1e-5: float32."""
    overrides = [
        *(ROWS, FROZEN, "optimizer=sgd", "optimizer.lr=1.0", "trainer.max_steps=1"),
        *("trainer.gradient_clip_norm=0.01", f"trainer.precision={precision}"),
    ]
    start, state = first(prepare(overrides)), train(backend, overrides).state
    steps = [
        state.weights[name].astype(np.float64) - value for name, value in start.weights.items()
    ]
    norm = np.sqrt(sum(float((step * step).sum()) for step in steps))
    assert norm == pytest.approx(0.01, rel=1e-5)


BROKEN_BACKWARD = {
    "lightning": """
import torch
from torch import nn


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("a gradient of the backbone was computed")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(64, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(torch.relu(NoBackward.apply(self.backbone(x))))
""",
    "keras": """
import keras
import tensorflow as tf


@tf.custom_gradient
def no_backward(x):
    def backward(g):
        raise RuntimeError("a gradient of the backbone was computed")

    return tf.identity(x), backward


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.backbone = keras.layers.Dense(16, name="backbone")
        self.head = keras.layers.Dense(10, name="head")

    def call(self, x):
        return self.head(keras.layers.ReLU()(no_backward(self.backbone(x))))
""",
}


@BOTH
def test_the_backward_pass_stops_before_a_frozen_backbone(tmp_path: Path, backend: str) -> None:
    """Its backward pass raises, so a run with a trained backbone fails."""
    (tmp_path / "mine.py").write_text(BROKEN_BACKWARD[backend])
    command = ("model=custom", "model._target_=mine.Net", "trusted_modules=[mine]", ROWS)
    command = (*command, f"backend={backend}", "trainer.max_steps=3")
    groups = "optimizer.groups=[{match: '*backbone*', lr_factor: 0}]"
    trained, frozen = forked(tmp_path, command, (*command, groups))
    assert trained.status == 1
    result = read_json(tmp_path / trained.folder / "result.json")
    assert "a gradient of the backbone was computed" in result["error"]
    assert (frozen.status, frozen.err) == (0, "")
