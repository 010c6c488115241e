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
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import printable
from runner.report import pictures
from runner.report.front import Front, Point
from runner.run import study
from runner.run.study import Objective, Settings
from runner.text import escape

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_FEWEST = 4  # trials for an importance
_MOST_PANELS = 6
_STATES = {"complete": "completed", "fail": "failed", "running": "unfinished"}
Importance = Mapping[str, float]  # key -> its share of the variance, largest first


def write(
    folder: Path,
    settings: Settings,
    chosen: Callable[[Mapping[str, Any]], dict[str, str]],
    folders: Callable[[Mapping[str, str]], Sequence[Path]],
) -> Front | None:
    """Write the files and print the summary of a study in a multirun's folder. Return the Pareto
    front, if there are several objectives and a trial has ended.

    `chosen` returns the values by key of a trial's parameters, `folders` the runs with such
    values."""
    trials, objectives = settings.trials(), settings.objectives
    if not trials:
        return None
    known = {
        objective.name: importance(trials, settings.directions, i)
        for i, objective in enumerate(objectives)
    }
    _write_csv(folder / "trials.csv", trials, objectives)
    front = _front(settings, chosen, folders) if settings.has_several else None
    _write_json(folder / "search.json", trials, objectives, known, front)
    listed = ", ".join(f"{n} {state}" for state, n in Counter(map(_state, trials)).items())
    print(printable(f"search   {len(trials)} trials: {listed}"))
    for metric, shares in known.items():
        if shares:
            text = ", ".join(f"{key} {share:.2f}" for key, share in shares.items())
            print(printable(f"explains {text} of the variance of {metric}"))
    if front is not None:
        _draw_front(folder / "search.png", trials, front, known)
    elif _best(trials, objectives[0]) is not None and not settings.has_several:
        _draw(folder / "search.png", trials, objectives[0], known[objectives[0].name])
    else:
        return None
    print(printable(f"picture  {folder / 'search.png'}"))
    return front


def _write_json(
    path: Path,
    trials: Sequence["FrozenTrial"],
    objectives: Sequence[Objective],
    known: Mapping[str, Importance],
    front: Front | None,
) -> None:
    """Write search.json: of one objective the best trial, of several ones the front."""
    counts = dict(Counter(map(_state, trials)))
    values: dict[str, Any]
    if len(objectives) > 1:
        values = {
            "objectives": {each.name: each.mode for each in objectives},
            "trials": counts,
            "front": [] if front is None else front.entry(),
            "importance": known,
        }
    else:
        (objective,) = objectives
        best = _best(trials, objective)
        values = {
            "metric": objective.name,
            "mode": objective.mode,
            "trials": counts,
            "best": None
            if best is None
            else {"trial": best.number, "value": best.value, **_of(best)},
            "importance": known[objective.name],
        }
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _front(
    settings: Settings,
    chosen: Callable[[Mapping[str, Any]], dict[str, str]],
    folders: Callable[[Mapping[str, str]], Sequence[Path]],
) -> Front | None:
    with study.quiet():
        best = [trial for trial in settings.study().best_trials if _is_finite(trial)]
    sign = -1 if settings.objectives[0].maximizes else 1
    points = []
    for trial in sorted(best, key=lambda trial: (sign * trial.values[0], trial.number)):
        values = chosen(trial.params)
        points.append(Point(trial.number, list(trial.values), values, folders(values)))
    num_ended = sum(map(_is_finite, settings.trials()))
    return Front(settings.objectives, points, num_ended) if points else None


def importance(
    trials: Sequence["FrozenTrial"], directions: Sequence[str], objective: int = 0
) -> dict[str, float]:
    """Return key -> the share of the variance of an objective that it explains, largest first;
    empty if there are too few trials. `directions` are those of the study."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    ended = [trial for trial in trials if _is_finite(trial)]
    shares: dict[str, float] = {}
    names = list(dict.fromkeys(name for trial in ended for name in trial.params))
    everywhere = [name for name in names if all(name in trial.params for trial in ended)]
    for group in (everywhere, *([name] for name in names if name not in everywhere)):
        having = [trial for trial in ended if all(name in trial.params for name in group)]
        varying = [n for n in group if len({trial.params[n] for trial in having}) > 1]
        values = {trial.values[objective] for trial in having}
        if len(having) < _FEWEST or not varying or len(values) < 2:
            continue
        with study.quiet():
            part = optuna.create_study(directions=directions)
            part.add_trials(having)
            found = get_param_importances(
                part,
                evaluator=FanovaImportanceEvaluator(seed=0),
                params=varying,
                target=lambda trial: trial.values[objective],
                normalize=False,
            )
        part_of_all = _squares(having, objective) / _squares(ended, objective)
        shares |= {name: round(float(value) * part_of_all, 4) for name, value in found.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _squares(trials: Sequence["FrozenTrial"], objective: int) -> float:
    """Return the sum of the squared differences from the mean."""
    values = np.array([trial.values[objective] for trial in trials])
    return float(np.square(values - values.mean()).sum())


def _is_finite(trial: "FrozenTrial") -> bool:
    return _state(trial) == "completed" and all(map(math.isfinite, trial.values))


def _state(trial: "FrozenTrial") -> str:
    name = trial.state.name.lower()
    return _STATES.get(name, name)


def _of(trial: "FrozenTrial") -> dict[str, Any]:
    """Return a trial's values by key; the name of a conditional parameter ends with its
    condition."""
    return {"values": {name.partition(" ")[0]: value for name, value in trial.params.items()}}


def _best(trials: Sequence["FrozenTrial"], objective: Objective) -> "FrozenTrial | None":
    """Return the best trial of a study with one objective."""
    sign = -1 if objective.maximizes else 1
    ended = [trial for trial in trials if _is_finite(trial)]
    return min(ended, key=lambda trial: sign * trial.values[0], default=None)


def _write_csv(
    path: Path, trials: Sequence["FrozenTrial"], objectives: Sequence[Objective]
) -> None:
    """Write one row per trial. Text is escaped, numbers are not."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    several = [each.name for each in objectives] if len(objectives) > 1 else ["value"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", *several, "epochs", *map(escape.csv, names)])
        for trial in trials:
            params = [trial.params.get(name, "") for name in names]
            values = trial.values or [""] * len(several)
            row = [trial.number, _state(trial), *values, trial.last_step or "", *params]
            writer.writerow([escape.csv(v) if isinstance(v, str) else v for v in row])


def _draw(
    path: Path,
    trials: Sequence["FrozenTrial"],
    objective: Objective,
    known: Importance,
) -> None:
    """Draw the metric of each trial and the best so far, the importance of the keys, and the metric
    over the values of the most important keys."""
    shown = [*known][:_MOST_PANELS]
    num_panels = 2 + len(shown)
    figure, panels = _panels(num_panels)
    _draw_history(panels[0], trials, objective.maximizes)
    _draw_importance(panels[1], {objective.name: known})
    for axes, name in zip(panels[2:], shown, strict=True):
        _draw_values(axes, [trial for trial in trials if name in trial.params], name)
    values = [trial.value for trial in trials if _has_value(trial)]
    for axes in (panels[0], *panels[2:]):
        axes.set_ylabel(escape.picture(objective.name))
        if min(values) > 0 and max(values) > 5 * min(values):
            pictures.use_log_scale(axes)
    for axes in panels:
        axes.grid(alpha=0.3)
    pictures.save(figure, path)


def _draw_front(
    path: Path, trials: Sequence["FrozenTrial"], front: Front, known: Mapping[str, Importance]
) -> None:
    """Draw the trials over each pair of objectives, those on the front with their numbers, and the
    importance of the keys for each objective."""
    pairs = [*combinations(range(len(front.objectives)), 2)][:_MOST_PANELS]
    figure, panels = _panels(len(pairs) + 1)
    ended = [trial for trial in trials if _is_finite(trial)]
    best = {point.trial for point in front.points}
    for axes, pair in zip(panels, pairs, strict=False):
        others = [trial.values for trial in ended if trial.number not in best]
        if others:
            points = zip(*([values[i] for i in pair] for values in others), strict=True)
            axes.plot(*points, "o", color="0.6", label="other trials")
        points = zip(*([point.values[i] for i in pair] for point in front.points), strict=True)
        axes.plot(*points, "o", color="C1", label="Pareto front")
        for point in front.points:
            place = [point.values[i] for i in pair]
            axes.annotate(str(point.trial), place, (4, 4), textcoords="offset points", fontsize=8)
        labels = [escape.picture(str(front.objectives[i])) for i in pair]
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(0.1)  # room for the numbers
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    _draw_importance(panels[-1], known)
    pictures.save(figure, path)


def _panels(num: int) -> tuple[Any, Sequence[Any]]:
    """Return a figure and its panels, at most four in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = math.ceil(num / 4), min(num, 4)
    figure = Figure(figsize=(3.8 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(num)]


def _draw_importance(axes: Any, known: Mapping[str, Importance]) -> None:
    """Draw the importance of each key, with a bar for each metric."""
    keys = list(dict.fromkeys(key for shares in known.values() for key in shares))[::-1]
    height = 0.5 if len(known) == 1 else 0.8 / len(known)
    for i, (metric, shares) in enumerate(known.items()):
        places = [row + (len(known) / 2 - i - 0.5) * height for row in range(len(keys))]
        widths = [shares.get(key, 0.0) for key in keys]
        axes.barh(places, widths, height, label=escape.picture(metric))
    axes.set_yticks(range(len(keys)), [escape.picture(key, most=28) for key in keys])
    axes.set_ylim(-0.6, max(len(keys), 3) - 0.4)
    axes.set_xlabel("share of the variance")
    axes.grid(alpha=0.3)
    if len(known) > 1 and keys:
        axes.legend(fontsize="small")


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
    pictures.use_whole_ticks(axes)
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
