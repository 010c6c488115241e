"""The whole config, typed: what a user may say, and the words when it is wrong.

`parse` is the one door: it takes what Hydra composed and gives a `Config`, or raises a ConfigError
in one line with the key, what was found, what is allowed, and the nearest match.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import Field, ValidationError, model_validator

from runner import user_code
from runner.components.layers import Layer, with_defaults
from runner.components.losses import Loss
from runner.components.optimizers import Optimizer
from runner.data import Data
from runner.dispatcher import BACKENDS
from runner.errors import ConfigError, closest, nearest, show
from runner.machine import devices
from runner.schedules import Curve, Duration, Length, Schedule
from runner.schedules.dialects.calls import SentenceError
from runner.schedules.stall import Mode
from runner.section import (
    ALLOWED,
    Count,
    Fraction,
    Index,
    NonNegative,
    One,
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


class Model(Section):
    name: str
    layers: list[Layer] = Field(min_length=1)


class Trainer(Section):
    max_epochs: Count | None
    max_steps: Count | None
    batch_size: Count
    accumulate_grad_batches: Count
    gradient_clip_norm: Positive | None
    precision: Precision
    steps_per_call: Literal["auto"] | Count
    threads: Literal["auto"] | Count
    compile: bool
    checkpoint_every: Duration | None
    keep_checkpoints: Annotated[int, Field(ge=2)] | None
    monitor: str
    monitor_mode: Mode
    early_stopping_patience: Count | None
    early_stopping_min_delta: NonNegative
    on_nonfinite: Literal["stop", "skip"]
    max_skipped: Count
    strict: bool

    @model_validator(mode="after")
    def _ends(self) -> "Trainer":
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("max_epochs or max_steps, so that the run ends; both are null")
        return self


class FindLR(Section):
    min_lr: Positive
    max_lr: Positive
    num_steps: Annotated[int, Field(ge=20)]
    stop_factor: Annotated[float, Field(gt=1)]
    smoothing: Fraction


class Output(Section):
    root: str = Field(min_length=1)
    multirun: str | None


class Tune(Section):
    name: Literal["lr"]
    factors: list[Positive] = Field(min_length=2)


class Config(Section):
    task: Literal[
        "train", "preview", "find_lr", "evaluate", "predict", "export", "verify", "compare"
    ]
    backend: Backend
    device: Annotated[str, Field(pattern=f"^({devices.PATTERN})$")]
    devices: One
    num_nodes: One
    strategy: Literal["auto"]
    seed: Index
    data: Data
    model: Model
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    metrics: Literal["auto"] | Annotated[list[str], Field(max_length=100)]
    trainer: Trainer
    tune: Tune | None
    output: Output
    print_config: bool
    find_lr: FindLR
    run: str | None
    runs: list[str] | None
    format: Format | None
    checkpoint: Literal["last", "best"] | Index
    trusted_modules: list[str]
    steps: str | None
    resume: str | None


def parse(composed: Mapping[str, Any]) -> Config:
    """The typed config. `layer_defaults` is folded into the layers that it speaks of."""
    values = dict(composed)
    _check_keys(values)
    user_code.check(values)
    defaults, model = values.pop("layer_defaults", None), values.get("model")
    if isinstance(defaults, dict):
        _check_layer_defaults(defaults)
        if isinstance(model, dict) and isinstance(model.get("layers"), list):
            whole = [
                with_defaults(layer, defaults) if isinstance(layer, dict) else layer
                for layer in model["layers"]
            ]
            values["model"] = {**model, "layers": whole}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error.errors(), values, composed)) from None


def _check_keys(values: Mapping[Any, Any], path: str = "") -> None:
    """Refuse a key that is no text or holds a dot; `args` belong to a function, which names its
    own."""
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if not isinstance(key, str) or not key:
            raise ConfigError(f"a key of {path or 'the config'} must be text, got {show(key)}")
        if "." in key:
            group, _, last = key.rpartition(".")
            raise ConfigError(
                f"{show(where)} is one key with a dot in it; in a file, write {show(last)} "
                f"below {show(group)}"
            )
        if key != "args":
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, Mapping):
                    _check_keys(item, where)


def sha256(composed: Mapping[str, Any], *without: str) -> str:
    """Of what fixes a run: the composed config without the folder it writes to and the tasks done
    on its result, and without more of its keys."""
    aside = {
        "output",
        "task",
        "find_lr",
        "run",
        "runs",
        "format",
        "checkpoint",
        "steps",
        "resume",
        "print_config",
        "trusted_modules",
        *without,
    }
    kept = {key: value for key, value in composed.items() if key not in aside}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _explain(
    errors: Sequence[Mapping[str, Any]], values: Mapping[str, Any], composed: Mapping[str, Any]
) -> str:
    """One sentence. An unknown key comes first, since it is often the right one misspelled."""
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    path = _path(error, values)
    for other in errors:  # of a union's members the one that looked further into the value
        longer = _path(other, values)
        if longer[: len(path)] == path and len(longer) > len(path):
            error, path = other, longer
    kind, found = error["type"], error.get("input")
    key = _key(path, values, composed)
    if kind == "extra_forbidden":
        return _no_key(key, error["loc"], path)
    if kind == "missing":
        return f"{key} is missing; it needs a value"
    if kind == "union_tag_not_found":
        tag = error["ctx"]["discriminator"].strip("'")
        return (
            f"{key}.{tag} is missing; it must be one of "
            f"{', '.join(_sections(_annotation(error['loc'])))}"
        )
    if kind == "union_tag_invalid":
        tag, found = error["ctx"]["discriminator"].strip("'"), error["ctx"]["tag"]
        allowed = _words(error["ctx"]["expected_tags"])
        return f"{key}.{tag} must be {_or(allowed)}, got {show(found)}{nearest(found, allowed)}"
    if kind == "value_error" and isinstance(error["ctx"]["error"], SentenceError):
        return f"{key}.{error['ctx']['error']}"
    if kind == "value_error" and isinstance(found, dict):  # of keys together
        return f"{key} must have {error['ctx']['error']}"
    # of a union, what each member allows
    same = [other for other in errors if _path(other, values) == path]
    names = [
        name
        for other in same
        if other["type"] == "literal_error"
        for name in _words(other["ctx"]["expected"])
    ]
    hint = nearest(found, names)
    if kind == "string_pattern_mismatch":  # what others call a gpu
        hint = nearest(str(found).replace("gpu", "cuda"), ["auto", "cuda", "mps"])
    text = " or ".join(dict.fromkeys(_allowed(other).removeprefix("must be ") for other in same))
    return (
        f"{key} {text if text.startswith('must') else f'must be {text}'}, got {show(found)}{hint}"
    )


def _allowed(error: Mapping[str, Any]) -> str:
    if error["type"] == "literal_error":
        return f"must be {_or(_words(error['ctx']['expected']))}"
    annotation = _annotation(error["loc"])
    if error["loc"] == ("device",):
        return ALLOWED["string_pattern_mismatch"]
    if error["type"] == "string_type" and {Duration, Length} & {annotation, *get_args(annotation)}:
        return "must be a duration such as 500steps, 3epochs or 10%"
    words = ALLOWED.get(error["type"])
    return words.format(**error.get("ctx", {})) if words else f"must be valid ({error['msg']})"


def _no_key(key: str, location: Sequence[Any], path: Sequence[Any]) -> str:
    """Which keys there are, and where the one that was said may belong: in another choice, beside
    it, elsewhere."""
    if key == "experiment":  # without the header, a file's keys are put below its group's name
        return "experiment: the first line of its file must be '# @package _global_'"
    section, parent = _annotation(location[:-1]), key.rpartition(".")[0]
    tag, choices = _tag(section), _sections(_annotation(location[:-2]))
    allowed = [name for name in keys(section) if name != tag]
    allowed += [] if parent else ["layer_defaults", "experiment"]
    others = [choice for choice, other in choices.items() if path[-1] in keys(other)]
    beside = closest(path[-1], allowed)
    elsewhere = [
        name for name in _every_key(Config) if re.search(rf"[._]{re.escape(path[-1])}$", name)
    ]
    hint = ""
    if others:
        hint = f"; it belongs to {f'{parent}=' if tag == 'name' else ''}{', '.join(others)}"
    elif beside:
        hint = f"; did you mean {parent}{'.' if parent else ''}{beside}?"
    elif elsewhere:
        nearby = [name for name in elsewhere if name.startswith(f"{parent}.")]
        hint = (
            f"; did you mean "
            f"{min(nearby or elsewhere, key=lambda name: len(name.rpartition('.')[2]))}?"
        )
    where = parent or "the config"
    if tag:
        choice = location[-2] if location[-2] in choices else next(iter(_sections(section)))
        where = f"{parent}={choice}" if tag == "name" else f"{parent} ({choice})"
    return f"{key} is no key of {where}, which has {', '.join(allowed) or 'no keys'}{hint}"


def _check_layer_defaults(defaults: Mapping[str, Any]) -> None:
    layers = _sections(Layer)
    for kind, said in defaults.items():
        if kind not in layers:
            raise ConfigError(
                f"layer_defaults.{kind} is no layer; layers are "
                f"{', '.join(layers)}{nearest(kind, layers)}"
            )
        if not isinstance(said, dict):
            raise ConfigError(f"layer_defaults.{kind} must be a group of keys, got {show(said)}")
        allowed = [name for name in keys(layers[kind]) if name != "layer"]
        for key in said:
            if key not in allowed:
                has = f"which has {', '.join(allowed) or 'no keys'}"
                raise ConfigError(
                    f"layer_defaults.{kind}.{key} is no key of {kind}, {has}{nearest(key, allowed)}"
                )


def _path(error: Mapping[str, Any], values: Any) -> list[Any]:
    """The user's keys in an error's place, without the names of unions' members that pydantic puts
    between."""
    path: list[Any] = []
    for step in error["loc"]:
        if (isinstance(values, Mapping) and step in values) or (
            isinstance(values, list) and isinstance(step, int) and step < len(values)
        ):
            values = values[step]
            path.append(step)
    return [*path, error["loc"][-1]] if error["type"] == "missing" else path


def _key(path: Sequence[Any], values: Mapping[str, Any], composed: Mapping[str, Any]) -> str:
    """The path as the user writes it; what stands in no layer but in `layer_defaults` is named
    there."""
    said, whole = composed, values
    for step in path[:-1]:
        said, whole = said[step], whole[step]
    if (
        isinstance(said, dict)
        and isinstance(whole, dict)
        and path[-1] in whole
        and path[-1] not in said
    ):
        return f"layer_defaults.{whole['layer']}.{path[-1]}"
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(
        "."
    )


def _every_key(section: Any, parent: str = "") -> list[str]:
    """The dotted keys of a section and of all choices of the sections in it; those in lists and
    mappings, and of a schedule's parts, have no fixed place."""
    found = []
    for name, field in keys(section).items():
        inner = [member for member in _members(field.annotation) if hasattr(member, "model_fields")]
        found.append(f"{parent}{name}")
        if not issubclass(section, Curve) and get_origin(field.annotation) not in (list, dict):
            found += [key for other in inner for key in _every_key(other, f"{parent}{name}.")]
    return found


def _annotation(location: Sequence[Any]) -> Any:
    """What Config declares at an error's place."""
    annotation: Any = Config
    for step in location:
        if hasattr(annotation, "model_fields"):
            annotation = keys(annotation)[step].rebuild_annotation()
        elif isinstance(step, int):
            annotation = _item(annotation)
        else:
            annotation = _sections(annotation).get(step, annotation)
    given = [member for member in get_args(annotation) if member is not type(None)]
    return given[0] if len(given) == 1 and hasattr(given[0], "model_fields") else annotation


def _item(annotation: Any) -> Any:
    """What a list is declared to hold, the list alone or among others."""
    if get_origin(annotation) is list:
        return get_args(annotation)[0]
    return next(
        (item for inner in get_args(annotation) if (item := _item(inner)) is not None), None
    )


def _sections(annotation: Any) -> dict[str, Any]:
    """The members of a union by the names that choose them."""
    members = [member for member in _members(annotation) if _tag(member)]
    return {
        name: member
        for member in members
        for name in get_args(member.model_fields[_tag(member)].annotation)
    }


def _members(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return (
        [member for argument in arguments for member in _members(argument)]
        if arguments
        else [annotation]
    )


def _tag(section: Any) -> str | None:
    """`layer` or `name`, the key that chooses this section."""
    fields = getattr(section, "model_fields", {})
    return next(
        (
            name
            for name in ("layer", "name")
            if name in fields and get_args(fields[name].annotation)
        ),
        None,
    )


def _words(expected: str) -> list[str]:
    """pydantic's "'a', 'b' or 'c'" as a list, in YAML's spelling."""
    words = [word.strip(" '") for part in expected.split(" or ") for word in part.split(",")]
    return [word.lower() if word in ("True", "False") else word for word in words]


def _or(allowed: Sequence[str]) -> str:
    return allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"
