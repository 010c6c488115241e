"""A loss that is NaN or infinite: it ends the run, or with trainer.on_nonfinite=skip its update is
passed over."""

import json
import math
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from safetensors.numpy import load_file

from runner import load_run
from runner.run import strict_json
from runner.run.run_folder import read_columns, read_json
from tests.command_line import BACKENDS, Done, forked
from tests.rows import slow_but
from tests.training import differences, prepare, train

# Rows of 4 features; row 17 is finite, and its sums are not: in its batch the loss is NaN. With
# batch norm, whose running statistics that batch would spoil.
MODEL = (
    "model.layers=[{layer: dense, units: 8, bias: false, init: ones},{layer: "
    "batch_norm},{layer: activation, function: relu},"
    "{layer: dropout, rate: 0.2},{layer: dense, units: outputs}]"
)
COMMON = [
    MODEL,
    "trainer.batch_size=8",
    "trainer.max_epochs=2",
    "trainer.precision=float64",
    "schedule=linear",
]
COMMON += ["trainer.checkpoint_every=1steps", "device=cpu", "optimizer.ema=0.9"]


def data(folder: Path) -> list[str]:
    x = np.random.default_rng(0).normal(size=(64, 4))
    x[17] = 1.5e308
    np.savez(folder / "data.npz", x=x, y=np.arange(64) % 2)
    return [
        "data=npz",
        f"data.path={folder / 'data.npz'}",
        "data.val_fraction=0",
        "data.test_fraction=0",
    ]


def spoiled(overrides: list[str]) -> list[int]:
    """The updates that use row 17, which the split and the order have put elsewhere."""
    prepared = prepare(overrides)
    place = int(np.flatnonzero(np.abs(prepared.data.train.x).max(axis=1) > 1e300)[0])
    return [step for step in range(16) if place in prepared.order.chunk(step, 1).rows]


def skipping(overrides: list[str]) -> list[str]:
    return [*overrides, "trainer.on_nonfinite=skip", "trainer.monitor=train/loss"]


@pytest.fixture(scope="module")
def skipped(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, tuple[Done, Path]], list[int]]:
    here = tmp_path_factory.mktemp("skipped")
    overrides = skipping([*data(here), *COMMON])
    each = forked(here, *((*overrides, f"backend={backend}") for backend in BACKENDS))
    return {b: (done, here / done.folder) for b, done in zip(BACKENDS, each, strict=True)}, spoiled(
        overrides
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_updates_are_named_counted_and_in_the_trace(
    skipped: tuple[dict[str, tuple[Done, Path]], list[int]], backend: str
) -> None:
    (done, folder), bad = skipped[0][backend], skipped[1]
    assert (done.status, done.err, len(bad)) == (0, "", 2)
    listed = ", ".join(map(str, bad))
    assert f"warning: skipped 2 updates without a finite loss: {listed}" in done.out
    result = read_json(folder / "result.json")
    assert (result["status"], result["steps"], result["skipped"]) == ("completed", 16, bad)
    trace = read_columns(folder / "trace.csv")
    assert np.flatnonzero(np.isnan(trace["loss"])).tolist() == bad
    # it goes on
    np.testing.assert_allclose(trace["learning_rate"], 1e-3 * (1 - np.arange(16) / 16), rtol=1e-12)
    # over the other rows
    assert np.isfinite(read_columns(folder / "metrics.csv")["train/loss"]).all()


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_skipped_update_changes_nothing(
    skipped: tuple[dict[str, tuple[Done, Path]], list[int]], backend: str, tmp_path: Path
) -> None:
    """Weights, slots and running statistics of the checkpoints around it: a run is stopped at both
    of its ends."""
    _, bad = skipped
    states = {}
    for step in (bad[0], bad[0] + 1):
        overrides = skipping(
            [*data(tmp_path), *COMMON, f"trainer.max_steps={step}", "schedule.duration=16steps"]
        )
        (done,) = forked(tmp_path, (*overrides, f"backend={backend}"))
        place = tmp_path / done.folder / "checkpoints" / "last"
        states[step] = [
            load_file(place / f"{part}.safetensors") for part in ("weights", "optimizer")
        ]
    for before, after in zip(*states.values(), strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)
            assert np.isfinite(value).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", slow_but(["adam", "nadam", "sgd optimizer.momentum=0.9"], "nadam")
)
def test_both_backends_skip_alike(tmp_path: Path, optimizer: str) -> None:
    """1e-12: float64's rounding over 16 updates. The losses of the two updates are NaN on both."""
    overrides = skipping([*data(tmp_path), *COMMON, *f"optimizer={optimizer}".split()])
    a, b = (train(backend, overrides) for backend in BACKENDS)
    finite = np.isfinite(a.losses)
    assert (
        np.flatnonzero(~finite).tolist()
        == np.flatnonzero(~np.isfinite(b.losses)).tolist()
        == spoiled(overrides)
    )
    clean = [one._replace(losses=one.losses[finite], outputs=np.zeros(1)) for one in (a, b)]
    assert max(differences(*clean).values()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_otherwise_or_after_too_many_the_run_ends_at_the_update(
    tmp_path: Path, backend: str
) -> None:
    overrides = [*data(tmp_path), *COMMON, "trainer.monitor=train/loss", f"backend={backend}"]
    first, second = spoiled(overrides)
    stopped, one = forked(
        tmp_path, (*overrides,), (*overrides, "trainer.on_nonfinite=skip", "trainer.max_skipped=1")
    )
    assert (stopped.status, one.status) == (1, 1)
    remedy = "; a lower optimizer.lr or trainer.gradient_clip_norm may help\n"
    assert f"failed: RunError: the loss of update {first} is nan{remedy}" in stopped.out
    assert (
        f"failed: RunError: the loss of update {second} is nan, after 1 that were skipped{remedy}"
        in one.out
    )
    for done, step in ((stopped, first), (one, second)):
        place = tmp_path / done.folder / "checkpoints" / "last"
        assert place.resolve().name == str(step)
        assert all(
            np.isfinite(value).all() for value in load_file(place / "weights.safetensors").values()
        )


def regression(folder: Path, far: list[int]) -> list[str]:
    """64 rows of a linear target; the targets of the rows `far` are 1e25, so that float32's squares
    overflow."""
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("f4")
    y = x @ np.array([2, -1], dtype="f4")
    y[far] = 1e25
    np.savez(folder / "regression.npz", x=x, y=y)
    overrides = [
        "data=npz",
        f"data.path={folder / 'regression.npz'}",
        "data.task=regression",
        "model=linear",
    ]
    return [*overrides, "trainer.on_nonfinite=skip", "trainer.monitor=train/loss", "device=cpu"]


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_chunk_of_skipped_updates_alone_is_skipped(tmp_path: Path, backend: str) -> None:
    """One update a chunk: what is left of the chunk with the far row has no rows."""
    overrides = [
        *regression(tmp_path, [5]),
        "trainer.max_steps=8",
        "trainer.batch_size=8",
        "data.val_fraction=0",
    ]
    overrides += ["data.test_fraction=0", "trainer.steps_per_call=1"]
    (done,) = forked(tmp_path, (*overrides, f"backend={backend}"))
    assert (done.status, done.err) == (0, "")
    result = read_json(tmp_path / done.folder / "result.json")
    assert (result["status"], result["steps"], len(result["skipped"])) == ("completed", 8, 1)
    assert np.isfinite(result["metrics"]["train/loss"])


def test_an_epoch_of_skipped_updates_alone_has_a_metric_that_is_no_number(tmp_path: Path) -> None:
    overrides = [
        *regression(tmp_path, list(range(64))),
        "trainer.max_epochs=4",
        "trainer.early_stopping_patience=3",
    ]
    (done,) = forked(tmp_path, tuple(overrides))
    assert (done.status, done.err) == (0, "")
    assert "stopped early: train/loss was no better for 3 epochs" in done.out
    result = read_json(tmp_path / done.folder / "result.json")
    assert (result["status"], result["best"], len(result["skipped"])) == (
        "completed",
        None,
        result["steps"],
    )
    assert np.isnan(read_columns(tmp_path / done.folder / "metrics.csv")["train/loss"]).all()


@pytest.mark.slow
def test_json_files_are_strict_whatever_the_numbers(tmp_path: Path) -> None:
    """A last update at a rate of 1e37: the loss before it is finite, the metrics after it are not.
    Going on fails by the next loss."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    x = np.random.default_rng(0).normal(size=(64, 4)) * 1000
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(64) % 2)
    options = (
        "data=npz",
        "data.path=data.npz",
        "model=linear",
        "optimizer=sgd",
        "optimizer.lr=1e37",
        "device=cpu",
    )
    one = ("trainer.batch_size=64", "trainer.max_epochs=1", *options)
    lines = (f"backend={backend}" for backend in BACKENDS)
    for line in lines:
        (done,) = forked(tmp_path, (line, *one))
        run = tmp_path / done.folder
        assert done.status == 0
        files = sorted(run.rglob("*.json"))
        assert {"result.json", "data.json", "state.json"} <= {file.name for file in files}
        for file in files:
            json.loads(file.read_text(), parse_constant=refuse)
        val = load_run(run).result["metrics"]["val/loss"]
        assert not np.isfinite(val)
        assert str(val) == str(float(read_json(run / "result.json")["metrics"]["val/loss"]))
        assert forked(tmp_path, (f"resume={done.folder}", "trainer.max_epochs=2"))[0].status == 1


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e308, -0.0])
def test_a_number_is_read_back_as_it_was(number: float) -> None:
    metrics = MappingProxyType({"a": number})  # a mapping that is no dict
    written = strict_json.dumps({"metrics": metrics, "means": [(1, [number])], "best": None})
    read = strict_json.with_numbers(json.loads(written))
    assert repr(read) == repr({"metrics": {"a": number}, "means": [[1, [number]]], "best": None})


# A run that completes and has diverged: its last update makes the weights so large that the
# validation loss is NaN

ONE_UPDATE = ("optimizer=sgd", "trainer.max_steps=1", "device=cpu")
DIVERGED = "val/loss is nan after the last epoch"


def test_a_run_that_ends_with_a_loss_of_nan_says_so_and_predict_says_so_of_its_outputs(
    tmp_path: Path,
) -> None:
    (done,) = forked(tmp_path, (*ONE_UPDATE, "optimizer.lr=1e38"))
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert (
        f"warning: the run diverged: {DIVERGED}; a lower optimizer.lr or "
        f"trainer.gradient_clip_norm may help"
    ) in lines
    assert lines[-3].startswith("result   train/loss ")
    assert lines[-3].endswith("(no epoch had a finite val/loss)")
    np.savez(tmp_path / "new.npz", x=np.full((5, 64), 0.5))
    (predicted,) = forked(tmp_path, ("task=predict", f"run={done.folder}", "data.path=new.npz"))
    assert (predicted.status, predicted.err) == (0, "")
    assert predicted.out.splitlines()[0] == (
        "warning: outputs of 5 of 5 rows are NaN or infinite; the run may have diverged"
    )


@pytest.mark.slow
def test_a_multirun_names_the_jobs_that_completed_and_diverged(tmp_path: Path) -> None:
    (done,) = forked(tmp_path, ("-m", *ONE_UPDATE, "optimizer.lr=0.1,1e38"))
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert f"diverged: optimizer.lr-1e+38  {DIVERGED}" in lines
    assert "2 of 2 jobs completed, 1 of them diverged" in lines
    assert "  optimizer.lr=1e+38: 1 of 1 seeds diverged (seed 0); not ranked" in lines


@pytest.mark.slow
def test_a_job_in_exact_mode_that_leaves_float32_diverged(tmp_path: Path) -> None:
    exact = ("optimizer=sgd", "trainer.max_steps=3", "device=cpu", "trainer.precision=exact")
    command = ("-m", *exact, "optimizer.lr=0.1,1e38")
    (done,) = forked(tmp_path, command)
    assert (done.status, done.err) == (1, "")
    assert "  optimizer.lr=1e+38: 1 of 1 seeds diverged (seed 0); not ranked" in done.out
    assert "beyond the range of float32; a lower optimizer.lr or trainer." in done.out


@pytest.mark.slow
def test_a_search_goes_on_after_a_trial_that_diverged(tmp_path: Path) -> None:
    command = (
        *("-m", "search=optuna_lr", "hydra.sweeper.n_trials=3", *ONE_UPDATE),
        "optimizer.lr=tag(log, interval(1e36, 1e38))",
    )
    (done,) = forked(tmp_path, command)
    assert (done.status, done.err) == (0, "")
    assert "3 of 3 jobs completed, 3 of them diverged" in done.out.splitlines()
