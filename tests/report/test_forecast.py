"""task=forecast: a law that made the losses predicts the schedules that it has not seen, and a loss
that no law made is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.__main__ import main
from runner.report import forecast
from runner.report.forecast import Trace
from runner.schedules.units import Clock
from runner.tasks.forecast import named
from tests.run_folders import write_run

STEPS = 400
CURVES = named(Clock(STEPS, 20), 0.1)


def losses(rates: np.ndarray, memory: float = 30.0) -> np.ndarray:
    """Tissue et al. 2024, equation 1, term by term: 0.3 + 0.5 S1^-0.5 - 0.4 S2."""
    decay, moment, area, travelled = 1 - 1 / memory, 0.0, 0.0, 0.0
    found: list[float] = []
    for i in range(len(rates)):
        moment = decay * moment + (rates[i - 1] - rates[i] if i else 0.0)
        area += moment
        travelled += rates[i]
        found.append(0.3 + 0.5 * travelled**-0.5 - 0.4 * area / memory)
    return np.array(found)


def trace(name: str, noise: float = 0.0) -> Trace:
    drawn = np.random.default_rng(len(name)).normal(0, noise, STEPS)
    return Trace(name, CURVES[name], losses(CURVES[name]) * (1 + drawn), 20)


def test_the_law_that_made_two_runs_predicts_the_others() -> None:
    """Without noise the fit is stopped by the simplex's tolerance of 1 % in alpha and tau."""
    law = forecast.fit([forecast.blocks(trace("constant")), forecast.blocks(trace("linear"))])
    for name in ("cosine", "wsd", "step", "exponential"):
        expected = losses(CURVES[name])[-20:].mean()
        assert law.final(CURVES[name]) == pytest.approx(expected, rel=0.005), name
    assert (law.alpha, law.memory) == pytest.approx((0.5, 30), rel=0.1)


def test_held_out_stretches_are_predicted_within_the_noise() -> None:
    """The mean of 20 losses with 2 % of noise each is 0.45 % off, and the fit adds its own."""
    errors = forecast.held_out([trace("constant", 0.02), trace("cosine", 0.02)])
    assert [each.name for each in errors] == ["constant", "cosine"]
    assert all(each.error < 0.02 for each in errors)


@pytest.mark.parametrize(
    ("steps", "epoch", "length"), [(800, 40, 40), (800, 4, 16), (800, 100, 13), (6400, 30, 120)]
)
def test_a_block_is_of_whole_epochs_if_there_are_enough(
    steps: int, epoch: int, length: int
) -> None:
    assert forecast.block_length(steps, epoch) == length


def write_traces(folder: Path, wrong: float = 0.0) -> list[str]:
    """Two runs of 400 updates; `wrong` is added to the last quarter of the second one's losses."""
    paths = []
    for i, name in enumerate(("constant", "linear")):
        choices = [f"schedule={name}", "optimizer.lr=0.1"]
        path = write_run(folder, choices, 0).rename(folder / name)
        values = losses(CURVES[name]) + wrong * i * (np.arange(STEPS) >= 300)
        rows = (f"{t},{CURVES[name][t]!s},{values[t]!s}\n" for t in range(STEPS))
        (path / "trace.csv").write_text("step,learning_rate,loss\n" + "".join(rows))
        metrics = "epoch,step,train/loss,val/loss,seconds\n"
        metrics += "".join(f"{e},{20 * e},1.0,0.5,{e}.0\n" for e in range(1, 21))
        (path / "metrics.csv").write_text(metrics)
        paths.append(str(path))
    return paths


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_RESAMPLES", 3)


@pytest.mark.usefixtures("few")
def test_the_table_has_every_named_schedule_at_three_horizons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ",".join(write_traces(tmp_path))
    arguments = ["task=forecast", f"runs=[{runs}]", f"output.root={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["runner", *arguments])
    assert main() == 0
    (path,) = tmp_path.glob("forecasts/*/forecast.json")
    found = json.loads(path.read_text())["forecasts"]
    assert {(row["schedule"], row["steps"]) for row in found} == {
        (name, times * STEPS) for name in CURVES if name != "noam" for times in (1, 2, 4)
    }
    assert {"cosine", "linear", "wsd"} <= CURVES.keys()
    assert not {"plateau", "range_test", "custom"} & CURVES.keys()
    assert all(row["low"] <= row["value"] <= row["high"] for row in found)
    cosine = next(r for r in found if (r["schedule"], r["steps"]) == ("cosine", STEPS))
    assert cosine["value"] == pytest.approx(losses(CURVES["cosine"])[-20:].mean(), rel=0.01)
    out = capsys.readouterr().out
    assert "held out constant: " in out
    assert "left out noam: " in out  # its rates are those of a width of 512


def test_a_loss_that_the_law_does_not_predict_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ",".join(write_traces(tmp_path, wrong=1.0))
    monkeypatch.setattr(sys, "argv", ["runner", "task=forecast", f"runs=[{runs}]"])
    assert main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the law does not predict the last quarter of linear from its")
    assert not (tmp_path / "forecasts").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("one", "runs must hold at least two completed runs, got 1"),
        ("short", "runs must have at least 200 updates, got "),
        ("same", "runs must have at least two schedules, got the same rates in all"),
        ("negative", "runs must have losses above 0, got others in "),
    ],
)
def test_runs_that_cannot_be_fitted_are_refused(
    tmp_path: Path,
    change: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = write_traces(tmp_path)
    lines = (Path(second) / "trace.csv").read_text().splitlines(keepends=True)
    changed = {
        "one": lines,
        "short": lines[:150],
        "same": (Path(first) / "trace.csv").read_text().splitlines(keepends=True),
        "negative": [*lines[:-1], "399,0.1,-0.5\n"],
    }[change]
    (Path(second) / "trace.csv").write_text("".join(changed))
    runs = first if change == "one" else f"{first},{second}"
    monkeypatch.setattr(sys, "argv", ["runner", "task=forecast", f"runs=[{runs}]"])
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.slow
def test_the_best_shape_is_no_worse_than_the_named_schedules_by_the_law() -> None:
    """The shapes are piecewise linear and fall from the base rate, as `linear` does."""
    law = forecast.fit([forecast.blocks(trace("constant")), forecast.blocks(trace("linear"))])
    ends = [1.0, *forecast.best_shape(law, STEPS, 0.1)]
    assert ends == sorted(ends, reverse=True)
    rates = 0.1 * np.interp(np.arange(STEPS) / STEPS, np.linspace(0, 1, len(ends)), ends)
    assert law.final(rates) <= law.final(CURVES["linear"]) + 1e-6
