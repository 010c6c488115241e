"""The layers of a twin's Keras model, and the canonical layouts of their variables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as native
from tensorflow.python.ops import math_ops

from backends.keras import layers as ours
from runner.components.twins import SAME, Layers, Layout, Tensor, TwinLayer
from runner.errors import ConfigError

# class -> kind, and (attribute, role) of its variables
_KERNEL = (("kernel", "kernel"), ("bias", "bias"))
_NORM = (("gamma", "scale"), ("beta", "offset"))
_RUNNING = (("moving_mean", "mean"), ("moving_variance", "variance"))
_KINDS: Mapping[Any, tuple[str, tuple[tuple[str, str], ...]]] = {
    native.Dense: ("dense", _KERNEL),
    native.Conv1D: ("conv", _KERNEL),
    native.Conv2D: ("conv", _KERNEL),
    native.Conv3D: ("conv", _KERNEL),
    native.DepthwiseConv1D: ("depthwise_conv", _KERNEL),
    native.DepthwiseConv2D: ("depthwise_conv", _KERNEL),
    native.Conv1DTranspose: ("conv_transpose", _KERNEL),
    native.Conv2DTranspose: ("conv_transpose", _KERNEL),
    native.Conv3DTranspose: ("conv_transpose", _KERNEL),
    native.BatchNormalization: ("batch_norm", (*_NORM, *_RUNNING)),
    native.LayerNormalization: ("layer_norm", _NORM),
    native.GroupNormalization: ("group_norm", _NORM),
    native.RMSNormalization: ("rms_norm", (("scale", "scale"),)),
    native.PReLU: ("prelu", (("alpha", "slope"),)),
    native.Embedding: ("embedding", (("embeddings", "table"),)),
}
_RECURRENT = {native.LSTM: "lstm", native.GRU: "gru", native.SimpleRNN: "rnn"}
_RANDOM = (native.SpatialDropout1D, native.SpatialDropout2D, native.SpatialDropout3D,
           native.GaussianDropout, native.GaussianNoise, native.AlphaDropout)  # fmt: skip


@contextmanager
def calls(is_used: bool = True) -> Iterator[list[Any]]:
    """Collect the layers that are called in the block, each once, outer layers first."""
    if not is_used:
        yield []
        return
    called: dict[int, Any] = {}
    original = keras.Layer.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.setdefault(id(self), self)
        layers[:] = called.values()
        return original(self, *args, **kwargs)

    layers: list[Any] = []
    keras.Layer.__call__ = call
    try:
        yield layers
    finally:
        keras.Layer.__call__ = original


def find(called: list[Any], named: Mapping[str, Any]) -> Layers:
    """List the layers of a model in order of definition, which is the order of its variables.
    `named` are its variables; `called` are its layers, outer ones first."""
    names = {id(variable): name for name, variable in named.items()}
    order = {id(variable): i for i, variable in enumerate(named.values())}
    found: list[tuple[int, TwinLayer]] = []
    for layer in called:
        _refuse(layer)
        claimed = _known(layer, names)
        if claimed is not None and claimed.tensors:
            ids = [id(v) for v in layer.variables if id(v) in names]
            found.append((min(order[i] for i in ids), claimed))
            for i in ids:
                del names[i]
    constants = {}
    for i, name in names.items():
        variable = named[name]
        if variable.trainable:
            tensor = Tensor(name, ("value",))
            found.append((order[i], TwinLayer("parameter", name, (tensor,))))
        else:  # the state of a generator, or the user's own
            constants[name] = variable.value.numpy()
    return Layers(tuple(layer for _, layer in sorted(found, key=lambda one: one[0])), constants)


def _known(layer: Any, names: Mapping[int, str]) -> TwinLayer | None:
    """Return a layer of a known kind, or None. Another layer may have claimed its variables."""
    tensors: list[Tensor] = []

    def add(variable: Any, *roles: str, layout: Layout = SAME) -> None:
        if variable is not None and id(variable) in names:
            tensors.append(Tensor(names[id(variable)], roles, layout))

    kind = kind_of(layer)
    attributes = next((a for base, (_, a) in _KINDS.items() if isinstance(layer, base)), ())
    for attribute, role in attributes:
        is_split = kind == "depthwise_conv" and attribute == "kernel"
        layout = _depthwise(layer) if is_split else SAME
        add(getattr(layer, attribute, None), role, layout=layout)
    if kind == "attention":
        for head in ("query", "key", "value", "output"):
            dense = getattr(layer, f"{head}_dense")
            layout = _heads(1 if head != "output" else 2)
            add(dense.kernel, f"{head}_kernel", layout=layout(dense.kernel.shape))
            if dense.bias is not None:
                flat = _reshaped((-1,), dense.bias.shape)
                add(dense.bias, f"{head}_bias", layout=flat)
    if kind in _RECURRENT.values():
        cell = layer.cell
        add(cell.kernel, "input_kernel")
        add(cell.recurrent_kernel, "recurrent_kernel")
        if kind == "gru":
            rows = Layout(lambda value: list(value), np.stack)
            add(cell.bias, "input_bias", "recurrent_bias", layout=rows)
        else:
            add(cell.bias, "bias")
    return TwinLayer(kind, name_of(layer), tuple(tensors)) if kind else None


def kind_of(layer: Any) -> str:
    """Return the kind of a layer with variables, or an empty text."""
    if isinstance(layer, native.MultiHeadAttention):
        return "attention"
    recurrent = next((kind for base, kind in _RECURRENT.items() if isinstance(layer, base)), "")
    kind = next((kind for base, (kind, _) in _KINDS.items() if isinstance(layer, base)), recurrent)
    if kind == "conv" and layer.groups > 1 and layer.kernel.shape[-2] == 1:
        return "depthwise_conv"
    return kind


def name_of(layer: Any) -> str:
    return str(getattr(layer, "path", None) or layer.name)


def _reshaped(shape: tuple[int, ...], back: Any) -> Layout:
    return Layout(
        lambda value: [value.reshape(shape)], lambda values: values[0].reshape(tuple(back))
    )


def _heads(num_inputs: int) -> Any:
    """Return the layout of a kernel with an axis for the heads: [in, H, K] -> [in, H K], or
    [H, K, out] -> [H K, out]."""

    def layout(shape: Any) -> Layout:
        sizes = (int(np.prod(shape[:num_inputs])), int(np.prod(shape[num_inputs:])))
        return _reshaped(sizes, shape)

    return layout


def _depthwise(layer: Any) -> Layout:
    """Return the layout of a depthwise kernel: [..., 1, in * M] of groups -> [..., in, M]."""
    shape = layer.kernel.shape
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return SAME
    return _reshaped((*shape[:-2], groups, shape[-1] // groups), shape)


def _rates(layer: Any) -> tuple[str, ...]:
    """Return the keys of the rates of dropout inside a layer."""
    if isinstance(layer, native.MultiHeadAttention):
        return ("dropout",)
    return ("dropout", "recurrent_dropout") if isinstance(layer, native.RNN) else ()


def _refuse(layer: Any) -> None:
    """Refuse what torch cannot have."""
    why = ""
    if isinstance(layer, _RANDOM):
        why = "draws random numbers that torch cannot draw; use keras.layers.Dropout"
    elif any(layer.get_config().get(key) for key in _rates(layer)):
        why = "has dropout inside, which differs from torch's; use 0"
    elif isinstance(layer, native.GRU) and not layer.reset_after:
        why = "has reset_after=False, which torch does not have; use true"
    if why:
        raise ConfigError(f"model.keras: {name_of(layer)} ({type(layer).__name__}) {why}")


def align(called: list[Any], order: Mapping[int, int], state: ours.DropoutState) -> None:
    """Let the layers train as torch's do: dropouts draw the runner's masks, which are the same on
    both frameworks, and the running variance of batch norms is unbiased. `order` has the position
    of each variable: a dropout has the state of a generator."""
    dropouts = [layer for layer in called if type(layer) is native.Dropout and layer.variables]
    dropouts.sort(key=lambda layer: order.get(id(layer.variables[0]), 0))
    for index, layer in enumerate(dropouts):
        layer.call = ours.Dropout(layer.rate, index, state).call
    for layer in called:
        if isinstance(layer, native.BatchNormalization) and not layer.renorm:
            layer.call = _unbiased(layer)


def _unbiased(layer: Any) -> Any:
    """Return the call of a batch norm with torch's running variance: n / (n - 1) times the batch's
    biased one, which is Keras's."""
    stock = layer.call

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training or not layer.trainable:
            return stock(inputs, training=training, mask=mask)
        old = layer.moving_variance.value * ours.constant(layer.momentum, layer.moving_variance)
        y = stock(inputs, training=training, mask=mask)
        x = tf.convert_to_tensor(inputs)
        n = tf.cast(tf.size(x) // x.shape[layer.axis], old.dtype)
        new = layer.moving_variance.value
        layer.moving_variance.assign(old + (new - old) * (n / (n - 1)))
        return y

    return call


@contextmanager
def exact_numbers(is_used: bool = True) -> Iterator[None]:
    """Keep Python numbers in float64 in the block, as torch does. TensorFlow casts them through
    float32, so GELU would be off by 5e-9, leaky ReLU by 5e-10, and the scale of attention by 1e-8.
    """
    if not is_used:
        yield
        return
    cast, public_cast, leaky_relu = math_ops.cast, tf.cast, tf.nn.leaky_relu

    def exact_cast(x: Any, dtype: Any, name: str | None = None) -> Any:
        if type(x) is float and tf.as_dtype(dtype).is_floating:
            return tf.constant(x, dtype=dtype)
        return cast(x, dtype, name)

    def exact_leaky_relu(features: Any, alpha: float = 0.2, name: str | None = None) -> Any:
        x = tf.convert_to_tensor(features)
        return tf.where(x > 0, x, x * tf.constant(alpha, x.dtype))

    math_ops.cast, tf.cast, tf.nn.leaky_relu = exact_cast, exact_cast, exact_leaky_relu
    try:
        yield
    finally:
        math_ops.cast, tf.cast, tf.nn.leaky_relu = cast, public_cast, leaky_relu
