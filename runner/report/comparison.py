"""What came of a multirun: a table of its jobs and a picture of their curves."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import RunError
from runner.run_folder import read_columns


def write(folder: Path, num_jobs: int) -> int:
    """comparison.csv, .md and .png in the multirun's folder; 0 if all of its `num_jobs` completed, else 1."""
    rows = [_row(path) for path in sorted(folder.glob("*/result.json"))]
    if not rows:
        raise RunError(f"no job of {folder} left a result")
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    _write_csv(folder / "comparison.csv", rows, metrics)
    completed = [row for row in rows if row["status"] == "completed"]
    table = _table(completed, metrics)
    (folder / "comparison.md").write_text(table + "\n", encoding="utf-8")
    if completed:
        _draw(folder / "comparison.png", completed)
    print(f"\n{table}\n")
    for row in rows:
        if row["status"] != "completed":
            print(f"{row['status']}: {row['folder'].name}  {row.get('error', '')}".rstrip())
    print(f"{len(completed)} of {num_jobs} jobs completed")
    print(f"folder   {folder}")
    if completed:
        print(f"picture  {folder / 'comparison.png'}")
    return 0 if len(completed) == num_jobs else 1


def _row(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text(encoding="utf-8"))
    return {"folder": path.parent, **result}


def _write_csv(path: Path, rows: list[dict[str, Any]], metrics: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["overrides", "backend", "schedule", "seed", *metrics, "seconds", "status"])
        for row in rows:
            values = [row["metrics"].get(name, "") for name in metrics]
            about = [row["backend"], row["schedule"], row["seed"]]
            writer.writerow([" ".join(row["overrides"]), *about, *values, row["seconds"]["train"], row["status"]])


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows that differ in the seed alone, by the overrides that not all rows share."""
    shared = set.intersection(*(set(row["overrides"]) for row in rows)) if rows else set()
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        own = [said for said in row["overrides"] if said not in shared and not said.startswith("seed=")]
        groups[" ".join(own) or "all jobs"].append(row)
    return groups


def _table(rows: list[dict[str, Any]], metrics: list[str]) -> str:
    """Markdown: a line per group of jobs that differ in the seed alone, by the monitored metric's mean, best first."""
    monitored = [name for name in metrics if name.startswith("val/")] or metrics
    lines = ["| overrides | seeds | " + " | ".join(f"{name} (mean)" for name in monitored) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(monitored))
    means = {
        name: (len(group), [float(np.mean([row["metrics"].get(m, np.nan) for row in group])) for m in monitored])
        for name, group in _groups(rows).items()
    }
    for name, (num, values) in sorted(means.items(), key=lambda item: item[1][1][0] if item[1][1] else 0):
        lines.append(f"| {name} | {num} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
    return "\n".join(lines)


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rate and the validation loss of every group over its steps; of several seeds the mean, and their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    rate, loss = figure.subplots(1, 2)
    for name, group in _groups(rows).items():
        trace = read_columns(group[0]["folder"] / "trace.csv")
        label = name if len(name) <= 40 else f"{name[:39]}…"
        (line,) = rate.plot(trace["step"], trace["learning_rate"], label=label)
        tables = [read_columns(row["folder"] / "metrics.csv") for row in group]
        column = "val/loss" if "val/loss" in tables[0] else "train/loss"
        if len({len(table["step"]) for table in tables}) == 1:
            curves = np.stack([table[column] for table in tables])
            loss.plot(tables[0]["step"], curves.mean(axis=0), color=line.get_color(), label=label)
            loss.fill_between(
                tables[0]["step"],
                curves.min(axis=0),
                curves.max(axis=0),
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
            loss.set_ylabel(column)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    loss.set_yscale("log")
    for axes in (rate, loss):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    loss.legend(fontsize="small")
    figure.savefig(path, dpi=110)
