"""Models of the user's own, through the command line and on both backends: what built-in models
have, they have too."""

import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from runner import dispatcher, load_run
from runner.run.run_folder import read_columns, read_json
from tests.command_line import forked

MODULE = {
    "lightning": """
import torch
from torch import nn

from runner.cli.compose import compose
from runner.components.layers import initial_variables
from runner.config.schema import parse
from runner.plan import plan


class Net(nn.Module):
    def __init__(self, width=16, rate=0.2):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(rate)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


class Pixels(nn.Module):
    # a convolution that sees one pixel of an [N, C, H, W] image at a time, and the mean over both
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 1)

    def forward(self, x):
        assert x.shape[1:] == (1, 8, 8)
        return self.conv(x).mean((2, 3))


def mlp():
    values = initial_variables(plan(parse(compose(["device=cpu"]))).network, 0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).double()
    with torch.no_grad():
        for i, layer in enumerate((net[1], net[3])):
            layer.weight.copy_(torch.from_numpy(values[f"dense_{i}/kernel"].T))
            layer.bias.copy_(torch.from_numpy(values[f"dense_{i}/bias"]))
    return net


class Broken(nn.Module):
    def forward(self, x):
        return x.no_such_thing


class Narrow(nn.Linear):
    def __init__(self):
        super().__init__(64, 7)


def number():
    return 3
""",
    "keras": """
import keras

from runner.cli.compose import compose
from runner.components.layers import initial_variables
from runner.config.schema import parse
from runner.plan import plan


class Net(keras.Model):
    def __init__(self, width=16, rate=0.2, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {"width": width, "rate": rate}
        self.dense = keras.layers.Dense(width)
        self.norm = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(rate)
        self.head = keras.layers.Dense(10)

    def get_config(self):
        return {**super().get_config(), **self.arguments}

    def call(self, x, training=False):
        x = keras.ops.relu(self.norm(self.dense(x), training=training))
        return self.head(self.dropout(x, training=training))


class Pixels(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(10, 1)

    def call(self, x):
        assert x.shape[1:] == (8, 8, 1)
        return keras.ops.mean(self.conv(x), axis=(1, 2))


def mlp():
    values = initial_variables(plan(parse(compose(["device=cpu"]))).network, 0)
    net = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    names = ("dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias")
    net.set_weights([values[name] for name in names])
    return net


class Broken(keras.Model):
    def call(self, x):
        return x.no_such_thing


class Narrow(keras.layers.Dense):
    def __init__(self):
        super().__init__(7)


def number():
    return 3
""",
}
TRUSTED = "trusted_modules=[mine]"
KEPT = "trainer.keep_checkpoints=null"
SHORT = ("device=cpu", "trainer.batch_size=160", "trainer.max_epochs=3", TRUSTED)
WIDE = ("model=custom", "model._target_=mine.Net", "model.width=24", *SHORT)


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_file(folder / "checkpoints" / "last" / "weights.safetensors"))


def test_a_model_equal_to_the_mlp_trains_as_it_does(here: Path, backend: str) -> None:
    """The same first weights, in float64. 1e-12: the sums of a row's products may be taken in
    another order."""
    same = ("device=cpu", "trainer.precision=float64", "trainer.max_epochs=2", TRUSTED)
    kinds = ((), ("model=custom", "model._target_=mine.mlp"))
    each = forked(here, *((f"backend={backend}", *same, *kind) for kind in kinds))
    assert [(done.status, done.err) for done in each] == [(0, "")] * 2
    built_in, own = (read_columns(here / done.folder / "trace.csv") for done in each)
    assert np.array_equal(built_in["learning_rate"], own["learning_rate"])
    np.testing.assert_allclose(own["loss"], built_in["loss"], rtol=0, atol=1e-12)


def test_a_run_in_two_parts_ends_with_the_bits_of_one(here: Path, backend: str) -> None:
    """The model has the framework's dropout and running statistics, and the run goes on from
    inside an epoch. A checkpoint of a random moment gives the same."""
    command = (*WIDE, f"backend={backend}", "trainer.checkpoint_every=1steps", KEPT)
    whole, part = forked(here, command, (*command, "trainer.max_steps=11"))
    assert (whole.status, part.status) == (0, 0)
    step = random.Random(0).randrange(1, 11)
    (resumed,) = forked(
        here,
        (f"resume={part.folder}", f"checkpoint={step}", "trainer.max_steps=null", TRUSTED),
    )
    assert (resumed.status, resumed.err) == (0, "")
    hashes = [
        read_json(here / done.folder / "result.json")["weights_sha256"] for done in (whole, part)
    ]
    assert hashes[0] == hashes[1]
    traces = [(here / done.folder / "trace.csv").read_text() for done in (whole, part)]
    assert traces[0] == traces[1]


def test_first_weights_are_the_framework_s_under_the_run_s_seed(here: Path, backend: str) -> None:
    """As torch.manual_seed(5) or keras.utils.set_random_seed(5) before the model is made; an
    update at a rate of 1e-30 moves them by less than 1e-20."""
    kept = ("optimizer=sgd", "optimizer.lr=1e-30", "seed=5", "trainer.max_steps=1")
    (done,) = forked(here, (*WIDE, f"backend={backend}", *kept))
    assert (done.status, done.err) == (0, "")
    trained = weights_of(here / done.folder)
    space: dict[str, object] = {}
    exec(MODULE[backend], space)
    if backend == "lightning":
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            net = space["Net"](width=24)  # type: ignore[operator]
        expected = {name: p.detach().numpy() for name, p in net.named_parameters()}
    else:
        dispatcher.load("keras")
        import keras

        keras.utils.set_random_seed(5)
        net = space["Net"](width=24)  # type: ignore[operator]
        net.build((None, 64))
        names = {p.path.partition("/")[2]: p.numpy() for p in net.trainable_variables}
        expected = {f"net/{name}": value for name, value in names.items()}
    assert expected.keys() <= trained.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(trained[name], value, rtol=0, atol=1e-20, err_msg=name)


@pytest.mark.slow
def test_what_can_be_done_with_a_run_can_be_done_with_it(here: Path, backend: str) -> None:
    """Evaluate, predict and export give the outputs of the model that `load_run` gives."""
    (done,) = forked(here, (*WIDE, f"backend={backend}"))
    x = np.random.default_rng(0).uniform(0, 1, (7, 64)).astype(np.float32)
    np.savez(here / "new.npz", x=x)
    form = {"lightning": "torch", "keras": "keras"}[backend]
    run = f"run={done.folder}"
    each = forked(
        here,
        (run, "task=evaluate", TRUSTED),
        (run, "task=predict", "data.path=new.npz", TRUSTED),
        (run, "task=export", f"format={form}", TRUSTED),
        (run, "task=export", "format=safetensors", TRUSTED),
        (run, "task=evaluate"),
    )
    assert [one.status for one in each] == [0, 0, 0, 0, 2]
    assert "which is not trusted" in each[-1].err
    folder = here / done.folder
    assert 0 <= read_json(folder / "test.json")["test/accuracy"] <= 1
    assert (folder / "model.safetensors").is_file()
    outputs = np.load(folder / "predictions.npz")["outputs"]
    assert outputs.shape == (7, 10)
    if backend == "lightning":
        import torch

        exported = torch.export.load(folder / "model.pt2").module()
        found = exported(torch.from_numpy(x)).detach().numpy()
    else:
        import keras

        space: dict[str, object] = {"__name__": "mine"}
        exec(MODULE["keras"], space)
        loaded = keras.models.load_model(folder / "model.keras", {"Net": space["Net"]})
        found = loaded(x, training=False).numpy()
    # float32 sums in another order
    np.testing.assert_allclose(found, outputs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_keras_file_that_cannot_be_loaded_is_not_written(tmp_path: Path) -> None:
    """Keras makes a subclass from its config, which holds the defaults of its arguments."""
    (tmp_path / "mine.py").write_text(MODULE["keras"])
    one = ("model=custom", "model._target_=mine.Pixels", "data.images=true", *SHORT)
    (done,) = forked(tmp_path, (*one, "trainer.max_steps=1", "backend=keras"))
    (exported,) = forked(tmp_path, (f"run={done.folder}", "task=export", "format=keras", TRUSTED))
    assert exported.status == 2
    assert exported.err.startswith(
        "error: format=keras: a file of model._target_ mine.Pixels cannot be loaded: TypeError: "
    )
    assert exported.err.count("\n") == 1
    assert not (tmp_path / done.folder / "model.keras").exists()


def test_images_come_in_the_framework_s_order(here: Path, backend: str) -> None:
    command = ("model=custom", "model._target_=mine.Pixels", "data.images=true", *SHORT)
    (done,) = forked(here, (*command, f"backend={backend}"))
    assert (done.status, done.err) == (0, "")


def test_its_weights_are_grouped_by_the_framework_s_names(here: Path, backend: str) -> None:
    """The head's rate is a tenth, in a column of its own. Names are Keras's paths, or torch's."""
    match = {"lightning": "head.*", "keras": "net/dense_1/*"}[backend]
    groups = f"optimizer.groups=[{{match: '{match}', lr_factor: 0.1}}]"
    (done,) = forked(here, (*WIDE, f"backend={backend}", groups))
    assert (done.status, done.err) == (0, "")
    trace = read_columns(here / done.folder / "trace.csv")
    assert np.unique(trace["learning_rate"]) == [1e-3]
    assert np.unique(trace["learning_rate*0.1"]) == [1e-4]


@pytest.mark.slow
def test_a_changed_module_is_not_the_same_job(here: Path, backend: str) -> None:
    """A multirun goes on in its folder: jobs of the same code are completed, others are made. A run
    that resumes says that the code has changed."""
    folder = "output.multirun=outputs/multiruns/all"
    command = ("-m", *WIDE, f"backend={backend}", folder, "schedule=constant,linear")
    (first,) = forked(here, command)
    assert first.status == 0, first.err
    (again,) = forked(here, command)
    assert again.out.count("is already complete") == 2
    with (here / "mine.py").open("a") as file:
        file.write("\n# changed\n")
    (changed,) = forked(here, command)
    assert "is already complete" not in changed.out
    run = next((here / "outputs/multiruns/all").glob("schedule-constant*"))
    with (here / "mine.py").open("a") as file:
        file.write("\n# changed again\n")
    (resumed,) = forked(here, (f"resume={run}", "trainer.max_epochs=4", TRUSTED))
    assert "warning: the code of mine has changed since step 24" in resumed.out + resumed.err


REFUSED = {
    "mine.Broken": (
        "model._target_ mine.Broken raised AttributeError: {before}'{kind}' object has no "
        "attribute 'no_such_thing' (mine.py:"
    ),
    "mine.Narrow": (
        "model._target_ mine.Narrow returns rows of shape [7]; the loss and the data need [10]"
    ),
    "mine.number": (
        "model._target_ mine.number must make a {base} for this backend, got builtins.int"
    ),
    "mine.Nothing": (
        "model._target_ must be importable, got mine.Nothing: module 'mine' has no attribute "
        "'Nothing'"
    ),
    "mine.Net model.depth=3": "model._target_ mine.Net raised {argument}",
}
WORDS = {
    "lightning": {
        "kind": "Tensor",
        "before": "",
        "base": "torch.nn.Module",
        "argument": "TypeError: Net.__init__() got an unexpected keyword argument 'depth'",
    },
    "keras": {
        "kind": "SymbolicTensor",
        "before": "Could not automatically infer the output shape / dtype of 'broken' (of type "
        "Broken). Either the `Broken.call()` method is incorrect, or you need to implement the "
        "`Broken.compute_output_spec() / compute_output_shape()` method. Error encountered: ",
        "base": "keras.Model or keras.Layer",
        "argument": "ValueError: Unrecognized keyword arguments passed to Net: {'depth': 3}",
    },
}


@pytest.mark.parametrize("target", REFUSED)
def test_a_model_that_cannot_be_built_is_one_line(here: Path, backend: str, target: str) -> None:
    name, *more = target.split()
    line = ("model=custom", f"model._target_={name}", *more, *SHORT)
    (done,) = forked(here, (*line, f"backend={backend}"))
    assert done.status == 2
    assert done.err.startswith(f"error: {REFUSED[target].format(**WORDS[backend])}")
    assert done.err.count("\n") == 1
    assert not (here / "outputs").exists()


def test_a_run_can_be_read_in_python(
    here: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The framework's own model, which gives what `predict` gives."""
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    (done,) = forked(here, (*WIDE, f"backend={backend}"))
    run = load_run(done.folder, trusted_modules=["mine"])
    x = np.random.default_rng(0).uniform(0, 1, (5, 64)).astype(np.float32)
    outputs = run.predict(x)
    model = run.model()
    assert type(model).__name__ == "Net"
    if backend == "lightning":
        import torch

        found = model(torch.from_numpy(x)).detach().numpy()
    else:
        found = model(x, training=False).numpy()
    # float32 sums in another order
    np.testing.assert_allclose(found, outputs, rtol=0, atol=1e-5)


def test_first_weights_are_those_of_another_run(here: Path, backend: str) -> None:
    """A frozen body keeps them, and a head of another width is new with `strict=false`."""
    (first,) = forked(here, (*WIDE, f"backend={backend}"))
    assert (first.status, first.err) == (0, "")
    before = weights_of(here / first.folder)
    match, shape = {"lightning": ("body.*", (24, 64)), "keras": ("net/dense/*", (64, 24))}[backend]
    frozen = f"optimizer.groups=[{{match: '{match}', lr_factor: 0}}]"
    source = f"model.weights={first.folder}"
    thin = (f"backend={backend}", *(a.replace("model.width=24", "model.width=12") for a in WIDE))
    tuned, narrow, loose, nowhere = forked(
        here,
        (*WIDE, f"backend={backend}", source, frozen),
        (*thin, source),
        (*thin, source, "model.strict=false"),
        (*WIDE, f"backend={backend}", "model.weights=nowhere"),
    )
    assert (tuned.status, tuned.err) == (0, "")
    assert "tensors loaded" in tuned.out
    after = weights_of(here / tuned.folder)
    kernel = next(name for name, value in before.items() if value.shape == shape)
    assert np.array_equal(after[kernel], before[kernel])
    assert any(not np.array_equal(after[name], before[name]) for name in before)
    assert narrow.status == 2
    assert f"error: model.weights must fit the model, got {first.folder} with" in narrow.err
    assert (loose.status, loose.err) == (0, "")
    assert nowhere.err == (
        "error: model.weights must be a file of weights or the folder of a run, got nowhere\n"
    )


def test_first_weights_are_those_of_a_file_of_the_framework(here: Path, backend: str) -> None:
    """An update at a rate of 1e-30 moves them by less than 1e-20."""
    space: dict[str, object] = {}
    exec(MODULE[backend], space)
    if backend == "lightning":
        import torch

        net = space["Net"](width=24)  # type: ignore[operator]
        torch.save(net.state_dict(), here / "own.pt")
        expected = {name: p.detach().numpy() for name, p in net.named_parameters()}
        source = "own.pt"
    else:
        dispatcher.load("keras")
        import keras

        keras.utils.clear_session()  # so that the layers have the names of a new process
        net = space["Net"](width=24)  # type: ignore[operator]
        net(np.zeros((2, 64), np.float32))
        net.save_weights(here / "own.weights.h5")
        expected = {f"net/{p.path.partition('/')[2]}": p.numpy() for p in net.trainable_variables}
        source = "own.weights.h5"
    kept = ("optimizer=sgd", "optimizer.lr=1e-30", "trainer.max_steps=1", f"model.weights={source}")
    (done,) = forked(here, (*WIDE, f"backend={backend}", *kept))
    assert (done.status, done.err) == (0, "")
    trained = weights_of(here / done.folder)
    assert expected.keys() <= trained.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(trained[name], value, rtol=0, atol=1e-20, err_msg=name)


@pytest.mark.slow
def test_a_built_in_model_starts_from_the_weights_of_a_run(tmp_path: Path) -> None:
    """Trained on Lightning, then on Keras: the first loss is the last run's, to float32."""
    short = ("device=cpu", "trainer.batch_size=160", "data=digits", "trainer.max_epochs=2")
    (first,) = forked(tmp_path, short)
    tuned, exported = forked(
        tmp_path,
        (*short, f"model.weights={first.folder}"),
        (f"run={first.folder}", "task=export", "format=safetensors"),
    )
    assert (tuned.status, exported.status) == (0, 0)
    (again,) = forked(
        tmp_path, (*short, f"model.weights={first.folder}/model.safetensors", "backend=keras")
    )
    assert (again.status, again.err) == (0, "")
    losses = [read_columns(tmp_path / d.folder / "trace.csv")["loss"] for d in (tuned, again)]
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-5)
    last = read_columns(tmp_path / first.folder / "metrics.csv")["train/loss"][-1]
    assert losses[0][0] < last  # a new network has ln 10, 2.3


@pytest.mark.slow
def test_an_optimizer_whose_state_holds_the_weights_starts_from_those_of_a_run(
    tmp_path: Path,
) -> None:
    """Schedule-free optimizers take gradients at weights of their own, Prodigy measures the
    distance from the first weights."""
    short = ("device=cpu", "trainer.batch_size=160", "data=digits", "trainer.max_steps=8")
    (first,) = forked(tmp_path, (*short, "optimizer.lr=0.01"))
    source = f"model.weights={first.folder}"
    names = ("adam", "schedule_free_adamw", "prodigy")
    runs = forked(tmp_path, *((*short, source, f"optimizer={name}") for name in names))
    assert [run.status for run in runs] == [0, 0, 0]
    losses = [read_columns(tmp_path / run.folder / "trace.csv")["loss"][0] for run in runs]
    assert losses == [losses[0]] * 3
    checkpoint = tmp_path / runs[2].folder / "checkpoints" / "last"
    slots = load_file(checkpoint / "optimizer.safetensors")
    for name, value in weights_of(tmp_path / first.folder).items():
        np.testing.assert_array_equal(slots[f"first_weights/{name}"], value)
