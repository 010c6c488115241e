"""task=forecast: a law that made the losses predicts the schedules that it has not seen, and a loss
that no law made is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.__main__ import main
from runner.report import forecast, laws
from runner.report.forecast import Forecast, Trace
from runner.report.laws import KINDS, Kind
from runner.schedules.units import Clock
from runner.tasks.forecast import horizons, named
from tests.run_folders import write_run

STEPS = 400
CURVES = named(Clock(STEPS, 20), 0.1)


def annealing(rates: np.ndarray) -> np.ndarray:
    """Tissue et al. 2024, equation 1, term by term: 0.3 + 0.5 S1^-0.5 - 0.4 S2 / 30 with a memory
    of 30 updates."""
    decay, moment, area, travelled = np.exp(-1 / 30), 0.0, 0.0, 0.0
    found: list[float] = []
    for i in range(len(rates)):
        moment = decay * moment + (rates[i - 1] - rates[i] if i else 0.0)
        area += moment
        travelled += rates[i]
        found.append(0.3 + 0.5 * travelled**-0.5 - 0.4 * area / 30)
    return np.array(found)


def multi_power(rates: np.ndarray) -> np.ndarray:
    """Luo et al. 2025, term by term: 0.3 + 0.5 S1^-0.5 - LD with B = 0.8, C = 2, gamma = 0.4 and
    beta = 0.6."""
    found: list[float] = []
    for t in range(len(rates)):
        fallen = 0.0
        for k in range(1, t + 1):
            if rates[k] > 0 and rates[k] != rates[k - 1]:
                distance = rates[k : t + 1].sum()
                gain = 1 - (1 + 2 * rates[k] ** -0.4 * distance) ** -0.6
                fallen += (rates[k - 1] - rates[k]) * gain
        found.append(0.3 + 0.5 * rates[: t + 1].sum() ** -0.5 - 0.8 * fallen)
    return np.array(found)


def saturated(rates: np.ndarray) -> np.ndarray:
    """0.3 + 0.5 S1^-0.5, where twice a rate makes less than twice the way (kappa = 2), plus a hump
    of 0.02 in the middle, which no power law has."""
    way = np.cumsum(3 * rates / (1 + 20 * rates))
    return 0.3 + 0.5 * way**-0.5 + 0.02 * np.exp(-((way - 15) ** 2) / 50)


LAWS = {"annealing": annealing, "multi_power": multi_power}
losses = annealing


def trace(name: str, noise: float = 0.0, law: str = "annealing", seed: int = 0) -> Trace:
    """A run by a law. Half of the variance of its noise is that of the rows, which are those of
    all runs of the seed."""
    rows = np.random.default_rng(seed).normal(0, noise, STEPS)
    own = np.random.default_rng(len(name) + 100 * seed).normal(0, noise, STEPS)
    made = LAWS[law](CURVES[name]) * (1 + (rows + own) / 2**0.5)
    return Trace(name, CURVES[name], made, 20, 0.1, seed)


def fitted(kind: Kind, *names: str) -> forecast.Fit:
    return forecast.fit([forecast.blocks(trace(name, law=kind.name)) for name in names], kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_law_that_made_four_runs_predicts_the_others(kind: Kind) -> None:
    """Without noise what is left is the curvature of the loss within a block of 20 updates. Three
    schedules do not tell the multi-power law from one in which high rates saturate."""
    law = fitted(kind, "constant", "linear", "step", "inverse_sqrt").law
    for name in ("cosine", "wsd", "exponential"):
        expected = LAWS[kind.name](CURVES[name])[-20:].mean()
        assert law.final(CURVES[name]) == pytest.approx(expected, rel=0.005), name
    assert law.numbers["alpha"] == pytest.approx(0.5, rel=0.1)
    assert law.numbers["kappa"] < 0.05  # 0: the way is the sum of the rates
    if kind.name == "annealing":
        assert law.numbers["tau"] == pytest.approx(30, rel=0.1)
        assert law.numbers["C"] == pytest.approx(0.4 / 30, rel=0.1)


def test_rates_that_saturate_and_a_shape_that_is_no_power_law_are_found() -> None:
    """The error is that of six smooth bumps for another one, an order below what the law without
    them leaves."""
    runs = [
        forecast.blocks(Trace(name, CURVES[name], saturated(CURVES[name]), 20, 0.1))
        for name in ("constant", "linear", "step", "inverse_sqrt")
    ]
    errors = []
    for kind in (KINDS["annealing"], KINDS["annealing"].shaped):
        law = forecast.fit(runs, kind).law
        off = [
            law.final(CURVES[n]) / saturated(CURVES[n])[-20:].mean() - 1 for n in ("cosine", "wsd")
        ]
        errors.append(float(np.abs(off).max()))
    assert errors[1] < 0.002
    assert errors[1] < errors[0] / 3
    assert law.numbers["kappa"] == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_a_fit_does_not_depend_on_the_unit_of_the_loss(scale: float) -> None:
    """Only rounding differs: the start and the limits follow the losses."""
    runs = [trace(name, 0.01) for name in ("constant", "linear", "step")]
    scaled = [replace(run, losses=scale * run.losses) for run in runs]
    one, other = (
        forecast.fit([forecast.blocks(run) for run in each], KINDS["annealing"]).law
        for each in (runs, scaled)
    )
    expected = scale * one.final(CURVES["cosine"])
    assert other.final(CURVES["cosine"]) == pytest.approx(expected, rel=1e-4)  # the fit's xtol


def test_an_interval_ends_at_0_and_a_law_below_0_predicts_no_loss() -> None:
    fit = fitted(KINDS["annealing"], "constant", "linear")
    missed = [forecast.HeldOut("linear", 1.0, 1.0)] * 2  # as large as the loss itself
    made = Forecast(fit, [fit.law], missed, True, [0])
    found = made.predict(CURVES["cosine"])
    assert found.is_loss
    assert found.low == 0.0 < found.value < found.high
    deep = replace(fit.law, point=fit.law.point + np.eye(6)[3] * 3)  # 20 times B
    below = replace(made, fitted=replace(fit, law=deep)).predict(CURVES["cosine"])
    assert not below.is_loss
    assert below.low <= below.value <= below.high


@pytest.mark.parametrize("kind", [each.shaped for each in KINDS.values()], ids=KINDS)
def test_the_derivatives_are_those_of_finite_differences(kind: Kind) -> None:
    run = forecast.blocks(trace("cosine"))
    path = laws.Path.of(run.trace.rates, run.edges, laws.Unit(0.1, STEPS, 1.0))
    for point in laws.starts(kind, 0.3):
        point[-kind.num_bumps :] = np.linspace(-0.3, 0.5, kind.num_bumps)
        _, slopes = laws.evaluate(kind, point, path)
        for i in range(len(point)):
            step = 1e-6 * np.eye(len(point))[i]
            ends = [laws.evaluate(kind, point + sign * step, path)[0] for sign in (1, -1)]
            assert slopes[:, i] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_the_better_law_is_chosen_by_the_held_out_stretches() -> None:
    """Runs that one law made, without noise, are predicted by it an order better than by the
    other."""
    for name in LAWS:
        runs = [trace(each, law=name) for each in ("constant", "linear", "step")]
        assert forecast.best_kind(runs)[0].name == name


def test_the_noise_of_the_rows_is_known_from_the_other_runs() -> None:
    """Each loss has 4 % of noise, 2.8 % of it from rows that all runs share. A mean of 20 losses
    has a deviation of 0.63 % of its own, and as much that is shared."""
    runs = [trace(name, 0.04) for name in ("constant", "linear", "step", "exponential", "wsd")]
    found = forecast.fit([forecast.blocks(run) for run in runs], KINDS["annealing"])
    assert found.noise.own == pytest.approx(0.0063, rel=0.3)
    assert found.noise.shared == pytest.approx(0.0063, rel=0.5)
    hidden = trace("cosine", 0.04)
    made = Forecast.of(runs, KINDS["annealing"], [], [])
    recorded = hidden.losses[-20:].mean()
    assert made.predict(hidden.rates).value == pytest.approx(recorded, rel=3 * 0.0063)
    assert made.has_left_out


def test_held_out_stretches_are_predicted_within_the_noise() -> None:
    """The mean of 20 losses with 2 % of noise each is 0.45 % off, and the fit adds its own."""
    errors = forecast.held_out([trace("constant", 0.02), trace("cosine", 0.02)], KINDS["annealing"])
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
    failed = str(write_run(tmp_path, ["schedule=step"], 0, None).rename(tmp_path / "failed"))
    runs = ",".join([*write_traces(tmp_path), failed])
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
    assert f"ignored  {failed}: failed, not completed" in out
    assert "held out constant: " in out
    assert "law      annealing; mean of the held-out stretches: annealing 0." in out
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


def test_longer_runs_are_not_predicted_where_only_the_shape_makes_the_law_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    errors = [forecast.HeldOut("constant", 0.01, 0.0), forecast.HeldOut("linear", 0.062, 0.0)]
    assert horizons(errors, 0.07) == (1, 2, 4)
    assert horizons(errors, 0.05) == (1,)
    assert capsys.readouterr().out == (
        "no longer runs are predicted: without its shape the law is 6.2% off on the last quarter "
        "of linear, forecast.tolerance is 5.0%\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("one", "runs must hold at least two completed runs, got 1"),
        ("short", "runs must have at least 200 updates, got "),
        ("same", "runs must have at least two schedules, got the same rates in all"),
        ("negative", "runs must have losses above 0, got others in "),
        ("rising", "runs must have a schedule with a falling rate, got none"),
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
        "rising": [lines[0], *(f"{t},{0.1 * min(t / 40, 1)!s},1.0\n" for t in range(STEPS))],
    }[change]
    (Path(second) / "trace.csv").write_text("".join(changed))
    runs = first if change == "one" else f"{first},{second}"
    monkeypatch.setattr(sys, "argv", ["runner", "task=forecast", f"runs=[{runs}]"])
    assert main() == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}")
    same = "same     linear has the rates of constant: the fit has both as one schedule\n"
    assert (same in out) == (change == "same")


@pytest.mark.slow
def test_the_best_shape_is_no_worse_than_the_named_schedules_by_the_law() -> None:
    """The shapes are piecewise linear and fall from the base rate, as `linear` does."""
    law = fitted(KINDS["annealing"], "constant", "linear").law
    ends = [1.0, *forecast.best_shape(law, STEPS, 0.1)]
    assert ends == sorted(ends, reverse=True)
    rates = 0.1 * np.interp(np.arange(STEPS) / STEPS, np.linspace(0, 1, len(ends)), ends)
    assert law.final(rates) <= law.final(CURVES["linear"]) + 1e-6
