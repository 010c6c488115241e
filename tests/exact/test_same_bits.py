"""The claim: Lightning, Keras and the NumPy witness make the same run to the last bit: losses,
outputs, weights, slots, running statistics. There is no tolerance."""

from pathlib import Path

import numpy as np
import pytest

from tests.exact.common import BASE, assert_same_bits, binary_cross_entropy, bits, cosine_similarity
from tests.parity.test_parity import (
    ALL_OPTIMIZERS,
    GROUPS,
    IMAGES,
    LAYERS,
    LOSSES,
    OPTIMIZERS,
    SHORT,
)
from tests.rows import long_but, slow_but
from tests.training import train

BACKENDS = ("lightning", "keras")
HARD = [
    "schedule=cosine",
    "schedule.warmup=10%",
    "trainer.gradient_clip_norm=0.5",
    "trainer.accumulate_grad_batches=3",
    "optimizer.weight_decay=0.01",
]
MODELS = {
    "mlp": ["model=mlp"],
    **{model: [f"model={model}", IMAGES] for model in ("cnn", "resnet", "transformer")},
}


def assert_all_the_same(overrides: list[str]) -> None:
    overrides = [*BASE, *overrides]
    witness = train("witness", overrides)
    assert np.isfinite(witness.losses).all()
    for backend in BACKENDS:
        assert_same_bits(train(backend, overrides), witness)


# a row takes seconds to compile, so nesterov, amsgrad and rmsprop_both stand for these
_COVERED = ("momentum", "adam", "rmsprop", "rmsprop_momentum", "rmsprop_centered")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL_OPTIMIZERS if name not in _COVERED])
def test_every_optimizer(name: str) -> None:
    """Each is trained with clipping, accumulation, decay of both kinds and a changing rate."""
    small = (
        "model.layers=[{layer: dense, units: 8},{layer: activation, function: relu},{layer: "
        "dense, units: outputs}]"
    )
    assert_all_the_same(
        [*ALL_OPTIMIZERS[name], *HARD, small, "trainer.max_steps=11", "trainer.batch_size=32"]
    )


@pytest.mark.parametrize(
    "name",
    long_but(
        GROUPS,
        slow=["rates", "schedules", "ema", "swa", "lawa", "widths", "frozen_shrinking", "betas"],
    ),
)
def test_groups_and_scheduled_hyperparameters(name: str) -> None:
    """They mean the same as in float64: 11 updates in 24 bits stay within 1e-4 of it."""
    overrides = [*GROUPS[name], "trainer.max_steps=11"]
    if not any(override.startswith("trainer.batch_size=") for override in overrides):
        overrides += ["trainer.batch_size=64"]
    assert_all_the_same(overrides)
    np.testing.assert_allclose(
        train("witness", [*BASE, *overrides]).losses,
        train("lightning", ["trainer.precision=float64", *overrides]).losses,
        rtol=1e-4,
    )


@pytest.mark.parametrize("mode", slow_but(["coupled", "decoupled"]))
def test_decay_that_spares_biases(mode: str) -> None:
    decay = [f"optimizer.weight_decay_mode={mode}", "optimizer.decay_exclude=bias_and_norm"]
    assert_all_the_same([*HARD, *decay, "model=linear", "trainer.max_steps=5"])


@pytest.mark.parametrize("name", slow_but(LAYERS, "conv2d"))
def test_every_layer(name: str) -> None:
    assert_all_the_same([*LAYERS[name], "schedule=cosine", "trainer.max_steps=5"])


@pytest.mark.parametrize("name", slow_but([*LOSSES, *SHORT]))
def test_every_loss_and_short_batches(name: str) -> None:
    assert_all_the_same([*{**LOSSES, **SHORT}[name], "trainer.max_steps=30"])


@pytest.mark.slow
def test_binary_cross_entropy(tmp_path: Path) -> None:
    assert_all_the_same([*binary_cross_entropy(tmp_path), "trainer.max_steps=8"])


@pytest.mark.slow
def test_cosine_similarity(tmp_path: Path) -> None:
    assert_all_the_same([*cosine_similarity(tmp_path), "trainer.max_steps=8"])


@pytest.mark.slow
def test_rows_that_are_augmented_and_mixed() -> None:
    """Partners, shares, rectangles and moves are made once, in NumPy."""
    layers = (
        "{layer: conv2d, filters: 4, kernel_size: 3},{layer: activation, function: relu},"
        "{layer: global_average_pool},{layer: dense, units: outputs}"
    )
    changes = ["data.mixup=0.4", "data.cutmix=1", "data.augment.flip=true", "data.augment.crop=1"]
    smoothed = ["loss=cross_entropy", "loss.label_smoothing=0.1"]
    short = [IMAGES, f"model.layers=[{layers}]", "trainer.max_steps=11"]
    assert_all_the_same([*changes, *smoothed, *HARD, *short])


LONG = [
    ("mlp", "adam", 3000),
    ("cnn", "adam", 300),
    ("resnet", "momentum", 60),
    ("transformer", "adam", 100),
]


@pytest.mark.parametrize(("model", "optimizer", "num_steps"), long_but(LONG, slow=LONG[:1]))
def test_after_thousands_of_updates(model: str, optimizer: str, num_steps: int) -> None:
    """Of three micro-batches each; the witness, which is slow, goes along with the smallest one.
    `python -m tests.exact` makes more of them, and longer ones."""
    overrides = [*MODELS[model], *OPTIMIZERS[optimizer], *HARD, f"trainer.max_steps={num_steps}"]
    overrides += ["trainer.max_epochs=1000"]
    if (model, optimizer) == ("mlp", "adam"):
        assert_all_the_same(overrides)
    else:
        assert_same_bits(*(train(backend, [*BASE, *overrides]) for backend in BACKENDS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["momentum", "adam", "rmsprop_both"])
def test_optimizers_with_convolutions(name: str) -> None:
    assert_all_the_same(
        [
            *MODELS["cnn"],
            *OPTIMIZERS[name],
            *HARD,
            "trainer.max_steps=100",
            "trainer.max_epochs=100",
        ]
    )


ROWS = {
    **{name: MODELS[name] for name in ("resnet", "transformer")},
    **{name: LAYERS[name] for name in ("gated_dense", "squeeze_excite", "grouped_attention")},
}


@pytest.mark.parametrize("model", slow_but(ROWS, "transformer"))
@pytest.mark.parametrize("backend", slow_but([*BACKENDS, "witness"], "lightning", "witness"))
def test_a_row_does_not_depend_on_its_batch(backend: str, model: str) -> None:
    """Predicted alone, a row has the bits that it has among 261 others."""
    from runner import dispatcher
    from tests.training import first, prepare

    prepared = prepare([*BASE, *ROWS[model]])
    x = np.ascontiguousarray(prepared.data.test.x, dtype=np.float32)
    predict, state = dispatcher.load(backend).predict, first(prepared)
    together = predict(prepared.model, state, {"x": x})
    np.testing.assert_array_equal(
        bits(predict(prepared.model, state, {"x": x[7:8]})), bits(together[7:8])
    )
    np.testing.assert_array_equal(
        bits(predict(prepared.model, state, {"x": x[::9]})), bits(together[::9])
    )
