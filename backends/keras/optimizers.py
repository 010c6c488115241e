"""The optimizers in Keras, with the definitions of runner/components/optimizers.py, which are
torch's.

Scalars are computed in float64 and rounded once to the variables' dtype. Keras's own casts go
through float32.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from backends.keras.layers import constant, read
from backends.keras.schedule import TableLR
from runner.components import averages
from runner.components.clipping import Clip
from runner.components.optimizers import (
    BASE_WEIGHTS,
    LEARNING_RATE,
    NUMBERS,
    TRAINING_WEIGHTS,
    Group,
    joined,
)
from runner.spec import RunSpec, Weights


@dataclass(frozen=True, eq=False)
class _Block:
    """Weights that are updated together: one, or several small ones as one vector. All updates of
    several are elementwise, so the results equal those of separate weights."""

    group: Group
    variables: Mapping[str, Any]

    @property
    def name(self) -> str:
        return next(iter(self.variables))

    @property
    def is_single(self) -> bool:
        return len(self.variables) == 1

    @property
    def sizes(self) -> list[int]:
        return [math.prod(variable.shape) for variable in self.variables.values()]

    def join(self, tensors: Sequence[Any]) -> Any:
        """Return the weights' tensors as one."""
        if self.is_single:
            return tf.convert_to_tensor(tensors[0])
        return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)

    def assign(self, values: Any) -> None:
        """Assign new values to the weights."""
        if self.is_single:
            self.variables[self.name].assign(values)
            return
        parts = tf.split(values, self.sizes)
        for variable, part in zip(self.variables.values(), parts, strict=True):
            variable.assign(tf.reshape(part, variable.shape))

    def packed(self, values: Weights) -> np.ndarray:
        """Return canonical values of the weights as the block has them."""
        if self.is_single:
            return values[self.name]
        return np.concatenate([values[name].ravel() for name in self.variables])

    def unpacked(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Undo `packed`."""
        if self.is_single:
            return {self.name: values}
        parts = np.split(values, np.cumsum(self.sizes)[:-1])
        return {
            name: part.reshape(variable.shape)
            for (name, variable), part in zip(self.variables.items(), parts, strict=True)
        }


def _blocks(spec: Any, groups: Iterable[Group], variables: Mapping[str, Any]) -> Iterator[_Block]:
    """Yield the blocks of all groups. Weights with several dtypes stay separate."""
    sizes = {name: math.prod(variable.shape) for name, variable in variables.items()}
    for group in groups:
        for names in joined(group, sizes, spec.joins):
            if len({variables[name].dtype for name in names}) > 1:
                yield from (_Block(group, {name: variables[name]}) for name in names)
            else:
                yield _Block(group, {name: variables[name] for name in names})


class _Update(NamedTuple):
    """The update of a block: values, gradient, and its variables of each slot."""

    block: _Block
    p: Any
    g: Any
    memory: Mapping[str, Any]


@dataclass
class _Memory:
    """Holds variables, hidden from Keras's attribute tracking, which would list them twice."""

    schedule: TableLR
    names: dict[Any, str]  # reference to a variable -> its canonical name
    blocks: list[_Block]
    slots: dict[str, dict[_Block, Any]]
    scalars: dict[str, Any]
    now: dict[Any, Any]  # scalars of the update that is being computed


class _Optimizer(keras.optimizers.Optimizer):
    """Base class: slots by their standard names, the config's weight decay, then the subclass's
    `update`."""

    def __init__(
        self,
        spec: Any,
        schedule: TableLR,
        variables: Mapping[str, Any],
        slots: Mapping[str, Weights],
        groups: Iterable[Group],
        scheduled: Iterable[str],
    ) -> None:
        super().__init__(learning_rate=schedule, name=spec.name)
        self.spec, self.scheduled = spec, frozenset(scheduled)
        self.build(list(variables.values()))
        blocks = list(_blocks(spec, groups, variables))
        self.memory = _Memory(
            schedule=schedule,
            names={variable.value.ref(): name for name, variable in variables.items()},
            blocks=blocks,
            slots={
                slot: {
                    block: self._add_slot(slot, block, like)
                    for block in blocks
                    if block.name in like
                }
                for slot, like in slots.items()
                if slot not in (NUMBERS, TRAINING_WEIGHTS) and not averages.is_slot(slot)
            },
            scalars={
                name: self.add_variable((), dtype="float64", name=name)
                for name in [*spec.scalars(0), *spec.numbers]
            },
            now={},
        )

    def _add_slot(self, slot: str, block: _Block, like: Weights) -> Any:
        if not block.is_single:
            variable = block.variables[block.name]
            return self.add_variable((sum(block.sizes),), dtype=variable.dtype, name=slot)
        if slot not in self.spec.reduced_slots:
            return self.add_optimizer_variables([*block.variables.values()], slot)[0]
        values = like[block.name]
        return self.add_variable(values.shape, dtype=str(values.dtype), name=slot)

    def hyper(self, name: str) -> Any:
        """Return a hyperparameter's current value in float64: a number, or a tensor if it is
        scheduled."""
        if name not in self.scheduled:
            return getattr(self.spec, name)
        return self._once(name, lambda: self.memory.schedule.at(name, self.iterations))

    def _once(self, name: Hashable, compute: Callable[[], Any]) -> Any:
        """Return a scalar of this update. It is computed at its first use: a graph would otherwise
        have it once for each variable, which takes longer to trace and to compile."""
        now = self.memory.now
        if name not in now:
            now[name] = tf.cast(compute(), tf.float64)
        return now[name]

    def load_slots(self, slots: Mapping[str, Weights], step: int) -> None:
        """Load canonical slots, as the state after `step` updates."""
        self.iterations.assign(step)
        for slot, variables in self.memory.slots.items():
            for block, variable in variables.items():
                variable.assign(block.packed(slots[slot]))
        for name, number in self.spec.scalars(step).items():
            self.memory.scalars[name].assign(number)
        for name, number in slots.get(NUMBERS, {}).items():
            self.memory.scalars[name].assign(number)

    def save_slots(self) -> dict[str, dict[str, np.ndarray]]:
        """Return canonical copies of the slots."""
        slots: dict[str, dict[str, np.ndarray]] = {slot: {} for slot in self.memory.slots}
        for slot, variables in self.memory.slots.items():
            for block, variable in variables.items():
                slots[slot] |= block.unpacked(read(variable))
        if self.spec.numbers:
            scalars = self.memory.scalars
            slots[NUMBERS] = {name: np.array(scalars[name]) for name in self.spec.numbers}
        return slots

    def slot_variables(self) -> list[Any]:
        """Return the variables of slots and numbers. Others depend only on the number of
        updates."""
        numbers = [self.memory.scalars[name] for name in self.spec.numbers]
        slots = [variable for slot in self.memory.slots.values() for variable in slot.values()]
        return [*slots, *numbers]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        self.memory.now.clear()
        super().apply(grads, trainable_variables)

    def _backend_update_step(
        self, grads: Any, trainable_variables: Any, learning_rate: Any
    ) -> None:
        """Update all variables. Keras calls it in `apply`; its own calls `update_step` for each."""
        names = [self.memory.names[variable.value.ref()] for variable in trainable_variables]
        gradients = dict(zip(names, grads, strict=True))
        updates = [
            _Update(
                block,
                block.join([*block.variables.values()]),
                block.join([gradients[name] for name in block.variables]),
                {slot: v[block] for slot, v in self.memory.slots.items() if block in v},
            )
            for block in self.memory.blocks
        ]
        self.prepare(updates)
        for update in updates:
            update.block.assign(self._new_values(update))

    def prepare(self, updates: Sequence[_Update]) -> None:
        """Compute what an update needs before the first block. Most need nothing."""

    def rate(self, table: str) -> Any:
        """Return the rate of this update from one of RunSpec.tables, in float64."""
        return self._once(table, lambda: self.memory.schedule.at(table, self.iterations))

    def _new_values(self, update: _Update) -> Any:
        """Return a block's new values, after the weight decay and the subclass's update."""
        s, group, p, g = self.spec, update.block.group, update.p, update.g
        lr = self.rate(group.rate)
        if s.decays and group.decay_factor:
            if s.weight_decay_mode == "coupled":
                g = g + self.scalar(self.decay(group), p) * p
            elif s.weight_decay_mode == "decoupled" and not s.has_own_decay:
                key = ("kept", group.rate, group.decay_factor)
                p = p * self.scalar(self._once(key, lambda: 1 - lr * self.decay(group)), p)
        return self.update_in(group, p, g, lr, update.memory)

    def decay(self, group: Group) -> Any:
        """Return lambda of a group in float64."""
        return self.hyper("weight_decay") * group.decay_factor

    def update_in(self, group: Group, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        """Return the same as `update`, for updates that depend on the group."""
        return self.update(p, g, lr, memory)

    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        """Return the new p and assign the new slots in `memory`. lr  # float64 scalar"""
        raise AssertionError("each subclass defines it")

    @property
    def count(self) -> Any:
        """The number of this update, counted from 1, in float64."""
        return self._once("count", lambda: tf.cast(self.iterations, tf.float64) + 1)

    def correction(self, name: str) -> Any:
        """Return the bias correction 1 - beta^t' of the hyperparameter `name` in float64."""
        return self._once(f"1 - {name}^t'", lambda: 1 - _power(self.hyper(name), self.count))

    def corrected_root(self, v: Any, name: str, eps: float) -> tuple[Any, Any]:
        """Return r = sqrt(1 - beta^t') in float64, and sqrt(v) + r eps in v's dtype.

        With vhat = v / (1 - beta^t'), x / (sqrt(vhat) + eps) is r x / (sqrt(v) + r eps). r becomes
        a factor of the step, so a weight needs one division in place of two.
        """
        r = self._once(f"sqrt(1 - {name}^t')", lambda: tf.sqrt(self.correction(name)))
        small = self._once(f"{eps!r} sqrt(1 - {name}^t')", lambda: eps * r)
        return r, tf.sqrt(v) + self.scalar(small, v)

    def adam_step(self, lr: Any, r: Any, name: str, like: Any) -> Any:
        """Return the factor lr r / (1 - beta^t') of a first moment in the dtype of `like`, with
        beta = `name` and the r of `corrected_root`."""
        factor = self._once(("step", lr.ref(), name), lambda: lr * r / self.correction(name))
        return self.scalar(factor, like)

    def mean(self, old: Any, new: Any, beta: Any) -> Any:
        """Assign and return old * beta + new * (1 - beta)."""
        return old.assign(old * self.scalar(beta, new) + new * self.scalar(1 - beta, new))

    def scalar(self, value: Any, like: Any) -> Any:
        """Return a number, or a scalar in float64, in the dtype of `like`. Like `_once`, it makes
        one operation for all variables of an update."""
        key, now = (value.ref() if tf.is_tensor(value) else value, like.dtype), self.memory.now
        if key not in now:
            now[key] = constant(value, like)
        return now[key]


def _power(base: Any, exponent: Any) -> Any:
    return tf.pow(tf.convert_to_tensor(base, tf.float64), exponent)


class SGD(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s, step = self.spec, self.scalar(lr, p)
        if not s.momentum:
            return p - step * g
        buffer = memory["momentum"].assign(
            memory["momentum"] * self.scalar(self.hyper("momentum"), p) + g
        )
        return p - step * (
            g + self.scalar(self.hyper("momentum"), p) * buffer if s.nesterov else buffer
        )


class Adam(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s = self.spec
        m = self.mean(memory["first_moment"], g, self.hyper("beta1"))
        v = self.mean(memory["second_moment"], g * g, self.hyper("beta2"))
        if s.amsgrad:
            v = memory["max_second_moment"].assign(tf.maximum(memory["max_second_moment"], v))
        r, root = self.corrected_root(v, "beta2", s.eps)
        return p - self.adam_step(lr, r, "beta1", p) * m / root


class Adamax(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s = self.spec
        m, u = self.mean(memory["first_moment"], g, self.hyper("beta1")), memory["infinity_norm"]
        u = u.assign(
            tf.maximum(u * self.scalar(self.hyper("beta2"), p), tf.abs(g) + self.scalar(s.eps, p))
        )
        return p - tf.cast(lr / self.correction("beta1"), p.dtype) * m / u


class NAdam(_Optimizer):
    def prepare(self, updates: Sequence[_Update]) -> None:
        stored, mu, next_mu = (
            self.memory.scalars["mu_product"],
            self._mu(self.count),
            self._mu(self.count + 1),
        )
        product = stored * mu
        stored.assign(product)
        self.of_gradient = (1 - mu) / (1 - product)
        self.of_moment = next_mu / (1 - product * next_mu)

    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        m = self.mean(memory["first_moment"], g, self.hyper("beta1"))
        v = self.mean(memory["second_moment"], g * g, self.hyper("beta2"))
        r, root = self.corrected_root(v, "beta2", self.spec.eps)
        of_g, of_m = (tf.cast(lr * r * x, p.dtype) for x in (self.of_gradient, self.of_moment))
        return p - (of_g * g + of_m * m) / root

    def _mu(self, count: Any) -> Any:
        return self.spec.beta1 * (1 - 0.5 * _power(0.96, count * self.spec.momentum_decay))


class RMSprop(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s, step = self.spec, self.scalar(lr, p)
        square = self.mean(memory["square_average"], g * g, self.hyper("rho"))
        if s.centered:
            mean = self.mean(memory["gradient_average"], g, self.hyper("rho"))
            square = square - mean * mean
        d = g / (tf.sqrt(square) + self.scalar(s.eps, p))
        if not s.momentum:
            return p - step * d
        return p - step * memory["momentum"].assign(
            memory["momentum"] * self.scalar(self.hyper("momentum"), p) + d
        )


class Adagrad(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        total = memory["accumulator"].assign(memory["accumulator"] + g * g)
        return p - self.scalar(lr, p) * g / (tf.sqrt(total) + self.scalar(self.spec.eps, p))


class Adadelta(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        eps = self.scalar(self.spec.eps, p)
        square = self.mean(memory["square_average"], g * g, self.hyper("rho"))
        d = tf.sqrt(memory["delta_average"] + eps) / tf.sqrt(square + eps) * g
        self.mean(memory["delta_average"], d * d, self.hyper("rho"))
        return p - self.scalar(lr, p) * d


class Lion(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        m = memory["first_moment"]
        p = p - self.scalar(lr, p) * tf.sign(
            m * self.scalar(self.hyper("beta1"), p) + g * self.scalar(1 - self.hyper("beta1"), p)
        )
        self.mean(m, g, self.hyper("beta2"))
        return p


class Adafactor(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s, step = self.spec, self.scalar(lr, p)
        eps, beta = self.scalar(s.eps1, p), 1 - _power(self.count, s.beta2_decay)
        square = g * g + eps
        if "row_square_average" in memory:
            rows = self.mean(memory["row_square_average"], tf.reduce_mean(square, -1), beta)
            columns = self.mean(memory["column_square_average"], tf.reduce_mean(square, -2), beta)
            scale = tf.sqrt(tf.reduce_mean(rows, -1, keepdims=True) / rows)
            u = g * scale[..., None] / tf.sqrt(columns)[..., None, :]
        else:
            u = g / tf.sqrt(self.mean(memory["square_average"], square, beta))
        step = step / tf.maximum(_rms(u) / self.scalar(s.clip_threshold, p), self.scalar(1.0, p))
        if s.scale_parameter:
            step = step * tf.maximum(_rms(p), self.scalar(s.eps2, p))
        return p - step * u


class _Layerwise(_Optimizer):
    """Base class of LAMB and LARS: each parameter has a step in proportion to its norm."""

    def layerwise_decay(self, group: Group, p: Any) -> Any:
        """Return lambda inside of the scaled update, in p's dtype; None without it."""
        s = self.spec
        is_inside = s.weight_decay_mode == "layerwise" and s.decays and group.decay_factor
        return self.scalar(self.decay(group), p) if is_inside else None


class LAMB(_Layerwise):
    def update_in(self, group: Group, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        decay = self.layerwise_decay(group, p)
        m = self.mean(memory["first_moment"], g, self.hyper("beta1"))
        v = self.mean(memory["second_moment"], g * g, self.hyper("beta2"))
        r, root = self.corrected_root(v, "beta2", self.spec.eps)
        # the corrections of both moments, as one factor of u
        u, factor = m / root, r / self.correction("beta1")
        if decay is not None:
            u, factor = u * tf.cast(factor, p.dtype) + decay * p, tf.ones((), tf.float64)
        step = tf.cast(lr * factor, p.dtype)
        if group.kind != "plain":
            step = step * _ratio(_norm(p), _norm(u) * tf.cast(factor, p.dtype))
        return p - step * u


class LARS(_Layerwise):
    def update_in(self, group: Group, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s, decay = self.spec, self.layerwise_decay(group, p)
        d = g if decay is None else g + decay * p
        if group.kind != "plain":
            size = _norm(p)
            below = _norm(g) if decay is None else _norm(g) + decay * size
            d = d * _ratio(size * self.scalar(s.trust_coefficient, p), below)
        if s.momentum:
            momentum = self.scalar(self.hyper("momentum"), p)
            b = memory["momentum"].assign(memory["momentum"] * momentum + d)
            d = d + momentum * b if s.nesterov else b
        return p - self.scalar(lr, p) * d


class Muon(_Optimizer):
    """Muon for the groups of the kind "", AdamW for the others. A variable's last axis is that of
    the outputs."""

    def update_in(self, group: Group, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s = self.spec
        if group.kind == "adamw":
            m = self.mean(memory["first_moment"], g, s.adamw_beta1)
            v = self.mean(memory["second_moment"], g * g, s.adamw_beta2)
            r, root = self.corrected_root(v, "adamw_beta2", s.adamw_eps)
            return p - self.adam_step(lr, r, "adamw_beta1", p) * m / root
        momentum, num_out = self.hyper("momentum"), p.shape[-1]
        b = self.mean(memory["momentum"], g, momentum)
        d = b * self.scalar(momentum, p) + g * self.scalar(1 - momentum, p) if s.nesterov else b
        x = tf.reshape(_orthogonal(tf.reshape(d, (-1, num_out)), s), p.shape)
        ratio = s.ratio(p.shape.num_elements() // num_out, num_out)
        return p - tf.cast(lr * ratio, p.dtype) * x


def _orthogonal(x: Any, s: Any) -> Any:
    """Return x with singular values near 1, by Newton-Schulz steps in x's dtype."""
    is_tall = x.shape[0] > x.shape[1]
    x = (tf.transpose(x) if is_tall else x) / tf.maximum(_norm(x), constant(s.eps, x))
    a, b, c = (constant(value, x) for value in s.ns_coefficients)
    for _ in range(s.ns_steps):
        gram = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * gram + c * tf.matmul(gram, gram), x)
    return tf.transpose(x) if is_tall else x


class ScheduleFree(_Optimizer):
    """Schedule-free SGD and AdamW: the variables are y, the slot `base_weights` is z."""

    def prepare(self, updates: Sequence[_Update]) -> None:
        numbers, power = self.memory.scalars, self.spec.weight_lr_power
        rate = self.rate(LEARNING_RATE)
        largest = numbers["largest_rate"].assign(tf.maximum(numbers["largest_rate"], rate))
        weight = _power(self.count, self.spec.r) * _power(largest, power)
        total = numbers["weight_sum"].assign(numbers["weight_sum"] + weight)
        self.share = tf.where(total > 0, weight / tf.where(total > 0, total, 1.0), 0.0)

    def update_in(self, group: Group, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s, c, z = self.spec, self.share, memory[BASE_WEIGHTS]
        d = self._direction(p, g, memory)
        if s.weight_decay_mode == "decoupled" and s.decays and group.decay_factor:
            d = d + self.scalar(self.decay(group), p) * p
        before = tf.convert_to_tensor(z)
        after = z.assign(before - self.scalar(lr, p) * d)
        # lr d is the difference of z: XLA would store d, to read it twice
        y = p + tf.cast(c, p.dtype) * (before - p)
        return y + tf.cast(s.beta1 * (1 - c) - 1, p.dtype) * (before - after)

    def _direction(self, p: Any, g: Any, memory: Mapping[str, Any]) -> Any:
        if self.spec.name == "schedule_free_sgd":
            return g
        v = self.mean(memory["second_moment"], g * g, self.hyper("beta2"))
        r, root = self.corrected_root(v, "beta2", self.spec.eps)
        return g * tf.cast(r, p.dtype) / root


class AdEMAMix(_Optimizer):
    def update(self, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        m = self.mean(memory["first_moment"], g, self.hyper("beta1"))
        v = self.mean(memory["second_moment"], g * g, self.hyper("beta2"))
        slow = self.mean(memory["slow_moment"], g, self.hyper("beta3"))
        r, root = self.corrected_root(v, "beta2", self.spec.eps)
        d = m + self.scalar(self.hyper("alpha") * self.correction("beta1"), p) * slow
        return p - self.adam_step(lr, r, "beta1", p) * d / root


class Prodigy(_Optimizer):
    """Prodigy: Adam with an estimated distance to the solution as its rate."""

    def prepare(self, updates: Sequence[_Update]) -> None:
        s, numbers = self.spec, self.memory.scalars
        d, rate = tf.convert_to_tensor(numbers["distance"]), self.rate(LEARNING_RATE)
        if s.use_bias_correction:
            rate = rate * tf.sqrt(self.correction("beta2")) / self.correction("beta1")
        self.is_moving, self.step = rate > 0, d * rate
        numerator = numbers["numerator"] * s.beta2**0.5
        total = tf.zeros((), tf.float64)
        for update in updates:
            slope, size = self._average(update, d)
            numerator = numerator + d / s.d0 * self.step * tf.cast(slope, tf.float64)
            total = total + tf.cast(size, tf.float64)
        self._keep(numbers["numerator"], numerator)
        found = s.d_coef * numerator / tf.where(total > 0, total, 1.0)
        self._estimate(tf.where(total > 0, found, 0.0), d)

    def _average(self, update: _Update, d: Any) -> tuple[Any, Any]:
        """Update the averages. Return the sums of g (P - p) and of |s|."""
        s, group = self.spec, update.block.group
        _, p, g, memory = update
        if s.weight_decay_mode == "coupled" and s.decays and group.decay_factor:
            g = g + self.scalar(self.decay(group), p) * p
        slope = tf.reduce_sum(g * (memory["first_weights"] - p))
        m, v, sums = (memory[slot] for slot in ("first_moment", "second_moment", "gradient_sum"))
        self._keep(m, m * self.scalar(s.beta1, p) + g * self.scalar(d * (1 - s.beta1), p))
        self._keep(v, v * self.scalar(s.beta2, p) + g * g * self.scalar(d * d * (1 - s.beta2), p))
        share = d / s.d0 * (d if s.safeguard_warmup else self.step)
        self._keep(sums, sums * self.scalar(s.beta2**0.5, p) + g * self.scalar(share, p))
        return slope, tf.reduce_sum(tf.abs(tf.convert_to_tensor(sums)))

    def _estimate(self, found: Any, d: Any) -> None:
        s, numbers = self.spec, self.memory.scalars
        most = tf.maximum(numbers["largest_distance"], found)
        self._keep(numbers["largest_distance"], most)
        if s.growth_rate is not None:
            most = tf.minimum(most, tf.where(d > s.d0, d, tf.maximum(d, found)) * s.growth_rate)
        self._keep(numbers["distance"], most)

    def _keep(self, variable: Any, value: Any) -> None:
        """Assign a value, unless the rate is 0."""
        variable.assign(tf.where(self.is_moving, value, variable.value))

    def update_in(self, group: Group, p: Any, g: Any, lr: Any, memory: Mapping[str, Any]) -> Any:
        s, step = self.spec, self.step * group.lr_factor
        if s.weight_decay_mode == "decoupled" and s.decays and group.decay_factor:
            p = p * tf.cast(1 - step * self.decay(group), p.dtype)
        eps = self.scalar(self.memory.scalars["distance"] * s.eps, p)
        m, v = memory["first_moment"], memory["second_moment"]
        return p - tf.cast(step, p.dtype) * m / (tf.sqrt(v) + eps)


def _norm(x: Any) -> Any:
    return tf.sqrt(tf.reduce_sum(x * x))


def _ratio(a: Any, b: Any) -> Any:
    """a / b, or 1 if one of them is 0."""
    one = tf.ones_like(a)
    are_positive = (a > 0) & (b > 0)
    return tf.where(are_positive, a / tf.where(are_positive, b, one), one)


def _rms(x: Any) -> Any:
    """sqrt(mean of x^2)"""
    return tf.sqrt(tf.reduce_mean(x * x))


_OPTIMIZERS: dict[str, type[_Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": Adam,
    "adamax": Adamax,
    "nadam": NAdam,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "lion": Lion,
    "adafactor": Adafactor,
    "lamb": LAMB,
    "lars": LARS,
    "muon": Muon,
    "ademamix": AdEMAMix,
    "prodigy": Prodigy,
    "schedule_free_sgd": ScheduleFree,
    "schedule_free_adamw": ScheduleFree,
}


def build(
    run: RunSpec,
    schedule: TableLR,
    variables: Mapping[str, Any],
    slots: Mapping[str, Weights],
) -> _Optimizer:
    """Build a Keras optimizer. `variables` maps canonical names to the variables that are trained,
    in the model's order; each has the learning rate and the weight decay of its group. `slots` are
    those of the first state, for their shapes."""
    kind, spec = _OPTIMIZERS[run.optimizer.name], run.optimizer
    return kind(spec, schedule, variables, slots, run.groups, run.scheduled)


def clip(gradients: Mapping[str, Any], rule: Clip) -> Mapping[str, Any]:
    """Clip, with the definitions of runner.components.clipping."""
    if not gradients or rule.largest is None:
        return gradients
    if rule.value is not None:
        return {
            name: tf.clip_by_value(g, constant(-rule.value, g), constant(rule.value, g))
            for name, g in gradients.items()
        }
    norm = tf.sqrt(tf.add_n([tf.reduce_sum(g * g) for g in gradients.values()]))
    factor = tf.minimum(constant(rule.largest, norm) / norm, constant(1.0, norm))
    return {name: g * factor for name, g in gradients.items()}
