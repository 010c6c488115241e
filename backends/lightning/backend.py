"""Implements `runner.spec.Backend` with PyTorch Lightning."""

from backends.lightning import loop, tracing
from backends.lightning.callbacks import observers
from backends.lightning.custom import inspect, read_weights
from backends.lightning.device import (
    can_use_threads,
    device_peak_bytes,
    devices,
    fixed_threads,
    join,
)
from backends.lightning.objective import check_loss
from backends.lightning.profiler import Profiler
from runner import twins

name = "lightning"
profiler = Profiler
train = twins.trains(loop.train)
check_optimizer = twins.checks(loop.check_optimizer)
predict = twins.takes_state(loop.predict)
layer_outputs = twins.takes_state(loop.layer_outputs)
measure = twins.takes_state(loop.measure)
native_model = twins.takes_state(loop.native_model)
trace = twins.takes_state(tracing.trace)
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
