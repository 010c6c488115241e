"""One answer over several workloads: costs until a target, profiles, a score, an exact test."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median, median_high
from typing import Any

import numpy as np
import pytest

from runner.config.schema import Answer
from runner.report.profiles import Curve, Races, p_of_lead, profile, stairs
from runner.report.statistics import smallest_p
from runner.run.run_folder import read_json
from runner.tasks.compare import compare as compare_task
from tests.command_line import forked
from tests.report.independent import check
from tests.run_folders import write_run

Losses = Sequence[float] | None  # after each epoch of 40 updates; None: the run failed


def write(here: Path, data: str, schedule: str, seed: int, losses: Losses, **more: Any) -> None:
    choices = [f"data={data}", f"schedule={schedule}"]
    folder = write_run(
        here / "runs",
        choices,
        seed,
        None if losses is None else losses[-1],
        data={"sha256": data.ljust(64, "0")},
        **more,
    )
    if losses is not None:
        rows = [f"{i},{40 * i},1.0,{loss},{1 + i}" for i, loss in enumerate(losses, start=1)]
        header = (folder / "metrics.csv").read_text().splitlines()[0]
        (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")


def answered(here: Path, capsys: pytest.CaptureFixture[str], **keys: Any) -> tuple[str, Any]:
    """Return the output of task=compare, and the entry `workloads` of answer.json."""
    answer = Answer(**{"margin": None, "test": False, "target": None, "relax": 0.01, **keys})
    capsys.readouterr()
    compare_task([str(here / "runs")], here, keys=answer)
    (folder,) = (here / "comparisons").iterdir()
    return capsys.readouterr().out, read_json(folder / "answer.json")["workloads"]


# schedule -> workload -> seed -> accuracy or loss after each epoch; iris is to be maximized
RUNS: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] = {
    "constant": {
        "iris": [(0.90, 0.91, 0.93), (0.85, 0.92, 0.93), (0.80, 0.93, 0.92)],
        "wine": [(0.9, 0.31, 0.3), (0.8, 0.7, 0.32), (0.9, 0.4, 0.301)],
    },
    "cosine": {
        "iris": [(0.80, 0.90, 0.96), (0.81, 0.91, 0.95), (0.82, 0.95, 0.96)],
        "wine": [(0.9, 0.25, 0.21), (0.9, 0.2, 0.2), (0.9, 0.24, 0.22)],
    },
    "linear": {
        "iris": [(0.70, 0.95, 0.95), (0.71, 0.96, 0.96), (0.72, 0.96, 0.955)],
        "wine": [(0.9, 0.5, 0.22), (0.9, 0.5, math.nan), (0.9, 0.5, 0.215)],
    },
}


def by_hand(
    runs: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
) -> tuple[dict[str, float], dict[str, float]]:
    """The scores, and the mean scores seed by seed, in plain Python with the sums written out."""
    found, by_seed = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
    for data, sign in (("iris", -1), ("wine", 1)):
        curves = {
            name: [
                [math.inf] if math.isnan(run[-1]) else [sign * value for value in run]
                for run in own[data]
            ]
            for name, own in runs.items()
        }
        base = min(median_high(run[-1] for run in own) for own in curves.values())
        bound = base + 0.01 * abs(base)
        costs = {
            name: [
                next((40 * i for i, loss in enumerate(run, 1) if loss <= bound), math.inf)
                for run in own
            ]
            for name, own in curves.items()
        }
        for name, own in costs.items():
            found[name] += credit(median(own), [median(each) for each in costs.values()]) / 2
            for seed in range(3):
                by_seed[name] += credit(own[seed], [each[seed] for each in costs.values()]) / 6
    return found, by_seed


def credit(cost: float, costs: Sequence[float]) -> float:
    return 0.0 if math.isinf(cost) else max(0.0, (4 - cost / min(costs)) / 3)


def test_scores_and_p_are_those_of_a_plain_calculation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A metric to maximize and one to minimize, a diverged seed, a further seed of one schedule;
    p by all 64 exchanges of the runs of two schedules, written out."""
    for schedule, own in RUNS.items():
        for data, runs in own.items():
            monitor = "val/accuracy" if data == "iris" else "val/loss"
            for seed, losses in enumerate(runs):
                write(tmp_path, data, schedule, seed, losses, monitor=monitor)
    write(tmp_path, "wine", "constant", 3, (0.1, 0.1, 0.1))
    out, found = answered(tmp_path, capsys)
    expected, by_seed = by_hand(RUNS)
    groups = {group["label"].removeprefix("schedule="): group for group in found["groups"]}
    assert [*groups] == sorted(expected, key=lambda name: -expected[name])
    for name, score in expected.items():
        assert groups[name]["score"] == pytest.approx(score, abs=1e-8)
        assert groups[name]["seed_score"] == pytest.approx(by_seed[name], abs=1e-8)
        low, high = groups[name]["interval"]
        assert low <= by_seed[name] <= high
    first = found["winner"].removeprefix("schedule=")
    for name in groups:
        if name == first:
            continue
        leads = []
        for flips in product((False, True), repeat=6):
            mixed = {
                key: {data: [*runs] for data, runs in own.items()} for key, own in RUNS.items()
            }
            for i, flip in enumerate(flips):
                data, seed = ("iris", "wine")[i // 3], i % 3
                if flip:
                    mixed[first][data][seed] = RUNS[name][data][seed]
                    mixed[name][data][seed] = RUNS[first][data][seed]
            _, scores = by_hand(mixed)
            leads.append(scores[first] - scores[name])
        ahead = sum(lead >= leads[0] - 1e-9 for lead in leads)
        behind = sum(lead <= leads[0] + 1e-9 for lead in leads)
        p = min(1.0, 2 * min(ahead, behind) / 64) if leads[0] > 0 else 1.0
        assert groups[name]["p_raw"] == pytest.approx(p, abs=1e-12)
    assert "data=wine: compared over the seeds 0, 1, 2; left out: 3" in out
    assert "1 of 3 seeds diverged (seed 1); a diverged run never reaches the target" in out
    assert found["smallest_p"] == pytest.approx(3 * 2 / 64)
    (folder,) = (tmp_path / "comparisons").iterdir()
    assert check(folder, [*(tmp_path / "runs").iterdir()]) == []


def equal(num_seeds: int, **losses: Sequence[float]) -> Races:
    curves = [
        [Curve(np.array(own), np.arange(1.0, len(own) + 1), own[-1])] * num_seeds
        for own in losses.values()
    ]
    return Races(curves, None, 0.0)


def test_a_clear_lead_is_told_from_noise_and_equal_schedules_are_not() -> None:
    """Two workloads of three seeds: the clear lead has the smallest p, 2 of 2^6."""
    ahead = equal(3, first=(0.1, 0.1, 0.1), second=(0.9, 0.9, 0.9))
    same = equal(3, first=(0.5, 0.1), second=(0.5, 0.1))
    assert p_of_lead([ahead, ahead], 0, 1) == smallest_p(6) == 2 / 64
    assert p_of_lead([same, same], 0, 1) == 1.0


def test_the_profile_is_a_staircase() -> None:
    """rho(tau) as Dolan and More define it: ratios of 1, 2 and 2, and one that is infinite."""
    own = np.array([1.0, 2.0, math.inf, 2.0])
    assert [profile(own, tau) for tau in (1.0, 1.9, 2.0, 4.0)] == [0.25, 0.25, 0.75, 0.75]
    assert stairs(own) == [(1.0, 0.25), (2.0, 0.25), (2.0, 0.75), (4.0, 0.75)]


DOWN, FLAT, LOST = (0.5, 0.2), (0.5, 0.5), (0.5, math.nan)


@pytest.mark.parametrize(
    ("runs", "keys", "words"),
    [
        ({"iris": (DOWN, FLAT)}, {}, None),  # one workload
        ({"iris": (DOWN,), "wine": (DOWN,)}, {}, None),  # one schedule
        ({"iris": (DOWN, DOWN), "wine": (DOWN, DOWN)}, {}, "constant, schedule=cosine share the"),
        (
            {"iris": (LOST, LOST), "wine": (DOWN, FLAT)},
            {},
            "0.50 of 1: it reaches the target on 1 of them",
        ),
        (
            {"iris": (LOST, LOST), "wine": (LOST, LOST)},
            {},
            "Nobody reaches the target on any of 2 workloads.",
        ),
        (
            {"iris": (DOWN, FLAT), "wine": (DOWN, FLAT)},
            {"target": 0.1},
            "Nobody reaches the target on any of 2 workloads.",
        ),
        (
            {"iris": (DOWN, FLAT), "wine": (DOWN, FLAT)},
            {"target": {"iris": 0.5, "mnist": 1.0}},
            "answer.target: no workload is mnist; there are iris, wine",
        ),
        (
            {"iris": (DOWN, None), "wine": (DOWN, FLAT)},
            {},
            "schedule=cosine: 1 of 1 seeds failed (seed 0) on data=iris; not ranked",
        ),
        (
            {"iris": (DOWN, FLAT), "wine": (DOWN,)},
            {},
            "fewer than two workloads have a seed that all groups share",
        ),
    ],
)
def test_odd_inputs_are_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    runs: Mapping[str, Sequence[Losses]],
    keys: Mapping[str, Any],
    words: str | None,
) -> None:
    for data, own in runs.items():
        for schedule, losses in zip(("constant", "cosine"), own, strict=False):
            write(tmp_path, data, schedule, 0, losses)
    out, found = answered(tmp_path, capsys, **keys)
    assert (found is None) == (words is None)
    assert (words or "") in out
    assert words is not None or "Over all workloads" not in out


def test_keys_that_are_the_same_on_each_workload_belong_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Iris has one optimizer and wine another one, with two batch sizes: rows are counted."""
    for data, optimizer in (("iris", "adam"), ("wine", "sgd")):
        for size, loss in ((16, 0.2), (32, 0.5)):
            own = [f"data={data}", f"optimizer={optimizer}", f"trainer.batch_size={size}"]
            known = {"sha256": data.ljust(64, "0")}
            write_run(tmp_path / "runs", own, 0, loss, data=known)
    _, found = answered(tmp_path, capsys)
    assert [group["label"] for group in found["groups"]] == [
        "trainer.batch_size=16",
        "trainer.batch_size=32",
    ]
    first, _ = found["workloads"]
    assert (first["label"], first["unit"]) == ("data=iris optimizer=adam", "rows")
    # two epochs of 40 updates of 16 rows
    assert first["costs"] == {"trainer.batch_size=16": 80 * 16, "trainer.batch_size=32": None}


def test_tables_are_named_by_their_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name may have a dot, a space and a slash; the quotes of the command line are no part."""
    for path in ("'my t.csv'", "d/u.csv"):
        for schedule, loss in (("constant", 0.2), ("cosine", 0.5)):
            own = ["data=csv", f"data.path={path}", "data.target=y", f"schedule={schedule}"]
            write_run(tmp_path / "runs", own, 0, loss, data={"sha256": path.ljust(64, "0")})
    target = {"my t.csv": 0.3, "d/u.csv": 0.1}
    out, found = answered(tmp_path, capsys, target=target)
    assert "no workload is" not in out
    assert {each["target"] for each in found["workloads"]} == {0.3, 0.1}


def test_task_compare_gives_the_answer_of_the_multirun(tmp_path: Path) -> None:
    """Two data sets and two models are four workloads; the page and a picture have the profiles."""
    command = ("data=iris,wine", "model=linear,mlp", "schedule=constant,cosine", "seed=0,1")
    (done,) = forked(tmp_path, ("-m", *command, "trainer.max_epochs=2", "device=cpu"))
    assert (done.status, done.err) == (0, "")
    (again,) = forked(tmp_path, ("task=compare", f"runs=[{done.folder}]"))
    names = [Path(each.folder) / "answer.json" for each in (done, again)]
    first, second = (json.loads((tmp_path / name).read_text())["workloads"] for name in names)
    assert first == second
    assert {item["label"] for item in first["workloads"]} == {
        f"data={data} model={model}" for data in ("iris", "wine") for model in ("linear", "mlp")
    }
    assert first["verdict"] in done.out
    assert 'id="profiles"' in (tmp_path / done.folder / "comparison.html").read_text()
    assert (tmp_path / done.folder / "profiles.png").is_file()
    assert check(tmp_path / done.folder) == []
