"""Measure how the cost of a Twinrun run grows with the model, the batch and the number of updates,
the cost of rows that stay in files, and the cost of the records.

    python -m benchmarks.cost                     # some ten minutes on two cores
    python -m benchmarks.cost --parts steps --markdown --json cost.json

Every figure is the median of three runs of the command line with its defaults, or of fewer if they
take more than a minute; each run is a new process. The time of an update is from the training phase
without its first tenth, in which a framework traces and compiles; it is read from metrics.csv.
Memory is the process's peak.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.measure import in_new_process, ours
from benchmarks.report import layout, machine
from runner.run.run_folder import read_columns, read_json

BACKENDS = ("lightning", "keras")
_REPEATS = 3
CNN = (
    "--config-dir",
    str(Path(__file__).with_name("conf")),
    "model=cnn_1m",
    "trainer.batch_size=64",
)


@dataclass(frozen=True)
class Cost:
    part: str
    case: str
    backend: str
    microseconds: float  # per update
    peak_megabytes: float
    whole_seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description="How the cost of a run grows."
    )
    parser.add_argument("--parts", nargs="+", choices=list(_PARTS), default=list(_PARTS))
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            for case, num_threads, overrides in _PARTS[part](Path(folder)):
                for backend in BACKENDS:
                    costs.append(_measure(part, case, backend, num_threads, overrides))
                    print(costs[-1], file=sys.stderr, flush=True)
    header = ("part", "case", "backend", "us per update", "peak MB", "whole s")
    rows = [
        (
            c.part,
            c.case,
            c.backend,
            f"{c.microseconds:,.0f}",
            f"{c.peak_megabytes:,.0f}",
            f"{c.whole_seconds:.1f}",
        )
        for c in costs
    ]
    print(layout([header, *rows], arguments.markdown))
    if arguments.json is not None:
        values = {"machine": machine(), "costs": [asdict(cost) for cost in costs]}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return 0


Cases = Iterator[tuple[str, int, Sequence[str]]]  # (name, number of threads, overrides)


def _parameters(folder: Path) -> Cases:
    """Yield MLPs of increasing width: 2 k to 1.2 M parameters."""
    for units in (32, 128, 512, 2048, 16384):
        layers = (
            f"[{{layer: dense, units: {units}}},{{layer: activation, function: relu}},{{layer: "
            f"dense, units: outputs}}]"
        )
        yield f"{75 * units + 10:,} parameters", 1, [f"model.layers={layers}"]


def _batch(folder: Path) -> Cases:
    for size in (8, 32, 128, 512):
        yield (
            f"batch {size}",
            1,
            [f"trainer.batch_size={size}", "trainer.max_epochs=null", "trainer.max_steps=800"],
        )


def _steps(folder: Path) -> Cases:
    for num_steps in (1_000, 10_000, 100_000, 1_000_000):
        yield (
            f"{num_steps:,} updates",
            1,
            ["trainer.max_epochs=null", f"trainer.max_steps={num_steps}"],
        )


def _records(folder: Path) -> Cases:
    """Yield a run with a checkpoint per epoch, the default, and one with a checkpoint at the
    end."""
    long = ["trainer.max_epochs=200"]
    yield "200 epochs of the MLP, 200 checkpoints", 1, long
    yield "200 epochs of the MLP, 1 checkpoint", 1, [*long, "trainer.checkpoint_every=null"]


def _files(folder: Path) -> Cases:
    """Yield the CNN with a million parameters on 6,400 images of 32x32x3, 79 MB: all in memory, and
    32 MB at a time."""
    in_new_process(write_images, folder)
    common = [*CNN, "trainer.max_epochs=3", "data.val_fraction=0.1", "data.test_fraction=0"]
    yield (
        "79 MB of images in memory",
        2,
        [*common, "data=npz", f"data.path={folder / 'images.npz'}"],
    )
    streamed = ["data=npy", f"data.path={folder / 'images'}", "data.memory_mb=32"]
    yield "79 MB of images in files, 32 MB at a time", 2, [*common, *streamed]


def write_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 10, 6400)
    x = (generator.random((10, 32, 32, 3))[y] + generator.normal(0, 1, (6400, 32, 32, 3))).astype(
        np.float32
    )
    np.savez(folder / "images.npz", x=x, y=y)
    (folder / "images").mkdir()
    np.save(folder / "images" / "x.npy", x)
    np.save(folder / "images" / "y.npy", y)


def _table(folder: Path) -> Cases:
    """Yield the MLP on 200,000 rows of 19 numbers, 30 MB of Parquet: in memory, and 8 MB at a
    time."""
    path = folder / "table.parquet"
    in_new_process(write_table, path)
    common = ["data=table", f"data.path={path}", "trainer.batch_size=256", "trainer.max_epochs=6"]
    yield "200,000 rows of Parquet in memory", 1, common
    yield "200,000 rows of Parquet, 8 MB at a time", 1, [*common, "data.memory_mb=8"]


def write_table(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    x = generator.normal(size=(200_000, 19))
    columns = {f"c{i}": column for i, column in enumerate(x.T)}
    parquet.write_table(pa.table({**columns, "label": (x[:, 0] > x[:, 1] * x[:, 2]) * 1}), path)


_PARTS = {
    "parameters": _parameters,
    "batch": _batch,
    "steps": _steps,
    "records": _records,
    "files": _files,
    "table": _table,
}


def _measure(
    part: str, case: str, backend: str, num_threads: int, overrides: Sequence[str]
) -> Cost:
    runs: list[tuple[float, float, float]] = []
    while len(runs) < _REPEATS and sum(seconds for _, _, seconds in runs) < 60:
        runs.append(_run(backend, num_threads, overrides))
    return Cost(part, case, backend, *(median(values) for values in zip(*runs, strict=True)))


def _run(backend: str, num_threads: int, overrides: Sequence[str]) -> tuple[float, float, float]:
    with ours(backend, overrides, num_threads) as (seconds, megabytes, root):
        (result,) = root.glob("runs/*/result.json")
        assert read_json(result)["status"] == "completed"
        columns = read_columns(result.with_name("metrics.csv"))
    steps, ends = columns["step"], columns["seconds"]
    first = len(steps) // 10
    if len(steps) < 2:
        raise RuntimeError("a run of one epoch has no time after its first tenth")
    return float(ends[-1] - ends[first]) / float(steps[-1] - steps[first]) * 1e6, megabytes, seconds


if __name__ == "__main__":
    sys.exit(main())
