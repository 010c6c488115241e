"""The loss of a batch: a kernel of losses.py, a function of the user's own, or the `compute_loss`
of the user's keras.Model. Stateful metrics of the user's model are measured beside it."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from backends.keras import losses
from runner import user_code
from runner.components import losses as own_losses
from runner.components.outputs import Outputs
from runner.data.source import Batch, blocks_of
from runner.errors import ConfigError
from runner.spec import Measured, ModelSpec

# x, y, outputs, training, and weights if the rows have some -> mean loss or rows
Compute = Callable[..., Any]
_OF_COMPILE = ("loss", "compile_metrics")  # Keras's names of what counts its loss and its metrics


def build(loss: Any, model: keras.Model, has_weights: bool = False) -> Compute:
    """Build the function that computes a batch's loss from its outputs."""
    outputs = model.own_outputs() if hasattr(model, "own_outputs") else None
    if loss.name == "model":
        own = model.own_model()
        takes_training = "training" in inspect.signature(own.compute_loss).parameters

        def computed(x: Any, y: Any, z: Any, training: bool, *weights: Any) -> Any:
            more = {"training": training} if takes_training else {}
            z = unpacked(z, outputs)
            weight = weights[0] if weights else None
            return own.compute_loss(x=x, y=y, y_pred=z, sample_weight=weight, **more)

        return computed
    if loss.name == "custom":
        function = own_function(loss)
        return lambda x, y, z, training, *weights: function(unpacked(z, outputs), (x, y, *weights))
    kernel = losses.build(loss, has_weights)
    return lambda x, y, z, training, *weights: kernel(z, y, *weights)


def unpacked(z: Any, outputs: Outputs | None) -> Any:
    """Return a network's outputs as the user's loss gets them."""
    return z if outputs is None else outputs.unpack(z, tf.reshape)


def own_function(loss: Any) -> Callable[[Any, tuple[Any, ...]], Any]:
    """Return the user's loss function, f(outputs, batch)."""
    function: Callable[..., Any] = loss.function()
    if loss.code.startswith("keras."):
        return lambda z, batch: function(batch[1], z)
    return function


def check_loss(loss: Any, example: Batch, model: ModelSpec) -> None:
    """Implements `runner.spec.Backend.check_loss`."""
    batch = _tensors(example)
    z = tf.zeros([len(batch[0]), *model.network.output_shape], model.dtype)
    outputs = model.network.outputs
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = own_losses.tried(loss, own_function, unpacked(z, outputs), batch, outputs)
    own_losses.check_value(loss, value, tf.is_tensor(value), len(batch[0]))
    if tape.gradient(value, z) is None:
        raise ConfigError(
            f"loss._target_ {loss.code} must depend on the outputs through the framework's "
            f"functions"
        )


def _tensors(batch: Batch) -> tuple[Any, ...]:
    """Return x, y, and weights if the rows have some."""
    return tuple(tf.constant(batch[name]) for name in ("x", "y", "weight") if name in batch)


def metrics_of(model: keras.Model) -> list[Any]:
    """Return the stateful metrics of the user's own model inside `model`, if there is one."""
    return own_metrics(model.own_model()) if hasattr(model, "own_model") else []


def own_metrics(own: keras.Model) -> list[Any]:
    """Return the stateful metrics of the user's own model, without those that `compile` adds."""
    return [each for each in getattr(own, "metrics", []) if each.name not in _OF_COMPILE]


def results(metrics: Iterable[Any], split: str) -> dict[str, float]:
    return {f"{split}/{metric.name}": float(metric.result()) for metric in metrics}


def end_epoch(model: keras.Model, is_whole: bool) -> dict[str, float]:
    """Return what the metrics have measured in training; begin again if the epoch is whole."""
    metrics = metrics_of(model)
    numbers = results(metrics, "train")
    if is_whole:
        for metric in metrics:
            metric.reset_state()
    return numbers


@functools.lru_cache(maxsize=1)
def _evaluation(model: keras.Model, compute: Compute | None, dtype: str) -> Any:
    """Return the evaluation pass of a batch: its outputs and the loss of each row, or 0 without
    `compute`. It is traced once per run."""

    @tf.function(autograph=False, reduce_retracing=True)
    def evaluate(x: Any, y: Any, *weights: Any) -> tuple[Any, Any]:
        z = tf.cast(model(x, training=False), dtype)
        value = compute(x, y, z, False, *weights) if compute else tf.constant(0.0)
        return z, tf.broadcast_to(tf.cast(value, tf.float64), tf.shape(x)[:1])

    return evaluate


def measure(
    loss: Any,
    compute: Compute,
    model: keras.Model,
    spec: ModelSpec,
    batches: Iterable[Batch],
    keeps_outputs: bool,
) -> Measured:
    """Compute the loss and the user's metrics, in blocks of batch_size rows. `compute` is what
    `build` has made of the loss. The state of all variables is as before afterwards."""
    metrics, has_rows = metrics_of(model), own_losses.is_own(loss)
    evaluate = _evaluation(model, compute if has_rows else None, spec.dtype.name)
    counts = [variable for metric in metrics for variable in metric.variables]
    before = [variable.value.numpy() for variable in counts]
    for metric in metrics:
        metric.reset_state()
    outputs, values = [], []
    for batch in batches:
        for block in blocks_of(batch, spec.batch_size):
            z, rows = evaluate(*_tensors(block))
            values.append(rows.numpy())
            if keeps_outputs:
                outputs.append(z.numpy())
    numbers = results(metrics, "val")
    for variable, value in zip(counts, before, strict=True):
        variable.assign(value)
    return Measured(
        {"val/loss": np.concatenate(values)} if has_rows else {},
        numbers,
        np.concatenate(outputs) if outputs else None,
    )


def has_own_loss(own: Any) -> bool:
    """Return whether the user's model overrides `compute_loss`."""
    return isinstance(own, keras.Model) and _overrides(own, "compute_loss")


def check(own: Any, name: str) -> None:
    """Refuse a model with steps of its own, which are not called here."""
    for method in ("train_step", "test_step", "make_train_function"):
        if isinstance(own, keras.Model) and _overrides(own, method):
            raise ConfigError(
                f"{name} defines {method}, which is not called here: the runner makes the updates; "
                f"define compute_loss instead"
            )


def _overrides(own: keras.Model, method: str) -> bool:
    return getattr(type(own), method, None) is not getattr(keras.Model, method, None)


def trial(loss: Any, model: keras.Model, example: Batch, name: str) -> None:
    """Try the model's loss and metrics on some rows; restore its variables."""
    x, y, *weights = _tensors(example)
    before = [variable.value.numpy() for variable in model.variables]
    try:
        for training in (True, False):
            z = model(x, training=training)
            value = build(loss, model)(x, y, z, training, *weights)
    except Exception as error:
        raise ConfigError(
            f"{name} raised {user_code.blame(error, type(model.own_model()).__module__)}, given "
            f"{len(x)} rows of the data"
        ) from error
    finally:
        for variable, number in zip(model.variables, before, strict=True):
            variable.assign(number)
    if not tf.is_tensor(value) or tuple(value.shape) not in ((), (len(x),)):
        found = list(value.shape) if tf.is_tensor(value) else type(value).__name__
        raise ConfigError(
            f"{name}: compute_loss must return a number, or one for each row, as a tensor; got "
            f"{found}"
        )
