"""Load a backend by its name: the one place that imports one."""

import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any

import backends
from runner.errors import ConfigError, show
from runner.spec import About, Backend
from runner.text import console

# every folder of backends/, by name
BACKENDS: Mapping[str, About] = {
    folder.name: import_module(f"backends.{folder.name}.about").ABOUT
    for folder in pkgutil.iter_modules(backends.__path__)
}

# The context in which a framework is imported. The command line tunes its process there; a
# notebook stays as it is.
importing: Callable[[About], AbstractContextManager[Any]] = nullcontext


def load(name: str) -> Backend:
    """The seam's `Backend`. Only its own framework is imported."""
    module, about = f"backends.{name}.backend", BACKENDS[name]
    if module in sys.modules:
        return sys.modules[module]  # type: ignore[return-value]
    try:
        with importing(about), _environment(about):
            return import_module(module)  # type: ignore[return-value]
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("backends"):
            raise
        raise ConfigError(
            f"backend={name} needs the package {error.name}, which is not installed: pip "
            f"install {about.distribution}"
        ) from None


@contextmanager
def _environment(about: About) -> Iterator[None]:
    """Put the backend's variables in force; say which of the user's are set aside."""
    before = {key: os.environ.get(key) for key in about.environment}
    for key, value in about.environment.items():
        if (users := before[key]) not in (None, value):
            console.warn(f"{key}={show(users)} is set aside: backend={about.name} needs {value}")
    os.environ.update(about.environment)
    try:
        yield
    finally:
        for key, users in before.items():
            if users is None:
                del os.environ[key]
            else:
                os.environ[key] = users
