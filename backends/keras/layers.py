"""The layers as keras.layers. The canonical layout is Keras's: channels last, kernels
[..., in, out]."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops
from keras import layers as native

from backends.keras.distributed import Together
from runner.components import layers as spec
from runner.components.positions import encodings
from runner.random import MASK, threshold
from runner.spec import TrainState

_RECURRENT = {name: f"cell.{name}" for name in ("kernel", "recurrent_kernel", "bias")}
_BIDIRECTIONAL = {
    f"{prefix}{name}": f"{layer}_layer.{path}"
    for prefix, layer in (("", "forward"), ("backward_", "backward"))
    for name, path in _RECURRENT.items()
}


def _products(*prefixes: str) -> dict[str, str]:
    """Map the variables of two dense layers within one to themselves."""
    return {f"{p}{name}": f"{p}{name}" for p in prefixes for name in ("kernel", "bias")}


# canonical variable -> Keras's attribute for it
_NAMES = {
    "dense": {"kernel": "kernel", "bias": "bias"},
    "conv2d": {"kernel": "kernel", "bias": "bias"},
    "depthwise_conv2d": {"kernel": "kernel", "bias": "bias"},
    "conv2d_transpose": {"kernel": "kernel", "bias": "bias"},
    "conv1d": {"kernel": "kernel", "bias": "bias"},
    "gru": _RECURRENT,
    "lstm": _RECURRENT,
    "batch_norm": {
        "scale": "gamma",
        "offset": "beta",
        "mean": "moving_mean",
        "variance": "moving_variance",
    },
    "layer_norm": {"scale": "gamma", "offset": "beta"},
    "embedding": {"embedding": "embeddings"},
    "rms_norm": {"scale": "scale"},
    "group_norm": {"scale": "gamma", "offset": "beta"},
    "position_embedding": {"embedding": "embedding"},
    "attention": {"query": "query", "key": "key", "value": "value", "output": "out"},
    "gated_dense": _products("gate_", ""),
    "squeeze_excite": _products("squeeze_", "excite_"),
}
# the same for the stock layers that replace ours in an export; NODE.PART is one of several
_STOCK_NAMES = {
    "gated_dense.gate": {"gate_kernel": "kernel", "gate_bias": "bias"},
    "gated_dense.value": {"kernel": "kernel", "bias": "bias"},
    "squeeze_excite.squeeze": {"squeeze_kernel": "kernel", "squeeze_bias": "bias"},
    "squeeze_excite.excite": {"excite_kernel": "kernel", "excite_bias": "bias"},
    **{f"attention.{part}": {part: "kernel"} for part in ("query", "key", "value", "output")},
    "dense": {"bias": "bias"},  # one that is tied to an embedding
    "position_embedding": {"embedding": "bias"},
    "attention": {name: f"{name}_dense.kernel" for name in ("query", "key", "value", "output")},
}


class DropoutState:
    """Seed, step and micro-batch of the current forward pass. Together with the index of a layer
    they determine its dropout mask. A process that has a part of the micro-batch has `own_rows` of
    its `num_rows`, from `first_row` on. If it has none, the pass has a row of zeros that does not
    count. `together` are the processes, None for one. Batch norm has the statistics of all of them,
    if it `syncs_statistics`."""

    def __init__(
        self, seed: int, together: Together | None = None, syncs_statistics: bool = True
    ) -> None:
        # a variable, so that runs with other seeds can use the same compiled functions
        self.seed = tf.Variable(seed, trainable=False, dtype=tf.int64)
        self.step: Any = 0
        self.micro_batch: Any = 0
        self.first_row = self.own_rows = self.num_rows = 0
        self.together = together
        self.syncs_statistics = together is not None and syncs_statistics
        self.recomputes = False  # True while the backward pass computes a block again


def build(
    network: spec.Network,
    dropout_state: DropoutState | None,
    kind: type[keras.Model] = keras.Model,
    recomputes: bool = False,
) -> keras.Model:
    """The whole model, functional: keras.layers in order, each under its canonical name. With
    `recomputes`, each residual and parallel layer is a model in a layer `_Recomputed`."""
    x = keras.Input(network.input_shape, dtype="int32" if network.takes_tokens else None)
    ties = {node.spec.tie for node in network.walk() if node.tied}
    tables = {
        node.name: native.ReversibleEmbedding(*node.variables[0].shape, name=node.name)
        for node in network.walk()
        if node.name in ties
    }
    make = _recomputed if recomputes else _sequence
    return kind(x, make(network.nodes, x, dropout_state, tables))


def named(model: keras.Model) -> dict[str, Any]:
    """Canonical name -> the model's own variable, trained or not."""
    if hasattr(model, "own"):  # the user's own model
        return dict(model.own())
    variables = {}
    for layer in _flat(model):
        node, dot, part = layer.name.partition(".")
        kind = node.rpartition("_")[0] + dot + part
        stock = isinstance(layer, (native.MultiHeadAttention, native.EinsumDense)) or part
        names = (_STOCK_NAMES if stock else _NAMES).get(kind, {})
        if isinstance(layer, native.Bidirectional):
            names = _BIDIRECTIONAL
        for canonical, attribute in names.items():
            if (variable := attrgetter(attribute)(layer)) is not None:
                variables[f"{node}/{canonical}"] = variable
    return variables


def _flat(model: keras.Model) -> Iterator[native.Layer]:
    """Yield the layers of a model and those inside its recomputed blocks."""
    for layer in model.layers:
        if isinstance(layer, _Recomputed):
            yield from layer.inside.layers
        else:
            yield layer


def load(model: keras.Model, values: Mapping[str, np.ndarray]) -> None:
    """Copy canonical values into the model."""
    for name, variable in named(model).items():
        # stock attention has a separate axis for its heads
        variable.assign(values[name].reshape(variable.shape))


def save(model: keras.Model, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return canonical copies of the model's values."""
    variables = named(model)
    return {name: read(variables[name]) for name in names}


def read(variable: Any) -> np.ndarray:
    """Return a copy of a variable's value. `numpy()` of a tf.Variable takes three times as long."""
    variable = variable.value if isinstance(variable, keras.Variable) else variable
    if isinstance(variable, tf.distribute.DistributedValues):
        value: np.ndarray = variable.numpy()
    else:
        read_op = tf.raw_ops.ReadVariableOp
        value = read_op(resource=variable.handle, dtype=variable.dtype).numpy()
    return value


def load_state(model: keras.Model, state: TrainState) -> None:
    load(model, {**state.weights, **state.buffers})


def constant(value: Any, like: Any) -> Any:
    """Convert a Python number or a tensor to the dtype of `like`. Keras's own casts go through
    float32, which rounds."""
    dtype = tf.as_dtype(keras.backend.standardize_dtype(like.dtype))
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype=dtype)


def _is_16_bit(x: Any) -> bool:
    """Return whether x has 16 bits, so that sums over it need float32."""
    return keras.backend.standardize_dtype(x.dtype) in ("bfloat16", "float16")


def _in_wide_dtype(layer: native.Layer, x: Any, compute: Callable[[Any], Any]) -> Any:
    """Apply `compute` to x, in float32 if x has 16 bits."""
    if not _is_16_bit(x):
        return compute(x)
    return ops.cast(compute(ops.cast(x, "float32")), layer.compute_dtype)


class _Grouped(native.Layer):
    """A convolution with groups, by XLA, which has the derivatives that TensorFlow's own kernel
    lacks on the CPU. Keras's does not compile inside a compiled update if it is dilated too."""

    kernel: Any
    bias: Any
    padding: str
    strides: Any
    dilation_rate: Any

    def call(self, inputs: Any) -> Any:
        x, kernel, padding = inputs, tf.convert_to_tensor(self.kernel), self.padding.upper()
        if padding == "CAUSAL":
            before = (kernel.shape[0] - 1) * self.dilation_rate[0]
            x, padding = tf.pad(x, [(0, 0), (before, 0), (0, 0)]), "VALID"
        operation = tf.nn.conv1d if len(kernel.shape) == 3 else tf.nn.conv2d

        @tf.function(jit_compile=True, autograph=False)  # autograph would write a file
        def convolution(x: Any, kernel: Any) -> Any:
            return operation(x, kernel, self.strides, padding, dilations=self.dilation_rate)

        y = convolution(x, kernel)
        return y if self.bias is None else y + tf.convert_to_tensor(self.bias)


class _GroupedConv1D(_Grouped, native.Conv1D):
    pass


class _GroupedConv2D(_Grouped, native.Conv2D):
    pass


class _BatchNorm(native.BatchNormalization):
    """Batch norm with torch's running variance, which is unbiased: n / (n - 1) times the batch's.
    Keras's is biased."""

    def __init__(self, dropout_state: DropoutState, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout_state = dropout_state

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        x = inputs
        is_16_bit = _is_16_bit(x)
        if is_16_bit:
            x = ops.cast(x, "float32")
        if training:
            several = self.dropout_state.syncs_statistics
            y, mean, variance = self._by_total(x) if several else self._by_own(x, None)
            if self.dropout_state.recomputes:
                return ops.cast(y, self.compute_dtype) if is_16_bit else y
            for running, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                old = constant(self.momentum, running)
                running.assign(running * old + batch * constant(1 - self.momentum, running))
        else:
            statistics = self.moving_mean.value, self.moving_variance.value
            y, _, _ = self._by_own(x, statistics)
        return ops.cast(y, self.compute_dtype) if is_16_bit else y

    def _by_own(self, x: Any, statistics: tuple[Any, Any] | None) -> tuple[Any, Any, Any]:
        """Normalise by the mean and variance of this process's rows, or by the given ones."""
        gamma, beta = (tf.convert_to_tensor(one) for one in (self.gamma, self.beta))
        return _normalized(x, gamma, beta, self.epsilon, statistics)

    def _by_total(self, x: Any) -> tuple[Any, Any, Any]:
        """Normalise by the mean and variance of the micro-batch of all processes.

        Each has n rows with the mean m and the variance v, of N rows. The processes exchange
        (m, v, n): mean M = sum(n m) / N, variance V = sum(n (v + (m - M)^2)) / N. The derivative
        needs two sums more, g = sum(dy (x - M) r) and b = sum(dy), with r = (V + eps)^(-1/2):
        dx = gamma r (dy - b / N - (x - M) r g / N). Autograd's derivative of a mean and a variance
        would take four exchanges, at each of which one process waits for the others.
        """
        state, size = self.dropout_state, math.prod(x.shape[1:-1])
        assert state.together is not None
        exchange, epsilon = state.together.gathered, self.epsilon
        own, num = state.own_rows * size, state.num_rows * size

        def normalized(x: Any, gamma: Any, beta: Any) -> Any:
            statistics = _moments(x, gamma, beta, own)
            parts = exchange(tf.concat([*statistics, constant(float(own), x)[None]], 0))
            means, variances, counts = tf.split(parts, [x.shape[-1], x.shape[-1], 1], 1)
            mean = tf.reduce_sum(counts * means, 0) / num
            variance = tf.reduce_sum(counts * (variances + (means - mean) ** 2), 0) / num

            def gradient(dy: Any, *_: Any) -> Any:
                dx, *sums = _derivatives(dy, x, gamma, epsilon, mean, variance)
                g, b = tf.unstack(tf.reduce_sum(exchange(tf.stack(sums)), 0) / num)
                r = tf.math.rsqrt(variance + constant(epsilon, variance))
                dx -= (x - mean) * (gamma * r * r * g) + gamma * r * b
                return (dx if own else tf.zeros_like(x)), *sums

            y, *_ = _normalized(x, gamma, beta, epsilon, (mean, variance))
            return (y, mean, variance), gradient

        gamma, beta = (tf.convert_to_tensor(one) for one in (self.gamma, self.beta))
        y, mean, variance = tf.custom_gradient(normalized)(x, gamma, beta)
        return y, mean, variance * (num / (num - 1))


def _has_kernel(x: Any) -> bool:
    """Return whether TensorFlow has a kernel for batch norm of x, which takes half the time of the
    formula; it has float32 images only."""
    return len(x.shape) == 4 and x.dtype == tf.float32


def _normalized(
    x: Any, gamma: Any, beta: Any, epsilon: float, statistics: tuple[Any, Any] | None
) -> tuple[Any, Any, Any]:
    """Return the output, the mean and the unbiased variance. If `statistics` is None, normalise by
    the batch's mean and variance."""
    if not _has_kernel(x):
        mean, variance = statistics or tf.nn.moments(x, list(range(len(x.shape) - 1)))
        n = tf.cast(tf.size(x) // x.shape[-1], x.dtype)
        y = (x - mean) * (gamma * tf.math.rsqrt(variance + constant(epsilon, variance))) + beta
        return y, mean, variance * (n / (n - 1))
    mean, variance = statistics or ([], [])
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=statistics is None,
    )
    return y, mean, variance


def _moments(x: Any, gamma: Any, beta: Any, num: int) -> tuple[Any, Any]:
    """Return the mean and the biased variance of `num` values of each channel."""
    if not _has_kernel(x):
        mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
    else:  # the kernel takes less time than TensorFlow's sums, also with its output
        _, mean, variance = _normalized(x, gamma, beta, 1e-3, None)
        variance *= (num - 1) / num if num > 1 else 0.0
    return mean, variance


def _derivatives(
    dy: Any, x: Any, gamma: Any, epsilon: float, mean: Any, variance: Any
) -> tuple[Any, Any, Any]:
    """Return the derivatives by x, gamma and beta, for a mean and a variance that are constants."""
    if _has_kernel(x):
        dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy,
            x=x,
            scale=gamma,
            reserve_space_1=mean,
            reserve_space_2=variance,
            reserve_space_3=[],
            epsilon=epsilon,
            is_training=False,
        )
        return dx, dgamma, dbeta
    r, axes = tf.math.rsqrt(variance + constant(epsilon, variance)), list(range(len(x.shape) - 1))
    dgamma = tf.reduce_sum(dy * (x - mean), axes) * r
    return dy * (gamma * r), dgamma, tf.reduce_sum(dy, axes)


class _LayerNorm(native.LayerNormalization):
    """Layer norm with eps in the dtype of x. Keras casts eps to float32."""

    def call(self, inputs: Any) -> Any:
        return _in_wide_dtype(self, inputs, self._normalized)

    def _normalized(self, x: Any) -> Any:
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(
            variance + constant(self.epsilon, variance)
        ) * self.gamma + self.beta


class _RMSNorm(native.RMSNormalization):
    """RMS norm with eps in the dtype of x. Keras casts eps to float32."""

    def call(self, inputs: Any) -> Any:
        return _in_wide_dtype(self, inputs, self._normalized)

    def _normalized(self, x: Any) -> Any:
        mean_square = tf.reduce_mean(x * x, -1, keepdims=True)
        return x * tf.math.rsqrt(mean_square + constant(self.epsilon, x)) * self.scale


class _GroupNorm(native.GroupNormalization):
    """Group norm with eps in the dtype of x. Keras casts eps to float32."""

    def call(self, inputs: Any) -> Any:
        return _in_wide_dtype(self, inputs, self._normalized)

    def _normalized(self, x: Any) -> Any:
        *positions, channels = x.shape[1:]
        size = channels // self.groups
        by_group = tf.reshape(x, [-1, math.prod(positions), self.groups, size])
        mean, variance = tf.nn.moments(by_group, [1, 3], keepdims=True)
        gamma, beta = (
            tf.reshape(tf.convert_to_tensor(w), [self.groups, size])
            for w in (self.gamma, self.beta)
        )
        scale = tf.math.rsqrt(variance + constant(self.epsilon, x)) * gamma
        return tf.reshape((by_group - mean) * scale + beta, [-1, *positions, channels])


class _Layer(native.Layer):
    """A layer that takes masked sequences; Keras attaches the masks of calls to the tensors."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True


class _PositionEmbedding(_Layer):
    def build(self, shape: Any) -> None:
        self.embedding = self.add_weight(shape=(1, *shape[1:]), name="embedding")

    def call(self, x: Any) -> Any:
        return x + self.embedding


class _Attention(_Layer):
    """spec.Attention. Keras's own layer rounds the scale to float32."""

    def __init__(self, node: spec.Node, **kwargs: Any) -> None:
        super().__init__(name=node.name, **kwargs)
        self.node, self.is_causal = node, node.spec.causal
        self.num_heads, self.kv_heads = node.spec.num_heads, node.spec.kv_heads

    def build(self, shape: Any) -> None:
        self.query, self.key, self.value, self.out = (
            self.add_weight(shape=variable.shape, name=variable.name)
            for variable in self.node.variables
        )

    def call(self, x: Any, mask: Any = None) -> Any:  # [B, T, D]
        length, width = x.shape[1:]
        kernels = tf.concat(
            [tf.convert_to_tensor(kernel) for kernel in (self.query, self.key, self.value)], 1
        )
        q, k, v = self._heads(tf.reshape(x, [-1, width]) @ kernels)
        if (angles := self.node.spec.rotations((length, width))) is not None:
            q, k = (_rotated(heads, *angles) for heads in (q, k))
        size = width // self.num_heads
        scores = self._by_query(tf.matmul(self._by_key(q), k, transpose_b=True))
        scores *= constant(size**-0.5, q)
        scores = tf.cast(scores, tf.float32) if _is_16_bit(scores) else scores
        if self.is_causal:
            is_earlier = np.tril(np.ones((length, length), bool))
            scores = tf.where(is_earlier, scores, constant(-np.inf, scores))
        if mask is not None:
            scores = tf.where(mask[:, None, None], scores, constant(-np.inf, scores))
        weights = self._by_key(tf.cast(tf.nn.softmax(scores), v.dtype))
        heads = tf.transpose(self._by_query(tf.matmul(weights, v)), [0, 2, 1, 3])
        return tf.reshape(
            tf.reshape(heads, [-1, width]) @ tf.convert_to_tensor(self.out), [-1, length, width]
        )

    def _heads(self, rows: Any) -> list[Any]:
        """Split queries, keys and values into heads.  # [B, H, T, D / H] each"""
        length, width = self.node.input_shape
        size = width // self.num_heads
        if self.num_heads == self.kv_heads:
            by_head = tf.reshape(rows, [-1, length, 3, self.num_heads, size])
            heads: list[Any] = tf.unstack(tf.transpose(by_head, [2, 0, 3, 1, 4]))
            return heads
        numbers = [self.num_heads, self.kv_heads, self.kv_heads]
        parts = tf.split(rows, [num * size for num in numbers], 1)
        return [
            tf.transpose(tf.reshape(part, [-1, length, num, size]), [0, 2, 1, 3])
            for part, num in zip(parts, numbers, strict=True)
        ]

    def _by_key(self, x: Any) -> Any:
        """[B, H, T, ...] -> [B, G, H / G T, ...]: the heads that share a key are rows of one
        product."""
        if self.num_heads == self.kv_heads:
            return x
        rows = self.num_heads // self.kv_heads * x.shape[2]
        return tf.reshape(x, [-1, self.kv_heads, rows, x.shape[3]])

    def _by_query(self, x: Any) -> Any:
        """Undo `_by_key`."""
        if self.num_heads == self.kv_heads:
            return x
        return tf.reshape(x, [-1, self.num_heads, self.node.input_shape[0], x.shape[3]])


def _rotated(x: Any, cos: np.ndarray, sin: np.ndarray) -> Any:
    """Rotate the pairs of the columns [B, H, T, D / H] by the angles of the steps."""
    a, b = tf.split(x, 2, -1)
    c, s = constant(cos, x), constant(sin, x)
    return tf.concat([a * c - b * s, b * c + a * s], -1)


class _Bias(_Layer):
    """The bias of a dense layer that is tied to an embedding."""

    kernel = None

    def build(self, shape: Any) -> None:
        self.bias = self.add_weight(shape=shape[-1:], name="bias")

    def call(self, x: Any) -> Any:
        return x + self.bias


class _SinusoidalPositions(_Layer):
    def __init__(self, node: spec.Node) -> None:
        super().__init__(name=node.name)
        self.encodings = encodings(node.input_shape, node.spec.base)

    def call(self, x: Any) -> Any:
        return x + constant(self.encodings, x)


class _Products(_Layer):
    """The weights of two dense layers within one, under their canonical names."""

    gate_kernel = gate_bias = kernel = bias = None
    squeeze_kernel = squeeze_bias = excite_kernel = excite_bias = None

    def __init__(self, node: spec.Node) -> None:
        super().__init__(name=node.name)
        self.node = node

    def build(self, shape: Any) -> None:
        for variable in self.node.variables:
            weight = self.add_weight(shape=variable.shape, name=variable.name)
            setattr(self, variable.name, weight)


class _GatedDense(_Products):
    """spec.GatedDense, with one product for both kernels."""

    def call(self, x: Any) -> Any:  # [B, ..., in] -> [B, ..., out]
        kernel = tf.concat([*map(tf.convert_to_tensor, (self.gate_kernel, self.kernel))], 1)
        y = tf.reshape(x, [-1, x.shape[-1]]) @ kernel
        if self.node.spec.bias:
            y += tf.concat([*map(tf.convert_to_tensor, (self.gate_bias, self.bias))], 0)
        gate, value = tf.split(y, 2, -1)
        y = _ACTIVATIONS[self.node.spec.activation](self.node.spec)(gate) * value
        return tf.reshape(y, [-1, *x.shape[1:-1], y.shape[-1]])


class _SqueezeExcite(_Products):
    """spec.SqueezeExcite of [B, T, C] and [B, H, W, C]."""

    def call(self, x: Any) -> Any:
        positions = list(range(1, len(x.shape) - 1))
        hidden = tf.nn.relu(self._product("squeeze", tf.reduce_mean(x, positions)))
        scale = tf.sigmoid(self._product("excite", hidden))
        return x * tf.reshape(scale, [-1, *(1 for _ in positions), x.shape[-1]])

    def _product(self, name: str, x: Any) -> Any:
        y = x @ tf.convert_to_tensor(getattr(self, f"{name}_kernel"))
        return y + getattr(self, f"{name}_bias") if self.node.spec.bias else y


class Dropout(_Layer):
    """Dropout with the masks of runner.random.keep, computed on the device."""

    def __init__(
        self,
        rate: float,
        index: int,
        dropout_state: DropoutState,
        is_masked: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.index, self.dropout_state = rate, index, dropout_state
        self.is_masked = is_masked

    def call(self, x: Any, training: bool | None = None) -> Any:
        if not training or self.rate == 0:
            return x
        return x * tf.where(self.keep(x), constant(1 / (1 - self.rate), x), constant(0.0, x))

    def keep(self, x: Any) -> Any:
        key = layer_key(self.dropout_state.seed, self.index)
        state = self.dropout_state
        where = (state.step, state.micro_batch, state.first_row)
        return keep(tf.shape(x), self.rate, key, *where, self.is_masked)


class _StochasticDepth(Dropout):
    """Dropout of whole rows."""

    def keep(self, x: Any) -> Any:
        state, key = self.dropout_state, layer_key(self.dropout_state.seed, self.index)
        where = (state.step, state.micro_batch, state.first_row)
        mask = keep(tf.shape(x)[:1], self.rate, key, *where)
        return tf.reshape(mask, [-1, *(1,) * (len(x.shape) - 1)])


def layer_key(seed: Any, layer_index: int) -> Any:
    """Compute runner.random.layer_key of a tensor."""
    return _mix_tensor(_low_32_bits(_mix_tensor(_low_32_bits(seed)) + layer_index))


def keep(
    shape: Any,
    rate: float,
    key: Any,
    step: Any,
    micro_batch: Any,
    first_row: int = 0,
    is_masked: bool = False,
) -> Any:
    """Compute runner.random.keep in a shape, for rows from `first_row` on. Rows of a masked
    sequence have elements of their own."""
    k = _mix_tensor(
        _low_32_bits(_mix_tensor(_low_32_bits(key + tf.cast(step, tf.int64))) + micro_batch)
    )
    num_rows, size = tf.cast(shape[0], tf.int64), tf.reduce_prod(tf.cast(shape[1:], tf.int64))
    if is_masked:
        rows = tf.range(num_rows, dtype=tf.int64) + first_row
        k, i = _mix_tensor(_low_32_bits(rows + k))[:, None], tf.range(size, dtype=tf.int64)
    else:
        i = tf.range(num_rows * size, dtype=tf.int64)
        if first_row:
            i += first_row * size
    hashes = _mix_tensor(tf.bitwise.bitwise_xor(_mix_tensor(_low_32_bits(i + k)), k))
    return tf.reshape(hashes >= threshold(rate), shape)


def _low_32_bits(x: Any) -> Any:
    """Return the low 32 bits, as int64."""
    return tf.bitwise.bitwise_and(tf.cast(x, tf.int64), tf.constant(MASK, tf.int64))


def _mix_tensor(x: Any) -> Any:
    """Compute runner.random.mix of int64 tensors that hold 32 bits."""
    shift, xor = tf.bitwise.right_shift, tf.bitwise.bitwise_xor
    x = _low_32_bits(xor(x, shift(x, tf.constant(16, tf.int64))) * 0x7FEB352D)
    x = _low_32_bits(xor(x, shift(x, tf.constant(15, tf.int64))) * 0x846CA68B)
    return xor(x, shift(x, tf.constant(16, tf.int64)))


def _sequence(
    nodes: Sequence[spec.Node],
    x: KerasTensor,
    dropout_state: DropoutState | None,
    tables: Mapping[str, native.Layer],
    mask: KerasTensor | None = None,
) -> KerasTensor:
    """Apply the layers. `tables` has the embeddings that dense layers are tied to, by their names.
    `mask` [B, T] is that of x; a layer among them may find it."""
    for node in nodes:
        if node.spec.makes_mask:
            mask = _find_mask(node.spec, x)
        known = mask if node.is_masked else None
        if node.spec.layer == "embedding" and x.dtype != "int32":
            x = ops.cast(x, "int32")  # ids beside numbers
        if node.branches:
            first, *others = (
                _sequence(branch, x, dropout_state, tables, known) for branch in node.branches
            )
            if dropout_state and (rate := node.spec.drop_rate) > 0:
                name = f"{node.name}.depth"
                first = _StochasticDepth(rate, node.index, dropout_state, name=name)(first)
            x = _JOINS[node.spec.joined_by](name=node.name)([first, *others])
        elif node.spec.layer == "slice":
            columns = slice(*node.spec.ends(node.input_shape))
            x = x[(*(slice(None) for _ in node.input_shape), columns)]
        elif node.spec.layer == "blank_padding":
            x = _with_blanks(x, known)
        elif node.columns:
            x = ops.take(x, np.array(node.columns), axis=1)
        elif node.tied:
            x = _tied_dense(
                node, tables[node.spec.tie](x, reverse=True), is_stock=not dropout_state
            )
        elif not dropout_state and node.spec.layer in _COMPOSED and not _has_stock_layer(node):
            x = _COMPOSED[node.spec.layer](node, x, known)
        else:
            layer = tables.get(node.name) or _build(node, dropout_state)
            x = _apply(node, layer, x, known)
    return x


class _Recomputed(_Layer):
    """A block whose inside the backward pass computes again, by tf.recompute_grad. Its inputs are
    x and, if the block uses it, the mask of a padded sequence."""

    def __init__(self, inside: keras.Model, dropout_state: DropoutState, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.inside, self.dropout_state = inside, dropout_state

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> KerasTensor:
        y = self.inside.outputs[0]
        return KerasTensor(y.shape, y.dtype)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training:
            return self.inside(inputs, training=False)
        x, *mask = inputs
        num_passes = 0

        def forward(x: Any) -> Any:
            nonlocal num_passes
            # the first pass keeps running statistics; each pass is traced once
            self.dropout_state.recomputes = num_passes > 0
            num_passes += 1
            try:
                return self.inside([x, *mask], training=True)
            finally:
                self.dropout_state.recomputes = False

        return tf.recompute_grad(forward)(x)


def _recomputed(
    nodes: Sequence[spec.Node],
    x: KerasTensor,
    dropout_state: DropoutState | None,
    tables: Mapping[str, native.Layer],
) -> KerasTensor:
    """Apply the layers as `_sequence` does, each block by a layer `_Recomputed`."""
    assert dropout_state is not None
    mask = None
    for node in nodes:
        if not node.branches:
            if node.spec.makes_mask:
                mask = _find_mask(node.spec, x)
            x = _sequence([node], x, dropout_state, tables, mask)
            continue
        inputs = [x, *([mask] if node.is_masked and mask is not None else [])]
        inner = [keras.Input(one.shape[1:], dtype=one.dtype) for one in inputs]
        y = _sequence([node], inner[0], dropout_state, tables, *inner[1:])
        inside = keras.Model(inner, y)
        x = _Recomputed(inside, dropout_state, name=f"{node.name}.recomputed")(inputs)
    return x


_JOINS = {"add": native.Add, "multiply": native.Multiply, "concat": native.Concatenate}


def _tied_dense(node: spec.Node, x: KerasTensor, is_stock: bool) -> KerasTensor:
    """Add the bias of a dense layer that is tied to an embedding to its products x. Keras has no
    layer that only adds a bias; in an export, it is that of a product with ones."""
    if not node.spec.bias:
        return x
    if not is_stock:
        return _Bias(name=node.name)(x)
    axes = "abc"[: len(node.output_shape) + 1]
    return native.EinsumDense(
        f"{axes},{axes[-1]}->{axes}",
        node.output_shape,
        bias_axes=axes[-1],
        kernel_initializer="ones",
        name=node.name,
    )(x)


def _apply(node: spec.Node, layer: native.Layer, x: KerasTensor, mask: KerasTensor | None) -> Any:
    """Apply one layer, which ignores the padding if there is a mask. The calls are Keras's own, so
    that an export loads without this project."""
    options = {}
    if isinstance(layer, native.MultiHeadAttention):
        options = {"use_causal_mask": node.spec.causal}
        if mask is not None:
            options["attention_mask"] = ops.expand_dims(mask, 1)
        return layer(x, x, **options)
    if mask is not None:
        match node.spec.layer:
            case "conv1d":
                x = _without_padding(x, mask, 0.0)
            case "global_max_pool":
                x = _without_padding(x, mask, -np.inf)
            case "attention" | "gru" | "lstm" | "global_average_pool":
                options = {"mask": mask}
    return layer(x, **options)


def _find_mask(s: Any, x: KerasTensor) -> KerasTensor:
    """Return the mask of `masking` or `embedding` for its input.  # bool[B, T]"""
    if s.layer == "embedding":
        is_value = ops.not_equal(x, 0)
    else:
        is_value = ops.any(ops.not_equal(x, s.mask_value), -1)
    later = ops.cumsum(ops.flip(ops.cast(is_value, "int32"), 1), 1)
    is_first = np.arange(x.shape[1]) == 0
    return ops.logical_or(ops.greater(ops.flip(later, 1), 0), is_first[None])


def _with_blanks(x: KerasTensor, mask: KerasTensor) -> KerasTensor:
    """Replace the padding of x by the blank, the last feature, for certain."""
    num = x.shape[-1]
    blank = np.full((1, 1, num), max(spec.LOG_NEVER, tf.as_dtype(x.dtype).min))
    blank[..., -1] = 0
    return ops.where(ops.expand_dims(mask, -1), x, ops.cast(blank, x.dtype))


def _without_padding(x: KerasTensor, mask: KerasTensor, value: float) -> KerasTensor:
    """Replace the padding of x by `value`."""
    return ops.where(ops.expand_dims(mask, -1), x, value)


def _has_stock_layer(node: spec.Node) -> bool:
    """Return whether Keras has a layer for this attention."""
    s = node.spec
    return s.layer == "attention" and s.positions is None and s.kv_heads == s.num_heads


# gelu, gelu_tanh and leaky_relu are written out: Keras rounds their constants to float32
_ACTIVATIONS = {
    "relu": lambda s: tf.nn.relu,
    "leaky_relu": lambda s: lambda x: tf.where(x > 0, x, x * constant(s.negative_slope, x)),
    "gelu": lambda s: (
        lambda x: x * constant(0.5, x) * (constant(1, x) + tf.math.erf(x * constant(0.5**0.5, x)))
    ),
    "gelu_tanh": lambda s: _gelu_tanh,
    "silu": lambda s: lambda x: x * tf.sigmoid(x),
    "tanh": lambda s: tf.tanh,
    "sigmoid": lambda s: tf.sigmoid,
}


def _gelu_tanh(x: Any) -> Any:
    inner = constant((2 / np.pi) ** 0.5, x) * (x + constant(0.044715, x) * x * x * x)
    return constant(0.5, x) * x * (constant(1, x) + tf.tanh(inner))


def _composed_gated_dense(node: spec.Node, x: KerasTensor, mask: Any) -> KerasTensor:
    s = node.spec
    gate, value = (
        native.Dense(s.units, use_bias=s.bias, name=f"{node.name}.{part}")(x)
        for part in ("gate", "value")
    )
    if s.activation == "gelu_tanh":
        return ops.gelu(gate, approximate=True) * value
    return native.Activation(s.activation)(gate) * value


def _composed_squeeze_excite(node: spec.Node, x: KerasTensor, mask: Any) -> KerasTensor:
    s, (*positions, channels) = node.spec, node.input_shape
    y = ops.mean(x, tuple(range(1, len(positions) + 1)), keepdims=True)
    for part, units, function in (
        ("squeeze", channels // s.ratio, "relu"),
        ("excite", channels, "sigmoid"),
    ):
        y = native.Dense(units, function, use_bias=s.bias, name=f"{node.name}.{part}")(y)
    return x * y


def _composed_attention(node: spec.Node, x: KerasTensor, mask: Any) -> KerasTensor:
    """Compose attention that Keras has no layer for: with rotary positions, or grouped heads."""
    s, (steps, width) = node.spec, node.input_shape
    size = width // s.num_heads

    def project(part: str, y: KerasTensor, num_heads: int) -> KerasTensor:
        dense = native.Dense(num_heads * size, use_bias=False, name=f"{node.name}.{part}")
        return dense(y)

    numbers = {"query": s.num_heads, "key": s.kv_heads, "value": s.kv_heads}
    q, k, v = (
        ops.reshape(project(part, x, num), (-1, steps, num, size)) for part, num in numbers.items()
    )
    if (angles := s.rotations((steps, width))) is not None:
        c, n = (values[:, None] for values in angles)
        q, k = (
            ops.concatenate([a * c - b * n, b * c + a * n], -1)
            for a, b in (ops.split(heads, 2, -1) for heads in (q, k))
        )
    k, v = (ops.repeat(heads, s.num_heads // s.kv_heads, 2) for heads in (k, v))
    is_seen = None if mask is None else ops.expand_dims(mask, (1, 2))
    heads = ops.dot_product_attention(q, k, v, mask=is_seen, is_causal=s.causal)
    return project("output", ops.reshape(heads, (-1, steps, width)), s.num_heads)


def _composed_sinusoidal_positions(node: spec.Node, x: KerasTensor, mask: Any) -> KerasTensor:
    return x + encodings(node.input_shape, node.spec.base)


# layers that an export makes of several stock layers
_COMPOSED: dict[str, Callable[[spec.Node, KerasTensor, Any], KerasTensor]] = {
    "gated_dense": _composed_gated_dense,
    "squeeze_excite": _composed_squeeze_excite,
    "attention": _composed_attention,
    "sinusoidal_positions": _composed_sinusoidal_positions,
}


class _Activation(_Layer):
    def __init__(self, function: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


def _native_activation(s: Any, name: str) -> Callable[[KerasTensor], KerasTensor]:
    """Return Keras's own activation, for an export, which loads without this project."""
    if s.function == "leaky_relu":
        return native.LeakyReLU(negative_slope=s.negative_slope, name=name)
    if s.function == "gelu_tanh":  # the layer has the exact function only
        return lambda x: ops.gelu(x, approximate=True)
    return native.Activation(s.function, name=name)


def _native_embedding(node: spec.Node) -> native.Layer:
    """Return a stock layer that computes x + E, for an export. Keras has no layer for it; here E is
    the bias of a product with the identity."""
    return native.EinsumDense(
        "btd,de->bte",
        node.input_shape,
        bias_axes="te",
        kernel_initializer="identity",
        name=node.name,
    )


def _build(node: spec.Node, dropout_state: DropoutState | None) -> native.Layer:
    """Build a layer; without `dropout_state`, the stock layer for an export."""
    s, name = node.spec, node.name
    match s.layer:
        case "dense":
            return native.Dense(s.units, use_bias=s.bias, name=name)
        case "conv1d" | "conv2d" | "depthwise_conv2d" | "conv2d_transpose":
            return _convolution(node, is_stock=dropout_state is None)
        case "upsampling2d":
            return native.UpSampling2D(s.size, name=name)
        case "gru" | "lstm":
            return _recurrent(node)
        case "max_pool":
            return native.MaxPooling2D(s.pool_size, s.stride, padding=s.padding, name=name)
        case "average_pool":
            return native.AveragePooling2D(s.pool_size, s.stride, padding=s.padding, name=name)
        case "global_average_pool":
            is_sequence = len(node.input_shape) == 2
            pool = native.GlobalAveragePooling1D if is_sequence else native.GlobalAveragePooling2D
            return pool(name=name)
        case "embedding":
            return native.Embedding(*node.variables[0].shape, name=name)
        case "global_max_pool":
            is_sequence = len(node.input_shape) == 2
            pool = native.GlobalMaxPooling1D if is_sequence else native.GlobalMaxPooling2D
            return pool(name=name)
        case "masking":
            return native.Identity(name=name)
        case "flatten":
            return native.Flatten(name=name)
        case "reshape":
            return native.Reshape(node.output_shape, name=name)
    return _own(node, dropout_state) if dropout_state else _stock(node)


def _convolution(node: spec.Node, is_stock: bool) -> native.Layer:
    s = node.spec
    options = {"padding": s.padding, "use_bias": s.bias, "name": node.name}
    if s.layer == "conv2d_transpose":
        return native.Conv2DTranspose(s.filters, s.kernel_size, s.stride, **options)
    options["dilation_rate"] = s.dilation
    if s.layer == "depthwise_conv2d":
        num = s.depth_multiplier
        return native.DepthwiseConv2D(s.kernel_size, s.stride, depth_multiplier=num, **options)
    stock, grouped = (
        (native.Conv1D, _GroupedConv1D) if s.layer == "conv1d" else (native.Conv2D, _GroupedConv2D)
    )
    kind = stock if is_stock or s.groups == 1 else grouped
    return kind(s.filters, s.kernel_size, s.stride, groups=s.groups, **options)


def _recurrent(node: spec.Node) -> native.Layer:
    """Build Keras's own layer: its gates and biases are the canonical ones."""
    s = node.spec
    kind = native.GRU if s.layer == "gru" else native.LSTM
    options = {"use_bias": s.bias, "return_sequences": s.return_sequences}
    if s.bidirectional:
        return native.Bidirectional(kind(s.units, **options), name=node.name)
    return kind(s.units, name=node.name, **options)


def _own(node: spec.Node, dropout_state: DropoutState) -> native.Layer:
    """Build a layer that Keras does not have with this project's definition."""
    s, name = node.spec, node.name
    match s.layer:
        case "activation":
            return _Activation(_ACTIVATIONS[s.function](s), name=name)
        case "dropout":
            return Dropout(s.rate, node.index, dropout_state, node.is_masked, name=name)
        case "batch_norm":
            return _BatchNorm(dropout_state, momentum=s.momentum, epsilon=s.eps, name=name)
        case "layer_norm":
            return _LayerNorm(epsilon=s.eps, name=name)
        case "rms_norm":
            return _RMSNorm(epsilon=s.eps, name=name)
        case "group_norm":
            return _GroupNorm(s.groups, epsilon=s.eps, name=name)
        case "position_embedding":
            return _PositionEmbedding(name=name)
        case "attention":
            return _Attention(node)
        case "sinusoidal_positions":
            return _SinusoidalPositions(node)
        case "gated_dense":
            return _GatedDense(node)
        case "squeeze_excite":
            return _SqueezeExcite(node)
    raise AssertionError(s.layer)


def _stock(node: spec.Node) -> native.Layer:
    """Build the stock layer that equals ours in evaluation."""
    s, name = node.spec, node.name
    match s.layer:
        case "activation":
            return _native_activation(s, name)
        case "dropout":
            return native.Dropout(s.rate, name=name)
        case "batch_norm":
            return native.BatchNormalization(momentum=s.momentum, epsilon=s.eps, name=name)
        case "layer_norm":
            return native.LayerNormalization(epsilon=s.eps, name=name)
        case "rms_norm":
            return native.RMSNormalization(epsilon=s.eps, name=name)
        case "group_norm":
            return native.GroupNormalization(s.groups, epsilon=s.eps, name=name)
        case "position_embedding":
            return _native_embedding(node)
        case "attention":
            size = node.input_shape[-1] // s.num_heads
            return native.MultiHeadAttention(s.num_heads, size, use_bias=False, name=name)
    raise AssertionError(s.layer)
