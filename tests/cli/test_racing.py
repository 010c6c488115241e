"""race.budget: which runs a race starts, and when it ends. Nothing is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from runner.cli import racing
from runner.cli.compose import compose
from runner.cli.overrides import jobs
from runner.config.schema import parse
from runner.report.jobs import Job

SCHEDULES = "schedule=constant,linear,cosine,step"


def planned(*lines: str) -> racing.Racing:
    expanded = jobs(lines, multirun=True)
    configs = [parse(compose(job)) for job in expanded]
    racing.check(configs)
    return racing.plan(expanded, configs)


def raced(
    race: racing.Racing, loss: Callable[[str, int], float]
) -> list[tuple[list[int], list[str]]]:
    """The seeds and the schedules of each round, if a run of a schedule and a seed has this loss,
    50 steps and 2 seconds."""
    rounds = []

    def train(overrides: Sequence[list[str]]) -> tuple[list[Job | None], int]:
        runs: list[Job | None] = []
        for job in overrides:
            values = compose(job)
            name, seed = values["schedule"]["name"], values["seed"]
            result = {
                "status": "completed", "backend": "lightning", "seed": seed, "steps": 50,
                "seconds": {"total": 2.0}, "metrics": {"val/loss": loss(name, seed)},
                "weights_sha256": f"{loss(name, seed)}",
            }  # fmt: skip
            runs.append(Job(Path(f"{name}_{seed}"), result, values))
        seeds = sorted({run.seed for run in runs if run})
        names = list(dict.fromkeys(str(run.folder).partition("_")[0] for run in runs if run))
        rounds.append((seeds, names))
        return runs, 1

    race.run(train)
    assert race.num_reused == len(rounds)
    return rounds


def noisy(name: str, seed: int) -> float:
    """Close: constant and linear; cosine is 1 above, step 2. The noise is below 0.1."""
    noise = (17 * len(name) + 29 * seed) ** 3 % 97 / 1000
    return {"constant": 0.0, "linear": 0.0, "cosine": 1.0, "step": 2.0}[name] + noise


def test_a_race_adds_seeds_and_drops_schedules_up_to_the_runs_of_a_fixed_design() -> None:
    """Two of 4 schedules are dropped after 3 of 4 seeds, 12 runs; the other two get the
    last seed of the list and the one that follows, 16 runs."""
    race = planned(SCHEDULES, "seed=3,0,7,5", "race.budget=auto")
    first, *others = raced(race, noisy)
    assert first == ([0, 3, 7], ["constant", "linear", "cosine", "step"])
    assert others == [([5], ["constant", "linear"]), ([8], ["constant", "linear"])]
    assert race.stopped == "budget"
    assert race.seeds == [3, 0, 7, 5, 8]
    assert {*race.course.race.dropped} == {2, 3}


@pytest.mark.parametrize(
    ("budget", "num_rounds"),
    [("799steps", 3), ("800steps", 4), ("31s", 3), ("32s", 4), ("100steps", 1)],
)
def test_a_race_never_exceeds_its_budget(budget: str, num_rounds: int) -> None:
    """A run takes 50 steps and 2 seconds: rounds of 4, 8, 2 and 2 runs, 800 steps or 32 seconds in
    all, with the first one even if it is too much."""
    race = planned(SCHEDULES, "seed=0", f"race.budget={budget}")
    assert len(raced(race, noisy)) == num_rounds
    assert race.stopped == "budget"


def test_a_race_ends_when_one_schedule_is_left_or_all_are_within_the_margin() -> None:
    lines = ("seed=0,1,2,3,4,5,6,7,8,9", "race.budget=auto")
    race = planned("schedule=linear,cosine,step", *lines)
    assert len(raced(race, noisy)) == 1
    assert race.stopped == "known"
    close = ("schedule=constant,linear", *lines)
    assert planned(*close).margin is None
    race = planned(*close, "answer.margin=0.5")
    assert 1 < len(raced(race, noisy)) < 8
    assert race.stopped == "known"
    assert len(race.left) == 2


def test_seeds_that_chose_rates_are_not_added_and_their_runs_count() -> None:
    """The grid's two runs on seed 4 took 100 steps; the rounds of 4, 8 and 2 runs take 700."""
    tune = ("tune=lr", "tune.seeds=[4]")
    lines = (SCHEDULES, "seed=0,1,2", *tune)
    grid = planned(SCHEDULES, "seed=4", "race.budget=2000steps", *tune)
    raced(grid, noisy)
    for budget, num_rounds in ((799, 2), (800, 3)):
        expanded = jobs([*lines, f"race.budget={budget}steps"], multirun=True)
        configs = [parse(compose(job)) for job in expanded]
        race = racing.plan(expanded, configs, grid.schedules[0].runs[:2])
        assert len(raced(race, noisy)) == num_rounds
        assert race.seeds == [0, 1, 2, 5][: num_rounds + 1]


def test_failed_and_equal_schedules_leave_the_race(capsys: pytest.CaptureFixture[str]) -> None:
    race = planned(SCHEDULES, "seed=0,1,2,3", "race.budget=auto")

    def loss(name: str, seed: int) -> float:
        if (name, seed) == ("linear", 1):
            return float("nan")
        return noisy("constant" if name == "step" else name, seed)

    assert len(raced(race, loss)) == 2
    assert race.stopped == "known"
    assert race.left == [0]
    out = capsys.readouterr().out
    assert "race     schedule=linear leaves: seed 1 diverged or failed" in out
    assert "race     schedule=step leaves: it is the same run as schedule=constant" in out
    assert "race     after 4 seeds: 1 of 4 left; dropped schedule=cosine (worse than " in out
