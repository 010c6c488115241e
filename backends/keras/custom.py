"""The user's own models: a keras.Model instead of the layers of layers.build. Its variables keep
Keras's paths and layouts."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from backends.keras import objective, twin
from backends.keras.layers import DropoutState
from runner.components import losses
from runner.components.custom import (
    ROWS_OF_REPETITION,
    Built,
    CustomNetwork,
    Source,
    seeded,
)
from runner.components.layers import Shape
from runner.components.outputs import Outputs, describe
from runner.data.source import Batch
from runner.errors import ConfigError, one_line
from runner.user_code import blame

GENERATOR = "seed_generator_state"  # the end of the paths of layers' random generators


def build(
    network: CustomNetwork, kind: type[keras.Model], dropout_state: DropoutState | None
) -> keras.Model:
    """Build a functional model of class `kind` around the user's model, like layers.build. It has
    the values that the user's code gives it. A twin's layers train as torch's do if `dropout_state`
    is given."""
    with twin.calls(network.source.is_twin) as called:
        own, x, y = _build(network.source, network.input_shape, network.seed)
        _call_inner_layers(network.source, own, network.input_shape)
    if network.source.is_twin and dropout_state is not None:
        order = {id(variable): i for i, variable in enumerate(own.variables)}
        twin.align(called, order, dropout_state)
    outputs = None if dropout_state is None else network.outputs  # None: it is exported
    return _around(own, x, y, kind, [*network.variables()], outputs)


def _around(
    own: keras.Model,
    x: Any,
    y: Any,
    kind: type[keras.Model],
    names: list[str],
    outputs: Outputs | None,
) -> Any:
    """Build a functional model around the user's model, whose variables have these names. It packs
    several outputs into one tensor."""
    model: Any = kind(x, y if outputs is None else _packed(y, outputs))
    model.own_outputs = lambda: outputs
    # functions, so that Keras does not track the model and its variables a second time
    model.own = lambda: dict(zip(names, _variables(own), strict=True))
    model.own_model = lambda: own
    return model


def _packed(y: Any, outputs: Outputs) -> Any:
    """Join several outputs.  # symbolic [B, ...] each -> [B, outputs.size]"""
    values = outputs.values(y)
    flat = [ops.reshape(v, (-1, math.prod(v.shape[1:]))) for v in values]
    return ops.concatenate(flat, axis=1)


def inspect(source: Source, input_shape: Shape, seed: int, example: Batch | None = None) -> Built:
    """Build the model with the run's seed, and describe it. Keras draws its layers' seeds from
    Python's generator. Try the model's own loss on the example."""
    keras.utils.clear_session()  # so that names do not depend on earlier models
    with twin.calls(source.is_twin) as called:
        own, x, y = _build(source, input_shape, seed)
        _call_inner_layers(source, own, input_shape)
    objective.check(own, source.name)
    paths = list(_unique(variable.path for variable in _variables(own)))
    values = dict(zip(paths, (v.value.numpy() for v in _variables(own)), strict=True))
    trained = paths[: len(own.trainable_variables)]
    has_loss = objective.has_own_loss(own)
    outputs = _described(source, y)
    model = _around(own, x, y, keras.Model, paths, outputs)
    if has_loss and example is not None:
        objective.trial(losses.Model(name="model"), model, example, source.name)
    measured = [metric.name for metric in objective.metrics_of(model)]
    is_repeatable, changed = True, {*paths} - {*trained}
    if example is not None:
        is_repeatable, changed = _tried_twice(model, own, example, seed)
    generators = {path for path in paths if path.partition(":")[0].endswith(GENERATOR)}
    return Built(
        weights={name: values[name] for name in trained},
        buffers={name: value for name, value in values.items() if name not in trained},
        output_shape=tuple(model.outputs[0].shape[1:]),
        outputs=outputs,
        uses_xla=_can_compile(own),
        layers=twin.find(called, _in_order(own, paths)) if source.is_twin else None,
        description=_description(own),
        has_loss=has_loss,
        train_columns=tuple(f"train/{name}" for name in measured),
        val_columns=tuple(f"val/{name}" for name in (["loss"] if has_loss else []) + measured),
        counts=tuple(_counts(own, paths)),
        unshared=tuple(name for name in paths if name in changed - generators),
        unused=_of_compile(source.given if isinstance(source.given, keras.Model) else own),
        is_repeatable=is_repeatable,
    )


def _of_compile(own: Any) -> tuple[str, ...]:
    """Return what the user's `compile` has set, in words. A loss of the model's own may call that
    of `compile`."""
    if not getattr(own, "compiled", False):
        return ()
    loss = "" if objective.has_own_loss(own) else "loss, "
    return (f"the {loss}optimizer and metrics of compile",)


def _tried_twice(
    model: keras.Model, own: keras.Model, example: Batch, seed: int
) -> tuple[bool, set[str]]:
    """Return whether two forward passes in training are equal with the same values of all
    variables, those of the layers' generators included, and the names of the variables that a pass
    changes. Python's and NumPy's generators go on, as they do in training."""
    x = keras.ops.convert_to_tensor(example["x"][:ROWS_OF_REPETITION])
    before = [variable.value.numpy() for variable in _variables(own)]
    results, changed = [], set[str]()
    with suppress(Exception), seeded(seed):  # an error is that of the run, which shows it
        for _ in range(2):
            results.append(np.asarray(model(x, training=True)))
            for (name, variable), value in zip(model.own().items(), before, strict=True):
                if not np.array_equal(variable.value.numpy(), value):
                    changed.add(name)
                variable.assign(value)
    if len(results) < 2:
        return True, {*model.own()}
    return np.array_equal(results[0], results[1], equal_nan=True), changed


def _call_inner_layers(source: Source, model: keras.Model, input_shape: Shape) -> None:
    """Call a twin's model on two rows of zeros. A symbolic call may skip inner layers, such as
    those of Bidirectional, whose output shapes are known."""
    if source.is_twin:
        model(keras.ops.zeros((2, *input_shape), dtype=_dtype(source)))


def _dtype(source: Source) -> str | None:
    """Return the dtype of the rows; None for Keras's default."""
    return "int32" if source.takes_tokens else None


def _in_order(model: keras.Model, paths: Sequence[str]) -> dict[str, Any]:
    """Return the model's variables in order of definition. `paths` are those of _variables."""
    names = {id(v): path for v, path in zip(_variables(model), paths, strict=True)}
    return {names[id(variable)]: variable for variable in model.variables}


def _build(source: Source, input_shape: Shape, seed: int) -> tuple[keras.Model, Any, Any]:
    """Build the model. Return it, a symbolic batch of rows, and its outputs for the batch."""
    originals: list[Any] = []  # an instance that was passed, whose values the model gets

    def copy(original: Any) -> Any:
        originals.append(original)
        return _copy(original)

    with seeded(seed), _plain_errors():
        model = source.make(keras.Layer, "keras.Model or keras.Layer", copy)
        x = keras.Input(input_shape, dtype=_dtype(source))
        try:
            y = model(x)
        except Exception as error:
            raise ConfigError(
                f"{source.name} raised {blame(error, type(model).__module__)}, given rows of shape "
                f"{list(input_shape)}"
            ) from error
    if not _is_output(y) and _described(source, y) is None:
        found = list(y.shape) if keras.utils.is_keras_tensor(y) else type(y).__name__
        raise ConfigError(
            f"{source.name} must return a tensor of known shape with one row per input row, or a "
            f"tuple or a dict of such tensors of floating-point numbers, got {found}"
        )
    for original in originals:
        try:
            _take_values(model, original)
        except ValueError:
            raise ConfigError(
                f"{source.name} cannot be copied: a copy has other variables; pass the class or a "
                f"function that makes it"
            ) from None
    return model, x, y


def _is_output(value: Any) -> bool:
    return keras.utils.is_keras_tensor(value) and value.ndim > 0 and None not in value.shape[1:]


def _described(source: Source, y: Any) -> Outputs | None:
    """Describe several outputs."""

    def is_one(value: Any) -> bool:
        return _is_output(value) and "float" in value.dtype

    return describe(y, is_one, lambda value: tuple(value.shape[1:]), source.name)


def check_file(path: Path, own: keras.Model, name: str) -> None:
    """Refuse to export a model of the user's own whose file Keras cannot read again: it makes the
    model from what get_config returns."""
    classes = {
        type(layer).__name__: type(layer)
        for layer in all_layers(own)
        if type(layer).__module__.partition(".")[0] != "keras"
    }
    if not classes:
        return
    try:
        keras.models.load_model(path, custom_objects=classes, compile=False)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = one_line(lines[-1] if lines else "")
        if "Could not locate class" in str(error):  # of a layer within a layer
            return
        raise ConfigError(
            f"format=keras: a file of {name} cannot be loaded: {type(error).__name__}: "
            f"{reason}; let __init__ of its classes take **kwargs for Keras, and get_config "
            f"return all other arguments; format=safetensors writes the weights"
        ) from error


def _copy(original: keras.Layer) -> keras.Layer:
    """Make a layer of the same class and config. Keras's own config of a subclass of keras.Model
    holds the defaults of its arguments, not their values, so the class must define its config."""
    defines = next(cls for cls in type(original).__mro__ if "get_config" in vars(cls))
    is_own = type(original).__module__.partition(".")[0] == "keras"
    if not is_own and defines in (keras.Model, keras.Layer, keras.Operation):
        raise TypeError("its class has no get_config")
    return type(original).from_config(original.get_config())


def _take_values(model: keras.Layer, original: keras.Layer) -> None:
    """Give a built copy the values of the original, and freeze what is frozen there. An original
    that is not built has no values."""
    if not original.weights:
        return
    layers, originals = all_layers(model), all_layers(original)
    for layer, other in zip(layers, originals, strict=True):
        layer.trainable = other.trainable
    for variable, other in zip(_variables(model), _variables(original), strict=True):
        variable.assign(other.value)


def all_layers(model: keras.Layer) -> list[keras.Layer]:
    """Return a model and the layers in it, each model before its layers."""
    layers = [model]
    for layer in layers:  # the list grows during the loop
        layers += getattr(layer, "layers", [])
    return layers


def _description(model: keras.Layer) -> str:
    """Describe the layers without their names."""
    parts = []
    for layer in all_layers(model):
        settings = {}
        if not getattr(layer, "layers", []):
            with suppress(Exception):  # a config that its class does not give
                settings = layer.get_config()
        kept = {key: value for key, value in settings.items() if key not in ("name", "dtype")}
        parts.append([type(layer).__qualname__, repr(sorted(kept.items()))])
    return json.dumps(parts)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Keep errors of the user's code short in the block: Keras would add a page of arguments."""
    is_filtered = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if is_filtered:
            keras.config.enable_traceback_filtering()


def _variables(model: keras.Model) -> list[Any]:
    """Return the model's variables, the trained ones first. The others include running statistics,
    the states of the layers' generators and what stateful metrics have counted."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    counts = [v for metric in objective.own_metrics(model) for v in metric.variables]
    return [*variables, *(v for v in counts if all(v is not other for other in variables))]


def _counts(model: keras.Model, paths: list[str]) -> Iterator[str]:
    """Yield the names of variables with the states of generators and the counts of metrics."""
    of_metrics = {id(v) for metric in objective.own_metrics(model) for v in metric.variables}
    for path, variable in zip(paths, _variables(model), strict=True):
        if id(variable) in of_metrics or variable.path.endswith(GENERATOR):
            yield path


def _unique(paths: Iterable[str]) -> Iterator[str]:
    """Yield a unique name for each path: a repeated path gets a number."""
    seen: dict[str, int] = {}
    for path in paths:
        seen[path] = number = seen.get(path, 0) + 1
        yield path if number == 1 else f"{path}:{number}"


def _can_compile(model: keras.Model) -> bool:
    """Return whether XLA compiles the model quickly. It takes seconds for convolutions on the CPU,
    and longer for recurrent layers."""
    recurrent = any(isinstance(layer, keras.layers.RNN) for layer in all_layers(model))
    return not recurrent and all(len(v.shape) < 4 for v in model.trainable_variables)
