"""Turn a pydantic ValidationError into one sentence for the user.

This is the only file that knows the format of pydantic's errors: their types, the steps of their
locations, the keys of their contexts. tests/config/test_explain.py fails and names pydantic's
version if the format changes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from runner.errors import closest, nearest, show
from runner.schedules import Curve, Duration, Length
from runner.schedules.dialects.calls import SentenceError
from runner.section import ALLOWED, OR_AUTO, Mark, keys

Root = type[BaseModel]  # the class of the whole config


def explain(
    invalid: ValidationError, root: Root, values: Mapping[str, Any], composed: Mapping[str, Any]
) -> str:
    """Explain the first error of `values`, which were made from `composed`. An unknown key comes
    before other errors, because it is often a misspelled required key."""
    errors: Sequence[Mapping[str, Any]] = invalid.errors()
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    path = _path(error, values)
    for other in errors:  # in a union, prefer the error that is deeper inside the value
        longer = _path(other, values)
        if longer[: len(path)] == path and len(longer) > len(path):
            error, path = other, longer
    kind, found = error["type"], error.get("input")
    key = _key(path, values, composed)
    if kind == "extra_forbidden":
        return _unknown_key(root, key, error["loc"], path)
    if kind == "missing":
        return f"{key} is missing; it needs a value"
    if kind == "union_tag_not_found":
        tag = error["ctx"]["discriminator"].strip("'")
        return (
            f"{key}.{tag} is missing; it must be one of "
            f"{', '.join(sections(_annotation(root, error['loc'])))}"
        )
    if kind == "union_tag_invalid":
        tag, found = error["ctx"]["discriminator"].strip("'"), error["ctx"]["tag"]
        allowed = _words(error["ctx"]["expected_tags"])
        return f"{key}.{tag} must be {_or(allowed)}, got {show(found)}{nearest(found, allowed)}"
    if kind == "value_error" and isinstance(error["ctx"]["error"], SentenceError):
        return f"{key}.{error['ctx']['error']}"
    if kind == "value_error" and isinstance(found, dict):  # several keys contradict each other
        return f"{key} must have {error['ctx']['error']}"
    # in a union, the errors of all members at this key
    same = [other for other in errors if _path(other, values) == path]
    names = [
        name
        for other in same
        if other["type"] == "literal_error"
        for name in _words(other["ctx"]["expected"])
    ]
    hint = nearest(found, names + _other_words(_annotation(root, error["loc"])))
    if kind == "string_pattern_mismatch":  # device: many users write gpu for cuda
        hint = nearest(str(found).replace("gpu", "cuda"), ["auto", "cuda", "mps"])
    text = " or ".join(
        dict.fromkeys(_allowed(root, other).removeprefix("must be ") for other in same)
    )
    return (
        f"{key} {text if text.startswith('must') else f'must be {text}'}, got {show(found)}{hint}"
    )


def _allowed(root: Root, error: Mapping[str, Any]) -> str:
    if error["type"] == "literal_error":
        return f"must be {_or(_words(error['ctx']['expected']))}"
    annotation = _annotation(root, error["loc"])
    if error["loc"] == ("device",):
        return ALLOWED["string_pattern_mismatch"]
    if error["type"] == "string_type" and {Duration, Length} & {annotation, *get_args(annotation)}:
        return "must be a duration such as 500steps, 3epochs or 10%"
    context, kind = error.get("ctx", {}), error["type"]
    if kind == "too_short" and context["min_length"] > 1:
        kind = "too_few"
    words = ALLOWED.get(kind)
    if words and kind == "float_type":
        words = " or ".join([words, *_other_words(annotation)])
    return words.format(**context) if words else f"must be valid ({error['msg']})"


def _other_words(annotation: Any) -> list[str]:
    """Return the words that a key of numbers takes besides."""
    return ["auto"] if OR_AUTO in getattr(annotation, "__metadata__", ()) else []


# The names of other programs (Lightning, Keras, transformers) -> our keys. Lightning's
# gradient_clip_val is a norm by default
_OTHER_NAMES = {
    "accelerator": "device",
    "epochs": "trainer.max_epochs",
    "gpus": "devices",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "gradient_clip_val": "trainer.gradient_clip_norm",
    "learning_rate": "optimizer.lr",
    "max_grad_norm": "trainer.gradient_clip_norm",
}


def _unknown_key(root: Root, key: str, location: Sequence[Any], path: Sequence[Any]) -> str:
    """List the keys that exist, and suggest where the given one belongs: in another choice, beside
    it, or elsewhere."""
    if key == "experiment":  # without this header, Hydra puts the file's keys below `experiment`
        return "experiment: the first line of its file must be '# @package _global_'"
    section, parent = _annotation(root, location[:-1]), key.rpartition(".")[0]
    tag, choices = _tag(section), sections(_annotation(root, location[:-2]))
    allowed = [name for name in keys(section) if name != tag]
    allowed += [] if parent else ["layer_defaults", "experiment"]
    others = [choice for choice, other in choices.items() if path[-1] in keys(other)]
    beside = closest(path[-1], allowed)
    elsewhere = [
        name for name, _ in every_key(root) if re.search(rf"[._]{re.escape(path[-1])}$", name)
    ]
    hint = ""
    if others:
        hint = f"; it belongs to {f'{parent}=' if tag == 'name' else ''}{', '.join(others)}"
    elif path[-1] in _OTHER_NAMES:
        hint = f"; did you mean {_OTHER_NAMES[path[-1]]}?"
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
        choice = location[-2] if location[-2] in choices else next(iter(sections(section)))
        where = f"{parent}={choice}" if tag == "name" else f"{parent} ({choice})"
    accepts = f"accepts: {', '.join(allowed)}" if allowed else "has no keys"
    return f"unknown key {key}; {where} {accepts}{hint}"


def _path(error: Mapping[str, Any], values: Any) -> list[Any]:
    """The path of an error in the user's keys. pydantic's location also has names of union members;
    these are dropped."""
    path: list[Any] = []
    for step in error["loc"]:
        if (isinstance(values, Mapping) and step in values) or (
            isinstance(values, list) and isinstance(step, int) and step < len(values)
        ):
            values = values[step]
            path.append(step)
    return [*path, error["loc"][-1]] if error["type"] == "missing" else path


def _key(path: Sequence[Any], values: Mapping[str, Any], composed: Mapping[str, Any]) -> str:
    """Write the path as the user does. A value that came from `layer_defaults` gets its key
    there."""
    given, filled = composed, values
    for step in path[:-1]:
        given, filled = given[step], filled[step]
    if (
        isinstance(given, dict)
        and isinstance(filled, dict)
        and path[-1] in filled
        and path[-1] not in given
    ):
        return f"layer_defaults.{filled['layer']}.{path[-1]}"
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(
        "."
    )


def every_key(section: Any, parent: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted keys and fields of a section and of all choices inside it. Keys in lists, in
    mappings and in a schedule's parts are left out: they have no fixed path."""
    for name, field in keys(section).items():
        yield f"{parent}{name}", field
        if not issubclass(section, Curve) and get_origin(field.annotation) not in (list, dict):
            for inner in _members(field.annotation):
                if hasattr(inner, "model_fields"):
                    yield from every_key(inner, f"{parent}{name}.")


def _annotation(root: Root, location: Sequence[Any]) -> Any:
    """The type that `root` declares at the location of an error."""
    annotation: Any = root
    for step in location:
        if hasattr(annotation, "model_fields"):
            annotation = _declared(keys(annotation)[step])
        elif isinstance(step, int):
            annotation = _item(annotation)
        else:
            annotation = {**sections(annotation), **_tagged(annotation)}.get(step, annotation)
    given = [member for member in get_args(annotation) if member is not type(None)]
    return given[0] if len(given) == 1 and hasattr(given[0], "model_fields") else annotation


def _declared(field: FieldInfo) -> Any:
    """The type of a key with its constraints, without its mark."""
    constraints = [item for item in field.metadata if not isinstance(item, Mark)]
    return Annotated[field.annotation, *constraints] if constraints else field.annotation


def _item(annotation: Any) -> Any:
    """The declared item type of a list, also if the list is one of several allowed types."""
    if get_origin(annotation) is list:
        return get_args(annotation)[0]
    return next(
        (item for inner in get_args(annotation) if (item := _item(inner)) is not None), None
    )


def sections(annotation: Any) -> dict[str, Any]:
    """Map each name that selects a member of a union to that member."""
    members = [member for member in _members(annotation) if _tag(member)]
    return {
        name: member
        for member in members
        for name in get_args(member.model_fields[_tag(member)].annotation)
        if isinstance(name, str)
    }


def _tagged(annotation: Any) -> dict[str, Any]:
    """Map tags to members of a union that is discriminated by a function of the value."""
    by_tag: dict[str, Any] = {}
    for member in get_args(annotation):
        by_tag |= _tagged(member)
        for item in getattr(member, "__metadata__", ()):
            if isinstance(item, Tag):
                by_tag[item.tag] = get_args(member)[0]
    return by_tag


def _members(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return (
        [member for argument in arguments for member in _members(argument)]
        if arguments
        else [annotation]
    )


def _tag(section: Any) -> str | None:
    """The key that selects this section: `layer`, `callback` or `name`."""
    fields = getattr(section, "model_fields", {})
    return next(
        (
            name
            for name in ("layer", "callback", "name")
            if name in fields and get_args(fields[name].annotation)
        ),
        None,
    )


def _words(expected: str) -> list[str]:
    """Split pydantic's "'a', 'b' or 'c'" into a list in YAML's spelling."""
    words = [word.strip(" '") for part in expected.split(" or ") for word in part.split(",")]
    return [word.lower() if word in ("True", "False") else word for word in words]


def _or(allowed: Sequence[str]) -> str:
    return allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"
