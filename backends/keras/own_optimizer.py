"""The user's own optimizer: any Keras optimizer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import keras
import numpy as np

from backends.keras.layers import read
from runner import user_code
from runner.components import averages
from runner.components.optimizers import LEARNING_RATE, TRAINING_WEIGHTS, Custom, Group
from runner.errors import ConfigError
from runner.spec import Weights

# The slot of variables that belong to no weight
_SHARED = "variables"
_AVERAGE = "average"  # Keras's name for the moving averages of the weights, with use_ema


class _Rates(Protocol):
    """Rates by the name of a table and the step: schedule.TableLR."""

    def at(self, name: str, step: Any) -> Any: ...


class _GroupRate(keras.optimizers.schedules.LearningRateSchedule):
    """Gives the rate of the group that is being updated; outside an update it is eta(t)."""

    def __init__(self, rates: _Rates) -> None:
        super().__init__()
        self.rates, self.name = rates, LEARNING_RATE

    def __call__(self, step: Any) -> Any:
        return self.rates.at(self.name, step)

    @contextmanager
    def of(self, group: Group) -> Iterator[None]:
        before, self.name = self.name, group.rate
        try:
            yield
        finally:
            self.name = before

    def get_config(self) -> dict[str, Any]:
        return {}


class OwnOptimizer:
    """Builds the optimizer over the trained weights, and saves its variables.

    With `use_ema`, the weights for evaluation are the moving averages.
    """

    def __init__(
        self,
        spec: Custom,
        rates: _Rates,
        variables: Mapping[str, Any],
        groups: Iterable[Group],
    ) -> None:
        self.spec, self.rate = spec, _GroupRate(rates)
        self.parameters = dict(variables)
        self._names = {id(variable): name for name, variable in variables.items()}
        self._group_of = {name: group for group in groups for name in group.names}
        self.native = _make(spec, self.rate)
        averages.check_second(spec, self.native.use_ema)
        self._exclude_from_decay()
        self._slot_of: dict[int, tuple[str, str]] = {}  # id of a variable -> slot, weight
        self._note_additions()
        self.native.build(list(variables.values()))
        self._apply_factors()
        # `fit` would overwrite the weights by the averages at its end
        self.native.finalize_variable_values = lambda variables: None
        self.slots = self._find_slots()
        self._initial = {id(v): v.numpy() for v in self.slot_variables()}

    def _exclude_from_decay(self) -> None:
        factors = {name: self._group_of[name].decay_factor for name in self.parameters}
        if not {*factors.values()} <= {0.0, 1.0}:
            raise ConfigError(
                "optimizer.groups: weight_decay_factor must be 0 or 1 for optimizer=custom on Keras"
            )
        excluded = [self.parameters[name] for name, factor in factors.items() if factor == 0]
        if excluded:
            self.native.exclude_from_weight_decay(var_list=excluded)

    def _note_additions(self) -> None:
        """Note the weight of each variable that the optimizer adds for one."""
        original = self.native.add_variable_from_reference

        def add(reference_variable: Any, name: str | None = None, *rest: Any, **more: Any) -> Any:
            variable = original(reference_variable, name, *rest, **more)
            weight = self._names.get(id(reference_variable))
            if weight is not None:
                self._slot_of[id(variable)] = (name or "var").replace("/", "_"), weight
            return variable

        self.native.add_variable_from_reference = add

    def _apply_factors(self) -> None:
        """Give each group its own rate, in the update and in Keras's weight decay. Keras has no
        groups; `_apply_weight_decay` is private, and a test of groups with a decay guards it."""
        groups = {self._group_of[name].rate: self._group_of[name] for name in self.parameters}
        if [*groups] == [LEARNING_RATE]:
            return
        update_step, decay = self.native.update_step, self.native._apply_weight_decay

        def group_of(variable: Any) -> Group:
            return self._group_of[self._names[id(variable)]]

        def update_with_rate(gradient: Any, variable: Any, learning_rate: Any) -> None:
            with self.rate.of(group_of(self._variable(variable))):
                update_step(gradient, variable, self.native.learning_rate)

        def decay_with_rate(variables: Sequence[Any]) -> None:
            for name, group in sorted(groups.items()):
                with self.rate.of(group):
                    decay([v for v in variables if group_of(v).rate == name])

        self.native.update_step = update_with_rate
        self.native._apply_weight_decay = decay_with_rate

    def _variable(self, variable: Any) -> Any:
        """Return the Keras variable: `update_step` may get TensorFlow's."""
        if id(variable) in self._names:
            return variable
        return next(v for v in self.parameters.values() if v.value is variable)

    def _find_slots(self) -> dict[str, dict[str, Any]]:
        slots: dict[str, dict[str, Any]] = {}
        for i, variable in enumerate(self.native.variables):
            if variable is self.native.iterations:
                continue
            slot, name = self._slot_of.get(id(variable), (_SHARED, f"{i}.{variable.name}"))
            if name in slots.get(slot, {}):
                slot, name = _SHARED, f"{i}.{variable.name}"
            slots.setdefault(slot, {})[name] = variable
        return slots

    def slot_variables(self) -> list[Any]:
        return [variable for values in self.slots.values() for variable in values.values()]

    def load_slots(self, slots: Mapping[str, Weights], step: int) -> None:
        """Load slots as the state after `step` updates; missing ones get their first values."""
        self.native.iterations.assign(step)
        for slot, variables in self.slots.items():
            for name, variable in variables.items():
                value = slots.get(slot, {}).get(name)
                variable.assign(self._initial[id(variable)] if value is None else value)

    def save_slots(self) -> dict[str, dict[str, np.ndarray]]:
        """Return copies of the slots; with other weights for evaluation, those for training too."""
        slots = {
            slot: {name: read(v) for name, v in values.items()}
            for slot, values in self.slots.items()
        }
        if self._averages():
            slots[TRAINING_WEIGHTS] = {name: read(v) for name, v in self.parameters.items()}
        return slots

    def _averages(self) -> Mapping[str, Any]:
        """The variables with the weights for evaluation, if they differ. Before the first update
        the averages are 0."""
        has_averages = self.native.use_ema and int(self.native.iterations) > 0
        return self.slots[_AVERAGE] if has_averages else {}

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Give the model its weights for evaluation in the block."""
        averages = self._averages()
        before = {name: read(self.parameters[name]) for name in averages}
        for name, average in averages.items():
            self.parameters[name].assign(average)
        try:
            yield
        finally:
            for name, value in before.items():
                self.parameters[name].assign(value)


def _make(spec: Custom, rate: _GroupRate) -> Any:
    """Call the user's class or function with the rate and its arguments."""
    kind = keras.optimizers.Optimizer
    made = spec.make(kind, "keras.optimizers.Optimizer", learning_rate=rate)
    if made.gradient_accumulation_steps:
        raise ConfigError(
            "optimizer.gradient_accumulation_steps must be null; use "
            "trainer.accumulate_grad_batches"
        )
    return made


class _AnyRate:
    """The rate of the trial update in `check`."""

    def __init__(self, lr: float, dtype: str) -> None:
        self.lr, self.dtype = lr, dtype

    def at(self, name: str, step: Any) -> Any:
        return keras.ops.convert_to_tensor(self.lr, self.dtype)


def check(
    spec: Custom, shapes: Mapping[str, Sequence[int]], groups: Sequence[Group], dtype: str
) -> None:
    """Raise ConfigError if the optimizer cannot be built, fails at its first update, or has a state
    that a checkpoint cannot hold. Uses one weight of each shape and group of `shapes`."""
    generator = np.random.default_rng(0)
    variables, tried = {}, []
    for group in groups:
        names = [*{tuple(shapes[name]): name for name in group.names}.values()]
        tried.append(replace(group, names=tuple(names)))
        for name in names if not group.is_frozen else ():
            value = generator.standard_normal(tuple(shapes[name]))
            variables[name] = keras.Variable(value, dtype=dtype, name=name.replace("/", "_"))
    own = OwnOptimizer(spec, _AnyRate(spec.lr, dtype), variables, tried)
    for slot, values in own.slots.items():
        for name, variable in values.items():
            if variable.dtype in ("bfloat16", "string") or "float8" in variable.dtype:
                raise ConfigError(
                    f"optimizer._target_ {spec.code} keeps {slot} of {name} of type "
                    f"{variable.dtype}; a checkpoint can hold dense tensors of NumPy's dtypes and "
                    f"numbers"
                )
    gradients = [keras.ops.convert_to_tensor(v.numpy() / 100) for v in variables.values()]
    try:
        own.native.apply(gradients, list(variables.values()))
    except Exception as error:
        raise ConfigError(
            f"optimizer._target_ {spec.code} raised {user_code.blame(error, spec.code)}, at its "
            f"first update"
        ) from error
