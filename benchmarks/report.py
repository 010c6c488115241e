"""What the runs say: medians, extremes, ratios of medians; as a table and as JSON."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from benchmarks.contestants import CONTESTANTS, Contestant, Model, environment
from benchmarks.measure import Run
from benchmarks.peers.job import BATCH_SIZE, DECAY_RATE, LEARNING_RATE

Runs = Mapping[tuple[str, str], Sequence[Run]]  # (model, contestant) -> its counted runs

_PACKAGES = ("twinrun", "numpy", "torch", "pytorch-lightning", "tensorflow", "keras")
_QUANTITIES = (
    "train_seconds",
    "steps_per_second",
    "later_steps_per_second",
    "whole_seconds",
    "peak_megabytes",
    "val_accuracy",
)
_HEADER = (
    "model",
    "contestant",
    "training s (min-max)",
    "steps/s (min-max)",
    "after the first epoch (min-max)",
    "whole s (min-max)",
    "peak MB",
    "val acc",
)
_RATIOS = (
    "model",
    "ours / peer",
    "steps/s (more is better)",
    "after the first epoch",
    "whole s (less is better)",
    "peak MB (less is better)",
)


def summary(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Median, least and largest of each quantity."""
    columns = {name: [float(getattr(run, name)) for run in runs] for name in _QUANTITIES}
    return {name: {"median": median(v), "min": min(v), "max": max(v)} for name, v in columns.items()}


def ratios(runs: Runs, model: str, ours: str, peer: str) -> dict[str, float]:
    """Ratios of medians, ours / peer, of one model."""
    a, b = (summary(runs[model, name]) for name in (ours, peer))
    return {name: a[name]["median"] / b[name]["median"] for name in _QUANTITIES[1:5]}


def table(runs: Runs, models: Sequence[Model], markdown: bool) -> str:
    """Measurements, then ratios."""
    measured = [_row(model, contestant, runs) for model in models for contestant in CONTESTANTS]
    compared = [
        (model.name, f"{ours.name} / {peer}", *(f"{value:.2f}" for value in found.values()))
        for model, ours, peer, found in _pairs(runs, models)
    ]
    layout = _as_markdown if markdown else _as_text
    return layout([_HEADER, *measured]) + "\n\n" + layout([_RATIOS, *compared])


def notes(models: Sequence[Model], num_repeats: int, num_threads: int) -> str:
    """What was run, in words."""
    variables = " ".join(f"{name}={value}" for name, value in environment(num_threads).items())
    titles = [f"{model.name}: {model.title}, {model.num_epochs} epochs" for model in models]
    return "\n".join(
        [
            f"digits, 1,280 training rows, batch {BATCH_SIZE}, Adam {LEARNING_RATE:g}, rate times {DECAY_RATE} every "
            "step, float32, on the CPU",
            *titles,
            f"{num_repeats} counted runs each after one warm-up round, every run its own process, contestants taking "
            "turns; ratios are of medians",
            f"set alike for all: {variables}",
            "tracing and compilation are inside the training phase; imports are inside the whole",
            *(f"{contestant.name}: {contestant.does}" for contestant in CONTESTANTS),
        ]
    )


def as_json(runs: Runs, models: Sequence[Model], num_repeats: int, num_threads: int) -> dict[str, Any]:
    """Everything: settings, versions, machine, each run, summaries, ratios."""
    return {
        "settings": {"repeats": num_repeats, "threads": num_threads, "environment": dict(environment(num_threads))},
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "models": [asdict(model) for model in models],
        "contestants": {c.name: {"framework": c.framework, "does": c.does} for c in CONTESTANTS},
        "results": [_result(model, contestant, runs) for model in models for contestant in CONTESTANTS],
        "ratios": [
            {"model": model.name, "ours": ours.name, "peer": peer, **found}
            for model, ours, peer, found in _pairs(runs, models)
        ],
    }


def _pairs(runs: Runs, models: Sequence[Model]) -> list[tuple[Model, Contestant, str, dict[str, float]]]:
    return [
        (model, ours, peer, ratios(runs, model.name, ours.name, peer))
        for model in models
        for ours in CONTESTANTS
        for peer in ours.peers
    ]


def _result(model: Model, contestant: Contestant, runs: Runs) -> dict[str, Any]:
    own = runs[model.name, contestant.name]
    each = [
        {**asdict(run), "steps_per_second": run.steps_per_second, "later_steps_per_second": run.later_steps_per_second}
        for run in own
    ]
    return {"model": model.name, "contestant": contestant.name, "summary": summary(own), "runs": each}


def _row(model: Model, contestant: Contestant, runs: Runs) -> tuple[str, ...]:
    found = summary(runs[model.name, contestant.name])
    formats = {
        "train_seconds": ".3f",
        "steps_per_second": ",.0f",
        "later_steps_per_second": ",.0f",
        "whole_seconds": ".2f",
    }
    spans = [
        f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"
        for name, form in formats.items()
        for values in [found[name]]
    ]
    memory, accuracy = found["peak_megabytes"]["median"], found["val_accuracy"]["median"]
    return (model.name, contestant.name, *spans, f"{memory:,.0f}", f"{accuracy:.3f}")


def _as_text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _as_markdown(rows: Sequence[Sequence[str]]) -> str:
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + " --- |" * len(rows[0]), *body])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
