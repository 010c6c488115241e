"""Definitions of optimizers without a framework: memory, scalars, which weights decay."""

import math
import re
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from runner.cli.compose import compose
from runner.components.layers import Layer, Network, network
from runner.components.optimizers import (
    Group,
    Matching,
    Optimizer,
    decaying,
    group_rates,
    groups,
    hyperparameters,
    joined,
)
from runner.config.conf_folder import defaults
from runner.config.schema import parse
from runner.errors import ConfigError
from runner.schedules import Clock, Curve
from runner.schedules.ramps import Array
from runner.spec import first_state, tables
from tests.training import prepare

OPTIMIZER: TypeAdapter[Any] = TypeAdapter(Optimizer)
LAYERS: TypeAdapter[list[Any]] = TypeAdapter(list[Layer])

ALL = ("dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias")  # of the default model
KERNELS, BIASES = ALL[::2], ALL[1::2]


HALF = {"name": "hold", "factor": 0.5}


def optimizer(name: str, **keys: Any) -> Any:
    """The optimizer with the defaults of conf/ where the keys do not say otherwise."""
    return OPTIMIZER.validate_python({**defaults("optimizer", name), **keys})


def dense() -> dict[str, Any]:
    return {"layer": "dense", "units": 4, "bias": True, "tie": None, "init": "zeros"}


def norm() -> dict[str, Any]:
    return {"layer": "batch_norm", "momentum": 0.9, "eps": 1e-3}


def net(*layers: dict[str, Any]) -> Network:
    """A network from four features to four outputs."""
    return network(LAYERS.validate_python(list(layers)), (4,), 4)


class Given(Curve):
    """A schedule of given values."""

    values: list[float]

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        return np.array(self.values)[t]


def moved(name: str, key: str, values: list[float]) -> np.ndarray:
    """The table of a hyperparameter that takes the values."""
    curve = Given.model_construct(name="given", values=values)
    made = optimizer(name).model_copy(update={"schedules": {key: curve}})
    return hyperparameters(made, Clock(len(values), len(values)))[key]


@pytest.mark.parametrize(
    ("weight_decay", "schedules", "expected"),
    [
        (0.0, {}, False),
        (1e-4, {}, True),
        (0.0, {"weight_decay": {"name": "hold", "factor": 1.0}}, True),
        (0.0, {"momentum": {"name": "hold", "factor": 1.0}}, False),
    ],
)
def test_an_optimizer_decays_where_its_decay_is_above_0_or_scheduled(
    weight_decay: float, schedules: dict[str, Any], expected: bool
) -> None:
    made = optimizer("sgd", weight_decay=weight_decay, schedules=schedules)
    assert made.decays is expected


def test_a_pattern_fits_a_weight_s_name_or_its_layer_s() -> None:
    name = "residual_0/dense_1/kernel"
    for match in (name, "residual_0/dense_1", "residual_0/*", "*/kernel", "*"):
        assert Matching(match=match).fits(name), match
    for match in ("kernel", "/", "dense_1", "residual_0", "Residual_0/dense_1"):
        assert not Matching(match=match).fits(name), match
    with pytest.raises(ValidationError, match="at least 1 character"):
        Matching(match="")


def test_a_factor_that_is_not_given_is_1() -> None:
    entry, group = Matching(match="*"), Group(("dense_0/kernel",))
    assert (entry.lr_factor, entry.weight_decay_factor) == (1.0, 1.0)
    assert (group.lr_factor, group.decay_factor) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "keys", "slots"),
    [
        ("sgd", {}, {}),
        ("sgd", {"momentum": 0.9}, {"momentum": 0.0}),
        ("adam", {}, {"first_moment": 0.0, "second_moment": 0.0}),
        (
            "adam",
            {"amsgrad": True},
            {"first_moment": 0.0, "second_moment": 0.0, "max_second_moment": 0.0},
        ),
        ("adamw", {}, {"first_moment": 0.0, "second_moment": 0.0}),
        ("adamax", {}, {"first_moment": 0.0, "infinity_norm": 0.0}),
        ("nadam", {}, {"first_moment": 0.0, "second_moment": 0.0}),
        ("rmsprop", {}, {"square_average": 0.0}),
        (
            "rmsprop",
            {"momentum": 0.9, "centered": True},
            {"square_average": 0.0, "gradient_average": 0.0, "momentum": 0.0},
        ),
        ("adagrad", {"initial_accumulator": 0.1}, {"accumulator": 0.1}),
        ("adadelta", {}, {"square_average": 0.0, "delta_average": 0.0}),
        ("lion", {}, {"first_moment": 0.0}),
    ],
)
def test_an_optimizer_has_the_memory_that_its_update_needs(
    name: str, keys: dict[str, Any], slots: dict[str, float]
) -> None:
    made = optimizer(name, **keys)
    assert made.slots() == slots
    weights = {"dense_0/kernel": np.ones((2, 3), dtype=np.float32)}
    first = made.initial_slots(weights, {})
    assert first.keys() == slots.keys()
    for slot, value in slots.items():
        assert first[slot]["dense_0/kernel"].dtype == np.float32
        assert (first[slot]["dense_0/kernel"] == np.full((2, 3), value, dtype=np.float32)).all()
    assert made.scalars(5).keys() == ({"mu_product"} if name == "nadam" else set())


def test_the_momentum_product_of_nadam_by_hand() -> None:
    """mu_t = beta1 (1 - 0.96^(t psi) / 2), psi = 4e-3, beta1 = 0.9; the product over t = 1, 2,
    3."""
    made = optimizer("nadam")
    product = 1.0
    assert made.scalars(0) == {"mu_product": 1.0}
    for t in (1, 2, 3):
        product *= 0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3))
        # Three factors of a few float64 operations.
        assert made.scalars(t)["mu_product"] == pytest.approx(product, rel=1e-15)
    # Without decay every factor is beta1 / 2: 0.45 ** 10.
    undecayed = optimizer("nadam", momentum_decay=0.0)
    assert undecayed.scalars(10)["mu_product"] == pytest.approx(0.45**10, rel=1e-14)


def test_weight_decay_touches_all_weights_or_the_kernels_alone() -> None:
    made = net(dense(), norm(), dense())
    trained = {
        "dense_0/kernel", "dense_0/bias", "batch_norm_0/scale", "batch_norm_0/offset",
        "dense_1/kernel", "dense_1/bias",
    }  # fmt: skip
    assert set(decaying(optimizer("adamw"), made)) == trained
    spared = decaying(optimizer("adamw", decay_exclude="bias_and_norm"), made)
    assert set(spared) == {"dense_0/kernel", "dense_1/kernel"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [Group(ALL)]),
        (
            {"decay_exclude": "bias_and_norm"},
            [Group(KERNELS), Group(BIASES, decay_factor=0.0)],
        ),
        (
            {"groups": [{"match": "dense_0", "lr_factor": 0.1}]},
            [Group(ALL[2:]), Group(ALL[:2], 0.1)],
        ),
        (
            {
                "groups": [
                    {"match": "*/bias", "weight_decay_factor": 2.0},
                    {"match": "dense_1", "lr_factor": 0.5},
                ]
            },
            [Group(ALL[:1]), Group(BIASES, 1.0, 2.0), Group(ALL[2:3], 0.5)],
        ),
        # two layers own weights: the first one's rate is d, the last one's 1
        ({"layer_decay": 0.75}, [Group(ALL[2:]), Group(ALL[:2], 0.75)]),
        (
            {"layer_decay": 0.75, "groups": [{"match": "*", "lr_factor": 2.0}]},
            [Group(()), Group(ALL[:2], 1.5), Group(ALL[2:], 2.0)],
        ),
        # a weight that rests beside one that is trained
        (
            {"groups": [{"match": "dense_0", "lr_factor": 0.0}]},
            [Group(ALL[2:]), Group(ALL[:2], 0.0)],
        ),
        # weights with a schedule of their own, and with the factors of their layers
        (
            {"layer_decay": 0.75, "groups": [{"match": "*/bias", "schedule": HALF}]},
            [
                Group(ALL[2:3]),
                Group(ALL[:1], 0.75),
                Group(ALL[1:2], 0.75, scheduled_by="*/bias"),
                Group(ALL[3:], scheduled_by="*/bias"),
            ],
        ),
    ],
)
def test_weights_of_a_common_rate_and_decay_are_a_group(
    keys: dict[str, Any], expected: list[Group]
) -> None:
    assert list(groups(optimizer("adamw", **keys), net(dense(), dense()))) == expected


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (Group(ALL), "learning_rate"),
        (Group(ALL, 0.1), "learning_rate*0.1"),
        (Group(ALL, scheduled_by="dense_*"), "learning_rate/dense_*"),
        (Group(ALL, 0.1, 0.0, "adamw", "dense_*"), "learning_rate*0.1/dense_*"),
    ],
)
def test_a_group_s_table_is_named_by_its_factor_and_the_entry_with_its_schedule(
    group: Group, name: str
) -> None:
    assert group.rate == name


def test_small_weights_with_elementwise_updates_are_one_vector() -> None:
    sizes = {"a": 10, "b": 2**16, "c": 2**16 - 1, "d": 1}
    whole = Group(tuple(sizes))
    assert joined(whole, sizes, optimizer("adam").joins) == [["a", "c", "d"], ["b"]]
    assert joined(whole, sizes, optimizer("lamb").joins) == [["a"], ["b"], ["c"], ["d"]]
    plain = Group(("a", "c"), kind="plain")
    assert joined(plain, sizes, optimizer("lamb").joins) == [["a", "c"]]
    assert joined(Group(("a", "c"), lr_factor=0.0), sizes, optimizer("adam").joins) == []


def test_the_rates_of_a_group_are_its_schedule_times_its_factor_rounded_once() -> None:
    """eta0 = 1e-3. Half of it in four updates, and 0.2 of that for `dense_0`: 1e-4 rounded to
    float32, which is not float32(0.2) float32(5e-4)."""
    entry = {"match": "dense_0", "lr_factor": 0.2, "schedule": HALF}
    made = optimizer("sgd", lr=1e-3, groups=[entry])
    split, clock = groups(made, net(dense(), dense())), Clock(4, 2)
    rates = {"": np.full(4, 1e-3), **group_rates(made, clock)}
    found = tables(rates, split, hyperparameters(made, clock), np.dtype(np.float32))
    assert [*found] == ["learning_rate", "learning_rate*0.2/dense_0"]
    assert found["learning_rate"].tolist() == [np.float32(1e-3)] * 4
    assert found["learning_rate*0.2/dense_0"].tolist() == [np.float32(1e-4)] * 4
    assert np.float32(0.2) * np.float32(5e-4) != np.float32(1e-4)


FIT = f"must match a weight of the model ({', '.join(ALL)})"


@pytest.mark.parametrize(
    ("layers", "entries", "expected"),
    [
        (
            2,
            [{"match": "dens_0"}],
            f"optimizer.groups[0].match {FIT}, got dens_0, which matches none; did you mean "
            "dense_0?",
        ),
        (
            2,
            [{"match": "kernel*"}],
            f"optimizer.groups[0].match {FIT}, got kernel*, which matches none; did you mean "
            "*kernel*?",
        ),
        (
            2,
            [{"match": "*"}, {"match": "dense_0"}],
            f"optimizer.groups[1].match {FIT}, got dense_0, but earlier entries match the same "
            "weights",
        ),
        (
            2,
            [{"match": "*", "lr_factor": 0.0}],
            "optimizer.groups must leave at least one weight with lr_factor > 0, got 0 for all",
        ),
        (0, [], "model must have at least one weight to train, got none"),
    ],
)
def test_groups_that_fit_nothing_or_train_nothing_are_refused(
    layers: int, entries: list[dict[str, Any]], expected: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        groups(optimizer("adam", groups=entries), net(*[dense()] * layers))


def test_the_rate_of_a_layer_falls_by_layer_decay_for_each_layer_behind_it() -> None:
    """Five layers with weights, one without, a residual that counts as one: L = 5, and d^4 to 1."""
    residual = {"layer": "residual", "layers": [dense(), norm()], "shortcut": []}
    residual["stochastic_depth"] = 0.0
    flatten = {"layer": "flatten"}
    made = groups(
        optimizer("sgd", layer_decay=0.5), net(dense(), flatten, norm(), residual, dense(), dense())
    )
    factors = {name: group.lr_factor for group in made for name in group.names}
    of_layers = {
        "dense_0": ("kernel", "bias", 0.0625),
        "batch_norm_0": ("scale", "offset", 0.125),
        "dense_1": ("kernel", "bias", 0.25),
        "batch_norm_1": ("scale", "offset", 0.25),
        "dense_2": ("kernel", "bias", 0.5),
        "dense_3": ("kernel", "bias", 1.0),
    }
    assert factors == {
        f"{layer}/{name}": factor for layer, (*names, factor) in of_layers.items() for name in names
    }


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("sgd", "momentum", [0.5, 1e-3, 1 - 1e-9]),
        ("adam", "beta2", [0.9, 0.99]),
        ("sgd", "weight_decay", [0.0, 0.5, 7.0]),
    ],
)
def test_a_scheduled_hyperparameter_takes_its_schedule_s_values(
    name: str, key: str, values: list[float]
) -> None:
    assert moved(name, key, values).tolist() == values


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("momentum", [0.5, 1.0, 0.0], "must stay above 0 and below 1, got 1 at update 1"),
        ("momentum", [0.5, 0.5, 0.0], "must stay above 0 and below 1, got 0 at update 2"),
        ("momentum", [0.5, 1.5], "must stay above 0 and below 1, got 1.5 at update 1"),
        ("momentum", [0.5, -0.5], "must stay above 0 and below 1, got -0.5 at update 1"),
        ("momentum", [0.5, math.nan], "must stay above 0 and below 1, got nan at update 1"),
        ("weight_decay", [0.0, -0.5, -1.0], "must stay finite and >= 0, got -0.5 at update 1"),
        ("weight_decay", [2.0, 0.1, math.inf], "must stay finite and >= 0, got inf at update 2"),
        ("weight_decay", [2.0, math.nan], "must stay finite and >= 0, got nan at update 1"),
    ],
)
def test_a_scheduled_hyperparameter_that_leaves_its_range_is_refused_with_its_first_value_there(
    key: str, values: list[float], expected: str
) -> None:
    with pytest.raises(
        ConfigError, match=f"^{re.escape(f'optimizer.schedules.{key} {expected}')}$"
    ):
        moved("sgd", key, values)


def test_a_hyperparameter_that_no_schedule_moves_is_refused_with_those_that_one_does() -> None:
    expected = (
        "unknown key optimizer.schedules.momentun; optimizer=sgd can schedule: momentum, "
        "weight_decay; did you mean momentum?"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        moved("sgd", "momentun", [0.5])


def test_what_is_wrong_with_a_hyperparameter_s_schedule_is_told_with_its_key() -> None:
    falling = {
        "name": "piecewise", "warmup": "0%", "warmup_shape": "linear", "warmup_edge": "right",
        "boundaries": ["5steps", "2steps"], "factors": [1.0, 1.0, 1.0],
    }  # fmt: skip
    made = optimizer("sgd", momentum=0.9, schedules={"momentum": falling})
    expected = "optimizer.schedules.momentum.boundaries must increase, got [5, 2] steps"
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        hyperparameters(made, Clock(10, 5))


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
