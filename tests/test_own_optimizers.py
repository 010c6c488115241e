"""Optimizers of the user's own, on both backends: what built-in optimizers have, they have too."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from runner.run.run_folder import read_columns, read_json
from tests.command_line import OTHER, forked, loss_and_accuracy, mlp
from tests.training import difference, prepare, train

MODULE = {
    "lightning": """
import torch
from torch import nn


class ScheduleFree(torch.optim.Optimizer):
    # SGD that is schedule-free (Defazio et al., 2024): gradients are taken at y, evaluation uses
    # the mean x, and y = (1 - beta) z + beta x
    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "is_training": False})

    @torch.no_grad()
    def _move(self, weight, to_training):
        for group in self.param_groups:
            if group["is_training"] != to_training:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], weight(group["beta"]))
                group["is_training"] = to_training

    def train(self):
        self._move(lambda beta: 1 - beta, True)

    def eval(self):
        self._move(lambda beta: 1 - 1 / beta, False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["is_training"]
            group["k"] += 1
            c = 1 / group["k"]
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, c)
                p.sub_(p.grad, alpha=group["lr"] * (1 - group["beta"] * (1 - c)))
                z.sub_(p.grad, alpha=group["lr"])


class Noisy(torch.optim.SGD):
    # draws noise, counts in an attribute, and keeps a state that is shared by all weights
    def __init__(self, params, lr):
        super().__init__(params, lr=lr, momentum=0.9)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(torch.randn_like(p), alpha=1e-3 / self.count)
        super().step()


def radam(params, lr, **arguments):
    return torch.optim.RAdam(params, lr=lr, **arguments)


class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise ValueError("no step today")


class Closure(torch.optim.SGD):
    def step(self, closure):
        closure()


class Text(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["word"] = "text"


def number(params, lr):
    return 3
""",
    "keras": """
import keras


def radam(learning_rate, betas=(0.9, 0.999)):
    return keras.optimizers.Nadam(learning_rate, beta_1=betas[0], beta_2=betas[1])


class Broken(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        raise ValueError("no step today")


def number(learning_rate):
    return 3
""",
}
TRUSTED = "trusted_modules=[mine]"
RATES = ("schedule=exponential", "schedule.decay_rate=0.5", "schedule.decay_steps=10")
SHORT = ("device=cpu", "trainer.batch_size=160", "trainer.max_epochs=3", *RATES, TRUSTED)
STEPS = ["device=cpu", "trainer.max_steps=40", "trainer.batch_size=100", "schedule=cosine"]


def own(target: str, *arguments: str) -> tuple[str, ...]:
    return ("optimizer=custom", f"optimizer._target_={target}", *arguments)


def test_torch_s_adamw_is_the_built_in_one() -> None:
    """Equal bits, with torch's fused kernel, which the built-in one uses; the rates are read back
    from the optimizer's groups."""
    built_in = train("lightning", [*STEPS, "optimizer=adamw"])
    arguments = ("optimizer.weight_decay=0.01", "optimizer.fused=true")
    custom = train("lightning", [*STEPS, *own("torch.optim.AdamW", *arguments)])
    assert np.array_equal(custom.rates, built_in.rates)
    assert np.array_equal(custom.losses, built_in.losses)
    assert difference(custom.state.weights, built_in.state.weights) == 0


@pytest.mark.slow
def test_keras_s_adamw_is_the_built_in_one() -> None:
    """Keras adds epsilon to the uncorrected root, so with a small one they differ little: 1e-6 is
    1e-3 of a step."""
    precise = [*STEPS, "trainer.precision=float64"]
    built_in = train("keras", [*precise, "optimizer=adamw", "optimizer.eps=1e-15"])
    arguments = ("optimizer.weight_decay=0.01", "optimizer.epsilon=1e-15")
    custom = train("keras", [*precise, *own("keras.optimizers.AdamW", *arguments)])
    assert np.array_equal(custom.rates, built_in.rates)
    assert difference(custom.state.weights, built_in.state.weights) < 1e-6


RESUMED = [
    ("lightning", "mine.ScheduleFree", "optimizer.lr=0.5"),
    *(
        pytest.param(*row, marks=pytest.mark.slow)
        for row in (
            ("lightning", "mine.radam", "optimizer.betas=[0.9,0.99]"),
            ("lightning", "torch.optim.NAdam", "optimizer.weight_decay=0.1"),
            ("lightning", "torch.optim.Muon", ""),
            ("lightning", "mine.Noisy", "trainer.gradient_clip_norm=0.1"),
            ("keras", "keras.optimizers.Muon", "optimizer.weight_decay=0.1"),
            ("keras", "keras.optimizers.Lion", "optimizer.use_ema=true"),
            ("keras", "keras.optimizers.Adagrad", "optimizer.clipnorm=0.1"),
            ("keras", "mine.radam", "trainer.gradient_clip_norm=0.1"),
        )
    ),
]


@pytest.mark.parametrize(("backend", "target", "argument"), RESUMED)
def test_a_run_in_two_parts_ends_with_the_bits_of_one(
    here: Path, backend: str, target: str, argument: str
) -> None:
    """From inside an epoch on: weights, slots and trace."""
    if target.endswith("torch.optim.Muon"):  # it takes matrices only
        argument = "optimizer.groups=[{match: '*/bias', lr_factor: 0}]"
    command = (*own(target), *filter(None, [argument]), f"backend={backend}", *SHORT)
    whole, part = forked(here, command, (*command, "trainer.max_steps=11"))
    assert (whole.status, whole.err, part.status) == (0, "", 0)
    (resumed,) = forked(here, (f"resume={part.folder}", "trainer.max_steps=null", TRUSTED))
    assert (resumed.status, resumed.err) == (0, "")
    for name in ("weights", "optimizer"):
        a, b = (slots_of(here / done.folder, name) for done in (whole, part))
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert value.dtype == b[key].dtype, key
            assert np.array_equal(value, b[key]), key
    traces = [(here / done.folder / "trace.csv").read_text() for done in (whole, part)]
    assert traces[0] == traces[1]


def slots_of(folder: Path, name: str = "optimizer") -> Mapping[str, np.ndarray]:
    return dict(load_file(folder / "checkpoints" / "last" / f"{name}.safetensors"))


def test_a_checkpoint_of_a_schedule_free_run_has_the_weights_for_evaluation(
    tmp_path: Path,
) -> None:
    """x = y + (1 - 1 / beta) (z - y), of the slots y (the training weights) and z. The loss of the
    validation rows is that of x. 1e-6: float32."""
    (tmp_path / "mine.py").write_text(MODULE["lightning"])
    command = (*own("mine.ScheduleFree", "optimizer.lr=0.5"), *SHORT, "backend=lightning")
    (done,) = forked(tmp_path, command)
    folder = tmp_path / done.folder
    weights, slots = slots_of(folder, "weights"), slots_of(folder)
    for name, x in weights.items():
        y, z = slots[f"training_weights/{name}"], slots[f"z/{name}"]
        z = z if z.shape == x.shape and "bias" in name else z.T  # in torch's layout
        np.testing.assert_allclose(x, y + (1 - 1 / 0.9) * (z - y), rtol=0, atol=1e-6)
        assert not np.array_equal(x, y)
    assert slots["param_groups:number/0.k"] == 24
    metrics = read_columns(folder / "metrics.csv")
    split = prepare(["device=cpu"]).data.val
    loss, _ = loss_and_accuracy(mlp(weights, split.x), split.y)
    assert metrics["val/loss"][-1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_with_moving_averages_has_them_as_weights(tmp_path: Path) -> None:
    command = (*own("keras.optimizers.Lion", "optimizer.use_ema=true"), *SHORT, "backend=keras")
    (done,) = forked(tmp_path, (*command[:-2], "backend=keras"))
    folder = tmp_path / done.folder
    slots = slots_of(folder)
    for name, value in slots_of(folder, "weights").items():
        assert np.array_equal(value, slots[f"average/{name}"])
        assert not np.array_equal(value, slots[f"training_weights/{name}"])


TWIN = (("lightning", "torch"), ("keras", "keras"))
OPTIMIZER = {"lightning": "torch.optim.AdamW", "keras": "keras.optimizers.AdamW"}


def test_groups_have_rates_and_decays_of_their_own(backend: str) -> None:
    """As with the built-in optimizer: a group's rate is a column of the trace. A frozen weight has
    no slots. 1e-2: of 40 steps of about 1e-3; the frameworks' epsilon, as documented. Without the
    factors, weights would differ by more, as the last line says."""
    groups = (
        "optimizer.groups=[{match: dense_0/bias, lr_factor: 0},{match: dense_0, lr_factor: 0.1}]",
        "optimizer.weight_decay=3.0",
        "optimizer.decay_exclude=bias_and_norm",
    )
    built_in = train(backend, [*STEPS, "optimizer=adamw", *groups])
    custom = train(backend, [*STEPS, *own(OPTIMIZER[backend]), *groups])
    assert {*custom.applied} == {"learning_rate", "learning_rate*0.1", "learning_rate*0.0"}
    for name, rates in built_in.applied.items():
        assert np.array_equal(custom.applied[name], rates)
    assert difference(custom.state.weights, built_in.state.weights) < 1e-2
    assert all("dense_0/bias" not in values for values in custom.state.slots.values())
    plain = train(backend, [*STEPS, *own(OPTIMIZER[backend]), groups[1], groups[2]])
    assert difference(custom.state.weights, plain.state.weights) > 2e-2


def test_a_model_of_the_user_s_own_trains_with_it(tmp_path: Path, backend: str) -> None:
    model = {
        "lightning": ("torch.nn.Linear", "model.in_features=64", "model.out_features=10"),
        "keras": ("keras.layers.Dense", "model.units=10"),
    }[backend]
    command = ("model=custom", f"model._target_={model[0]}", *model[1:], *own(OPTIMIZER[backend]))
    (done,) = forked(tmp_path, (*command, *SHORT[:-1], f"backend={backend}"))
    assert (done.status, done.err) == (0, "")
    trace = read_columns(tmp_path / done.folder / "trace.csv")
    assert trace["loss"][-1] < trace["loss"][0]


def test_a_twin_trains_with_it(backend: str) -> None:
    """Groups have the twin's names; the slots keep the framework's, and a run resumes from them."""
    twin = ("model=twin", *(f"model.{b}._target_=tests.twin_models.{b2}_small" for b, b2 in TWIN))
    command = [*STEPS, *own(OPTIMIZER[backend]), *twin, "trusted_modules=[tests.twin_models]"]
    command += ["optimizer.groups=[{match: dense_0, lr_factor: 0.1}]", "trainer.steps_per_call=5"]
    command += [f"backend={backend}"]
    whole, part = train(backend, command), train(backend, command, stop_after=10)
    rest = train(backend, command, start=part.state)
    # 3e-7: both are rounded to float32, the product here twice
    np.testing.assert_allclose(whole.applied["learning_rate*0.1"], whole.rates * 0.1, rtol=3e-7)
    assert "dense_0/kernel" in whole.state.weights
    assert difference(whole.state.weights, rest.state.weights) == 0


def test_an_update_without_a_finite_loss_does_not_reach_it(here: Path, backend: str) -> None:
    """Some rows overflow the loss: the updates with them leave weights and slots finite,
    and the rates go on by the table."""
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    x[::32] = 3e38
    np.savez(here / "data.npz", x=x, y=np.arange(64) % 3)
    data = ("data=npz", "data.path=data.npz", "data.val_fraction=0", "trainer.batch_size=8")
    skip = ("trainer.on_nonfinite=skip", "trainer.max_epochs=3", "trainer.monitor=train/loss")
    model = "model.layers=[{layer: dense, units: 8, init: ones},{layer: dense, units: outputs}]"
    command = (*own(OPTIMIZER[backend]), model, *RATES, *data, *skip, "device=cpu")
    (done,) = forked(here, (*command, f"backend={backend}"))
    assert done.status == 0, done.err
    folder = here / done.folder
    assert read_json(folder / "result.json")["skipped"]
    for name in ("weights", "optimizer"):
        assert all(np.isfinite(value).all() for value in slots_of(folder, name).values())
    rates = read_columns(folder / "trace.csv")["learning_rate"]
    np.testing.assert_allclose(rates, 1e-3 * 0.5 ** (np.arange(len(rates)) / 10), rtol=1e-6)


REFUSED = {
    "mine.number": "optimizer._target_ mine.number must make a {base} for this backend, got "
    "builtins.int",
    "mine.Nothing": "optimizer._target_ must be importable, got mine.Nothing: module 'mine' has no "
    "attribute 'Nothing'",
    "{adam} optimizer.momentun=3": "optimizer._target_ {adam} raised {unexpected}",
    "{layer}": "optimizer._target_ {layer} must make a {base} for this backend, got {kind}",
    "mine.Broken": "optimizer._target_ mine.Broken raised ValueError: no step today (mine.py:",
}
ONLY = {
    "lightning": {
        "mine.Closure": "optimizer._target_ mine.Closure needs a closure that computes the loss "
        "again; an optimizer of your own gets one gradient per update",
        "torch.optim.LBFGS": "optimizer._target_ torch.optim.LBFGS needs a closure that computes "
        "the loss again; an optimizer of your own gets one gradient per update",
        "mine.Text": "optimizer._target_ mine.Text keeps word of dense_0/kernel of type str; a "
        "checkpoint can hold dense tensors of NumPy's dtypes and numbers",
        "torch.optim.Rprop optimizer.decay_exclude=bias_and_norm": "optimizer._target_ "
        "torch.optim.Rprop has no weight_decay in its parameter groups, so optimizer.decay_exclude "
        "must be none and weight_decay_factor 1",
    },
    "keras": {
        "keras.optimizers.get": "optimizer._target_ must be a class of keras.optimizers, got "
        "keras.optimizers.get",
        "keras.optimizers.SGD optimizer.gradient_accumulation_steps=2": "optimizer."
        "gradient_accumulation_steps must be null; use trainer.accumulate_grad_batches",
        "keras.optimizers.SGD optimizer.groups=[{match:dense_0,weight_decay_factor:0.5}]": (
            "optimizer.groups: weight_decay_factor must be 0 or 1 for optimizer=custom on Keras"
        ),
    },
}
WORDS = {
    "lightning": {
        "base": "torch.optim.Optimizer",
        "adam": "torch.optim.Adam",
        "unexpected": "TypeError: Adam.__init__() got an unexpected keyword argument 'momentun'",
        "layer": "torch.nn.Linear",
        "kind": "torch.nn.modules.linear.Linear",
    },
    "keras": {
        "base": "keras.optimizers.Optimizer",
        "adam": "keras.optimizers.Adam",
        "unexpected": "ValueError: Argument(s) not recognized: {'momentun': 3}",
        "layer": "keras.layers.Dense",
        "kind": "keras.src.layers.core.dense.Dense",
    },
}


@pytest.mark.slow
def test_an_optimizer_that_cannot_train_is_one_line(here: Path, backend: str) -> None:
    words, refused = WORDS[backend], {**REFUSED, **ONLY[backend]}
    for line, expected in refused.items():
        for key, value in words.items():
            line = line.replace("{" + key + "}", value)
            expected = expected.replace("{" + key + "}", value)
        target, *arguments = line.split()
        (done,) = forked(here, (*own(target, *arguments), *SHORT, f"backend={backend}"))
        assert done.err.startswith(f"error: {expected}"), line
        assert (done.status, done.err.count("\n")) == (2, 1), line
        assert not (here / "outputs").exists(), line


@pytest.mark.slow
def test_the_backend_cannot_change_on_resume(here: Path, backend: str) -> None:
    command = (*own(OPTIMIZER[backend]), *SHORT[:-1], f"backend={backend}", "trainer.max_steps=11")
    (done,) = forked(here, command)
    other = OTHER[backend]
    (resumed,) = forked(
        here, (f"resume={done.folder}", "trainer.max_steps=null", f"backend={other}")
    )
    assert (resumed.status, resumed.err) == (
        2,
        f"error: resume: backend must stay {backend} with optimizer=custom, whose state is of that "
        f"framework, got {other}\n",
    )
