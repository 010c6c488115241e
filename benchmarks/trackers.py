"""Measure what each tracker costs a run.

    python -m benchmarks.trackers                      # MLP and CNN on both backends; half an hour
    python -m benchmarks.trackers --models mlp --trackers tensorboard --rounds 3 --markdown

A run without a tracker and a run with each take turns, round after round, each in a new process
with a store of its own. The first round is a warm-up. "training" is the ratio of two times from
the first update to the last one, with evaluations and checkpoints: of a run with the tracker, and
of the run without one in the same round; the median of the rounds, the smallest and the largest.
The goal is 1.02. "more seconds" is what the whole command takes longer: the import of the library
before the training, and what is left to write at the end.
"""

import argparse
import json
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

MODELS = ("mlp", "cnn")


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
        in_new_process(write_images, folder)
        for model in arguments.models:
            for backend in arguments.backends:
                found += _measured(
                    model, backend, _run_of(model, folder), arguments.trackers, arguments.rounds
                )
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
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--trackers", nargs="+", choices=list(TRACKERS), default=list(TRACKERS))
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; report 5 or more")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def _run_of(model: str, folder: Path) -> Sequence[str]:
    """Return the overrides: 1,000 epochs of the small model, or 9 of a CNN with a million weights;
    some ten seconds of training, so that the start of a tracker does not decide."""
    if model == "mlp":
        return ["trainer.max_epochs=1000"]
    return [*CNN, "data=npz", f"data.path={folder / 'images.npz'}", "trainer.max_epochs=9"]


def _measured(
    model: str, backend: str, overrides: Sequence[str], trackers: Sequence[str], num_rounds: int
) -> list[Overhead]:
    found = [Overhead(model, backend, name, [], []) for name in trackers]
    for number in range(num_rounds + 1):
        train, whole = _run(backend, [*overrides, "logger=null"])
        for each in found:
            own_train, own_whole = _run(backend, [*overrides, f"logger={each.tracker}"])
            if number:  # the first round is a warm-up
                each.ratios.append(own_train / train)
                each.more_seconds.append(own_whole - whole)
        print(model, backend, f"round {number} of {num_rounds}", file=sys.stderr, flush=True)
    return found


def _run(backend: str, overrides: Sequence[str]) -> tuple[float, float]:
    """Return the seconds of the training and of the whole command."""
    with ours(backend, overrides, 1, {"WANDB_MODE": "offline"}) as (seconds, _, root):
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
