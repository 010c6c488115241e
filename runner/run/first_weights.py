"""The first weights of a run: fresh ones, or those of a file or another run (`model.weights`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from runner.components.custom import CustomNetwork
from runner.errors import ConfigError, one_line, show
from runner.plan import Plan
from runner.run import checkpoint
from runner.spec import Backend, TrainState, first_slots

_MOST = 5  # names of tensors in one message


def load(start: TrainState, prepared: Plan, backend: Backend) -> tuple[TrainState, list[str]]:
    """Return the state at step 0 with the weights of `model.weights`, and lines that say what was
    loaded. `start` is the fresh state.

    `model.weights` names the folder of a run (its last checkpoint), a safetensors file with the
    model's names and layouts, or a file of the backend's framework. The states of random generators
    and the counts of metrics are not loaded: they belong to one run. Raises ConfigError for a file
    that cannot be read, and with `model.strict` also if a tensor is missing, unexpected or of
    another shape.
    """
    config = prepared.config
    source = getattr(config.model, "weights", None)
    if source is None:
        return start, []
    found = _read(source, prepared, backend)
    every = {**start.weights, **start.buffers}
    own = {name: value for name, value in every.items() if name not in prepared.built.counts}
    fitting = {name for name in own if name in found and found[name].shape == own[name].shape}
    others = {
        "missing": [name for name in own if name not in found],
        "unexpected": [name for name in found if name not in every],
        "of another shape": [
            f"{name} {list(found[name].shape)} for {list(own[name].shape)}"
            for name in own
            if name in found and name not in fitting
        ],
    }
    if getattr(config.model, "strict", True) and any(others.values()):
        reasons = "; ".join(f"{kind}: {_few(names)}" for kind, names in others.items() if names)
        raise ConfigError(
            f"model.weights must fit the model, got {source} with tensors {reasons}; "
            f"model.strict=false loads the others"
        )
    if not fitting:
        raise ConfigError(
            f"model.weights must have tensors of the model, got {source} with none of: "
            f"{_few([*own])}"
        )
    lines = [f"weights  {source}: {len(fitting)} of {len(own)} tensors loaded"]
    lines += [f"weights  {kind}: {_few(names)}" for kind, names in others.items() if names]

    def taken(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: found[name].astype(value.dtype) if name in fitting else value
            for name, value in values.items()
        }

    weights = taken(start.weights)
    slots = first_slots(prepared.network, config.optimizer, weights)
    return replace(start, weights=weights, slots=slots, buffers=taken(start.buffers)), lines


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(map(show, names[:_MOST])) + more


def _read(source: str, prepared: Plan, backend: Backend) -> Mapping[str, np.ndarray]:
    path = Path(source).expanduser()
    if path.is_dir():
        state: TrainState = checkpoint.read(path)[0]
        return {**state.weights, **state.buffers}
    if not path.is_file():
        raise ConfigError(
            f"model.weights must be a file of weights or the folder of a run, got {source}"
        )
    try:
        if path.suffix == ".safetensors":
            values: Any = load_file(path)
        elif not isinstance(prepared.network, CustomNetwork):
            raise ConfigError(
                f"model.weights must be a safetensors file or the folder of a run for a model of "
                f"this project's layers, got {path}"
            )
        else:
            values = backend.read_weights(path, prepared.model)
    except ConfigError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"model.weights: {source} cannot be read: {_line(error)}") from error
    return values


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"[:300]
