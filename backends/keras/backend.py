"""Implements `runner.spec.Backend` with Keras 3 on TensorFlow."""

from backends.keras import loop
from backends.keras.callbacks import observers
from backends.keras.device import can_use_threads, device_peak_bytes, devices, fixed_threads
from backends.keras.distributed import join
from backends.keras.loop import inspect, read_weights
from backends.keras.objective import check_loss
from backends.keras.profiler import Profiler
from runner import twins

name = "keras"
profiler = Profiler
train = twins.trains(loop.train)
check_optimizer = twins.checks(loop.check_optimizer)
predict = twins.takes_state(loop.predict)
layer_outputs = twins.takes_state(loop.layer_outputs)
measure = twins.takes_state(loop.measure)
native_model = twins.takes_state(loop.native_model)
trace = twins.takes_state(loop.trace)
export = twins.takes_state(loop.export)

__all__ = [
    "can_use_threads",
    "check_loss",
    "check_optimizer",
    "device_peak_bytes",
    "devices",
    "export",
    "fixed_threads",
    "inspect",
    "join",
    "layer_outputs",
    "measure",
    "name",
    "native_model",
    "observers",
    "predict",
    "profiler",
    "read_weights",
    "trace",
    "train",
]
