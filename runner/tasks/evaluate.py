"""task=evaluate: the loss and metrics of a finished run on the test split. Nothing else uses this
split."""

from pathlib import Path

from runner.run import run_folder
from runner.run.progress import show
from runner.run.saved import Run
from runner.text.console import capture


def evaluate(run: Run) -> int:
    """Print the metrics and write them to FOLDER/test.json."""
    with capture() as (console, captured):
        values, data = run.evaluate(), run.plan.data.test
        captured.into(run.folder / "run.log")
        path = run.folder / "test.json"
        about = {"checkpoint": run.state.step, "backend": run.config.backend, "rows": len(data)}
        run_folder.write_json(Path(path), {**values, **about})
        console.say(
            f"result   {show(values)}  ({len(data)} rows, checkpoint {run.state.step}, "
            f"{run.config.backend})"
        )
        console.say(f"file     {path}")
        return 0
