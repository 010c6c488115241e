"""Bind the class name and arguments of another library's schedule, checked against the class's
signature.

A dialect has one function per class, with the class's name, arguments and defaults; the defaults
are the library's, not this project's. Each takes t  # int64[n], the tick, and lr, the optimizer's
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
    """An error whose message is a complete sentence that begins with a key."""


class Call(Section):
    """A class as an argument of another class."""

    kind: str = Field(alias="class")
    args: dict[str, Any]


def bind(
    registry: Registry,
    name: str,
    args: Mapping[str, Any],
    run_defaults: Mapping[str, Any],
    where: str = "args",
) -> Rates:
    """Make the function rates(t, lr) of a class with these arguments. `run_defaults` has values
    from the run for arguments that are left out."""
    function = registry[name]
    parameters = dict(list(inspect.signature(function).parameters.items())[2:])
    for key in args:
        if key not in parameters:
            accepts = f"accepts: {', '.join(parameters)}" if parameters else "has no arguments"
            raise SentenceError(
                f"{where}.{key} is an unknown argument; {name} {accepts}{nearest(key, parameters)}"
            )
    known = {key: value for key, value in run_defaults.items() if key in parameters}
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
        inner = _inner(registry, checked, run_defaults, getattr(function, "parts", ()), where)
        values = {**known, **checked, **inner}
        _check_together(function, values)
    except SentenceError:
        raise
    except ValueError as error:
        raise SentenceError(f"{where}.{error}") from None
    return partial(function, **values)


def _check_together(function: Callable[..., Array], values: Mapping[str, Any]) -> None:
    """Call the function on no steps: it refuses arguments that contradict each other."""
    function(np.zeros(0, dtype=np.int64), 1.0, **values)


def _inner(
    registry: Registry,
    args: Mapping[str, Any],
    run_defaults: Mapping[str, Any],
    parts: Any,
    where: str,
) -> dict[str, Any]:
    """Bind the arguments that are lists of calls."""
    return {
        key: [
            _bound(registry, call, run_defaults, parts, f"{where}.{key}[{i}]")
            for i, call in enumerate(value)
        ]
        for key, value in args.items()
        if isinstance(value, list) and value and isinstance(value[0], Call)
    }


def _bound(
    registry: Registry,
    call: Call,
    run_defaults: Mapping[str, Any],
    parts: Sequence[str],
    where: str,
) -> Rates:
    if call.kind not in parts:
        raise SentenceError(
            f"{where}.class must be one of {', '.join(parts)}, got {show(call.kind)}"
            f"{nearest(call.kind, parts)}"
        )
    return bind(registry, call.kind, call.args, run_defaults, where=f"{where}.args")


def _checked(annotation: Any, value: Any, where: str) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        path = "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]
        )
        if first["type"] == "missing":
            raise SentenceError(f"{where}{path} is missing; it needs a value") from None
        if first["type"] == "extra_forbidden":
            raise SentenceError(
                f"{where}{path} is an unknown key; the keys are class and args"
            ) from None
        words = ALLOWED.get(first["type"], "must be valid ({error})")
        if first["type"] == "literal_error":
            words = "must be one of {expected}"
        context = {"error": first["msg"], **first.get("ctx", {})}
        text = words.format(**context).replace("'", "").replace(" or ", ", ")
        raise SentenceError(f"{where}{path} {text}, got {show(first['input'])}") from None
