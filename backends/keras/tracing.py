"""Follows one batch through a twin's Keras model, layer by layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as native

from backends.keras import layers as ours
from backends.keras import objective, twin
from runner.components.layers import padding_same
from runner.components.twins import Call, Trace
from runner.data.source import Batch
from runner.spec import TrainState

_OTHERS: Mapping[str, tuple[Any, ...]] = {
    "max_pool": (native.MaxPooling1D, native.MaxPooling2D, native.MaxPooling3D),
    "average_pool": (native.AveragePooling1D, native.AveragePooling2D, native.AveragePooling3D),
    "global_average_pool": (
        native.GlobalAveragePooling1D,
        native.GlobalAveragePooling2D,
        native.GlobalAveragePooling3D,
    ),
    "flatten": (native.Flatten,),
    "dropout": (native.Dropout,),
    "activation": (native.Activation, native.ReLU, native.LeakyReLU, native.ELU, native.Softmax),
}


def trace(network: keras.Model, state: TrainState, rows: Batch, loss: Any) -> Trace:
    """Run one batch in evaluation, then in training with its backward pass."""
    ours.load_state(network, state)
    variables = ours.named(network)
    names = {id(variable): name for name, variable in variables.items()}
    x, y = (tf.constant(rows[name]) for name in ("x", "y"))
    with _recorded(names) as evaluation:
        network(x, training=False)
    with _recorded(names) as training, tf.GradientTape() as tape:
        outputs = network(x, training=True)
        if loss is None:
            value = tf.reduce_mean(tf.square(outputs))
        else:
            value = tf.reduce_mean(objective.build(loss, network)(x, y, outputs, True))
        if network.losses:
            value = value + tf.add_n([tf.cast(one, value.dtype) for one in network.losses])
    trained = {name: v for name, v in variables.items() if v.trainable}
    gradients = tape.gradient(
        value,
        [v.value for v in trained.values()],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    arrays = [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]
    buffers = {name: variables[name].value.numpy() for name in state.buffers}
    by_name = dict(zip(trained, arrays, strict=True))
    return Trace(evaluation, training, outputs.numpy(), float(value), by_name, buffers)


@contextmanager
def outputs_of_layers(network: keras.Model) -> Iterator[list[tuple[str, Any]]]:
    """Collect the outputs of the layers of a model that is called in the block, by name."""
    found: list[tuple[str, Any]] = []
    original = keras.Layer.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        tensor = output[0] if isinstance(output, list | tuple) and output else output
        if self is not network and tf.is_tensor(tensor):
            found.append((self.name, tensor))
        return output

    keras.Layer.__call__ = call
    try:
        yield found
    finally:
        keras.Layer.__call__ = original


@contextmanager
def _recorded(names: Mapping[int, str]) -> Iterator[list[Call]]:
    """Record the calls of layers in the block; those inside a known layer belong to it. The
    activation inside a dense layer or a convolution is a call of its own."""
    calls: list[Call] = []
    original, state = keras.Layer.__call__, {"inside": False}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = _kind(self)
        if state["inside"] or kind is None:
            return original(self, *args, **kwargs)
        state["inside"] = True
        try:
            with _activation_apart(self) as activated:
                output = original(self, *args, **kwargs)
        finally:
            state["inside"] = False
        x = _array(args[0] if args else next(iter(kwargs.values())))
        y = _array(activated[0] if activated else output)
        tensors = tuple(names[id(v)] for v in self.variables if id(v) in names)
        calls.append(Call(kind, twin.name_of(self), tensors, _settings(self, x), x, y))
        if activated:
            name, settings = f"{twin.name_of(self)} (activation)", _activation(activated[1])
            calls.append(Call("activation", name, (), settings, y, _array(output)))
        return output

    keras.Layer.__call__ = call
    try:
        yield calls
    finally:
        keras.Layer.__call__ = original


@contextmanager
def _activation_apart(layer: Any) -> Iterator[list[Any]]:
    """Collect the input of a layer's own activation in the block, then the function."""
    function, found = getattr(layer, "activation", None), list[Any]()
    has_own = not isinstance(layer, (native.Activation, native.RNN))
    if not has_own or function is None or function is keras.activations.linear:
        yield found
        return

    def activate(x: Any) -> Any:
        found[:] = x, function
        return function(x)

    layer.activation = activate
    try:
        yield found
    finally:
        layer.activation = function


def _kind(layer: Any) -> str | None:
    if isinstance(layer, native.Bidirectional):
        layer = layer.forward_layer
    kind = twin.kind_of(layer)
    if kind:
        return kind
    return next((kind for kind, bases in _OTHERS.items() if isinstance(layer, bases)), None)


def _array(tensor: Any) -> np.ndarray:
    if isinstance(tensor, list | tuple):
        tensor = tensor[0]
    array: np.ndarray = tf.convert_to_tensor(tensor).numpy()
    return array


def _settings(layer: Any, x: np.ndarray) -> dict[str, Any]:
    """Return the settings of a layer that may differ."""
    match layer:
        case native.BatchNormalization():
            return {"epsilon": layer.epsilon, "momentum": layer.momentum}
        case native.LayerNormalization():
            num = len(layer.axis) if isinstance(layer.axis, list | tuple) else 1
            return {"epsilon": layer.epsilon, "axes": num}
        case native.RMSNormalization():
            return {"epsilon": layer.epsilon}
        case native.GroupNormalization():
            return {"epsilon": layer.epsilon, "groups": layer.groups}
        case native.MultiHeadAttention():
            return {"heads": layer.num_heads}
        case native.Bidirectional():
            return {"bidirectional": True}
        case native.SimpleRNN():
            return {"bidirectional": False, "activation": layer.activation.__name__}
        case native.LSTM() | native.GRU():
            return {"bidirectional": False, **_gates(layer)}
        case native.Dropout():
            return {"rate": layer.rate}
        case native.Embedding():
            return {"vocabulary": layer.input_dim}
        case native.LeakyReLU():
            return {"function": "leaky_relu", "slope": layer.negative_slope}
        case native.ELU():
            return {"function": "elu", "alpha": layer.alpha}
        case native.ReLU():
            return {"function": "relu" if layer.max_value is None else "relu6"}
        case native.Softmax():
            return {"function": "softmax"}
        case native.Activation():
            return _activation(layer.activation)
    return _window(layer, x)


def _gates(layer: Any) -> dict[str, Any]:
    """Return the functions of an LSTM's or GRU's gates where they are not torch's."""
    functions = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    own = {key: getattr(layer, key).__name__ for key in functions}
    return {key: name for key, name in own.items() if name != functions[key]}


def _activation(function: Any) -> dict[str, Any]:
    name = getattr(function, "__name__", type(function).__name__)
    settings: dict[str, Any] = {"function": name}
    if name == "gelu":
        settings["approximate"] = False
    if name == "leaky_relu":
        settings["slope"] = 0.2
    if name == "elu":
        settings["alpha"] = 1.0
    return settings


def _window(layer: Any, x: np.ndarray) -> dict[str, Any]:
    """Return the settings of a convolution or a pooling layer."""
    window = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
    if window is None:
        return {}
    num = x.ndim - 2
    window, strides = (_each(value, num) for value in (window, layer.strides))
    sizes = x.shape[1:-1] if layer.data_format == "channels_last" else x.shape[2:]
    is_same = layer.padding == "same"
    pads = tuple(
        padding_same(size, w, s) if is_same else (0, 0)
        for size, w, s in zip(sizes, window, strides, strict=True)
    )
    if not hasattr(layer, "dilation_rate"):
        is_average = isinstance(layer, _OTHERS["average_pool"]) and any(map(any, pads))
        counted = {"counts_padding": False} if is_average else {}
        return {"window": window, "strides": strides, "padding": pads, **counted}
    return {
        "strides": strides,
        "dilation": _each(layer.dilation_rate, num),
        "padding": pads,
        "groups": getattr(layer, "groups", None),
    }


def _each(value: Any, num: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * num
