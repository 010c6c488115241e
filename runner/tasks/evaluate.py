"""task=evaluate: the loss and metrics of a finished run on the test split. Nothing else uses this
split."""

from pathlib import Path

from runner.data.dataset import changed
from runner.errors import ConfigError
from runner.plan import evaluate as evaluate_split
from runner.run import run_folder
from runner.run.progress import show
from runner.run.saved import Run
from runner.text.console import capture


def evaluate(run: Run) -> int:
    """Print the metrics and write them to FOLDER/test.json."""
    with capture() as (console, captured):
        difference = changed(run.data, run.plan.data.description())
        if difference is not None:
            raise ConfigError(
                f"task=evaluate: the data is not what {run.folder} was trained on: {difference}; "
                "task=predict takes new rows"
            )
        data = run.plan.data.test
        if not len(data):
            raise ConfigError(f"{run.folder} has no test rows: data.test_fraction was 0")
        captured.into(run.folder / "run.log")
        outputs = run.plan.outputs(data, run.outputs)
        values = {
            f"test/{name}": value for name, value in evaluate_split(run.plan, outputs, data).items()
        }
        path = run.folder / "test.json"
        about = {"checkpoint": run.state.step, "backend": run.config.backend, "rows": len(data)}
        run_folder.write_json(Path(path), {**values, **about})
        console.say(
            f"result   {show(values)}  ({len(data)} rows, checkpoint {run.state.step}, "
            f"{run.config.backend})"
        )
        console.say(f"file     {path}")
        return 0
