"""Exact mode in TensorFlow: the primitives of runner.exact, and the network and the
optimizer that use them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from backends.keras import device, layers, programs
from backends.keras.average import swapped
from backends.keras.schedule import TableLR
from runner.components import layers as spec
from runner.components.layers import Pads, Window
from runner.components.optimizers import AVERAGE_WEIGHTS, BASE_WEIGHTS
from runner.exact import gradient, optimizers, self_test
from runner.exact.hyperparameters import Hyperparameters
from runner.exact.layers import Pass
from runner.exact.network import Layout, forward
from runner.exact.primitives import Place, Together
from runner.exact.reference import sliding
from runner.exact.rules import TINY, r
from runner.exact.state import StateLayout, evaluated
from runner.exact.tables import table
from runner.spec import RunSpec, TrainState

_EXPONENT = 0x7FF0000000000000  # mask of the exponent's bits in a float64


class TensorFlow:
    """The primitives, in a graph or eagerly. `together` are the processes of a run of several."""

    def __init__(self, together: Together | None = None) -> None:
        self.together = together

    def constant(self, value: np.ndarray) -> Any:
        return tf.constant(value)

    def r(self, x: Any) -> Any:
        rounded = tf.cast(x, tf.float32)
        return tf.cast(
            _select(tf.abs(rounded) <= TINY, tf.zeros_like(rounded), rounded), tf.float64
        )

    def rint(self, x: Any) -> Any:
        return tf.round(x)

    def grid(
        self, x: Any, bits: int, per_row: bool = False, of_all: bool = False
    ) -> tuple[Any, Any]:
        axes = list(range(1, len(x.shape))) if per_row else None
        largest = tf.reduce_max(tf.abs(x), axes, keepdims=per_row)
        if of_all and self.together is not None:
            largest = self.together.largest(largest)
        power, _ = self.power(tf.maximum(largest, _float64(2.0**-200)))
        return tf.round(x * (2.0 ** (bits - 1) / power)), power * 2.0 ** (1 - bits)

    def over_all(self, x: Any) -> Any:
        return x if self.together is None else self.together.sum(x)

    def plus(self, a: Any, b: Any, scale: Any) -> Any:
        return a + b * scale

    def sqrt(self, x: Any) -> Any:
        return tf.sqrt(x)

    def abs(self, x: Any) -> Any:
        return tf.abs(x)

    def maximum(self, a: Any, b: Any) -> Any:
        return tf.maximum(a, _float64(b))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        tensor = a if tf.is_tensor(a) else b
        if condition.shape.is_fully_defined() and condition.shape == tensor.shape:
            a, b = (
                side if tf.is_tensor(side) else tf.fill(condition.shape, _float64(side))
                for side in (a, b)
            )
            if a.shape == b.shape:
                return _select(condition, a, b)
        return tf.where(condition, _float64(a), _float64(b))

    def gate(self, g: Any, y: Any) -> Any:
        return self.where(y > 0.0, g, 0.0)

    def sum(self, x: Any, axes: tuple[int, ...], keep: bool = False) -> Any:
        return tf.reduce_sum(x, list(axes), keepdims=keep)

    def largest(self, x: Any) -> Any:
        return tf.reduce_max(x, -1, keepdims=True)

    def matmul(self, a: Any, b: Any) -> Any:
        return tf.matmul(a, b)

    def transpose(self, a: Any) -> Any:
        return tf.linalg.matrix_transpose(a)

    def permute(self, a: Any, axes: Sequence[int]) -> Any:
        return tf.transpose(a, axes)

    def reverse(self, a: Any) -> Any:
        return tf.reverse(a, [0])

    def spread(self, x: Any, shape: Sequence[int]) -> Any:
        return tf.broadcast_to(x, shape)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return tf.reshape(x, shape)

    def join(self, parts: Sequence[Any]) -> Any:
        return tf.concat([tf.reshape(part, [-1]) for part in parts], 0)

    def pad(self, x: Any, pads: Pads, value: float) -> Any:
        return tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=_float64(value))

    def patches(self, x: Any, window: Window, pads: Pads) -> Any:
        x = self.pad(x, pads, 0.0) if any(pads[0] + pads[1]) else x
        height, width, channels = x.shape[1:]
        indices = np.arange(height * width, dtype=np.int32).reshape(1, height, width)
        windows = np.ravel(sliding(indices, window))
        pixels = tf.gather(tf.reshape(x, [-1, height * width, channels]), windows, axis=1)
        return tf.reshape(pixels, [-1, math.prod(window.size) * channels])

    def fold(self, parts: Sequence[Any], window: Window, shape: tuple[int, int]) -> Any:
        (height, width), (down, across) = window.size, window.stride
        if down >= height and across >= width and window.dilation == (1, 1):
            # windows do not overlap: put the parts side by side
            empty = tf.zeros_like(parts[0])
            rows = [
                tf.stack(
                    [
                        parts[a * width + b] if a < height and b < width else empty
                        for b in range(across)
                    ],
                    3,
                )
                for a in range(down)
            ]
            return _fit(_merge(tf.stack(rows, 2), window.stride), 0, 0, shape)
        images = None
        for i, part in enumerate(parts):
            a, b = divmod(i, width)
            top, left = a * window.dilation[0], b * window.dilation[1]
            shifted = _fit(_dilate(part, window.stride), top, left, shape)
            images = shifted if images is None else images + shifted
        return images

    def power(self, x: Any) -> tuple[Any, Any]:
        bits = tf.bitwise.bitwise_and(tf.bitcast(x, tf.int64), _int64(_EXPONENT))
        return tf.bitcast(bits, tf.float64), tf.cast(
            tf.bitwise.right_shift(bits, _int64(52)), tf.float64
        ) - 1023.0

    def split(self, x: Any, bits: int) -> tuple[Any, Any]:
        integers = tf.cast(x, tf.int32)
        high = tf.bitwise.right_shift(integers, tf.constant(bits, tf.int32))
        return high, tf.bitwise.bitwise_and(integers, tf.constant((1 << bits) - 1, tf.int32))

    def real(self, index: Any) -> Any:
        return tf.cast(index, tf.float64)

    def take(self, name: str, index: Any) -> Any:
        return tf.gather(tf.constant(table(name)), index)

    def one_hot(self, labels: Any, num: int) -> Any:
        return tf.one_hot(tf.cast(labels, tf.int32), num, dtype=tf.float64)

    def keep(
        self, x: Any, rate: float, layer_index: int, where: Place, is_masked: bool = False
    ) -> Any:
        key = layers.layer_key(where.seed, layer_index)
        place = (where.step, where.micro_batch, where.first_row)
        return layers.keep(tf.shape(x), rate, key, *place, is_masked)


def _select(condition: Any, a: Any, b: Any) -> Any:
    """Compute tf.where of equal shapes. It takes half the time, since nothing is broadcast."""
    return tf.raw_ops.Select(condition=condition, x=a, y=b)


def _float64(value: Any) -> Any:
    return tf.convert_to_tensor(value, tf.float64)


def _int64(value: int) -> Any:
    return tf.constant(value, tf.int64)


def _dilate(x: Any, stride: tuple[int, int]) -> Any:
    """Insert zeros between the values of images: [N, H, W, C] -> [N, stride H, stride W, C]."""
    if stride == (1, 1):
        return x
    between = [(0, 0), (0, 0), (0, stride[0] - 1), (0, 0), (0, stride[1] - 1), (0, 0)]
    return _merge(tf.pad(x[:, :, None, :, None], between), stride)


def _merge(x: Any, stride: tuple[int, int]) -> Any:
    """Reshape [N, H, stride, W, stride, C] -> [N, stride H, stride W, C]."""
    _, height, _, width, _, channels = x.shape
    return tf.reshape(x, [-1, height * stride[0], width * stride[1], channels])


def _fit(x: Any, top: int, left: int, shape: tuple[int, int]) -> Any:
    """Put images at [top, left] of zeros of this shape. Cuts off rows and columns beyond the shape,
    which are zeros."""
    height, width = min(x.shape[1], shape[0] - top), min(x.shape[2], shape[1] - left)
    x = x[:, :height, :width]
    border = [(0, 0), (top, shape[0] - top - height), (left, shape[1] - left - width), (0, 0)]
    return tf.pad(x, border) if any(low + high for low, high in border) else x


class Network(keras.layers.Layer):
    """All weights as one float64 vector, and the running statistics. `call` is evaluation: no row
    depends on another."""

    def __init__(self, network: spec.Network) -> None:
        super().__init__(autocast=False, name="network")
        self.spec, self.layout, self.o = network, Layout.of(network), TensorFlow()
        self.weights_vector = self.add_weight(
            shape=(self.layout.size,), dtype="float64", name="weights"
        )
        self.statistics_variables = [
            (name, v) for name, v in network.variables().items() if not v.trainable
        ]
        self.statistics_list = [
            self.add_weight(
                shape=v.shape, dtype="float64", trainable=False, name=name.replace("/", "_")
            )
            for name, v in self.statistics_variables
        ]

    @property
    def statistics(self) -> dict[str, Any]:
        """Return canonical name -> variable."""
        return {
            name: variable
            for (name, _), variable in zip(
                self.statistics_variables, self.statistics_list, strict=True
            )
        }

    def load(self, state: TrainState) -> None:
        self.weights_vector.assign(r(self.layout.pack(state.weights)))
        for name, variable in self.statistics.items():
            variable.assign(r(state.buffers[name]))

    def values(self) -> dict[str, Any]:
        """Return canonical name -> tensor."""
        weights = self.layout.views(self.o, tf.convert_to_tensor(self.weights_vector))
        return {**weights, **self.current_statistics()}

    def current_statistics(self) -> dict[str, Any]:
        return {name: tf.convert_to_tensor(variable) for name, variable in self.statistics.items()}

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], *self.spec.output_shape)

    def compute_output_spec(self, x: Any, **_: Any) -> Any:
        return keras.KerasTensor(self.compute_output_shape(x.shape), "float32")

    def call(self, x: Any) -> Any:
        x = x if self.spec.takes_tokens else self.o.r(tf.cast(x, tf.float64))
        return tf.cast(forward(Pass(self.o, self.values()), self.spec.nodes, x)[0], tf.float32)


def build(network: spec.Network, kind: type[keras.Model]) -> keras.Model:
    """Build the model: one layer that contains the whole network."""
    x = keras.Input(network.input_shape, dtype="int32" if network.takes_tokens else None)
    return kind(x, Network(network)(x))


def load_state(model: keras.Model, state: TrainState) -> None:
    model.get_layer("network").load(state)


class Optimizer(keras.optimizers.Optimizer):
    """Any optimizer of the config, on the vector of all weights. `memory` holds the slots by their
    standard names, hidden from Keras's attribute tracking, which would list them twice."""

    def __init__(
        self, run: RunSpec, network: Network, schedule: TableLR, start: TrainState
    ) -> None:
        super().__init__(learning_rate=schedule, name=run.optimizer.name)
        self.spec, self.o, self.scheduled = run.optimizer, network.o, [*run.scheduled]
        self.build([network.weights_vector])
        tables = optimizers.tables_of(run)
        layout = StateLayout.of(network.layout, start.slots)
        self.memory = SimpleNamespace(
            schedule=schedule,
            layout=layout,
            slots={
                slot: self.add_variable((part.size,), dtype="float64", name=slot)
                for slot, part in layout.slots.items()
            },
            # variables: a large constant would be slow to trace
            tables={
                name: tf.Variable(values, trainable=False, name=name)
                for name, values in tables.items()
            },
        )
        self.load_slots(start)

    def start(self, run: RunSpec, start: TrainState) -> None:
        """Start another run that can use the same compiled functions."""
        for name, entries in optimizers.tables_of(run).items():
            self.memory.tables[name].assign(entries)
        self.load_slots(start)

    def load_slots(self, start: TrainState) -> None:
        self.iterations.assign(start.step)
        for slot, values in self.memory.layout.pack(start.slots).items():
            self.memory.slots[slot].assign(values)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        step, table = self.iterations.value, self.memory.schedule
        parts = self.memory.layout.weights.parts
        h = Hyperparameters(
            self.o,
            self.spec,
            {name: table.at(name, step) for name in self.scheduled},
            {name: tf.gather(values, step) for name, values in self.memory.tables.items()},
        )
        weights, new_slots = optimizers.update_all(
            h,
            self.memory.layout,
            tf.convert_to_tensor(variable),
            tf.convert_to_tensor(gradient),
            {slot: tf.convert_to_tensor(value) for slot, value in self.memory.slots.items()},
            [tf.cast(table.at(group.rate, step), tf.float64) for group, _ in parts],
        )
        variable.assign(weights)
        for slot, value in new_slots.items():
            self.memory.slots[slot].assign(value)


class Engine:
    """Trains all weights as one float64 vector, with the updates of runner.exact."""

    def __init__(
        self,
        model: keras.Model,
        run: RunSpec,
        start: TrainState,
        dropout_state: layers.DropoutState,
    ) -> None:
        self.run, self.network, self.dropout_state = run, model.get_layer("network"), dropout_state
        self.network.layout = Layout.of(run.network, run.groups)
        self.network.o = TensorFlow(dropout_state.together)
        self.network.load(start.for_training())
        self_test.check(run.device, self._run_self_test)
        self.schedule = TableLR(run)
        self.optimizer = Optimizer(run, self.network, self.schedule, start)
        self._unclipped = tf.function(self._unclipped_of, autograph=False)
        integers = gradient.integer_fields(run)
        self.fields = {
            name: device.tensor(values if name in integers else r(values))
            for name, values in run.fields.items()
        }

    def start(self, run: RunSpec, start: TrainState) -> None:
        """Start another run that can use the same compiled functions."""
        self.run = run
        self.dropout_state.seed.assign(run.seed)
        self.network.load(start.for_training())
        self.schedule.use(run.tables)
        self.optimizer.start(run, start)

    def evaluation(self) -> AbstractContextManager[None]:
        """Return a context in which the network has its weights for evaluation."""
        slots, network = self.optimizer.memory.slots, self.network
        if BASE_WEIGHTS not in slots:
            return nullcontext()
        y, z = (tf.convert_to_tensor(v) for v in (network.weights_vector, slots[BASE_WEIGHTS]))
        x = evaluated(network.o, self.run.optimizer, y, z)
        return swapped({"weights": network.weights_vector}, {"weights": x})

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the average of the weights."""
        average = self.optimizer.memory.slots[AVERAGE_WEIGHTS]
        return swapped({"weights": self.network.weights_vector}, {"weights": average})

    def _run_self_test(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the self-test, compiled like the updates. The inputs are arguments: the compiler
        would compute with constants itself."""
        compiled = tf.function(
            lambda *tensors: self_test.results(self.network.o, *tensors),
            jit_compile=device.uses_xla(self.run),
            autograph=False,
        )
        tensors = map(tf.constant, inputs)
        results, _ = programs.call(compiled, *tensors)
        return [tensor.numpy() for tensor in results]

    def update(
        self,
        step: Any,
        batches: Sequence[Mapping[str, Any]],
        num_rows: int,
        sizes: Sequence[int] = (),
    ) -> tuple[Any, list[Any]]:
        """Make one update. Return the mean loss and each micro-batch's outputs, both from before
        the update."""
        n, seed, batches = self.network, self.dropout_state.seed, self._rounded(batches)
        sizes = sizes or [batch["x"].shape[0] for batch in batches]
        weights = n.layout.views(n.o, tf.convert_to_tensor(n.weights_vector))
        g, statistics, outputs = gradient.gradient(
            n.o, self.run, n.layout, weights, n.current_statistics(), batches, sizes, seed, step
        )
        terms = [gradient.loss_terms(z, batch) for z, batch in zip(outputs, batches, strict=True)]
        loss = gradient.losses(n.o, self.run, terms, sizes, 1)[0]
        for name, variable in n.statistics.items():
            variable.assign(statistics[name])
        self.optimizer.apply([g], [n.weights_vector])
        kept = outputs if self.run.keeps_outputs else []
        return tf.cast(loss, tf.float32), [tf.cast(z, tf.float32) for z in kept]

    def _rounded(self, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the batches with R of the numbers that are not in memory."""
        o, integers = self.network.o, gradient.integer_fields(self.run)
        rounded = {name for name in self.run.streamed if name not in integers}
        return [
            {
                name: o.r(tf.cast(values, tf.float64)) if name in rounded else values
                for name, values in batch.items()
            }
            for batch in batches
        ]

    def gradient_norms(
        self,
        step: Any,
        batches: Sequence[Mapping[str, Any]],
        num_rows: int,
        sizes: Sequence[int] = (),
    ) -> dict[str, float]:
        """Compute the gradient of an update without making it. Return its norm for each weight."""
        sizes = sizes or [batch["x"].shape[0] for batch in batches]
        vector = self._unclipped(tf.identity(step), batches, sizes).numpy()
        return gradient.norms(self.run, self.network.layout, vector)

    def _unclipped_of(
        self, step: Any, batches: Sequence[Mapping[str, Any]], sizes: Sequence[int]
    ) -> Any:
        n, seed, rounded = self.network, self.dropout_state.seed, self._rounded(batches)
        weights = n.layout.views(n.o, tf.convert_to_tensor(n.weights_vector))
        vector, _, _ = gradient.gradient(
            n.o,
            self.run,
            n.layout,
            weights,
            n.current_statistics(),
            rounded,
            sizes,
            seed,
            step,
            clips=False,
        )
        return vector

    def losses(self, loss_terms: Any) -> Any:
        """Return the updates' losses: `update` has computed them.  # float32[K]"""
        return loss_terms

    def state(self, step: int) -> TrainState:
        n = self.network
        memory = self.optimizer.memory
        return memory.layout.state(
            self.run.optimizer,
            step,
            np.array(n.weights_vector),
            {slot: np.array(value) for slot, value in memory.slots.items()},
            {name: np.array(value, np.float32) for name, value in n.statistics.items()},
        )
