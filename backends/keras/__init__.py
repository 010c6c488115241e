"""Twinrun on Keras 3 with TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

# the environment has to be set before Keras is imported
from backends.keras.device import can_use_threads, devices
from backends.keras.loop import export, native_model, predict, train

name = "keras"

__all__ = ["can_use_threads", "devices", "export", "name", "native_model", "predict", "train"]
