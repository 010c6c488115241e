"""Facts about this backend that the runner needs before it imports the framework."""

import os
from typing import Any

from runner.errors import ConfigError
from runner.spec import About


def _refuse(config: Any) -> None:
    if config.strategy == "fsdp":
        raise ConfigError(
            "strategy must be auto or ddp on backend=keras, got fsdp: TensorFlow's strategies keep "
            "all weights in every process; backend=lightning divides them"
        )


def _tune() -> None:
    """Silence TensorFlow's startup messages. TensorFlow reads the variable on import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


ABOUT = About(
    name="keras",
    distribution="tensorflow",
    packages=("tensorflow", "keras"),
    precisions=("float32", "float64", "bf16-mixed", "16-mixed", "exact"),
    refuse=_refuse,
    exports={
        "keras": "model.keras",
        "savedmodel": "model.savedmodel",
        "tflite": "model.tflite",
    },
    environment={"KERAS_BACKEND": "tensorflow"},
    tune=_tune,
)
