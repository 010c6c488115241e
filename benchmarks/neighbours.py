"""Measure a run beside other processes on the same machine: whether it uses only the cores that it
needs, and how it shares them.

    python -m benchmarks.neighbours               # some twenty minutes on two cores
    python -m benchmarks.neighbours --models mlp --repeats 1 --before

Small and large models on both backends, with `trainer.threads=auto` and with one thread, run alone;
beside busy processes on all cores but one; beside a process that multiplies matrices on all cores;
and as two runs at once. The time is that of an update after the first epoch, in which a framework
traces and compiles. All cases of a model take turns, round after round; ratios are of medians.
`--before` adds torch's default: a thread for every core, and idle threads that spin.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.contestants import CONF
from benchmarks.cost import BACKENDS
from benchmarks.measure import in_new_process, ours
from benchmarks.report import layout, machine
from runner.machine import threads
from runner.run.run_folder import read_columns, read_json

_BUSY = "while True: pass"
_THREADS = (
    "import torch; torch.set_num_threads({cores}); a = torch.randn(512, 512)\nwhile True: a @ a"
)
_OWN = ("--config-dir", str(CONF))
MODELS: Mapping[str, Sequence[str]] = {
    "mlp": ("model=mlp", "trainer.max_epochs=20"),
    "transformer": ("model=transformer", "trainer.max_epochs=5"),
    "resnet": ("model=resnet", "trainer.max_epochs=5"),
    "mlp_4m": (*_OWN, "model=mlp_4m", "data.images=true", "trainer.max_epochs=5"),
    "cnn_1m": (
        *_OWN,
        "model=cnn_1m",
        "data=npz",
        "data.path={images}",
        "trainer.batch_size=64",
        "trainer.max_epochs=4",
    ),
}
_ONE_LEFT, _WITH_THREADS, _TWO = (
    "a busy process a core but one",
    "a process with threads",
    "two runs at once",
)
NEIGHBOURS = ("none", _ONE_LEFT, _WITH_THREADS, _TWO)
WAYS: Mapping[str, tuple[Sequence[str], Mapping[str, str]]] = {  # overrides, environment
    "auto": (["trainer.threads=auto"], {}),
    "one thread": (["trainer.threads=1"], {}),
    "before": (
        [f"trainer.threads={os.cpu_count()}"],
        {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "300000"},
    ),
}


class Case(NamedTuple):
    model: str
    backend: str
    neighbour: str
    way: str


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.neighbours", description="Runs beside others."
    )
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=["mlp", "transformer", "mlp_4m", "cnn_1m"]
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--before",
        action="store_true",
        help="also torch's default, a thread for every core; takes minutes",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    ways = [way for way in WAYS if way != "before" or arguments.before]
    times: dict[Case, list[float]] = {}  # milliseconds of each run
    numbers: dict[tuple[str, str], int] = {}  # (model, backend) -> number of threads with auto
    with TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        in_new_process(_write_images, images)
        for model in arguments.models:
            overrides = [part.format(images=images) for part in MODELS[model]]
            for _ in range(arguments.repeats):
                for backend in arguments.backends:
                    for case in (Case(model, backend, n, way) for n in NEIGHBOURS for way in ways):
                        if case.way == "one thread" and numbers.get((model, backend)) == 1:
                            continue  # the same run as with auto
                        milliseconds, number = _measure(case, overrides)
                        times.setdefault(case, []).append(milliseconds)
                        if case.way == "auto":
                            numbers[model, backend] = number
                        print(
                            *case,
                            f"{milliseconds:.3f} ms, {number} threads",
                            file=sys.stderr,
                            flush=True,
                        )
    print(layout([_HEADER, *_rows(times, numbers)], arguments.markdown))
    if arguments.json is not None:
        values = [{**case._asdict(), "milliseconds": each} for case, each in times.items()]
        arguments.json.write_text(
            json.dumps({"machine": machine(), "cases": values}, indent=2) + "\n", encoding="utf-8"
        )
    return 0


_HEADER = (
    "model",
    "backend",
    "threads",
    "beside",
    "way",
    "ms per update",
    "/ alone",
    "/ one thread",
)


def _rows(
    times: Mapping[Case, Sequence[float]], numbers: Mapping[tuple[str, str], int]
) -> Iterator[Sequence[str]]:
    """Yield rows with the median, its ratio to the same run alone, and its ratio to one thread
    beside the same neighbours."""
    for case, each in times.items():
        alone = median(times[case._replace(neighbour="none")])
        number = numbers[case.model, case.backend]
        one_thread = times[case._replace(way="auto" if number == 1 else "one thread")]
        ratio = f"{median(each) / median(one_thread):.2f}"
        num_threads = {"auto": number, "one thread": 1, "before": os.cpu_count()}[case.way]
        values = (f"{median(each):.2f}", f"{median(each) / alone:.2f}", ratio)
        yield (case.model, case.backend, str(num_threads), case.neighbour, case.way, *values)


def _measure(case: Case, overrides: Sequence[str]) -> tuple[float, int]:
    """Return the milliseconds of an update after the first epoch, the mean if there are two runs,
    and the number of threads."""
    num = 2 if case.neighbour == _TWO else 1
    with _neighbours(case.neighbour), ThreadPoolExecutor(num) as pool:
        each = [*pool.map(lambda _: _run(case, overrides), range(num))]
    return sum(milliseconds for milliseconds, _ in each) / num, each[0][1]


def _run(case: Case, overrides: Sequence[str]) -> tuple[float, int]:
    way_overrides, environment = WAYS[case.way]
    arguments = [*overrides, "trainer.checkpoint_every=null", *way_overrides]
    with ours(case.backend, arguments, None, environment) as (_, _, root):
        (path,) = root.glob("runs/*/metrics.csv")
        columns, number = (
            read_columns(path),
            read_json(path.with_name("environment.json"))["threads"],
        )
    steps, ends = columns["step"], columns["seconds"]
    return float(ends[-1] - ends[0]) / float(steps[-1] - steps[0]) * 1e3, number


@contextmanager
def _neighbours(kind: str) -> Iterator[None]:
    """Run other processes during the block. The one with threads gets time to import torch."""
    cores = threads.cores()
    codes = {_ONE_LEFT: [_BUSY] * (cores - 1), _WITH_THREADS: [_THREADS.format(cores=cores)]}.get(
        kind, []
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    try:
        if kind == _WITH_THREADS:
            time.sleep(5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _write_images(path: Path) -> None:
    """Write 1,600 images of 32x32x3 in 10 classes: a fixed picture for each class, with noise."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 10, 1600)
    x = generator.random((10, 32, 32, 3))[y] + generator.normal(0, 1, (1600, 32, 32, 3))
    np.savez(path, x=x.astype(np.float32), y=y)


if __name__ == "__main__":
    sys.exit(main())
