"""Clipped gradients on both backends and in exact mode. tests/contract.py has what one update
does."""

import pytest

from tests.exact.test_same_bits import assert_all_the_same
from tests.parity.test_parity import assert_parity
from tests.rows import slow_but

CLIPPED = {
    "value": ["trainer.gradient_clip_value=1e-3"],
}
COMMON = ["model=linear", "trainer.accumulate_grad_batches=3", "schedule=cosine"]


@pytest.mark.parametrize("name", slow_but(CLIPPED, "value"))
def test_the_backends_agree(name: str) -> None:
    assert_parity(["trainer.precision=float64", "trainer.max_steps=40", *COMMON, *CLIPPED[name]])


@pytest.mark.parametrize("name", slow_but(CLIPPED, "value"))
def test_exact_mode_has_the_same_bits_everywhere(name: str) -> None:
    assert_all_the_same(["trainer.max_steps=8", *COMMON, *CLIPPED[name]])
