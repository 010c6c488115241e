"""tune=lr: which runs choose the values of keys, and which are compared. Nothing is trained."""

import math
import re
from collections.abc import Callable, Sequence

import pytest

from runner.cli import tuning
from runner.cli.compose import compose
from runner.cli.overrides import jobs, parse_overrides
from runner.config.schema import parse


def planned(*lines: str) -> tuning.Tuning:
    overrides, expanded = parse_overrides(lines), jobs(lines, multirun=True)
    configs = [compose(job) for job in expanded]
    return tuning.plan(expanded, overrides, [(parse(values), values) for values in configs])


def trained(
    plan: tuning.Tuning, loss: Callable[[str], float], accepts: Callable[[str], bool] | None = None
) -> list[list[str]]:
    """The jobs of each batch, as text, if a job has the loss that the function returns."""
    batches: list[list[str]] = []

    def train(overrides: Sequence[list[str]]) -> list[float]:
        batches.append([" ".join(job) for job in overrides])
        return [loss(job) for job in batches[-1]]

    num_jobs = tuning.run(plan, train, lambda job: accepts is None or accepts(" ".join(job)))
    assert num_jobs == sum(map(len, batches))
    return batches


def rate(job: str) -> float:
    return float(re.findall(r"optimizer\.lr=(\S+)", job)[0])


def test_a_grid_grows_where_its_best_value_is_at_an_edge(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The best rate of constant is 1e-3, that of linear 0.09: two further values are tried."""
    plan = planned("schedule=constant,linear", "tune=lr", "seed=4,1", "tune.factors=[0.1,1,10]")

    def loss(job: str) -> float:
        return abs(math.log(rate(job) / (1e-3 if "schedule=constant" in job else 0.09)))

    first, second, third, judged = trained(plan, loss)
    assert len(first) == 2 * 3 * 2
    assert all(job.endswith(("seed=5", "seed=6")) for job in [*first, *second, *third])
    assert [(job.split()[0], rate(job)) for job in second] == [("schedule=linear", 0.1)] * 2
    assert [(job.split()[0], rate(job)) for job in third] == [("schedule=linear", 1.0)] * 2
    assert judged == [
        f"schedule={name} tune=lr tune.factors=[0.1,1,10] optimizer.lr={best} tune.seeds=[5,6] "
        f"seed={seed}"
        for name, best in (("constant", "0.001"), ("linear", "0.1"))
        for seed in (4, 1)
    ]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == (
        "tuning   6 points of optimizer.lr for 2 combinations; chosen on seeds 5, 6, compared on "
        "seeds 4, 1"
    )
    assert "grid     schedule=linear: best at an edge, so optimizer.lr=0.1 is tried too" in out


def test_a_grid_grows_three_times_at_most_and_only_to_values_that_the_schema_takes() -> None:
    plan = planned("schedule=constant,linear", "tune=lr", "tune.factors=[1,10]")
    assert [len(batch) for batch in trained(plan, lambda job: -rate(job))] == [4, 2, 2, 2, 2]
    batches = trained(plan, lambda job: -rate(job), accepts=lambda job: rate(job) < 0.5)
    assert [len(batch) for batch in batches] == [4, 2, 2]


def test_keys_with_several_values_and_folds() -> None:
    """A list of values is tried as it is; each point has every fold."""
    plan = planned(
        "data=table", "data.path=a.csv", "data.fold=0,1", "schedule=cosine,linear",
        "schedule.warmup=0%,5%", "tune=lr", "tune.keys=[schedule.warmup,optimizer.lr]",
        "tune.factors=[1,2]", "tune.seeds=[7]",
    )  # fmt: skip
    tried, judged = trained(plan, lambda job: rate(job) != 1e-3 or "warmup=5%" not in job)[::2]
    assert len(tried) == 2 * 4 * 2
    assert {job[-18:] for job in tried} == {"data.fold=0 seed=7", "data.fold=1 seed=7"}
    assert len(judged) == 2 * 2
    assert all("schedule.warmup=5% optimizer.lr=0.001 tune.seeds=[7]" in job for job in judged)


def test_a_combination_that_always_diverges_is_not_compared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One diverged seed is enough to reject a value."""
    plan = planned("schedule=constant,linear", "tune=lr", "seed=0,1", "tune.factors=[1,2,4]")

    def loss(job: str) -> float:
        return math.inf if "linear" in job or ("0.001" in job and "seed=3" in job) else rate(job)

    *_, judged = trained(plan, loss)
    assert [job.split()[0] for job in judged] == ["schedule=constant"] * 2
    assert {rate(job) for job in judged} == {0.002}
    assert (
        "chosen   schedule=linear: none, every value diverged or failed; not compared"
        in capsys.readouterr().out
    )
