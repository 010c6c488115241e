"""Report the trials of a search: trials.csv, search.json, search.png and lines for the user.

The importance of a key is the share of the variance of the metric that it explains alone, by fANOVA
on the trials that were trained to their end (Hutter, Hoos, Leyton-Brown, "An Efficient Approach for
Assessing Hyperparameter Importance", 2014; optuna.importance). A key under a condition is not in
every trial; its share is that among the trials that have it, times their part of the sum of squares
of all trials.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import printable
from runner.report import pictures
from runner.run import study
from runner.run.study import Settings
from runner.text import escape

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_FEWEST = 4  # trials for an importance
_MOST_PANELS = 6
_STATES = {"complete": "completed", "fail": "failed", "running": "unfinished"}


def write(folder: Path, settings: Settings, metric: str) -> None:
    """Write the files and print the summary of a study in a multirun's folder."""
    trials = settings.trials()
    known = importance(trials, settings.maximizes)
    if not trials:
        return
    _write_csv(folder / "trials.csv", trials)
    counts = Counter(map(_state, trials))
    best = _best(trials, settings.maximizes)
    values = {
        "metric": metric,
        "mode": "max" if settings.maximizes else "min",
        "trials": dict(counts),
        "best": None if best is None else {"trial": best.number, "value": best.value, **_of(best)},
        "importance": known,
    }
    text = json.dumps(values, indent=2, allow_nan=False)
    (folder / "search.json").write_text(text + "\n", encoding="utf-8")
    listed = ", ".join(f"{number} {state}" for state, number in counts.items())
    print(printable(f"search   {len(trials)} trials: {listed}"))
    if known:
        shares = ", ".join(f"{key} {share:.2f}" for key, share in known.items())
        print(printable(f"explains {shares} of the variance of {metric}"))
    if best is not None:
        _draw(folder / "search.png", trials, metric, known, settings.maximizes)
        print(printable(f"picture  {folder / 'search.png'}"))


def importance(trials: Sequence["FrozenTrial"], maximizes: bool) -> dict[str, float]:
    """Return key -> the share of the variance that it explains, largest first; empty if there are
    too few trials."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    ended = [trial for trial in trials if _is_finite(trial)]
    shares: dict[str, float] = {}
    names = list(dict.fromkeys(name for trial in ended for name in trial.params))
    everywhere = [name for name in names if all(name in trial.params for trial in ended)]
    for group in (everywhere, *([name] for name in names if name not in everywhere)):
        having = [trial for trial in ended if all(name in trial.params for name in group)]
        varying = [n for n in group if len({trial.params[n] for trial in having}) > 1]
        if len(having) < _FEWEST or not varying or len({trial.value for trial in having}) < 2:
            continue
        with study.quiet():
            part = optuna.create_study(direction="maximize" if maximizes else "minimize")
            part.add_trials(having)
            found = get_param_importances(
                part, evaluator=FanovaImportanceEvaluator(seed=0), params=varying, normalize=False
            )
        part_of_all = _squares(having) / _squares(ended)
        shares |= {name: round(float(value) * part_of_all, 4) for name, value in found.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _squares(trials: Sequence["FrozenTrial"]) -> float:
    """Return the sum of the squared differences from the mean."""
    values = np.array([trial.value for trial in trials])
    return float(np.square(values - values.mean()).sum())


def _is_finite(trial: "FrozenTrial") -> bool:
    return _state(trial) == "completed" and math.isfinite(trial.value or 0.0)


def _state(trial: "FrozenTrial") -> str:
    name = trial.state.name.lower()
    return _STATES.get(name, name)


def _of(trial: "FrozenTrial") -> dict[str, Any]:
    """Return a trial's values by key; the name of a conditional parameter ends with its
    condition."""
    return {"values": {name.partition(" ")[0]: value for name, value in trial.params.items()}}


def _best(trials: Sequence["FrozenTrial"], maximizes: bool) -> "FrozenTrial | None":
    sign = -1 if maximizes else 1
    ended = [trial for trial in trials if _is_finite(trial)]
    return min(ended, key=lambda trial: sign * (trial.value or 0.0), default=None)


def _write_csv(path: Path, trials: Sequence["FrozenTrial"]) -> None:
    """Write one row per trial. Text is escaped, numbers are not."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "value", "epochs", *map(escape.csv, names)])
        for trial in trials:
            params = [trial.params.get(name, "") for name in names]
            value = "" if trial.value is None else trial.value
            row = [trial.number, _state(trial), value, trial.last_step or "", *params]
            writer.writerow([escape.csv(v) if isinstance(v, str) else v for v in row])


def _draw(
    path: Path,
    trials: Sequence["FrozenTrial"],
    metric: str,
    known: Mapping[str, float],
    maximizes: bool,
) -> None:
    """Draw the metric of each trial and the best so far, the importance of the keys, and the metric
    over the values of the most important keys."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [*known][:_MOST_PANELS]
    num_panels = 2 + len(shown)
    rows, columns = math.ceil(num_panels / 4), min(num_panels, 4)
    figure = Figure(figsize=(3.8 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(num_panels)]
    _draw_history(panels[0], trials, maximizes)
    bars = [*known.items()][::-1]
    panels[1].barh([escape.picture(key, most=28) for key, _ in bars], [v for _, v in bars], 0.5)
    panels[1].set_ylim(-0.6, max(len(bars), 3) - 0.4)
    panels[1].set_xlabel("share of the variance")
    for axes, name in zip(panels[2:], shown, strict=True):
        _draw_values(axes, [trial for trial in trials if name in trial.params], name)
    values = [trial.value for trial in trials if _has_value(trial)]
    for axes in (panels[0], *panels[2:]):
        axes.set_ylabel(escape.picture(metric))
        if min(values) > 0 and max(values) > 5 * min(values):
            pictures.use_log_scale(axes)
    for axes in panels:
        axes.grid(alpha=0.3)
    pictures.save(figure, path)


def _has_value(trial: "FrozenTrial") -> bool:
    return trial.value is not None and math.isfinite(trial.value)


def _draw_history(axes: Any, trials: Sequence["FrozenTrial"], maximizes: bool) -> None:
    """Draw the last value of each trial, and the best so far."""
    _draw_points(axes, [trial.number for trial in trials], trials)
    ended = [trial for trial in trials if _is_finite(trial)]
    values = np.array([trial.value for trial in ended])
    best = (np.maximum if maximizes else np.minimum).accumulate(values)
    numbers = [*(trial.number for trial in ended), len(trials) - 1]
    axes.step(numbers, [*best, best[-1]], color="C1", where="post", label="best so far")
    axes.set_xlabel("trial")
    axes.legend(fontsize="small")


def _draw_values(axes: Any, trials: Sequence["FrozenTrial"], name: str) -> None:
    """Draw the metric over the values of one key; the axis is logarithmic if its range is."""
    values = [trial.params[name] for trial in trials]
    if isinstance(values[0], str):
        order = [choice for choice in trials[0].distributions[name].choices if choice in values]
        _draw_points(axes, [order.index(value) for value in values], trials)
        labels = [escape.picture(value, most=16) for value in order]
        axes.set_xticks(range(len(order)), labels, rotation=40, ha="right")
    else:
        _draw_points(axes, values, trials)
        if getattr(trials[0].distributions[name], "log", False):
            ticks = pictures.log_ticks(min(values), max(values))
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=40)
            axes.minorticks_off()
    axes.set_xlabel(escape.picture(name, most=34))


def _draw_points(axes: Any, x: Sequence[Any], trials: Sequence["FrozenTrial"]) -> None:
    for state, marker, color in (("pruned", "x", "0.6"), ("completed", "o", "C0")):
        points = [
            (place, trial.value)
            for place, trial in zip(x, trials, strict=True)
            if _state(trial) == state and _has_value(trial)
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=color, label=state, alpha=0.7)
