"""Time several runs in one command, from start to exit, relative to a command with one run.

    python -m benchmarks.sweeps                   # some ten minutes on two cores
    python -m benchmarks.sweeps --jobs 16 64 --markdown
    python -m benchmarks.sweeps --jobs 4 --epochs 1 --rounds 1        # to try it

The jobs are schedules and seeds of the default model, 20 epochs each, with all files of a run and
the comparison at the end. They run one after another, and side by side, as many as there are cores.
A first command keeps no compiled programs or begins with none; a second one finds those of the
first. Figures are medians of three, or of one if it takes a minute; single runs and sweeps take
turns. The ratio is the sweep's time / a first single run's. Memory is that of the first process.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.cost import BACKENDS
from benchmarks.measure import ours
from benchmarks.report import layout

_SCHEDULES = (
    "constant",
    "exponential",
    "linear",
    "step",
    "cosine",
    "polynomial",
    "inverse_sqrt",
    "wsd",
)
_IN_TURN = ["hydra.launcher.n_jobs=1"]
_LONG = 60  # seconds after which one run is enough


@dataclass
class _Command:
    """A command, and what it took: as the first of its kind, and as the second."""

    backend: str
    name: str
    overrides: Sequence[str]
    has_second: bool
    first: list[tuple[float, float]] = field(default_factory=list)  # seconds, peak megabytes
    second: list[tuple[float, float]] = field(default_factory=list)

    def run(self) -> None:
        """Run it, and again with the programs that it has compiled."""
        if sum(seconds for seconds, _ in self.first) > _LONG:
            return
        with tempfile.TemporaryDirectory() as programs:
            for taken in (self.first, self.second)[: 1 + self.has_second]:
                variables = {"TWINRUN_CACHE": programs if self.has_second else "off"}
                with ours(self.backend, self.overrides, 1, variables) as (seconds, megabytes, _):
                    taken.append((seconds, megabytes))
                print(self.backend, self.name, f"{seconds:.1f} s", file=sys.stderr, flush=True)

    def rows(self, single: float) -> list[tuple[str, ...]]:
        rows = []
        for which, taken in (("first", self.first), ("second", self.second)):
            if taken:
                seconds, peak = map(median, zip(*taken, strict=True))
                ratio = f"{seconds / single:.2f}"
                rows.append(
                    (self.backend, self.name, which, f"{seconds:.1f}", ratio, f"{peak:,.0f}")
                )
        return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweeps", description="What a multirun costs."
    )
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--epochs", type=int, default=20, help="of each job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    rows = [("backend", "jobs", "command", "seconds", "of a single run's", "peak MB")]
    for backend in arguments.backends:
        single, *sweeps = _commands(backend, arguments.jobs, arguments.epochs)
        for _ in range(arguments.rounds):
            for command in (single, *sweeps):
                command.run()
        seconds = median(seconds for seconds, _ in single.first)
        rows += [row for command in (*sweeps, single) for row in command.rows(seconds)]
    print(layout(rows, arguments.markdown))
    return 0


def _commands(backend: str, nums: Sequence[int], epochs: int) -> list[_Command]:
    """Return a single run, and the sweeps of each number of jobs. On Lightning nothing is compiled
    by default, so a second command is as the first."""
    length, compiles = [f"trainer.max_epochs={epochs}"], backend == "keras"
    commands = [_Command(backend, "a single run", length, compiles)]
    for num in nums:
        arguments = ["-m", *length, *jobs(num)]
        commands.append(_Command(backend, f"{num} in turn", [*arguments, *_IN_TURN], False))
        commands.append(_Command(backend, f"{num} side by side", arguments, compiles))
    return commands


def jobs(num: int) -> list[str]:
    """Return the overrides that make this many jobs."""
    schedules = _SCHEDULES[: min(num, len(_SCHEDULES))]
    return [
        f"schedule={','.join(schedules)}",
        f"seed={','.join(map(str, range(-(-num // len(schedules)))))}",
    ]


if __name__ == "__main__":
    sys.exit(main())
