"""Summarize runs: medians, extremes, ratios of medians; as a table and as JSON."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from benchmarks.contestants import Contestant, Model, environment, taking_part
from benchmarks.measure import Run
from benchmarks.peers.job import DECAY_RATE, LEARNING_RATE

Runs = Mapping[tuple[str, str], Sequence[Run]]  # (model, contestant) -> its counted runs

_PACKAGES = ("twinrun", "numpy", "torch", "pytorch-lightning", "tensorflow", "keras", "jax")
# quantity of a Run -> (column, format, which direction of the ratio is better; None: no ratio)
_QUANTITIES: Mapping[str, tuple[str, str, str | None]] = {
    "steps_per_second": ("steps/s", ",.0f", "more is better"),
    "later_steps_per_second": ("after the first epoch", ",.0f", "more is better"),
    "first_seconds": ("first batch s", ".2f", "less is better"),
    "whole_seconds": ("whole s", ".2f", "less is better"),
    "peak_megabytes": ("peak MB", ",.0f", "less is better"),
    "val_accuracy": ("val acc", ".3f", None),
}
_RATIOS = {name: (title, better) for name, (title, _, better) in _QUANTITIES.items() if better}


def summary(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Return the median, the minimum and the maximum of each quantity."""
    columns = {name: [float(getattr(run, name)) for run in runs] for name in _QUANTITIES}
    return {
        name: {"median": median(v), "min": min(v), "max": max(v)} for name, v in columns.items()
    }


def ratios(runs: Runs, model: str, ours: str, peer: str) -> dict[str, float]:
    """Return the ratios of medians, ours / peer, for one model."""
    a, b = (summary(runs[model, name]) for name in (ours, peer))
    return {name: a[name]["median"] / b[name]["median"] for name in _RATIOS}


def table(runs: Runs, models: Sequence[Model], markdown: bool) -> str:
    """Format the measurements, as medians and extremes, and then the ratios."""
    header = ["model", "contestant", *(title for title, _, _ in _QUANTITIES.values())]
    measured = [
        _row(model, contestant, runs) for model in models for contestant in taking_part(model)
    ]
    ratio_header = [
        "model",
        "ours / peer",
        *(f"{title} ({better})" for title, better in _RATIOS.values()),
    ]
    compared = [
        (model.name, f"{ours.name} / {peer}", *(f"{value:.2f}" for value in values.values()))
        for model, ours, peer, values in _pairs(runs, models)
    ]
    return (
        layout([header, *measured], markdown) + "\n\n" + layout([ratio_header, *compared], markdown)
    )


def notes(models: Sequence[Model], num_repeats: int) -> str:
    """Describe the runs in words."""
    variables = " ".join(f"{name}={value}" for name, value in environment(1).items())
    contestants = dict.fromkeys(c for model in models for c in taking_part(model))
    return "\n".join(
        [
            f"Adam {LEARNING_RATE:g}, rate times {DECAY_RATE} every step, float32, on the CPU",
            *(
                f"{m.name}: {m.title}; {m.num_epochs} epochs, {m.num_threads} threads"
                for m in models
            ),
            f"{num_repeats} counted runs each after one warm-up round, each run in a new process, "
            f"contestants take turns; median (minimum-maximum), ratios are of medians",
            f"the same for all, with the model's number of threads: {variables}",
            "the training phase includes tracing and compilation; the whole run includes imports",
            *(f"{contestant.name}: {contestant.does}" for contestant in contestants),
        ]
    )


def as_json(runs: Runs, models: Sequence[Model], num_repeats: int) -> dict[str, Any]:
    """Collect settings, versions, machine, each run, summaries and ratios."""
    contestants = dict.fromkeys(c for model in models for c in taking_part(model))
    return {
        "settings": {"repeats": num_repeats, "environment": dict(environment(1))},
        "machine": machine(),
        "models": [asdict(model) for model in models],
        "contestants": {c.name: {"framework": c.framework, "does": c.does} for c in contestants},
        "results": [
            _result(model, contestant, runs)
            for model in models
            for contestant in taking_part(model)
        ],
        "ratios": [
            {"model": model.name, "ours": ours.name, "peer": peer, **values}
            for model, ours, peer, values in _pairs(runs, models)
        ],
    }


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: number for name in _PACKAGES if (number := _version(name))},
    }


def layout(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Format a header and rows, aligned or as Markdown."""
    if markdown:
        header, *body = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([header, "|" + " --- |" * len(rows[0]), *body])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _pairs(
    runs: Runs, models: Sequence[Model]
) -> list[tuple[Model, Contestant, str, dict[str, float]]]:
    return [
        (model, ours, peer, ratios(runs, model.name, ours.name, peer))
        for model in models
        for ours in taking_part(model)
        for peer in ours.peers
        if (model.name, peer) in runs
    ]


def _result(model: Model, contestant: Contestant, runs: Runs) -> dict[str, Any]:
    counted = runs[model.name, contestant.name]
    entries = [
        {
            **asdict(run),
            "steps_per_second": run.steps_per_second,
            "later_steps_per_second": run.later_steps_per_second,
        }
        for run in counted
    ]
    return {
        "model": model.name,
        "contestant": contestant.name,
        "summary": summary(counted),
        "runs": entries,
    }


def _row(model: Model, contestant: Contestant, runs: Runs) -> tuple[str, ...]:
    quantities = summary(runs[model.name, contestant.name])
    cells = []
    for name, (_, form, _) in _QUANTITIES.items():
        q = quantities[name]
        cells.append(f"{q['median']:{form}} ({q['min']:{form}}-{q['max']:{form}})")
    return (model.name, contestant.name, *cells)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
