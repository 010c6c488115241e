"""resume=FOLDER: what was interrupted, however it ended, goes on to the very run that was not."""

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command_line import BACKENDS, OTHER, Running, forked
from tests.rows import slow_but

# All that has a state: dropout, batch norm, accumulation, a plateau, early stopping, means inside
# an epoch of 80 updates
HARD = (
    "model=cnn", "data.images=true", "optimizer=nadam", "trainer.batch_size=8",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_epochs=3", "trainer.checkpoint_every=17steps", "trainer.early_stopping_patience=3",
    "device=cpu",
    "schedule=plateau", "schedule.of.name=cosine", "schedule.patience=0", "schedule.threshold=0.9",
    "schedule.factor=0.5",
)  # fmt: skip


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def records(folder: Path) -> tuple[str, list[list[str]], dict[str, Any]]:
    """trace.csv, metrics.csv but for its seconds, and of result.json what says what was trained."""
    rows = [line.split(",")[:-1] for line in (folder / "metrics.csv").read_text().splitlines()]
    result = read(folder, "result.json")
    same = {
        key: result[key]
        for key in (
            "status",
            "steps",
            "epochs",
            "metrics",
            "best",
            "weights_sha256",
            "stopped_early",
        )
    }
    return (folder / "trace.csv").read_text(), rows, same


def num_rows(folder: Path) -> int:
    path = folder / "trace.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0


def interrupt(
    here: Path, arguments: tuple[str, ...], backend: str, after: int, kind: signal.Signals
) -> Path:
    """Train, and send a signal once `after` updates are traced and a checkpoint exists: it is
    written beside the training, so it may come later. Return the run's folder."""
    with Running(here, *arguments) as running:
        running.until(
            lambda: any(
                num_rows(last.parents[1]) >= after
                for last in here.glob(f"outputs/runs/*_{backend}/checkpoints/last")
            )
        )
        running.end(kind)
    (folder,) = here.glob(f"outputs/runs/*_{backend}")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """HARD without an interruption, on each backend."""
    here = tmp_path_factory.mktemp("whole")
    each = forked(here, *((f"backend={backend}", *HARD) for backend in BACKENDS))
    return {backend: here / done.folder for backend, done in zip(BACKENDS, each, strict=True)}


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("lightning", signal.SIGKILL),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("keras", signal.SIGKILL),
                ("lightning", signal.SIGTERM),
                ("keras", signal.SIGTERM),
            )
        ),
    ],
)
def test_a_run_that_a_signal_ended_goes_on_to_the_same_bits(
    whole: dict[str, Path], tmp_path: Path, backend: str, kind: signal.Signals
) -> None:
    """At a random update, after the first checkpoint at 17, wherever the process is then; twice,
    the second time in what had gone on."""
    after = random.randrange(20, 120)
    folder = interrupt(tmp_path, (f"backend={backend}", *HARD), backend, after, kind)
    assert interrupt(tmp_path, (f"resume={folder}",), backend, after + 60, kind) == folder
    (done,) = forked(tmp_path, (f"resume={folder}",))
    assert (done.status, done.err) == (0, ""), after
    assert f"resume   {folder} from step " in done.out
    assert records(folder) == records(whole[backend]), after
    assert not list(folder.rglob(".*"))
    assert len(read(folder, "environment.json")["resumed"]) == 2


SHORT = ("schedule=exponential", "schedule.decay_steps=10", "trainer.batch_size=100", "device=cpu")
HALF = "trainer.max_steps=20"  # 13 updates an epoch: in the middle of the second
# A small network, and 16 whole batches an epoch, for Keras to compile little
EXACT = ("trainer.precision=exact", "model=linear", *SHORT[:2], "trainer.batch_size=80", SHORT[3])


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of 20 updates: one in exact mode, one in float32."""
    here = tmp_path_factory.mktemp("halves")
    runs = {
        "exact": (*EXACT, HALF),
        "plain": (*SHORT, HALF, "trainer.checkpoint_every=5steps"),
    }
    each = forked(here, *runs.values())
    return {name: here / done.folder for name, done in zip(runs, each, strict=True)}


def copied(folder: Path, here: Path) -> Path:
    return shutil.copytree(folder, here / folder.name, symlinks=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_exact_mode_a_run_is_finished_on_the_other_framework_with_the_same_hash(
    halves: dict[str, Path], tmp_path: Path, backend: str
) -> None:
    longer, half = "trainer.max_steps=33", halves["exact"]
    if backend == "keras":
        (done,) = forked(tmp_path, ("backend=keras", *EXACT, HALF))
        half = tmp_path / done.folder
    line = (f"resume={copied(half, tmp_path)}", f"backend={OTHER[backend]}", longer)
    done, alone = forked(tmp_path, line, (*EXACT, longer))
    expected = read(tmp_path / alone.folder, "result.json")
    assert (done.status, done.err) == (0, "")
    assert f"changed  backend {backend} -> {OTHER[backend]}" in done.out
    folder = tmp_path / done.folder
    found = read(folder, "result.json")
    assert (found["backend"], found["steps"], found["resumed_from"]) == (OTHER[backend], 33, 20)
    for key in ("weights_sha256", "slots_sha256", "losses_sha256"):
        assert found[key] == expected[key]
    assert (folder / "trace.csv").read_text() == (tmp_path / alone.folder / "trace.csv").read_text()


def test_of_a_damaged_checkpoint_the_newest_whole_one_before_it_is_taken(
    halves: dict[str, Path], tmp_path: Path
) -> None:
    """One flipped bit in the weights of step 20: 15 is whole, and the run goes on from there to the
    same weights."""
    folder, alone = copied(halves["plain"], tmp_path), copied(halves["plain"], tmp_path / "alone")
    path = folder / "checkpoints" / "20" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    damaged, good = forked(
        tmp_path,
        (f"resume={folder}", "trainer.max_steps=30"),
        (f"resume={alone}", "trainer.max_steps=30"),
    )
    assert (damaged.status, good.status) == (0, 0)
    said = (
        f"{path} does not match its SHA-256 in manifest.json: the checkpoint is damaged; resuming "
        f"from step 15"
    )
    assert damaged.out.count(f"warning: {said}") == 1
    assert records(folder)[2]["weights_sha256"] == records(alone)[2]["weights_sha256"]
    assert (folder / "trace.csv").read_text() == (alone / "trace.csv").read_text()


MORE = "nothing is left; to train longer, increase trainer.max_steps, now"
REFUSED = [
    ("plain", [], f"resume: {{folder}} is at step 20 of 20, {MORE} 20"),
    ("plain", ["trainer.max_steps=10"], f"resume: {{folder}} is at step 20 of 10, {MORE} 10"),
    (
        "plain",
        ["optimizer.lr=0.1"],
        "optimizer.lr cannot be set for a finished run; {changeable} can",
    ),
    (  # a key of the config is no misspelled one
        "plain",
        ["trainer.precision=float64"],
        "trainer.precision cannot be set for a finished run; {changeable} can",
    ),
    (
        "plain",
        ["trainer.max_step=30"],
        (
            "trainer.max_step cannot be set for a finished run; did you mean "
            "trainer.max_steps?; {changeable} can"
        ),
    ),
    ("plain", ["trainer.max_steps=-1"], "trainer.max_steps must be >= 1, got -1"),
    (
        "plain",
        ["trainer.max_steps=30", "backend=torch"],
        "backend must be one of keras, lightning, witness, got torch",
    ),
]


@pytest.mark.parametrize(("name", "said", "expected"), REFUSED)
def test_what_would_be_another_run_is_refused_in_one_line(
    halves: dict[str, Path], tmp_path: Path, name: str, said: list[str], expected: str
) -> None:
    from runner.run.resume import CHANGEABLE, ON_EXTEND

    folder = halves[name]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (done,) = forked(tmp_path, (f"resume={folder}", *said))
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"error: {expected.format(folder=folder, changeable=', '.join((*CHANGEABLE, ON_EXTEND)))}\n"
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_without_a_checkpoint_is_refused(halves: dict[str, Path], tmp_path: Path) -> None:
    empty = copied(halves["plain"], tmp_path)
    shutil.rmtree(empty / "checkpoints")
    (done,) = forked(tmp_path, (f"resume={empty}",))
    assert (done.status, done.err) == (2, f"error: {empty} has no checkpoint last; it has none\n")


def test_other_data_and_another_model_are_refused(halves: dict[str, Path], tmp_path: Path) -> None:
    data, model = (
        copied(halves["plain"], tmp_path / "data"),
        copied(halves["plain"], tmp_path / "model"),
    )
    described = read(data, "data.json")
    (data / "data.json").write_text(json.dumps({**described, "sha256": "0" * 64}))
    config = (model / "config.yaml").read_text()
    assert "units: 128" in config
    (model / "config.yaml").write_text(config.replace("units: 128", "units: 64"))
    other, narrow = forked(
        tmp_path, *((f"resume={folder}", "trainer.max_steps=30") for folder in (data, model))
    )
    assert (other.status, narrow.status) == (2, 1)
    assert other.err == (
        f"error: resume: the data is not what {data} was trained on: its SHA-256 is "
        f"{described['sha256']}, before: {'0' * 64}\n"
    )
    assert narrow.err == (
        f"error: the checkpoint of {model} does not fit its config: weights dense_0/bias is "
        f"float32[128], "
        "expected float32[64]\n"
    )


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_two_processes_never_train_in_one_folder(tmp_path: Path, backend: str) -> None:
    """The second one is refused while the first runs, and not once it was killed."""
    endless = (
        f"backend={backend}",
        *SHORT,
        "trainer.max_epochs=100000",
        "trainer.checkpoint_every=5steps",
    )
    with Running(tmp_path, *endless) as running:
        running.until(lambda: any(tmp_path.glob("outputs/runs/*/checkpoints/last")))
        (folder,) = tmp_path.glob("outputs/runs/*")
        os.kill(running.pid, signal.SIGSTOP)  # so that it leaves the cores to the others
        (second,) = forked(tmp_path, (f"resume={folder}",))
        said = f"resume: {folder} is in use, another process trains in it: process {running.pid}"
        assert (second.status, second.err) == (2, f"error: {said}\n")
        assert running.end(signal.SIGKILL).status == 128 + signal.SIGKILL
    (done,) = forked(tmp_path, (f"resume={folder}", f"trainer.max_steps={num_rows(folder) + 20}"))
    assert done.status == 0


def test_the_sum_of_an_epoch_so_far_is_kept_exactly() -> None:
    """1e16 + 1 + ... : numbers whose float64 sum would be rounded; the mean of all rows is that of
    one pass."""
    from runner.components.metrics import Means

    values = np.array([1e16, 1.0, -1e16, 3.0, 1e-9, 2.0**-60, 7.0])
    once, first = Means(), Means()
    once.add({"loss": values})
    first.add({"loss": values[:4]})
    rest = Means(json.loads(json.dumps(first.state())))
    rest.add({"loss": values[4:]})
    assert rest.result() == once.result()
    assert once.result()["loss"] == (11.0 + 1e-9 + 2.0**-60) / 7
