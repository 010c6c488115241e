"""Functions of the user's own, which schedule=python and data=python name.

Code runs only from the modules that `trusted_modules` lists. That key is taken from the command
line or from Python, never from a file, a run's folder or a checkpoint.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from runner.errors import ConfigError, show


def check(values: Mapping[str, Any]) -> None:
    """Refuse a config that names a function of a module that is not trusted. Imports nothing."""
    trusted = values.get("trusted_modules", [])
    for path, _, section in walk(values):
        if not isinstance(section, Mapping) or section.get("name") != "python":
            continue
        key, function = f"{path}.function", section.get("function")
        is_path = isinstance(function, str) and "." in function
        if not is_path or not all(part.isidentifier() for part in str(function).split(".")):
            raise ConfigError(f"{key} must be MODULE.FUNCTION, got {show(function)}")
        module = str(function).rpartition(".")[0]
        if not isinstance(trusted, list) or module not in trusted:
            raise ConfigError(
                f"{key} is code of {show(module)}, which is not trusted; "
                f"trusted_modules=[{module}] on the command line trusts it"
            )


def announce(modules: Sequence[str]) -> None:
    """Say whose code may run and where it lies. Imports nothing, so the line comes first."""
    for name in modules:
        spec = _find(name)
        if spec is None:
            raise ConfigError(
                f"trusted_modules: there is no module {show(name)} to be imported from here"
            )
        print(f"trusted  {name}  {spec.origin}", flush=True)


def call(function: str, *arguments: Any, **named: Any) -> Any:
    """Call a trusted function; return what it returns. Raise ValueError, worded for the key
    `function`, if it cannot be called or is defined in another module than the one that is
    trusted."""
    module, _, name = function.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"function must be importable, got {function}: {error}") from None
    home = getattr(found, "__module__", None)
    if not callable(found):
        raise ValueError(
            f"function must be callable, got {function} of type {type(found).__name__}"
        )
    if home != module:
        raise ValueError(f"function must be defined in {module} itself, got {function} of {home}")
    try:
        return found(*arguments, **named)
    except Exception as error:
        raise ValueError(f"function {function} raised {type(error).__name__}: {error}") from error


def _find(name: str) -> ModuleSpec | None:
    """Find a module's file. Its parents are not imported, as importlib.util.find_spec would."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            first = f"{first}.{part}"
            spec = PathFinder.find_spec(first, [*spec.submodule_search_locations])
    except (ImportError, ValueError):
        return None
    return spec


def walk(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path as the user writes it, last key, value) of everything in nested values."""
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}" if path else str(key), str(key), v) for key, v in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{i}]", "", item) for i, item in enumerate(value)]
    else:
        items = []
    for place, key, inner in items:
        yield place, key, inner
        yield from walk(inner, place)
