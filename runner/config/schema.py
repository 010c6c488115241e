"""The typed config: all keys with their types and ranges.

`parse` turns the values that Hydra composed into a `Config`. It raises a ConfigError in one line:
the key, the allowed values, the value found, and the nearest match.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from runner import user_code
from runner.components.averages import Which
from runner.components.layers import Layer, with_defaults
from runner.components.losses import Loss
from runner.components.metrics import CustomMetric
from runner.components.optimizers import Optimizer
from runner.config.callbacks import CallbackList
from runner.config.explain import every_key, explain, sections
from runner.config.times import Budget, Time, Timeout
from runner.data import Data
from runner.data.order import Phase
from runner.dispatcher import BACKENDS
from runner.errors import ConfigError, nearest, printable, show
from runner.machine import devices
from runner.schedules import Length, Schedule
from runner.schedules.stall import Mode
from runner.schedules.units import Share, half_up, split
from runner.section import (
    Count,
    Fraction,
    Holder,
    Index,
    Mark,
    NonNegative,
    OwnCode,
    Positive,
    Section,
    keys,
)
from runner.spec import Precision

_EXPORTS = (name for about in BACKENDS.values() for name in about.exports)
if TYPE_CHECKING:
    Backend: TypeAlias = str
    Format: TypeAlias = str
else:
    Backend = Literal[tuple(BACKENDS)]
    Format = Literal[*_EXPORTS, "safetensors"]


Task: TypeAlias = Literal[
    "train",
    "preview",
    "describe",
    "find_lr",
    "evaluate",
    "predict",
    "export",
    "verify",
    "compare",
    "card",
    "list",
    "forecast",
    "clean",
    "twin",
]
T = TypeVar("T")
_WHEN_RESUMED = Mark(on_resume=True)
_OUTSIDE = Mark(outside_hash=True)
_OF_A_RUN = Mark(outside_hash=True, on_run=True, command_line_only=True, needs_run=True)


# A file with the first weights of a model, or the folder of a run; null: the run's seed draws them.
# The models' keys `weights` and `strict` may be left out, so that a user's YAML needs only its own.
FirstWeights: TypeAlias = Annotated[str, Field(min_length=1)] | None


class LayerModel(Section):
    """A model of the layers in `model.layers`, equal on every backend."""

    name: str
    layers: list[Layer] = Field(min_length=1)
    weights: FirstWeights = None
    strict: bool = True  # `weights` must have all tensors of the model, and no others


class CustomModel(OwnCode):
    """The user's own model: a torch.nn.Module on Lightning, a keras.Model on Keras. `weights` and
    `strict` are keys of this section, so they are not arguments; a builder of keras.applications
    gets weights=None, since it would download them."""

    name: str
    weights: FirstWeights = None
    strict: bool = True

    @property
    def section(self) -> dict[str, Any]:
        nothing = {"weights": None} if self.code.startswith("keras.applications.") else {}
        return {**super().section, **nothing}


class TwinModel(Section):
    """One model of the user's own, written for both frameworks. A run uses its backend's."""

    name: str
    lightning: OwnCode
    keras: OwnCode
    map: dict[str, str] | None
    weights: FirstWeights = None
    strict: bool = True


class ObjectModel(Holder):
    """A model that was passed in Python, runner.train(model=...), and that no `_target_` can make:
    an instance, or a class or function that cannot be imported. `object` is its name."""

    name: Literal["object"]
    object: str | None


def _kind_of_model(values: Any) -> str:
    given = values if isinstance(values, dict) else {}
    if isinstance(values, TwinModel) or {"lightning", "keras"} & set(given):
        return "twin"
    if isinstance(values, ObjectModel) or "object" in given:
        return "an object"
    is_own = isinstance(values, CustomModel) or "_target_" in given
    return "own code" if is_own else "known layers"


Model = Annotated[
    Union[
        Annotated[LayerModel, Tag("known layers")],
        Annotated[CustomModel, Tag("own code")],
        Annotated[TwinModel, Tag("twin")],
        Annotated[ObjectModel, Tag("an object")],
    ],
    Discriminator(_kind_of_model),
]


Metric = Annotated[
    Union[Annotated[str, Tag("name")], Annotated[CustomMetric, Tag("own code")]],
    Discriminator(lambda value: "own code" if isinstance(value, dict | CustomMetric) else "name"),
]


Tracker: TypeAlias = Literal["tensorboard", "mlflow", "wandb", "trackio"]


def _differ(items: list[T]) -> list[T]:
    if len({*items}) < len(items):
        kind = "names" if isinstance(items[0], str) else "numbers"
        raise ValueError(f"{kind} that differ")
    return items


Logger = Annotated[
    Union[
        Annotated[Tracker | None, Tag("a name")],
        Annotated[list[Tracker], AfterValidator(_differ), Tag("names")],
    ],
    Discriminator(lambda value: "names" if isinstance(value, list) else "a name"),
]


Artifact: TypeAlias = Literal["curves", "certificate", "checkpoints", "comparison"]


class Tracking(Section):
    artifacts: Annotated[list[Artifact], AfterValidator(_differ)]


class SizedPart(Section):
    """A part of the run, `for` its length, with a batch size of its own."""

    share: Share = Field(alias="for")
    size: Count

    def phase(self, num_rows: int, max_epochs: int | None, max_steps: int | None) -> Phase:
        """Return the part in rows or updates. A percentage is of `max_epochs` passes over the rows,
        or else of `max_steps` updates."""
        number, unit = split(self.share)
        if unit == "epochs":
            return Phase(self.size, number * num_rows, None)
        if unit == "%" and max_epochs is not None:
            return Phase(self.size, number * max_epochs * num_rows / 100, None)
        steps = number if unit == "steps" else number * (max_steps or 0) / 100
        return Phase(self.size, None, half_up(steps))


_PARTS = (
    "two or more parts such as [{for: 50%, size: 32}, {for: rest, size: 128}], the last one and no "
    "other with for: rest"
)


def _is_list(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError(_PARTS)
    return value


def _last_is_the_rest(parts: list[SizedPart]) -> list[SizedPart]:
    shares = [part.share for part in parts]
    if len(parts) < 2 or shares.count("rest") != 1 or shares[-1] != "rest":
        raise ValueError(_PARTS)
    return parts


_Parts = Annotated[
    list[SizedPart], BeforeValidator(_is_list), AfterValidator(_last_is_the_rest), Tag("parts")
]
_NUMBER_OR_PARTS = Discriminator(
    lambda value: "parts" if isinstance(value, list | Mapping) else "a number"
)
BatchSize = Annotated[Union[Annotated[Count, Tag("a number")], _Parts], _NUMBER_OR_PARTS]
GlobalBatchSize = Annotated[
    Union[Annotated[Count | None, Tag("a number")], _Parts], _NUMBER_OR_PARTS
]


class Trainer(Section):
    max_epochs: Annotated[Count | None, _WHEN_RESUMED]
    max_steps: Annotated[Count | None, _WHEN_RESUMED]
    max_time: Annotated[Time | None, _WHEN_RESUMED]
    batch_size: BatchSize
    global_batch_size: GlobalBatchSize
    accumulate_grad_batches: Count
    gradient_clip_norm: Positive | None
    gradient_clip_value: Positive | None
    precision: Precision
    tf32: bool
    sync_batchnorm: bool
    steps_per_call: Annotated[Literal["auto"] | Count, _WHEN_RESUMED]
    threads: Annotated[Literal["auto"] | Count, _WHEN_RESUMED]
    process_timeout: Annotated[Timeout, _WHEN_RESUMED]
    gradient_checkpointing: Annotated[bool, _WHEN_RESUMED]
    compile: bool | Literal["auto"]
    checkpoint_every: Annotated[Length | None, _WHEN_RESUMED]
    keep_checkpoints: Annotated[Annotated[int, Field(ge=2)] | None, _WHEN_RESUMED]
    monitor: str
    monitor_mode: Mode
    early_stopping_patience: Annotated[Count | None, _WHEN_RESUMED]
    early_stopping_min_delta: Annotated[NonNegative, _WHEN_RESUMED]
    on_nonfinite: Literal["stop", "skip"]
    max_skipped: Count
    strict: Annotated[bool, _WHEN_RESUMED]

    @model_validator(mode="after")
    def _ends(self) -> "Trainer":
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("max_epochs or max_steps, so that the run ends; both are null")
        return self

    @property
    def largest_batch(self) -> int:
        """The largest batch size of the run."""
        sizes = self.batch_size
        return sizes if isinstance(sizes, int) else max(part.size for part in sizes)

    @model_validator(mode="after")
    def _clips_once(self) -> "Trainer":
        norm, value = self.gradient_clip_norm, self.gradient_clip_value
        if norm is not None and value is not None:
            raise ValueError(
                f"gradient_clip_norm or gradient_clip_value, got {norm:g} and {value:g}; set one "
                f"to null"
            )
        return self


class FindLR(Section):
    min_lr: Positive
    max_lr: Positive
    num_steps: Annotated[int, Field(ge=20)]
    stop_factor: Annotated[float, Field(gt=1)]
    smoothing: Fraction


def _one_line(text: str) -> str:
    if printable(text) != text:  # a printed command with it could not be copied
        raise ValueError("text without control and invisible characters")
    return text


class Forecast(Section):
    law: Literal["auto", "annealing", "multi_power"]
    tolerance: Positive
    optimize: bool


class Clean(Section):
    what: list[Literal["failed", "checkpoints", "temporary", "programs"]] = Field(min_length=1)
    confirm: bool


class Output(Section):
    root: Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
    multirun: Annotated[str, AfterValidator(_one_line)] | None


class Answer(Section):
    margin: Positive | None
    test: bool
    target: float | dict[str, float] | None
    relax: Fraction


class Race(Section):
    budget: Budget | None


class Tune(Section):
    name: Literal["lr"]
    keys: list[str] = Field(min_length=1)
    seeds: Annotated[list[Index], Field(min_length=1)] | None
    factors: list[Positive] = Field(min_length=2)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Devices = Annotated[
    Union[
        Annotated[Annotated[int, Field(ge=1, le=1024)], Tag("a number")],
        Annotated[Literal["auto"], Tag("a word")],
        Annotated[
            Annotated[list[Index], Field(min_length=1), AfterValidator(_differ)], Tag("numbers")
        ],
    ],
    Discriminator(
        lambda value: (
            "numbers" if isinstance(value, list) else "a word" if value == "auto" else "a number"
        )
    ),
]


# OWNER/NAME; in ASCII, since a class of Unicode would take 50 ms to compile
REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$"


class Config(Section):
    task: Annotated[Task, Mark(outside_hash=True, on_run=True)]
    backend: Annotated[Backend, Mark(on_resume=True, on_run=True)]
    device: Annotated[
        str, Field(pattern=f"^({devices.PATTERN})$"), Mark(on_resume=True, on_run=True)
    ]
    devices: Annotated[Devices, _WHEN_RESUMED]
    num_nodes: Annotated[Count, _WHEN_RESUMED]
    strategy: Annotated[Literal["auto", "ddp", "fsdp"], _WHEN_RESUMED]
    seed: Index
    data: Data
    model: Model
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    metrics: Literal["auto"] | Annotated[list[Metric], Field(max_length=100)]
    logger: Annotated[Logger, Mark(outside_hash=True, on_resume=True)]
    tracker: Annotated[Tracking, Mark(outside_hash=True, on_resume=True)]
    callbacks: Annotated[CallbackList, _WHEN_RESUMED]
    debug: Literal["fast", "overfit", "anomaly", "nondeterminism", "profile"] | None
    trainer: Trainer
    tune: Tune | None
    answer: Annotated[Answer, _OUTSIDE]
    race: Annotated[Race, _OUTSIDE]
    output: Annotated[Output, _OUTSIDE]
    print_config: Annotated[bool, Mark(outside_hash=True, on_resume=True)]
    find_lr: Annotated[FindLR, _OUTSIDE]
    forecast: Annotated[Forecast, Mark(outside_hash=True, command_line_only=True)]
    clean: Annotated[Clean, Mark(outside_hash=True, command_line_only=True)]
    run: Annotated[str | None, Mark(outside_hash=True, on_run=True, command_line_only=True)]
    runs: Annotated[list[str] | None, Mark(outside_hash=True, command_line_only=True)]
    where: Annotated[
        Annotated[list[str], BeforeValidator(_as_list)] | None,
        Mark(outside_hash=True, command_line_only=True),
    ]
    sort: Annotated[str, Mark(outside_hash=True, command_line_only=True)]
    format: Annotated[Format | None, _OF_A_RUN]
    checkpoint: Annotated[Literal["last", "best"] | Index, replace(_OF_A_RUN, on_resume=True)]
    weights: Annotated[Which, _OF_A_RUN]
    push: Annotated[Annotated[str, Field(pattern=REPOSITORY)] | None, _OF_A_RUN]
    trusted_modules: Annotated[
        list[str], Mark(outside_hash=True, on_resume=True, on_run=True, command_line_only=True)
    ]
    steps: Annotated[str | None, _OF_A_RUN]
    resume: Annotated[str | None, Mark(outside_hash=True, command_line_only=True)]

    @property
    def trackers(self) -> Sequence[str]:
        """The trackers that get the points of the run."""
        names = self.logger if isinstance(self.logger, list) else [self.logger]
        return [name for name in names if name is not None]

    @property
    def num_processes(self) -> int:
        """The processes that train together, one per device."""
        return self.num_devices * self.num_nodes

    @property
    def num_devices(self) -> int:
        """The processes on each machine."""
        return num_devices(self.devices)

    @property
    def device_name(self) -> str:
        """The device as requested: auto, cpu, cuda, cuda:N or mps."""
        listed = self.devices if isinstance(self.devices, list) else []
        return f"cuda:{listed[0]}" if len(listed) == 1 else self.device

    @property
    def batch_size(self) -> int | list[SizedPart]:
        """B, the rows of a micro-batch over all devices; or the parts of the run with their own."""
        sizes, num = self.trainer.batch_size, self.num_processes
        if self.trainer.global_batch_size is not None:
            return self.trainer.global_batch_size
        if isinstance(sizes, int):
            return sizes * num
        return [part.model_copy(update={"size": part.size * num}) for part in sizes]

    @property
    def batch_rows(self) -> int:
        """B, the rows of a micro-batch over all devices; the most, if they change."""
        sizes = self.batch_size
        return sizes if isinstance(sizes, int) else max(part.size for part in sizes)

    @property
    def device_batch_rows(self) -> int:
        """The most rows of a micro-batch that one device has."""
        return -(-self.batch_rows // self.num_processes)


def parse(composed: Mapping[str, Any]) -> Config:
    """Make the typed config. Fills `layer_defaults` into `model.layers`."""
    values = dict(composed)
    _check_keys(values)
    user_code.check(values)
    defaults, model = values.pop("layer_defaults", None), values.get("model")
    if isinstance(model, dict) and {"_target_", "layers"} <= set(model):
        raise ConfigError(
            "model must have _target_ or layers, not both; model=custom selects your own model"
        )
    if isinstance(defaults, dict):
        _check_layer_defaults(defaults)
        if isinstance(model, dict) and isinstance(model.get("layers"), list):
            layers = [
                with_defaults(layer, defaults) if isinstance(layer, dict) else layer
                for layer in model["layers"]
            ]
            values["model"] = {**model, "layers": layers}
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, Config, values, composed)) from None
    if isinstance(config.devices, list) and config.device != "cuda":
        raise ConfigError(
            f"devices={config.devices} are the numbers of accelerators, which need device=cuda, "
            f"got {config.device}; on the CPU, set how many, devices={len(config.devices)}"
        )
    return config


def _check_keys(values: Mapping[Any, Any], path: str = "") -> None:
    """Refuse a key that is not text or that contains a dot. Keys in `args` are not checked: they
    are arguments of a function; those in `model.map` are names of torch, and those in
    `answer.target` of workloads, such as tables."""
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if not isinstance(key, str) or not key:
            raise ConfigError(f"a key of {path or 'the config'} must be text, got {show(key)}")
        if "." in key:
            group, _, last = key.rpartition(".")
            raise ConfigError(
                f"{show(where)} is a single key that contains a dot; in a file, write "
                f"{show(last)} below {show(group)}"
            )
        if key != "args" and where not in ("model.map", "answer.target"):
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, Mapping):
                    _check_keys(item, where)


def sha256(composed: Mapping[str, Any], *without: str) -> str:
    """Hash the values that determine a run: the composed config without the keys that are marked
    `outside_hash` and without the keys `without`. The number of devices does not count."""
    excluded = {*marked("outside_hash"), *without}
    values = _on_one_device(composed)
    kept = {key: value for key, value in values.items() if key not in excluded}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _on_one_device(composed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that makes the same updates on one device. It has the keys of a config
    from before there were several devices, so the hashes of older runs stay valid."""
    values, trainer = dict(composed), composed.get("trainer")
    if isinstance(trainer, Mapping):
        rows = global_batch_size(composed)
        newer = ("global_batch_size", "process_timeout")
        known = {key: value for key, value in trainer.items() if key not in newer}
        if known.get("tf32") is False:  # as all runs were from before there was the key
            del known["tf32"]
        if "sync_batchnorm" in known:
            num = num_processes(composed)
            if known.pop("sync_batchnorm") is False and num != 1:  # the number counts
                known["sync_batchnorm"] = num
        values["trainer"] = known if rows is None else {**known, "batch_size": rows}
    one = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    return {**values, **{key: value for key, value in one.items() if key in values}}


def global_batch_size(composed: Mapping[str, Any]) -> int | list[dict[str, Any]] | None:
    """Return B, the rows of a micro-batch over all devices, or the parts of the run with their own;
    None if the config has none."""
    trainer = composed["trainer"]
    if (rows := trainer.get("global_batch_size")) is not None:
        return rows  # type: ignore[no-any-return]
    sizes, numbers = trainer.get("batch_size"), _numbers(composed)
    is_list = isinstance(sizes, list) and all(isinstance(part, Mapping) for part in sizes)
    parts = sizes if is_list else [{"size": sizes}]
    if not all(type(number) is int for number in (*numbers, *(p.get("size") for p in parts))):
        return None
    scaled = [{**part, "size": part["size"] * math.prod(numbers)} for part in parts]
    return scaled if is_list else scaled[0]["size"]


def num_processes(composed: Mapping[str, Any]) -> int | None:
    """Return the number of processes of a config; None if it has none."""
    numbers = _numbers(composed)
    return math.prod(numbers) if all(type(number) is int for number in numbers) else None


def _numbers(composed: Mapping[str, Any]) -> list[Any]:
    """Return the number of machines and of devices of each."""
    return [composed.get("num_nodes", 1), num_devices(composed.get("devices", 1))]


def num_devices(devices: Any) -> int:
    """Return the number of devices of each machine. `auto` is 1, as Lightning has it on the CPU; a
    list has the numbers of accelerators."""
    if isinstance(devices, list):
        return len(devices)
    return 1 if devices == "auto" else devices


@cache
def marked(mark: str) -> tuple[str, ...]:
    """The keys that have this mark (a field of `Mark`), in the schema's order."""
    return tuple(
        dict.fromkeys(
            name
            for name, field in every_key(Config)
            for item in field.metadata
            if isinstance(item, Mark) and getattr(item, mark)
        )
    )


def _check_layer_defaults(defaults: Mapping[str, Any]) -> None:
    layers = sections(Layer)
    for kind, values in defaults.items():
        if kind not in layers:
            raise ConfigError(
                f"unknown key layer_defaults.{kind}; layer_defaults accepts: "
                f"{', '.join(layers)}{nearest(kind, layers)}"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"layer_defaults.{kind} must be a group of keys, got {show(values)}")
        allowed = [name for name in keys(layers[kind]) if name != "layer"]
        for key in values:
            if key not in allowed:
                accepts = f"accepts: {', '.join(allowed)}" if allowed else "has no keys"
                raise ConfigError(
                    f"unknown key layer_defaults.{kind}.{key}; {kind} {accepts}"
                    f"{nearest(key, allowed)}"
                )
