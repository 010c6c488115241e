"""Time the training phase of both backends and of scripts of the same frameworks.

The models are a small MLP on the digits, which measures the overhead, a CNN with a million
parameters and an MLP with four million. Every contestant runs in a new process. The contestants
take turns, round after round, so that a slow minute of the machine affects all of them; the first
round is a warm-up. Compare only the ratios in the last table: ours / peer, of medians over the same
rounds.

    python -m benchmarks                        # half an hour on two cores
    python -m benchmarks --models mlp --markdown --json speed.json
    # exact mode, with peers in float32
    python -m benchmarks --models exact_mlp exact_cnn exact_resnet
    python -m benchmarks.sweeps                 # many runs in one command
    # the cost against parameters, batch and steps, and the cost of the records
    python -m benchmarks.cost
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.contestants import Model, models, taking_part, write_rows
from benchmarks.measure import Run, in_new_process, measure


def main() -> int:
    arguments = _parser().parse_args()
    selected = [
        model for model in models(dict(arguments.epochs or [])) if model.name in arguments.models
    ]
    runs = _run(selected, arguments.repeats)
    print(report.notes(selected, arguments.repeats), end="\n\n")
    print(report.table(runs, selected, arguments.markdown))
    if arguments.json is not None:
        values = report.as_json(runs, selected, arguments.repeats)
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    names = [model.name for model in models({})]
    default = [model.name for model in models({}) if model.by_default]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Twinrun against idiomatic scripts."
    )
    parser.add_argument(
        "--repeats",
        type=_count,
        default=5,
        help="counted runs of each contestant; report 5 or more",
    )
    parser.add_argument("--models", nargs="+", choices=names, default=default)
    parser.add_argument(
        "--epochs", nargs="+", type=_epochs, metavar="MODEL=N", help="number of epochs, at least 2"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _epochs(text: str) -> tuple[str, int]:
    """Parse MODEL=N. N is at least 2, since the speed after the first epoch is measured too."""
    name, _, number = text.partition("=")
    if name not in [model.name for model in models({})] or not number.isdigit() or int(number) < 2:
        raise argparse.ArgumentTypeError(f"must be MODEL=N with N at least 2, got {text}")
    return name, int(number)


def _run(selected: Sequence[Model], num_repeats: int) -> dict[tuple[str, str], list[Run]]:
    """Run a warm-up round, then the counted rounds. In each, every contestant runs once per
    model."""
    runs: dict[tuple[str, str], list[Run]] = {
        (m.name, c.name): [] for m in selected for c in taking_part(m)
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = {model.name: in_new_process(write_rows, model, Path(folder)) for model in selected}
        for number in range(num_repeats + 1):
            for model in selected:
                for contestant in taking_part(model):
                    run = measure(contestant, model, rows[model.name])
                    _progress(number, num_repeats, model, contestant.name, run)
                    if number > 0:
                        runs[model.name, contestant.name].append(run)
    return runs


def _progress(number: int, num_repeats: int, model: Model, contestant: str, run: Run) -> None:
    round_name = f"round {number}/{num_repeats}" if number else "warm-up"
    speeds = (
        f"{run.steps_per_second:,.0f} steps/s, {run.later_steps_per_second:,.0f} after the "
        f"first epoch"
    )
    print(
        f"{round_name}  {model.name}  {contestant}: {speeds}, {run.whole_seconds:.1f} s",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
