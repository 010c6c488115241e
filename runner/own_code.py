"""Functions of the user's own, which schedule=python and data=python name: code runs only from the modules that
`trusted_modules` lists, and that key is never taken from a run's folder or a checkpoint."""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner.errors import ConfigError, show


def check(values: Mapping[str, Any]) -> None:
    """Refuse a composed config that names a function of a module that is not trusted; nothing is imported."""
    trusted = values.get("trusted_modules", [])
    for key, function in _functions(values, ""):
        if (
            not isinstance(function, str)
            or not all(part.isidentifier() for part in function.split("."))
            or "." not in function
        ):
            raise ConfigError(f"{key} must be MODULE.FUNCTION, got {show(function)}")
        module = function.rpartition(".")[0]
        if not isinstance(trusted, list) or module not in trusted:
            raise ConfigError(
                f"{key} is code of {module}, which is not trusted; trusted_modules=[{module}] on the command line trusts it"
            )


def announce(modules: Sequence[str]) -> None:
    """Say whose code may run, and where it lies."""
    for name in modules:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise ConfigError(f"trusted_modules: there is no module {name} to be imported from here")
        print(f"trusted  {name}  {spec.origin}", flush=True)


def call(function: str, *arguments: Any, **named: Any) -> Any:
    """What it returns; ValueError with the words for the key `function` if it cannot be called."""
    module, _, name = function.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"function must be one that can be imported, got {function}: {error}") from None
    try:
        return found(*arguments, **named)
    except Exception as error:
        raise ValueError(f"function {function} raised {type(error).__name__}: {error}") from error


def _functions(values: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The key and the value of `function` in everything with `name: python`."""
    if isinstance(values, Mapping) and values.get("name") == "python":
        yield f"{path}.function", values.get("function")
    items: list[tuple[str, Any]] = []
    if isinstance(values, Mapping):
        items = [(f"{path}.{key}".lstrip("."), inner) for key, inner in values.items()]
    elif isinstance(values, list):
        items = [(f"{path}[{i}]", inner) for i, inner in enumerate(values)]
    for key, inner in items:
        yield from _functions(inner, key)
