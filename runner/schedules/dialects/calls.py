"""Another library's schedule, said as its class name and its arguments, and checked against that
class's own signature.

The functions of a dialect have the names, arguments and defaults of the library's classes: these
are that library's
meaning and no defaults of this project. Each takes t  # int64[n], the tick, and lr, the optimizer's
rate.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from runner.errors import nearest, show
from runner.schedules.ramps import Array
from runner.section import ALLOWED, Section

Rates = Callable[[Array, float], Array]
Registry = Mapping[str, Callable[..., Array]]

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Real = float
Rate = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class SentenceError(ValueError):
    """A whole sentence about a key below the one that is checked."""


class Call(Section):
    """A class within another one's arguments."""

    kind: str = Field(alias="class")
    args: dict[str, Any]


def bind(
    registry: Registry,
    name: str,
    args: Mapping[str, Any],
    given: Mapping[str, Any],
    where: str = "args",
) -> Rates:
    """rates(t, lr) of the registry's class with these arguments; `given` are those that the run
    knows if none is said."""
    function = registry[name]
    parameters = dict(list(inspect.signature(function).parameters.items())[2:])
    for key in args:
        if key not in parameters:
            raise SentenceError(
                f"{where}.{key} is no argument of {name}, which has "
                f"{', '.join(parameters) or 'none'}{nearest(key, parameters)}"
            )
    known = {key: value for key, value in given.items() if key in parameters}
    missing = next(
        (k for k, p in parameters.items() if p.default is p.empty and k not in {**known, **args}),
        None,
    )
    if missing is not None:
        raise SentenceError(f"{where}.{missing} is missing; {name} needs it")
    checked = {
        key: _checked(parameters[key].annotation, value, f"{where}.{key}")
        for key, value in args.items()
    }
    try:
        inner = _inner(registry, checked, given, getattr(function, "parts", ()), where)
        values = {**known, **checked, **inner}
        _tried(function, values)
    except SentenceError:
        raise
    except ValueError as error:
        raise SentenceError(f"{where}.{error}") from None
    return partial(function, **values)


def _tried(function: Callable[..., Array], values: Mapping[str, Any]) -> None:
    """Refuse, at once, what the class refuses of its arguments together."""
    function(np.zeros(0, dtype=np.int64), 1.0, **values)


def _inner(
    registry: Registry, args: Mapping[str, Any], given: Mapping[str, Any], parts: Any, where: str
) -> dict[str, Any]:
    """Lists of calls, bound."""
    return {
        key: [
            _bound(registry, call, given, parts, f"{where}.{key}[{i}]")
            for i, call in enumerate(value)
        ]
        for key, value in args.items()
        if isinstance(value, list) and value and isinstance(value[0], Call)
    }


def _bound(
    registry: Registry, call: Call, given: Mapping[str, Any], parts: Sequence[str], where: str
) -> Rates:
    if call.kind not in parts:
        found = f"got {show(call.kind)}{nearest(call.kind, parts)}"
        raise SentenceError(f"{where}.class must be one of {', '.join(parts)}, {found}")
    return bind(registry, call.kind, call.args, given, where=f"{where}.args")


def _checked(annotation: Any, value: Any, where: str) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]
        )
        if first["type"] == "missing":
            raise SentenceError(f"{where}{place} is missing; it needs a value") from None
        if first["type"] == "extra_forbidden":
            raise SentenceError(
                f"{where}{place} is no key here; there are class and args"
            ) from None
        words = ALLOWED.get(first["type"], "must be valid ({error})")
        if first["type"] == "literal_error":
            words = "must be one of {expected}"
        context = {"error": first["msg"], **first.get("ctx", {})}
        said = words.format(**context).replace("'", "").replace(" or ", ", ")
        raise SentenceError(f"{where}{place} {said}, got {show(first['input'])}") from None
