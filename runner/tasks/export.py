"""task=export: a finished run as a file that loads without this project."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save

from runner import dispatcher
from runner.data.dataset import Scaling
from runner.errors import ConfigError
from runner.run import run_folder
from runner.run.saved import Run
from runner.text.console import capture

# format -> the backend that makes it (None: no framework is needed) and the file
_FORMATS: dict[str, tuple[str | None, str]] = {
    **{
        format: (about.name, file)
        for about in dispatcher.BACKENDS.values()
        for format, file in about.exports.items()
    },
    "safetensors": (None, "model.safetensors"),
}


def export(run: Run, format: str | None) -> int:
    """FOLDER/model.keras (keras.models.load_model), model.pt2 (torch.export.load) or
    model.safetensors (canonical weights); beside it FILE.json, which names its inputs and outputs.
    The first two take raw rows and give targets in the data's units; around safetensors whoever
    reads it scales."""
    if format is None:
        raise ConfigError(f"format must be one of {', '.join(_FORMATS)} for task=export, got null")
    with capture() as (console, held):
        backend, name = _FORMATS[format]
        place = run.folder / name
        scalings = [Scaling.of(run.data[key]) for key in ("x_scaling", "y_scaling")]
        if backend is not None:
            _check_range(scalings, run)
        held.into(run.folder / "run.log")
        _tidy(run.folder)
        with (
            run_folder.writing(place),
            TemporaryDirectory(dir=run.folder, prefix=f".export-{os.getpid()}-") as beside,
        ):
            made = Path(beside) / name
            if backend is None:
                made.write_bytes(save(dict(run.weights)))
            else:
                run = replace(run, config=run.config.model_copy(update={"backend": backend}))
                dispatcher.load(backend).export(run.model_spec, run.state, made, *scalings)
            description = Path(beside) / f"{name}.json"
            run_folder.write_json(description, _description(run.data, scales=backend is not None))
            made.chmod(description.stat().st_mode)  # some writers let nobody else read
            for file in (description, made):
                file.replace(run.folder / file.name)
        console.say(f"file     {place}")
        if run.data["features"] or any(scalings):
            console.say(f"names    {place}.json (columns, classes and scaling)")
        return 0


def _tidy(folder: Path) -> None:
    """Remove what an export that was killed has left: our own files in a folder of our own name."""
    import psutil

    for beside in folder.glob(".export-*-*"):
        match = re.fullmatch(r"\.export-(\d+)-\w+", beside.name)
        if match and not beside.is_symlink() and not psutil.pid_exists(int(match[1])):
            for _, name in _FORMATS.values():
                (beside / name).unlink(missing_ok=True)
                (beside / f"{name}.json").unlink(missing_ok=True)
            with suppress(OSError):  # it holds something else
                beside.rmdir()


def _description(data: Mapping[str, Any], scales: bool) -> dict[str, Any]:
    """Describe the model's rows and outputs, from data.json."""
    logits = "logits" if data["num_targets"] == 0 else "targets"
    kept = (
        "task",
        "features",
        "target",
        "classes",
        "input_shape",
        "num_targets",
        "x_scaling",
        "y_scaling",
    )
    return {
        "format": 1,
        "scales": scales,
        "inputs": "raw rows" if scales or not data["x_scaling"] else "rows (raw - offset) / scale",
        "outputs": logits if scales or not data["y_scaling"] else "targets (raw - offset) / scale",
        **{key: data.get(key) for key in kept},
    }


def _check_range(scalings: Sequence[Scaling | None], run: Run) -> None:
    """Raw rows go into the model in its own dtype."""
    limits = np.finfo(run.model_spec.dtype)
    for name, scaling in zip("xy", scalings, strict=True):
        if scaling is not None:
            sizes = np.abs(scaling.offset) + scaling.scale
            if sizes.max() > limits.max or scaling.scale.min() < limits.tiny:
                raise ConfigError(
                    f"format must be safetensors for {run.folder}: {name} holds values that "
                    f"{limits.dtype} does not, so that no model could take or give them raw"
                )
