"""Shared trunks of a race: updates that several schedules have in common are made once."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from runner.cli import commands, trunks
from runner.cli.compose import Composer, compose
from runner.cli.overrides import jobs, parse_overrides
from runner.cli.racing import Racing
from runner.cli.trunks import Branch, Trunks, find, kept, waves
from runner.config.schema import parse
from runner.run.run_folder import read_json
from runner.run.trunk import shared_steps
from tests.command_line import forked
from tests.rows import slow_but

COMMON = ("data=wine", "seed=0", "trainer.max_epochs=10")  # 4 updates an epoch
WSD = (*COMMON, "schedule=wsd")


def steps(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    values = {name: compose(name) for name in (first, second)}
    found = find({name: (parse(value), value) for name, value in values.items()}, [])
    return found.steps.get((first, second), 0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # 40 updates: a decay over the last 40 % begins at update 24, over the last 30 % at 28
        ((*WSD, "schedule.decay=20%"), (*WSD, "schedule.decay=40%"), 24),
        ((*COMMON, "schedule=constant"), (*WSD, "schedule.decay=30%"), 28),
        # both decay over 8 updates: the shorter one from update 32 of 40 on
        (
            (*WSD, "schedule.decay=8steps"),
            (*WSD[:-2], "trainer.max_epochs=20", "schedule=wsd", "schedule.decay=8steps"),
            32,
        ),
        # checkpoints after every 9 updates: the last one before the decay is that of 18
        (
            (*WSD, "schedule.decay=20%", "trainer.checkpoint_every=9steps"),
            (*WSD, "schedule.decay=40%", "trainer.checkpoint_every=9steps"),
            18,
        ),
        # equal rates: the last checkpoint within the shorter run of 40 updates
        ((*COMMON, "schedule=constant"), (*COMMON[:2], "trainer.max_epochs=20"), 36),
        ((*COMMON, "schedule=linear"), (*COMMON, "schedule=cosine"), 0),
        ((*WSD, "optimizer.lr=0.1"), (*WSD, "optimizer.lr=0.1", "model=linear"), 0),
        ((*WSD, "trainer.checkpoint_every=null"), (*COMMON, "schedule=constant"), 0),
        ((*WSD, "optimizer.ema=0.9"), (*WSD, "optimizer.ema=0.9", "schedule.decay=40%"), 0),
        ((*COMMON, "schedule=plateau"), (*COMMON, "schedule=constant"), 0),
    ],
)
def test_a_trunk_ends_at_the_last_checkpoint_before_the_rates_part(
    first: tuple[str, ...], second: tuple[str, ...], expected: int
) -> None:
    assert steps(first, second) == expected


def test_a_schedule_branches_from_the_earlier_one_with_the_longest_trunk() -> None:
    """c branches from b, which branches from a; d has nothing in common; without b, c branches
    from a."""
    a, b, c, d = (("a",), ("b",), ("c",), ("d",))
    trunks = Trunks({(a, b): 10, (a, c): 10, (b, c): 30})
    branches = trunks.branches([a, b, c, d])
    assert branches == {b: Branch(a, 10), c: Branch(b, 30)}
    assert waves([a, b, c, d], branches) == [[a, d], [b], [c]]
    assert kept(branches) == {a: {10}, b: {30}}
    assert trunks.branches([a, c]) == {c: Branch(a, 10)}


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_runs_that_branch_are_those_of_a_plain_multirun_bit_by_bit(
    backend: str, tmp_path: Path
) -> None:
    """Weights, optimizer's state, trace, metrics and best epoch. Decays over 33 % and 66 % of 24
    updates share the first 34 %, 8.2: 9 updates and 3 epochs of each seed."""
    common = ("-m", f"backend={backend}", "data=iris", "schedule=wsd", "schedule.decay=33%,66%")
    lines = (*common, "seed=0,1,2", "trainer.max_epochs=8", "device=cpu")
    elsewhere = (*lines, "output.root=plain")  # they train at once, and a race copies runs
    race, plain = forked(tmp_path, (*lines, "race.budget=auto"), elsewhere)
    assert (race.status, race.err, plain.status) == (0, "", 0)
    raced, whole = (tmp_path / done.folder for done in (race, plain))
    shared = []
    for folder in sorted(path for path in whole.iterdir() if path.is_dir()):
        branched = raced / folder.name
        shared.append(shared_steps(branched))
        first, second = (read_json(path / "result.json") for path in (folder, branched))
        for key in ("weights_sha256", "metrics", "best", "steps", "epochs", "config_sha256"):
            assert first[key] == second[key]
        manifests = [
            json.loads((path / "checkpoints" / "last" / "manifest.json").read_text())
            for path in (folder, branched)
        ]
        for part in ("weights.safetensors", "optimizer.safetensors"):
            assert manifests[0][part] == manifests[1][part]
        assert (folder / "trace.csv").read_bytes() == (branched / "trace.csv").read_bytes()
        rows = [
            [row[:-1] for row in csv.reader((path / "metrics.csv").open())]
            for path in (folder, branched)
        ]
        assert rows[0] == rows[1]
    assert sorted(shared) == [0, 0, 0, 9, 9, 9]
    cost = read_json(raced / "answer.json")["race"]["cost"]
    assert (cost["updates"], cost["shared_updates"]) == (6 * 24 - 27, 27)
    assert "27 more updates were shared by several runs" in race.out


def race_of(
    lines: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[commands.Request, list[str]]:
    """The request of a race that trains nothing, and the kinds of the plans that it makes."""
    lines = [*lines, "data=iris", "seed=0,1,2", "schedule=constant,cosine", f"output.root={root}"]
    expanded, made = jobs(lines, True, None), list[str]()
    for name in ("plan", "replanned"):
        whole = getattr(trunks, name)
        monkeypatch.setattr(
            trunks, name, lambda *a, name=name, whole=whole: made.append(name) or whole(*a)
        )
    monkeypatch.setattr(Racing, "run", lambda *_: None)
    parsed = parse_overrides(lines)
    return commands.Request(lines, parsed, expanded, True, Composer(None)), made


def race(request: commands.Request, root: Path, expanded: Any) -> None:
    hydra: Any = None
    jobs = [[*each] for each in expanded]
    commands._Jobs(hydra, request, root, None, None, None).race(jobs)


def test_a_race_plans_each_schedule_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For the check of its budget, and for its trunks; its workers get no plan."""
    request, made = race_of(["race.budget=500epochs"], tmp_path, monkeypatch)
    assert commands._checked(request) == (None, True)
    race(request, tmp_path, request.jobs)
    assert made == ["plan", "replanned"]
    state = request.__getstate__()
    assert not {"frozen", "trunks"} & state.keys()
    assert state["plans"] == []


def test_tuned_schedules_are_planned_again_only_at_other_rates_and_on_the_same_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The check of the budget plans both schedules at the first rate of their grids; tuning then
    chooses another rate for the second one."""
    request, made = race_of(["race.budget=900epochs", "tune=lr"], tmp_path, monkeypatch)
    tuned, is_race = commands._checked(request)
    assert tuned is not None
    assert (is_race, made) == (True, ["plan", "replanned"])
    first, second = ([point for point in tuned.first() if point[0] == i] for i in (0, 1))
    race(request, tmp_path, tuned.jobs([first[0], second[1]], tuned.seeds))
    assert made == ["plan", "replanned", "replanned"]
