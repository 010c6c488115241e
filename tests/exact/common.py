"""Parts that the tests of exact mode share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.training import Trained

BASE = ["trainer.precision=exact", "device=cpu"]


def binary_cross_entropy(folder: Path) -> list[str]:
    """On two classes of drawn rows."""
    x = np.random.default_rng(0).normal(size=(200, 5))
    np.savez(folder / "data.npz", x=x, y=(x[:, 0] + x[:, 1] > 0).astype(int))
    return [f"data.path={folder / 'data.npz'}", "data=npz", "loss=binary_cross_entropy"]


def cosine_similarity(folder: Path) -> list[str]:
    """Return the overrides of the loss on three targets of drawn rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    np.savez(folder / "data.npz", x=x, y=x @ rng.normal(size=(5, 3)))
    path = f"data.path={folder / 'data.npz'}"
    return [path, "data=npz", "data.task=regression", "loss=cosine_similarity"]


def bits(values: np.ndarray) -> np.ndarray:
    """The integers behind floats, so that zeros of both signs differ."""
    return np.ascontiguousarray(values).view({4: np.int32, 8: np.int64}[values.dtype.itemsize])


def assert_same_bits(a: Trained, b: Trained) -> None:
    for name in ("losses", "rates", "outputs"):
        found, expected = getattr(a, name), getattr(b, name)
        different = np.flatnonzero((bits(found) != bits(expected)).reshape(len(found), -1).any(1))
        assert not len(different), f"{name} differ from {different[0]} on"
    assert_same_tensors(a.state.weights, b.state.weights)
    assert_same_tensors(a.state.buffers, b.state.buffers)
    assert a.state.slots.keys() == b.state.slots.keys()
    for slot, values in a.state.slots.items():
        assert_same_tensors(values, b.state.slots[slot])


def assert_same_tensors(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(bits(value), bits(b[name]), err_msg=name)
