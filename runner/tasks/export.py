"""task=export: write a finished run's model to a file that loads without this project."""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save

from runner import dispatcher
from runner.components.custom import CustomNetwork
from runner.components.losses import couples_rows
from runner.data.dataset import Scaling
from runner.errors import ConfigError, RunError
from runner.run import run_folder
from runner.run.saved import Run
from runner.text.console import capture

# format -> (the backend that writes it, or None if it needs no framework; the file)
_FORMATS: dict[str, tuple[str | None, str]] = {
    **{
        format: (about.name, file)
        for about in dispatcher.BACKENDS.values()
        for format, file in about.exports.items()
    },
    "safetensors": (None, "model.safetensors"),
}


def export(run: Run, format: str | None) -> int:
    """Write a run's model to its folder, and FILE.json, which describes its inputs and outputs.

    Keras writes model.keras (keras.models.load_model), model.savedmodel (a folder, for
    tf.saved_model.load) and model.tflite (LiteRT). torch writes model.pt2 (torch.export.load) and
    model.onnx. A model of built-in layers or a twin can have any of them, whichever backend trained
    it. model.safetensors has the canonical weights alone. All others take raw rows and return
    targets in the data's units."""
    if format is None:
        raise ConfigError(f"format must be one of {', '.join(_FORMATS)} for task=export, got null")
    with capture() as (console, captured):
        backend, name = _FORMATS[format]
        path = run.folder / name
        several = None if backend is None else run.model_spec.network.outputs
        scalings = [Scaling.of(run.data[key]) for key in ("x_scaling", "y_scaling")]
        scalings[1] = scalings[1] if several is None else None
        if backend is not None:
            run.check_outputs()
            _check_range(scalings, run)
        captured.into(run.folder / "run.log")
        _tidy(run.folder)
        with (
            run_folder.writing(path),
            TemporaryDirectory(dir=run.folder, prefix=f".export-{os.getpid()}-") as temporary,
        ):
            exported = Path(temporary) / name
            if backend is None:
                exported.write_bytes(save(dict(run.weights)))
            else:
                run = replace(run, config=run.config.model_copy(update={"backend": backend}))
                _export(run, exported, scalings)
            description = Path(temporary) / f"{name}.json"
            text = _description(run, scales=backend is not None)
            if several is not None:
                text["outputs"] = several.described()
            run_folder.write_json(description, text)
            if not exported.is_dir():  # some writers make it unreadable for others
                exported.chmod(description.stat().st_mode)
            for file in (description, exported):
                _put(file, run.folder / file.name)
        console.say(f"file     {path}")
        if run.data["features"] or any(scalings):
            console.say(f"names    {path}.json (columns, classes and scaling)")
        return 0


def _export(run: Run, path: Path, scalings: Sequence[Scaling | None]) -> None:
    """Let the backend write the file. An exporter that cannot follow code of the user's own ends
    the command in one line."""
    export = dispatcher.load(run.config.backend).export
    if not isinstance(run.model_spec.network, CustomNetwork):
        export(run.model_spec, run.state, path, *scalings)
        return
    try:
        export(run.model_spec, run.state, path, *scalings)
    except (ConfigError, RunError, OSError):
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        raise ConfigError(
            f"format={run.config.format}: the framework's exporter cannot follow the model's code: "
            f"{type(error).__name__}: {line[:300]}; the number of rows must stay free (x.shape[0], "
            f"not len(x)); format=safetensors writes its weights"
        ) from error


def _put(source: Path, path: Path) -> None:
    """Move a new file or folder to its place, in place of that of an earlier export."""
    if path.is_dir() and not path.is_symlink():
        path.replace(source.with_name(f"{source.name}.old"))
    source.replace(path)


def _tidy(folder: Path) -> None:
    """Remove the temporary folders of exports that were killed. Other files in them stay."""
    import psutil

    for temporary in folder.glob(".export-*-*"):
        match = re.fullmatch(r"\.export-(\d+)-\w+", temporary.name)
        if match and not temporary.is_symlink() and not psutil.pid_exists(int(match[1])):
            for _, name in _FORMATS.values():
                for file in (temporary / name, temporary / f"{name}.old"):
                    if file.is_dir() and not file.is_symlink():
                        shutil.rmtree(file)
                    file.unlink(missing_ok=True)
                (temporary / f"{name}.json").unlink(missing_ok=True)
            with suppress(OSError):  # it contains other files
                temporary.rmdir()


def _description(run: Run, scales: bool) -> dict[str, Any]:
    """Describe the model's inputs and outputs, from data.json."""
    data = run.data
    logits = "logits" if data["num_targets"] == 0 else "targets"
    of_sequences = {key: data[key] for key in ("separator",) if key in data}
    logits = "vectors" if couples_rows(run.config.loss) else logits
    logits = "logits of the classes and of the blank, at each step" if of_sequences else logits
    keys = (
        "task",
        "features",
        "columns",
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
        **{key: data.get(key) for key in keys},
        **of_sequences,
    }


def _check_range(scalings: Sequence[Scaling | None], run: Run) -> None:
    """Refuse scalings outside the range of the model's dtype: the model takes raw rows in it."""
    limits = np.finfo(run.model_spec.dtype)
    for name, scaling in zip("xy", scalings, strict=True):
        if scaling is not None:
            magnitudes = np.abs(scaling.offset) + scaling.scale
            if magnitudes.max() > limits.max or scaling.scale.min() < limits.tiny:
                raise ConfigError(
                    f"format must be safetensors for {run.folder}: {name} holds values outside "
                    f"the range of {limits.dtype}, which a model with raw rows cannot have"
                )
