"""A run that is made longer or shorter under a schedule that goes by its length, and several runs
from one checkpoint."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.run.run_folder import read_columns, read_json
from runner.run.saved import config_of
from runner.schedules import Clock, table
from runner.schedules.extend import HOW, extended
from tests.command_line import BACKENDS, OTHER, forked
from tests.rows import slow_but
from tests.run.test_nonfinite import MODEL
from tests.run.test_resume import records

SCHEDULES = (
    "schedule=cosine schedule.warmup=5%", "schedule=linear", "schedule=wsd schedule.decay=25%",
    "schedule=one_cycle",
    "schedule=polynomial schedule.power=2 schedule.duration=80%", "schedule=sequence",
    "schedule=exponential",
    "schedule=from_torch schedule.class=CosineAnnealingLR schedule.args.T_max=30",
    "schedule=plateau schedule.of.name=tanh",
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
def test_each_way_to_extend_is_its_formula_and_leaves_the_past_alone(
    schedule: str, step: int
) -> None:
    """A run of 100 updates, at update 37 or at its end, that is to have 170: to the bit, by the
    plain schedule's own tables."""
    plain = values_of(schedule)
    old, new, again = rates(plain, 100), rates(plain, 170), rates(plain, 70)
    longer = rates(
        {"name": "sequence", "clock": "own", "phases": [{"for": "100steps", **_of(plain)}]}, 170
    )
    made = {how: rates(extended(plain, how, step, 100), 170) for how in HOW}
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
    kept = rates(
        extended({**values_of("schedule=linear"), "final_lr": 0.02}, "keep", 100, 100), 150
    )
    assert (kept[100:] == 0.02).all()


def test_it_can_be_extended_again_and_again() -> None:
    """40 updates, then 60, then 100, appended each time: three cosines of 40, 20 and 40 updates."""
    plain = values_of("schedule=cosine")
    twice = extended(extended(plain, "append", 40, 40), "append", 60, 60)
    lengths = (0, 40, 60)
    assert np.array_equal(
        rates(twice, 100)[:60], np.concatenate([rates(plain, b - a) for a, b in pairwise(lengths)])
    )
    assert rates(twice, 100)[60] == LR


# Through the command line

SHORT = ("trainer.batch_size=100", "device=cpu")  # 13 updates an epoch
# A small network, and 16 whole batches an epoch, for Keras to compile little
COSINE = (
    *("schedule=cosine", "schedule.final_lr=1e-5", "trainer.max_steps=26", "device=cpu"),
    *("trainer.precision=exact", "model=linear", "trainer.batch_size=80"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("finished")
    stable = (
        "schedule=wsd",
        "schedule.decay=6steps",
        *SHORT,
        "trainer.max_steps=39",
        "trainer.keep_checkpoints=null",
    )
    runs = {
        **{backend: (f"backend={backend}", *COSINE) for backend in BACKENDS},
        "wsd": (*stable, "trainer.checkpoint_every=10steps"),
    }
    each = forked(here, *runs.values())
    assert [done.status for done in each] == [0] * len(each)
    return {name: here / done.folder for name, done in zip(runs, each, strict=True)}


def copied(folder: Path, here: Path) -> Path:
    return shutil.copytree(folder, here / folder.name, symlinks=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", slow_but(HOW, "keep"))
def test_a_finished_run_goes_on_as_it_is_told_and_repeats_to_the_bit(
    finished: dict[str, Path], tmp_path: Path, how: str
) -> None:
    """On the other backend; the config that is left says every rate of the run, since the whole of
    it can be verified."""
    backend = BACKENDS[HOW.index(how) % 2]  # type: ignore[arg-type]
    folder = copied(finished[backend], tmp_path)
    before = read_columns(folder / "trace.csv")["learning_rate"]
    (done,) = forked(
        tmp_path,
        (
            f"resume={folder}",
            "trainer.max_steps=40",
            f"schedule.on_extend={how}",
            f"backend={OTHER[backend]}",
        ),
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


GROUP = "optimizer.groups[0].schedule"
REFUSED = [
    (
        ["trainer.max_steps=40"],
        "schedule depends on the run's length, which changes from 26 to 40 steps;\n"
        "  choose its values from step 26 on: schedule.on_extend=keep (1e-05 to 1e-05), "
        "rescale (0.00028 to 1.15e-05), "
        "append (0.001 to 2.24e-05)",
    ),
    (
        ["trainer.max_steps=40", "schedule.on_extend=rescal"],
        (
            "schedule.on_extend must be one of keep, rescale, append, got rescal; did you mean "
            "rescale?"
        ),
    ),
    (
        ["trainer.max_steps=20", "schedule.on_extend=append", "checkpoint=16"],
        "schedule.on_extend must be one of keep, rescale, got append",
    ),
    (
        ["schedule.on_extend=keep"],
        (
            "schedule.on_extend has no effect if the run's length does not change; set "
            "trainer.max_epochs or trainer.max_steps too"
        ),
    ),
]


@pytest.mark.parametrize(("said", "expected"), REFUSED)
def test_it_asks_what_is_meant_and_shows_what_each_would_do(
    finished: dict[str, Path], tmp_path: Path, said: list[str], expected: str
) -> None:
    """rescale at update 26 of 40: 1e-5 + 9.9e-4 (1 + cos(26 pi / 40)) / 2 = 2.8e-4, as a bc agrees;
    the last one by 39 / 40."""
    (done,) = forked(tmp_path, (f"resume={finished['lightning']}", *said))
    assert (done.status, done.out, done.err) == (2, "", f"error: {expected}\n")


@pytest.mark.slow
def test_the_schedule_of_a_group_is_extended_like_that_of_the_run(tmp_path: Path) -> None:
    """A cosine over 26 updates for the biases, beside a constant rate. Kept, it holds its last
    rate; unsaid, the three ways are those of a run's schedule in REFUSED."""
    group = "optimizer.groups=[{match: '*/bias', schedule: {name: cosine, final_lr: 1e-5}}]"
    (done,) = forked(tmp_path, (*COSINE[2:], group))
    longer = (f"resume={done.folder}", "trainer.max_steps=40")
    (refused,) = forked(tmp_path, longer)  # not beside the next one, which moves the run on
    (kept,) = forked(tmp_path, (*longer, "schedule.on_extend=keep"))
    of_run = REFUSED[0][1]
    assert refused.err == f"error: {of_run.replace('schedule', GROUP, 1)}\n"
    assert (kept.status, kept.err) == (0, "")
    trace = read_columns(tmp_path / done.folder / "trace.csv")
    assert (trace["learning_rate"] == 1e-3).all()
    cosine = 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * np.arange(26) / 26)) / 2
    expected = np.append(cosine, np.full(14, 1e-5))
    # one rounding to float32
    np.testing.assert_allclose(trace["learning_rate/*/bias"], expected, rtol=2**-23)


@pytest.mark.slow
def test_runs_branch_from_one_checkpoint_each_in_its_own_folder(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    """The decays of a WSD run from its stable part: 6 updates before the end of runs of 26 and 36
    updates, both from step 20. They are the runs that would have had these lengths from the
    beginning, and the one that they come from is untouched."""
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
        folder, expected = (
            tmp_path / done.folder / f"trainer.max_steps-{num}",
            tmp_path / other.folder,
        )
        assert (folder / "trace.csv").read_text() == (expected / "trace.csv").read_text()
        hashes = [read_json(path / "result.json")["weights_sha256"] for path in (folder, expected)]
        assert hashes[0] == hashes[1]
        assert read_columns(folder / "trace.csv")["learning_rate"][num - 7] == 1e-3
        assert read_columns(folder / "trace.csv")["learning_rate"][num - 1] < 1e-3
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == untouched
    assert done.out.splitlines()[-1].startswith(
        f"to copy  python -m runner -m resume={source} checkpoint=20 "
    )


# Everything with a state, of a run that was made longer: it is the run that never ended. 20 updates
# an epoch

_LINEAR = ("model=linear", "trainer.batch_size=64", "optimizer.lr=0.1")
STATES = {
    "plateau": (
        *_LINEAR, "schedule=plateau", "schedule.patience=1", "schedule.factor=0.5",
        "schedule.threshold=0.2",
    ),
    "early stopping": (*_LINEAR, "trainer.early_stopping_patience=2",
        "trainer.early_stopping_min_delta=0.02"),
    "the best epoch, the means of one": _LINEAR,
    "all of a backend": (  # slots, an average, statistics, masks, clipping, rates of a table
        "schedule=plateau", "schedule.patience=0", "schedule.threshold=0.9", "schedule.factor=0.5",
        "model.layers=[{layer: dense, units: 8},{layer: batch_norm},{layer: dropout, rate: 0.2},"
        "{layer: dense, units: outputs}]",
        "trainer.batch_size=32", "trainer.accumulate_grad_batches=2",
        "trainer.gradient_clip_norm=0.5", "optimizer=nadam", "optimizer.ema=0.9",
    ),
    "an average of epochs": (*_LINEAR, "optimizer.lawa=3"),
    "skipped updates": (MODEL, "trainer.batch_size=64", "trainer.on_nonfinite=skip",
        "trainer.max_skipped=10", "data=npz"),
}  # fmt: skip
_QUICK = {("lightning", "all of a backend")}


def _spoiled(here: Path) -> tuple[str, ...]:
    """1,280 rows, one of them finite with a sum that is not: the update that it is in has no finite
    loss."""
    x = np.random.default_rng(0).normal(size=(1280, 4)).astype(np.float32)
    x[17] = 3e38
    np.savez(here / "data.npz", x=x, y=np.arange(1280) % 2)
    return (
        f"data.path={here / 'data.npz'}",
        "data.val_fraction=0",
        "data.test_fraction=0",
        "trainer.monitor=train/loss",
    )


@pytest.mark.parametrize(
    ("backend", "state"),
    [
        pytest.param(backend, state, marks=() if (backend, state) in _QUICK else pytest.mark.slow)
        for backend in BACKENDS
        for state in STATES
    ],
)
def test_a_longer_run_equals_the_run_that_never_ended(
    tmp_path: Path, backend: str, state: str
) -> None:
    """200 updates at once, and ended at 110, inside the sixth epoch, or at 100 first; early
    stopping after 80 of them, and ended at 50 or 60. Rates, losses, metrics, the best epoch and the
    weights are the same to the bit."""
    run = (
        *STATES[state],
        f"backend={backend}",
        "device=cpu",
        *(_spoiled(tmp_path) if "npz" in STATES[state][-1] else ()),
    )
    ends = (50, 60) if state == "early stopping" else (110, 100)
    whole, *short = forked(tmp_path, *((*run, f"trainer.max_steps={num}") for num in (200, *ends)))
    before = [read_json(tmp_path / done.folder / "result.json") for done in short]
    longer = forked(
        tmp_path, *((f"resume={done.folder}", "trainer.max_steps=200") for done in short)
    )
    expected = read_json(tmp_path / whole.folder / "result.json")
    for end, done, result in zip(ends, longer, before, strict=True):
        assert (done.status, done.err) == (0, "")
        assert result["steps"] == end
        assert result["best"]["step"] % 20 == 0
        assert records(tmp_path / done.folder) == records(tmp_path / whole.folder)
        found = read_json(tmp_path / done.folder / "result.json")
        assert found["skipped"] == expected["skipped"]
    if state == "early stopping":
        assert (expected["steps"], expected["stopped_early"]) == (80, True)
    if state == "skipped updates":
        assert len(expected["skipped"]) == 10
    if state in ("plateau", "all of a backend"):
        assert len(set(read_columns(tmp_path / whole.folder / "trace.csv")["learning_rate"])) > 2


@pytest.mark.slow
def test_a_run_shorter_than_an_epoch_has_its_one_evaluation_as_its_best(tmp_path: Path) -> None:
    """A longer run begins anew: its best is that of a whole epoch."""
    (short,) = forked(tmp_path, (*_LINEAR, "device=cpu", "trainer.max_steps=5"))
    result = read_json(tmp_path / short.folder / "result.json")
    assert (result["best"]["step"], result["best"]["value"]) == (5, result["metrics"]["val/loss"])
    assert (tmp_path / short.folder / "checkpoints" / "best").resolve().name == "5"
    longer, whole = forked(
        tmp_path,
        (f"resume={short.folder}", "trainer.max_steps=50"),
        (*_LINEAR, "device=cpu", "trainer.max_steps=50"),
    )
    assert records(tmp_path / longer.folder) == records(tmp_path / whole.folder)
    assert (tmp_path / short.folder / "checkpoints" / "best").resolve().name == "40"


def test_a_run_that_is_over_when_its_metric_stalls_has_ended_early(tmp_path: Path) -> None:
    """After 80 updates, the last ones of that run: made longer it is refused, and with more
    patience it goes on to what it had been with that patience from the beginning."""
    run = (*STATES["early stopping"], "device=cpu")
    short, whole = forked(
        tmp_path,
        (*run, "trainer.max_steps=80"),
        (*run[:-3], "trainer.early_stopping_patience=3", *run[-2:], "trainer.max_steps=400"),
    )
    assert read_json(tmp_path / short.folder / "result.json")["stopped_early"] is True
    refused, more = forked(
        tmp_path,
        (f"resume={short.folder}", "trainer.max_steps=400"),
        ((
            f"resume="
            f"{shutil.copytree(tmp_path / short.folder, tmp_path / 'more', symlinks=True)}"
        ), "trainer.max_steps=400",
         "trainer.early_stopping_patience=3"),
    )  # fmt: skip
    assert (refused.status, refused.err) == (
        2,
        (
            f"error: resume: {short.folder} stopped early at step 80; to train longer, increase "
            f"trainer.early_stopping_patience, now 2\n"
        ),
    )
    assert records(tmp_path / "more") == records(tmp_path / whole.folder)
    assert more.status == 0


# trainer.keep_checkpoints


def test_so_many_checkpoints_are_kept_as_are_asked_for(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    """All of 39 updates by tens; of a run that went on, two (the default), three, and the best one
    besides."""
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
        assert sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")) == sorted(
            {*expected, best}
        )
