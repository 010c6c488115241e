"""A run's folder that somebody else has touched: what is theirs is left alone, what is broken is
told in one line."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from runner import dispatcher
from runner.__main__ import main
from runner.cli.multirun import claimed
from runner.errors import ConfigError
from runner.run import checkpoint, run_folder
from runner.run.run_folder import read_json, why_unwritten
from runner.schedules.units import Periods
from tests.cli.test_command_line_errors import OnlyCpu
from tests.command_line import BACKENDS, forked
from tests.run.test_resume import records

# 20 updates an epoch, 50 of them
RUN = ("model=linear", "trainer.batch_size=64", "device=cpu", "trainer.max_steps=50")
LONGER = "trainer.max_steps=60"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("ended")
    runs = {
        "plain": RUN,
        "longer": (*RUN[:-1], LONGER),
        "keras exact": (*RUN, "backend=keras", "trainer.precision=exact"),
        "early": (
            *RUN[:-1],
            "trainer.early_stopping_patience=1",
            "trainer.early_stopping_min_delta=9",
        ),
    }
    each = forked(here, *runs.values())
    return {name: here / done.folder for name, done in zip(runs, each, strict=True)}


def copied(folder: Path, here: Path) -> Path:
    """At a place of its own, which messages name in full."""
    return shutil.copytree(folder, here / "run", symlinks=True)


def everything(folder: Path) -> dict[str, Any]:
    """Names, links and times of all that is in a folder."""
    return {
        str(path): (os.readlink(path) if path.is_symlink() else path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """Return the error of a command that must not reach training."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(dispatcher, "load", lambda name, lean=False: OnlyCpu())
    monkeypatch.setattr(sys, "argv", ["runner", *arguments])
    assert main() == 2
    out, err = capfd.readouterr()
    assert out == ""
    return err


def lines(change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    """An edit of a file's lines."""
    return lambda text: "".join(change(text.splitlines(keepends=True)))


EARLIER = "; checkpoint=STEP resumes at an earlier one"
HEADER = (
    f"resume: {{}}/trace.csv must have the header step,learning_rate,loss,... to resume at "
    f"step 50{EARLIER}"
)
METRICS = (
    f"resume: {{}}/metrics.csv must have the header epoch,step,... to resume at step 50{EARLIER}"
)
TRACE = f"resume: {{}}/trace.csv must have one row for step 6 to resume at step 50{EARLIER}"
# file, what is made of its text, the message
BROKEN: list[tuple[str, Callable[[str], str], str]] = [
    ("config.yaml", lambda text: "",
        "resume: {}/config.yaml is empty; it must hold the config that ran"),
    ("config.yaml", lambda text: "- 1\n",
        "resume: {}/config.yaml cannot be read: must hold KEY: VALUE, got - 1"),
    (
        "config.yaml",
        lambda text: "a: 1\n\tb: 2\n",
        (
            "resume: {}/config.yaml cannot be read: line 2: found a tab character that violates "
            "indentation"
        ),
    ),
    (
        "config.yaml",
        lambda text: "a: 1\na: 2\n",
        "resume: {}/config.yaml cannot be read: line 2: the key a is repeated",
    ),
    (
        "config.yaml",
        lambda text: "a: &a [1, *a]\n",
        "resume: {}/config.yaml cannot be read: line 1: the value contains itself",
    ),
    (
        "config.yaml",
        lambda text: "a0: &a0 [x]\n"
        + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        "resume: {}/config.yaml cannot be read: line 14: more than 20000 values",
    ),
    (
        "config.yaml",
        lambda text: text.replace("batch_size: 64", "batch_size: many"),
        "trainer.batch_size must be an integer, got many",
    ),
    (
        "config.yaml",
        lines(lambda rows: [row for row in rows if "batch_size" not in row]),
        (
            "resume: {}/config.yaml lacks trainer.batch_size and is not the config that ran: "
            "its SHA-256 differs"
        ),
    ),
    (
        "config.yaml",
        lambda text: text[: text.index("trainer:")],
        (
            "resume: {}/config.yaml must hold the config that ran, with the keys of trainer, "
            "got nothing"
        ),
    ),
    ("data.json", lambda text: "", "{}/data.json is damaged, it is empty"),
    ("data.json", lambda text: "[]", "{}/data.json is damaged, it holds no JSON object"),
    (
        "data.json",
        lambda text: text[: len(text) // 2],
        "{}/data.json is damaged, it is not JSON: ",
    ),
    (
        "data.json",
        lambda text: text.replace('"sha256"', '"sha"'),
        "{}/data.json is damaged: sha256 must be text, got nothing",
    ),
    (
        "data.json",
        lambda text: text.replace('"num_targets": 0', '"num_targets": "0"'),
        "{}/data.json is damaged: num_targets must be a whole number, got 0",
    ),
    ("trace.csv", lambda text: "", HEADER),
    ("trace.csv", lines(lambda rows: rows[1:]), HEADER),
    ("trace.csv", lines(lambda rows: [*rows[:7], *rows[8:]]), TRACE),
    ("trace.csv", lines(lambda rows: [*rows[:7], "6,x,y\n", *rows[8:]]), TRACE),
    ("trace.csv", lines(lambda rows: [*rows[:7], "6,0.1\n", *rows[8:]]), TRACE),
    ("trace.csv", lines(lambda rows: [*rows[:8], *rows[7:]]), TRACE),
    ("metrics.csv", lambda text: "", METRICS),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "said"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_told_in_one_line_and_nothing_is_written(
    ended: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    edit: Callable[[str], str],
    said: str,
) -> None:
    folder = copied(ended["plain"], tmp_path)
    (folder / name).write_text(edit((folder / name).read_text()))
    before = everything(folder)
    err = refused(monkeypatch, capfd, f"resume={folder}", LONGER)
    assert err.startswith(f"error: {said.format(folder)}")
    assert err.count("\n") == 1
    assert everything(folder) == before
    if name in ("config.yaml", "data.json"):
        err = refused(monkeypatch, capfd, f"run={folder}", "task=evaluate")
        assert err.startswith(f"error: {said.format(folder).replace('resume:', 'run:')}")
        assert everything(folder) == before


@pytest.mark.parametrize("name", ["result.json", "environment.json"])
def test_what_a_run_writes_anew_may_be_broken(
    ended: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = copied(ended["plain"], tmp_path)
    (folder / name).write_text("")
    (done,) = forked(tmp_path, (f"resume={folder}", LONGER))
    assert (done.status, done.err) == (0, "")
    assert f"warning: {folder / name} is damaged, it is empty; writing a new one" in done.out
    assert records(folder) == records(ended["longer"])
    assert read_json(folder / name)


def test_a_folder_of_a_version_that_knew_fewer_keys_is_read(
    ended: dict[str, Path], tmp_path: Path
) -> None:
    """A key of the trainer, of a group, of a layer's defaults, and of the top: each has its
    default."""
    folder = copied(ended["plain"], tmp_path)
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    del (
        config["trainer"]["strict"],
        config["optimizer"]["eps"],
        config["layer_defaults"]["layer_norm"],
        config["steps"],
    )
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    (done,) = forked(tmp_path, (f"resume={folder}", LONGER))
    assert (done.status, done.err) == (0, "")
    assert records(folder) == records(ended["longer"])


OWN = (
    ".env",
    ".git/HEAD",
    ".40.123/mine",
    ".config.yaml",
    "checkpoints/.notes",
    "checkpoints/007/x",
    "checkpoints/20.bak/x",
    "checkpoints/40/notes.txt",
    "checkpoints/\u00b2/x",
    "checkpoints/x7/x",
)
LEFT = (
    ".config.yaml.123",
    "checkpoints/.40.123/state.json",
    "checkpoints/.last.123",
    ".trace.csv.7",
)


def test_files_of_the_user_s_own_are_left_alone(ended: dict[str, Path], tmp_path: Path) -> None:
    """Remove a killed process's leftovers by their exact names. Checkpoint 40 is replaced and then
    no longer kept."""
    folder = copied(ended["plain"], tmp_path)
    for name in (*OWN, *LEFT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    back, on = forked(
        tmp_path,
        (f"resume={folder}", "checkpoint=40"),
        (
            f"resume={shutil.copytree(folder, tmp_path / 'on', symlinks=True)}",
            "trainer.max_steps=120",
        ),
    )
    for done, path in ((back, folder), (on, tmp_path / "on")):
        assert (done.status, done.err) == (0, "")
        assert {name: (path / name).read_text() for name in OWN} == {name: name for name in OWN}
        assert [name for name in LEFT if os.path.lexists(path / name)] == []
    assert checkpoint.steps(folder) == [40, 50]
    assert checkpoint.steps(tmp_path / "on") == [100, 120]
    assert records(folder) == records(ended["plain"])


@pytest.mark.slow
def test_a_job_that_starts_anew_removes_no_file_of_the_user_s(
    ended: dict[str, Path], tmp_path: Path
) -> None:
    """A multirun's job without a checkpoint trains from the beginning."""
    (first,) = forked(tmp_path, ("-m", *RUN, "seed=0,1"))
    folder = tmp_path / first.folder
    job = next(path for path in folder.iterdir() if "seed-1" in path.name)
    shutil.rmtree(job / "checkpoints")
    (job / "result.json").unlink()
    (job / ".notes").write_text("mine")
    (again,) = forked(tmp_path, ("-m", *RUN, "seed=0,1", f"output.multirun={first.folder}"))
    assert (again.status, again.err) == (0, "")
    assert (job / ".notes").read_text() == "mine"
    assert "2 of 2 jobs completed" in again.out


# of one of three runs: the file, its new text, what is said of it
HALF_READ = [
    ("result.json", "", "{}/result.json is damaged, it is empty"),
    ("result.json", "[1]", "{}/result.json is damaged, it holds no JSON object"),
    ("result.json", '{"status": 7}', "{}/result.json is damaged: status must be text, got 7"),
    ("result.json", '{"metrics": {"val/loss": "x"}}',
        "{}/result.json is damaged: metrics.val/loss must be a number, got x"),
    ("trace.csv", "",
        '{}/trace.csv is damaged: it must begin with step,learning_rate,loss, got ""'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "said"), HALF_READ, ids=range(len(HALF_READ)))
def test_a_comparison_names_the_damaged_run_and_compares_the_others(
    ended: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    text: str,
    said: str,
) -> None:
    runs = [
        shutil.copytree(ended[run], tmp_path / str(i), symlinks=True)
        for i, run in enumerate(("plain", "longer", "longer"))
    ]
    (runs[2] / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["runner", "task=compare", f"runs=[{','.join(map(str, runs))}]"]
    )
    assert main() == 1  # not all of them completed
    out, err = capfd.readouterr()
    assert err == ""
    assert f"damaged: 2  {said.format(runs[2])}" in out
    assert "2 of 3 jobs completed" in out
    assert "winner " in out


def test_a_result_of_an_older_version_is_read(
    ended: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Read an older version's file: missing keys are read from the config, or unknown."""
    runs = [
        shutil.copytree(ended[run], tmp_path / run, symlinks=True) for run in ("plain", "longer")
    ]
    for run in runs:
        result = read_json(run / "result.json")
        kept = {key: result[key] for key in ("status", "metrics", "seconds", "best")}
        (run / "result.json").write_text(json.dumps(kept))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["runner", "task=compare", f"runs=[{','.join(map(str, runs))}]"]
    )
    assert main() == 0
    assert "2 of 2 jobs completed" in capfd.readouterr().out


def test_a_multirun_with_a_broken_config_names_it(
    ended: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    from runner.report import comparison

    for name, run in (("a", "plain"), ("b", "longer")):
        shutil.copytree(ended[run], tmp_path / name, symlinks=True)
    (tmp_path / "b" / "config.yaml").write_text("")
    assert comparison.write(tmp_path, 2) == 1
    out = capsys.readouterr().out
    assert f"damaged: b  runs: {tmp_path}/b/config.yaml is empty" in out
    assert "1 of 2 jobs completed" in out


# the link, where it leads to, the message
THROUGH = "is a symbolic link, and a run never writes through one; replace it by the file itself"
POINTER = "must be a symbolic link to a step beside it, or a file that names one"
LINKS = [
    *(
        (name, f"../outside/{name}", THROUGH)
        for name in ("trace.csv", "config.yaml", "run.log", "curves.png", "test.json")
    ),
    ("checkpoints", "../outside/checkpoints", THROUGH),
    ("checkpoints/40", "../../outside/checkpoints/40", THROUGH),
    ("checkpoints/40/state.json", "../../../outside/checkpoints/40/state.json", THROUGH),
    ("checkpoints/last", "../../outside/checkpoints/50", POINTER),
    ("checkpoints/best", "/etc", POINTER),
    ("checkpoints/best", "007", POINTER),
]


@pytest.mark.parametrize(("name", "target", "said"), LINKS, ids=range(len(LINKS)))
@pytest.mark.parametrize(
    "command", [("resume", LONGER), ("run", "task=evaluate")], ids=["resume", "run"]
)
def test_nothing_is_written_or_deleted_through_a_link(
    ended: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: tuple[str, str],
    name: str,
    target: str,
    said: str,
) -> None:
    folder, outside = (
        copied(ended["plain"], tmp_path),
        shutil.copytree(ended["plain"], tmp_path / "outside", symlinks=True),
    )
    (outside / "test.json").write_text("{}")
    path, before = folder / name, everything(outside)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    err = refused(monkeypatch, capfd, f"{command[0]}={folder}", command[1])
    assert err == f"error: {command[0]}: {path} {said}\n"
    assert everything(outside) == before


def test_a_link_that_the_program_does_not_write_to_is_no_matter(
    ended: dict[str, Path], tmp_path: Path
) -> None:
    """The run's folder itself may be reached by one."""
    folder = copied(ended["plain"], tmp_path)
    (folder / "dataset").symlink_to("/etc")
    (tmp_path / "latest").symlink_to("run")
    (done,) = forked(tmp_path, ("resume=latest", LONGER))
    assert (done.status, done.err) == (0, "")
    assert records(folder) == records(ended["longer"])
    assert os.readlink(folder / "dataset") == "/etc"


@pytest.mark.parametrize("name", ["plain", "keras exact", "early"])
def test_a_run_that_was_killed_after_its_last_checkpoint_is_completed(
    ended: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Before it wrote its result, picture and certificate. Completed once, it has nothing left."""
    folder = copied(ended[name], tmp_path)
    for end in ("result.json", "curves.png", "certificate.json"):
        (folder / end).unlink(missing_ok=True)
    (done,) = forked(
        tmp_path, (f"resume={folder}", *(["backend=keras"] if "keras" in name else []))
    )
    assert (done.status, done.err) == (0, "")
    assert "nothing is left to train; writing the final files" in done.out
    assert records(folder) == records(ended[name])
    for end in ("curves.png", "certificate.json"):
        assert (folder / end).exists() == (ended[name] / end).exists()
    if "keras" in name:
        assert (
            read_json(folder / "certificate.json")["weights_sha256"]
            == read_json(ended[name] / "result.json")["weights_sha256"]
        )
    (again,) = forked(tmp_path, (f"resume={folder}",))
    assert again.status == 2
    assert (
        "stopped early at step 40" if name == "early" else "is at step 50 of 50, nothing is left"
    ) in again.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", [BACKENDS[0], pytest.param(BACKENDS[1], marks=pytest.mark.slow)]
)
def test_a_multirun_completes_a_job_that_was_killed_after_its_last_checkpoint(
    tmp_path: Path, backend: str
) -> None:
    sweep = ("-m", f"backend={backend}", *RUN, "seed=0,1")
    (first,) = forked(tmp_path, sweep)
    jobs = {
        path.parent: read_json(path) for path in (tmp_path / first.folder).glob("*/result.json")
    }
    for job in jobs:
        (job / "result.json").unlink()
    (again,) = forked(tmp_path, (*sweep, f"output.multirun={first.folder}"))
    assert (again.status, again.err) == (0, "")
    assert "2 of 2 jobs completed" in again.out
    for job, before in jobs.items():
        found = read_json(job / "result.json")
        assert found["resumed_from"] == 50
        assert found["overrides"] == [*before["overrides"], f"output.multirun={first.folder}"]
        for key in ("status", "seed", "steps", "metrics", "best", "weights_sha256"):
            assert found[key] == before[key]


def test_while_a_run_is_made_longer_its_result_is_not_completed(
    ended: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends as the training begins: what result.json said of 50 updates would stand for
    60, and a resume from an earlier checkpoint would go on from the last one."""
    folder = copied(ended["plain"], tmp_path)

    def end(*_: Any) -> int:
        return 7

    class Trainable(OnlyCpu):
        def can_use_threads(self, num: int) -> bool:
            return True

    monkeypatch.setattr("runner.tasks.train._train", end)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(dispatcher, "load", lambda name, lean=False: Trainable())
    monkeypatch.setattr(sys, "argv", ["runner", f"resume={folder}", LONGER, "checkpoint=40"])
    assert main() == 7
    assert read_json(folder / "result.json")["status"] == "interrupted"
    assert checkpoint.read(folder)[0].step == 40
    assert (folder / "checkpoints" / "best").resolve().name == "40"
    assert run_folder.records(folder, 40, Periods(20))["metrics.csv"][-1].startswith("2,40,")


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_copied_and_never_dangling(tmp_path: Path) -> None:
    """A rate of 1 makes every epoch after the third worse: with the two newest the third's is kept,
    also where epochs and checkpoints do not end together (every 40 updates; then the one of 40 is
    the best that was saved)."""
    run = ("model=linear", "trainer.batch_size=64", "device=cpu", "schedule=piecewise",
        "schedule.boundaries=[60steps]",
           "schedule.factors=[1,1000]", "optimizer.lr=0.01", "trainer.max_steps=160")  # fmt: skip
    each = forked(tmp_path, run, (*run, "trainer.checkpoint_every=40steps"))
    for done, best, kept in zip(each, (60, 40), ([60, 140, 160], [40, 120, 160]), strict=True):
        folder = tmp_path / done.folder
        assert (done.status, done.err) == (0, "")
        assert read_json(folder / "result.json")["best"]["step"] == 60
        assert checkpoint.steps(folder) == kept
        assert checkpoint.read(folder, "best")[0].step == best
        (branched,) = forked(tmp_path, ("-m", f"resume={done.folder}", "trainer.max_steps=170,180"))
        assert (branched.status, branched.err) == (0, "")
        for path in (tmp_path / branched.folder).glob("*/checkpoints"):
            assert checkpoint.read(path.parent, "best")[0].step == best


def test_of_checkpoints_the_newest_by_number_is_taken(
    ended: dict[str, Path], tmp_path: Path
) -> None:
    """10 is newer than 9, and as texts it is not."""
    folder = copied(ended["plain"], tmp_path)
    (folder / "checkpoints" / "50").rename(folder / "checkpoints" / "9")
    (folder / "checkpoints" / "40").rename(folder / "checkpoints" / "10")
    (folder / "checkpoints" / "last").unlink()
    assert checkpoint.steps(folder) == [9, 10]
    assert checkpoint.read_newest(folder)[0].step == 40  # of the folder 10
    json.loads((folder / "checkpoints" / "10" / "state.json").read_text())


# of a whole run, {} its folder: what is said, and nothing is written
NOT_ON_A_RUN = [
    ("resume={} task=preview", "resume=FOLDER needs task=train, got task=preview"),
    ("resume={} task=find_lr", "resume=FOLDER needs task=train, got task=find_lr"),
    ("resume={} ~trainer.max_epochs", "~trainer.max_epochs cannot remove a key of a saved run; "
        "write trainer.max_epochs=VALUE"),
    ("run={} task=evaluate ~device", "~device cannot remove a key of a saved run; write "
        "device=VALUE"),
    ("resume={} checkpoint=999", "{} has no checkpoint 999; it has 40, 50, best, last"),
    ("run={} task=evaluate checkpoint=999", "{} has no checkpoint 999; it has 40, 50, best, last"),
    ("resume={} checkpoint=../x", "checkpoint must be one of last, best or an integer, got ../x"),
    ("-m resume={} trainer.steps_per_call=1,2", "resume: {} is at step 50 of 50, nothing is left; "
        "to train longer, increase trainer.max_steps, now 50"),
    ("-m seed=0,1 output.multirun={} output.root={}/..", "output.multirun must be a folder of its "
        "own, got {}, which is inside a run's folder"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), NOT_ON_A_RUN, ids=[line for line, _ in NOT_ON_A_RUN])
def test_what_cannot_be_asked_of_a_run_is_refused_before_anything_is_written(
    ended: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    line: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copied(ended["plain"], tmp_path)
    before = everything(tmp_path)
    err = refused(monkeypatch, capfd, *line.format(*[folder] * 2).split())
    assert err == f"error: {said.format(folder)}\n"
    assert everything(tmp_path) == before


def test_a_range_test_s_folder_is_no_run(
    ended: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = copied(ended["plain"], tmp_path)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("task: train", "task: find_lr"))
    assert refused(monkeypatch, capfd, f"resume={folder}") == (
        f"error: resume must be the folder of a run, got {folder}, which is of task=find_lr and "
        f"has no checkpoint\n"
    )


@pytest.mark.parametrize(
    ("name", "is_reused"), [(".config.yaml.123", True), ("..owner.7", True), ("notes.txt", False)]
)
def test_a_job_s_folder_that_was_killed_before_its_config_is_used_again(
    tmp_path: Path, name: str, is_reused: bool
) -> None:
    """An empty folder, or one with a temporary file, has no job; one with a user's file is not
    ours."""
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / name).touch()
    with claimed(tmp_path, "seed-1", {"seed": 1}) as claim:
        assert claim.path.name == ("seed-1" if is_reused else "seed-1_2")
        assert not claim.is_completed


def test_a_child_process_does_not_keep_a_folder_locked(tmp_path: Path) -> None:
    """Such as a worker of a DataLoader. The child ends when the pipe closes."""
    waits, ends = os.pipe()
    told, begins = os.pipe()
    with run_folder.locked(tmp_path):
        child = os.fork()
        if not child:
            os.close(ends)
            os.write(begins, b".")
            os.read(waits, 1)
            os._exit(0)
        os.read(told, 1)
    try:
        with run_folder.locked(tmp_path):
            pass
    finally:
        os.close(ends)
        os.waitpid(child, 0)
        for pipe in (waits, told, begins):
            os.close(pipe)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, "cannot be written: Permission denied"),
        (errno.EROFS, "cannot be written: Read-only file system"),
        (errno.ENOSPC, r"cannot be written: No space left on device, \d+ bytes are free"),
    ],
)
def test_only_what_may_be_a_full_disk_is_said_with_its_free_bytes(
    tmp_path: Path, number: int, expected: str
) -> None:
    path = tmp_path / "card.json"
    said = why_unwritten(path, OSError(number, os.strerror(number)))
    assert re.fullmatch(f"{re.escape(str(path))} {expected}", said)


def test_a_pipe_in_place_of_a_file_of_a_run_is_refused(tmp_path: Path) -> None:
    """Nobody writes to it: a plain open would wait for ever."""
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(ConfigError, match=r"result\.json must be a regular file$"):
        run_folder.read_json(tmp_path / "result.json")
