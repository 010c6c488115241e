"""task=predict: a finished run's predictions for new rows, from CSV to CSV or from NPZ to NPZ."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from runner.console import capture
from runner.data.dataset import Scaling, check_finite
from runner.data.files import as_float, numbers, read_csv, read_npz
from runner.errors import ConfigError
from runner.saved import Run


def predict(run: Run, source: str) -> int:
    """FOLDER/predictions.csv or .npz: the outputs, and for classification the label of the largest one.

    Rows are scaled as the training rows were. A CSV needs the training columns, in any order; an NPZ the array `x`.
    """
    with capture() as (console, held):
        path = Path(source).expanduser()
        if not path.is_file():
            raise ConfigError(f"data.path must be a file, got {source}, which is not there")
        x = _read(path, run.data)
        check_finite("x", x, source, run.data["features"])
        held.into(run.folder / "run.log")
        outputs = run.predict(_scaling(run.data, "x_scaling", x).apply(x)).astype(np.float64)
        classes: list[str] = run.data["classes"]
        if classes:
            best = (outputs[:, 0] > 0).astype(int) if outputs.shape[1] == 1 else outputs.argmax(axis=1)
            labels = [classes[i] for i in best]
        else:
            outputs, labels = _scaling(run.data, "y_scaling", outputs).invert(outputs), None
        place = run.folder / f"predictions{path.suffix.lower()}"
        _write(place, outputs, labels)
        console.say(f"file     {place}  ({len(outputs)} rows)")
        return 0


def _read(path: Path, description: dict[str, Any]) -> np.ndarray:
    """float64[N, *input_shape], checked against what the run was trained on."""
    shape = tuple(description["input_shape"])
    if path.suffix.lower() == ".npz":
        arrays = read_npz(path)
        if "x" not in arrays:
            raise ConfigError(f"{path} must hold an array x, got {', '.join(sorted(arrays)) or 'none'}")
        x = as_float(arrays["x"], "x", path)
    elif path.suffix.lower() == ".csv":
        header, rows = read_csv(path)
        features = description["features"] or header
        missing = [name for name in features if name not in header]
        if missing:
            raise ConfigError(f"{path} lacks the column {missing[0]}, which the run was trained on")
        x = numbers(header, rows, [header.index(name) for name in features], path)
        if len(shape) > 1 and x.shape[1] == int(np.prod(shape)):
            x = x.reshape(-1, *shape)
    else:
        raise ConfigError(f"data.path must end in .csv or .npz, got {path}")
    if x.shape[1:] != shape:
        raise ConfigError(f"{path}: a row has shape {list(x.shape[1:])}; the run was trained on {list(shape)}")
    return x


def _scaling(description: dict[str, Any], key: str, like: np.ndarray) -> Scaling:
    saved = description[key]
    if saved is None:
        return Scaling(np.zeros(like.shape[1:]), np.ones(like.shape[1:]))
    return Scaling(np.array(saved["offset"]), np.array(saved["scale"]))


def _write(place: Path, outputs: np.ndarray, labels: list[str] | None) -> None:
    if place.suffix == ".npz":
        arrays: dict[str, Any] = {"outputs": outputs, **({} if labels is None else {"label": np.array(labels)})}
        np.savez(place, **arrays)
        return
    header = [f"output_{i}" for i in range(outputs.shape[1])] + (["label"] if labels is not None else [])
    with place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i, row in enumerate(outputs.tolist()):
            writer.writerow([*row, labels[i]] if labels is not None else row)
