"""The certificate of a run in exact mode: hashes of the results, so that anyone can repeat the run
and compare."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.run import checkpoint, run_folder
from runner.spec import TrainState

FORMAT = 1


def tensors(state: TrainState) -> dict[str, np.ndarray]:
    """Return all tensors that training changes, by name. A slot's tensors are named SLOT/NAME."""
    slots = {
        f"{slot}/{name}": value
        for slot, values in state.slots.items()
        for name, value in values.items()
    }
    return {**state.weights, **state.buffers, **slots}


def tensor_hashes(state: TrainState) -> dict[str, str]:
    """Hash every tensor's values, in float32, little-endian, row-major."""
    return {name: _sha256(value) for name, value in sorted(tensors(state).items())}


def hashes(state: TrainState, losses: np.ndarray) -> dict[str, str]:
    """Return the hashes of result.json: of the weights, of the slots, and of the losses of all
    updates in order."""
    slots = {
        name: value
        for name, value in tensors(state).items()
        if name not in {**state.weights, **state.buffers}
    }
    return {
        "weights_sha256": checkpoint.weights_sha256(state),
        "slots_sha256": checkpoint.weights_sha256(TrainState(state.step, slots, {}, {})),
        "losses_sha256": _sha256(losses),
    }


def write(
    folder: Path, composed: Mapping[str, Any], state: TrainState, more: Mapping[str, Any]
) -> dict[str, str]:
    """Write FOLDER/certificate.json: the config, the data's hash, the hashes of the results, and
    `more`. Versions are for information only."""
    losses = run_folder.read_columns(folder / "trace.csv")["loss"][: state.step]
    result = hashes(state, losses)
    data, environment = (
        run_folder.read_json(folder / f"{name}.json") for name in ("data", "environment")
    )
    certificate = {
        "format": FORMAT,
        "steps": state.step,
        **more,
        **result,
        "tensors_sha256": tensor_hashes(state),
        "data_sha256": data["sha256"],
        "config": dict(composed),
        "made_with": {
            key: environment[key] for key in ("python", "platform", "packages", "device")
        },
    }
    run_folder.write_json(folder / "certificate.json", certificate)
    return result


def _sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").data).hexdigest()
