"""Measure two parts of a run in this process: the start before a framework, and what happens
between two epochs. `benchmarks.goals` runs this file with the checkout to measure on PYTHONPATH, so
it imports nothing else of this folder.

    python -P benchmarks/parts.py start
    python -P benchmarks/parts.py epochs lightning

`start` prints the CPU seconds of the imports of Twinrun, Hydra and NumPy, and of composing,
checking and planning a default run. `epochs` prints the milliseconds between two epochs of the
default model, by the clock and of CPU time of all threads:

    e + c,  e = P(20, over an epoch's end) - P(20, within an epoch),  c = 2 P(10) - P(20, within)

where P(K, ...) is the time from the end of a chunk of K updates to that of the next: the median by
the clock, and the mean of the CPU time, since another thread writes the checkpoints of some epochs.
An epoch has 40 updates; e is what its end takes (metrics, evaluation, records, the checkpoint with
its thread) and c what a chunk takes besides its updates.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from statistics import fmean, median
from typing import Any

_EPOCHS = 60
_UPDATES_PER_EPOCH = 40


def start() -> None:
    """Run the command line until it imports its framework; print the seconds, and end."""
    output = os.dup(1)
    command = import_module("runner.__main__")
    imported = time.process_time()

    def stop(name: str) -> None:
        composed = time.process_time() - imported
        os.write(output, json.dumps({"imports": imported, "composed": composed}).encode())
        os._exit(0)

    import_module("runner.dispatcher").load = stop  # type: ignore[attr-defined]
    sys.argv = ["runner"]
    command.main()


def epochs(backend: str) -> None:
    """Train with chunks of 20 and of 10 updates; print the milliseconds between two epochs."""
    results = {}
    for name, clock in (("clock", time.perf_counter), ("cpu", time.process_time)):
        within, over = _periods(backend, 20, clock)
        shorter, _ = _periods(backend, 10, clock)
        results[name] = 1e3 * ((over - within) + (2 * shorter - within))
    print(json.dumps(results))


def _periods(backend: str, size: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds from a chunk's end to the next one's, within an epoch and over its
    end."""
    ends: list[tuple[int, float]] = []
    module: Any = import_module("runner.dispatcher").load(backend)
    train = module.train

    def timed(spec: Any, state: Any, chunks: Any, on_chunk: Any, *more: Any, **named: Any) -> Any:
        def on_end(chunk: Any, report: Any, live: Any) -> Any:
            ends.append((chunk.first_step, clock()))
            return on_chunk(chunk, report, live)

        return train(spec, state, chunks, on_end, *more, **named)

    module.train = timed
    command = import_module("runner.__main__")
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"backend={backend}", f"trainer.steps_per_call={size}", "device=cpu"]
        overrides += ["trainer.threads=1", f"output.root={folder}", f"trainer.max_epochs={_EPOCHS}"]
        sys.argv = ["runner", *overrides]
        if command.main() != 0:
            raise RuntimeError("the run failed")
    module.train = train
    within, over = [], []
    for (_, begin), (step, end) in pairwise(ends[_UPDATES_PER_EPOCH // size :]):
        (over if step % _UPDATES_PER_EPOCH == 0 else within).append(end - begin)
    average = fmean if clock is time.process_time else median
    return average(within), average(over)


if __name__ == "__main__":
    start() if sys.argv[1] == "start" else epochs(sys.argv[2])
