"""From a backend's name to the backend: the one place that imports one."""

import gc
import os
import sys
from importlib import import_module

from runner.errors import ConfigError, show
from runner.machine.malloc import keep_freed_pages
from runner.spec import Backend
from runner.text import console

# backend -> the distribution that its framework comes in
BACKENDS = {"lightning": "pytorch-lightning", "keras": "tensorflow"}


def load(name: str) -> Backend:
    """The backend's module, which is the seam's `Backend`. Only its own framework is imported; the
    witness has none."""
    if name == "witness":
        return import_module("backends.witness")  # type: ignore[return-value]
    module = f"backends.{name}"
    if module in sys.modules:
        return sys.modules[module]  # type: ignore[return-value]
    keep_freed_pages()
    said = os.environ.get("KERAS_BACKEND", "tensorflow")
    if name == "keras" and said != "tensorflow":
        console.warn(f"KERAS_BACKEND={show(said)} is set aside: backend=keras runs on TensorFlow")
    collects = gc.isenabled()
    try:
        gc.disable()  # a framework's import makes some hundred thousand objects, and drops none
        backend: Backend = import_module(module)  # type: ignore[assignment]
        gc.freeze()  # nor does a later collection have to look at them again
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("backends"):
            raise
        raise ConfigError(
            f"backend={name} needs the package {error.name}, which is not installed: pip "
            f"install {BACKENDS[name]}"
        ) from None
    finally:
        if collects:
            gc.enable()
    return backend
