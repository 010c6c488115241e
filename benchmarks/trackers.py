"""Measure what each tracker costs a run.

    python -m benchmarks.trackers                      # the MLP on both backends; three minutes
    python -m benchmarks.trackers --models cnn --trackers mlflow --backends keras --markdown

"mlp" has the most points a second: 1,000 epochs of some 10 ms, ten seconds of training. "cnn" is a
run of usual size: a minute, with an epoch each few seconds. Each run is a new process with a store
of its own; MLflow's is made before, as a first run does once.

"beside" is the time of the processor that the tracker takes while the run trains, in the calls
of its observer, in its threads and in its processes, divided by the seconds of the training: the
most that the training can lose, where no core is free. "fixed" are its seconds of the processor
before and after: the import of the library, which is once a command, the start, and the last
points. "of a minute" is what both take of a run of a minute; the goal is 2 %. "wait" are the
seconds that the run waits at its end. benchmarks.tracked has the clocks.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cost import BACKENDS, CNN, write_images
from benchmarks.measure import in_new_process, ours
from benchmarks.report import layout, machine
from benchmarks.tracked import Cost
from runner.run.run_folder import read_json
from runner.run.trackers import TRACKERS

MODELS = ("mlp", "cnn")
_NUM_EPOCHS = {"mlp": 1000, "cnn": 12}
_STORE = "mlflow.db"


@dataclass(frozen=True)
class Overhead:
    """A tracker on one model and backend."""

    model: str
    backend: str
    tracker: str
    train_seconds: float
    cost: Cost

    @property
    def beside(self) -> float:
        """The part of the training's time that the tracker takes of a core."""
        return self.cost.beside / self.train_seconds

    @property
    def fixed(self) -> float:
        """The seconds of the processor before and after the training."""
        return self.cost.load + self.cost.open + self.cost.last


def main() -> int:
    arguments = _parser().parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "cnn" in arguments.models:
            in_new_process(write_images, folder)
        if "mlflow" in arguments.trackers:
            in_new_process(_make_store, folder / _STORE)
        for model in arguments.models:
            for backend in arguments.backends:
                for tracker in arguments.trackers:
                    found.append(_measured(model, backend, tracker, folder))
                    print(found[-1], file=sys.stderr, flush=True)
    header = (
        "model",
        "backend",
        "tracker",
        "training s",
        "beside %",
        "fixed s",
        "of a minute %",
        "wait s",
    )
    print(layout([header, *map(_row, found)], arguments.markdown))
    if arguments.json is not None:
        values = {"machine": machine(), "overheads": [asdict(each) for each in found]}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trackers", description="What each tracker costs a run."
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mlp"])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--trackers", nargs="+", choices=list(TRACKERS), default=list(TRACKERS))
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def _make_store(path: Path) -> None:
    from runner.run.trackers.mlflow import make_store

    make_store(path)


def _overrides(model: str, folder: Path) -> Sequence[str]:
    length = f"trainer.max_epochs={_NUM_EPOCHS[model]}"
    if model == "mlp":
        return [length]
    return [*CNN, "data=npz", f"data.path={folder / 'images.npz'}", length]


def _measured(model: str, backend: str, tracker: str, folder: Path) -> Overhead:
    """Train with one thread and one tracker, in a new process."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        variables = {"WANDB_MODE": "offline"}
        if tracker == "mlflow":
            store = shutil.copy(folder / _STORE, own)
            variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}"
        file = Path(own) / "cost.json"
        overrides = [*_overrides(model, folder), f"logger={tracker}"]
        module = ("benchmarks.tracked", str(file))
        with ours(backend, overrides, 1, variables, module=module) as (_, _, root):
            (path,) = root.glob("runs/*/result.json")
            result = read_json(path)
        cost = Cost(**read_json(file))
    assert result["status"] == "completed"
    return Overhead(model, backend, tracker, float(result["seconds"]["train"]), cost)


def _row(each: Overhead) -> tuple[str, ...]:
    return (
        *(each.model, each.backend, each.tracker, f"{each.train_seconds:.1f}"),
        *(f"{100 * each.beside:.2f}", f"{each.fixed:.2f}"),
        *(f"{100 * (each.beside + each.fixed / 60):.2f}", f"{each.cost.wait:.2f}"),
    )


if __name__ == "__main__":
    sys.exit(main())
