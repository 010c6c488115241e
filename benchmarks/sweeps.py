"""Time several runs in one command, from start to exit, relative to a command with one run.

    python -m benchmarks.sweeps                   # some ten minutes on two cores
    python -m benchmarks.sweeps --jobs 1 4 16 --markdown

The jobs are schedules and seeds of the default model, 20 epochs each, with all files of a run and
the comparison at the end. They run one after another, and side by side, as many as there are cores.
Figures are medians of three, or of one if it takes a minute; single runs and sweeps take
turns. The ratio is the sweep's time / a single run's. Memory is that of the first process.
"""

import argparse
import sys
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
_WAYS: dict[str, list[str]] = {
    "in turn": ["hydra.launcher.n_jobs=1"],
    "side by side": [],
}
_REPEATS = 3


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweeps", description="What a multirun costs."
    )
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    rows = [("backend", "jobs", "seconds", "of a single run's", "peak MB")]
    for backend in BACKENDS:
        singles: list[tuple[float, float]] = []
        sweeps = {
            (num, way): list[tuple[float, float]]() for num in arguments.jobs for way in _WAYS
        }
        for _ in range(_REPEATS):
            singles.append(_run(backend, []))
            for (num, way), runs in sweeps.items():
                if sum(seconds for seconds, _ in runs) > 60:  # one run is enough
                    continue
                runs.append(_run(backend, ["-m", *_WAYS[way], *_jobs(num)]))
                progress = f"{runs[-1][0]:.1f} s, single {singles[-1][0]:.1f} s"
                print(backend, num, way, progress, file=sys.stderr, flush=True)
        single, megabytes = map(median, zip(*singles, strict=True))
        for (num, way), runs in sweeps.items():
            seconds, peak = map(median, zip(*runs, strict=True))
            rows.append(
                (
                    backend,
                    f"{num} {way}",
                    f"{seconds:.1f}",
                    f"{seconds / single:.2f}",
                    f"{peak:,.0f}",
                )
            )
        rows.append((backend, "a single run", f"{single:.1f}", "1", f"{megabytes:,.0f}"))
    print(layout(rows, arguments.markdown))
    return 0


def _jobs(num: int) -> list[str]:
    schedules = _SCHEDULES[: min(num, len(_SCHEDULES))]
    return [
        f"schedule={','.join(schedules)}",
        f"seed={','.join(map(str, range(-(-num // len(schedules)))))}",
    ]


def _run(backend: str, overrides: list[str]) -> tuple[float, float]:
    """Return the seconds and peak megabytes of one command."""
    with ours(backend, overrides, 1) as (seconds, megabytes, _):
        return seconds, megabytes


if __name__ == "__main__":
    sys.exit(main())
