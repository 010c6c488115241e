"""The callbacks that a config names: what each one does, and that its state survives a resume."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runner
from runner import dispatcher
from runner.config.callbacks import BestCheckpoints as BestSection
from runner.config.callbacks import EarlyStopping as StopSection
from runner.run.callbacks import CALLBACKS, best_checkpoints
from runner.run.callbacks.best_checkpoints import BestCheckpoints
from runner.run.callbacks.early_stopping import EarlyStopping
from runner.run.observer import Epoch
from runner.run.trackers.points import Points
from tests.command_line import BACKENDS, forked
from tests.training import first, prepare

ANY: Any = None


def plan(monitor: str = "val/loss", mode: str = "min") -> Any:
    trainer = SimpleNamespace(monitor=monitor, monitor_mode=mode)
    return SimpleNamespace(config=SimpleNamespace(trainer=trainer))


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


# losses and accuracies of epochs; the epoch after which the run ends with patience 2
LOSSES = [3.0, 2.0, 2.5, 1.0, 1.5, 1.5, 1.5]
ACCURACIES = [0.1, 0.2, 0.3, 0.4, 0.4, 0.5, 0.5]


@pytest.mark.parametrize(
    ("stop", "accuracies", "ended"),
    [("any", ACCURACIES, 6), ("all", ACCURACIES, None), ("all", [0.9] * 7, 6)],
)
def test_early_stopping_waits_for_all_metrics_or_for_any(
    stop: str, accuracies: list[float], ended: int | None
) -> None:
    """The loss has not improved for two epochs after the sixth. Saved and loaded between any two
    epochs, it ends after the same one."""
    section = StopSection.model_validate(
        {
            "callback": "early_stopping",
            "metrics": {"val/loss": "min", "val/accuracy": "max"},
            "patience": 2,
            "min_delta": 0.0,
            "stop": stop,
        }
    )
    console: Any = Said()
    state: dict[str, Any] | None = None
    found = None
    for i, (loss, accuracy) in enumerate(zip(LOSSES, accuracies, strict=True), 1):
        callback = EarlyStopping(section, plan(), ANY, ANY, console)
        if state is not None:
            callback.load_state(json.loads(json.dumps(state)))
        values = {"val/loss": loss, "val/accuracy": accuracy}
        assert callback.on_epoch(Epoch(i, i, {"val/loss": 9.0}, 0, False), ANY)  # of no whole epoch
        if not callback.on_epoch(Epoch(i, i, values, 0, True), ANY):
            found = i
            break
        state = callback.state()
    assert found == ended


def test_best_checkpoints_prefers_earlier_epochs_of_equal_value_and_no_nan(tmp_path: Path) -> None:
    section = BestSection.model_validate(
        {"callback": "best_checkpoints", "num": 2, "metric": "val/accuracy", "mode": "max"}
    )
    console: Any = Said()
    callback = BestCheckpoints(section, plan(), ANY, tmp_path, console)
    kept = []
    for i, value in enumerate((0.5, float("nan"), 0.7, 0.5, 0.7, 0.9), 1):
        callback.on_epoch(Epoch(i, 10 * i, {"val/accuracy": value}, 0, True), ANY)
        kept.append([*callback.kept_checkpoints()])
    assert kept == [[10], [10], [30, 10], [30, 10], [30, 50], [60, 30]]
    again = BestCheckpoints(section, plan(), ANY, tmp_path, console)
    again.load_state(json.loads(json.dumps(callback.state())))
    assert again.state() == callback.state()
    assert callback.file.read_text() == "rank,step,epoch,val/accuracy\n1,60,6,0.9\n2,30,3,0.7\n"
    assert best_checkpoints.listed(tmp_path) == {60, 30}


NAMED = (
    "callbacks=[{callback: best_checkpoints, num: 2, metric: train/loss, mode: max}, "
    "{callback: throughput, peak_flops: 1e12}, memory, {callback: early_stopping, patience: 9}]"
)


def test_a_resumed_run_has_the_files_and_the_states_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """The best epochs are the first two: their checkpoints stay beside the two newest ones, though
    trainer.checkpoint_every has none. A longer run has no row of the evaluation within epoch 3."""
    dispatcher.load(backend)
    monkeypatch.chdir(tmp_path)
    line = [f"backend={backend}", "device=cpu", "trainer.batch_size=200", NAMED]
    line += ["trainer.checkpoint_every=null"]
    whole = runner.train([*line, "trainer.max_epochs=5"], quiet=True)
    part = runner.train([*line, "trainer.max_steps=17", "trainer.max_epochs=5"], quiet=True)
    shutil.copytree(part.folder, tmp_path / "copy")
    part = runner.resume(part, "trainer.max_steps=null", quiet=True)
    read = [(run.folder / "best_checkpoints.csv").read_text() for run in (whole, part)]
    assert read[0] == read[1]
    assert [row.split(",")[1] for row in read[0].splitlines()[1:]] == ["7", "14"]
    states = []
    for run in (whole, part):
        checkpoints = run.folder / "checkpoints"
        assert {"7", "14", "35"} <= {path.name for path in checkpoints.iterdir()}
        saved = json.loads((checkpoints / "last" / "state.json").read_text())["observers"]
        assert {*saved} == {"best_checkpoints", "early_stopping"}
        states.append(saved)
        for name in ("throughput", "memory"):
            rows = (run.folder / f"{name}.csv").read_text().splitlines()
            assert [row.split(",")[0] for row in rows] == ["step", *map(str, range(7, 36, 7))]
    assert states[0] == states[1]
    rows = (tmp_path / "copy" / "memory.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "7", "14", "17"]
    points = {point.step: point.values for point in Points(whole.folder, 35).until(None)}
    assert {*points[35]} >= {"rows_per_second", "process_peak_bytes", "val/loss"}
    speed, share = points[35]["flops_per_second"], points[35]["peak_share"]
    per_row = 6 * (64 * 128 + 128 * 10)  # of the MLP's two products
    # rows a second have three decimals
    assert speed == pytest.approx(per_row * points[35]["rows_per_second"], rel=1e-4)
    assert share == speed / 1e12


def test_a_resume_without_the_callbacks_leaves_none_of_their_later_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven updates an epoch, resumed from the end of the first of two: a list of best checkpoints
    would name those that are removed."""
    monkeypatch.chdir(tmp_path)
    listed = "callbacks=[best_checkpoints,{callback: best_checkpoints, num: 1},throughput,norms]"
    line = ["device=cpu", "model=linear", "trainer.batch_size=200", "trainer.max_epochs=2"]
    run = runner.train([*line, listed, "trainer.keep_checkpoints=null"], quiet=True)
    assert len([*run.folder.glob("best_checkpoints*.csv")]) == 2
    (run.folder / "best_checkpoints_7.csv").mkdir()  # the user's own folder, which stays
    again = runner.resume(run, ["callbacks=[]", "checkpoint=7"], quiet=True)
    assert again.folder == run.folder
    left = [path.name for path in run.folder.glob("best_checkpoints*.csv")]
    assert left == ["best_checkpoints_7.csv"]
    for name, steps in (("throughput.csv", ["7"]), ("norms.csv", ["0"])):
        rows = (run.folder / name).read_text().splitlines()[1:]
        assert [row.split(",")[0] for row in rows] == steps


def test_a_share_of_the_peak_needs_layers_that_are_counted(tmp_path: Path) -> None:
    own = ("model=custom", "model._target_=torch.nn.Linear", "model.in_features=64")
    peak = "callbacks=[{callback:throughput,peak_flops:1e12}]"
    (done,) = forked(tmp_path, (*own, "model.out_features=10", peak))
    assert (done.status, done.err.strip()) == (
        2,
        "error: callbacks[0].peak_flops must be null for a model of your own, whose FLOP are not "
        "counted, got 1000000000000.0",
    )


def gradient_norms(run: Any) -> dict[str, float]:
    """The norms of the first update of the default model, by hand: cross-entropy's gradient with
    respect to the outputs is (softmax(z) - one_hot(y)) / B."""
    weights = {name: v.astype(np.float64) for name, v in run.first.weights.items()}
    rows = run.plan.order.chunk(0, 1).rows
    x, y = run.plan.data.train.x[rows].astype(np.float64), run.plan.data.train.y[rows]
    hidden = np.maximum(x @ weights["dense_0/kernel"] + weights["dense_0/bias"], 0)
    z = hidden @ weights["dense_1/kernel"] + weights["dense_1/bias"]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    dz = (p - np.eye(z.shape[1])[y]) / len(y)
    dh = dz @ weights["dense_1/kernel"].T * (hidden > 0)
    squares = {
        "dense_0": np.sum((x.T @ dh) ** 2) + np.sum(dh.sum(0) ** 2),
        "dense_1": np.sum((hidden.T @ dz) ** 2) + np.sum(dz.sum(0) ** 2),
    }
    found = {f"gradient_norm/{layer}": float(np.sqrt(v)) for layer, v in squares.items()}
    return {**found, "gradient_norm": float(np.sqrt(sum(squares.values())))}


LAYERS = (
    "model.layers=[{layer: dense, units: 8}, {layer: batch_norm}, {layer: dropout, rate: 0.3}, "
    "{layer: dense, units: 10}]"
)


def test_norms_are_those_of_the_update_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Running statistics and dropout masks are those of a run without norms."""
    dispatcher.load(backend)
    monkeypatch.chdir(tmp_path)
    line = [f"backend={backend}", "device=cpu", "trainer.max_steps=9"]
    norms = "callbacks=[{callback: norms, every: 4steps}]"
    run = runner.train([*line, norms], quiet=True)
    with (run.folder / "norms.csv").open() as file:
        rows = [{name: float(v) for name, v in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == [0, 4, 8]
    prepared = prepare(line)
    expected = gradient_norms(SimpleNamespace(plan=prepared, first=first(prepared)))
    for name, value in expected.items():
        assert rows[0][name] == pytest.approx(value, rel=1e-5), name  # float32
    weights = first(prepared).weights
    norm = np.sqrt(sum(np.sum(v.astype(float) ** 2) for v in weights.values()))
    assert rows[0]["weight_norm"] == pytest.approx(norm, rel=1e-12)
    points = {p.step: p.values for p in Points(run.folder, 2000).until(None) if p.is_update}
    assert {*points} == {0, 2, 4, 6, 8}
    assert points[4]["gradient_norm/dense_1"] == rows[1]["gradient_norm/dense_1"]
    assert "gradient_norm" not in points[6]
    with_norms, without = (
        runner.train([*line, LAYERS, *more], quiet=True) for more in ([norms], [])
    )
    assert with_norms.result["weights_sha256"] == without.result["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_do_not_depend_on_the_number_of_processes(tmp_path: Path, backend: str) -> None:
    """Batch norm, dropout, two micro-batches and a batch that two processes do not share evenly. In
    exact mode two processes have the bytes of NumPy's one; in float64 divided weights (replicated
    ones on Keras) have the norms of one process."""
    line = ["device=cpu", "trainer.max_steps=6", "trainer.global_batch_size=65", LAYERS]
    line += ["trainer.accumulate_grad_batches=2", "callbacks=[{callback: norms, every: 4steps}]"]
    exact, whole = ["trainer.precision=exact"], ["trainer.precision=float64"]
    several = "strategy=fsdp" if backend == "lightning" else "strategy=ddp"
    runs = forked(
        tmp_path,
        (*line, *exact, "backend=witness"),
        (*line, *exact, f"backend={backend}", "devices=2"),
        (*line, *whole, f"backend={backend}"),
        (*line, *whole, f"backend={backend}", "devices=2", several),
    )
    assert [done.status for done in runs] == [0] * 4
    files = [tmp_path / done.folder / "norms.csv" for done in runs]
    assert files[0].read_bytes() == files[1].read_bytes()
    numbers = [np.loadtxt(path, delimiter=",", skiprows=1) for path in files]
    # sums in another order; exact mode rounds each value to 24 bits
    np.testing.assert_allclose(numbers[3], numbers[2], rtol=1e-12)
    np.testing.assert_allclose(numbers[1], numbers[2], rtol=1e-4)


def test_every_named_callback_has_defaults_in_conf() -> None:
    folder = Path(runner.__file__).parents[1] / "conf" / "trainer" / "callback"
    assert {path.stem for path in folder.glob("*.yaml")} == {*CALLBACKS}
