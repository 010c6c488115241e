"""Facts about this backend that the runner needs before it imports the framework."""

import os
from typing import Any

from runner.components.layers import Network
from runner.errors import ConfigError
from runner.machine.work import products
from runner.spec import About


def _refuse(config: Any) -> None:
    if config.strategy == "fsdp":
        raise ConfigError(
            "strategy must be auto or ddp on backend=keras, got fsdp: TensorFlow's strategies keep "
            "all weights in every process; backend=lightning divides them"
        )


# Updates after which XLA has paid for two seconds of compilation, on one core without programs of
# earlier runs: 2,400 for a transformer with a small convolution (python -m benchmarks.compiling). A
# run must have twice as many. Networks of convolutions were slower with it, four to ten times.
_PAYS_AFTER = 5_000
_CONVOLUTIONS = 0.1  # largest share of the multiplications in convolutions


def _pays_to_compile(net: Network, num_steps: int) -> bool:
    """Return whether XLA pays; without convolutions it is used in any case (device.uses_xla)."""
    total = convolutions = 0
    for node in net.walk():
        num = sum(products(node))
        total += num
        convolutions += num if "conv" in node.spec.layer else 0
    return num_steps >= _PAYS_AFTER and 0 < convolutions <= _CONVOLUTIONS * total


def _tune() -> None:
    """Silence TensorFlow's startup messages. TensorFlow reads the variable on import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


ABOUT = About(
    name="keras",
    distribution="tensorflow",
    packages=("tensorflow", "keras"),
    precisions=("float32", "float64", "bf16-mixed", "16-mixed", "exact"),
    refuse=_refuse,
    pays_to_compile=_pays_to_compile,
    exports={
        "keras": "model.keras",
        "savedmodel": "model.savedmodel",
        "tflite": "model.tflite",
    },
    environment={"KERAS_BACKEND": "tensorflow"},
    tune=_tune,
)
