"""The engine for every precision except exact: GradientTape and this folder's optimizers."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from backends.keras import device, distributed, layers, objective, optimizers
from backends.keras.average import Average, swapped
from backends.keras.custom import GENERATOR
from backends.keras.own_optimizer import OwnOptimizer
from backends.keras.schedule import TableLR
from runner.components import averages, loss_scale
from runner.components.custom import CustomNetwork
from runner.components.optimizers import (
    BASE_WEIGHTS,
    TRAINING_WEIGHTS,
    Custom,
    frozen,
)
from runner.random import mix
from runner.spec import RunSpec, TrainState, Weights


class _LossScale:
    """runner.components.loss_scale.LossScale in variables."""

    def __init__(self) -> None:
        self.scale, self.num_finite, self.num_skipped = (
            tf.Variable(0.0, trainable=False, dtype=tf.float64) for _ in range(3)
        )

    def load(self, values: loss_scale.LossScale) -> None:
        for name, value in vars(values).items():
            getattr(self, name).assign(value)

    def slot(self) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in vars(self).items()}

    def unscaled(self, gradients: Sequence[Any]) -> list[Any]:
        return [g * tf.cast(1 / self.scale, g.dtype) for g in gradients]

    def count(self, is_finite: Any) -> None:
        """Set the state after an update with a finite gradient, or after a skipped one."""
        skipped = tf.cast(~is_finite, tf.float64)
        num = (self.num_finite + 1) * (1 - skipped)
        grows = num == loss_scale.INTERVAL
        grown = tf.where(grows, tf.minimum(2 * self.scale, loss_scale.MOST), self.scale.value())
        self.scale.assign(tf.where(is_finite, grown, self.scale / 2))
        self.num_finite.assign(num * tf.cast(~grows, tf.float64))
        self.num_skipped.assign_add(skipped)


class Engine:
    """Trains keras.layers with a GradientTape and the optimizers of this folder. It is not a Keras
    object: Keras's attribute tracking would list the variables twice."""

    def __init__(
        self,
        model: keras.Model,
        run: RunSpec,
        start: TrainState,
        dropout_state: layers.DropoutState,
    ) -> None:
        self.model, self.run, self.dropout_state = model, run, dropout_state
        self.loss_scale = _LossScale()
        self.may_skip = run.skip_nonfinite or run.scales_loss
        start = self._load_scale(start)
        self.loss = objective.build(run.loss, model, run.has_weights)
        self.has_own_loss = run.loss.name == "model"
        network = run.network
        self.is_own = isinstance(network, CustomNetwork)
        self.counts = network.built.counts if isinstance(network, CustomNetwork) else ()
        self.has_embedding = any(n.spec.layer == "embedding" for n in network.walk())
        # it adds up over all processes in the forward pass, also in one without rows
        self.has_batch_norm = any(n.spec.layer == "batch_norm" for n in network.walk())
        layers.load_state(model, start.for_training())
        variables = layers.named(model)
        if self.is_own:
            self._separate_generators(variables)
        # in the network's order: the norm of the gradients is summed in this order
        self.parameters = {
            name: variables[name] for name in run.network.variables() if name in start.weights
        }
        names = frozen(run.groups)
        self.trained = {name: v for name, v in self.parameters.items() if name not in names}
        self.buffers = list(start.buffers)
        # running statistics that differ between the processes, until the end of an update
        is_local = dropout_state.together is not None and not run.syncs_batch_norm
        self.own_statistics = [variables[name] for name in self.buffers if is_local]
        self.schedule = TableLR(run)
        self.slots: Any  # loads and saves the optimizer's slots
        self.own_optimizer: OwnOptimizer | None = None
        if isinstance(run.optimizer, Custom):
            self.own_optimizer = self.slots = OwnOptimizer(
                run.optimizer, self.schedule, self.trained, run.groups
            )
            self.optimizer: Any = self.slots.native
        else:
            self.optimizer = self.slots = optimizers.build(
                run, self.schedule, self.trained, start.slots
            )
        self._norms = tf.function(self._norms_of, autograph=False)
        is_averaging = run.average_shares is not None
        self.average = Average(run, self.trained, start) if is_averaging else None
        self._load_slots(start)
        self.fields = {name: device.tensor(values) for name, values in run.fields.items()}

    def _separate_generators(self, variables: Mapping[str, Any]) -> None:
        """Let the layers' generators draw other numbers in each process. Rank 0, which saves their
        state, draws those of a single process."""
        network = self.run.network
        assert isinstance(network, CustomNetwork)
        for name in network.built.counts if self.run.world.rank else ():
            if not variables[name].path.endswith(GENERATOR):  # the count of a metric
                continue
            seed, count = variables[name].numpy()  # uint32[2]
            seed = mix(int(seed) + self.run.world.rank)
            variables[name].assign(np.array([seed, count], np.uint32))

    def start(self, run: RunSpec, start: TrainState) -> None:
        """Start another run that can use the same compiled functions."""
        self.run = run
        self.dropout_state.seed.assign(run.seed)
        layers.load_state(self.model, start.for_training())
        self.schedule.use(run.tables)
        self._load_slots(self._load_scale(start))

    def _load_scale(self, start: TrainState) -> TrainState:
        """Load the loss scale; return the state without it."""
        slots, scale = loss_scale.split(start.slots)
        self.loss_scale.load(scale)
        return replace(start, slots=slots)

    def _load_slots(self, start: TrainState) -> None:
        self.slots.load_slots(start.slots, start.step)
        if self.average is not None:
            self.average.load(start)
        # those of frozen weights keep their values
        self.frozen_slots = {
            slot: {
                name: value
                for name, value in values.items()
                if name in self.parameters and name not in self.trained
            }
            for slot, values in (start.slots.items() if self.own_optimizer is None else ())
            if not averages.is_slot(slot)
        }

    def evaluation(self) -> AbstractContextManager[None]:
        """Return a context in which the model has its weights for evaluation."""
        if self.own_optimizer is None and BASE_WEIGHTS in self.slots.memory.slots:
            return swapped(self.parameters, self.state(0).weights)
        return self.own_optimizer.evaluation() if self.own_optimizer else nullcontext()

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the average of the weights."""
        assert self.average is not None
        return swapped(self.parameters, self.average.variables)

    def update(
        self,
        step: Any,
        batches: Sequence[Mapping[str, Any]],
        num_rows: int,
        sizes: Sequence[int] = (),
    ) -> tuple[Any, list[Any]]:
        """Make one update. Return the mean loss and each micro-batch's outputs, both from before
        the update."""
        variables_to_restore = self._all_variables() if self.may_skip else []
        old_values = [tf.identity(variable.value) for variable in variables_to_restore]
        total, gradients, outputs = self._sums(step, batches, num_rows, sizes)
        if (together := self.dropout_state.together) is not None:
            gradients, total = self._add_up(together, gradients, total)
        unscaled, is_finite = self._unscaled(gradients, total)
        step = tf.convert_to_tensor(step)  # before the optimizer counts this update
        self.optimizer.apply(self._clipped(unscaled), list(self.trained.values()))
        if self.average is not None:
            self.average.update(step)
        for variable, value in zip(variables_to_restore, old_values, strict=True):
            variable.assign(tf.where(is_finite, variable.value, value))
        return total, outputs

    def _add_up(
        self, together: distributed.Together, gradients: Sequence[Any], loss: Any
    ) -> tuple[list[Any], Any]:
        """Return the sums of the gradients and the loss over the processes. Replace running
        statistics of this process alone by their means."""
        running = [tf.identity(variable.value) for variable in self.own_statistics]
        sums = distributed.add_up(together, [*gradients, loss, *running])
        num = len(gradients)
        for variable, total in zip(self.own_statistics, sums[num + 1 :], strict=True):
            variable.assign(total / together.num)
        return sums[:num], sums[num]

    def _sums(
        self, step: Any, batches: Sequence[Mapping[str, Any]], num_rows: int, sizes: Sequence[int]
    ) -> tuple[Any, list[Any], list[Any]]:
        """Return the mean loss of the micro-batches, its gradient, and each one's outputs."""
        total: Any = None
        gradients: Any = None
        outputs, self.dropout_state.step = [], step
        trained = [v.value for v in self.trained.values()]
        for micro_batch, batch in enumerate(batches):
            self._begin_batch(micro_batch, sizes)
            z, loss, batch_gradients = self._differentiate(batch, num_rows, trained)
            if self.is_own or self.has_embedding:  # its gradient may be sparse
                batch_gradients = [tf.convert_to_tensor(one) for one in batch_gradients]
            total = loss if total is None else total + loss
            gradients = (
                batch_gradients
                if gradients is None
                else [a + b for a, b in zip(gradients, batch_gradients, strict=True)]
            )
            if self.run.keeps_outputs:
                outputs.append(z)
        return total, gradients, outputs

    def gradient_norms(
        self,
        step: Any,
        batches: Sequence[Mapping[str, Any]],
        num_rows: int,
        sizes: Sequence[int] = (),
    ) -> dict[str, float]:
        """Compute the gradient of an update without making it. Return its norm for each weight."""
        others = self.model.non_trainable_variables
        old_values = [tf.identity(variable.value) for variable in others]
        norms = self._norms(tf.identity(step), batches, num_rows, sizes).numpy()
        for variable, value in zip(others, old_values, strict=True):
            variable.assign(value)
        return dict(zip(self.trained, map(float, norms), strict=True))

    def _norms_of(
        self, step: Any, batches: Sequence[Mapping[str, Any]], num_rows: int, sizes: Sequence[int]
    ) -> Any:
        """Return the norm of each weight's gradient, before clipping.  # float64[weights]"""
        _, gradients, _ = self._sums(step, batches, num_rows, sizes)
        if (together := self.dropout_state.together) is not None:
            gradients = distributed.add_up(together, gradients)
        if self.run.scales_loss:
            gradients = self.loss_scale.unscaled(gradients)
        return tf.stack([tf.norm(tf.cast(gradient, tf.float64)) for gradient in gradients])

    def _differentiate(
        self, batch: Mapping[str, Any], num_rows: int, trained: Sequence[Any]
    ) -> tuple[Any, Any, list[Any]]:
        """Return a micro-batch's outputs, its part of the mean loss over `num_rows` rows, and the
        part's gradient."""
        x, has_rows = batch["x"], batch["x"].shape[0] > 0
        if not has_rows:  # oneDNN's convolutions and Keras's recurrent layers need rows
            x = tf.zeros((1, *x.shape[1:]), x.dtype)
        if not has_rows and not self.has_batch_norm:
            if self.counts:  # the layers' generators go on as in the other processes
                self.model(x, training=True)
            z = tf.zeros((0, *self.run.network.output_shape), self.run.dtype)
            return z, tf.zeros((), self.run.dtype), [tf.zeros_like(one) for one in trained]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trained)
            z = tf.cast(self.model(x, training=True), self.run.dtype)
            if has_rows:
                weights = (batch["weight"],) if "weight" in batch else ()
                loss = self._mean_loss(x, batch["y"], z, *weights)
                if num_rows != x.shape[0]:
                    loss *= layers.constant(x.shape[0] / num_rows, loss)
            else:
                loss = 0 * tf.reduce_sum(z)
            scaled = self._scaled(loss)
        zero = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(scaled, trained, unconnected_gradients=zero)
        return z if has_rows else z[:0], loss, gradients

    def _begin_batch(self, micro_batch: int, sizes: Sequence[int]) -> None:
        """Prepare for a micro-batch. `sizes` has the rows of each, of all processes together."""
        state = self.dropout_state
        state.micro_batch = micro_batch
        if sizes:
            state.num_rows = sizes[micro_batch]
            state.first_row, end = self.run.world.cut(state.num_rows)
            state.own_rows = end - state.first_row

    def _scaled(self, loss: Any) -> Any:
        if not self.run.scales_loss:
            return loss
        return loss * tf.cast(self.loss_scale.scale, loss.dtype)

    def _unscaled(self, gradients: Sequence[Any], loss: Any) -> tuple[Sequence[Any], Any]:
        """Divide the gradients by the loss scale, if there is one, and set the next scale. Return
        them, and whether the update can be made, if it may be skipped."""
        is_finite = tf.math.is_finite(loss) if self.may_skip else None
        if self.run.scales_loss:
            gradients = self.loss_scale.unscaled(gradients)
            is_finite &= tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
            self.loss_scale.count(is_finite)
        return gradients, is_finite

    def _clipped(self, gradients: Sequence[Any]) -> list[Any]:
        clipped = dict(zip(self.trained, gradients, strict=True))
        for rule in self.run.clips:
            # in the network's order: the norm is summed in this order
            own = {name: g for name, g in clipped.items() if name in rule.names}
            clipped |= optimizers.clip(own, rule)
        return list(clipped.values())

    def _all_variables(self) -> list[Any]:
        """Return the variables that an update changes, but for the count of updates."""
        average = [] if self.average is None else self.average.all_variables()
        return [*self.model.variables, *self.slots.slot_variables(), *average]

    def _mean_loss(self, x: Any, y: Any, z: Any, *weights: Any) -> Any:
        """Return a micro-batch's mean loss in training, with add_loss and regularizers."""
        loss = self.loss(x, y, z, True, *weights)
        if loss.shape.rank:  # a function of the user's own gives the value of each row
            loss = tf.reduce_mean(loss)
        loss = tf.cast(loss, self.run.dtype)
        if self.is_own and self.model.losses and not self.has_own_loss:
            loss = loss + tf.add_n([tf.cast(one, z.dtype) for one in self.model.losses])
        return loss

    def losses(self, loss_terms: Any) -> Any:
        """Return the updates' losses: `update` has computed them.  # dtype[K]"""
        return loss_terms

    def state(self, step: int) -> TrainState:
        slots: dict[str, Weights] = {
            slot: {**values, **self.frozen_slots.get(slot, {})}
            for slot, values in self.slots.save_slots().items()
        }
        own = self.own_optimizer
        with own.evaluation() if own else nullcontext():
            weights, buffers = (
                layers.save(self.model, names) for names in (list(self.parameters), self.buffers)
            )
        if BASE_WEIGHTS in slots and own is None:
            slots[TRAINING_WEIGHTS] = weights
            weights = self.run.optimizer.averaged(weights, slots[BASE_WEIGHTS])
        if self.average is not None:
            slots.update(self.average.save())
        if self.run.scales_loss:
            slots[loss_scale.SLOT] = self.loss_scale.slot()
        return TrainState(step, weights, slots, buffers)
