"""One sentence to the user from a pydantic ValidationError.

This is the one file that knows the shapes of pydantic's errors: their kinds, the steps of their
locations, the keys of their contexts. tests/config/test_explain.py fails with pydantic's version if
one of these changes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from runner.errors import closest, nearest, show
from runner.schedules import Curve, Duration, Length
from runner.schedules.dialects.calls import SentenceError
from runner.section import ALLOWED, Mark, keys

Root = type[BaseModel]  # the class of the whole config


def explain(
    invalid: ValidationError, root: Root, values: Mapping[str, Any], composed: Mapping[str, Any]
) -> str:
    """Explain what `root` refuses in `values`, which were made from `composed`. An unknown key
    comes first, since it is often the right one misspelled."""
    errors: Sequence[Mapping[str, Any]] = invalid.errors()
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    path = _path(error, values)
    for other in errors:  # of a union's members the one that looked further into the value
        longer = _path(other, values)
        if longer[: len(path)] == path and len(longer) > len(path):
            error, path = other, longer
    kind, found = error["type"], error.get("input")
    key = _key(path, values, composed)
    if kind == "extra_forbidden":
        return _no_key(root, key, error["loc"], path)
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
    words = ALLOWED.get(error["type"])
    return words.format(**error.get("ctx", {})) if words else f"must be valid ({error['msg']})"


def _no_key(root: Root, key: str, location: Sequence[Any], path: Sequence[Any]) -> str:
    """List the keys that exist, and where the given one may belong: in another choice, beside
    it, elsewhere."""
    if key == "experiment":  # without the header, a file's keys are put below its group's name
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
    return f"{key} is no key of {where}, which has {', '.join(allowed) or 'no keys'}{hint}"


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


def every_key(section: Any, parent: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted keys of a section and of all choices of the sections in it, and their
    fields. Keys in lists, in mappings and in a schedule's parts have no fixed place."""
    for name, field in keys(section).items():
        yield f"{parent}{name}", field
        if not issubclass(section, Curve) and get_origin(field.annotation) not in (list, dict):
            for inner in _members(field.annotation):
                if hasattr(inner, "model_fields"):
                    yield from every_key(inner, f"{parent}{name}.")


def _annotation(root: Root, location: Sequence[Any]) -> Any:
    """Return what `root` declares at an error's place."""
    annotation: Any = root
    for step in location:
        if hasattr(annotation, "model_fields"):
            annotation = _declared(keys(annotation)[step])
        elif isinstance(step, int):
            annotation = _item(annotation)
        else:
            annotation = sections(annotation).get(step, annotation)
    given = [member for member in get_args(annotation) if member is not type(None)]
    return given[0] if len(given) == 1 and hasattr(given[0], "model_fields") else annotation


def _declared(field: FieldInfo) -> Any:
    """A key's type without its mark."""
    constraints = [item for item in field.metadata if not isinstance(item, Mark)]
    return Annotated[field.annotation, *constraints] if constraints else field.annotation


def _item(annotation: Any) -> Any:
    """Return what a list is declared to hold, whether it is the only type or one of several."""
    if get_origin(annotation) is list:
        return get_args(annotation)[0]
    return next(
        (item for inner in get_args(annotation) if (item := _item(inner)) is not None), None
    )


def sections(annotation: Any) -> dict[str, Any]:
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
