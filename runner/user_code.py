"""The user's own functions, for schedule=python and data=python.

Only code from the modules in `trusted_modules` runs. This key is accepted on the command line and
from Python, never from a file, a run's folder or a checkpoint.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from runner.errors import ConfigError, show


def check(values: Mapping[str, Any]) -> None:
    """Refuse a config with a function from an untrusted module. Imports nothing."""
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
                f"{key} is code from {show(module)}, which is not trusted; to trust it, add "
                f"trusted_modules=[{module}] to the command line"
            )


def announce(modules: Sequence[str]) -> None:
    """Print the trusted modules and their files. Imports nothing, so it prints before any of their
    code runs."""
    for name in modules:
        spec = _find(name)
        if spec is None:
            raise ConfigError(
                f"trusted_modules: no module {show(name)} can be imported from this folder"
            )
        print(f"trusted  {name}  {spec.origin}", flush=True)


def call(function: str, *arguments: Any, **named: Any) -> Any:
    """Call a trusted function and return its result. Raise ValueError, with a message for the key
    `function`, if it cannot be called or if another module than the trusted one defines it."""
    module, _, name = function.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"function must be importable, got {function}: {error}") from None
    defined_in = getattr(target, "__module__", None)
    if not callable(target):
        raise ValueError(
            f"function must be callable, got {function} of type {type(target).__name__}"
        )
    if defined_in != module:
        raise ValueError(
            f"function must be defined in {module} itself, got {function} of {defined_in}"
        )
    try:
        return target(*arguments, **named)
    except Exception as error:
        raise ValueError(f"function {function} raised {type(error).__name__}: {error}") from error


def _find(name: str) -> ModuleSpec | None:
    """Find a module's file without importing its parents, as importlib.util.find_spec would."""
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
    """Yield (path as the user writes it, last key, value) for everything in nested values."""
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}" if path else str(key), str(key), v) for key, v in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{i}]", "", item) for i, item in enumerate(value)]
    else:
        items = []
    for inner_path, key, inner in items:
        yield inner_path, key, inner
        yield from walk(inner, inner_path)
