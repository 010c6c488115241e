"""From a backend's name to the backend: the one place that imports one."""

from importlib import import_module

from runner.errors import ConfigError
from runner.spec import Backend

# backend -> the distribution that its framework comes in
BACKENDS = {"lightning": "pytorch-lightning", "keras": "tensorflow"}


def load(name: str) -> Backend:
    """The backend's module, which is the seam's `Backend`. Only its own framework is imported; the witness has none."""
    if name == "witness":
        return import_module("runner.exact.witness")  # type: ignore[return-value]
    try:
        backend: Backend = import_module(f"backends.{name}")  # type: ignore[assignment]
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("backends"):
            raise
        raise ConfigError(
            f"backend={name} needs the package {error.name}, which is not installed: pip install {BACKENDS[name]}"
        ) from None
    return backend
