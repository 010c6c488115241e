"""A run that is made longer or shorter under a schedule that goes by its length, and several runs from one checkpoint."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.compose import compose
from runner.config import parse
from runner.run_folder import read_columns, read_json
from runner.saved import config_of
from runner.schedules import Clock, table
from runner.schedules.extend import HOW, extended
from tests.command_line import BACKENDS, OTHER, forked

SCHEDULES = (
    "schedule=cosine schedule.warmup=5%", "schedule=linear", "schedule=wsd schedule.decay=25%", "schedule=one_cycle",
    "schedule=polynomial schedule.power=2 schedule.duration=80%", "schedule=sequence", "schedule=exponential",
    "schedule=from_torch schedule.class=CosineAnnealingLR schedule.args.T_max=30", "schedule=plateau schedule.of.name=tanh",
)  # fmt: skip
LR, EPOCH = 0.1, 12


def values_of(schedule: str) -> dict[str, Any]:
    found: dict[str, Any] = compose(schedule.split())["schedule"]
    return found


def rates(schedule: dict[str, Any], total: int) -> np.ndarray:
    config = parse({**compose([]), "schedule": schedule})
    return table(config.schedule, Clock(total, EPOCH), LR)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step", [37, 100])
def test_each_way_to_extend_is_its_formula_and_leaves_the_past_alone(schedule: str, step: int) -> None:
    """A run of 100 updates, at update 37 or at its end, that is to have 170: to the bit, by the plain schedule's own tables."""
    plain = values_of(schedule)
    old, new, again = rates(plain, 100), rates(plain, 170), rates(plain, 70)
    longer = rates({"name": "sequence", "clock": "own", "phases": [{"for": "100steps", **_of(plain)}]}, 170)
    made = {how: rates(extended(plain, how, step, 100, 170), 170) for how in HOW}
    for found in made.values():
        assert np.array_equal(found[:step], old[:step])
    assert np.array_equal(made["keep"][:100], old)
    assert np.array_equal(made["keep"], longer)
    assert np.array_equal(made["rescale"], np.concatenate([old[:step], new[step:]]))
    assert np.array_equal(made["append"], np.concatenate([old, again]))


def _of(schedule: dict[str, Any]) -> dict[str, Any]:
    return schedule["of"] if schedule["name"] == "plateau" else schedule


def test_what_ends_holds_its_end_where_it_is_kept() -> None:
    """linear from 0.1 to 0.02 over 100 updates: 0.02 from update 100 on."""
    kept = rates(extended({**values_of("schedule=linear"), "final_lr": 0.02}, "keep", 100, 100, 150), 150)
    assert (kept[100:] == 0.02).all()


def test_it_can_be_extended_again_and_again() -> None:
    """40 updates, then 60, then 100, appended each time: three cosines of 40, 20 and 40 updates."""
    plain = values_of("schedule=cosine")
    twice = extended(extended(plain, "append", 40, 40, 60), "append", 60, 60, 100)
    lengths = (0, 40, 60)
    assert np.array_equal(rates(twice, 100)[:60], np.concatenate([rates(plain, b - a) for a, b in pairwise(lengths)]))
    assert rates(twice, 100)[60] == LR


# Through the command line

SHORT = ("trainer.batch_size=100", "device=cpu")  # 13 updates an epoch
COSINE = ("schedule=cosine", "schedule.final_lr=1e-5", *SHORT, "trainer.max_steps=26")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("finished")
    stable = ("schedule=wsd", "schedule.decay=6steps", *SHORT, "trainer.max_steps=39", "trainer.keep_checkpoints=null")
    runs = {
        **{backend: (f"backend={backend}", "trainer.precision=exact", *COSINE) for backend in BACKENDS},
        "wsd": (*stable, "trainer.checkpoint_every=10steps"),
    }
    each = forked(here, *runs.values())
    assert [done.status for done in each] == [0] * len(each)
    return {name: here / done.folder for name, done in zip(runs, each, strict=True)}


def copied(folder: Path, here: Path) -> Path:
    return shutil.copytree(folder, here / folder.name, symlinks=True)


@pytest.mark.parametrize("how", HOW)
def test_a_finished_run_goes_on_as_it_is_told_and_repeats_to_the_bit(
    finished: dict[str, Path], tmp_path: Path, how: str
) -> None:
    """On the other backend; the config that is left says every rate of the run, since the whole of it can be verified."""
    backend = BACKENDS[HOW.index(how) % 2]  # type: ignore[arg-type]
    folder = copied(finished[backend], tmp_path)
    before = read_columns(folder / "trace.csv")["learning_rate"]
    (done,) = forked(
        tmp_path,
        (f"resume={folder}", "trainer.max_steps=40", f"schedule.on_extend={how}", f"backend={OTHER[backend]}"),
    )
    assert (done.status, done.err) == (0, "")
    assert f"on_extend {how}: the rate is " in done.out
    found = read_columns(folder / "trace.csv")["learning_rate"]
    assert np.array_equal(found[:26], before)
    first = {"keep": 1e-5, "append": 1e-3}.get(how)
    if first is None:  # 26 of 40 updates along the half wave from 1e-3 to 1e-5
        first = 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * 26 / 40)) / 2
    assert np.float32(found[26]) == np.float32(first)
    (verified,) = forked(tmp_path, (f"run={folder}", "task=verify", f"backend={backend}"))
    assert (verified.status, verified.err) == (0, "")
    assert "identical" in verified.out
    assert config_of(folder)["schedule"]["name"] == "sequence"


REFUSED = [
    (
        ["trainer.max_steps=40"],
        "schedule goes by the run's length, which was 26 steps and is to be 40;\n"
        "  say what it is from step 26 on: schedule.on_extend=keep (1e-05 to 1e-05), rescale (0.00028 to 1.15e-05), "
        "append (0.001 to 2.24e-05)",
    ),
    (
        ["trainer.max_steps=40", "schedule.on_extend=rescal"],
        "schedule.on_extend must be one of keep, rescale, append, got rescal; did you mean rescale?",
    ),
    (
        ["trainer.max_steps=20", "schedule.on_extend=append", "checkpoint=13"],
        "schedule.on_extend must be one of keep, rescale, got append",
    ),
    (
        ["schedule.on_extend=keep"],
        "schedule.on_extend is for a run of another length: it needs trainer.max_epochs or trainer.max_steps",
    ),
]


@pytest.mark.parametrize(("said", "expected"), REFUSED)
def test_it_asks_what_is_meant_and_shows_what_each_would_do(
    finished: dict[str, Path], tmp_path: Path, said: list[str], expected: str
) -> None:
    """rescale at update 26 of 40: 1e-5 + 9.9e-4 (1 + cos(26 pi / 40)) / 2 = 2.8e-4, as a bc agrees; the last one by 39 / 40."""
    (done,) = forked(tmp_path, (f"resume={finished['lightning']}", *said))
    assert (done.status, done.out, done.err) == (2, "", f"error: {expected}\n")


def test_runs_branch_from_one_checkpoint_each_in_its_own_folder(finished: dict[str, Path], tmp_path: Path) -> None:
    """The decays of a WSD run from its stable part: 6 updates before the end of runs of 26 and 36 updates, both from step 20.
    They are the runs that would have had these lengths from the beginning, and the one that they come from is untouched."""
    source = copied(finished["wsd"], tmp_path)
    untouched = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    alone = ("schedule=wsd", "schedule.decay=6steps", *SHORT, "trainer.checkpoint_every=10steps")
    done, *whole = forked(
        tmp_path,
        ("-m", f"resume={source}", "checkpoint=20", "trainer.max_steps=26,36"),
        *((*alone, f"trainer.max_steps={num}") for num in (26, 36)),
    )
    assert (done.status, done.err) == (0, "")
    assert "2 of 2 jobs completed" in done.out
    for num, other in zip((26, 36), whole, strict=True):
        folder, expected = tmp_path / done.folder / f"checkpoint=20,trainer.max_steps={num}", tmp_path / other.folder
        assert (folder / "trace.csv").read_text() == (expected / "trace.csv").read_text()
        hashes = [read_json(path / "result.json")["weights_sha256"] for path in (folder, expected)]
        assert hashes[0] == hashes[1]
        assert read_columns(folder / "trace.csv")["learning_rate"][num - 7] == 1e-3
        assert read_columns(folder / "trace.csv")["learning_rate"][num - 1] < 1e-3
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == untouched
    assert done.out.splitlines()[-1].startswith(f"to copy  python -m runner -m resume={source} checkpoint=20 ")


# trainer.keep_checkpoints


def test_so_many_checkpoints_are_kept_as_are_asked_for(finished: dict[str, Path], tmp_path: Path) -> None:
    """All of 39 updates by tens; of a run that went on, two (the default), three, and the best one besides."""
    steps = sorted(int(path.name) for path in (finished["wsd"] / "checkpoints").glob("[0-9]*"))
    assert steps == [10, 20, 30, 39]
    copies = [copied(finished["wsd"], tmp_path / str(num)) for num in (2, 3)]
    longer = ("trainer.max_steps=75", "schedule.on_extend=append")
    each = forked(
        tmp_path,
        *(
            (f"resume={folder}", *longer, f"trainer.keep_checkpoints={n}")
            for n, folder in zip((2, 3), copies, strict=True)
        ),
    )
    for done, folder, expected in zip(each, copies, ([70, 75], [60, 70, 75]), strict=True):
        assert (done.status, done.err) == (0, "")
        best = int((folder / "checkpoints" / "best").resolve().name)
        assert sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")) == sorted({*expected, best})
