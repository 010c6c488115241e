"""trainer.threads: how many, where they are kept, and that a job's number is what it would be
alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner import load_run
from runner.errors import ConfigError, RunError
from runner.machine import threads
from runner.run import other_process
from runner.run.signals import Signals
from tests.command_line import REPOSITORY, forked
from tests.training import prepare

# a product of 2^19 FLOP for each row, and a small one
WIDE = "model.layers=[{layer: dense, units: 4096},{layer: dense, units: outputs}]"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sixteen cores, and no limit in the environment."""
    for name in (*threads.VARIABLES, "TWINRUN_THREAD_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 16)
    return monkeypatch


# the rule


@pytest.mark.parametrize(
    ("overrides", "flops"),
    [
        (["model=mlp"], [64 * 128, 128 * 10]),
        (["model=linear", "trainer.batch_size=7"], [64 * 10]),
        # 8 x 8 pixels, 3 x 3 windows of 1 channel to 16; pooled to 4 x 4, 16 to 32; 2 x 2 x 32 to
        # 10
        (["model=cnn"], [64 * 9 * 16, 16 * 9 * 16 * 32, 128 * 10]),
        # patches of 2 x 2 to 32 channels, 16 steps; per block 4 products of attention, its scores
        # and what they weigh, 2 dense
        (["model=transformer"],
         [16 * 4 * 32, *2 * (4 * [16 * 32 * 32] + 2 * [16 * 16 * 32] + 2 * [16 * 32 * 64]),
             32 * 10]),
        # the product with the matrix of the embedding of 104 tokens, at 64 steps
        (["data=python_docs", "model.layers=[{layer: embedding, features: 8},{layer: dense, units: "
          "outputs, tie: embedding_0}]"], [64 * 8 * 104]),
    ],
)  # fmt: skip
def test_the_work_of_an_operation_is_the_mean_over_all_flops(
    overrides: list[str], flops: list[int]
) -> None:
    rows = prepare(overrides).config.trainer.batch_size
    each = [2 * rows * number for number in flops]
    expected = sum(f * f / sum(each) for f in each)
    # sums in another order
    assert threads.work(prepare(overrides).network, rows) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        (["model=mlp"], 1),
        (["model=transformer"], 1),
        # 2^27 FLOP and 0.16 of it: (1 + 0.16^2) / 1.16 of 4 times 2^25
        ([WIDE, "trainer.batch_size=256"], 3),
        ([WIDE, "trainer.batch_size=4096"], 16),
        (["trainer.threads=3"], 3),
        (["trainer.threads=40"], 40),
    ],
)
def test_auto_takes_a_thread_for_what_pays_for_one(
    asked: list[str], number: int, machine: pytest.MonkeyPatch
) -> None:
    assert prepare(asked).model.threads == number


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "5,2"}, 5),  # two levels of nesting
        ({"OMP_NUM_THREADS": "5", "TF_NUM_INTRAOP_THREADS": "4"}, 4),
        ({"MKL_NUM_THREADS": "64"}, 16),
        # TensorFlow's word for no limit
        ({"TF_NUM_INTRAOP_THREADS": "0", "OMP_NUM_THREADS": ""}, 16),
        # a launcher's number, not the user's
        ({"OMP_NUM_THREADS": "1", "TWINRUN_THREAD_LIMIT": ""}, 16),
        ({"OMP_NUM_THREADS": "1", "TWINRUN_THREAD_LIMIT": "MKL_NUM_THREADS=6"}, 6),
    ],
)
def test_the_environment_limits_auto_and_no_number(
    environment: dict[str, str], number: int, machine: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        machine.setenv(name, value)
    large = [WIDE, "trainer.batch_size=4096"]
    assert prepare(large).model.threads == number
    assert prepare([*large, "trainer.threads=7"]).model.threads == 7


def test_what_is_no_number_in_the_environment_is_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(
        ConfigError,
        match=r"^the environment variable OMP_NUM_THREADS must be a number of threads, got many$",
    ):
        prepare(["model=mlp"])


def test_what_a_launcher_sets_for_its_workers_is_no_limit(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("MKL_NUM_THREADS", "8")
    threads.keep_limits()
    machine.setenv("OMP_NUM_THREADS", "1")  # as joblib does
    assert threads.limits() == {"MKL_NUM_THREADS": 8}
    machine.delenv("TWINRUN_THREAD_LIMIT")
    assert threads.limits() == {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 8}


@pytest.mark.parametrize(
    ("environment", "asked", "remark"),
    [
        ({}, "16", None),
        ({}, "17",
         (
             "warning: 17 threads wait for each other on 16 cores; "
             "trainer.threads=auto uses fewer"
         )),
        ({}, "auto", None),
        ({"OMP_NUM_THREADS": "16"}, "auto", None),
        ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "3"}, "auto",
         "threads  2, limited by OMP_NUM_THREADS=2 in the environment; set trainer.threads=N"),
    ],
)  # fmt: skip
def test_the_user_is_told_where_the_number_may_surprise(
    environment: dict[str, str], asked: str, remark: str | None, machine: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        machine.setenv(name, value)
    large = [WIDE, "trainer.batch_size=4096"]
    assert prepare([*large, f"trainer.threads={asked}"]).remark_on_threads() == remark


# the machine


def test_two_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processors of four cores, of which the process may use five."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 4, 5}, raising=False)
    monkeypatch.setattr(
        threads, "_siblings", lambda processor: f"{processor % 4},{processor % 4 + 4}"
    )
    monkeypatch.setattr(threads, "_quota", lambda *_: None)
    assert threads.cores.__wrapped__() == 3
    monkeypatch.setattr(threads, "_quota", lambda *_: 2)
    assert threads.cores.__wrapped__() == 2
    monkeypatch.setattr(threads, "_quota", lambda *_: 0)  # half a processor
    assert threads.cores.__wrapped__() == 1


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        # the outer group's holds too
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/not/mounted/here\n", {"cpu.max": "100000 50000\n"}, 2),
        ("3:cpuset:/\n2:cpu,cpuacct:/x\n0::/\n",
         {"cpu/x/cpu.cfs_quota_us": "150000\n", "cpu/x/cpu.cfs_period_us": "50000\n"}, 3),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("2:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_quota_of_the_control_group(
    membership: str, files: dict[str, str], quota: int | None, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(membership)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._quota(tmp_path, tmp_path / "own") == quota


# the frameworks


def test_lightning_takes_the_number_and_gives_it_back() -> None:
    import torch

    from backends.lightning import device

    before = torch.get_num_threads()
    model = replace(prepare(["device=cpu"]).model, threads=before + 2)
    with device.settings(model):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "policy"),
    [(None, "PASSIVE"), pytest.param("ACTIVE", "ACTIVE", marks=pytest.mark.slow)],
)
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP says what it has read")
def test_threads_of_torch_sleep_while_they_wait_unless_the_user_says_otherwise(
    said: str | None, policy: str
) -> None:
    """OpenMP itself tells, as it is loaded with torch."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {
        "OMP_DISPLAY_ENV": "true",
        **({} if said is None else {"OMP_WAIT_POLICY": said}),
    }
    code = "from runner.cli import process; process.tune(); from runner import dispatcher; "
    command = [sys.executable, "-c", code + "dispatcher.load('lightning')"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


# the command line


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_the_number_is_recorded_and_kept(tmp_path: Path) -> None:
    """Two threads in the config, then one from the checkpoint on, which is said."""
    run = ("trainer.threads=2", "trainer.max_steps=10", "output.root=out", "device=cpu")
    (done,) = forked(tmp_path, run)
    assert (done.status, done.err) == (0, "")
    folder = tmp_path / done.folder
    assert read(folder, "environment.json")["threads"] == 2
    assert read(folder, "checkpoints/last/state.json")["threads"] == 2
    text = (folder / "config.yaml").read_text()  # elsewhere `auto` may be another number
    (folder / "config.yaml").write_text(text.replace("threads: 2", "threads: auto"))
    assert load_run(folder).model_spec.threads == 2
    (folder / "config.yaml").write_text(text)
    resume = (f"resume={done.folder}", "trainer.max_steps=20", "trainer.threads=1")
    (more,) = forked(tmp_path, resume)
    assert (more.status, more.err) == (0, "")
    assert "changed  trainer.threads 2 -> 1\n" in more.out
    assert read(folder, "checkpoints/last/state.json")["threads"] == 1
    (again,) = read(folder, "environment.json")["resumed"]
    assert (again["step"], again["threads"]) == (10, 1)


def test_a_run_goes_on_with_the_number_that_it_had(machine: pytest.MonkeyPatch) -> None:
    """`auto` would now be another: the environment has a limit."""
    from runner.run.resume import Resumed, with_saved_threads

    prepared = prepare([WIDE, "trainer.batch_size=256"])
    machine.setenv("OMP_NUM_THREADS", "1")
    limited = prepare([WIDE, "trainer.batch_size=256"])
    parts = {field.name: None for field in fields(Resumed)} | {"changes": {}, "notes": []}
    resumed = Resumed(**{**parts, "numbers": {"threads": 3}})  # type: ignore[arg-type]
    assert with_saved_threads(resumed, prepared) == (prepared, resumed)
    kept, told = with_saved_threads(resumed, limited)
    assert kept.run_spec().threads == 3
    assert [*told.notes] == ["threads  3 as before; trainer.threads=auto would use 1 here"]
    older, told = with_saved_threads(Resumed(**{**parts, "numbers": {}}), limited)  # type: ignore[arg-type]
    assert older.run_spec().threads == 1
    assert [*told.notes] == [
        (
            "threads  1 from now on: the checkpoint is from an older version and does not record "
            "the number"
        )
    ]


@pytest.mark.slow
def test_a_keras_job_with_another_number_is_the_run_that_it_would_be_alone(tmp_path: Path) -> None:
    """TensorFlow keeps the number that it began with; float32 sums of this network differ with
    it."""
    common = (
        "backend=keras",
        "model=cnn",
        "trainer.max_steps=4",
        "trainer.batch_size=64",
        "device=cpu",
    )
    alone, jobs = forked(
        tmp_path, (*common, "trainer.threads=2"), ("-m", *common, "trainer.threads=1,2")
    )
    assert (alone.status, jobs.status, jobs.err) == (0, 0, "")
    found = {
        read(path.parent, "environment.json")["threads"]: read(path.parent, "result.json")[
            "weights_sha256"
        ]
        for path in (tmp_path / jobs.folder).glob("*/result.json")
    }
    assert found[2] == read(tmp_path / alone.folder, "result.json")["weights_sha256"]
    assert found[1] != found[2]


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="joblib's launcher is an extra"
)
def test_jobs_side_by_side_take_what_a_run_alone_takes(tmp_path: Path) -> None:
    """joblib sets OMP_NUM_THREADS and its like for its workers: the cores by their number."""
    plain = {key: value for key, value in os.environ.items() if key not in threads.VARIABLES}
    environment = {**plain, "PYTHONPATH": str(REPOSITORY)}
    large = (WIDE, "trainer.batch_size=1024", "trainer.max_steps=3", "device=cpu")
    side = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1")
    for arguments in (large, (*side, *large)):
        command = [sys.executable, "-m", "runner", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    (alone,) = tmp_path.glob("outputs/runs/*/result.json")
    jobs = {
        read(path.parent, "result.json")["seed"]: path
        for path in tmp_path.glob("outputs/multiruns/*/*/result.json")
    }
    numbers = [
        read(path.parent, "environment.json")["threads"] for path in (alone, jobs[0], jobs[1])
    ]
    assert numbers == [threads.cores()] * 3
    assert (
        read(jobs[0].parent, "result.json")["weights_sha256"]
        == read(alone.parent, "result.json")["weights_sha256"]
    )


# a process of its own


def until_a_signal(marker: str) -> int:
    with Signals() as signals:
        Path(marker).write_text(str(os.getpid()))
        deadline = time.monotonic() + 60
        while signals.received is None and time.monotonic() < deadline:
            time.sleep(0.01)
    return 128 + (signals.received or 0)


def killed(_: str) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def pid_in(marker: Path) -> int:
    deadline = time.monotonic() + 60
    while not marker.is_file() or not marker.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(marker.read_text())


@pytest.mark.slow
def test_a_signal_reaches_the_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        sender = threading.Thread(
            target=lambda: (pid_in(marker), os.kill(os.getpid(), signal.SIGTERM))
        )
        sender.start()
        assert other_process.run(until_a_signal, str(marker), 2) == 128 + signal.SIGTERM
        sender.join()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_of_its_own_that_is_killed_is_told() -> None:
    with pytest.raises(RunError, match=r"^the process that trains with 3 threads was killed$"):
        other_process.run(killed, "", 3)


@pytest.mark.slow
def test_a_process_of_its_own_ends_with_its_parent(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = (
        f"from runner.run import other_process; from tests.machine.test_threads import *; "
        f"other_process.run(until_a_signal, {str(marker)!r}, 2)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    child = pid_in(marker)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
