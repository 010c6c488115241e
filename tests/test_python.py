"""Training from Python gives what the command line gives, and leaves the process as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runner
from runner import dispatcher
from tests.command_line import BACKENDS, forked
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
