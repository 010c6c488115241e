"""resume=FOLDER by its rules: what is read, changed, copied and refused, in folders that no
training made."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.cli.overrides import parse_overrides
from runner.config.schema import Config, parse
from runner.errors import ConfigError, RunError
from runner.plan import plan
from runner.run import checkpoint
from runner.run.resume import Resumed, branch, check, resume, with_saved_threads
from runner.run.run_folder import write_config
from runner.schedules.units import Periods
from runner.spec import TrainState

COSINE = ("schedule=cosine", "schedule.final_lr=1e-5")
RUN = ("model=linear", "device=cpu", "trainer.batch_size=100", "trainer.max_steps=26")
DATA = {
    "task": "classification", "classes": ["a", "b"], "features": [], "input_shape": [2],
    "num_targets": 1, "sha256": "0" * 64, "x_scaling": None, "y_scaling": None,
}  # fmt: skip


def state(step: int) -> TrainState:
    weights = {"dense_0/kernel": np.full((2, 3), step, dtype=np.float32)}
    slots = {"momentum": {"dense_0/kernel": np.zeros((2, 3), dtype=np.float32)}}
    return TrainState(step, weights, slots, {"norm/mean": np.zeros(3, dtype=np.float32)})


def write_csv(path: Path, header: str, rows: list[int]) -> None:
    path.write_text("".join(f"{line}\n" for line in (header, *(f"{n},{n},0.5" for n in rows))))


def save(folder: Path, overrides: Sequence[str] = COSINE) -> Path:
    """A run with checkpoints at 13, the end of its first epoch, and at 20."""
    folder.mkdir(parents=True)
    write_config(folder, compose([*RUN, *overrides]))
    (folder / "data.json").write_text(json.dumps(DATA))
    (folder / "environment.json").write_text("{}")
    write_csv(folder / "trace.csv", "step,learning_rate,loss", [*range(20)])
    (folder / "metrics.csv").write_text("epoch,step,val/loss\n1,13,0.5\n")
    for step in (13, 20):
        numbers = {"stopped_early": False, "best": {"step": 13}, "threads": 1}
        checkpoint.write(folder, state(step), numbers)
        checkpoint.point(folder, "last", step)
    checkpoint.point(folder, "best", 13)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "run", symlinks=True)


def resumed(folder: Path, *overrides: str) -> Resumed:
    return resume(folder, parse_overrides([f"resume='{folder}'", *overrides]))


def refused(folder: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        resumed(folder, *overrides)
    return str(error.value)


# Files that a resume reads


def test_a_run_goes_on_from_its_last_checkpoint_with_the_config_that_it_saved(folder: Path) -> None:
    found = resumed(folder)
    assert (found.folder, found.state.step) == (folder, 20)
    assert (found.changes, found.notes) == ({}, [])
    assert found.numbers["best"] == {"step": 13}
    said = ("task", "resume", "run", "checkpoint")
    assert [found.values[key] for key in said] == ["train", None, None, "last"]
    assert found.config.trainer.batch_size == 100
    assert found.config.schedule.name == "cosine"


def test_what_may_change_is_changed_and_told_with_what_it_was(folder: Path) -> None:
    found = resumed(folder, "backend=keras", "trainer.keep_checkpoints=5", "task=train")
    assert found.changes == {
        "backend": ("lightning", "keras"), "trainer.keep_checkpoints": (2, 5),
    }  # fmt: skip
    assert (found.config.backend, found.config.trainer.keep_checkpoints) == ("keras", 5)
    same = resumed(folder, "backend=lightning", "trainer.keep_checkpoints=2")
    assert same.changes == {}


@pytest.mark.parametrize("task", ["evaluate", "verify"])
def test_another_task_than_training_is_refused(folder: Path, task: str) -> None:
    expected = f"resume=FOLDER needs task=train, got task={task}"
    assert refused(folder, "backend=keras", f"task={task}") == expected


def test_a_run_goes_on_from_the_checkpoint_that_is_asked_for(folder: Path) -> None:
    found = resumed(folder, "checkpoint=13")
    assert (found.state.step, found.values["checkpoint"]) == (13, "last")
    assert found.changes == {"checkpoint": ("last", 13)}
    assert resumed(folder, "checkpoint=best").state.step == 13
    expected = f"{folder} has no checkpoint 12; it has 13, 20, best, last"
    assert refused(folder, "checkpoint=12") == expected


def test_of_a_damaged_last_checkpoint_the_one_before_it_is_taken_and_one_asked_for_is_not(
    folder: Path,
) -> None:
    path = folder / "checkpoints" / "20" / "state.json"
    path.write_text("{}")
    damage = f"{path} does not match its SHA-256 in manifest.json: the checkpoint is damaged"
    found = resumed(folder)
    assert found.state.step == 13
    assert found.notes == [f"warning: {damage}; resuming from step 13"]
    with pytest.raises(RunError, match=f"^{re.escape(damage)}$"):
        resumed(folder, "checkpoint=20")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (None, (False, [], None)),
        ("{", (False, [], None)),
        ("{}", (False, [], None)),
        ('{"status": "completed", "overrides": ["seed=3"]}', (True, ["seed=3"], None)),
        ('{"status": "failed", "overrides": [], "config_dir": "mine"}', (False, [], "mine")),
        ('{"status": "aborted", "config_dir": null}', (False, [], None)),
    ],
)
def test_whether_the_run_was_completed_is_as_result_json_says(
    folder: Path, result: str | None, expected: tuple[bool, list[str], str | None]
) -> None:
    """A run that was killed has none, or half of one."""
    if result is not None:
        (folder / "result.json").write_text(result)
    found = resumed(folder)
    assert (found.is_completed, found.overrides, found.config_dir) == expected


EXTENSIONS = [
    (COSINE, ["trainer.max_steps=40", "schedule.on_extend=append", "backend=keras"]),
    (["experiment=chapter_step"], ["trainer.max_epochs=12"]),
    (
        ["schedule=plateau", "schedule.of.name=cosine", "schedule.factor=0.5"],
        ["trainer.max_steps=40", "schedule.on_extend=rescale"],
    ),
    (  # its `of` has a warm-up, which a sequence has not
        ["schedule=plateau_warmup"],
        ["trainer.max_steps=40", "schedule.on_extend=keep"],
    ),
    (
        ["optimizer.groups=[{match: '*/bias', schedule: {name: cosine, final_lr: 1e-5}}]"],
        ["trainer.max_steps=40", "schedule.on_extend=append"],
    ),
    (
        ["optimizer.schedules.beta1.name=cosine", "optimizer.schedules.beta1.final_lr=0.5"],
        ["trainer.max_steps=40", "schedule.on_extend=keep", "logger=tensorboard"],
    ),
]


@pytest.mark.parametrize("config_dir", ["mine", None])
@pytest.mark.parametrize(("first", "changes"), EXTENSIONS)
def test_the_overrides_of_a_run_that_changed_compose_to_its_config(
    tmp_path: Path, first: list[str], changes: list[str], config_dir: str | None
) -> None:
    """A comparison prints them to copy. The process was killed: there is no result.json."""
    folder = save(tmp_path / "run", first)
    (folder / "environment.json").write_text(
        json.dumps({"overrides": [*RUN, *first], "config_dir": config_dir})
    )
    found = resumed(folder, *changes)
    assert compose(found.overrides) == found.values
    assert found.config_dir == config_dir


def test_the_overrides_of_an_extended_run_have_no_default(folder: Path) -> None:
    """They are its label in a comparison."""
    (folder / "environment.json").write_text(json.dumps({"overrides": [*RUN, *COSINE]}))
    found = resumed(folder, "trainer.max_steps=40", "schedule.on_extend=append").overrides
    phases = "{for:26steps,name:cosine,final_lr:1e-05},{for:rest,name:cosine,final_lr:1e-05}"
    assert found == [
        *RUN[:-1],
        "trainer.max_steps=40",
        "schedule=sequence",
        f"schedule.phases=[{phases}]",
    ]


def test_the_overrides_are_those_of_the_last_session(folder: Path) -> None:
    """The second session was killed; the first one wrote result.json."""
    sessions = {"overrides": ["seed=1"], "resumed": [{"overrides": ["seed=1", "logger=wandb"]}]}
    (folder / "environment.json").write_text(json.dumps(sessions))
    (folder / "result.json").write_text('{"status": "interrupted", "overrides": ["seed=1"]}')
    assert resumed(folder).overrides == ["seed=1", "logger=wandb"]


def test_the_overrides_of_a_branch_stay_those_of_a_branch(folder: Path) -> None:
    """Its rates so far are those of the run that it came from."""
    lines = ["resume=a", "trainer.max_steps=26", "schedule.on_extend=keep"]
    (folder / "environment.json").write_text(json.dumps({"overrides": lines}))
    found = resumed(folder, "trainer.max_steps=40", "schedule.on_extend=rescale")
    assert found.overrides == ["resume=a", "trainer.max_steps=40", "schedule.on_extend=rescale"]


# A run of another length. The cosine from 1e-3 to 1e-5: at update 20 of 40, half way, 5.05e-4


def test_what_goes_by_the_length_asks_for_a_way_and_shows_each(folder: Path) -> None:
    """rescale: update 20 and 39 of 40; append: update 20 of 26, and 13 of 14 of the second."""

    def rate(u: float) -> str:
        return f"{1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * u)) / 2:.3g}"

    assert refused(folder, "trainer.max_steps=40") == (
        "schedule depends on the run's length, which changes from 26 to 40 steps;\n"
        f"  choose its values from step 20 on: schedule.on_extend=keep ({rate(20 / 26)} to 1e-05), "
        f"rescale ({rate(20 / 40)} to {rate(39 / 40)}), "
        f"append ({rate(20 / 26)} to {rate(13 / 14)})"
    )


@pytest.mark.parametrize(
    ("how", "first", "last"),
    [("keep", 20 / 26, 1.0), ("rescale", 20 / 40, 39 / 40), ("append", 20 / 26, 13 / 14)],
)
def test_a_way_to_extend_is_written_into_the_config(
    folder: Path, how: str, first: float, last: float
) -> None:
    found = resumed(folder, "trainer.max_steps=40", f"schedule.on_extend={how}")
    rates = plan(found.config).rates()
    each = [1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * u)) / 2 for u in (first, last)]
    assert [rates[20], rates[39]] == pytest.approx(each, rel=1e-12)
    assert found.notes == [f"on_extend {how}: the rate is {each[0]:.3g} from step 20 on"]
    assert found.changes == {"trainer.max_steps": (26, 40)}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.max_steps=40", "schedule.on_extend=rescal"],
            "must be one of keep, rescale, append, got rescal; did you mean rescale?"),
        (["trainer.max_steps=22", "schedule.on_extend=append"],
            "must be one of keep, rescale, got append"),
        # more epochs, of which max_steps takes no notice
        (["trainer.max_epochs=30", "schedule.on_extend=append"],
            "must be one of keep, rescale, got append"),
        (["schedule.on_extend=keep"],
            "has no effect if the run's length does not change; set trainer.max_epochs or "
            "trainer.max_steps too"),
        (["backend=keras", "schedule.on_extend=keep"],
            "has no effect if the run's length does not change; set trainer.max_epochs or "
            "trainer.max_steps too"),
    ],
)  # fmt: skip
def test_a_way_to_extend_that_does_not_fit_is_refused(
    folder: Path, overrides: list[str], expected: str
) -> None:
    assert refused(folder, *overrides) == f"schedule.on_extend {expected}"


@pytest.mark.parametrize("num", [12, 20])
def test_a_run_that_becomes_shorter_than_it_is_asks_nothing(folder: Path, num: int) -> None:
    """`check` refuses it: nothing is left to train."""
    found = resumed(folder, f"trainer.max_steps={num}")
    assert (found.config.trainer.max_steps, found.config.schedule.name) == (num, "cosine")
    assert found.notes == []


def test_what_does_not_go_by_the_length_is_extended_as_it_is(tmp_path: Path) -> None:
    """It may be given another way to do so, which is taken."""
    folder = save(tmp_path / "run", ["schedule=constant"])
    found = resumed(folder, "trainer.max_steps=40", "backend=keras")
    assert (found.config.schedule.name, found.notes) == ("constant", [])
    assert found.changes == {"backend": ("lightning", "keras"), "trainer.max_steps": (26, 40)}
    kept = resumed(folder, "trainer.max_steps=40", "schedule.on_extend=keep")
    assert kept.config.schedule.name == "sequence"
    assert kept.notes == ["on_extend keep: the rate is 0.001 from step 20 on"]


def test_a_hyperparameter_that_goes_by_the_length_asks_as_the_rate_does(tmp_path: Path) -> None:
    """The first of two is told; a way that is given is taken for both. beta1 falls from 0.9 to
    0.45."""
    beta = (
        "optimizer.schedules.beta1={name: linear, warmup: 0%, warmup_shape: linear, "
        "warmup_edge: right, duration: 100%, edge: left, final_lr: 0.45}"
    )
    folder = save(tmp_path / "run", [*COSINE, beta])
    assert refused(folder, "trainer.max_steps=40").startswith(
        "schedule depends on the run's length"
    )
    assert "append (0.000134 to 2.24e-05)" in refused(folder, "trainer.max_steps=40")
    found = resumed(folder, "trainer.max_steps=40", "schedule.on_extend=rescale")
    values = plan(found.config).hyperparameters["beta1"]
    # 1e-12: a few roundings
    assert values[[19, 20]] == pytest.approx([0.9 - 0.45 * 19 / 26, 0.9 - 0.45 / 2], rel=1e-12)
    other = save(tmp_path / "other", ["schedule=constant", beta])
    expected = "optimizer.schedules.beta1 depends on the run's length, which changes from 26 to 40"
    assert refused(other, "trainer.max_steps=40").startswith(expected)


# A branch


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.parent.is_symlink()
    }


@pytest.mark.parametrize(
    ("which", "best", "steps"),
    [(20, {"step": 13}, ["13", "20"]), (13, {"step": 13}, ["13"]), (20, None, ["13", "20"])],
)
def test_a_branch_has_the_run_s_files_up_to_its_checkpoint(
    folder: Path, tmp_path: Path, which: int, best: dict[str, int] | None, steps: list[str]
) -> None:
    """The branch has the best checkpoint by then too, from state.json or the pointer `best`; the
    run itself stays as it is."""
    before = files(folder)
    (tmp_path / "new").mkdir()
    found = resumed(folder, f"checkpoint={which}")
    found = replace(found, numbers={**found.numbers, "best": best})
    made = branch(found, tmp_path / "new")
    assert (made.folder, made.state.step) == (tmp_path / "new", which)
    copied = files(tmp_path / "new")
    assert copied == {name: before[name] for name in copied}
    names = {name for name in copied if not name.startswith("checkpoints")}
    assert names == {"config.yaml", "data.json", "environment.json", "trace.csv", "metrics.csv"}
    assert sorted(os.listdir(tmp_path / "new" / "checkpoints")) == [*steps, "best", "last"]
    assert checkpoint.target(tmp_path / "new", "best") == 13
    assert checkpoint.target(tmp_path / "new", "last") == which
    assert files(folder) == before


def test_a_branch_from_before_the_best_checkpoint_has_none(folder: Path, tmp_path: Path) -> None:
    checkpoint.point(folder, "best", 20)
    (tmp_path / "new").mkdir()
    found = resumed(folder, "checkpoint=13")
    branch(replace(found, numbers={**found.numbers, "best": None}), tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new" / "checkpoints")) == ["13", "last"]


# Runs that are refused before anything is trained


def made(
    folder: Path,
    step: int,
    stopped_early: bool = False,
    changes: Mapping[str, tuple[Any, Any]] | None = None,
    is_completed: bool = True,
) -> Resumed:
    numbers = {"stopped_early": stopped_early, "best": None, "threads": 2}
    return Resumed(
        folder, {}, dict(changes or {}), state(step), numbers, [], is_completed, [], None
    )


def planned(total: int, data: Mapping[str, Any] = DATA, max_time: str | None = None) -> Any:
    """The parts of a plan that `check` asks for."""
    return SimpleNamespace(
        data=SimpleNamespace(description=lambda: {**data}),
        order=SimpleNamespace(total_steps=total, epochs=Periods(13)),
        has_own_statistics=False,
        config=SimpleNamespace(
            trainer=SimpleNamespace(
                early_stopping_patience=3, max_time=max_time, max_steps=20, max_epochs=2
            ),
            optimizer=SimpleNamespace(),
        ),
    )


LONGER = {"trainer.max_steps": (20, 40)}
PATIENT = {"trainer.early_stopping_patience": (2, 3)}


@pytest.mark.parametrize(
    ("step", "total", "stopped_early", "changes", "expected"),
    [
        (1000, 1000, False, {}, True),
        (1000, 1000, False, {"backend": ("keras", "lightning")}, True),
        (1000, 1000, False, LONGER, False),
        (1000, 1000, False, {"trainer.max_epochs": (1, 2)}, False),
        (999, 1000, False, {}, False),
        (1000, 999, False, {}, False),
        (20, 1000, True, {}, True),
        (20, 1000, True, LONGER, True),
        (20, 1000, True, PATIENT, False),
        (1000, 1000, True, PATIENT, True),
    ],
)
def test_a_run_is_over_after_its_last_update_or_where_it_stopped_early(
    step: int, total: int, stopped_early: bool, changes: Any, expected: bool
) -> None:
    """A length that has changed, or a patience, makes it go on. The total is an object of its own,
    as in a run."""
    found = made(Path("run"), step, stopped_early, changes)
    assert found.is_over(int(str(total))) is expected


MORE = "nothing is left; to train longer, increase trainer."
EARLY = "stopped early at step 20; to train longer, increase trainer.early_stopping_patience, now 3"


@pytest.mark.parametrize(
    ("total", "keys", "expected"),
    [
        (40, {}, None),
        (40, {"changes": LONGER, "stopped_early": False}, None),
        (20, {}, f"is at step 20 of 20, {MORE}max_steps, now 20"),
        (20, {"is_completed": False}, None),  # only the files of its end are missing
        (10, {"changes": LONGER}, f"is at step 20 of 10, {MORE}max_epochs, now 2"),
        (20, {"changes": LONGER}, f"is at step 20 of 20, {MORE}max_steps, now 20"),
        (40, {"stopped_early": True}, EARLY),
        (40, {"stopped_early": True, "changes": LONGER}, EARLY),
        (40, {"stopped_early": True, "changes": PATIENT}, None),
        (40, {"stopped_early": True, "is_completed": False}, None),
        (20, {"stopped_early": True}, f"is at step 20 of 20, {MORE}max_steps, now 20"),
        (10, {"stopped_early": True}, f"is at step 20 of 10, {MORE}max_epochs, now 2"),
    ],
)
def test_a_run_with_nothing_left_to_do_is_refused(
    folder: Path, total: int, keys: dict[str, Any], expected: str | None
) -> None:
    found = made(folder, 20, **keys)
    if expected is None:
        check(found, planned(total), state(0))
        return
    with pytest.raises(ConfigError, match=f"^{re.escape(f'resume: {folder} {expected}')}$"):
        check(found, planned(total), state(0))


def test_a_run_that_goes_on_needs_its_records_and_one_that_is_over_does_not(folder: Path) -> None:
    write_csv(folder / "trace.csv", "step,learning_rate,loss", [*range(19)])
    with pytest.raises(ConfigError, match=r"trace\.csv must have one row for step 19"):
        check(made(folder, 20), planned(40), state(0))
    check(made(folder, 20, is_completed=False), planned(20), state(0))


def test_other_data_is_refused(folder: Path) -> None:
    expected = (
        f"resume: the data is not what {folder} was trained on: its SHA-256 is {'1' * 64}, "
        f"before: {'0' * 64}"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        check(made(folder, 20), planned(40, {**DATA, "sha256": "1" * 64}), state(0))


KERNEL = "dense_0/kernel"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights": {KERNEL: np.zeros((2, 4), np.float32)}},
            f"weights {KERNEL} is float32[2, 3], expected float32[2, 4]"),
        ({"weights": {KERNEL: np.zeros((2, 2), np.float32)}},
            f"weights {KERNEL} is float32[2, 3], expected float32[2, 2]"),
        ({"weights": {KERNEL: np.zeros((2, 3), np.float64)}},
            f"weights {KERNEL} is float32[2, 3], expected float64[2, 3]"),
        ({"weights": {}}, f"weights {KERNEL} is float32[2, 3], expected nothing"),
        ({"weights": {KERNEL: np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}},
            "weights bias is nothing, expected float32[3]"),
        ({"buffers": {}}, "buffers norm/mean is float32[3], expected nothing"),
        ({"slots": {}}, f"slot momentum {KERNEL} is float32[2, 3], expected nothing"),
        ({"slots": {"momentum": {KERNEL: np.zeros((2, 3), np.float32)},
            "first_moment": {KERNEL: np.zeros((2, 3), np.float32)}}},
            f"slot first_moment {KERNEL} is nothing, expected float32[2, 3]"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_the_network_or_the_optimizer_is_refused(
    folder: Path, change: dict[str, Any], expected: str
) -> None:
    message = f"the checkpoint of {folder} does not fit its config: {expected}"
    with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
        check(made(folder, 20), planned(40), replace(state(0), **change))


# Threads


@dataclass(frozen=True)
class Model:
    threads: int


@dataclass(frozen=True)
class Planned:
    """The parts of a plan that the number of threads needs."""

    model: Model
    config: Config


@pytest.mark.parametrize(
    ("saved", "changes", "threads", "notes"),
    [
        (4, {}, 4, []),
        (2, {}, 2, ["threads  2 as before; trainer.threads=auto would use 4 here"]),
        (8, {}, 8, ["threads  8 as before; trainer.threads=auto would use 4 here"]),
        (2, {"trainer.threads": ("auto", 4)}, 4, []),
        (None, {"trainer.threads": ("auto", 4)}, 4, []),
        (None, {}, 4,
            ["threads  4 from now on: the checkpoint is from an older version and does not record "
             "the number"]),
    ],
)  # fmt: skip
def test_a_run_goes_on_with_as_many_threads_as_its_checkpoint_has(
    saved: int | None, changes: Any, threads: int, notes: list[str]
) -> None:
    numbers = {} if saved is None else {"threads": saved}
    before = replace(made(Path("run"), 20, changes=changes), numbers=numbers, notes=["first"])
    prepared: Any = Planned(Model(4), parse(compose([])))
    plan, found = with_saved_threads(before, prepared)
    assert plan.model.threads == threads
    assert found == replace(before, notes=["first", *notes])
