"""Objects that were passed in Python instead of names in the config: a model, data, functions.

They travel beside the frozen config: `Given.bind` returns a config whose sections hold them.
"""

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runner.components import losses
from runner.components.custom import CustomNetwork, is_factory
from runner.components.layers import Network
from runner.components.metrics import CustomMetric
from runner.config.schema import Config, CustomModel, ObjectModel
from runner.data import arrays
from runner.data.frame import Frame, Frames, frames
from runner.errors import ConfigError, show
from runner.schedules.combined import Custom
from runner.section import Section
from runner.text.quoting import override


@dataclass(frozen=True)
class Given:
    """The objects of one run; None: the config names it."""

    model: Any = None  # an instance, or a class or function that makes one
    data: arrays.Given | Frames | None = None
    schedule: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    metrics: Mapping[str, Any] | None = None  # name -> function, or the name again

    @classmethod
    def of(
        cls, model: Any, data: Any, schedule: Any, loss: Any = None, metrics: Any = None
    ) -> "Given":
        """Check the arguments of runner.train. Raises ConfigError."""
        if loss is not None and not callable(loss):
            raise ConfigError(
                f"loss must be a function of outputs and batch, got {show(loss)}; a loss of the "
                f"config is an override: train('loss=NAME')"
            )
        if metrics is not None:
            _check_metrics(metrics)
        if isinstance(model, str):
            raise ConfigError(
                f"model must be a model, or a class or function that makes one, got text; a model "
                f"of the config is an override: train('model={model}')"
            )
        if isinstance(schedule, str):
            raise ConfigError(
                f"schedule must be a function of t, total_steps, steps_per_epoch and lr, got text; "
                f"a schedule of the config is an override: train('schedule={schedule}')"
            )
        if schedule is not None and not callable(schedule):
            raise ConfigError(
                f"schedule must be a function of t, total_steps, steps_per_epoch and lr, got "
                f"{type(schedule).__name__}"
            )
        given = None if data is None else frames(data) or arrays.given(data)
        return cls(model, given, schedule, loss, None if metrics is None else dict(metrics))

    def __bool__(self) -> bool:
        return any(part is not None for part in vars(self).values())

    def completed(self, other: "Given") -> "Given":
        """Return these objects, and those of the other where there is none."""
        mine = {name: value for name, value in vars(self).items() if value is not None}
        return Given(**{**vars(other), **mine})

    def names(self) -> dict[str, str]:
        """Return the config's groups that objects replace -> the names of the objects."""
        named = {"model": self.model, "schedule": self.schedule, "loss": self.loss}
        names = {group: name_of(value) for group, value in named.items() if value is not None}
        if self.metrics is not None:
            names["metrics"] = ", ".join(self.metrics)
        return names if self.data is None else {**names, "data": self.data.choice}

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides that make room for the objects. `values` are those of the user's
        overrides, which may set the other keys of these groups."""
        for group, name in self.names().items():
            if group in values:
                raise ConfigError(
                    f"{group} is set twice: by the override {group}=... and by the argument "
                    f"{group}, {name}"
                )
        lines = []
        if self.model is not None and is_importable(self.model):
            lines += ["model=custom", override("model._target_", name_of(self.model))]
        elif self.model is not None:
            lines += ["model=object", override("model.object", name_of(self.model))]
        if self.schedule is not None:
            lines += ["schedule=custom", override("schedule._target_", name_of(self.schedule))]
        if self.loss is not None:
            lines += ["loss=custom", override("loss._target_", name_of(self.loss))]
        if self.metrics is not None:
            listed = [
                name if isinstance(metric, str) else {"_target_": name_of(metric), "name": name}
                for name, metric in self.metrics.items()
            ]
            lines.append(override("metrics", listed))
        if self.data is not None:
            lines.append(f"data={self.data.choice}")
            is_iterated = isinstance(self.data, arrays.Given) and self.data.is_iterated
            for split in ("val", "test"):
                if split in self.data.splits or is_iterated:
                    key = f"data.{split}_fraction"
                    if values.get(key, 0) != 0:
                        raise ConfigError(
                            f"{key} must not be set if data has the split {split}"
                            if split in self.data.splits
                            else f"{key} must be 0 for rows that can only be iterated over; pass "
                            f"data={{'train': ..., '{split}': ...}}, got {show(values[key])}"
                        )
                    lines += [] if key in values else [f"{key}=0.0"]
        return lines

    def modules(self) -> list[str]:
        """Return the modules of the objects that the config names by `_target_`. Who passes an
        object trusts it."""
        objects = [self.schedule, self.model if is_importable(self.model) else None, self.loss]
        objects += [metric for metric in (self.metrics or {}).values() if callable(metric)]
        return [name_of(value).rpartition(".")[0] for value in objects if value is not None]

    def bind(self, config: Config) -> Config:
        """Return the config with sections that hold the objects."""
        held: dict[str, Any] = {}
        if self.model is not None and isinstance(config.model, CustomModel | ObjectModel):
            held["model"] = config.model.holding(self.model)
        section = arrays.Arrays if isinstance(self.data, arrays.Given) else Frame
        if self.data is not None and isinstance(config.data, section):
            held["data"] = config.data.holding(self.data)
        if self.schedule is not None:
            bound = _with_function(config.schedule, self.schedule)
            held |= {} if bound is config.schedule else {"schedule": bound}
        if self.loss is not None and isinstance(config.loss, losses.Custom):
            held["loss"] = config.loss.holding(self.loss)
        if self.metrics is not None and isinstance(config.metrics, list):
            held["metrics"] = [
                metric.holding(self.metrics[metric.column])
                if isinstance(metric, CustomMetric) and metric.column in self.metrics
                else metric
                for metric in config.metrics
            ]
        for group in ("model", "data", "schedule", "loss"):
            value = getattr(self, group)
            if value is not None and group not in held:
                raise ConfigError(
                    f"{group} was not an argument when the run was made: its config has "
                    f"{group}={getattr(config, group).name}"
                )
        return config.model_copy(update=held) if held else config

    @property
    def keeps_weights(self) -> bool:
        """True if the model is an instance, which has weights of its own."""
        return self.model is not None and not is_factory(self.model)


def _check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, Mapping):
        raise ConfigError(
            f"metrics must be a dict of names and functions, got {show(metrics)}; metrics of the "
            f"config are an override: train('metrics=[accuracy]')"
        )
    for name, metric in metrics.items():
        if not isinstance(name, str) or not (callable(metric) or metric == name):
            raise ConfigError(
                f"metrics must have functions of outputs and targets, or the name of a metric of "
                f"the config again, got {show(name)}: {show(metric)}"
            )


def _with_function(section: Any, function: Callable[..., Any]) -> Any:
    """Return a schedule with the function in its part that calls one: an extended run has put the
    schedule into another one."""
    if isinstance(section, Custom):
        return section.holding(function)
    if isinstance(section, Section):
        parts = {name: getattr(section, name) for name in type(section).model_fields}
        bound = {name: _with_function(part, function) for name, part in parts.items()}
        changed = {name: part for name, part in bound.items() if part is not parts[name]}
        return section.model_copy(update=changed) if changed else section
    if isinstance(section, list | tuple):
        items = [_with_function(item, function) for item in section]
        is_same = all(a is b for a, b in zip(items, section, strict=True))
        return section if is_same else type(section)(items)
    return section


def objects(given: Given, network: Network) -> dict[str, dict[str, Any]]:
    """Describe what the command line could not make, for environment.json: group -> name, kind and
    hash. The hash is of the source, and of a model's layers and shapes; the data's is in data.json.
    """
    entries: dict[str, dict[str, Any]] = {}
    if isinstance(network, CustomNetwork) and not _is_named(given.model):
        parts = [source_sha256(given.model), network.built.layout_sha256()]
        entries["model"] = {
            "name": name_of(given.model),
            "kind": "instance" if given.keeps_weights else "class or function",
            "sha256": hashlib.sha256(repr(parts).encode()).hexdigest(),
        }
    if given.data is not None:
        choice = given.data.choice
        entries["data"] = {"name": choice, "kind": choice, "sha256": None}
    functions = {"schedule": given.schedule, "loss": given.loss}
    functions |= {
        f"metrics {name}": metric
        for name, metric in (given.metrics or {}).items()
        if callable(metric)
    }
    for group, function in functions.items():
        if not _is_named(function):
            name, digest = name_of(function), source_sha256(function)
            entries[group] = {"name": name, "kind": "function", "sha256": digest}
    return entries


def _is_named(value: Any) -> bool:
    """Return whether the config is enough to make it."""
    return value is None or is_importable(value)


def name_of(value: Any) -> str:
    """Return MODULE.NAME of a class or function, or of the class of an instance. It is always a
    dotted name: `<locals>` is left out, and a lambda is called so."""
    if isinstance(value, functools.partial):
        value = value.func
    named = value if hasattr(value, "__qualname__") else type(value)
    parts = f"{named.__module__}.{named.__qualname__}".replace("<lambda>", "lambda_").split(".")
    return ".".join(part for part in parts if part.isidentifier())


def is_importable(value: Any) -> bool:
    """Return whether the command line can make the object by its name: a class or function of a
    module that has a file."""
    name = getattr(value, "__qualname__", None)
    module = sys.modules.get(str(getattr(value, "__module__", None)))
    if not name or module is None or module.__name__ == "__main__":
        return False
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value and getattr(module, "__file__", None) is not None


def source_sha256(value: Any) -> str | None:
    """Hash the source of a class or function, or of an instance's class; None if it has none."""
    if isinstance(value, functools.partial):
        value = value.func
    try:
        source = inspect.getsource(value if hasattr(value, "__qualname__") else type(value))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()
