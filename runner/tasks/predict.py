"""task=predict: predict new rows with a finished run, from a table to CSV, from NPZ to NPZ, or
from a folder of images or audio to CSV."""

import csv
import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from runner.components.alignment import greedy, texts_of
from runner.components.losses import couples_rows
from runner.components.metrics import label_probabilities, probabilities
from runner.data.columns import new_rows
from runner.data.files import as_float, locate, read_npz, regular_file
from runner.data.folders import Folder, below
from runner.data.table import Table
from runner.data.table_files import TableFile
from runner.data.text_classes import TextClasses
from runner.data.windows import Windows
from runner.errors import ConfigError, RunError, show_path
from runner.run import run_folder
from runner.run.saved import Run
from runner.text.console import capture


def predict(run: Run, source: str) -> int:
    """Write FOLDER/predictions.csv or .npz, or predictions_2, _3, ... if that file has other
    predictions.

    It contains the outputs, for regression in the data's units and named as the targets; for
    classification also the probability of each class and the most probable label, for several
    labels of a row the probability of each. Of sequences of labels, it contains the text of the
    most probable path, and in an NPZ file the outputs too. Several outputs of a model of the user's
    own are as the model returns them, without probabilities: the array output_NAME of each in an
    NPZ file, the columns output_NAME, output_NAME_I, ... in a CSV file.

    Rows are transformed and scaled like the training rows. A table (CSV, Parquet, ...) needs the
    training columns, in any order; an NPZ needs the array `x`. A run of images or audio takes a
    folder of files, whose paths are the first column.
    """
    with capture() as (console, captured):
        path, x, names, warnings = _rows(source, run)
        for warning in warnings:
            console.say(f"warning: {warning}")
        outputs = run.packed_outputs(x).astype(np.float64)
        captured.into(run.folder / "run.log")
        num_bad = int((~np.isfinite(outputs)).reshape(len(outputs), -1).any(axis=1).sum())
        if num_bad:
            console.say(
                f"warning: outputs of {num_bad} of {len(outputs)} rows are NaN or infinite; the "
                f"run may have diverged"
            )
        several = run.model_spec.network.outputs
        has_classes = several is None and not couples_rows(run.config.loss)
        classes: list[str] = run.data["classes"] if has_classes else []
        columns: dict[str, Any] = {"outputs": outputs}
        has_sequences = "separator" in run.data
        if has_sequences:
            labels = texts_of(greedy(outputs), classes, run.data["separator"])
            columns = {**(columns if path.suffix.lower() == ".npz" else {}), "label": labels}
            classes = []
        if classes:
            columns["probability"] = probabilities(outputs)
            is_single = outputs.shape[1:] == (1,)
            best = outputs[:, 0] > 0 if is_single else outputs.argmax(axis=-1)
            columns["label"] = np.array(classes)[best.astype(int)]
        elif has_classes and run.data["task"] == "multilabel":
            columns["probability"] = label_probabilities(outputs)
        if outputs.ndim > 2 and not has_sequences and path.suffix.lower() != ".npz":
            raise ConfigError(
                f"data.path must be an NPZ file for a run with labels at each step, got "
                f"{show_path(path)}"
            )
        suffix = ".npz" if names is None and path.suffix.lower() == ".npz" else ".csv"
        header = ["label"] if has_sequences else _header(run, outputs.shape[1])
        if several is not None and suffix == ".npz":
            columns = {f"output_{name}": v for name, v in several.named(outputs).items()}
        if "probability" in columns:
            header += [f"probability_{name}" for name in classes or _labels(run, outputs)]
        header += ["label"] if classes else []
        content = _npz(columns) if suffix == ".npz" else _csv(columns, header, names)
        written = write_new(run.folder, "predictions", suffix, content)
        console.say(f"file     {written}  ({len(outputs)} rows)")
        return 0


def _targets(run: Run) -> list[str]:
    """Return the names of the columns of y, none if the data has none."""
    target = run.data.get("target")
    return [target] if isinstance(target, str) else list(target or ())


def _labels(run: Run, outputs: np.ndarray) -> list[str]:
    """Return the names of several labels, numbers if the data has none."""
    return _targets(run) or [str(i) for i in range(outputs.shape[1])]


def _header(run: Run, num_outputs: int) -> list[str]:
    """Return the names of the outputs: of a regression those of the targets, if the data has names
    and the network an output for each; else output_0, output_1, ..."""
    several, targets = run.model_spec.network.outputs, _targets(run)
    if several is not None:
        return [*several.columns()]
    if run.data["task"] == "regression" and len(targets) == num_outputs:
        return targets
    return [f"output_{i}" for i in range(num_outputs)]


def _rows(source: str, run: Run) -> tuple[Path, np.ndarray, list[str] | None, list[str]]:
    """Read the rows. For a run of images or audio, `source` is a folder of files or a file, and
    the rows have names: the paths below the folder. Return warnings too."""
    section = run.config.data
    if isinstance(section, Windows):
        raise ConfigError(
            f"task=predict takes no text, and {run.folder} was trained on data={section.name}; in "
            f"Python, load_run(FOLDER).tokenizer and .predict continue a text, and task=evaluate "
            f"data.path=FILE measures a new one"
        )
    if isinstance(section, TextClasses) and not source.lower().endswith(".npz"):
        x, names, warnings = section.unlabelled_rows(source, run.data)
        return Path(source), x, names, warnings
    is_table = source.lower().endswith((".csv", ".npz"))
    if not isinstance(section, Folder) or (is_table and not Path(source).is_dir()):
        path = regular_file(source)
        x, warnings = _read(run, path)
        return path, x, None, warnings
    root, mode = locate(source, "folder")
    files = [*below(root)] if stat.S_ISDIR(mode) else [root]
    if not files:
        raise ConfigError(
            f"data.path must be a folder of {section.media.plural}, got {show_path(source)}, "
            f"which has no files"
        )
    x, warnings = section.new_rows(files, run.data)
    _check_shape(root, x, run.raw_shape)
    names = [str(file.relative_to(root)) if file != root else file.name for file in files]
    return root, x, names, warnings


def _read(run: Run, path: Path) -> tuple[np.ndarray, list[str]]:
    """Read the rows and check their columns and shape. Return warnings too.
    # float64[N, *raw_shape]"""
    shape = run.raw_shape
    warnings: list[str] = []
    if path.suffix.lower() == ".npz":
        (x,) = read_npz(path, "x")
        x = as_float(x, "x", path)
    else:
        file = run.config.data.file(path) if isinstance(run.config.data, Table) else TableFile(path)
        x, warnings = new_rows(file, run.data, run.folder / "data.json")
        if len(shape) > 1 and x.shape[1] == int(np.prod(shape)):
            x = x.reshape(-1, *shape)
    _check_shape(path, x, shape)
    return x, warnings


def _check_shape(path: Path, x: np.ndarray, wanted: list[int]) -> None:
    found = list(x.shape[1:])
    if found != wanted:
        raise ConfigError(f"{path}: a row has shape {found}; the run was trained on {wanted}")


def _npz(columns: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **columns)
    return content.getvalue()


def _csv(columns: dict[str, Any], header: list[str], names: list[str] | None) -> bytes:
    """Format the columns path, if rows have names, and those of `header`."""
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow([*([] if names is None else ["path"]), *header])
    cells = [np.reshape(values, (len(values), -1)).tolist() for values in columns.values()]
    if names is not None:
        cells.insert(0, [[name] for name in names])
    writer.writerows([cell for part in row for cell in part] for row in zip(*cells, strict=True))
    return encoded(content.getvalue())


def encoded(text: str) -> bytes:
    """Encode names of files too: surrogates stand for the bytes of a name that is not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def write_new(folder: Path, stem: str, suffix: str, content: bytes) -> Path:
    """Write to the first of STEM, STEM_2, ... that does not exist or has the same content. Return
    its path."""
    number = 1
    while True:
        path = folder / f"{stem}{'' if number == 1 else f'_{number}'}{suffix}"
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
