"""The callbacks that a config can name. Their defaults are in conf/trainer/callback/; runner.run
has the observers."""

from typing import Annotated, Any, Literal, Union, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from runner.schedules import Length
from runner.schedules.stall import Mode
from runner.section import Count, NonNegative, OneOf, OwnCode, Positive, Section


class OwnCallback(OwnCode):
    """An observer of the user's own: a class of a trusted module, derived from runner.Observer, or
    a callback of the framework. The other keys are its arguments."""


class BestCheckpoints(Section):
    """Keeps the checkpoints of the `num` whole epochs with the best values of a metric."""

    callback: Literal["best_checkpoints"]
    num: Count
    metric: str | None
    mode: Mode | None

    @model_validator(mode="after")
    def _has_both(self) -> "BestCheckpoints":
        if (self.metric is None) != (self.mode is None):
            raise ValueError("metric and mode, or neither of them")
        return self


class EarlyStopping(Section):
    """Ends the run when several metrics have stalled."""

    callback: Literal["early_stopping"]
    metrics: Annotated[dict[str, Mode], Field(min_length=1)] | None
    patience: Count
    min_delta: NonNegative
    stop: Literal["all", "any"]


class Memory(Section):
    """Records the largest memory of the process and of the device, after each epoch."""

    callback: Literal["memory"]


class Norms(Section):
    """Records the norms of gradients and weights, of the model and of each layer."""

    callback: Literal["norms"]
    every: Length


class Throughput(Section):
    """Records rows, updates and floating-point operations a second, of each epoch."""

    callback: Literal["throughput"]
    peak_flops: Positive | None


NamedCallback = Annotated[
    Union[BestCheckpoints, EarlyStopping, Memory, Norms, Throughput],
    OneOf("callback"),
]


def _kind(value: Any) -> str:
    is_own = isinstance(value, OwnCallback) or (isinstance(value, dict) and "_target_" in value)
    return "own code" if is_own else "a name"


Callback = Annotated[
    Union[Annotated[OwnCallback, Tag("own code")], Annotated[NamedCallback, Tag("a name")]],
    Discriminator(_kind),
]


def _check_once(callbacks: list[Any]) -> list[Any]:
    """Refuse two callbacks that would write one file."""
    for kind in (Memory, Norms, Throughput):
        if sum(isinstance(callback, kind) for callback in callbacks) > 1:
            name = get_args(kind.model_fields["callback"].annotation)[0]
            raise ValueError(f"a list with {name} at most once, because it writes {name}.csv")
    return callbacks


CallbackList = Annotated[list[Callback], AfterValidator(_check_once)]


def watched(callbacks: list[Any]) -> dict[str, str]:
    """Map the keys of callbacks that name a column of metrics.csv to that column."""
    found = {}
    for i, callback in enumerate(callbacks):
        if isinstance(callback, BestCheckpoints) and callback.metric is not None:
            found[f"callbacks[{i}].metric"] = callback.metric
        if isinstance(callback, EarlyStopping):
            for metric in callback.metrics or {}:
                found[f"callbacks[{i}].metrics.{metric}"] = metric
    return found
