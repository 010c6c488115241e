"""What an optimizer's definition says without a framework: memory, scalars, what decays."""

from typing import Any

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.components.layers import network
from runner.components.optimizers import Group, decaying, groups
from runner.config.schema import parse
from runner.spec import first_state
from tests.training import prepare

ALL = ("dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias")  # of the default model
KERNELS, BIASES = ALL[::2], ALL[1::2]


def optimizer(line: str) -> Any:
    return parse(compose(line.split())).optimizer


@pytest.mark.parametrize(
    ("line", "slots"),
    [
        ("optimizer=sgd", {}),
        ("optimizer=sgd optimizer.momentum=0.9", {"momentum": 0.0}),
        ("optimizer=adam", {"first_moment": 0.0, "second_moment": 0.0}),
        (
            "optimizer=adam optimizer.amsgrad=true",
            {"first_moment": 0.0, "second_moment": 0.0, "max_second_moment": 0.0},
        ),
        ("optimizer=adamw", {"first_moment": 0.0, "second_moment": 0.0}),
        ("optimizer=adamax", {"first_moment": 0.0, "infinity_norm": 0.0}),
        ("optimizer=nadam", {"first_moment": 0.0, "second_moment": 0.0}),
        ("optimizer=rmsprop", {"square_average": 0.0}),
        (
            "optimizer=rmsprop optimizer.momentum=0.9 optimizer.centered=true",
            {"square_average": 0.0, "gradient_average": 0.0, "momentum": 0.0},
        ),
        ("optimizer=adagrad optimizer.initial_accumulator=0.1", {"accumulator": 0.1}),
        ("optimizer=adadelta", {"square_average": 0.0, "delta_average": 0.0}),
        ("optimizer=lion", {"first_moment": 0.0}),
    ],
)
def test_an_optimizer_has_the_memory_that_its_update_needs(
    line: str, slots: dict[str, float]
) -> None:
    made = optimizer(line)
    assert made.slots() == slots
    weights = {"dense_0/kernel": np.ones((2, 3), dtype=np.float32)}
    first = made.initial_slots(weights)
    assert first.keys() == slots.keys()
    for slot, value in slots.items():
        assert first[slot]["dense_0/kernel"].dtype == np.float32
        assert (first[slot]["dense_0/kernel"] == np.full((2, 3), value, dtype=np.float32)).all()


def test_the_momentum_product_of_nadam_by_hand() -> None:
    """mu_t = beta1 (1 - 0.96^(t psi) / 2), psi = 4e-3, beta1 = 0.9; the product over t = 1, 2,
    3."""
    made = optimizer("optimizer=nadam")
    product = 1.0
    assert made.scalars(0) == {"mu_product": 1.0}
    for t in (1, 2, 3):
        product *= 0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3))
        # Three factors of a few float64 operations.
        assert made.scalars(t)["mu_product"] == pytest.approx(product, rel=1e-15)
    # Without decay every factor is beta1 / 2: 0.45 ** 10.
    undecayed = optimizer("optimizer=nadam optimizer.momentum_decay=0")
    assert undecayed.scalars(10)["mu_product"] == pytest.approx(0.45**10, rel=1e-14)


def test_weight_decay_touches_all_weights_or_the_kernels_alone() -> None:
    layers = parse(compose(["model=cnn"])).model.layers
    net = network(layers, (8, 8, 1), 10)
    trained = {
        "conv2d_0/kernel", "batch_norm_0/scale", "batch_norm_0/offset",
        "conv2d_1/kernel", "batch_norm_1/scale", "batch_norm_1/offset",
        "dense_0/kernel", "dense_0/bias",
    }  # fmt: skip
    assert set(decaying(optimizer("optimizer=adamw"), net)) == trained
    spared = decaying(optimizer("optimizer=adamw optimizer.decay_exclude=bias_and_norm"), net)
    assert set(spared) == {"conv2d_0/kernel", "conv2d_1/kernel", "dense_0/kernel"}


def test_the_first_state_separates_weights_from_buffers_and_gives_slots_to_weights_only() -> None:
    config = parse(compose(["model=cnn"]))
    state = first_state(
        network(config.model.layers, (8, 8, 1), 10), config.optimizer, np.dtype(np.float32), seed=0
    )
    assert state.step == 0
    assert set(state.buffers) == {
        f"batch_norm_{i}/{name}" for i in (0, 1) for name in ("mean", "variance")
    }
    assert all(slot.keys() == state.weights.keys() for slot in state.slots.values())
    assert {value.dtype for value in (*state.weights.values(), *state.buffers.values())} == {
        np.dtype(np.float32)
    }


def test_one_cycle_s_inverse_momentum_is_torch_s() -> None:
    """experiment=super_convergence over 800 updates against torch's own OneCycleLR, stepped; 1e-12:
    cosines of float64."""
    import torch

    prepared = prepare(["experiment=super_convergence"])
    stock = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2, momentum=0.85)
    cycle = torch.optim.lr_scheduler.OneCycleLR(stock, max_lr=0.2, total_steps=800)
    applied = []
    for _ in range(800):
        applied.append([stock.param_groups[0][key] for key in ("lr", "momentum")])
        stock.step()
        if cycle.last_epoch < 799:
            cycle.step()
    rates, momenta = np.array(applied).T
    np.testing.assert_allclose(prepared.rates(), rates, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(prepared.hyperparameters["momentum"], momenta, rtol=1e-12)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["optimizer=adam"], [Group(ALL)]),
        (
            ["optimizer=adamw", "optimizer.decay_exclude=bias_and_norm"],
            [Group(KERNELS), Group(BIASES, decay_factor=0.0)],
        ),
        (
            ["optimizer.groups=[{match: dense_0, lr_factor: 0.1}]"],
            [Group(ALL[2:]), Group(ALL[:2], 0.1)],
        ),
        (
            [
                (
                    "optimizer.groups=[{match: '*/bias', weight_decay_factor: 2},{match: "
                    "dense_1, lr_factor: 0.5}]"
                )
            ],
            [Group(ALL[:1]), Group(BIASES, 1.0, 2.0), Group(ALL[2:3], 0.5)],
        ),
        # two layers own weights: the first one's rate is d, the last one's 1
        (["optimizer.layer_decay=0.75"], [Group(ALL[2:]), Group(ALL[:2], 0.75)]),
        (
            ["optimizer.layer_decay=0.75", "optimizer.groups=[{match: '*', lr_factor: 2}]"],
            [Group(()), Group(ALL[:2], 1.5), Group(ALL[2:], 2.0)],
        ),
    ],
)
def test_weights_of_a_common_rate_and_decay_are_a_group(
    said: list[str], expected: list[Group]
) -> None:
    assert list(groups(prepare(said).config.optimizer, prepare(said).network)) == expected


def test_a_residual_is_one_layer_to_layer_decay() -> None:
    """resnet has layers with weights at conv, norm, residual, residual, dense: L = 5."""
    made = prepare(["model=resnet", "data.images=true", "optimizer.layer_decay=0.5"]).groups
    factors = {name: group.lr_factor for group in made for name in group.names}
    assert factors["conv2d_0/kernel"] == 0.5**4
    assert factors["batch_norm_0/scale"] == 0.5**3
    assert {factors[f"conv2d_{i}/kernel"] for i in (1, 2)} == {0.5**2}
    assert {factors[f"conv2d_{i}/kernel"] for i in (3, 4, 5)} == {0.5}
    assert factors["dense_0/kernel"] == 1
