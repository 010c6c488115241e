"""Training from Python gives what the command line gives, and leaves the process as it was."""

import json
import logging
import os
import pickle
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runner
from runner import dispatcher
from runner.run.observer import Observer
from tests.command_line import BACKENDS, forked, in_new_process
from tests.rows import slow_but
from tests.test_own_models import MODULE, SHORT

TRAIN = "device=cpu trainer.batch_size=160"


@pytest.fixture(params=slow_but(BACKENDS, "lightning"))
def backend(request: pytest.FixtureRequest) -> str:
    dispatcher.load(request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def nets(backend: str) -> dict[str, Any]:
    """Net, Narrow and others, defined as in a notebook: no module has them."""
    space: dict[str, Any] = {"__name__": "notebook"}
    exec(MODULE[backend], space)
    return space


def quick(backend: str, more: str = "", epochs: int = 2, **objects: Any) -> runner.Run:
    line = f"backend={backend} {TRAIN} trainer.max_epochs={epochs} {more}"
    return runner.train(line, quiet=True, **objects)


def sha256(run: runner.Run) -> str:
    return str(run.result["weights_sha256"])


def test_a_class_and_a_factory_give_the_bits_of_the_command_line(
    tmp_path: Path, backend: str
) -> None:
    (tmp_path / "mine.py").write_text(MODULE[backend])
    command = (
        f"backend={backend}",
        *TRAIN.split(),
        "trainer.max_epochs=2",
        "model=custom",
        "model._target_=mine.Net",
    )
    (done,) = forked(tmp_path, (*command, "seed=3", SHORT[-1]))
    assert (done.status, done.err) == (0, "")
    expected = runner.load_run(tmp_path / done.folder, trusted_modules=["mine"])
    net = nets(backend)["Net"]
    for model in (net, lambda: net()):
        run = quick(backend, "seed=3", model=model)
        assert sha256(run) == sha256(expected)
        assert np.array_equal(run.trace["loss"], expected.trace["loss"])
    assert run.config.seed == 3
    assert (run.folder / "trace.csv").read_text() == (
        tmp_path / done.folder / "trace.csv"
    ).read_text()


def instance(backend: str, seed: int = 5) -> tuple[Any, Any]:
    """A model with weights, and the same model's outputs as a function of rows."""
    if backend == "lightning":
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU())
            net.append(torch.nn.Linear(16, 10))
        return net, lambda model, x: model(torch.from_numpy(x)).detach().numpy()
    import keras

    make = keras.initializers.GlorotUniform(seed=seed)
    layers = [keras.layers.Dense(n, kernel_initializer=make) for n in (16, 10)]
    return keras.Sequential([keras.Input((64,)), *layers]), lambda model, x: model(x).numpy()


def test_an_instance_keeps_its_weights_and_is_not_changed(
    backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of 1e-30 the trained model is the first one: an update moves a weight by less than
    1e-20."""
    net, outputs = instance(backend)
    x = np.random.default_rng(0).uniform(0, 1, (5, 64)).astype(np.float32)
    before = outputs(net, x)
    still = "optimizer=sgd optimizer.lr=1e-30"
    kept = runner.train(f"backend={backend} {TRAIN} trainer.max_epochs=1 {still} seed=7", model=net)
    assert "an instance: it keeps its weights, whatever the seed" in capsys.readouterr().out
    np.testing.assert_allclose(outputs(kept.model(), x), before, rtol=0, atol=1e-20)
    trained = quick(backend, "optimizer.lr=0.1", model=net)
    assert np.abs(outputs(trained.model(), x) - before).max() > 0.01  # some updates at a high rate
    assert np.array_equal(outputs(net, x), before)
    assert trained.model() is not net
    # float32 sums in another order
    np.testing.assert_allclose(outputs(trained.model(), x), trained.predict(x), rtol=0, atol=1e-5)


def test_a_run_in_two_parts_is_the_run_in_one(backend: str) -> None:
    net = nets(backend)["Net"]
    whole = quick(backend, epochs=3, model=net)
    part = quick(backend, epochs=1, model=net)
    resumed = runner.resume(part, "trainer.max_epochs=3", quiet=True)
    again = quick(backend, epochs=1, model=net)
    by_folder = runner.resume(again.folder, "trainer.max_epochs=3", model=net, quiet=True)
    assert sha256(whole) == sha256(resumed) == sha256(by_folder)
    assert np.array_equal(resumed.trace["loss"], whole.trace["loss"])


@pytest.mark.slow
def test_an_object_is_asked_for_again(tmp_path: Path, backend: str) -> None:
    """The command line and Python say in one line that no file has it."""
    run = quick(backend, model=lambda: nets(backend)["Net"]())
    (done,) = forked(tmp_path, (f"resume={run.folder}", "trainer.max_epochs=3"))
    said = "model=object is a model that was passed in Python, tests.test_python."
    assert done.status == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    with pytest.raises(runner.ConfigError, match="load_run with model="):
        runner.load_run(run.folder).model()


def test_a_changed_object_is_named_on_resume(
    backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = nets(backend)
    run = quick(backend, model=made["Net"])
    capsys.readouterr()
    runner.resume(run, f"trainer.max_epochs=3 backend={backend}", model=lambda: made["Net"]())
    assert "has changed since step" in capsys.readouterr().out
    values = json.loads((run.folder / "environment.json").read_text())
    assert values["objects"]["model"]["kind"] == "class or function"
    assert len(values["objects"]["model"]["first_weights_sha256"]) == 64


class Stop(Observer):
    """Sends Ctrl-C to the process at an update."""

    def __init__(self, step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        self.step, self.number, self.times = step, number, times

    def on_chunk(self, chunk: Any, report: Any, live: Any) -> bool:
        if chunk.first_step + chunk.num_steps == self.step:
            for _ in range(self.times):
                signal.raise_signal(self.number)
        return True


def test_ctrl_c_saves_and_is_raised(backend: str) -> None:
    """The interrupted run resumes to the bits of a whole one, and the handlers are those of
    before."""
    whole = quick(backend)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as stopped:
        quick(backend, "trainer.steps_per_call=1", callbacks=[Stop(5)])
    assert isinstance(stopped.value, runner.Interrupted)
    assert stopped.value.folder is not None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    part = runner.load_run(stopped.value.folder)
    assert (part.status, len(part.trace["step"])) == ("interrupted", 5)
    assert sha256(runner.resume(part, quiet=True)) == sha256(whole)


def test_a_second_ctrl_c_ends_at_once(backend: str) -> None:
    """After update 12, with a checkpoint of update 8: it resumes to the bits of a whole run."""
    whole, handler = quick(backend), signal.getsignal(signal.SIGINT)
    with pytest.raises(runner.Interrupted) as stopped:
        quick(backend, "trainer.steps_per_call=1", callbacks=[Stop(12, times=2)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.value.folder is not None
    part = runner.load_run(stopped.value.folder)
    assert part.status == "unfinished"
    assert sha256(runner.resume(part, quiet=True)) == sha256(whole)


def test_another_signal_goes_to_the_handler_of_before() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        stop = Stop(5, signal.SIGTERM)
        run = quick("lightning", "trainer.steps_per_call=1", callbacks=[stop])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert run.status == "interrupted"


def _process_state(backend: str) -> dict[str, Any]:
    """Settings of the process that a training may change."""
    loggers = [logging.getLogger(name) for name in ("", "pytorch_lightning", "tensorflow", "absl")]
    state: dict[str, Any] = {
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "files": [os.fstat(descriptor).st_ino for descriptor in (1, 2)],
        "logging": [(logger.level, list(logger.handlers)) for logger in loggers],
        "disabled": logging.root.manager.disable,
        "warnings": (list(warnings.filters), warnings.showwarning),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "numpy errors": np.geterr(),
        "threads": {thread.name for thread in threading.enumerate()},
        "hook": sys.excepthook,
    }
    if backend == "lightning":
        import torch

        return state | {
            "torch": torch.get_rng_state().tolist(),
            "torch threads": torch.get_num_threads(),
            "dtype": torch.get_default_dtype(),
            "grad": torch.is_grad_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "subnormal": bool(torch.tensor(5e-324, dtype=torch.float64) * 1 > 0),
        }
    import keras
    import tensorflow as tf

    return state | {
        "floatx": keras.config.floatx(),
        "policy": keras.config.dtype_policy(),
        "filtering": keras.config.is_traceback_filtering_enabled(),
        "tf threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "eager": tf.executing_eagerly(),
    }


def test_a_training_leaves_the_process_as_it_was(backend: str) -> None:
    """In float64, which global settings would show, and with a model of the user's own."""
    net, outputs = instance(backend)
    x = np.random.default_rng(0).uniform(0, 1, (5, 64)).astype(np.float32)
    expected = outputs(net, x)
    before = _process_state(backend)
    quick(backend, "trainer.precision=float64", model=net)
    after = _process_state(backend)
    assert {name for name in before if before[name] != after[name]} == set()
    assert np.array_equal(outputs(net, x), expected)


@pytest.mark.slow
def test_a_notebook_s_keras_session_goes_on() -> None:
    """Automatic names count on, and a compiled model of before trains as if nothing was between."""
    dispatcher.load("keras")
    import keras

    def number() -> int:
        return int(keras.layers.Dense(1).name.rpartition("_")[2])

    net, outputs = instance("keras")
    net.compile("sgd", "mse")
    x, y = np.ones((8, 64), np.float32), np.zeros((8, 10), np.float32)
    net.fit(x, y, verbose=0)
    number()
    first = number()
    quick("keras", model=nets("keras")["Net"])
    assert number() == first + 1
    before = outputs(net, x)
    net.fit(x, y, verbose=0)
    assert not np.array_equal(outputs(net, x), before)


def test_a_compiled_keras_model_trains_as_it_does_uncompiled() -> None:
    """The config's loss, optimizer and metrics replace those of `compile`."""
    dispatcher.load("keras")
    compiled, plain = instance("keras")[0], instance("keras")[0]
    compiled.compile("sgd", "mse", metrics=["accuracy", "mae"])
    run, other = quick("keras", epochs=1, model=compiled), quick("keras", epochs=1, model=plain)
    assert run.result["metrics"] == other.result["metrics"]
    says = "the config replaces the loss, optimizer and metrics of compile"
    logs = [(each.folder / "run.log").read_text("utf-8") for each in (run, other)]
    assert [says in log for log in logs] == [True, False]


def test_keras_s_state_is_where_this_release_has_it() -> None:
    """A canary: without it, a run would use the notebook's session."""
    dispatcher.load("keras")
    from backends.keras import session

    assert session.module() is not None


def test_it_trains_beside_the_main_thread(backend: str) -> None:
    """Two threads take turns; only the main thread could handle signals."""
    expected = sha256(quick(backend))
    runs: list[runner.Run] = []
    threads = [threading.Thread(target=lambda: runs.append(quick(backend))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sha256(run) for run in runs] == [expected] * 2
    assert runs[0].folder != runs[1].folder


THREADS = """
import os
import keras, numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(2)
keras.ops.matmul(np.ones((4, 4)), np.ones((4, 4)))  # now TensorFlow keeps them
import json, runner
line = "backend=keras device=cpu trainer.max_steps=2 model=linear"
run = runner.train(line, quiet=True)
print(run.status, json.loads((run.folder / "environment.json").read_text())["threads"])
try:
    runner.train(line + " trainer.threads=1", quiet=True)
except runner.ConfigError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_run_takes_the_threads_that_tensorflow_has(tmp_path: Path) -> None:
    assert in_new_process(tmp_path, THREADS).splitlines() == [
        "completed 2",
        "trainer.threads must be auto or 2, the number that backend=keras has in this process, "
        "got 1",
    ]


OTHER_KERAS = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras, runner
try:
    runner.train("backend=keras device=cpu", quiet=True)
except runner.ConfigError as error:
    print(error)
"""


@pytest.mark.slow
def test_keras_on_another_framework_is_one_line(tmp_path: Path) -> None:
    assert in_new_process(tmp_path, OTHER_KERAS) == (
        "backend=keras needs Keras on TensorFlow, and this process has imported Keras on torch; "
        "set KERAS_BACKEND=tensorflow before the first import of keras\n"
    )


@pytest.mark.slow
def test_an_instance_that_keras_cannot_copy_is_one_line() -> None:
    """Keras's config of a subclass holds the defaults of its arguments, not 24."""
    dispatcher.load("keras")
    import keras

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self, width: int = 16) -> None:
            super().__init__()
            self.body, self.head = keras.layers.Dense(width), keras.layers.Dense(10)

        def call(self, x: Any) -> Any:
            return self.head(self.body(x))

    with pytest.raises(runner.ConfigError) as refused:
        quick("keras", model=Net(24))
    assert str(refused.value) == (
        f"model {Net.__qualname__} cannot be copied: TypeError: its class has no get_config; pass "
        f"the class or a function that makes it"
    )
    assert quick("keras", model=lambda: Net(24)).status == "completed"


def test_a_run_can_be_sent_to_another_process() -> None:
    run = quick("lightning", "seed=2")
    copied = pickle.loads(pickle.dumps(run))
    assert repr(copied) == repr(run)
    assert repr(run).startswith(f"Run({str(run.folder)!r}, completed, train/loss ")
    assert np.array_equal(copied.weights["dense_0/kernel"], run.weights["dense_0/kernel"])


def test_a_frame_needs_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    run = quick("lightning")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(runner.ConfigError, match="a DataFrame needs pandas: pip install pandas"):
        run.frame("trace")
    made: list[Any] = []
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=made.append))
    run.frame("trace")
    assert list(made[0]) == ["step", "learning_rate", "loss"]


class Columns:
    """The used part of a DataFrame: names of columns, and its conversion to an array."""

    def __init__(self, values: np.ndarray, columns: list[str]) -> None:
        self.values, self.columns = values, columns

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self.values


def test_the_columns_of_a_table_keep_their_names() -> None:
    x, y = rows()
    names = [f"pixel {i}" for i in range(64)]
    run = quick("lightning", data=(Columns(x, names), Columns(y[:, None], ["digit"])))
    assert (run.data["features"], run.data["target"]) == (names, "digit")
    assert sha256(run) == sha256(quick("lightning", data=(x, y)))


@pytest.mark.slow
def test_quiet_prints_nothing_and_a_long_run_few_lines(
    capfd: pytest.CaptureFixture[str],
) -> None:
    quick("lightning")
    assert capfd.readouterr() == ("", "")
    line = "data=diabetes device=cpu trainer.batch_size=300 trainer.max_epochs=100"
    run = runner.train(line, data=None)
    out, err = capfd.readouterr()
    assert err == ""
    assert "\r" not in out
    assert sum(text.startswith("epoch ") for text in out.splitlines()) == 20
    assert (run.folder / "run.log").read_text().count("  epoch ") == 100


def test_what_the_user_s_own_code_prints_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    net = nets("lightning")["Net"]

    def noisy() -> Any:
        print("making a model")
        return net()

    quick("lightning", model=noisy)
    assert "making a model" in capfd.readouterr().out


def test_a_failed_training_is_an_error_with_its_folder() -> None:
    with pytest.raises(runner.RunError, match="the loss of update") as failed:
        quick("lightning", "optimizer=sgd optimizer.lr=1e30")
    assert failed.value.folder is not None
    assert (failed.value.folder / "run.log").is_file()
    assert "\n" not in str(failed.value)
    assert isinstance(failed.value, runner.TwinrunError)


def test_compare_says_what_the_command_line_says(tmp_path: Path) -> None:
    runs = [
        quick("lightning", f"schedule={name} seed={seed}")
        for name in ("constant", "linear")
        for seed in range(2)
    ]
    answer = runner.compare(runs)
    folders = ",".join(str(run.folder) for run in runs)
    (done,) = forked(tmp_path, ("task=compare", f"runs=[{folders}]"))
    assert done.status == 0, done.err

    def without_paths(text: str) -> list[str]:
        paths = ("folder ", "picture ", "page ")
        return [line for line in text.strip().splitlines() if not line.startswith(paths)]

    assert without_paths(str(answer)) == without_paths(done.out)
    saved = json.loads((answer.folder / "answer.json").read_text())
    assert list(answer.says) == saved["says"]
    assert (answer.winner, answer.is_real) == (saved["winner"], saved["is_real"])
    assert [row["overrides"] for row in answer.table] == [g["label"] for g in saved["groups"]]


@pytest.mark.slow
def test_models_that_differ_are_not_averaged() -> None:
    """Classes of one name, as when a notebook's cell was changed between two runs."""
    narrow, wide = (lambda width=width: nets("lightning")["Net"](width) for width in (8, 24))
    data = rows()
    runs = [
        quick("lightning", f"seed={seed} data.standardize=true", model=model, data=data)
        for model in (narrow, wide)
        for seed in (0, 1)
    ]
    answer = runner.compare(runs)
    assert [row["seeds"] for row in answer.table] == ["2", "2"]
    assert answer.command == (
        f'runner.train("backend=lightning {TRAIN} trainer.max_epochs=2 data.standardize=true", '
        f"model=..., data=...)"
    )


def rows(num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 1, (num, 64)).astype(np.float32)
    return x, generator.integers(0, 10, num)


def test_arrays_train_as_the_npz_of_the_same_arrays(tmp_path: Path, backend: str) -> None:
    x, y = rows()
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    keys = "data.standardize=true data.val_fraction=0.3 seed=1"
    file = quick(backend, f"data=npz data.path={tmp_path / 'rows.npz'} {keys}")
    for data in ((x, y), {"x": x, "y": y}, {"train": (x, y)}):
        run = quick(backend, keys, data=data)
        assert sha256(run) == sha256(file)
        assert run.data["sha256"] == file.data["sha256"]
    assert run.evaluate() == file.evaluate()
    with pytest.raises(runner.ConfigError, match="the data is not what"):
        runner.resume(run.folder, "trainer.max_epochs=3", data=(x + 1, y), quiet=True)


def test_splits_are_used_as_they_are() -> None:
    """10 rows each, of which none moves to another split."""
    x, y = rows(90)
    data = {"train": (x[:60], y[:60]), "val": (x[60:75], y[60:75]), "test": (x[75:], y[75:])}
    run = quick("lightning", data=data)
    assert run.data["rows"] == {"train": 60, "val": 15, "test": 15}
    assert run.config.data.val_fraction == run.config.data.test_fraction == 0
    assert np.array_equal(run.plan.data.val.x, x[60:75])


def test_labels_may_be_text_and_data_a_map_style_data_set() -> None:
    x, y = rows()
    named = np.array(["ab", "cd"], dtype=object)[y % 2]
    run = quick("lightning", data=(x, named))
    assert run.data["classes"] == ["ab", "cd"]

    class Pairs:
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.int64]:
            return x[i], y[i]

    assert sha256(quick("lightning", data=Pairs())) == sha256(quick("lightning", data=(x, y)))


def test_a_function_is_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    def falling(t: np.ndarray, total_steps: int, lr: float, **_: Any) -> np.ndarray:
        return lr * (1 - t / total_steps)

    run = quick("lightning", "optimizer.lr=0.5 trainer.precision=float64", schedule=falling)
    t = np.arange(16)
    assert np.array_equal(run.trace["learning_rate"], 0.5 * (1 - t / 16))


X, Y = rows(20)
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "a sweep": (
        "seed=0,1",
        {},
        "seed=0,1 has several values, and train makes one run; call it in a loop, or write a list "
        "as [a,b]",
    ),
    "-m": (
        "-m seed=0,1",
        {},
        "overrides must be KEY=VALUE, got -m; for several runs, call train in a loop: "
        "[train(f'seed={k}') for k in range(5)]",
    ),
    "another task": ("task=preview", {}, "task must be train in runner.train, got preview"),
    "resume": ("resume=x", {}, "resume is not a key of train; call runner.resume(FOLDER)"),
    "no folder": (
        "",
        {"config_dir": "nowhere"},
        "--config-dir must be a folder, got nowhere",
    ),
    "an open quote": ("schedule='a", {}, "overrides schedule='a: No closing quotation"),
    "an unknown key": (
        "optimizer.lrr=1",
        {},
        "unknown key optimizer.lrr; optimizer=adam accepts: ",
    ),
    "no model": (
        "",
        {"model": 3},
        "model int must make a torch.nn.Module for this backend, got builtins.int",
    ),
    "a model's name": (
        "",
        {"model": "mlp"},
        "model must be a model, or a class or function that makes one, got text; a model of the "
        "config is an override: train('model=mlp')",
    ),
    "a model twice": (
        "model=mlp",
        {"model": int},
        "model is set twice: by the override model=... and by the argument model, builtins.int",
    ),
    "no data": ("", {"data": 3}, "data must be (x, y), got int"),
    "one array": ("", {"data": X}, "data must be (x, y), got numpy.ndarray"),
    "other keys": ("", {"data": {"x": X}}, "data must have the keys x and y, got x"),
    "rows": ("", {"data": (X, Y[:-1])}, "data: x has 20 rows, y has 19"),
    "a value": (
        "",
        {"data": (np.where(X[2, 3] == X, np.nan, X), Y)},
        "data: row 2, column x[3] is nan; all values must be finite",
    ),
    "numbers as labels": (
        "",
        {"data": (X, Y / 2)},
        "data: y must be labels, integers of shape [N], got float64 of shape [20]; set "
        "data.task=regression to predict numbers",
    ),
    "other rows": (
        "",
        {"data": {"train": (X, Y), "val": (X[:, :3], Y)}},
        "data['val']: a row of x must have the shape of a training row, [64], got [3]",
    ),
    "a fraction of a split that is given": (
        "data.val_fraction=0.5",
        {"data": {"train": (X, Y), "val": (X, Y)}},
        "data.val_fraction must not be set if data has the split val",
    ),
    "no schedule": (
        "",
        {"schedule": 3},
        "schedule must be a function of t, total_steps, steps_per_epoch and lr, got int",
    ),
    "a schedule that fails": (
        "",
        {"schedule": lambda t, **_: 1 / 0},
        "schedule._target_ <lambda> raised ZeroDivisionError: division by zero (test_python.py:",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments_are_one_line_and_write_nothing(tmp_path: Path, case: str) -> None:
    overrides, objects, said = BAD[case]
    with pytest.raises(runner.ConfigError) as refused:
        runner.train(overrides, **objects)
    assert str(refused.value).startswith(said)
    assert str(refused.value).count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def cross_entropy(backend: str) -> Any:
    """The loss of loss=cross_entropy, as a function of the framework's tensors."""
    if backend == "lightning":
        import torch

        return lambda outputs, batch: torch.nn.functional.cross_entropy(outputs, batch[1])
    import keras

    return lambda outputs, batch: keras.ops.mean(
        keras.losses.sparse_categorical_crossentropy(batch[1], outputs, from_logits=True)
    )


def test_a_loss_and_metrics_are_objects(backend: str) -> None:
    """The loss is the built-in one up to the rounding of float32, over 16 updates; the metric is
    accuracy, written here."""

    def hits(outputs: Any, targets: Any) -> Any:
        return (outputs.argmax(axis=1) == targets).astype(float)

    metrics = {"hits": hits, "accuracy": "accuracy"}
    loss = cross_entropy(backend)
    run = quick(backend, loss=loss, metrics=metrics)
    built_in = quick(backend)
    np.testing.assert_allclose(run.trace["loss"], built_in.trace["loss"], rtol=1e-4)
    for split in ("train", "val"):
        assert np.array_equal(run.metrics[f"{split}/hits"], run.metrics[f"{split}/accuracy"])
    again = runner.load_run(run.folder, loss=loss, metrics=metrics)
    assert again.evaluate().keys() == {"test/loss", "test/hits", "test/accuracy"}
    longer = runner.resume(run, "trainer.max_epochs=3", quiet=True)
    assert longer.result["steps"] == 24
    values = json.loads((run.folder / "environment.json").read_text())
    assert {"loss", "metrics hits"} <= values["objects"].keys()


def test_two_losses_without_a_name_are_two(backend: str) -> None:
    """Keras keeps what it has compiled for the next run of an equal config."""
    one = cross_entropy(backend)
    first, second = (
        quick(backend, loss=loss) for loss in (lambda z, b: one(z, b), lambda z, b: 2 * one(z, b))
    )
    # the same first weights and rows; a product with 2 is exact
    assert np.float32(second.trace["loss"][0]) == 2 * np.float32(first.trace["loss"][0])


def test_an_object_of_the_framework_is_a_loss(backend: str) -> None:
    """Its call takes outputs and targets as the framework does."""
    if backend == "lightning":
        import torch

        loss: Any = torch.nn.CrossEntropyLoss()
    else:
        import keras

        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    run, other = quick(backend, loss=loss), quick(backend, loss=cross_entropy(backend))
    np.testing.assert_allclose(run.trace["loss"], other.trace["loss"], rtol=1e-5)


def test_wrong_losses_and_metrics_are_refused() -> None:
    for how, words in {
        "loss": "loss must be a function of outputs and batch, got huber; a loss of the config",
        "metrics": "metrics must be a dict of names and functions, got huber; metrics of the",
    }.items():
        with pytest.raises(runner.ConfigError, match=words):
            runner.train("", quiet=True, **{how: "huber"})  # type: ignore[arg-type]
    with pytest.raises(runner.ConfigError, match="metrics must have functions"):
        runner.train("", quiet=True, metrics={"a": "accuracy"})
    with pytest.raises(runner.ConfigError, match="loss is set twice"):
        runner.train("loss=huber", quiet=True, loss=len)
