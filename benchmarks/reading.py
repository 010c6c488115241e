"""Time how a table becomes ready to train, against readers that only read it.

    python -m benchmarks.reading                       # a million rows, 20 columns; a minute
    python -m benchmarks.reading --rows 100000 --kinds csv --markdown

`data=table` reads the file, checks it, numbers the labels, divides the rows and scales them. Its
peers, pyarrow, pandas and Polars, read the file with their defaults. "numpy" is the plainest
program that does as much: pyarrow reads, NumPy makes shuffled, standardized rows of float32, and
nothing is checked. Every reading is a new process that has imported everything before the clock
starts. The readers take turns, round after round. Seconds are the median of the rounds; "CPU" is
the time of all threads, which other programs on the machine change less; memory is the largest peak
above the process before the reading. Compare only the ratios of one run: they are to pyarrow, of
medians over the same rounds.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import execute, in_new_process

READERS = ("pyarrow", "pandas", "polars", "numpy", "twinrun")
KINDS = ("csv", "parquet")


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.read is not None:
        print(json.dumps(_read(*arguments.read)))
        return 0
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        in_new_process(_write, Path(name), arguments.rows, arguments.columns)
        for number in range(arguments.repeats + 1):
            for kind in arguments.kinds:
                for reader in arguments.readers:
                    path = str(Path(name) / f"table.{kind}")
                    command = [sys.executable, "-m", "benchmarks.reading", "--read", reader, path]
                    *_, output = execute(command, dict(os.environ))
                    if number:  # the first round is a warm-up
                        found.setdefault((kind, reader), []).append(json.loads(output))
    print(_table(found, arguments.markdown))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reading", description="Tables, read and made ready to train."
    )
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--columns", type=int, default=20, help="with the label")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--read", nargs=2, metavar=("READER", "PATH"), help=argparse.SUPPRESS)
    return parser


def _write(folder: Path, num_rows: int, num_columns: int) -> None:
    """Write numbers of six decimals, and labels from 0 to 9 in the last column."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv, parquet

    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.normal(size=num_rows).round(6) for i in range(num_columns - 1)}
    table = pa.table({**columns, "label": rng.integers(0, 10, num_rows)})
    csv.write_csv(table, folder / "table.csv")
    parquet.write_table(table, folder / "table.parquet")


def _read(reader: str, path: str) -> dict[str, float]:
    read = _reader(reader, path)
    before, start, cpu = _peak_megabytes(), time.perf_counter(), time.process_time()
    result = read()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = _peak_megabytes() - before
    del result
    return {"seconds": seconds, "cpu": cpu, "megabytes": peak}


def _reader(reader: str, path: str) -> Callable[[], Any]:
    """Import what reads the file; return the reading."""
    is_csv = path.endswith(".csv")
    with suppress(ImportError):
        import_module("pandas")  # pyarrow imports it, if it is there, with its first table
    if reader == "twinrun":
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet  # noqa: F401

        from runner.cli.compose import compose
        from runner.config.schema import parse

        section: Any = parse(compose(["data=table", f"data.path={path}"])).data
        load: Callable[[], Any] = section.load
        return load
    if reader in ("pyarrow", "numpy"):
        from pyarrow import csv, parquet

        def table() -> Any:
            return csv.read_csv(path) if is_csv else parquet.read_table(path)

        return table if reader == "pyarrow" else lambda: _plain(table())
    if reader == "pandas":
        import pandas

        return lambda: pandas.read_csv(path) if is_csv else pandas.read_parquet(path)
    import polars

    return lambda: polars.read_csv(path) if is_csv else polars.read_parquet(path)


def _plain(table: Any) -> Any:
    """Divide the rows of a table at random, and standardize them, as a script does with NumPy."""
    import numpy as np

    *names, label = table.column_names
    x = np.stack([table[name].to_numpy() for name in names], axis=1)
    y = table[label].to_numpy()
    order = np.random.default_rng(0).permutation(len(x))
    train, val, test = np.split(order, [len(x) * 6 // 10, len(x) * 8 // 10])
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
    scaled = ((x[rows] - mean) / deviation for rows in (train, val, test))
    return [part.astype(np.float32) for part in scaled], [y[rows] for rows in (train, val, test)]


def _peak_megabytes() -> float:
    """The process's peak. On Linux, getrusage includes the peak of the process that started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _table(found: dict[tuple[str, str], list[dict[str, float]]], markdown: bool) -> str:
    from benchmarks.report import layout

    header = ("file", "reader", "seconds", "CPU", "MB", "x pyarrow: seconds", "CPU", "MB")
    rows: list[Sequence[str]] = [header]
    for (kind, reader), values in found.items():
        own, peer = (_summary(found.get((kind, name), values)) for name in (reader, "pyarrow"))
        ratios = (f"{own[key] / peer[key]:.2f}" for key in own)
        figures = (f"{own['seconds']:.2f}", f"{own['cpu']:.2f}", f"{own['megabytes']:.0f}")
        rows.append((kind, reader, *figures, *ratios))
    return layout(rows, markdown)


def _summary(values: Sequence[dict[str, float]]) -> dict[str, float]:
    seconds, cpu = (median(each[key] for each in values) for key in ("seconds", "cpu"))
    return {"seconds": seconds, "cpu": cpu, "megabytes": max(v["megabytes"] for v in values)}


if __name__ == "__main__":
    sys.exit(main())
