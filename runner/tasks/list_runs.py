"""task=list: print the runs below output.root as a table, or as JSON. It imports no framework."""

from collections.abc import Sequence
from pathlib import Path

from runner.errors import printable
from runner.report import ledger
from runner.report.ledger import Entry
from runner.run import strict_json
from runner.text.columns import aligned
from runner.text.console import size
from runner.text.numbers import show_metric

_MOST_METRICS = 4  # columns of metrics in the table; JSON has all


def list_runs(root: Path, where: Sequence[str] | None, sort: str, as_json: bool) -> int:
    """Print one row per run that meets the conditions."""
    selected = ledger.conditions(where)
    ledger.check_column("sort", sort.removeprefix("-"))
    ledger.check_root(root)
    everything = ledger.read(root)
    rows = ledger.ordered(ledger.select(everything, selected), sort)
    if as_json:
        print(strict_json.dumps([row.as_json() for row in rows]))
        return 0
    if rows:
        print("\n".join(table(rows)))
    print(_summary(root, rows, len(everything)))
    return 0


def table(rows: Sequence[Entry]) -> list[str]:
    """Format the runs with a header. The metrics are those of the validation rows, or else of the
    training rows."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    shown = [name for name in names if name.startswith("val/")] or names
    shown = shown[:_MOST_METRICS]
    columns = ("status", "schedule", "backend", "seed", "steps")
    cells = [["date", *columns, *shown, "size", "folder"]]
    for row in rows:
        metrics = (show_metric(row.metrics[name]) if name in row.metrics else "-" for name in shown)
        known = ("-" if (cell := row.value(name)) is None else str(cell) for name in columns)
        cells.append([row.date, *known, *metrics, size(row.bytes), str(row.folder)])
    return aligned(
        [[printable(cell) for cell in line] for line in cells],
        {i for i, name in enumerate(cells[0]) if name in ("seed", "steps", "size", *shown)},
    )


def _summary(root: Path, rows: Sequence[Entry], num_all: int) -> str:
    of = "" if len(rows) == num_all else f" of {num_all}"
    runs = "run" if (num_all if of else len(rows)) == 1 else "runs"
    total = f", {size(sum(row.bytes for row in rows))}" if rows else ""
    return f"{len(rows)}{of} {runs} below {printable(str(root))}{total}"
