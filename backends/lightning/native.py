"""The engine for every precision except exact: autograd and torch's optimizers."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.lightning import custom, distributed, fast, layers, objective, optimizers
from backends.lightning import device as device_of
from backends.lightning.average import Average, swapped
from backends.lightning.own_optimizer import OwnOptimizer
from runner.components import averages, loss_scale
from runner.components.clipping import Clip
from runner.components.custom import CustomNetwork
from runner.components.optimizers import (
    BASE_WEIGHTS,
    TRAINING_WEIGHTS,
    Custom,
    frozen,
)
from runner.spec import ModelSpec, RunSpec, TrainState


def network(
    model: ModelSpec, dropout_state: layers.DropoutState | None, recomputes: bool = False
) -> layers.Network | custom.Network:
    """Build the network in the run's dtype. Its state is loaded afterwards."""
    dtype = torch.from_numpy(np.empty(0, model.dtype)).dtype
    if isinstance(model.network, CustomNetwork):
        return custom.build(model.network, dtype, dropout_state)
    built = layers.Network(model.network, dropout_state).to(dtype=dtype)
    if recomputes:
        layers.recompute(built)
    return built


class Engine:
    """Trains torch.nn modules with autograd and the optimizers of this folder."""

    norm = staticmethod(optimizers.norm)  # of the gradients that this process has
    own_norms: Sequence[Any] = ()  # batch norms with the statistics of this process's rows

    def __init__(self, run: RunSpec, start: TrainState, device: torch.device) -> None:
        self.run = run
        slots, self.loss_scale = loss_scale.split(start.slots)
        start = replace(start, slots=slots)
        self.float16 = (
            device_of.autocast(run.precision, device) if run.scales_loss else nullcontext()
        )
        self.dropout_state = layers.DropoutState(run.seed)
        dtype = torch.from_numpy(np.empty(0, run.dtype)).dtype
        self.network = network(run, self.dropout_state, run.recomputes).to(device)
        layers.load_state(self.network, start.for_training())
        self.world = run.world
        self._join()
        tensors = self.network.named()
        self.weights = {name: tensors[name] for name in start.weights}
        self.buffer_names = list(start.buffers)
        self.slot_names = [slot for slot in start.slots if not averages.is_slot(slot)]
        self.frozen, self.clips = frozen(run.groups), run.clips
        self._require_gradients(False)
        self.is_own = isinstance(self.network, custom.Network)
        own_loss = run.loss.name == "custom" and run.world.size > 1
        draws = self.is_own or isinstance(run.optimizer, Custom) or own_loss
        self.randomness = custom.Randomness(self.dropout_state, device) if draws else None
        self.steps = objective.steps_of(self.network) if run.loss.name == "model" else None
        self.own_loss = objective.own_function(run.loss)
        forward = objective.forward(run.loss, self.own_loss, self.network, run.has_weights)
        self.forward = layers.compiled(forward, self.network) if run.compile else forward
        self.compile_seconds, self._compiled_for = 0.0, set[torch.Size]()
        self.one = torch.ones((), dtype=dtype, device=device)
        self.fields = {name: torch.from_numpy(v).to(device) for name, v in run.fields.items()}
        self.own_optimizer: OwnOptimizer | None = None
        if isinstance(run.optimizer, Custom):
            self._build_own_optimizer(run.optimizer, start)
        else:
            self._build_optimizer(start)
        # the weights of a rule -> their buffers
        self.clipped_flats = {
            rule.names: [flat for flat in self.flats if flat.names[0] in rule.names]
            for rule in self.clips
        }
        has_limit = any(rule.largest is not None for rule in self.clips)
        self.clips_something = has_limit or self.steps is not None
        self.average: Average | None = None
        if run.average_shares is not None:
            self.average = Average(run, self.flats, start, self.network.to_torch)

    def _join(self) -> None:
        """Join the other processes of the run, if it has several."""
        if self.world.size == 1:
            return
        distributed.connect(self.world)
        if self.run.syncs_batch_norm:
            distributed.share_statistics(self.network, self.dropout_state)
        else:
            self.own_norms = distributed.batch_norms(self.network)

    def _flatten(self) -> Sequence[Sequence[Any]]:
        """Return the buffers that the optimizer updates, by parameter group."""
        return optimizers.flatten(self.weights, self.run.groups, self.run.optimizer.joins)

    def _build_optimizer(self, start: TrainState) -> None:
        run, to_torch = self.run, self.network.to_torch
        flats = self._flatten()
        self.flats: Sequence[Any] = [flat for group_flats in flats for flat in group_flats]
        self.optimizer = optimizers.build(run.optimizer, flats, run.groups, self.network.canonical)
        slots = {slot: start.slots[slot] for slot in self.slot_names}
        optimizers.load_slots(
            run.optimizer, self.optimizer, self.flats, slots, start.step, to_torch
        )
        # those of frozen weights keep their values
        self.frozen_slots = {
            slot: {name: values[name] for name in self.frozen if name in values}
            for slot, values in slots.items()
        }
        self.apply = fast.update(run.optimizer, self.optimizer)

    def _build_own_optimizer(self, spec: Custom, start: TrainState) -> None:
        module = getattr(self.network, "model", None)
        own = self.own_optimizer = OwnOptimizer(spec, self.weights, self.run.groups, module)
        self.flats, self.optimizer = own.gradients, own.native
        if self.slot_names:
            own.load({slot: start.slots[slot] for slot in self.slot_names})
            layers.load_state(self.network, start.for_training())
        self.apply = self._step_own_optimizer

    def _step_own_optimizer(self) -> None:
        assert self.own_optimizer is not None
        assert self.randomness is not None
        self.randomness.seed()  # it may draw random numbers
        self.own_optimizer.step()

    def evaluation(self) -> AbstractContextManager[None]:
        """Return a context in which the network has its weights for evaluation."""
        if BASE_WEIGHTS in self.slot_names:
            averages = self.state(0).weights
            to_torch = self.network.to_torch
            values = {name: to_torch(averages[name]) for name in self.weights}
            return swapped(self.weights, values)
        return self.own_optimizer.evaluation() if self.own_optimizer else nullcontext()

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the average of the weights."""
        assert self.average is not None
        return swapped(self.weights, self.average.views)

    @contextmanager
    def with_hooks(self) -> Iterator[None]:
        """Call the modules in the block so that their hooks run; an update leaves them out."""
        run, before, own = self.run, self.forward, self.own_loss
        self.forward = objective.forward(run.loss, own, self.network, run.has_weights, True)
        try:
            yield
        finally:
            self.forward = before

    def _require_gradients(self, value: bool) -> None:
        """Let autograd compute gradients of the frozen weights, or not."""
        for name in self.frozen:
            self.weights[name].requires_grad_(value)

    def close(self) -> None:
        """Undo the freezing: the module may be the user's own object."""
        self._require_gradients(True)

    def update(
        self,
        step: int,
        batches: Sequence[Mapping[str, Tensor]],
        num_rows: int,
        sizes: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Make one update. Return the mean loss and each micro-batch's outputs, both from before
        the update."""
        outputs, steps = [], self.steps
        if steps is not None:
            steps.begin_update(step)
        self.dropout_state.step = step
        for flat in self.flats:
            flat.reset_gradient()
        buffers, may_skip = self.network.buffers, self.run.skip_nonfinite or self.run.scales_loss
        old_values = [buffer.clone() for buffer in buffers()] if may_skip else []
        batch_losses = []
        for i, batch in enumerate(batches):
            self._begin_batch(i, sizes)
            z, loss = self._differentiate(batch, num_rows)
            batch_losses.append(loss.detach())
            if self.run.keeps_outputs:
                outputs.append(z.detach())
            if steps is not None:
                steps.end_backward()
                if len(batch_losses) < len(batches):
                    steps.end_batch()
        total = sum(batch_losses[1:], batch_losses[0])
        if self.world.size > 1:
            self._add_up(total)
        if may_skip and not self._is_finite(total):
            for buffer, value in zip(buffers(), old_values, strict=True):
                buffer.copy_(value)
            if self.own_optimizer is None:
                optimizers.count_skipped_update(self.optimizer)
            return total, outputs
        if self.clips_something:
            self._clip()
        self._apply(step)
        if steps is not None:
            steps.end_batch()
        return total, outputs

    def _add_up(self, loss: Tensor) -> None:
        """Replace the loss and the gradients by their sums over the processes, and running
        statistics of this process alone by their means."""
        self._reduce([*(flat.gradient for flat in self.flats), loss])

    def _reduce(self, sums: Sequence[Tensor]) -> None:
        running = [
            statistic
            for norm in self.own_norms
            for statistic in (norm.running_mean, norm.running_var)
            if statistic is not None
        ]
        distributed.add_up([*sums, *running])
        for statistic in running:
            statistic.div_(self.world.size)

    def gradient_norms(
        self,
        step: int,
        batches: Sequence[Mapping[str, Tensor]],
        num_rows: int,
        sizes: Sequence[int] = (),
    ) -> dict[str, float]:
        """Compute the gradient of an update without making it. Return its norm for each weight."""
        old_values = [buffer.clone() for buffer in self.network.buffers()]
        self.dropout_state.step = step
        for flat in self.flats:
            flat.reset_gradient()
        for i, batch in enumerate(batches):
            self._begin_batch(i, sizes)
            self._differentiate(batch, num_rows)
        if self.world.size > 1:
            self._add_up(torch.zeros_like(self.one))
        for buffer, value in zip(self.network.buffers(), old_values, strict=True):
            buffer.copy_(value)
        scale = self.loss_scale.scale if self.run.scales_loss else 1.0
        return {name: norm / scale for name, norm in self._norms().items()}

    def _norms(self) -> dict[str, float]:
        """Return the norm of each weight's gradient."""
        gradients = {name: weight.grad for name, weight in self.weights.items()}
        return {
            name: float(gradient.double().norm())
            for name, gradient in gradients.items()
            if gradient is not None and name not in self.frozen
        }

    def _differentiate(self, batch: Mapping[str, Tensor], num_rows: int) -> tuple[Tensor, Tensor]:
        """Return a micro-batch's outputs and its part of the mean loss over `num_rows` rows. Add
        the part's gradient to the others."""
        x, start_time = batch["x"], time.perf_counter()
        if self.is_own and not len(x):  # code of the user's own may need rows
            self._pass_uncounted(x)
            zero = torch.zeros_like(self.one)
            return zero.new_empty(0, *self.run.network.output_shape), zero
        weights = (batch["weight"],) if "weight" in batch else ()
        with self.float16:
            z, loss = self.forward(x, batch["y"], *weights)
        if num_rows != len(x):
            loss = loss * (len(x) / num_rows) if len(x) else z.sum()  # 0 without rows
        scaled = loss * self.loss_scale.scale if self.run.scales_loss else loss
        fast.backward(scaled, self.one)
        if self.run.compile and x.shape not in self._compiled_for:
            self._compiled_for.add(x.shape)
            self.compile_seconds += time.perf_counter() - start_time
        return z, loss

    def _pass_uncounted(self, x: Tensor) -> None:
        """Pass a row that does not count through the user's model, if its batch norms or the
        gathers of its weights wait for all processes. `x` has no rows."""
        network = self.run.network
        has_norms = isinstance(network, CustomNetwork) and bool(network.built.shared)
        if not has_norms and not self.run.divides:
            return
        row = self.fields["x"][:1] if "x" in self.fields else x.new_zeros(1, *x.shape[1:])
        with self.float16:
            z = layers.direct(self.network)(row)
        fast.backward(0 * z.sum().to(self.one.dtype), self.one)

    def _begin_batch(self, micro_batch: int, sizes: Sequence[int]) -> None:
        """Prepare for a micro-batch. `sizes` has the rows of each, of all processes together."""
        state = self.dropout_state
        state.micro_batch = micro_batch
        if sizes:
            state.num_rows = sizes[micro_batch]
            state.first_row, end = self.world.cut(state.num_rows)
            state.own_rows = end - state.first_row
        if self.randomness is not None:
            self.randomness.seed(self.world.rank)

    def _is_finite(self, loss: Tensor) -> bool:
        """Return whether the update can be made. Divides the gradient by the loss scale, if there
        is one, and sets the next scale."""
        is_finite = bool(torch.isfinite(loss))
        if self.run.scales_loss:
            gradients = [flat.gradient for flat in self.flats]
            fast.scale(gradients, 1 / self.loss_scale.scale)
            are_finite = all(bool(g.isfinite().all()) for g in gradients)
            is_finite = is_finite and self._agree(are_finite)
            self.loss_scale = self.loss_scale.after(is_finite)
        return is_finite

    def _agree(self, is_true: bool) -> bool:
        """Return whether it is true in all processes. Here all have the same gradients."""
        return is_true

    def _clip(self) -> None:
        rest, *others = self.clips
        if self.steps is not None:
            self.steps.clip(self.optimizer, rest, self._clip_as_asked)
        else:
            self._clip_by(rest)
        for rule in others:
            self._clip_by(rule)

    def _clip_by(self, rule: Clip) -> None:
        if rule.largest is not None:
            flats = self.clipped_flats[rule.names]
            optimizers.clip([flat.gradient for flat in flats], rule, self.norm)

    def _clip_as_asked(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Take the place of `clip_gradients` of the user's LightningModule."""
        if gradient_clip_val is None:
            return
        algorithm = gradient_clip_algorithm or self.clips[0].algorithm
        self._clip_by(Clip(self.clips[0].names, **{str(algorithm): gradient_clip_val}))

    def _apply(self, step: int) -> None:
        """Let the optimizer make update `step`, and average the weights."""
        self.apply()
        if self.average is not None:
            self.average.update(step)

    def losses(self, loss_terms: Sequence[Tensor]) -> Tensor:
        """Stack the updates' losses.  # dtype[K]"""
        return torch.stack(list(loss_terms))

    def state(self, step: int) -> TrainState:
        own = self.own_optimizer
        state = self._own_state(step, own) if own is not None else self._state(step)
        slots = dict(state.slots)
        if self.average is not None:
            slots |= self.average.save(self.network.to_canonical)
        if self.run.scales_loss:
            slots[loss_scale.SLOT] = self.loss_scale.slot()
        return replace(state, slots=slots)

    def _state(self, step: int) -> TrainState:
        slots = optimizers.save_slots(
            self.run.optimizer,
            self.optimizer,
            self.flats,
            self.slot_names,
            self.network.to_canonical,
        )
        slots = {slot: {**values, **self.frozen_slots[slot]} for slot, values in slots.items()}
        weights = self._save(self.weights)
        if BASE_WEIGHTS in slots:
            slots[TRAINING_WEIGHTS] = weights
            weights = self.run.optimizer.averaged(weights, slots[BASE_WEIGHTS])
        return TrainState(step, weights, slots, self._save(self.buffer_names))

    def _own_state(self, step: int, own: OwnOptimizer) -> TrainState:
        slots = own.slots()
        if own.has_modes:
            slots[TRAINING_WEIGHTS] = self._save(own.parameters)
        with own.evaluation():
            weights = self._save(self.weights)
        return TrainState(step, weights, slots, self._save(self.buffer_names))

    def _save(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        return layers.save(self.network, list(names))
