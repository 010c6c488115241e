"""The exact forms of losses against torch's functions and their gradients in float64."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runner.exact.losses import FORMS
from runner.exact.rules import r
from tests.exact.ways import NUMPY


def focal(gamma: float) -> Callable[[Tensor, Tensor], Tensor]:
    def values(z: Tensor, y: Tensor) -> Tensor:
        log_p = (F.log_softmax(z, 1) * y).sum(1)
        return -0.25 * (1 - log_p.exp()) ** gamma * log_p

    return values


def cosine(z: Tensor, y: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(z, y)


def soft_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


@pytest.mark.parametrize(
    ("name", "gamma", "function"),
    [
        *(("focal", g, focal(g)) for g in (0, 1, 3)),
        ("cosine_similarity", 0, cosine),
        ("soft_cross_entropy", 0, soft_cross_entropy),
    ],
)
def test_values_and_derivatives_are_torch_s(
    name: str, gamma: float, function: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """2e-6: a dozen roundings to 24 bits, 6e-8 each, and exp and log to 2^-23 and 2^-26."""
    rng = np.random.default_rng(0)
    z = r(3 * rng.normal(size=(40, 5)))
    y = np.eye(5)[rng.integers(0, 5, 40)] if name == "focal" else r(rng.normal(size=(40, 5)))
    if name == "soft_cross_entropy":
        y = r(rng.dirichlet(np.ones(5), 40))
    loss = SimpleNamespace(name=name, alpha=0.25, gamma=gamma)
    leaf = torch.tensor(z, requires_grad=True)
    expected = function(leaf, torch.tensor(y))
    expected.sum().backward()
    derivative, value = (form(NUMPY, loss, z, y) for form in FORMS[name])
    np.testing.assert_allclose(value[:, 0], expected.detach().numpy(), rtol=2e-6, atol=2e-6)
    assert leaf.grad is not None
    np.testing.assert_allclose(derivative, leaf.grad.numpy(), rtol=2e-6, atol=2e-6)
