"""Load a backend by its name. Only this module imports backends."""

import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any

import backends
from runner.errors import ConfigError, show
from runner.spec import About, Backend, World
from runner.text import console

# every folder of backends/, by name
BACKENDS: Mapping[str, About] = {
    folder.name: import_module(f"backends.{folder.name}.about").ABOUT
    for folder in pkgutil.iter_modules(backends.__path__)
}

# The context manager around the import of a framework. The command line sets one that tunes its
# process; a notebook's process is not changed.
importing: Callable[[About], AbstractContextManager[Any]] = nullcontext
# The number of threads for building a user's own model, before its size is known; None: the
# framework's default. The command line sets one thread.
building_threads: int | None = None
# The processes of the run that this process belongs to, if there are several. A framework that
# must join them before it computes does so before it tries code of the user's own.
world: World | None = None


def load(name: str) -> Backend:
    """Import and return a backend. Imports only its own framework."""
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


def prepare(backend: Backend, num_threads: int) -> None:
    """Prepare a framework for its first computation: set the number of threads, if this is a
    process of the command line, and join the other processes of the run."""
    if building_threads is not None:
        backend.can_use_threads(num_threads)
    if world is not None:
        backend.join(world)


@contextmanager
def _environment(about: About) -> Iterator[None]:
    """Set the backend's environment variables in the block. Warn about each user's value that they
    replace."""
    before = {key: os.environ.get(key) for key in about.environment}
    for key, value in about.environment.items():
        if (user_value := before[key]) not in (None, value):
            console.warn(f"{key}={show(user_value)} is ignored: backend={about.name} needs {value}")
    os.environ.update(about.environment)
    try:
        yield
    finally:
        for key, user_value in before.items():
            if user_value is None:
                del os.environ[key]
            else:
                os.environ[key] = user_value
