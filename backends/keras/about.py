"""Facts about this backend that the runner needs before it imports the framework."""

import os

from runner.spec import About


def _tune() -> None:
    """Silence TensorFlow's startup messages. TensorFlow reads the variable on import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


ABOUT = About(
    name="keras",
    distribution="tensorflow",
    packages=("tensorflow", "keras"),
    precisions=("float32", "float64", "bf16-mixed", "16-mixed", "exact"),
    exports={
        "keras": "model.keras",
        "savedmodel": "model.savedmodel",
        "tflite": "model.tflite",
    },
    environment={"KERAS_BACKEND": "tensorflow"},
    tune=_tune,
)
