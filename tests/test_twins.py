"""A twin, one model of the user's own on both frameworks, is like a built-in model: the same first
weights, the same training, one checkpoint for both."""

from pathlib import Path

import numpy as np
import pytest

from runner import dispatcher, load_run
from runner.cli.compose import compose
from runner.errors import ConfigError
from runner.tasks.twin import compare
from tests.command_line import OTHER, forked
from tests.test_isolation import run as run_in
from tests.training import Trained, differences, first, prepare, train

TRUSTED = "trusted_modules=[tests.twin_models]"
SHORT = [
    *("model=twin", TRUSTED, "device=cpu", "trainer.precision=float64", "trainer.max_steps=30"),
    *("trainer.batch_size=100", "optimizer=sgd", "optimizer.momentum=0.9"),
]
# float64: rounding of some 1e-16 an operation in 30 updates of these networks
TOLERANCE = 1e-12


def twin(name: str, *more: str) -> list[str]:
    model = "tests.twin_models"
    targets = [f"model.{f}._target_={model}.{k}_{name}" for f, k in KINDS.items()]
    return [*SHORT, *targets, *more]


KINDS = {"lightning": "torch", "keras": "keras"}


def both(config: list[str]) -> dict[str, Trained]:
    return {backend: train(backend, [*config, f"backend={backend}"]) for backend in KINDS}


@pytest.mark.parametrize(
    "config",
    [
        # decoupled decay needs to know which weights are kernels
        pytest.param(twin("small", "optimizer.weight_decay=0.01"), id="small"),
        pytest.param(twin("large", "data.images=true"), marks=pytest.mark.slow, id="large"),
        pytest.param(
            twin(
                "headed",
                *("loss=custom", "loss._target_=tests.twin_models.headed"),
                "metrics=[{_target_: tests.twin_models.largest}]",
            ),
            marks=pytest.mark.slow,
            id="several outputs",
        ),
    ],
)
def test_a_twin_trains_alike_on_both_frameworks(config: list[str]) -> None:
    """Both models have dropout and running statistics; the large one has most kinds of layers."""
    done = both(config)
    found = differences(done["lightning"], done["keras"])
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_a_twin_switches_backends_on_resume(backend: str) -> None:
    """18 updates on one framework and 12 on the other, against 30 on one."""
    config = twin("small")
    whole = train(backend, [*config, f"backend={backend}"])
    cut = [*config, "trainer.steps_per_call=5"]
    part = train(backend, [*cut, f"backend={backend}"], stop_after=18)
    rest = train(OTHER[backend], [*cut, f"backend={OTHER[backend]}"], start=part.state)
    assert part.state.step == 18
    found = differences(whole, part.then(rest))
    assert max(found.values()) <= TOLERANCE, found


def test_names_follow_from_either_framework() -> None:
    """In order of definition, with shapes of no framework: [in, out]."""
    states = [first(prepare([*twin("small"), f"backend={backend}"])) for backend in KINDS]
    shapes = [{name: v.shape for name, v in {**s.weights, **s.buffers}.items()} for s in states]
    assert shapes[0] == shapes[1]
    assert shapes[0]["dense_0/kernel"] == (64, 24)
    assert shapes[0].keys() == {
        *("dense_0/kernel", "dense_0/bias", "layer_norm_0/scale", "layer_norm_0/offset"),
        *("dense_1/kernel", "batch_norm_0/scale", "batch_norm_0/offset", "batch_norm_0/mean"),
        *("batch_norm_0/variance", "dense_2/kernel", "dense_2/bias"),
    }


def test_first_weights_are_glorot_s() -> None:
    """U(-a, a), a = sqrt(6 / (in + out)): all inside, and with the deviation a / sqrt(3). 5
    standard errors of the deviation of 1,536 draws, some a / sqrt(3) / 56 / 1.1."""
    kernel = first(prepare([*twin("small"), "seed=3"])).weights["dense_0/kernel"]
    a = np.sqrt(6 / (64 + 24))
    assert np.abs(kernel).max() <= a
    assert abs(kernel.std() - a / np.sqrt(3)) < 5 * a / np.sqrt(3) / 60


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.map=first"], "model.map must be a group of keys, got first"),
        (
            ["model.map={body.0: sequential/dense}"],
            "model.map must name layers or tensors of both models, each once; the torch model has "
            "no body.0; it has 0, 1, 4, 5, 7",
        ),
        (
            ["backend=witness"],
            "backend must be one of lightning, keras for model=twin, got witness",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(more: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare([*twin("small"), *more])
    assert str(error.value) == message


TABLE = "model.map={head: net/head, second.weight: net/second/kernel}"


@pytest.mark.slow
def test_a_table_pairs_layers_and_tensors_in_another_order() -> None:
    """The head comes first in torch, and Keras has another kind of layer for one product: with the
    table both are the same model, without it they are not."""
    agreed = compare(compose(["task=twin", *twin("reordered", TABLE)]))
    assert agreed.where is None
    assert agreed.largest <= TOLERANCE
    names = first(prepare(twin("reordered", TABLE, "backend=keras"))).weights
    shapes = {name: value.shape for name, value in names.items()}
    assert shapes["dense_0/kernel"] == (16, 10)
    assert shapes["mapped_0/value"] == (24, 16)
    assert compare(compose(["task=twin", *twin("reordered")])).where is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "own", "other"),
    [("lightning", "torch", "keras"), ("keras", "keras", "torch")],
)
def test_a_twin_s_run_imports_its_own_framework_only(
    tmp_path: Path, backend: str, own: str, other: str
) -> None:
    imported = run_in(tmp_path, *twin("small", f"backend={backend}"))
    assert own in imported
    assert other not in imported


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused_in_a_line(tmp_path: Path) -> None:
    """The run's Keras model lacks the layers that were trained."""
    wrong = [item.replace("keras_small", "keras_unnormed") for item in twin("small")]
    (done,) = forked(tmp_path, (*wrong, "trainer.max_epochs=1"))
    (resumed,) = forked(
        tmp_path, (f"resume={done.folder}", "backend=keras", "trainer.max_epochs=2", TRUSTED)
    )
    assert resumed.status in (1, 2)
    assert resumed.err.count("\n") == 1
    assert "does not fit its config: weights" in resumed.err


REFUSED = {
    "lightning": {
        "LSTM(8, 4, batch_first=True)": "model.lightning: LSTM trains two biases, where Keras has "
        "one; freeze the second one, bias_hh_l0.requires_grad_(False); a twin sets it to 0",
        "GRU(8, 4, 2, dropout=0.1)": "model.lightning: GRU has dropout=0.1 inside, which differs "
        "from Keras's; use 0",
        "Dropout2d()": "model.lightning: Dropout2d draws random numbers that Keras cannot draw; "
        "use torch.nn.Dropout",
        "BatchNorm2d(1, momentum=None)": "model.lightning: BatchNorm2d has momentum=None, which "
        "Keras does not have; use a number",
    },
    "keras": {
        "GRU(4, reset_after=False)": "model.keras: gru (GRU) has reset_after=False, which torch "
        "does not have; use true",
        "LSTM(4, dropout=0.1)": "model.keras: lstm (LSTM) has dropout inside, which differs from "
        "torch's; use 0",
        "GaussianNoise(0.1)": "model.keras: gaussian_noise (GaussianNoise) draws random numbers "
        "that torch cannot draw; use keras.layers.Dropout",
    },
}


@pytest.mark.parametrize(
    ("backend", "layer"),
    [(backend, layer) for backend, layers in REFUSED.items() for layer in layers],
)
def test_what_the_other_framework_does_not_have_is_refused(backend: str, layer: str) -> None:
    with pytest.raises(ConfigError) as error:
        found(backend, layer)
    assert str(error.value) == REFUSED[backend][layer]


def found(backend: str, layer: str) -> object:
    """Return what the backend finds in a model that is this layer alone."""
    dispatcher.load(backend)
    if backend == "lightning":
        from torch import nn

        from backends.lightning import twin as on_torch

        module = eval(f"nn.{layer}", {"nn": nn})
        return on_torch.find(module, dict(module.named_parameters()))
    import keras

    from backends.keras import twin as on_keras

    keras.utils.clear_session()
    return on_keras.find([eval(f"layers.{layer}", {"layers": keras.layers})], {})


@pytest.mark.slow
def test_a_comparison_gives_the_parity_of_a_twin(tmp_path: Path) -> None:
    """Jobs that differ in the backend alone get a row: losses and weights within 1e-12."""
    config = [*twin("small"), "-m", "backend=lightning,keras", "trainer.threads=1"]
    (done,) = forked(tmp_path, tuple(config))
    assert (done.status, done.err) == (0, "")
    (row,) = (line for line in done.out.splitlines() if "| keras, lightning |" in line)
    rate, loss, weights = map(float, row.split("|")[3:6])
    assert rate == 0
    assert max(loss, weights) <= TOLERANCE


@pytest.mark.slow
def test_a_twin_s_run_can_be_used_like_another(tmp_path: Path) -> None:
    """Trained on Lightning, evaluated and exported; read on Keras, with the same outputs."""
    (done,) = forked(tmp_path, tuple(twin("small")))
    assert (done.status, done.err) == (0, "")
    run = f"run={done.folder}"
    each = forked(
        tmp_path,
        (run, "task=evaluate", TRUSTED),
        (run, "task=evaluate", "backend=keras", TRUSTED),
        (run, "task=export", "format=torch", TRUSTED),
        (run, "task=export", "format=keras", "backend=keras", TRUSTED),
    )
    assert [one.status for one in each] == [0] * 4, [one.err for one in each]
    outputs = [
        load_run(tmp_path / done.folder, backend, trusted_modules=["tests.twin_models"]).predict(
            np.random.default_rng(0).uniform(0, 16, (5, 64))
        )
        for backend in KINDS
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=TOLERANCE)
