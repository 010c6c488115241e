"""One run on several processes: how a batch is cut, what each process sees of the others."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

import runner
from runner.cli.compose import compose
from runner.config.schema import parse, sha256
from runner.data.order import Chunks, Order
from runner.errors import ConfigError, RunError
from runner.run import launch, ranks
from runner.run.run_folder import read_columns, read_json
from runner.spec import World
from tests.command_line import BACKENDS, OTHER, Running, forked, together
from tests.ranks import state_of
from tests.rows import slow_rows

# 1,280 rows in batches of 142: the last one has 2, so of 3 processes one has none
NETWORK = (
    "model.layers=[{layer: reshape, shape: [8, 8, 1]}, {layer: conv2d, filters: 2, kernel_size: 3},"
    "{layer: batch_norm}, {layer: dropout, rate: 0.3}, {layer: flatten},"
    "{layer: dense, units: outputs}]"
)
RUN = (
    NETWORK,
    "trainer.precision=float64",
    "trainer.global_batch_size=71",
    "trainer.accumulate_grad_batches=2",
    "trainer.gradient_clip_norm=0.1",
    "optimizer=sgd",
    "optimizer.momentum=0.9",
    "device=cpu",
)
EXACT = (*(key for key in RUN if "precision" not in key), "trainer.precision=exact")
# rounding of float64: the sums over rows are added in another order
CLOSE = 1e-12


@pytest.mark.parametrize("num_rows", [1, 2, 7, 12])
def test_the_parts_of_a_batch_are_all_of_it_in_order(num_rows: int) -> None:
    whole = Order(12, num_rows, 1, 0, 100).chunk(0, 1)
    parts = [World(rank, 3).part(whole) for rank in range(3)]
    assert [*np.concatenate([part.rows for part in parts])] == [*whole.rows]
    sizes = [len(part.rows) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert {part.rows_per_step for part in parts} == {num_rows}


@pytest.mark.parametrize(("num_rows", "batch"), [(23, 4), (3, 4), (8, 1)])
def test_each_batch_of_an_evaluation_belongs_to_one_process(num_rows: int, batch: int) -> None:
    """The batches go round; a process may have none."""
    shares = [World(rank, 3).share(num_rows, batch) for rank in range(3)]
    for rank, share in enumerate(shares):
        whole = [range(i, min(i + batch, num_rows)) for i in range(0, num_rows, batch)]
        assert [*share] == [row for rows in whole[rank::3] for row in rows]


def test_too_many_processes_are_one_line_that_names_the_key() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no further file can be opened
    try:
        with pytest.raises(RunError) as error:
            launch.launch(len, (), 2)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert str(error.value) == (
        "devices=2: 2 processes cannot be started: Too many open files; set a smaller number of "
        "devices"
    )


def test_outputs_of_all_processes_come_in_the_order_of_the_whole_chunk() -> None:
    order = Order(23, 5, 2, 0, 100)
    for whole in (order.chunk(0, 2), order.chunk(2, 1)):  # whole updates; a short last one
        parts = [World(rank, 3).part(whole) for rank in range(3)]
        outputs = [part.rows[:, None].astype(float) for part in parts]
        joined = ranks._gathered(whole, World(0, 3), outputs)
        assert [*joined[:, 0]] == [*whole.rows]


def test_each_process_reads_its_own_rows_alone() -> None:
    """23 rows in files, in updates of two micro-batches of 5: of three processes, each reads at
    most 2 rows of a micro-batch, a part of what one process would hold."""
    order = Order(23, 5, 2, 0, 20)
    read: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: []}

    def reads(rank: int, rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        read[rank].append(rows)
        return {"x": rows}

    for rank in read:
        own = Chunks(order, 0, 2, None, False, partial(reads, rank), part=World(rank, 3).part)
        assert all(chunk.num_steps <= 2 for chunk in own)
    whole = [chunk.rows for chunk in Chunks(order, 0, 2, None, False)]
    assert len(whole) == len(read[0])
    for rows, *parts in zip(whole, *read.values(), strict=True):
        assert sorted(np.concatenate(parts)) == sorted(rows)
        assert max(map(len, parts)) <= 2 * 2 * 2


def test_the_number_of_devices_is_not_in_the_hash() -> None:
    one = compose(["trainer.batch_size=64"])
    assert sha256(compose(["devices=2", "strategy=ddp"])) == sha256(one)
    assert sha256(compose(["devices=4", "trainer.global_batch_size=64"])) == sha256(one)
    assert sha256(compose(["devices=2", "trainer.batch_size=64"])) != sha256(one)
    parts = "batch_size=[{{for: 50%, size: {}}},{{for: rest, size: {}}}]".format
    changing = sha256(compose([f"trainer.{parts(64, 256)}"]))
    assert sha256(compose(["devices=2", f"trainer.{parts(32, 128)}"])) == changing
    assert sha256(compose(["devices=4", f"trainer.global_{parts(64, 256)}"])) == changing


def test_the_number_of_devices_is_in_the_hash_if_batch_norm_is_of_each() -> None:
    """Check that false is another hash for each number of processes, and the same for one."""
    key, rows = "trainer.sync_batchnorm=false", "trainer.global_batch_size=64"
    plain = sha256(compose([rows]))
    hashes = [sha256(compose([key, rows, f"devices={num}"])) for num in (1, 2, 3)]
    assert hashes[0] == plain == sha256(compose([rows, "devices=3"]))
    assert len({*hashes}) == 3


def test_devices_are_numbers_as_lightning_has_them() -> None:
    """`auto` is one process on a CPU: lightning's CPUAccelerator.auto_device_count() is 1."""
    found = [parse(compose([key])) for key in ("devices=auto", "devices=3")]
    assert [config.num_processes for config in found] == [1, 3]
    third = parse(compose(["device=cuda", "devices=[2]"]))
    assert (third.num_processes, third.device_name) == (1, "cuda:2")


def test_a_run_in_python_has_one_device() -> None:
    with pytest.raises(ConfigError, match=r"^devices must be 1 in Python, got 2: "):
        runner.train("devices=2")


def _fails(how: str, team: launch.Team) -> int:
    """Be a process of which rank 1 ends, while rank 0 waits for it."""
    if team.world.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("a reason")
    team.tell("folder", "a/folder")
    time.sleep(600)
    return 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("how", "says"),
    slow_rows(
        [("killed", "was killed by SIGKILL"), ("raised", "failed: ValueError: a reason")],
        [("killed", "was killed by SIGKILL")],
    ),
)
def test_the_end_of_one_process_ends_all_and_is_named(how: str, says: str) -> None:
    with pytest.raises(RunError) as caught:
        launch.launch(_fails, how, 2)
    assert str(caught.value).startswith(f"rank 1 {says}; the other processes were ended")


def test_a_reason_of_this_project_has_no_class() -> None:
    """The command prints it as one of rank 0, which has only words for the user."""
    assert launch._portable(RunError("a reason"), 1) == "a reason"
    assert launch._portable(ValueError("a reason"), 1) == "ValueError: a reason"


DYING = """
import os
import signal

from runner import dispatcher

calls = []


def correct(z, y):
    calls.append(z)
    if dispatcher.world.rank == 1 and len(calls) > 1:  # the first call tries the function
        os.kill(os.getpid(), signal.SIGKILL)
    return (z.argmax(1) == y).astype(float)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_process_that_is_killed_in_an_evaluation_ends_the_run_and_is_named(
    tmp_path: Path,
) -> None:
    """Rank 0 measures its share meanwhile, and waits for the other one."""
    (tmp_path / "mine.py").write_text(DYING)
    own = ("metrics=[{_target_: mine.correct}]", "trusted_modules=[mine]", "trainer.batch_size=4")
    steps = ("trainer.max_steps=2", "device=cpu", "devices=2", "output.root=run")
    done = forked(tmp_path, (*own, *steps))[0]
    says = "error: rank 1 was killed by SIGKILL; the other processes were ended; to continue: "
    assert (done.status, done.err.startswith(says)) == (1, True), done.err


def _train(folder: Path, root: str, *arguments: str, base: Sequence[str] = RUN) -> Path:
    """Train, and return the run's folder."""
    done = forked(folder, (*base, f"output.root={root}", *arguments))[0]
    assert done.status == 0, done.err
    return folder / done.folder


def _check_equal(a: Path, b: Path) -> None:
    """Check that two runs have the same losses, weights, slots, statistics and metrics."""
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], rtol=0, atol=CLOSE, err_msg=name)
    first, second = (read_columns(folder / "metrics.csv") for folder in (a, b))
    assert first.keys() == second.keys()
    for name in first.keys() - {"seconds"}:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=CLOSE, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("num", "23")
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_processes_train_as_one_does(tmp_path: Path, backend: str, num: str) -> None:
    """Each process has other rows, so that without the sums over the processes, of gradients or of
    batch norm's statistics, or with other masks, the runs would differ."""
    steps = (f"backend={backend}", "trainer.max_epochs=1")
    one, several = (_train(tmp_path, f"{n}_devices", *steps, f"devices={n}") for n in ("1", num))
    _check_equal(one, several)


@pytest.mark.slow
@pytest.mark.parametrize("num", "23")
def test_processes_that_divide_the_weights_train_as_one_does(tmp_path: Path, num: str) -> None:
    """A layer of 73,728 weights is gathered by itself; with 3 processes some have no part of a
    bias, and one has no row of the last batch. The run goes on with whole weights on the other
    framework."""
    layers = NETWORK.replace("{layer: flatten}", "{layer: flatten},{layer: dense, units: 1024}")
    base = (layers, *RUN[1:], "optimizer.ema=0.9", "schedule=cosine", "trainer.max_steps=10")
    one = _train(tmp_path, "one", base=base)
    several = _train(tmp_path, "several", f"devices={num}", "strategy=fsdp", base=base)
    _check_equal(one, several)
    whole, *parts = (
        json.loads((folder / "result.json").read_text()).get("process_bytes")
        for folder in (one, several)
    )
    weights = sum(v.nbytes for k, v in state_of(one).items() if k.startswith("weights/"))
    running = 2 * 2 * 8  # mean and variance of two channels, which no process divides
    assert whole is None
    assert sum(of["weights"] for of in parts[0]) == weights - running
    constant = (*(key for key in base if key != "schedule=cosine"),)
    shorter = (*constant[:-1], "trainer.max_steps=6")
    begun = _train(tmp_path, "begun", "devices=2", "strategy=fsdp", base=shorter)
    longer = ("backend=keras", "devices=1", "strategy=auto", "trainer.max_steps=10")
    done = forked(tmp_path, (f"resume={begun}", *longer))[0]
    assert done.status == 0, done.err
    _check_equal(_train(tmp_path, "constant", base=constant), begun)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "precision", "close"),
    [
        ("keras", "float32", 1e-5),  # nine updates, whose sums over rows are in another order
        ("keras", "float64", CLOSE),
        ("lightning", "float64", CLOSE),
    ],
)
def test_a_process_without_rows_changes_nothing(
    tmp_path: Path, backend: str, precision: str, close: float
) -> None:
    """On Keras, oneDNN's convolutions, which take float32 alone, and recurrent layers need rows;
    batch norm needs all processes."""
    recurrent = "{layer: reshape, shape: [8, 16]},{layer: lstm, units: 4}"
    own = (f"backend={backend}", "trainer.max_epochs=1", f"trainer.precision={precision}")
    base = (NETWORK.replace("{layer: flatten}", recurrent), *RUN[2:])
    one, three = (
        state_of(_train(tmp_path, f"of_{num}", *own, f"devices={num}", base=base)) for num in (1, 3)
    )
    for name, values in one.items():
        np.testing.assert_allclose(values, three[name], rtol=close, atol=close, err_msg=name)


OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x):
        assert len(x) > 0
        return self.last(self.first(x).tanh())


class Normalized(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 10), nn.BatchNorm1d(10))


class Counted(Normalized):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += x.sum()
        return super().forward(x)


def rows(z, batch):
    return nn.functional.cross_entropy(z, batch[1], reduction="none")
"""
KERAS_OWN = """
import keras


class Net(keras.Sequential):
    def __init__(self):
        l2 = keras.regularizers.L2(1e-2)
        first = keras.layers.Dense(8, "tanh", kernel_regularizer=l2)
        noise = keras.layers.GaussianNoise(1e-300)  # below rounding; its state counts the calls
        super().__init__([first, noise, keras.layers.Dense(10)])
        self.compile("adam", "mse", metrics=["accuracy"])  # the config replaces them


class Counted(keras.Sequential):
    def __init__(self):
        super().__init__([keras.layers.Dense(10), keras.layers.BatchNormalization()])


def rows(z, batch):
    return keras.ops.sparse_categorical_crossentropy(batch[1], z, from_logits=True)
"""
OWN_RUN = (
    *(key for key in RUN if "model" not in key and "optimizer" not in key),
    *("trusted_modules=[mine]", "model=custom", "trainer.max_epochs=1"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "code", "sgd", "changed"),
    [
        ("lightning", OWN, "torch.optim.SGD", "seen"),
        ("keras", KERAS_OWN, "keras.optimizers.SGD", "counted/batch_normalization/moving_mean"),
    ],
)
def test_code_of_the_users_own_trains_as_in_one_process(
    tmp_path: Path, backend: str, code: str, sgd: str, changed: str
) -> None:
    """A model, a loss of each row and an optimizer. Rank 0 of three processes, which saves the
    state, is without rows in the last update; a Keras model's generators go on. What a forward pass
    counts would differ between the processes."""
    (tmp_path / "mine.py").write_text(code)
    own = (
        *(f"backend={backend}", "model._target_=mine.Net", "loss=custom"),
        *("loss._target_=mine.rows", "optimizer=custom", f"optimizer._target_={sgd}"),
        "optimizer.momentum=0.9",
    )
    runs = (("one", "devices=1"), ("three", "devices=3"))
    _check_equal(*(_train(tmp_path, name, *own, num, base=OWN_RUN) for name, num in runs))
    counted = (f"backend={backend}", "model._target_=mine.Counted", "devices=2")
    done = forked(tmp_path, (*OWN_RUN, *counted))[0]
    assert (done.status, done.err.strip()) == (
        2,
        f"error: devices must be 1 with model._target_ mine.Counted, whose {changed} "
        "changes without a gradient and so would differ between the processes, got 2",
    )


@pytest.mark.slow
def test_batch_norm_of_the_users_own_model_has_the_statistics_of_all_rows(tmp_path: Path) -> None:
    """One of three processes is without rows in the last update, also with divided weights."""
    (tmp_path / "mine.py").write_text(OWN)
    own = ("model._target_=mine.Normalized", "optimizer=sgd")
    one = _train(tmp_path, "one", *own, base=OWN_RUN)
    for strategy in ("ddp", "fsdp"):
        three = ("devices=3", f"strategy={strategy}")
        _check_equal(one, _train(tmp_path, strategy, *own, *three, base=OWN_RUN))


PREDICTS = """
import numpy as np
import runner

class Predicts(runner.Observer):
    def on_epoch(self, epoch, live):
        np.save(f"{self.name}.npy", live.predict({"x": np.ones((400, 64))}))
        return True

    def __init__(self, name):
        self.name = name
"""


@pytest.mark.slow
def test_an_observer_can_predict_with_divided_weights(tmp_path: Path) -> None:
    """Rank 0 makes five forward passes, since a layer is wide; the other one takes part in each."""
    (tmp_path / "mine.py").write_text(PREDICTS)
    wide = "{layer: flatten},{layer: dense, units: 4200},{layer: dense, units: outputs}"
    base = (f"model.layers=[{wide}]", "trainer.global_batch_size=96", "trainer.max_steps=2")
    base += (*RUN[1:2], "trusted_modules=[mine]", "optimizer=sgd", "device=cpu")
    for name, *keys in (("one", "devices=1"), ("two", "devices=2", "strategy=fsdp")):
        observer = f"callbacks=[{{_target_: mine.Predicts, name: {name}}}]"
        done = forked(tmp_path, (*base, *keys, observer))[0]
        assert done.status == 0, done.err
    one, two = (np.load(tmp_path / f"{name}.npy") for name in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=0, atol=CLOSE)


def test_batch_norm_of_the_users_own_model_needs_two_rows_of_vectors(tmp_path: Path) -> None:
    """torch refuses one row in the training: it has no variance. The last batch of 1,280 rows has 2
    of them, and 1 in batches of 1,279."""
    (tmp_path / "mine.py").write_text(OWN)
    own = ("trusted_modules=[mine]", "model=custom", "model._target_=mine.Normalized")
    two = ("trainer.global_batch_size=71", "devices=2", "trainer.sync_batchnorm=false")
    done = forked(tmp_path, (*own, *two), (*own, "trainer.batch_size=1279"))
    assert [each.err.strip() for each in done] == [
        "error: devices=2 leaves a process with fewer than 2 rows in a batch of 2, which batch "
        "norm does not support with trainer.sync_batchnorm=false; set trainer.global_batch_size to "
        "a number that leaves a last batch of at least 4 rows",
        "error: trainer.batch_size=1279 leaves a batch of one row, which the batch norm 1 of "
        "model._target_ mine.Normalized cannot normalise",
    ]


def _hashes(folder: Path) -> list[str]:
    """Return the hashes of the weights, slots and losses of a run, and its last metrics."""
    result = json.loads((folder / "result.json").read_text())
    hashes = [result[f"{of}_sha256"] for of in ("weights", "slots", "losses")]
    return [*hashes, str(result["metrics"])]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_exact_mode_every_number_of_processes_has_the_same_hashes(
    tmp_path: Path, backend: str
) -> None:
    """Also if some of them have no row of the last batch, and the same metrics, also those of the
    average of the weights."""
    adam = ("optimizer=adamw", "optimizer.ema=0.9", "trainer.max_epochs=2")
    base = [key for key in EXACT if not key.startswith("optimizer")]
    one = _train(tmp_path, "one", "backend=witness", *adam, base=base)
    several = _train(tmp_path, "several", f"backend={backend}", "devices=3", *adam, base=base)
    assert _hashes(several) == _hashes(one)


BY_PROCESS = (
    "model.layers=[{layer: reshape, shape: [8, 8, 1]}, {layer: conv2d, filters: 2, kernel_size: 3,"
    "bias: false}, {layer: batch_norm}, {layer: flatten}, {layer: dense, units: outputs}]",
    *("optimizer=sgd", "optimizer.momentum=0.9", "device=cpu", "trainer.max_epochs=1"),
)


@pytest.mark.slow
def test_batch_norm_of_each_process_is_that_of_micro_batches(tmp_path: Path) -> None:
    """The oracle is one process with two micro-batches an update, the parts of the two processes:
    each normalises alone, and all rows have one mean loss. Its running statistics move twice, so
    only the two backends have equal ones. The number of processes must stay."""
    base = (*BY_PROCESS, "trainer.precision=float64")
    half = ("trainer.batch_size=16", "trainer.accumulate_grad_batches=2")
    two = ("devices=2", "trainer.batch_size=16", "trainer.sync_batchnorm=false")
    one = state_of(_train(tmp_path, "one", *half, base=base))
    runs = [_train(tmp_path, name, f"backend={name}", *two, base=base) for name in BACKENDS]
    _check_equal(*runs)
    states = [*map(state_of, runs)]
    trained = [name for name in one if "/mean" not in name and "/variance" not in name]
    assert len(trained) == len(one) - 2
    for name in trained:
        np.testing.assert_allclose(states[0][name], one[name], rtol=0, atol=CLOSE, err_msg=name)
    result = json.loads((runs[0] / "result.json").read_text())
    assert (result["sync_batchnorm"], result["processes"]) == (False, 2)
    done = forked(tmp_path, (f"resume={runs[0]}", "devices=1", "trainer.max_epochs=2"))[0]
    assert (done.status, done.err.strip()) == (
        2,
        "error: resume: the number of processes, devices times num_nodes, must stay 2 with "
        "trainer.sync_batchnorm=false, where batch norm has the statistics of each, got 1",
    )


@pytest.mark.slow
def test_in_exact_mode_batch_norm_of_each_process_has_the_same_hashes(tmp_path: Path) -> None:
    """The backends agree with the same number of processes."""
    base = (*BY_PROCESS, "trainer.precision=exact", "trainer.global_batch_size=50", "devices=2")
    own = "trainer.sync_batchnorm=false"
    names = (*BACKENDS, "witness")
    runs = [_train(tmp_path, name, f"backend={name}", own, base=base) for name in names]
    hashes = [*map(_hashes, runs)]
    assert hashes == hashes[:1] * 3
    certificate = json.loads((runs[0] / "certificate.json").read_text())
    assert (certificate["sync_batchnorm"], certificate["processes"]) == (False, 2)
    done = forked(tmp_path, ("task=verify", f"run={runs[0]}"))[0]
    assert (done.status, done.err.strip()) == (
        2,
        "error: task=verify repeats a run in one process, and batch norm of this one has the "
        "statistics of each of 2 (trainer.sync_batchnorm=false); train it again and compare "
        "certificate.json",
    )


@pytest.mark.slow
def test_in_exact_mode_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """The run ends on the other framework with the hashes of two processes in NumPy."""
    steps = "trainer.max_steps=20"
    whole = _train(tmp_path, "whole", "backend=witness", "devices=2", steps, base=EXACT)
    first = ("backend=lightning", "devices=2", "trainer.max_steps=9")
    run = _train(tmp_path, "run", *first, base=EXACT)
    rest = ("devices=3", "backend=keras", steps)
    done = forked(tmp_path, (f"resume={run}", *rest))[0]
    assert done.status == 0, done.err
    assert _hashes(run) == _hashes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["pool", "joblib"])
def test_a_multirun_of_runs_on_two_processes_has_a_folder_each_and_one_comparison(
    tmp_path: Path, launcher: str
) -> None:
    """joblib warns of its semaphores if an interpreter does not end as usual, as forked ones do."""
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="it is an extra")
    jobs = ("schedule=constant,linear", "seed=0,1", "model=linear", "trainer.max_epochs=2")
    side = (f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2")
    runs = together if launcher == "joblib" else forked
    (done,) = runs(tmp_path, ("-m", *jobs, *side, "devices=2", "device=cpu"))
    assert (done.status, done.err) == (0, "")
    assert "4 of 4 jobs completed" in done.out
    folder = tmp_path / done.folder
    assert len([*folder.glob("*/result.json")]) == 4
    assert len((folder / "comparison.csv").read_text().splitlines()) == 1 + 4


def _ranks(running: Running) -> list[psutil.Process]:
    """Return the processes of a run, by rank."""
    started = [
        process
        for process in psutil.Process(running.pid).children()
        if any("spawn_main" in part for part in process.cmdline())
    ]
    return sorted(started, key=lambda process: process.pid)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes as Linux starts them")
@pytest.mark.parametrize(("backend", "rank"), [("lightning", 1), ("keras", 0)])
def test_a_process_that_is_stopped_ends_the_run_which_resumes_with_the_same_bits(
    tmp_path: Path, backend: str, rank: int
) -> None:
    two = (f"backend={backend}", "devices=2", "trainer.process_timeout=5s")
    often = ("trainer.checkpoint_every=5steps", "trainer.steps_per_call=1")
    without_end = ("trainer.max_steps=99999", "trainer.max_epochs=null")
    with Running(tmp_path, *RUN, *two, *often, *without_end, "output.root=run") as running:
        running.until(lambda: any(tmp_path.glob("run/runs/*/checkpoints/last")))
        stopped = _ranks(running)[rank]
        stopped.suspend()
        says = (
            f"error: rank {rank} gave no sign of life for 5 s (trainer.process_timeout); the other "
            f"processes were ended; to continue: resume=run"
        )
        running.until(lambda: says in running.errors(), 30)
        running.until(lambda: not stopped.is_running(), 30)
    (run,) = tmp_path.glob("run/runs/*")
    last = max(int(path.name) for path in run.glob("checkpoints/*[0-9]"))
    steps = (f"trainer.max_steps={last + 9}", "trainer.max_epochs=null")
    done = forked(tmp_path, (f"resume={run}", "trainer.checkpoint_every=null", *steps))[0]
    assert done.status == 0, done.err
    whole = _train(tmp_path, "whole", *two, *steps)
    states = [{k: v.tobytes() for k, v in state_of(folder).items()} for folder in (run, whole)]
    assert states[0] == states[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes as Linux starts them")
def test_the_processes_of_a_command_that_is_killed_save_and_say_nothing_else(
    tmp_path: Path,
) -> None:
    """Nobody is there to whom they could tell their status."""
    without_end = ("trainer.max_steps=99999", "trainer.max_epochs=null", "trainer.steps_per_call=1")
    with Running(tmp_path, *RUN, *without_end, "devices=2", "output.root=run") as running:
        running.until(lambda: any(tmp_path.glob("run/runs/*/checkpoints/last")))
        ranks = _ranks(running)
        running.end(signal.SIGKILL)
        assert not psutil.wait_procs(ranks, timeout=60)[1]
        said = running.errors()
    (run,) = tmp_path.glob("run/runs/*")
    assert read_json(run / "result.json")["status"] == "interrupted"
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes as Linux starts them")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_run_goes_on_with_another_number_of_processes_and_another_backend(
    tmp_path: Path, backend: str
) -> None:
    steps = ("trainer.max_steps=200", "trainer.checkpoint_every=5steps", "trainer.steps_per_call=1")
    whole = _train(tmp_path, "whole", f"backend={backend}", *steps)
    begin = (*RUN, *steps, f"backend={backend}", "output.root=run", "devices=2")
    with Running(tmp_path, *begin) as running:
        running.until(lambda: any(tmp_path.glob("run/runs/*/checkpoints/last")))
        _ranks(running)[1].kill()
        running.until(lambda: "error: rank 1 was killed by SIGKILL; " in running.errors(), 30)
    (run,) = tmp_path.glob("run/runs/*")
    done = forked(tmp_path, (f"resume={run}", "devices=1", f"backend={OTHER[backend]}"))[0]
    assert done.status == 0, done.err
    _check_equal(whole, run)
