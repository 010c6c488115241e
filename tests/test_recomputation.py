"""The claim: trainer.gradient_checkpointing changes the memory of a run, not its numbers."""

import pytest

from runner.errors import ConfigError
from tests.rows import slow_rows
from tests.training import differences, prepare, train

SHORT = [
    *("device=cpu", "trainer.precision=float64", "trainer.max_steps=4", "trainer.batch_size=16"),
    *("trainer.accumulate_grad_batches=2", "optimizer=sgd", "optimizer.momentum=0.9"),
]
# a running statistic and a mask, which must be those of one forward pass
BLOCK = (
    "model.layers=[{layer: dense, units: 8},{layer: residual, layers: [{layer: dense, units: 8},"
    "{layer: batch_norm},{layer: activation, function: relu},{layer: dropout, rate: 0.3}]},"
    "{layer: dense, units: outputs}]"
)
MODELS = {
    "block": [BLOCK],
    "images": ["model=resnet"],
    "attention": ["model=transformer", "data.images=true"],
    "masked": [
        "data.images=true",
        "model.layers=[{layer: reshape, shape: [8, 8]},{layer: masking},{layer: dense, units: 4},"
        "{layer: residual, layers: [{layer: rms_norm},{layer: attention, num_heads: 2}]},"
        "{layer: global_average_pool},{layer: dense, units: outputs}]",
    ],
}
BACKENDS = ("lightning", "keras")


@pytest.mark.parametrize(
    ("backend", "model"),
    slow_rows(
        [(backend, model) for backend in BACKENDS for model in MODELS],
        [("lightning", "block")],
    ),
)
def test_the_numbers_stay(backend: str, model: str) -> None:
    """1e-12: the compiler of TensorFlow fuses other operations, which rounds otherwise."""
    config = [*SHORT, *MODELS[model], f"backend={backend}"]
    plain = train(backend, config)
    found = differences(plain, train(backend, [*config, "trainer.gradient_checkpointing=true"]))
    assert max(found.values()) <= (0 if backend == "lightning" else 1e-12), found


def test_a_model_of_your_own_is_refused() -> None:
    own = ["model=custom", "model._target_=torch.nn.Linear", "model.in_features=64"]
    with pytest.raises(ConfigError) as error:
        prepare([*own, "model.out_features=10", "trainer.gradient_checkpointing=true"])
    assert str(error.value) == (
        "trainer.gradient_checkpointing must be false for a model of your own, got true; call "
        "torch.utils.checkpoint or keras.remat in its code"
    )
