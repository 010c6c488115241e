"""task=predict: predict new rows with a finished run, from CSV to CSV or from NPZ to NPZ."""

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from runner.components.metrics import probabilities
from runner.data.files import as_float, numbers, read_csv, read_npz, regular_file
from runner.errors import ConfigError, RunError, show
from runner.run import run_folder
from runner.run.saved import Run
from runner.text.console import capture


def predict(run: Run, source: str) -> int:
    """Write FOLDER/predictions.csv or .npz, or predictions_2, _3, ... if that file has other
    predictions.

    It contains the outputs (for regression in the data's units); for classification also the
    probability of each class and the most probable label. Rows are scaled like the training rows. A
    CSV needs the training columns, in any order; an NPZ needs the array `x`.
    """
    with capture() as (console, captured):
        path = regular_file(source)
        x = _read(path, run.data)
        outputs = run.predict(x).astype(np.float64)
        captured.into(run.folder / "run.log")
        num_bad = int((~np.isfinite(outputs)).any(axis=1).sum())
        if num_bad:
            console.say(
                f"warning: outputs of {num_bad} of {len(outputs)} rows are NaN or infinite; the "
                f"run may have diverged"
            )
        classes: list[str] = run.data["classes"]
        columns: dict[str, Any] = {"outputs": outputs}
        if classes:
            columns["probability"] = probabilities(outputs)
            best = outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(axis=1)
            columns["label"] = np.array(classes)[best.astype(int)]
        content = _npz(columns) if path.suffix.lower() == ".npz" else _csv(columns, classes)
        written = _write(run.folder, path.suffix.lower(), content)
        console.say(f"file     {written}  ({len(outputs)} rows)")
        return 0


def _read(path: Path, description: dict[str, Any]) -> np.ndarray:
    """Read the rows and check their columns and shape.  # float64[N, *input_shape]"""
    shape = tuple(description["input_shape"])
    if path.suffix.lower() == ".npz":
        (x,) = read_npz(path, "x")
        x = as_float(x, "x", path)
    elif path.suffix.lower() == ".csv":
        table = read_csv(path)
        features = description["features"] or table.header
        missing = [name for name in features if name not in table.header]
        if missing:
            raise ConfigError(
                f"{path} lacks the column {show(missing[0])}, which the run was trained on"
            )
        x = numbers(table, [table.header.index(name) for name in features], path)
        if len(shape) > 1 and x.shape[1] == int(np.prod(shape)):
            x = x.reshape(-1, *shape)
    else:
        raise ConfigError(f"data.path must end in .csv or .npz, got {path}")
    if x.shape[1:] != shape:
        raise ConfigError(
            f"{path}: a row has shape {list(x.shape[1:])}; the run was trained on {list(shape)}"
        )
    return x


def _npz(columns: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **columns)
    return content.getvalue()


def _csv(columns: dict[str, Any], classes: list[str]) -> bytes:
    """Format the columns output_0, ..., in the order of the network's outputs; probability_CLASS
    for each class; label."""
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    header = [f"output_{i}" for i in range(columns["outputs"].shape[1])]
    writer.writerow(
        [*header, *(f"probability_{name}" for name in classes), *(["label"] if classes else [])]
    )
    cells = [np.reshape(values, (len(values), -1)).tolist() for values in columns.values()]
    writer.writerows([cell for part in row for cell in part] for row in zip(*cells, strict=True))
    return content.getvalue().encode()


def _write(folder: Path, suffix: str, content: bytes) -> Path:
    """Write to the first of predictions, predictions_2, ... that does not exist or has the same
    content. Return its path."""
    number = 1
    while True:
        path = folder / f"predictions{'' if number == 1 else f'_{number}'}{suffix}"
        if path.is_file() and path.read_bytes() == content:
            return path
        number += 1
        if os.path.lexists(path):
            continue
        try:
            with run_folder.writing(path), path.open("xb") as file:
                file.write(content)
        except RunError:
            path.unlink(missing_ok=True)  # the file is incomplete
            raise
        return path
