"""The claim: loss=contrastive is equation 2 of Khosla et al. (2020) over the rows of a batch."""

import math
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from torch import nn

import runner
from backends.keras import losses as of_keras
from backends.lightning import losses as of_torch
from runner.components.losses import Contrastive, values
from tests.parity.test_parity import assert_parity

LOSS = Contrastive(name="contrastive", features=3, temperature=0.2)


def by_hand(z: np.ndarray, y: np.ndarray, temperature: float) -> list[float]:
    """The equation in sums over numbers; 0 for a row without another one of its class."""
    cosines = [[float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in z] for a in z]
    found = []
    for i, row in enumerate(cosines):
        others = [a for a in range(len(z)) if a != i]
        total = sum(math.exp(row[a] / temperature) for a in others)
        terms = [math.log(math.exp(row[p] / temperature) / total) for p in others if y[p] == y[i]]
        found.append(-sum(terms) / max(len(terms), 1))
    return found


def test_the_loss_is_the_equation_on_all_sides() -> None:
    """1e-11: eps is 1e-12 beside squares near 1. Rows 0 and 6 are alone with their class."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(9, 3)), np.array([3, 1, 1, 2, 1, 2, 0, 2, 1])
    expected = by_hand(z, y, 0.2)
    assert expected[0] == expected[6] == 0
    np.testing.assert_allclose(LOSS.rows(z, y), expected, rtol=1e-11)
    np.testing.assert_allclose(
        of_torch.build(LOSS)(torch.tensor(z), torch.tensor(y)), np.mean(expected), rtol=1e-11
    )
    np.testing.assert_allclose(
        of_keras.build(LOSS)(keras.ops.array(z, "float64"), keras.ops.array(y)),
        np.mean(expected), rtol=1e-11,
    )  # fmt: skip
    in_batches = by_hand(z[:4], y[:4], 0.2) + by_hand(z[4:8], y[4:8], 0.2) + [0]
    np.testing.assert_allclose(values(LOSS, z, y, 4), in_batches, rtol=1e-11)


def test_a_batch_of_one_row_has_no_loss_and_no_gradient() -> None:
    z = torch.ones(1, 3, requires_grad=True)
    loss = of_torch.build(LOSS)(z, torch.tensor([2]))
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert z.grad.eq(0).all()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x)


def test_the_validation_loss_is_that_of_batches_in_order(tmp_path: Path) -> None:
    """In float64; 1e-11 as above. The last batch has 4 of 20 rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4))
    y = (x[:, 0] > 0) + 2 * (x[:, 1] > 0)
    run = runner.train(
        "loss=contrastive loss.features=3 trainer.batch_size=8 trainer.max_epochs=2 device=cpu "
        f"trainer.precision=float64 output.root={tmp_path}",
        model=Net, data={"train": (x[:60], y[:60]), "val": (x[60:], y[60:])}, quiet=True,
    )  # fmt: skip
    z, expected = np.asarray(run.predict(x[60:])), []
    for i in range(0, 20, 8):
        expected += by_hand(z[i : i + 8], y[60 + i : 68 + i], 0.1)
    assert run.metrics["val/loss"][-1] == pytest.approx(np.mean(expected), rel=1e-11)
    assert list(run.metrics) == ["epoch", "step", "train/loss", "val/loss", "seconds"]


@pytest.mark.slow
def test_parity_with_weights_of_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(200, 5)), rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    np.savez(tmp_path / "rows.npz", x=x, y=y, w=w)
    data = ["data=npz", f"data.path={tmp_path / 'rows.npz'}", "data.weight=w", "loss=contrastive"]
    assert_parity([*data, "trainer.precision=float64", "trainer.max_steps=300"])
