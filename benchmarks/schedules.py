"""Measure the table of ten million steps of every schedule: seconds, and peak megabytes (the table
itself takes 80).

python -m benchmarks.schedules
python -m benchmarks.schedules --steps 1000000 --only cosine one_cycle
"""

import argparse
import sys
import time
import tracemalloc
from statistics import median

import numpy as np

from runner import rates
from runner.cli.compose import CONF

_REPEATS = 3
_STEPS_PER_EPOCH = 10**5


def main() -> int:
    arguments = _parser().parse_args()
    print(
        f"{'schedule':20} {'seconds':>8} {'peak MB':>8}   for {arguments.steps:,} steps; medians "
        f"of {_REPEATS}"
    )
    for name in arguments.only:
        seconds = median(_seconds(name, arguments.steps) for _ in range(_REPEATS))
        print(f"{name:20} {seconds:8.2f} {_megabytes(name, arguments.steps):8.0f}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    # the dialects need a class and its arguments; they consist of the same parts
    names = sorted(
        f.stem for f in (CONF / "schedule").glob("[!_]*.yaml") if not f.stem.startswith("from_")
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.schedules", description="Tables of rates, timed."
    )
    parser.add_argument("--steps", type=int, default=10**7)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SCHEDULE")
    return parser


def _table(name: str, num_steps: int) -> np.ndarray:
    return rates(f"schedule={name}", total_steps=num_steps, steps_per_epoch=_STEPS_PER_EPOCH)


def _seconds(name: str, num_steps: int) -> float:
    """Time one table, including the composition of the config, which takes some hundredths of a
    second."""
    start_time = time.perf_counter()
    _table(name, num_steps)
    return time.perf_counter() - start_time


def _megabytes(name: str, num_steps: int) -> float:
    """Measure NumPy's peak memory with tracemalloc, in a second pass, since tracing takes time."""
    tracemalloc.start()
    try:
        _table(name, num_steps)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    sys.exit(main())
