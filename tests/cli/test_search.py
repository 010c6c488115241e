"""Searches with Optuna: the space, the samplers, and the trials of a study."""

import csv
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.cli.overrides import parse_overrides
from runner.cli.space import Range, Space, space
from runner.errors import ConfigError
from runner.run.run_folder import read_json
from tests.command_line import Done, Running, forked

pytest.importorskip("optuna", minversion="4", reason="the extra optuna is not installed")


def ranges(*texts: str, **conditions: list[str]) -> Space:
    return space(
        parse_overrides(texts), {f"schedule={k}": parse_overrides(v) for k, v in conditions.items()}
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schedule=choice(cosine,step)", Range("schedule", ("cosine", "step"))),
        ("schedule=cosine,step", Range("schedule", ("cosine", "step"))),
        ("model.x=int(interval(1,8))", Range("model.x", low=1, high=8)),
        ("optimizer.lr=interval(0.1,1)", Range("optimizer.lr", low=0.1, high=1.0)),
        (
            "optimizer.lr=tag(log,interval(1e-4,1e-1))",
            Range("optimizer.lr", low=1e-4, high=0.1, is_log=True),
        ),
        ("model.x=range(2,9,2)", Range("model.x", low=2, high=8, step=2)),
    ],
)
def test_ranges_are_read_in_hydra_s_syntax(text: str, expected: Range) -> None:
    found = ranges(text, "data.x=1,2").ranges[0]
    assert (found, type(found.low)) == (expected, type(expected.low))


def test_a_conditional_key_is_chosen_with_its_value_only() -> None:
    """Both ends of every range are probed before any training."""
    found = ranges("schedule=constant,cosine,step", step=["schedule.decay_rate=interval(0.1,0.5)"])
    probes = [*found.probes()]
    assert {"schedule": "constant"} in probes
    assert {"schedule": "step", "schedule.decay_rate": "0.5"} in probes
    assert all(("schedule.decay_rate" in each) == (each["schedule"] == "step") for each in probes)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("schedule=steps", "schedule must be one of cosine, step, got steps; did you mean step?"),
        ("schedules=step", "needs schedules=choice(...) in the search, which has choices for"),
        ("step", "hydra.sweeper.conditions must be KEY=VALUE with ranges below it, got step"),
    ],
)
def test_a_condition_that_no_trial_meets_is_refused(condition: str, said: str) -> None:
    with pytest.raises(ConfigError, match="conditions") as raised:
        space(
            parse_overrides(["schedule=cosine,step"]),
            {condition: parse_overrides(["schedule.decay_rate=interval(0.1,0.5)"])},
        )
    assert said in str(raised.value)


# Samplers, on functions


def searched(
    folder: Path,
    found: Space,
    name: str,
    num: int,
    value: Callable[[Mapping[str, Any]], float | Sequence[float]],
    objectives: Sequence[str] = ("val/loss",),
) -> list[dict[str, str]]:
    """Let a study choose and evaluate trials; a new object for each, as in another process."""
    from runner.cli.search import Search
    from runner.run.study import Objective, Settings

    hydra = {"name": name, "seed": 3, "n_startup_trials": 5, "n_ei_candidates": 24}
    hydra |= {"population_size": 5}
    folder.mkdir()
    chosen = []
    for _ in range(num):
        settings = Settings(
            folder, tuple(Objective(each, False) for each in objectives), {"name": "none"}
        )
        search = Search(found, settings, {**hydra, "multivariate": True}, num, (), ())
        search.open()
        trial = search.draw()
        assert trial is not None
        chosen.append(dict(trial.chosen))
        told = value(trial.chosen)
        search.tell(trial, [[told] if isinstance(told, float) else told], is_pruned=False)
    assert search.draw() is None
    return chosen


def sphere(chosen: Mapping[str, str]) -> float:
    """(log10 lr + 2)^2 + (x - 3)^2 / 10, 0 at lr = 0.01, x = 3"""
    return (math.log10(float(chosen["lr"])) + 2) ** 2 + (float(chosen["x"]) - 3) ** 2 / 10


NUMBERS = ("lr=tag(log,interval(1e-5,1e1))", "x=interval(0.0,10.0)")


@pytest.mark.parametrize(
    "name",
    ["tpe", "quasi_random", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gp", "cmaes"))],
)
def test_a_sampler_chooses_by_seed_number_and_results_alone(tmp_path: Path, name: str) -> None:
    """Twice the same trials, no two alike. What is learned is better than the start."""
    num = {"tpe": 15, "cmaes": 30}.get(name, 12)
    first = searched(tmp_path / "a", ranges(*NUMBERS), name, num, sphere)
    again = searched(tmp_path / "b", ranges(*NUMBERS), name, num, sphere)
    assert first == again
    assert len({tuple(each.items()) for each in first}) == num
    if name != "quasi_random":
        assert np.median([*map(sphere, first[-5:])]) < np.median([*map(sphere, first[:5])])


def two(chosen: Mapping[str, str]) -> list[float]:
    """The squared distances of (log10 lr, x) from (-2, 3) and (-1, 5); the worst of both, as of a
    run that diverged, for lr > 1."""
    rate, x = math.log10(float(chosen["lr"])), float(chosen["x"])
    if rate > 0:
        return [math.inf, math.inf]
    return [(rate + 2) ** 2 + (x - 3) ** 2 / 10, (rate + 1) ** 2 + (x - 5) ** 2 / 10]


@pytest.mark.parametrize(
    "name",
    ["tpe", "nsgaii", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gp", "quasi_random"))],
)
def test_several_objectives_end_with_the_trials_that_no_other_one_beats(
    tmp_path: Path, name: str
) -> None:
    """Twice the same trials; the front is that of the definition, by comparing all pairs."""
    from runner.report.trials import write
    from runner.run.study import Objective, Settings

    names = ("near", "far")
    first = searched(tmp_path / "a", ranges(*NUMBERS), name, 20, two, names)
    assert searched(tmp_path / "b", ranges(*NUMBERS), name, 20, two, names) == first
    settings = Settings(tmp_path / "a", tuple(Objective(n, False) for n in names), {"name": "none"})
    front = write(tmp_path / "a", settings, dict, lambda chosen: ())
    values = [tuple(two(chosen)) for chosen in first]
    finite = [each for each in values if math.isfinite(each[0])]
    best = {a for a in finite if not any(b[0] <= a[0] and b[1] <= a[1] and a != b for b in finite)}
    assert front is not None
    # six digits of the values that were tried
    assert [*front.points[0].values] == pytest.approx(min(best), rel=1e-9)
    assert len(front.points) == len(best)
    assert read_json(tmp_path / "a" / "search.json")["front"] == front.entry()
    assert rows(tmp_path / "a")[0].keys() >= {"near", "far"}


def test_a_grid_has_each_combination_once(tmp_path: Path) -> None:
    found = ranges("kind=a,b", "x=range(0,3)")
    chosen = searched(tmp_path / "a", found, "grid", 6, lambda _: 1.0)
    assert {(each["kind"], each["x"]) for each in chosen} == {
        (kind, str(x)) for kind in "ab" for x in range(3)
    }


def test_the_importance_is_that_of_the_key_that_matters(tmp_path: Path) -> None:
    from runner.report.trials import importance
    from runner.run.study import Objective, Settings

    searched(tmp_path / "a", ranges(*NUMBERS), "random", 20, lambda c: math.log(float(c["lr"])))
    settings = Settings(tmp_path / "a", (Objective("val/loss", False),), {"name": "none"})
    found = importance(settings.trials(), settings.directions)
    assert next(iter(found)) == "lr"
    assert found["lr"] > 5 * found["x"]


# From the command line

OWN = """# @package _global_
defaults:
  - override /hydra/sweeper: optuna
  - override /hydra/sweeper/pruner: median
trainer:
  max_epochs: 3
hydra:
  sweeper:
    n_trials: 30
    pruner:
      n_startup_trials: 3
    params:
      optimizer.lr: tag(log, interval(1e-4, 1e-1))
      schedule: choice(constant, cosine, step)
    conditions:
      schedule=step:
        schedule.step_size: int(interval(20, 60))
"""


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_a_search_that_was_killed_ends_with_its_trials_none_twice(
    tmp_path: Path, backend: str
) -> None:
    """Two processes, categories, a condition, pruning: 30 trials of 30 folders, each trained from
    update 0 to its last one; the trials that were killed go on with the values that they had."""
    (tmp_path / "conf" / "search").mkdir(parents=True)
    (tmp_path / "conf" / "search" / "mine.yaml").write_text(OWN)
    command = ("-m", "search=mine", "--config-dir", "conf", "model=linear", "device=cpu")
    command += (f"backend={backend}", "hydra.launcher.n_jobs=2", "output.multirun=outputs/m")
    folder = tmp_path / "outputs" / "m"
    with Running(tmp_path, *command) as running:
        running.until(lambda: len([*folder.glob("*/result.json")]) >= 8)
        assert running.end(signal.SIGKILL).status == 128 + signal.SIGKILL
    (done,) = forked(tmp_path, command)
    assert (done.status, done.err) == (0, "")
    trials = rows(folder)
    assert [int(trial["trial"]) for trial in trials] == [*range(30)]
    assert {trial["state"] for trial in trials} == {"completed", "pruned"}
    runs = [*folder.glob("*/result.json")]
    assert len(runs) == 30
    for run in runs:
        result = read_json(run)
        updates = [line.split(",")[0] for line in run.with_name("trace.csv").open()][1:]
        assert updates == [*map(str, range(result["steps"]))]
        assert (result["status"] == "pruned") == (result["steps"] < 120)
    steps = "schedule.step_size (schedule=step)"
    assert all(bool(trial[steps]) == (trial["schedule"] == "step") for trial in trials)
    values = [float(trial["value"]) for trial in trials if trial["state"] == "completed"]
    assert read_json(folder / "search.json")["best"]["value"] == min(values)
    assert (folder / "search.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_of_the_best_trial_trains_it_again(tmp_path: Path) -> None:
    """Without the search, also with what its file sets; each trial's value is its seeds' mean."""
    command = ("-m", "search=schedule", "model=linear", "device=cpu", "seed=0,1")
    few = ("hydra.sweeper.n_trials=3", "hydra/sweeper/pruner=none", "trainer.max_epochs=2")
    (done,) = forked(tmp_path, (*command, *few))
    assert (done.status, done.err) == (0, "")
    assert "trainer.max_steps=400" in to_copy(done)
    folder = tmp_path / done.folder
    results = [read_json(path) for path in folder.glob("*/result.json")]
    assert len(results) == 6
    for trial in rows(folder):
        values = [
            result["metrics"]["val/loss"]
            for result in results
            if f"optimizer.lr={float(trial['optimizer.lr']):.6g}" in result["overrides"]
        ]
        assert len(values) == 2
        # the mean of two floats, in another order
        assert float(trial["value"]) == pytest.approx(np.mean(values), rel=1e-12)
    (again,) = forked(tmp_path, tuple(to_copy(done)))
    assert again.status == 0
    trained = read_json(tmp_path / again.folder / "result.json")
    assert trained["weights_sha256"] in {
        result["weights_sha256"] for result in results if result["seed"] == 0
    }


@pytest.mark.slow
def test_several_objectives_are_numbers_of_the_runs(tmp_path: Path) -> None:
    """A column of metrics.csv, and the parameters; means over the seeds. Each printed command of
    the front trains a run with its numbers."""
    command = ("-m", "hydra/sweeper=optuna", "model=mlp,linear", "device=cpu", "seed=0,1")
    command += ("hydra.sweeper.objectives={val/accuracy:max,num_parameters:min}",)
    command += ("optimizer.lr=0.001,0.02", "hydra/sweeper/sampler=grid", "trainer.max_epochs=1")
    (done,) = forked(tmp_path, command)
    assert (done.status, done.err) == (0, "")
    folder = tmp_path / done.folder
    found = [read_json(path) for path in folder.glob("*/result.json")]
    assert len(found) == 8
    seeds: dict[str, list[dict[str, Any]]] = {}
    for result in found:
        seeds.setdefault(" ".join(o for o in result["overrides"] if "seed" not in o), []).append(
            result
        )
    values = [
        (
            float(np.mean([-r["metrics"]["val/accuracy"] for r in results])),
            results[0]["num_parameters"],
        )
        for results in seeds.values()
    ]
    best = [a for a in values if not any(b[0] <= a[0] and b[1] <= a[1] and a != b for b in values)]
    answer = read_json(folder / "answer.json")
    told = [point["objectives"] for point in answer["front"]]
    assert sorted((-of["val/accuracy"], of["num_parameters"]) for of in told) == sorted(best)
    assert "Pareto front of val/accuracy (max) and num_parameters (min)" in done.out
    lines = [
        line for line in done.out.splitlines() if line.startswith("trial ") and "python" in line
    ]
    assert len(lines) == len(best)
    arguments = lines[0].split("python -m runner ")[1].split()
    (again,) = forked(tmp_path, tuple(arguments))
    again_result = read_json(tmp_path / again.folder / "result.json")
    assert again_result["weights_sha256"] in {result["weights_sha256"] for result in found}


def to_copy(done: Done) -> list[str]:
    line = next(line for line in done.out.splitlines() if line.startswith("to copy  "))
    return line.split()[5:]
