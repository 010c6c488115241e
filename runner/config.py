"""The whole config, typed: what a user may say, and the words when it is wrong.

`parse` is the one door: it takes what Hydra composed and gives a `Config`, or raises a ConfigError in one line with the
key, what was found, what is allowed, and the nearest match.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from runner import devices
from runner.data import Data
from runner.errors import ConfigError, nearest
from runner.layers import Layer, with_defaults
from runner.losses import Loss
from runner.optimizers import Optimizer
from runner.schedules import Duration, Schedule
from runner.section import Count, Index, Positive, Section
from runner.spec import Precision


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
    compile: Literal[False]
    checkpoint_every: Duration | None
    monitor: str
    monitor_mode: Literal["min", "max"]

    @model_validator(mode="after")
    def _ends(self) -> "Trainer":
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("max_epochs or max_steps, so that the run ends; both are null")
        return self


class Output(Section):
    root: str = Field(min_length=1)


class Config(Section):
    task: Literal["train", "evaluate", "predict", "export"]
    backend: Literal["lightning", "keras"]
    device: Annotated[str, Field(pattern=f"^({devices.PATTERN})$")]
    devices: Literal[1]
    num_nodes: Literal[1]
    strategy: Literal["auto"]
    seed: Index
    data: Data
    model: Model
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    metrics: Literal["auto"] | list[str]
    trainer: Trainer
    output: Output
    run: str | None
    format: Literal["keras", "torch", "safetensors"] | None
    checkpoint: Literal["last", "best"] | Index
    resume: str | None


def parse(composed: Mapping[str, Any]) -> Config:
    """The typed config. `layer_defaults` is folded into the layers that it speaks of."""
    values = dict(composed)
    defaults, model = values.pop("layer_defaults", None), values.get("model")
    if isinstance(model, dict) and isinstance(model.get("layers"), list) and isinstance(defaults, dict):
        whole = [with_defaults(layer, defaults) if isinstance(layer, dict) else layer for layer in model["layers"]]
        values["model"] = {**model, "layers": whole}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error.errors()[0], values)) from None


def sha256(composed: Mapping[str, Any]) -> str:
    """Of what fixes a run: the composed config without the folder it writes to and the tasks done on its result."""
    aside = {"output", "task", "run", "format", "checkpoint", "resume"}
    kept = {key: value for key, value in composed.items() if key not in aside}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


# pydantic's kind of error -> what is allowed, from the error's context
_ALLOWED = {
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "finite_number": "must be finite",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "string_too_short": "must not be empty",
    "too_short": "must hold at least {min_length}",
    "value_error": "must be {error}",
    "model_type": "must be a group of keys",
    "model_attributes_type": "must be a group of keys",
    "dict_type": "must be a group of keys",
}


def _explain(error: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    kind, found, context = error["type"], error.get("input"), error.get("ctx", {})
    path = _path(error["loc"], values)
    key = _dotted(path)
    if kind == "extra_forbidden":
        allowed = _keys(error["loc"][:-1])
        where = _dotted(path[:-1]) or "the config"
        return f"{key} is no key of {where}{nearest(path[-1], allowed)}; its keys are {', '.join(allowed)}"
    if kind == "missing":
        return f"{key} is missing; it needs a value"
    if kind == "literal_error":
        allowed = _sentence(context["expected"])
        return f"{key} must be {_or(allowed)}, got {_show(found)}{nearest(found, allowed)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = context["discriminator"].strip("'")
        allowed = _sentence(context.get("expected_tags", ""))
        if kind == "union_tag_not_found":
            return f"{key}.{tag} is missing; it names the kind of {path[-1] if path else 'config'}"
        return (
            f"{key}.{tag} must be one of {', '.join(allowed)}, got {context['tag']}{nearest(context['tag'], allowed)}"
        )
    if kind == "string_pattern_mismatch":
        return f"{key} must be auto, cpu, cuda, cuda:N or mps, got {_show(found)}{nearest(found, ['auto', 'cpu', 'cuda', 'mps'])}"
    words = _ALLOWED.get(kind)
    if words is None:
        return f"{key}: {error['msg']}, got {_show(found)}"
    text = words.format(**context)
    return f"{key} {text}" if isinstance(found, (dict, list)) else f"{key} {text}, got {_show(found)}"


def _path(location: Sequence[Any], values: Any) -> list[Any]:
    """The user's keys in an error's place, without the names of unions' members that pydantic puts between."""
    path: list[Any] = []
    for step in location:
        if (isinstance(values, Mapping) and step in values) or (
            isinstance(values, list) and isinstance(step, int) and step < len(values)
        ):
            values = values[step]
        elif step != location[-1] or not isinstance(values, Mapping):
            continue
        path.append(step)
    return path


def _dotted(path: Sequence[Any]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _keys(location: Sequence[Any]) -> list[str]:
    """The keys that the section at this place has."""
    section: Any = Config
    for step in location:
        section = _descend(section, step)
    return list(section.model_fields) if hasattr(section, "model_fields") else []


def _descend(annotation: Any, step: Any) -> Any:
    if hasattr(annotation, "model_fields"):
        return annotation.model_fields[step].annotation if step in annotation.model_fields else annotation
    if isinstance(step, int):
        return get_args(annotation)[0]
    for member in _members(annotation):
        tag = getattr(member, "model_fields", {}).get("name") or getattr(member, "model_fields", {}).get("layer")
        if tag is not None and step in get_args(tag.annotation):
            return member
    return annotation


def _members(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [member for argument in arguments for member in _members(argument)] if arguments else [annotation]


def _sentence(expected: str) -> list[str]:
    """pydantic's "'a', 'b' or 'c'" as a list."""
    return [word.strip(" '") for part in expected.split(" or ") for word in part.split(",")]


def _or(allowed: Sequence[str]) -> str:
    return allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"


def _show(found: Any) -> str:
    return "null" if found is None else str(found).lower() if isinstance(found, bool) else str(found)
