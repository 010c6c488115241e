"""Schedules of other libraries, by their own names and arguments. They give the same rates as these
libraries, including their edge conventions.

No library is imported. Arguments that are Python functions (LambdaLR, scale_fn) are not supported;
ReduceLROnPlateau is schedule=plateau.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from runner.schedules.curve import Curve
from runner.schedules.dialects import huggingface, keras, timm, torch
from runner.schedules.dialects.calls import Registry, SentenceError, bind
from runner.schedules.ramps import Array
from runner.schedules.units import Clock

if TYPE_CHECKING:
    from builtins import str as HuggingFaceName
    from builtins import str as KerasName
    from builtins import str as TimmName
    from builtins import str as TorchName
else:
    TorchName, KerasName = Literal[tuple(torch.REGISTRY)], Literal[tuple(keras.REGISTRY)]
    HuggingFaceName, TimmName = Literal[tuple(huggingface.REGISTRY)], Literal[tuple(timm.REGISTRY)]


_LONG = Clock(2**53, 1)  # for checks before the clock of the run is known


class _Dialect(Curve):
    """eta(t) = f(k, eta0): f is the library's `class` with its `args`, k the number of scheduler
    steps before update t.

    `tick`: `step`, k = t, if the scheduler is stepped after every update; `epoch`, k = floor(t /
    updates per epoch), if it is stepped after every epoch.
    """

    registry: ClassVar[Registry]

    kind: str = Field(alias="class")
    args: dict[str, Any]
    tick: Literal["step", "epoch"]

    @model_validator(mode="after")
    def _fits(self) -> "_Dialect":
        bind(self.registry, self.kind, self._arguments(), self._run_defaults(_LONG, 1.0))
        return self

    def _arguments(self) -> dict[str, Any]:
        """The arguments of the function that implements the class."""
        return self.args

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        tick = t if self.tick == "step" else clock.epochs.numbers(t)
        try:
            defaults = self._run_defaults(clock, lr)
            return bind(self.registry, self.kind, self._arguments(), defaults)(tick, lr)
        except SentenceError as error:
            raise ValueError(str(error)) from None

    def _run_defaults(self, clock: Clock, lr: float) -> dict[str, Any]:
        """Values from the run for arguments that the config leaves out."""
        total = clock.total_steps
        ticks = total if self.tick == "step" else clock.epochs.count(total)
        return {"num_training_steps": ticks, "t_initial": ticks, "initial_learning_rate": lr}

    def joints(self, clock: Clock) -> list[int]:
        """The steps where the slope changes its sign, or the rate jumps by half of its range."""
        rates = self.rates(np.arange(clock.total_steps), clock, 1.0)
        slope = np.diff(rates)
        turns = np.flatnonzero(slope[1:] * slope[:-1] < 0) + 1
        jumps = np.flatnonzero(np.abs(slope) > np.ptp(rates) / 2) + 1
        return [int(step) for step in (*turns, *jumps)]


class FromTorch(_Dialect):
    """torch.optim.lr_scheduler, stepped after every tick; optimizer.lr is the optimizer's rate
    (torch.py)."""

    name: Literal["from_torch"]
    kind: TorchName = Field(alias="class")
    registry: ClassVar[Registry] = torch.REGISTRY


class FromKeras(_Dialect):
    """keras.optimizers.schedules; `initial_learning_rate` defaults to optimizer.lr (keras.py)."""

    name: Literal["from_keras"]
    kind: KerasName = Field(alias="class")
    registry: ClassVar[Registry] = keras.REGISTRY


class FromHuggingFace(_Dialect):
    """transformers.get_scheduler(class, ...); `num_training_steps` defaults to the run's length
    (huggingface.py)."""

    name: Literal["from_huggingface"]
    kind: HuggingFaceName = Field(alias="class")
    registry: ClassVar[Registry] = huggingface.REGISTRY


class FromTimm(_Dialect):
    """timm.scheduler, in epochs or steps as `tick` says; `t_initial` defaults to the run's length
    (timm.py)."""

    name: Literal["from_timm"]
    kind: TimmName = Field(alias="class")
    registry: ClassVar[Registry] = timm.REGISTRY

    def _arguments(self) -> dict[str, Any]:
        """Drop timm's `t_in_epochs`, which `tick` replaces; refuse it if it contradicts `tick`."""
        arguments = dict(self.args)
        if arguments.pop("t_in_epochs", self.tick == "epoch") != (self.tick == "epoch"):
            raise SentenceError(
                f"tick must be {'step' if self.tick == 'epoch' else 'epoch'} to agree with "
                f"args.t_in_epochs, got {self.tick}"
            )
        return arguments


DIALECTS = (FromTorch, FromKeras, FromHuggingFace, FromTimm)
