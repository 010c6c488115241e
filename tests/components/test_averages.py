"""Averages of the weights: the formulas against torch's AveragedModel, and what a run does with
them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from runner import load_run
from runner.cli.compose import compose
from runner.components import averages
from runner.config.schema import parse
from runner.errors import ConfigError
from runner.run.run_folder import read_columns, read_json
from runner.schedules import Clock
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but
from tests.training import difference, train

CLOCK = Clock(total_steps=23, steps_per_epoch=5)


def shares(override: str, clock: Clock = CLOCK) -> np.ndarray:
    values = averages.shares(parse(compose([override])).optimizer, clock)
    assert values is not None
    return values


@pytest.mark.parametrize(
    ("override", "sampled"),
    [
        ("optimizer.ema=0.8", [*range(23)]),
        # 10 of 23 updates are left after update 12: epochs end after updates 14 and 19, and the run
        # after update 22
        ("optimizer.swa=10steps", [14, 19, 22]),
    ],
)
def test_the_average_is_that_of_torch(override: str, sampled: list[int]) -> None:
    """23 random vectors are averaged in float64; 1e-14 is some roundings."""
    weights = np.random.default_rng(0).normal(size=(23, 4))
    model = torch.nn.Linear(4, 1, bias=False, dtype=torch.float64)
    averaging = get_ema_avg_fn(0.8) if "ema" in override else None
    expected = AveragedModel(model, avg_fn=averaging)
    average = np.zeros(4)
    for t, share in enumerate(shares(override)):
        average = average + share * (weights[t] - average) if share < 1 else weights[t]
        if t in sampled:
            with torch.no_grad():
                model.weight[0] = torch.from_numpy(weights[t])
            expected.update_parameters(model)
        if t < sampled[0]:
            np.testing.assert_array_equal(average, weights[t])
        else:
            found = expected.module.weight[0].detach().numpy()
            np.testing.assert_allclose(average, found, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_the_slot_is_the_average_of_the_weights_and_training_does_not_depend_on_it(
    backend: str,
) -> None:
    """The weights after each update are those of runs of 1, 2, ... 6 updates without an average.
    1e-15: a rounding of each of 6 updates."""
    base = ["model=linear", "trainer.precision=float64", "schedule=constant"]
    runs = [train(backend, [*base, f"trainer.max_steps={n}"]).state for n in range(1, 7)]
    expected = {name: np.zeros_like(value) for name, value in runs[0].weights.items()}
    for share, state in zip([1.0, *[0.25] * 5], runs, strict=True):
        for name, value in state.weights.items():
            expected[name] = (1 - share) * expected[name] + share * value
    found = train(backend, [*base, "trainer.max_steps=6", "optimizer.ema=0.75"]).state
    assert difference(found.weights, runs[-1].weights) == 0
    assert difference(found.slots["average_weights"], expected) < 1e-15


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("averaged")
    (done,) = forked(
        here,
        ("model=linear", "optimizer.swa=2epochs", "trainer.max_epochs=4", "trainer.batch_size=128",
         "optimizer.lr=0.1", "trainer.checkpoint_every=1epochs", "trainer.keep_checkpoints=null",
         "schedule=constant", "trainer.precision=float64", "device=cpu"),
    )  # fmt: skip
    assert (done.status, done.err) == (0, "")
    return here / done.folder


def test_the_average_is_evaluated_beside_the_weights(run: Path) -> None:
    """It is another model once the second of the two last epochs has ended: that of the mean of the
    checkpoints of both."""
    columns = read_columns(run / "metrics.csv")
    assert columns["val/loss"][:3].tolist() == columns["val/loss_swa"][:3].tolist()
    assert columns["val/loss"][3] != columns["val/loss_swa"][3]
    steps = [int(step) for step in columns["step"]]
    plain = [load_run(run, checkpoint=step, weights="plain").weights for step in steps]
    average = load_run(run).weights
    for name, value in average.items():
        mean = (plain[2][name] + plain[3][name]) / 2
        np.testing.assert_allclose(value, mean, rtol=0, atol=1e-15)  # a rounding
    assert load_run(run, weights="plain").weights.keys() == average.keys()


@pytest.mark.slow
def test_commands_on_a_run_use_the_average_unless_told_otherwise(run: Path, tmp_path: Path) -> None:
    """Exported weights are those that are evaluated."""
    measured = {}
    for which in ("auto", "plain", "average"):
        done, exported = forked(
            tmp_path,
            ("task=evaluate", f"run={run}", f"weights={which}"),
            ("task=export", f"run={run}", f"weights={which}", "format=safetensors"),
        )
        assert (done.status, exported.status) == (0, 0)
        assert ("average of the weights" in done.out) == (which != "plain")
        measured[which] = read_json(run / "test.json")
    assert measured["auto"] == measured["average"]
    assert measured["auto"]["weights"] == "average"
    assert measured["plain"]["weights"] == "plain"
    assert measured["auto"]["test/loss"] != measured["plain"]["test/loss"]


def test_the_latest_epochs_are_averaged() -> None:
    """The ends of the epochs, after 5, 10, 15 and 20 updates, have equal shares; the average of at
    most 3 of them is the mean of the latest."""
    expected = np.zeros(23)
    expected[:5], expected[[9, 14, 19]] = 1, [1 / 2, 1 / 3, 1 / 3]
    np.testing.assert_array_equal(shares("optimizer.lawa=3"), expected)


_LATEST = ["model=linear", "schedule=constant", "trainer.batch_size=512", "optimizer.lawa=3"]


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_the_average_of_the_latest_epochs_is_the_mean_of_their_weights(backend: str) -> None:
    """Runs of 1, 2, ... 5 epochs of 3 updates give the weights; one of 5 epochs and an update keeps
    the mean of epochs 3 to 5. 1e-15: some roundings."""
    base = [*_LATEST, "trainer.precision=float64"]
    runs = [train(backend, [*base, f"trainer.max_epochs={n}"]).state for n in range(1, 6)]
    found = train(backend, [*base, "trainer.max_steps=16"]).state
    for name, value in found.slots["average_weights"].items():
        mean = np.mean([state.weights[name] for state in runs[2:]], axis=0)
        np.testing.assert_allclose(value, mean, rtol=0, atol=1e-15)
    for i in (1, 2):  # the next average needs these
        assert difference(found.slots[f"earlier_weights_{i}"], runs[-i].weights) == 0
    second = runs[1].slots["average_weights"]
    for name, value in second.items():
        mean = (runs[0].weights[name] + runs[1].weights[name]) / 2
        np.testing.assert_allclose(value, mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_the_average_of_the_latest_epochs_has_the_same_bits_in_exact_mode(backend: str) -> None:
    run = [*_LATEST, "trainer.precision=exact", "trainer.max_steps=16"]
    found, expected = (train(name, run).state.slots for name in (backend, "witness"))
    assert found.keys() == expected.keys()
    assert all(difference(found[slot], expected[slot]) == 0 for slot in found)


def test_a_longer_run_has_the_average_of_one_that_was_longer_from_its_start() -> None:
    """4 epochs of 10 updates average those that end at 30 and 40; a run of 5 epochs averages 40 and
    50, so it cannot have that of 30 and 40; one of 6 epochs averages 50 and 60."""
    before = Clock(40, 10)
    optimizer = parse(compose(["optimizer.swa=2epochs"])).optimizer
    averages.check_extended(optimizer, before, Clock(60, 10), 40)
    averages.check_extended(optimizer, before, Clock(50, 10), 30)
    with pytest.raises(ConfigError, match="has another average; set checkpoint to one before"):
        averages.check_extended(optimizer, before, Clock(50, 10), 40)
