"""The engine of every precision but exact: updates by a tape and this room's optimizers."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from backends.keras import layers, losses, optimizers
from backends.keras.schedule import TableLR
from runner.spec import RunSpec, TrainState


class Engine:
    """keras.layers, a tape, this room's optimizers: every precision but exact. It is no Keras
    object, so that attribute tracking does not list the variables twice."""

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
        self.fields = {name: tf.constant(values) for name, values in run.fields.items()}

    def start(self, run: RunSpec, start: TrainState) -> None:
        """Another run that is compiled alike."""
        self.run = run
        self.place.seed.assign(run.seed)
        layers.load_state(self.model, start)
        self.schedule.use(run.tables)
        self.optimizer.load_slots(start.slots, start.step)

    def update(
        self, step: Any, batches: Sequence[Mapping[str, Any]], num_rows: int
    ) -> tuple[Any, list[Any]]:
        """Make an update; the mean loss and the outputs of each micro-batch before it."""
        total: Any = None
        gradients: Any = None
        kept = (
            [*self.model.variables, *self.optimizer.memories()] if self.run.skip_nonfinite else []
        )
        before = [tf.identity(variable.value) for variable in kept]
        outputs, self.place.step = [], step
        for micro_batch, batch in enumerate(batches):
            x = batch["x"]
            self.place.micro_batch = micro_batch
            with tf.GradientTape() as tape:
                z = tf.cast(self.model(x, training=True), self.run.dtype)
                share = self.loss(z, batch["y"])
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
        return total, outputs

    def losses(self, shares: Any) -> Any:
        """Updates' losses, which are their shares.  # dtype[K]"""
        return shares

    def state(self, step: int) -> TrainState:
        weights, buffers = (
            layers.save(self.model, names) for names in (list(self.parameters), self.buffers)
        )
        return TrainState(step, weights, self.optimizer.save_slots(), buffers)
