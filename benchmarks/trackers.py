"""Measure what each tracker costs a run.

    python -m benchmarks.trackers                      # the MLP on both backends; five minutes
    python -m benchmarks.trackers --models mlp cnn --trackers tensorboard --rounds 5 --markdown

The small model has the most points a second. A run without a tracker and a run with each take
turns, each in a new process with a store of its own, in another order each round; MLflow's store is
made before, as a first run does once. "training" is the ratio of two times from the first update to
the last one, with evaluations and checkpoints: of a run with the tracker, and of the run without
one in the same round; the median of the rounds, the smallest and the largest. The goal is 1.02.
"more seconds" is what the whole command takes longer: the import of the library before the
training, and what is left to write at the end.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.cost import BACKENDS, CNN, write_images
from benchmarks.measure import in_new_process, ours
from benchmarks.report import layout, machine
from runner.run.run_folder import read_json
from runner.run.trackers import TRACKERS

NONE = "null"
MODELS = ("mlp", "cnn")
_STORE = "mlflow.db"


@dataclass(frozen=True)
class Overhead:
    """A tracker on one model and backend, against the run without it in each round."""

    model: str
    backend: str
    tracker: str
    ratios: list[float]  # of the training's seconds
    more_seconds: list[float]  # of the whole command


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
                found += _measured(model, backend, folder, arguments.trackers, arguments.rounds)
    header = ("model", "backend", "tracker", "training", "smallest", "largest", "more seconds")
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def _make_store(path: Path) -> None:
    from runner.run.trackers.mlflow import make_store

    make_store(path)


def _run_of(model: str, folder: Path) -> Sequence[str]:
    """Return the overrides: 1,000 epochs of the small model, or 9 of a CNN with a million weights;
    some ten seconds of training, so that the start of a tracker does not decide."""
    if model == "mlp":
        return ["trainer.max_epochs=1000"]
    return [*CNN, "data=npz", f"data.path={folder / 'images.npz'}", "trainer.max_epochs=9"]


def _measured(
    model: str, backend: str, folder: Path, trackers: Sequence[str], num_rounds: int
) -> list[Overhead]:
    found = [Overhead(model, backend, name, [], []) for name in trackers]
    overrides = _run_of(model, folder)
    names = [NONE, *trackers]
    for number in range(num_rounds):
        first = number % len(names)
        times = {
            name: _run(backend, [*overrides, f"logger={name}"], folder)
            for name in [*names[first:], *names[:first]]
        }
        train, whole = times[NONE]
        for each in found:
            own_train, own_whole = times[each.tracker]
            each.ratios.append(own_train / train)
            each.more_seconds.append(own_whole - whole)
        print(model, backend, f"round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return found


def _run(backend: str, overrides: Sequence[str], folder: Path) -> tuple[float, float]:
    """Return the seconds of the training and of the whole command."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        variables = {"WANDB_MODE": "offline"}
        if "logger=mlflow" in overrides:
            store = shutil.copy(folder / _STORE, own)
            variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}"
        with ours(backend, overrides, 1, variables) as (seconds, _, root):
            (path,) = root.glob("runs/*/result.json")
            result = read_json(path)
    assert result["status"] == "completed"
    return float(result["seconds"]["train"]), seconds


def _row(each: Overhead) -> tuple[str, ...]:
    ratios = (median(each.ratios), min(each.ratios), max(each.ratios))
    return (
        *(each.model, each.backend, each.tracker),
        *(f"{ratio:.3f}" for ratio in ratios),
        f"{median(each.more_seconds):.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())
