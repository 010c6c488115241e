"""Training in chunks: K updates in a `tf.while_loop` in one `train_step` of a keras.Model, under
its own `fit`.

Legend of shapes: K updates, A micro-batches an update, B rows each, n = all rows of a chunk.
"""

import functools
import gc
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from backends.keras import device, exact, layers, losses, optimizers
from backends.keras.schedule import TableLR
from runner.data.dataset import Scaling
from runner.data.order import Chunk
from runner.errors import RunError
from runner.spec import ModelSpec, OnChunk, Report, RunSpec, TrainState

_POLICY = {
    "float32": "float32",
    "float64": "float64",
    "bf16-mixed": "mixed_bfloat16",
    "exact": "float32",
}


class _Native:
    """What most precisions train with: keras.layers, a tape, this room's optimizers. Not a Keras
    object, so that its attribute tracking does not list the variables twice."""

    def __init__(
        self, model: keras.Model, run: RunSpec, start: TrainState, place: layers.Place
    ) -> None:
        self.model, self.run, self.place, self.loss = model, run, place, losses.build(run.loss)
        layers.load_state(model, start)
        variables = layers.named(model)
        # in the network's order, which the norm of the gradients is summed in
        self.parameters = {
            name: variables[name] for name in run.network.variables() if name in start.weights
        }
        self.buffers = list(start.buffers)
        self.schedule = TableLR(run)
        self.optimizer = optimizers.build(run, self.schedule, self.parameters, list(start.slots))
        self.optimizer.load_slots(start.slots, start.step)
        self.x, self.y = None if run.x is None else tf.constant(run.x), tf.constant(run.y)

    def start(self, run: RunSpec, start: TrainState) -> None:
        """Another run that is compiled alike."""
        self.run = run
        self.place.seed.assign(run.seed)
        layers.load_state(self.model, start)
        self.schedule.start(run)
        self.optimizer.load_slots(start.slots, start.step)

    def update(self, batches: Iterable[tuple[Any, Any]], num_rows: int) -> tuple[Any, Any]:
        """One update from its micro-batches of num_rows rows: its mean loss before it, the
        outputs."""
        total: Any = None
        gradients: Any = None
        kept = (
            [*self.model.variables, *self.optimizer.memories()] if self.run.skip_nonfinite else []
        )
        before = [tf.identity(variable.value) for variable in kept]
        outputs, self.place.step = [], self.optimizer.iterations.value
        for micro_batch, (x, y) in enumerate(batches):
            self.place.micro_batch = micro_batch
            with tf.GradientTape() as tape:
                z = tf.cast(self.model(x, training=True), self.run.dtype)
                share = self.loss(z, y)
                if num_rows != x.shape[0]:
                    share = share * layers.constant(x.shape[0] / num_rows, share)
            new = tape.gradient(share, [v.value for v in self.parameters.values()])
            total = share if total is None else total + share
            gradients = (
                new if gradients is None else [a + b for a, b in zip(gradients, new, strict=True)]
            )
            outputs.append(z)
        if self.run.gradient_clip_norm is not None:
            gradients = optimizers.clip_by_global_norm(gradients, self.run.gradient_clip_norm)
        self.optimizer.apply(gradients, list(self.parameters.values()))
        for variable, value in zip(kept, before, strict=True):
            variable.assign(tf.where(tf.math.is_finite(total), variable.value, value))
        return total, tf.concat(outputs, axis=0)

    def state(self, step: int) -> TrainState:
        weights, buffers = (
            layers.save(self.model, names) for names in (list(self.parameters), self.buffers)
        )
        return TrainState(step, weights, self.optimizer.save_slots(), buffers)


class Model(keras.Model):
    """The network, its loss and its optimizer, as the seam's `Live`."""

    work: Any

    def connect(self, run: RunSpec, start: TrainState, place: layers.Place) -> None:
        """Load the state, make the optimizer, compile."""
        self.work = (exact.Work if run.precision == "exact" else _Native)(self, run, start, place)
        self.compile(optimizer=self.work.optimizer, jit_compile=device.by_xla(run))
        # One compilation per shape of the chunk's blocks, whatever the number of updates, which is
        # an argument. Without autograph: nothing here loops or asks over tensors in Python, and
        # rewriting all of it took longer than tracing it.
        self.compiled = tf.function(self.train_step, jit_compile=self.jit_compile, autograph=False)
        self.compiled_for: set[Any] = set()

    def make_train_function(self, force: bool = False) -> Any:
        """fit's: takes the next chunk off its iterator and runs it."""

        def train_function(iterator: Iterator[Any]) -> dict[str, Any]:
            num_steps, blocks, given = next(iterator)
            num_blocks = sum(block.shape[1] > 0 for block in blocks)
            began, shapes = (
                time.perf_counter(),
                tuple(tuple(block.shape) for block in blocks[:num_blocks]),
            )
            applied, means, outputs = self.compiled(
                (num_steps, blocks[:num_blocks], given[:num_blocks])
            )
            num = int(num_steps)
            is_new = shapes not in self.compiled_for
            self.compiled_for.add(shapes)
            self.report = Report(
                losses=means.numpy()[:num],
                applied=self.work.run.as_applied(applied.numpy()[:num].T),
                outputs=outputs.numpy()[:num].reshape(-1, *self.work.run.network.output_shape),
                compile_seconds=time.perf_counter() - began if is_new else 0.0,
            )
            return {"loss": self.report.losses[-1]}

        self.train_function = train_function
        return train_function

    def train_step(self, data: Any) -> Any:
        """The chunk's updates, one after another: (what was applied [K, P], losses [K], outputs [K,
        A * B, C])."""
        # int64[K, A, B] each, and x of them or nothing; past num_steps is padding
        num_steps, blocks, given = data
        num_rows = sum(block.shape[1] * block.shape[2] for block in blocks)
        run, length, x, y = self.work.run, blocks[0].shape[0], self.work.x, self.work.y
        dtype, shape = tf.as_dtype(run.dtype), (num_rows, *run.network.output_shape)
        applied = tf.TensorArray(tf.float64, length, element_shape=(len(run.applied_names),))
        means = tf.TensorArray(dtype, length, element_shape=())
        outputs = tf.TensorArray(dtype, length, element_shape=shape)

        def update(k: Any, applied: Any, means: Any, outputs: Any) -> Any:
            others = self.work.schedule.others(self.optimizer.iterations)
            read = tf.stack([tf.cast(self.optimizer.learning_rate, tf.float64), *others])
            rows = [rows for block in blocks for rows in tf.unstack(block[k])]
            own = [x for block in given for x in tf.unstack(block[k])] or [
                tf.gather(x, one) for one in rows
            ]
            batches = list(zip(own, [tf.gather(y, one) for one in rows], strict=True))
            total, z = self.work.update(batches, num_rows)
            return k + 1, applied.write(k, read), means.write(k, total), outputs.write(k, z)

        _, applied, means, outputs = tf.while_loop(
            lambda k, *_: k < num_steps,
            update,
            (tf.constant(0), applied, means, outputs),
            parallel_iterations=1,
        )
        return applied.stack(), means.stack(), outputs.stack()

    def state(self) -> TrainState:
        return self.work.state(int(self.optimizer.iterations))

    def predict(self, x: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return _predict(self, self.work.run, x)

    def use_rates(self, rates: np.ndarray) -> None:
        self.work.schedule.use(rates)


class _AfterChunk(keras.callbacks.Callback):
    """Tells the runner of each chunk, and stops `fit` when it says so."""

    def __init__(self, on_chunk: OnChunk, loader: "_Loader") -> None:
        super().__init__()
        self.on_chunk, self.loader = on_chunk, loader

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        going_on = self.on_chunk(self.loader.taken.popleft(), self.model.report, self.model)
        # at the end too, or `fit` asks for more and warns
        over = int(self.model.optimizer.iterations) >= len(self.model.work.run.rates)
        self.model.stop_training = over or not going_on


class _Loader:
    """The chunks as what `fit` calls batches: num_steps, the blocks of whole micro-batches and of
    short ones, and x of both where a chunk brings it; all with equal ranks."""

    def __init__(self, chunks: Iterable[Chunk], length: int, run: RunSpec) -> None:
        self.chunks, self.run = chunks, run
        # XLA drops a dimension of 1, fuses otherwise and so rounds otherwise
        self.length = max(2, length)
        self.taken: deque[Chunk] = deque()

    def __iter__(self) -> Iterator[Any]:
        for chunk in self.chunks:
            self.taken.append(chunk)
            yield (
                chunk.num_steps,
                self._two(chunk, chunk.blocks),
                self._two(chunk, () if chunk.x is None else chunk.given()),
            )

    def _two(self, chunk: Chunk, blocks: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Whole updates fill up to `length`, so that one compilation serves every number of
        them."""
        missing = self.length - chunk.num_steps if chunk.is_whole else 0
        padded = [np.pad(block, [(0, missing), *[(0, 0)] * (block.ndim - 1)]) for block in blocks]
        return (
            *padded,
            *[
                np.empty((1, 0, 0, *block.shape[3:]), block.dtype)
                for block in padded[:1] * (2 - len(padded))
            ],
        )

    def dataset(self) -> tf.data.Dataset:
        block = tf.TensorSpec((None, None, None), tf.int64)
        x = tf.TensorSpec(
            (None, None, None, *self.run.network.input_shape), tf.as_dtype(self.run.dtype)
        )
        signature = (
            tf.TensorSpec((), tf.int32),
            (block, block),
            (x, x) if self.run.x is None else (),
        )
        options = tf.data.Options()
        # the next chunk's length follows from this one's time
        options.experimental_optimization.inject_prefetch = False
        # it has nothing to tune here, and its thread sometimes lets the iterator's end wait for
        # five seconds
        options.autotune.enabled = False
        return tf.data.Dataset.from_generator(
            lambda: iter(self), output_signature=signature
        ).with_options(options)


_last: tuple[RunSpec, Model] | None = None  # what this process trained last


def train(
    run: RunSpec, start: TrainState, chunks: Iterable[Chunk], on_chunk: OnChunk
) -> TrainState:
    global _last
    if not device.can_use_threads(run.threads) and run.precision != "exact":
        raise RunError(
            f"TensorFlow has taken another number of threads than {run.threads}: it needs a "
            f"process of its own"
        )
    with tf.device(device.resolve(run.device)):
        if _last is not None and _is_compiled_alike(run, _last[0]):
            model = _last[1]
            model.work.start(run, start)
        else:
            _last = None
            keras.utils.clear_session()  # the graphs of earlier runs in this process
            place = layers.Place(run.seed)
            model = _network(run, place, Model)
            model.connect(run, start, place)
            _last = run, model
        loader = _Loader(chunks, run.largest_chunk, run)
        model.fit(
            loader.dataset(),
            epochs=1,
            verbose=0,
            shuffle=False,
            callbacks=[_AfterChunk(on_chunk, loader)],
        )
        state = model.state()
    del model, loader
    # the iterator of a run that was stopped ends here; with the interpreter it would complain
    gc.collect()
    return state


def _is_compiled_alike(a: RunSpec, b: RunSpec) -> bool:
    """They differ in nothing that a compiled function has in it: rates, hyperparameters with a
    schedule, the seed of the masks and all of the state are variables."""
    return (
        _constants(a) == _constants(b)
        and (a.x is b.x if a.x is None or b.x is None else np.array_equal(a.x, b.x))
        and np.array_equal(a.y, b.y)
    )


def _constants(run: RunSpec) -> dict[str, Any]:
    own = {name: value for name, value in vars(run).items() if name not in ("x", "y")}
    return {
        **own,
        "optimizer": run.optimizer.model_copy(update={"lr": 1.0}),  # which is in the table alone
        "rates": len(run.rates),
        "hyperparameters": [*run.hyperparameters],
        "seed": None,
    }


def predict(model: ModelSpec, state: TrainState, x: np.ndarray) -> np.ndarray:
    device.can_use_threads(model.threads)
    with tf.device(device.resolve(model.device)):
        network = _network(model, layers.Place(0), keras.Model)
        (exact if model.precision == "exact" else layers).load_state(network, state)
        return _predict(network, model, x)


def native_model(model: ModelSpec, state: TrainState) -> keras.Model:
    network = _network(model, None, keras.Model)
    layers.load_state(network, state)
    return network


def export(
    model: ModelSpec,
    state: TrainState,
    path: Path,
    x_scaling: Scaling | None = None,
    y_scaling: Scaling | None = None,
) -> None:
    """A .keras file; keras.models.load_model(path) is the model. It takes raw rows and gives
    targets in the data's units: around the network it scales in float64."""
    network = native_model(model, state)
    if x_scaling or y_scaling:
        x = keras.Input(model.network.input_shape, dtype=model.dtype.name)
        y = network(
            _rescaled(x, 1.0, -x_scaling.offset, 1 / x_scaling.scale, 0.0) if x_scaling else x
        )
        y = _rescaled(y, y_scaling.scale, y_scaling.offset) if y_scaling else y
        network = keras.Model(x, keras.layers.Activation("linear", dtype=model.dtype.name)(y))
    network.save(path)


def _rescaled(x: Any, *numbers: np.ndarray | float) -> Any:
    """Stock layers x -> x scale + offset, of each scale and offset; arrays, since Keras makes lists
    float32."""
    for scale, offset in zip(numbers[::2], numbers[1::2], strict=True):
        x = keras.layers.Rescaling(scale, offset, dtype="float64")(x)
    return x


def _network(model: ModelSpec, place: layers.Place | None, kind: type[keras.Model]) -> Any:
    """In the run's dtype, which Keras takes from its global settings."""
    keras.config.set_floatx(model.dtype.name)
    keras.config.set_dtype_policy(_POLICY[model.precision])
    if place and model.precision == "exact":
        return exact.build(model.network, kind)
    return layers.build(model.network, place, kind)


def _predict(network: keras.Model, model: ModelSpec, x: np.ndarray) -> np.ndarray:
    size = model.batch_size * 8
    function = _inference(network)
    outputs = [
        tf.cast(function(tf.constant(x[i : i + size])), model.dtype).numpy()
        for i in range(0, len(x), size)
    ]
    return np.concatenate(outputs) if outputs else np.empty((0, *model.network.output_shape))


@functools.lru_cache(maxsize=1)
def _inference(network: keras.Model) -> Any:
    """The forward pass of evaluation, traced once for any number of rows."""
    signature = [tf.TensorSpec(network.inputs[0].shape, network.inputs[0].dtype)]
    return tf.function(
        lambda x: network(x, training=False), input_signature=signature, autograph=False
    )
