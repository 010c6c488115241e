"""A tracker gets each point of trace.csv and metrics.csv once, also after kills and resumes."""

import base64
import csv
import json
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.errors import ConfigError
from runner.run import checkpoint, trackers
from runner.run.trackers.follower import Follower, without_secrets
from runner.run.trackers.points import spacing
from runner.run.trackers.tracker import Point, TrackedRun, Tracker, hyperparameters
from tests.command_line import BACKENDS, Running, forked, in_new_process
from tests.rows import slow_but

NUM_STEPS, EPOCH = 9, 3
ARTIFACTS = ("curves", "certificate", "checkpoints")
TRACE = "step,learning_rate,loss\n"
METRICS = "epoch,step,train/loss,val/accuracy,seconds\n"


def tensorboard_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a run's scalars with TensorBoard's own reader, which must not import TensorFlow here."""
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def mlflow_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a run's metrics with MLflow's own client from the store in output.root."""
    from mlflow.tracking import MlflowClient

    root = next(path for path in folder.parents if (path / "mlflow.db").is_file())
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
    return {
        tag: [(each.step, each.value) for each in client.get_metric_history(run_id, tag)]
        for tag in client.get_run(run_id).data.metrics
    }


def wandb_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the files of all sessions of a run with the library's own messages."""
    from runner.run.trackers import wandb

    run_id = json.loads((folder / "wandb.json").read_text())["run_id"]
    found: dict[str, list[tuple[int, float]]] = {}
    for point in wandb.points(folder, run_id):
        step = point.pop("step")
        for tag, value in point.items():
            if not tag.startswith("_"):
                found.setdefault(tag, []).append((step, value))
    return found


def trackio_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a run, or of a multirun's answer, with Trackio's own reader."""
    from trackio.sqlite_storage import SQLiteStorage

    from runner.run.trackers import trackio

    root = next(path for path in folder.parents if (path / "trackio").is_dir())
    run_id = json.loads((folder / "trackio.json").read_text())["run_id"]
    with trackio.storage(root):
        return SQLiteStorage.get_logs(trackio.PROJECT, run_id=run_id)


def trackio_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in trackio_rows(folder):
        for tag in {*row} - {"step", "timestamp"}:
            found.setdefault(tag, []).append((row["step"], row[tag]))
    return found


READ: dict[str, Callable[[Path], dict[str, list[tuple[int, float]]]]] = {
    "tensorboard": tensorboard_points,
    "mlflow": mlflow_points,
    "wandb": wandb_points,
    "trackio": trackio_points,
}


def tensorboard_files(folder: Path) -> dict[str, bytes]:
    """Read a run's pictures and texts. JSON is indented, so that it is shown as it is."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    found = {f"{t}.png": accumulator.Images(t)[-1].encoded_image_string for t in tags["images"]}
    for tag in tags["tensors"]:
        if not tag.startswith("_"):
            (text,) = accumulator.Tensors(tag)[-1].tensor_proto.string_val
            is_json = text.startswith(b"    ")
            found[f"{tag}.json" if is_json else f"{tag}.md"] = dedent(text.decode()).encode()
    return found


def mlflow_files(folder: Path) -> dict[str, bytes]:
    from mlflow.tracking import MlflowClient

    root = next(path for path in folder.parents if (path / "mlflow.db").is_file())
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
    top = Path(client.download_artifacts(run_id, ""))
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def wandb_files(folder: Path) -> dict[str, bytes]:
    """Read the files that the last session of a run has recorded."""
    from runner.run.trackers import wandb

    run_id = json.loads((folder / "wandb.json").read_text())["run_id"]
    records = sorted(folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb"))[-1]
    named = [
        file.path
        for record in wandb._records(records)
        if record.WhichOneof("record_type") == "files"
        for file in record.files.files
    ]
    return {name: (records.parent / "files" / name).read_bytes() for name in named}


def trackio_files(folder: Path) -> dict[str, bytes]:
    """Read the last version of the artifact of a run, by its manifest."""
    from trackio import cas
    from trackio.sqlite_storage import SQLiteStorage

    from runner.run.trackers import trackio

    root = next(path for path in folder.parents if (path / "trackio").is_dir())
    run_id = json.loads((folder / "trackio.json").read_text())["run_id"]
    with trackio.storage(root):
        linked = SQLiteStorage.get_run_artifacts(trackio.PROJECT, None, run_id)
        (artifact,) = linked["output"]
        made = SQLiteStorage.get_artifact_manifest(trackio.PROJECT, artifact["name"], "latest")
        return {
            file["path"]: cas.blob_path(trackio.PROJECT, file["digest"]).read_bytes()
            for file in made["manifest"]
        }


READ_FILES: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "tensorboard": tensorboard_files,
    "mlflow": mlflow_files,
    "wandb": wandb_files,
    "trackio": trackio_files,
}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check(name: str, folder: Path) -> None:
    """Every tag has the column's numbers, in float32, at the column's steps."""
    found = READ[name](folder)
    trace, metrics = rows_of(folder / "trace.csv"), rows_of(folder / "metrics.csv")
    columns = {"learning_rate": (trace, "learning_rate"), "train/loss_step": (trace, "loss")}
    names = [column for column in metrics[0] if column.startswith(("train/", "val/"))]
    columns |= {column: (metrics, column) for column in [*names, "epoch"]}
    assert set(found) == {*columns, *(["seconds_per_step"] if len(metrics) > 1 else [])}
    for tag, (rows, column) in columns.items():
        assert [step for step, _ in found[tag]] == [int(row["step"]) for row in rows], tag
        values = np.float32([value for _, value in found[tag]])
        np.testing.assert_array_equal(values, np.float32([float(row[column]) for row in rows]))
    seconds = [(int(row["step"]), float(row["seconds"])) for row in metrics]
    expected = [(b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in pairwise(seconds)]
    per_step = found.get("seconds_per_step", [])
    assert [step for step, _ in per_step] == [step for step, _ in expected]
    np.testing.assert_allclose(
        [v for _, v in per_step],
        [v for _, v in expected],
        rtol=1e-6,  # float32
    )


def record(folder: Path, begin: int, end: int) -> None:
    """Append the rows of updates `begin` to `end` to the records of a run."""
    for name, header in (("trace.csv", TRACE), ("metrics.csv", METRICS)):
        if not (folder / name).is_file():
            (folder / name).write_text(header)
    for step in range(begin, end):
        with (folder / "trace.csv").open("a") as file:
            file.write(f"{step},{0.1 / (step + 1)},{2.5 - 0.1 * step}\n")
        if (step + 1) % EPOCH == 0:
            with (folder / "metrics.csv").open("a") as file:
                number = (step + 1) // EPOCH
                file.write(f"{number},{step + 1},{2.5 - 0.1 * step},0.{number},{1.5 * number}\n")


def rewind(folder: Path, step: int) -> None:
    for name in ("trace.csv", "metrics.csv"):
        (folder / name).unlink(missing_ok=True)
    record(folder, 0, step)


class Said:
    """A console that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def follower(name: str, folder: Path, said: Said, make: Any = None) -> Follower:
    keys = {"optimizer.lr": 0.1, "schedule.name": "cosine"}
    known = [each for each in ARTIFACTS if each in trackers.TRACKERS[name].artifacts]
    run = TrackedRun(folder, folder.parent, None, keys, known)

    def load() -> Any:
        return make or trackers.load(name)

    console: Any = said
    return Follower(name, load, run, NUM_STEPS, console)


def wait_until_written(folder: Path) -> None:
    """Wait until the files of wandb stay as they are for a second: a process of its own writes them
    after a kill, while the next session of a run takes seconds to begin."""
    sizes: list[int] = []
    while len(sizes) < 11 or len({*sizes[-11:]}) > 1:
        files = [*folder.glob("wandb/*/*.wandb")]
        if not files:
            return
        sizes.append(sum(file.stat().st_size for file in files))
        time.sleep(0.1)


@pytest.mark.parametrize("name", slow_but(trackers.TRACKERS, "tensorboard"))
def test_after_kills_and_resumes_it_has_every_point_once(tmp_path: Path, name: str) -> None:
    """Killed after updates that no checkpoint covers, killed before any point was passed on,
    resumed from an earlier checkpoint than the last, and extended."""
    said = Said()
    for begin, saved, killed_at in ((0, 4, 5), (4, None, 6), (4, 7, 8), (3, 8, 9)):
        rewind(tmp_path, begin)
        with follower(name, tmp_path, said) as one:
            record(tmp_path, begin, killed_at)
            if saved is not None:
                one.on_checkpoint(tmp_path / str(saved))
        one._thread.join(60)
        wait_until_written(tmp_path)
    rewind(tmp_path, 8)
    with follower(name, tmp_path, said) as one:
        record(tmp_path, 8, NUM_STEPS)
        one.on_end({"status": "completed"})
    check(name, tmp_path)
    assert len(said.lines) == 1  # the command that shows it


PICTURE = base64.b64decode(  # a PNG of one grey pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize("name", slow_but(trackers.TRACKERS, "tensorboard"))
def test_files_that_are_asked_for_are_those_of_the_end(tmp_path: Path, name: str) -> None:
    """Twice at the end, after an interruption: a file is there once, with its last content."""
    record(tmp_path, 0, NUM_STEPS)
    (tmp_path / "curves.png").write_bytes(PICTURE)
    for step in (6, NUM_STEPS):
        kept = tmp_path / "checkpoints" / str(step)
        kept.mkdir(parents=True)
        (kept / "state.json").write_text(f'{{"step": {step}}}')
        checkpoint.point(tmp_path, "last", step)
        (tmp_path / "certificate.json").write_text(f'{{"steps": {step}}}')
        for _ in range(2):
            with follower(name, tmp_path, Said()) as one:
                one.on_end({"status": "interrupted", "steps": step})
    expected = {"curves.png": PICTURE, "certificate.json": b'{"steps": 9}'}
    if name != "tensorboard":
        expected["checkpoints/last/state.json"] = b'{"step": 9}'
    assert READ_FILES[name](tmp_path) == expected
    check(name, tmp_path)


@pytest.mark.slow
def test_a_multirun_is_a_group_with_its_answer(tmp_path: Path) -> None:
    """The files are those of the multirun's folder; MLflow's jobs have the answer as their
    parent."""
    from mlflow.tracking import MlflowClient

    names = f"[{','.join(trackers.TRACKERS)}]"
    (done,) = forked(
        tmp_path,
        (
            *("-m", "seed=0,1", "schedule=constant,cosine", "trainer.max_steps=20", "device=cpu"),
            *(f"logger={names}", "tracker.artifacts=[comparison,curves]"),
        ),
    )
    assert (done.status, done.err) == (0, "")
    (folder,) = tmp_path.glob("outputs/multiruns/*")
    answer = json.loads((folder / "answer.json").read_text())
    files = {name: read(folder) for name, read in READ_FILES.items()}
    assert b"\n".join(files["tensorboard"].pop("answer.md").split(b"  \n")).decode() == "\n".join(
        answer["says"]
    )
    assert set(files["tensorboard"]) == {"comparison.md", "comparison.png"}
    assert set(files["mlflow"]) == set(files["wandb"]) == set(files["trackio"])
    assert {*files["mlflow"]} >= {"comparison.html", "comparison.csv", "answer.json"}
    for name, content in (each for found in files.values() for each in found.items()):
        assert content == (folder / name).read_bytes()
    (row,) = trackio_rows(folder)
    report = row["answer"]["_value"].splitlines()
    assert report == [f"- {line.strip()}" for line in answer["says"]]
    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    ids = {
        path.parent: json.loads(path.read_text())["run_id"]
        for path in [folder / "mlflow.json", *folder.glob("*/mlflow.json")]
    }
    parent = ids.pop(folder)
    assert client.get_run(parent).data.tags["winner"] == answer["winner"]
    assert len(ids) == 4
    for path, run_id in ids.items():
        tags = client.get_run(run_id).data.tags
        assert (tags["group"], tags["mlflow.parentRunId"]) == (folder.name, parent)
        assert {*READ_FILES["mlflow"](path)} == {"curves.png"}


def test_a_damaged_end_of_the_event_file_is_written_again(tmp_path: Path) -> None:
    """Cut within an event, as by a power cut."""
    record(tmp_path, 0, 7)
    for begin, end in ((7, 7), (7, NUM_STEPS)):
        with follower("tensorboard", tmp_path, Said()) as one:
            record(tmp_path, begin, end)
            one.on_end({"status": "interrupted"})
        if end == 7:
            (file,) = tmp_path.glob("*tfevents*")
            file.write_bytes(file.read_bytes()[:-9])
    check("tensorboard", tmp_path)


class Failing(Tracker):
    hint = "look here"

    def __init__(self, run: TrackedRun) -> None: ...

    def open(self, last: int) -> int:
        return -1

    def keep(self, name: str, path: Path, step: int) -> None: ...

    def write(self, points: Sequence[Point]) -> None:
        raise OSError("https://me:hunter2@host refused s3cr3t-value")

    def close(self, status: str) -> None: ...


class Silent(Failing):
    def write(self, points: Sequence[Point]) -> None: ...


def test_a_tracker_that_fails_is_one_warning_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "s3cr3t-value")
    record(tmp_path, 0, NUM_STEPS)
    said = Said()
    with follower("tensorboard", tmp_path, said, Failing) as one:
        one.on_end({"status": "completed"})
        one.on_end({"status": "completed"})
    assert said.lines == [
        "warning: logger=tensorboard failed: OSError: https://***@host refused ***; it lacks "
        "points of the run"
    ]


def test_a_tracker_that_hangs_does_not_hold_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threading import Event

    monkeypatch.setattr("runner.run.trackers.follower._PATIENCE_SECONDS", 0.05)
    record(tmp_path, 0, NUM_STEPS)
    said, hangs = Said(), Event()
    with follower("tensorboard", tmp_path, said, lambda run: hangs.wait() and Silent(run)) as one:
        one.on_end({"status": "completed"})
        hangs.set()
    assert len(said.lines) == 1
    assert "no answer in" in said.lines[0]


def test_a_tracker_that_has_hung_for_long_is_told_at_once_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training never waits, or this test would not end. One second: far above the time of a
    thread that is scheduled, far below the wait of a tracker that may still answer."""
    from threading import Event

    record(tmp_path, 0, NUM_STEPS)
    said, hangs, chunk = Said(), Event(), cast(Any, None)
    with follower("tensorboard", tmp_path, said, lambda run: hangs.wait() and Silent(run)) as one:
        monkeypatch.setattr("runner.run.trackers.follower._PATIENCE_SECONDS", 0.05)
        while not said.lines:
            one.on_chunk(chunk, chunk, chunk)
        monkeypatch.setattr("runner.run.trackers.follower._PATIENCE_SECONDS", 0.01)
        began = time.monotonic()
        one.on_end({"status": "completed"})
        assert time.monotonic() - began < 1
        hangs.set()
    # a slow machine may count a second
    assert [re.sub(r"\d+ s;.*", "N s", line) for line in said.lines] == [
        "warning: logger=tensorboard has not answered for N s",
        "warning: logger=tensorboard failed: no answer in N s",
    ]


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_slow_tracker_takes_two_percent_of_the_time(tmp_path: Path, is_busy: bool) -> None:
    """Each write takes 10 ms, on a core or asleep, so it is followed by a rest of at least half a
    second. The run has 100 checkpoints a second; its own thread does next to nothing for it."""
    num_writes = 0

    class Slow(Silent):
        def write(self, points: Sequence[Point]) -> None:
            nonlocal num_writes
            num_writes += 1
            end = time.thread_time() + 0.01
            while is_busy and time.thread_time() < end:
                pass
            time.sleep(0.0 if is_busy else 0.01)

    record(tmp_path, 0, 1)
    with follower("tensorboard", tmp_path, Said(), Slow) as one:
        began, used, chunk = time.monotonic(), 0.0, cast(Any, None)
        for step in range(1, 121):
            record(tmp_path, step, step + 1)
            before = time.thread_time()
            one.on_checkpoint(tmp_path / str(step))
            one.on_chunk(chunk, chunk, chunk)
            used += time.thread_time() - before
            time.sleep(0.01)
        elapsed = time.monotonic() - began
        assert 1 <= num_writes <= 1 + elapsed / 0.5
    assert used < 0.02 * elapsed


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_with_a_tracker_that_sleeps_has_all_points_and_a_warning(
    tmp_path: Path, backend: str
) -> None:
    """Every call sleeps three seconds. benchmarks.tracked counts the time of the processor, so
    other processes do not matter; the run lasts two seconds or longer."""
    code = f"""
    import sys, time
    from benchmarks import tracked
    from runner.run.trackers.tensorboard import TensorBoard

    def asleep(method):
        def call(*arguments):
            time.sleep(3)
            return method(*arguments)
        return call

    for name in ("open", "write", "close"):
        setattr(TensorBoard, name, asleep(getattr(TensorBoard, name)))
    sys.argv[1:] = ["cost.json", "backend={backend}", "device=cpu", "logger=tensorboard"]
    sys.argv += ["trainer.max_epochs=300", "schedule=linear"]
    sys.exit(tracked.main())
    """
    out = in_new_process(tmp_path, dedent(code))
    (folder,) = tmp_path.glob("outputs/runs/*")
    cost = json.loads((tmp_path / "cost.json").read_text())
    train = json.loads((folder / "result.json").read_text())["seconds"]["train"]
    assert 0 < cost["beside"] < 0.02 * train
    assert "warning: logger=tensorboard is slow: the run has waited" in out
    steps = [step for step, _ in tensorboard_points(folder)["val/loss"]]
    assert steps == [int(row["step"]) for row in rows_of(folder / "metrics.csv")]


def test_secrets_are_replaced_and_other_text_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "abcd1234")
    assert without_secrets("//u:p@h/x abcd1234 http://h/x") == "//***@h/x *** http://h/x"


@pytest.mark.parametrize(
    ("total", "expected"), [(1, 1), (1000, 1), (1001, 2), (5001, 10), (10**6, 1000)]
)
def test_at_most_a_thousand_updates_are_points(total: int, expected: int) -> None:
    assert spacing(total) == expected


def test_hyperparameters_are_the_keys_that_determine_the_run() -> None:
    composed = {
        "optimizer": {"lr": 0.1, "groups": [{"match": "a"}]},
        "loss": {},
        "trainer": {"max_steps": None, "compile": False},
        "output": {"root": "/home/me"},
        "layer_defaults": {"dense": {"units": 1}},
    }
    assert hyperparameters(composed) == {
        "optimizer.lr": 0.1,
        "optimizer.groups": '[{"match": "a"}]',
        "loss": "{}",
        "trainer.compile": False,
    }


def test_a_missing_library_is_refused_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.run.trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        trackers.check(parse(compose(["logger=tensorboard"])))
    assert str(caught.value) == (
        "logger=tensorboard needs the package tensorboard; install it with pip install "
        "'twinrun[tensorboard]'"
    )


RUN = ("trainer.batch_size=100", "trainer.checkpoint_every=17steps", "device=cpu")


@pytest.mark.parametrize("name", slow_but(("wandb", "trackio"), "trackio"))
def test_no_key_and_nothing_of_the_machine_is_in_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The library of wandb itself would write the host, the user, the program and the packages;
    that of Trackio would send the points to the space, and ask a server for the user's name."""
    secret, folder = "k" * 39 + "7", tmp_path / "run"
    folder.mkdir()
    for variable in ("WANDB_API_KEY", "HF_TOKEN", "USER", "TRACKIO_SPACE_ID"):
        monkeypatch.setenv(variable, secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    if name == "trackio":
        monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asks a server"))
    record(folder, 0, NUM_STEPS)
    with follower(name, folder, Said()) as one:
        one.on_end({"status": "completed"})
    check(name, folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix in (".wandb", ".db") for path in files)
    machine = platform.node().encode() * (len(platform.node()) > 3)
    for path in files:
        content = path.read_bytes()
        assert secret.encode() not in content, path
        assert not machine or machine not in content, path
        assert b"torch==" not in content, path


def test_trackio_that_would_ask_a_server_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_BUCKET_ID", "me/bucket")
    record(tmp_path, 0, NUM_STEPS)
    said = Said()
    with follower("trackio", tmp_path, said) as one:
        one.on_end({"status": "completed"})
    assert said.lines == [
        "warning: logger=trackio failed: OSError: TRACKIO_BUCKET_ID is set, so Trackio would ask a "
        "server; unset it; it lacks points of the run"
    ]


def test_wandb_is_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.run.trackers import wandb

    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert not wandb.has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password abc\n")
    assert wandb.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example")
    assert not wandb.has_key()
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert wandb.has_key()


def make_mlflow_tables(store: Path) -> None:
    from runner.run.trackers import mlflow

    store.parent.mkdir()
    mlflow.make_store(store)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_is_killed_five_times_and_extended_has_every_point_once(
    tmp_path: Path, backend: str
) -> None:
    """Killed at random moments: three times after so many updates more, twice within a second after
    the run resumes. Checkpoints are not at ends of epochs; the 990 updates end within an epoch,
    whose evaluation the longer run does not have."""
    names = f"[{','.join(trackers.TRACKERS)}]"
    command = (f"backend={backend}", *RUN, f"logger={names}", "trainer.max_epochs=100")
    command += ("trainer.max_steps=990",)
    random = np.random.default_rng(BACKENDS.index(backend))
    make_mlflow_tables(tmp_path / "outputs" / "mlflow.db")  # a run does, in seconds

    def num_updates() -> int:
        """Count the updates in the records of a run that has a checkpoint, written beside it."""
        runs = [last.parents[1] for last in tmp_path.glob("outputs/runs/*/checkpoints/last")]
        return sum((run / "trace.csv").read_bytes().count(b"\n") for run in runs)

    for i in range(5):
        with Running(tmp_path, *command) as running:
            if i % 2 == 0:
                wanted = min(700, num_updates() + int(random.integers(30, 200)))
                running.until(lambda n=wanted: num_updates() >= n)  # type: ignore[misc]
            else:
                time.sleep(random.random())
            assert running.end(signal.SIGKILL).status == 128 + signal.SIGKILL
        (folder,) = tmp_path.glob("outputs/runs/*")
        command = (f"resume={folder}",)
    for overrides in ((), ("trainer.max_steps=1000",)):
        (done,) = forked(tmp_path, (f"resume={folder}", *overrides))
        assert (done.status, done.err) == (0, "")
        for name in trackers.TRACKERS:
            check(name, folder)
    assert len(rows_of(folder / "trace.csv")) == 1000


@pytest.mark.slow
def test_a_kill_while_the_tables_of_mlflow_are_made_leaves_no_half_of_them(tmp_path: Path) -> None:
    arguments = ("logger=mlflow", "trainer.max_steps=5", "device=cpu")
    tables = tmp_path / "outputs" / ".mlflow.new" / "tables.db"
    with Running(tmp_path, *arguments) as running:
        running.until(lambda: tables.exists() and tables.stat().st_size > 0)
        running.end(signal.SIGKILL)
    assert not (tmp_path / "outputs" / "mlflow.db").exists()
    (done,) = forked(tmp_path, (*arguments, "output.root=outputs"))
    assert (done.status, done.err) == (0, "")
    check("mlflow", tmp_path / done.folder)
    assert not tables.parent.exists()
