"""The claim of tests/parity/test_parity.py for branches, and for a weight of two layers."""

import pytest

from tests.parity.test_parity import TEXT, assert_parity, stack
from tests.rows import slow_but

BRANCHES = {
    # the output has the matrix of the embedding, which is one weight with two gradients
    "tied": [
        *TEXT,
        "model.layers=[{layer: embedding, features: 12},{layer: position_embedding},"
        "{layer: dense, units: 12},{layer: activation, function: tanh},"
        "{layer: dense, units: outputs, tie: embedding_0}]",
        "trainer.accumulate_grad_batches=2",
    ],
    # of an image, by all three joins; a batch norm and a dropout in branches
    "parallel": [
        stack(
            "{layer: reshape, shape: [8, 8, 1]},{layer: parallel, branches: [[{layer: conv2d, "
            "filters: 3, kernel_size: 1}],[{layer: conv2d, filters: 2, kernel_size: 3, bias: "
            "false},{layer: batch_norm},{layer: dropout, rate: 0.2}],[]]},{layer: flatten},"
            "{layer: parallel, join: multiply, branches: [[{layer: dense, units: 6}],[{layer: "
            "dense, units: 6},{layer: activation, function: tanh}],[{layer: dense, units: 6}]]},"
            "{layer: parallel, join: add, branches: [[],[{layer: dense, units: 6},{layer: "
            "dropout, rate: 0.2}],[{layer: activation, function: relu}]]}"
        ),
        "trainer.accumulate_grad_batches=2",
    ],
    # of an image and of a row
    "slice": [
        stack(
            "{layer: dense, units: 48},{layer: reshape, shape: [4, 4, 3]},{layer: parallel, "
            "branches: [[{layer: slice, stop: 2},{layer: conv2d, filters: 2, kernel_size: 2}],"
            "[{layer: slice, start: 1, stop: 2},{layer: activation, function: tanh}]]},{layer: "
            "flatten},{layer: slice, start: 5}"
        )
    ],
    "columns": [
        "data=diabetes",
        stack(
            "{layer: parallel, branches: [[{layer: columns, names: [s5, bmi]},{layer: dense, "
            "units: 3}],[{layer: columns, names: ['s*', age]},{layer: dense, units: 4},{layer: "
            "activation, function: tanh}]]}"
        ),
    ],
    "masked_parallel": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: masking},{layer: parallel, branches: "
            "[[{layer: conv1d, filters: 3, kernel_size: 3}],[],[{layer: gru, units: 5, "
            "return_sequences: true}]]},{layer: parallel, branches: [[{layer: "
            "global_average_pool}],[{layer: global_max_pool}],[{layer: lstm, units: 4}]]}"
        )
    ],
}


@pytest.mark.parametrize("name", slow_but(BRANCHES, "parallel"))
def test_branches_agree(name: str) -> None:
    assert_parity(["trainer.precision=float64", "trainer.max_steps=30", *BRANCHES[name]])
