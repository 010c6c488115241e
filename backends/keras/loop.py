"""Training in chunks: K updates in a `tf.while_loop` in one `train_step` of a keras.Model, under
its own `fit`.

Legend of shapes: K updates, A micro-batches an update, B rows each, n = all rows of a chunk.
"""

import functools
import gc
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from backends.keras import device, exact, layers, native
from runner.data.dataset import Scaling
from runner.data.order import Chunk
from runner.data.source import Batch
from runner.errors import RunError
from runner.spec import ModelSpec, OnChunk, Report, RunSpec, Tables, TrainState, read_back

_POLICY = {
    "float32": "float32",
    "float64": "float64",
    "bf16-mixed": "mixed_bfloat16",
    "exact": "float32",
}


class Model(keras.Model):
    """The network, its loss and its optimizer, as the seam's `Live`."""

    engine: Any

    def connect(self, run: RunSpec, start: TrainState, place: layers.Place) -> None:
        """Load the state, make the optimizer, compile."""
        kind: Any = exact.Engine if run.precision == "exact" else native.Engine
        self.engine = kind(self, run, start, place)
        self.compile(optimizer=self.engine.optimizer, jit_compile=device.by_xla(run))
        # One compilation per shape of the chunk's blocks, whatever the number of updates, which is
        # an argument. Without autograph: nothing here loops or asks over tensors in Python, and
        # rewriting all of it took longer than tracing it.
        self.compiled = tf.function(self.train_step, jit_compile=self.jit_compile, autograph=False)
        self.compiled_for: set[Any] = set()

    def make_train_function(self, force: bool = False) -> Any:
        """fit's: takes the next chunk off its iterator and runs it."""

        def train_function(iterator: Iterator[Any]) -> dict[str, Any]:
            num_steps, blocks, brought = next(iterator)
            num_blocks = sum(block.shape[1] > 0 for block in blocks)
            blocks = blocks[:num_blocks]
            brought = {name: values[:num_blocks] for name, values in brought.items()}
            began, shapes = time.perf_counter(), tuple(tuple(block.shape) for block in blocks)
            applied, means, outputs = self.compiled((num_steps, blocks, brought))
            num = int(num_steps)
            is_new = shapes not in self.compiled_for
            self.compiled_for.add(shapes)
            run = self.engine.run
            self.report = Report(
                losses=self.engine.losses(means).numpy()[:num],
                applied=read_back(run.tables, applied.numpy()[:num].T),
                outputs=outputs.numpy()[:num].reshape(-1, *run.network.output_shape),
                compile_seconds=time.perf_counter() - began if is_new else 0.0,
            )
            return {"loss": self.report.losses[-1]}

        self.train_function = train_function
        return train_function

    def train_step(self, data: Any) -> Any:
        """The chunk's updates, one after another: (what was applied [K, P], losses [K], outputs [K,
        A * B, C])."""
        # int64[K, A, B] each, and [K, A, B, ...] of each field that chunks bring; past num_steps is
        # padding
        num_steps, blocks, brought = data
        num_rows = sum(block.shape[1] * block.shape[2] for block in blocks)
        engine, run, length = self.engine, self.engine.run, blocks[0].shape[0]
        dtype, shape = tf.as_dtype(run.dtype), (num_rows, *run.network.output_shape)
        applied = tf.TensorArray(tf.float64, length, element_shape=(len(run.tables),))
        means = tf.TensorArray(dtype, length, element_shape=())
        outputs = tf.TensorArray(dtype, length, element_shape=shape)

        def update(k: Any, applied: Any, means: Any, outputs: Any) -> Any:
            others = engine.schedule.others(self.optimizer.iterations)
            read = tf.stack([tf.cast(self.optimizer.learning_rate, tf.float64), *others])
            batches = [
                {name: tf.gather(values, rows) for name, values in engine.fields.items()}
                for rows in _micro_batches(blocks, k)
            ]
            for name, values in brought.items():
                for batch, own in zip(batches, _micro_batches(values, k), strict=True):
                    batch[name] = own
            share, z = engine.update(self.optimizer.iterations.value, batches, num_rows)
            z = tf.concat(z, axis=0)
            return k + 1, applied.write(k, read), means.write(k, share), outputs.write(k, z)

        _, applied, means, outputs = tf.while_loop(
            lambda k, *_: k < num_steps,
            update,
            (tf.constant(0), applied, means, outputs),
            parallel_iterations=1,
        )
        return applied.stack(), means.stack(), outputs.stack()

    def state(self) -> TrainState:
        return self.engine.state(int(self.optimizer.iterations))

    def predict(self, rows: Batch) -> np.ndarray:  # type: ignore[override]
        return _predict(self, self.engine.run, rows)

    def use_tables(self, tables: Tables) -> None:
        self.engine.schedule.use(tables)


def _micro_batches(blocks: Iterable[Any], k: Any) -> list[Any]:
    """The micro-batches of update k.  # [K, A, B, ...] of each block -> [B, ...] each"""
    return [batch for block in blocks for batch in tf.unstack(block[k])]


class _AfterChunk(keras.callbacks.Callback):
    """Tells the runner of each chunk, and stops `fit` when it says so."""

    def __init__(self, on_chunk: OnChunk, loader: "_Loader") -> None:
        super().__init__()
        self.on_chunk, self.loader = on_chunk, loader

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        going_on = self.on_chunk(self.loader.taken.popleft(), self.model.report, self.model)
        # at the end too, or `fit` asks for more and warns
        over = int(self.model.optimizer.iterations) >= self.model.engine.run.num_steps
        self.model.stop_training = over or not going_on


class _Loader:
    """The chunks as what `fit` calls batches: num_steps, the blocks of whole micro-batches and of
    short ones, and the fields of both that a chunk brings; all with equal ranks."""

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
                self._pad_blocks(chunk, chunk.blocks),
                {name: self._pad_blocks(chunk, chunk.by_block(name)) for name in self.run.brought},
            )

    def _pad_blocks(self, chunk: Chunk, blocks: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
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
        brought = {
            name: tf.TensorSpec((None, None, None, *field.shape), tf.as_dtype(field.dtype))
            for name, field in self.run.brought.items()
        }
        signature = (
            tf.TensorSpec((), tf.int32),
            (block, block),
            {name: (field, field) for name, field in brought.items()},
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
    alike = _last is not None and _is_compiled_alike(run, _last[0])
    if not alike:
        _last = None  # its memory is free for the new one
    with tf.device(device.resolve(run.device)), _settings(run, is_fresh=not alike):
        if _last is not None:
            model = _last[1]
            model.engine.start(run, start)
        else:
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
    """Return whether two runs differ in nothing that a compiled function holds: the tables, the
    seed of the masks and all of the state are variables."""
    return (
        _constants(a) == _constants(b)
        and a.fields.keys() == b.fields.keys()
        and all(
            a.fields[name] is b.fields[name] or np.array_equal(a.fields[name], b.fields[name])
            for name in a.fields
        )
    )


def _constants(run: RunSpec) -> dict[str, Any]:
    own = {name: value for name, value in vars(run).items() if name != "fields"}
    return {
        **own,
        # its rate is in the tables alone
        "optimizer": run.optimizer.model_copy(update={"lr": 1.0}),
        "tables": (run.num_steps, [*run.tables]),
        "seed": None,
    }


def predict(model: ModelSpec, state: TrainState, rows: Batch) -> np.ndarray:
    with tf.device(device.resolve(model.device)), _settings(model):
        network = _network(model, layers.Place(0), keras.Model)
        (exact if model.precision == "exact" else layers).load_state(network, state)
        return _predict(network, model, rows)


def native_model(model: ModelSpec, state: TrainState) -> keras.Model:
    with _settings(model):
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
    if place and model.precision == "exact":
        return exact.build(model.network, kind)
    return layers.build(model.network, place, kind)


@contextmanager
def _settings(model: ModelSpec, is_fresh: bool = False) -> Iterator[None]:
    """Keras's global settings for a model: its dtype. They are the process's own afterwards.
    `is_fresh` drops the graphs of earlier runs in this process."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    if is_fresh:
        keras.utils.clear_session()
    keras.config.set_floatx(model.dtype.name)
    keras.config.set_dtype_policy(_POLICY[model.precision])
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _predict(network: keras.Model, model: ModelSpec, rows: Batch) -> np.ndarray:
    x, size = rows["x"], model.batch_size * 8
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
