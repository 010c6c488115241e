"""The optimizers beyond torch's classic ones, against other libraries' and against their papers.

Each is given the same weights, gradients and rates as its oracle, over random hyperparameters, in
float64. Tolerance 1e-12, relative to the largest weight where that is above 1: a few updates of a
few dozen roundings of 1e-16 each. Twenty sets of hyperparameters by default; all 200 on both
backends, those of other packages included, if the packages of oracle_golden.py are installed:

    python -m pytest -m "slow or long" tests/components/test_optimizer_oracles.py \\
        tests/components/test_torch_oracles.py
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from runner import dispatcher
from runner.components.optimizers import BASE_WEIGHTS, TRAINING_WEIGHTS, Group, groups
from runner.data.order import Chunk
from runner.spec import Live, Report, Weights
from tests.components import oracle_golden
from tests.optimizer_steps import drawn, optimizer, steps
from tests.rows import long_but, slow_but
from tests.training import difference, first, prepare, train

TOLERANCE = 1e-12
BACKENDS = ("lightning", "keras")
NUM_STEPS = 5
RATES = [0.01, 0.02, 0.005, 0.0, 0.013]
# of random hyperparameters; an eager update of Keras takes 10 times as long as one of torch
over_sets = pytest.mark.parametrize(
    ("backend", "num_sets"),
    long_but(
        [("lightning", 20), ("lightning", 200), ("keras", 10), ("keras", 200)],
        slow=[("lightning", 200), ("keras", 10)],
        quick=[("lightning", 20)],
    ),
)


def problems(num_sets: int) -> Iterator[tuple[np.random.Generator, Weights, list[Weights]]]:
    """Yield a generator for hyperparameters, the first weights, and the gradients."""
    for seed in range(num_sets):
        weights, *gradients = drawn(seed, 1 + NUM_STEPS)
        yield np.random.default_rng([seed, 1]), weights, [*gradients]


def by_torch(make: Any, weights: Weights, gradients: Sequence[Weights]) -> Weights:
    """Train with an optimizer of torch's kind, each weight in canonical layout; `make` takes the
    parameters by name."""
    import torch

    parameters = {
        name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in weights.items()
    }
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the type of NAdam's product of momenta
    try:
        native = make(parameters)
        for values, rate in zip(gradients, RATES, strict=True):
            for group in native.param_groups:
                group["lr"] = rate
            for name, p in parameters.items():
                p.grad = torch.from_numpy(values[name].copy())
            native.step()
    finally:
        torch.set_default_dtype(default)
    return {name: p.detach().numpy() for name, p in parameters.items()}


def by_keras(make: Any, weights: Weights, gradients: Sequence[Weights]) -> Weights:
    """Train with an optimizer of Keras's kind; `make` takes a learning rate."""
    dispatcher.load("keras")  # which tunes TensorFlow
    import keras
    import tensorflow as tf

    # every scalar of a Keras optimizer is rounded to this type
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        variables = {name: keras.Variable(v, dtype="float64") for name, v in weights.items()}
        native = make(RATES[0])
        native.build([*variables.values()])
        for values, rate in zip(gradients, RATES, strict=True):
            native.learning_rate = rate
            native.apply([tf.constant(values[name]) for name in variables])
        return {name: v.numpy() for name, v in variables.items()}
    finally:
        keras.config.set_floatx(floatx)


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
@pytest.mark.parametrize("name", ["sgd", "adamw", "nadam", "rmsprop", "lion", "ademamix"])
def test_weights_in_one_vector_are_updated_to_the_bits_of_separate_ones(
    backend: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operations of a number are the same in float64, and each is rounded correctly."""
    weights, *gradients = drawn(1, 1 + NUM_STEPS)
    spec = optimizer(name, weight_decay=0.01)
    together = steps(backend, spec, weights, gradients, RATES)
    monkeypatch.setattr("runner.components.optimizers._LARGE", 0)
    separate = steps(backend, spec, weights, gradients, RATES)
    assert difference(together.weights, separate.weights) == 0
    for slot in spec.slots():
        assert difference(together.slots[slot], separate.slots[slot]) == 0


@over_sets
def test_adafactor_is_torch_s(backend: str, num_sets: int) -> None:
    """torch factors the last two axes in memory, here the canonical ones. Its eps1 is a lower bound
    of v, 1e-30 ours: below rounding. Without weight decay, which torch applies after RMS(p)."""
    import torch

    for rng, weights, gradients in problems(num_sets):
        keys = {
            "beta2_decay": -rng.uniform(0.1, 1.0),
            "eps2": 10 ** rng.uniform(-4, 0),
            "clip_threshold": rng.uniform(1.0, 1.5),
        }
        oracle = by_torch(
            lambda named, k=keys: torch.optim.Adafactor(
                named.values(),
                beta2_decay=k["beta2_decay"],
                eps=(1e-30, k["eps2"]),
                d=k["clip_threshold"],
            ),
            weights,
            gradients,
        )
        ours = steps(backend, optimizer("adafactor", **keys), weights, gradients, RATES)
        assert difference(ours.weights, oracle) < TOLERANCE


def test_adafactor_is_keras_s() -> None:
    """1e-7 in place of rounding: Keras rounds its hyperparameters to float32 on their way."""
    import keras

    weights, *gradients = drawn(0, 1 + NUM_STEPS)
    oracle = by_keras(lambda rate: keras.optimizers.Adafactor(rate), weights, gradients)
    ours = steps("keras", optimizer("adafactor"), weights, gradients, RATES)
    assert difference(ours.weights, oracle) < 1e-7


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_adafactor_s_first_step_by_hand(backend: str) -> None:
    """At t' = 1 b is 0: R and C are the means of g^2, and for g = a b^T v is g^2, so that u is the
    gradients' signs with RMS 1; p moves by lr RMS(p). A row without gradients stays."""
    g = np.outer([1.0, -2.0, 0.0], [3.0, 0.5])
    p = np.array([[1.0, -1.0], [2.0, 2.0], [1.0, 1.0]])
    # RMS(p) = sqrt(12 / 6); RMS(u) = sqrt(4 / 6) < 1, so nothing is clipped
    expected = p - 0.1 * 2**0.5 * np.sign(g)
    ours = steps(backend, optimizer("adafactor"), {"k": p}, [{"k": g}], [0.1])
    # 1e-12: eps1 over the smallest square, and a few roundings
    np.testing.assert_allclose(ours.weights["k"], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.slots["row_square_average"]["k"], (g**2).mean(1), atol=1e-15)
    np.testing.assert_allclose(ours.slots["column_square_average"]["k"], (g**2).mean(0), atol=1e-15)


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_adafactor_without_scale_parameter_ignores_the_size_of_the_weights(backend: str) -> None:
    spec = optimizer("adafactor", scale_parameter=False)
    weights, *gradients = drawn(3, 1 + NUM_STEPS)
    large = {name: value * 100 for name, value in weights.items()}
    moved = [
        {name: after.weights[name] - before[name] for name in before}
        for before in (weights, large)
        for after in [steps(backend, spec, before, gradients, RATES)]
    ]
    # 1e-13: a change of a weight of size 100 is rounded to 1e-14
    assert difference(*moved) < 1e-13


def random_keys(rng: np.random.Generator, *names: str) -> dict[str, float]:
    """Draw hyperparameters in the ranges that people use."""
    ranges = {"weight_decay": (0.0, 0.3), "momentum": (0.5, 0.99), "trust_coefficient": (1e-3, 0.1),
              "beta1": (0.5, 0.95), "beta2": (0.9, 0.999), "eps": (1e-8, 1e-3), "rho": (0.8, 0.999),
              "momentum_decay": (1e-3, 0.1), "initial_accumulator": (0.0, 1.0)}  # fmt: skip
    return {name: rng.uniform(*ranges[name]) for name in names}


def lamb_of_the_paper(
    weights: Weights, gradients: Sequence[Weights], beta1: float, beta2: float, eps: float,
    weight_decay: float,
) -> Weights:  # fmt: skip
    """You et al. (2020), algorithm 2, line by line: x, m, v, r, and phi(z) = z."""
    after = {}
    for name, x in weights.items():
        m = v = np.zeros_like(x)
        for t, (values, rate) in enumerate(zip(gradients, RATES, strict=True), 1):
            g = values[name]
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            r = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
            update = r + weight_decay * x
            x = x - rate * np.linalg.norm(x) / np.linalg.norm(update) * update
        after[name] = x
    return after


@over_sets
def test_lamb_is_its_paper_s_algorithm(backend: str, num_sets: int) -> None:
    for rng, weights, gradients in problems(num_sets):
        keys = random_keys(rng, "beta1", "beta2", "eps", "weight_decay")
        ours = steps(backend, optimizer("lamb", **keys), weights, gradients, RATES)
        assert difference(ours.weights, lamb_of_the_paper(weights, gradients, **keys)) < TOLERANCE


def test_lamb_is_keras_s() -> None:
    """1e-7 in place of rounding: Keras rounds its hyperparameters to float32 on their way."""
    import keras

    weights, *gradients = drawn(0, 1 + NUM_STEPS)
    oracle = by_keras(lambda rate: keras.optimizers.Lamb(rate, epsilon=1e-6), weights, gradients)
    ours = steps("keras", optimizer("lamb"), weights, gradients, RATES)
    assert difference(ours.weights, oracle) < 1e-7


def lars_of_the_paper(
    weights: Weights, gradients: Sequence[Weights], momentum: float, trust_coefficient: float,
    weight_decay: float, nesterov: bool,
) -> Weights:  # fmt: skip
    """You et al. (2017), algorithm 1, with SGD's buffer."""
    after = {}
    for name, w in weights.items():
        b = np.zeros_like(w)
        for values, rate in zip(gradients, RATES, strict=True):
            size, slope = np.linalg.norm(w), np.linalg.norm(values[name])
            local = trust_coefficient * size / (slope + weight_decay * size)
            d = local * (values[name] + weight_decay * w)
            b = momentum * b + d
            w = w - rate * (d + momentum * b if nesterov else b)
        after[name] = w
    return after


@over_sets
def test_lars_is_its_paper_s_algorithm(backend: str, num_sets: int) -> None:
    for rng, weights, gradients in problems(num_sets):
        keys = {
            **random_keys(rng, "momentum", "trust_coefficient", "weight_decay"),
            "nesterov": bool(rng.integers(2)),
        }
        ours = steps(backend, optimizer("lars", **keys), weights, gradients, RATES)
        oracle = lars_of_the_paper(weights, gradients, **keys)
        assert difference(ours.weights, oracle) < TOLERANCE


@pytest.mark.parametrize("name", ["lamb", "lars"])
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_step_of_a_layerwise_optimizer_is_in_proportion_to_the_weight(
    backend: str, name: str
) -> None:
    """Weights 100 times as large move 100 times as far; those of the kind "plain" as far as before,
    and so do weights of 0: the ratio is 1."""
    spec, (weights, *gradients) = optimizer(name), drawn(5, 2)
    groups = (Group(("a/kernel", "b/kernel", "c/kernel")), Group(("b/bias",), kind="plain"))
    small, large, none = (
        {
            key: value - before[key]
            for key, value in steps(
                backend, spec, before, gradients, [0.01], groups
            ).weights.items()
        }
        for factor in (1.0, 100.0, 0.0)
        for before in [{key: value * factor for key, value in weights.items()}]
    )
    for key, moved in small.items():
        # 1e-12: differences of weights of size 100
        factor = 1.0 if key == "b/bias" else 100.0
        np.testing.assert_allclose(large[key], factor * moved, rtol=1e-10, atol=1e-12)
    ratios = {key: np.linalg.norm(none[key]) / np.linalg.norm(small[key]) for key in small}
    assert ratios["b/bias"] == pytest.approx(1.0, rel=1e-12)
    assert np.isfinite([*ratios.values()]).all()
    assert all(np.abs(none[key]).max() > 0 for key in small)


def test_adapt_exclude_names_the_weights_of_the_other_kind() -> None:
    from tests.components.test_optimizers import ALL, BIASES, KERNELS, dense, net

    found = groups(optimizer("lars", adapt_exclude="bias_and_norm"), net(dense(), dense()))
    assert list(found) == [Group(KERNELS), Group(BIASES, kind="plain")]
    assert list(groups(optimizer("lamb"), net(dense(), dense()))) == [Group(ALL)]


MATRICES = ("a/kernel", "b/kernel", "c/kernel")
MUON_GROUPS = (Group(MATRICES), Group(("b/bias",), kind="adamw"))


def muon_of_the_post(
    weights: Weights, gradients: Sequence[Weights], momentum: float, nesterov: bool, adjust_lr: str
) -> Weights:
    """Jordan's Newton-Schulz, whose X for the singular values s of d / |d| is U f(s) V^T, with f
    applied 5 times: here by NumPy's singular values instead of products of matrices."""
    after = {}
    for name in MATRICES:
        w, b = weights[name].reshape(-1, weights[name].shape[-1]), 0.0
        num_in, num_out = w.shape
        ratio = {"original": max(1, num_out / num_in) ** 0.5,
                 "match_rms_adamw": 0.2 * max(num_in, num_out) ** 0.5}[adjust_lr]  # fmt: skip
        for values, rate in zip(gradients, RATES, strict=True):
            g = values[name].reshape(w.shape)
            b = momentum * b + g  # Keras's buffer: X does not depend on the factor
            u, s, v = np.linalg.svd(g + momentum * b if nesterov else b, full_matrices=False)
            s = s / np.sqrt((s**2).sum())
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            w = w - rate * ratio * (u * s) @ v
        after[name] = w.reshape(weights[name].shape)
    return after


@over_sets
def test_muon_moves_matrices_by_their_singular_vectors(backend: str, num_sets: int) -> None:
    """1e-11: small singular values, and their rounding, grow 3.4445^5 = 485 times."""
    for rng, weights, gradients in problems(num_sets):
        keys = {
            **random_keys(rng, "momentum"),
            "nesterov": bool(rng.integers(2)),
            "adjust_lr": ("original", "match_rms_adamw")[rng.integers(2)],
        }
        ours = steps(
            backend, optimizer("muon", weight_decay=0.0, **keys), weights, gradients, RATES,
            MUON_GROUPS,
        ).weights  # fmt: skip
        oracle = muon_of_the_post(weights, gradients, **keys)
        assert difference({name: ours[name] for name in MATRICES}, oracle) < 1e-11


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_muon_is_torch_s_but_for_bfloat16(backend: str) -> None:
    """torch iterates in bfloat16, of 8 bits: its update of size lr sqrt(max(1, out / in)) agrees to
    3 %. Weight decay and the scale are the same."""
    import torch

    weights, *gradients = drawn(1, 1 + NUM_STEPS)
    matrices = {name: weights[name].T for name in MATRICES[:2]}  # torch's [out, in]
    oracle = by_torch(
        lambda named: torch.optim.Muon(named.values(), weight_decay=0.1),
        matrices,
        [{name: values[name].T for name in matrices} for values in gradients],
    )
    spec = optimizer("muon", weight_decay=0.1, adjust_lr="original")
    ours = steps(backend, spec, weights, gradients, RATES, MUON_GROUPS).weights
    for name, value in oracle.items():
        moved = np.abs(value.T - weights[name]).max()
        assert np.abs(ours[name] - value.T).max() < 0.03 * moved


def test_muon_is_keras_s() -> None:
    """1e-6: Keras adds eps = 1e-7 to the norm, and rounds its hyperparameters to float32. It has no
    weight decay inside of `apply` here, and takes no convolutions."""
    import keras

    weights, *gradients = (
        {name: value for name, value in values.items() if value.ndim < 4}
        for values in drawn(0, 1 + NUM_STEPS)
    )
    oracle = by_keras(
        lambda rate: keras.optimizers.Muon(rate, weight_decay=None, adam_weight_decay=None,
            epsilon=1e-12),
        weights,
        gradients,
    )  # fmt: skip
    groups = (Group(MATRICES[:2]), Group(("b/bias",), kind="adamw"))
    spec = optimizer("muon", weight_decay=0.0, adamw_eps=1e-12)
    ours = steps("keras", spec, weights, gradients, RATES, groups)
    assert difference(ours.weights, oracle) < 1e-6


@over_sets
def test_muon_trains_the_other_weights_by_adamw(backend: str, num_sets: int) -> None:
    for rng, weights, gradients in problems(num_sets):
        keys = random_keys(rng, "beta1", "beta2", "eps")
        decay = random_keys(rng, "weight_decay")
        bias = {"b/bias": weights["b/bias"]}
        found, expected = (
            steps(backend, spec, bias, gradients, RATES, [Group(("b/bias",), kind=kind)]).weights
            for spec, kind in (
                (
                    optimizer("muon", **{f"adamw_{name}": v for name, v in keys.items()}, **decay),
                    "adamw",
                ),
                (optimizer("adamw", **keys, **decay), ""),
            )
        )
        assert difference(found, expected) < TOLERANCE


def test_muon_takes_hidden_matrices_unless_groups_say_otherwise() -> None:
    from tests.components.test_optimizers import dense, net

    layers = net(dense(), dense(), dense())
    k0, b0, k1, b1, k2, b2 = (f"dense_{i}/{n}" for i in range(3) for n in ("kernel", "bias"))
    assert list(groups(optimizer("muon", adamw_lr_factor=0.1), layers)) == [
        Group((k0, k1)),
        Group((b0, b1, k2, b2), 0.1, kind="adamw"),
    ]
    entries = [{"match": k0, "method": "adamw"}, {"match": k2, "method": "muon", "lr_factor": 0.5}]
    assert list(groups(optimizer("muon", groups=entries), layers)) == [
        Group((k1,)),
        Group((k0, b0, b1, b2), kind="adamw"),
        Group((k2,), 0.5),
    ]


GOLDEN = (
    json.loads(oracle_golden.GOLDEN.read_text(encoding="utf-8"))
    if oracle_golden.GOLDEN.exists()
    else {}
)


@pytest.mark.parametrize("name", oracle_golden.ORACLES)
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_other_packages_optimizers_give_the_stored_numbers(backend: str, name: str) -> None:
    """oracle_golden.py made them with the packages, from the same hyperparameters."""
    _compare_with_package(backend, name, GOLDEN[name])


@pytest.mark.long
@pytest.mark.parametrize("name", oracle_golden.ORACLES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_packages_optimizers_are_ours(backend: str, name: str) -> None:
    pytest.importorskip(oracle_golden.PACKAGES[name])
    _compare_with_package(backend, name, (oracle_golden.trained(name, s) for s in range(200)))


def _compare_with_package(backend: str, name: str, sets: Iterable[Any]) -> None:
    """Compare with the package's weights of each set."""
    for seed, stored in enumerate(sets):
        weights, gradients = oracle_golden.problem(seed)
        spec = optimizer(name, **oracle_golden.keys(name, seed))
        found = steps(backend, spec, weights, gradients, oracle_golden.rates(name))
        after = found.weights
        if BASE_WEIGHTS in found.slots:
            after = spec.averaged(after, found.slots[BASE_WEIGHTS])
        expected = {
            key: np.array(value).reshape(weights[key].shape) for key, value in stored.items()
        }
        assert difference(after, expected) < TOLERANCE, (name, seed)


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_x_is_the_weighted_mean_of_z(backend: str) -> None:
    """The mean of z_1 ... z_t is x after t updates at constant rates; z is plain SGD's path, since
    the gradients are given."""
    weights, *gradients = drawn(2, 1 + NUM_STEPS)
    spec = optimizer("schedule_free_sgd", beta1=0.7)
    found = steps(backend, spec, weights, gradients, [0.1] * NUM_STEPS)
    x = spec.averaged(found.weights, found.slots[BASE_WEIGHTS])
    for name, w in weights.items():
        path = w - 0.1 * np.cumsum([values[name] for values in gradients], axis=0)
        np.testing.assert_allclose(x[name], path.mean(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_schedule_free_run_is_measured_and_saved_with_its_averages(backend: str) -> None:
    """The live model's predictions are those of the weights in a checkpoint, between two chunks;
    the training goes on from others, to the same bits as without the measuring."""
    overrides = [
        "trainer.max_steps=40",
        "trainer.steps_per_call=10",
        "device=cpu",
        "optimizer=schedule_free_adamw",
        "optimizer.groups=[{match: '*/bias', lr_factor: 0}]",
    ]
    prepared = prepare(overrides)
    rows = {"x": prepared.data.val.x[:20].astype(np.float32)}
    apart: list[float] = []

    def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
        state = live.state()
        saved = dispatcher.load(backend).predict(prepared.model, state, rows)
        # float32: the same weights, in another batch or compilation
        np.testing.assert_allclose(live.predict(rows), saved, rtol=0, atol=1e-5)
        kernel = state.weights["dense_0/kernel"]
        apart.append(float(np.abs(kernel - state.slots[TRAINING_WEIGHTS]["dense_0/kernel"]).max()))
        assert (state.weights["dense_0/bias"] == 0).all()
        return True

    chunks = prepared.chunks(0, None, adapt=False)
    watched = dispatcher.load(backend).train(prepared.run_spec(), first(prepared), chunks, on_chunk)
    assert min(apart) > 1e-3
    unwatched = train(backend, overrides).state
    for name, value in unwatched.weights.items():
        np.testing.assert_array_equal(watched.weights[name], value)


def test_ademamix_s_warm_up_has_the_paper_s_ends_and_half_lives() -> None:
    """The half-life ln 0.5 / ln beta3 goes linearly from that of beta1 to that of beta3, and alpha
    linearly from 0, in 40 updates."""
    spec = optimizer("ademamix", beta1=0.9, beta3=0.999, alpha=4.0, slow_warmup_steps=40)
    tables = spec.own_tables(50)
    share = np.minimum(np.arange(1, 51) / 40, 1.0)
    np.testing.assert_allclose(tables["alpha"], 4.0 * share, rtol=1e-15)
    first, last = np.log(0.5) / np.log(0.9), np.log(0.5) / np.log(0.999)
    # 1e-10: 1 - beta3 is 1e-3, of a power rounded to 1e-16
    np.testing.assert_allclose(
        np.log(0.5) / np.log(tables["beta3"]), first + share * (last - first), rtol=1e-10
    )
    assert (tables["beta3"][39:] == 0.999).all()
    assert optimizer("ademamix").own_tables(50) == {}
