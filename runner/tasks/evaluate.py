"""task=evaluate: the loss and metrics of a finished run on the test split, which nothing else uses,
or on new labelled rows of a table or folder, or a new text."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from runner import user_code
from runner.config.schema import parse
from runner.evaluation import rows
from runner.plan import Plan
from runner.run import run_folder
from runner.run.progress import show
from runner.run.saved import Run, config_of
from runner.tasks.predict import encoded, write_new
from runner.text.console import capture


def evaluate(run: Run, source: str | None = None) -> int:
    """Print the metrics and write them to FOLDER/test.json. For new rows of the table or folder
    `source`, write evaluation.json, and evaluation.csv with the target, the outputs, the loss and
    the metrics of each row."""
    with capture() as (console, captured):
        prepared, is_new = run.plan_to_evaluate(source)
        for warning in prepared.data.warnings if is_new else ():
            console.say(f"warning: {warning}")
        test = prepared.data.test
        has_lines = is_new and prepared.data.has_one_label  # a line for each row
        outputs = prepared.outputs(test, run.outputs) if has_lines else None
        values, num_rows = run.evaluate_plan(prepared, outputs), len(test)
        captured.into(run.folder / "run.log")
        about = _about(run, prepared)
        of_average = about.get("weights") == "average"
        path = run.folder / "test.json"
        if is_new:
            path, about["path"] = run.folder / "evaluation.json", source
            run_folder.write_json(path, {**values, **about})
        if outputs is not None:
            path = write_new(run.folder, "evaluation", ".csv", _by_row(prepared, outputs))
        if not is_new:
            run_folder.write_json(path, {**values, **about})
        console.say(
            f"result   {show(values)}  ({num_rows} {'new ' if is_new else ''}rows, checkpoint "
            f"{run.state.step}, {'average of the weights, ' if of_average else ''}"
            f"{run.config.backend})"
        )
        console.say(f"file     {path}")
        return 0


def on_test_split(folder: Path) -> dict[str, float]:
    """Evaluate the last checkpoint of a run on the test split. Write test.json and return the
    metrics."""
    config = parse({**config_of(folder), "resume": None})
    user_code.announce(config.trusted_modules)
    with capture() as (_, captured):
        run = Run(folder, config, "last", owns_process=True)
        prepared, _ = run.plan_to_evaluate()
        values = run.evaluate_plan(prepared)
        captured.into(folder / "run.log")
        run_folder.write_json(folder / "test.json", {**values, **_about(run, prepared)})
    return values


def _about(run: Run, prepared: Plan) -> dict[str, Any]:
    """Return what the files say beside the metrics."""
    about: dict[str, Any] = {"checkpoint": run.state.step, "backend": run.config.backend}
    about["rows"] = len(prepared.data.test)
    if prepared.of_average:
        about["weights"] = "plain" if run.config.weights == "plain" else "average"
    return about


def _by_row(prepared: Plan, outputs: np.ndarray) -> bytes:
    """Format a line per row, in the order of the file; its path comes first if it is a file.
    Targets and outputs of a regression are in the data's units, the loss is in scaled units.
    Several outputs are as the model returns them."""
    data, y = prepared.data, prepared.data.test.y
    outputs = outputs.astype(np.float64)
    columns = rows(prepared, outputs, y)
    several, scaling = prepared.network.outputs, data.y_scaling
    if scaling is not None:
        y = scaling.invert(y)
        outputs = scaling.invert(outputs) if several is None else outputs
    targets = np.array(data.classes)[y][:, None] if data.classes else y
    names = data.target if isinstance(data.target, list) else [data.target or "target"]
    if data.row_names:
        names, targets = ["path", *names], np.column_stack([data.row_names, targets])
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    header = [f"output_{i}" for i in range(outputs.shape[1])]
    header = header if several is None else [*several.columns()]
    writer.writerow([*names, *header, *columns])
    measured = np.stack([*columns.values(), np.zeros(len(y))], axis=1)[:, :-1]
    for target, output, values in zip(targets, outputs, measured, strict=True):
        writer.writerow([*target.tolist(), *output.tolist(), *values.tolist()])
    return encoded(content.getvalue())
