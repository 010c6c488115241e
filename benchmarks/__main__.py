"""Times the training phase of both backends against scripts of the same frameworks, side by side in
one go.

A small MLP on the digits, where overhead is all, a CNN of a million parameters and an MLP of four.
Every contestant runs in a fresh process, one after another, round after round, so that a slow
minute of the machine hits all of them; the first round only warms up. The numbers that mean
something are the ratios of the last table: ours / peer, of medians, out of the same rounds.

    python -m benchmarks                        # half an hour on two cores
    python -m benchmarks --models mlp --markdown --json speed.json
    python -m benchmarks --models exact_mlp exact_cnn exact_resnet  # exact mode against the peers
    in float32
    python -m benchmarks.sweeps                 # many runs in one command
    python -m benchmarks.cost                   # how it grows with parameters, batch and steps;
    what the records take
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.contestants import Model, models, taking_part, write_rows
from benchmarks.measure import Run, apart, measure


def main() -> int:
    said = _parser().parse_args()
    chosen = [model for model in models(dict(said.epochs or [])) if model.name in said.models]
    runs = _run(chosen, said.repeats)
    print(report.notes(chosen, said.repeats), end="\n\n")
    print(report.table(runs, chosen, said.markdown))
    if said.json is not None:
        found = report.as_json(runs, chosen, said.repeats)
        said.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
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
        "--epochs", nargs="+", type=_epochs, metavar="MODEL=N", help="other numbers, at least 2"
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
    """Speed is told after the first epoch too."""
    name, _, number = text.partition("=")
    if name not in [model.name for model in models({})] or not number.isdigit() or int(number) < 2:
        raise argparse.ArgumentTypeError(f"must be MODEL=N with N at least 2, got {text}")
    return name, int(number)


def _run(chosen: Sequence[Model], num_repeats: int) -> dict[tuple[str, str], list[Run]]:
    """One uncounted round, then the counted ones; in each, every contestant once per model."""
    runs: dict[tuple[str, str], list[Run]] = {
        (m.name, c.name): [] for m in chosen for c in taking_part(m)
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = {model.name: apart(write_rows, model, Path(folder)) for model in chosen}
        for number in range(num_repeats + 1):
            for model in chosen:
                for contestant in taking_part(model):
                    run = measure(contestant, model, rows[model.name])
                    _progress(number, num_repeats, model, contestant.name, run)
                    if number > 0:
                        runs[model.name, contestant.name].append(run)
    return runs


def _progress(number: int, num_repeats: int, model: Model, contestant: str, run: Run) -> None:
    where = f"round {number}/{num_repeats}" if number else "warm-up"
    speeds = (
        f"{run.steps_per_second:,.0f} steps/s, {run.later_steps_per_second:,.0f} after the "
        f"first epoch"
    )
    print(
        f"{where}  {model.name}  {contestant}: {speeds}, {run.whole_seconds:.1f} s",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
