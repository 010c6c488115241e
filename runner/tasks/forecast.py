"""task=forecast: predict the final training loss of the named schedules from two or more recorded
runs. It imports no framework and trains nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from runner.config.conf_folder import choices, defaults, with_schedule_defaults
from runner.config.schema import Forecast as Keys
from runner.errors import ConfigError, RunError, printable
from runner.report import forecast as fits
from runner.report.forecast import Forecast, HeldOut, Prediction, Trace
from runner.report.jobs import Job
from runner.report.laws import KINDS, Kind
from runner.run import run_folder
from runner.schedules import Clock, Schedule, table
from runner.schedules.plateau import Plateau
from runner.tasks.compare import read_all
from runner.text.numbers import show_metric
from runner.text.quoting import command_line

_FEWEST_STEPS = 200  # of a run
_TIMES = (1, 2, 4)  # horizons
_BELOW = "below 0"  # in place of a loss
_FREE = ("schedule", "seed", "backend")  # the keys in which the runs may differ


def forecast(folders: Sequence[str], root: Path, keys: Keys) -> int:
    """Fit a law to the runs, check it on held-out stretches, and print the predictions."""
    jobs = _completed(folders)
    traces, lr, steps_per_epoch = _traces(jobs)
    kind, errors = _chosen(traces, keys.law)
    _check(errors, keys.tolerance)
    longer = fits.held_out(traces, kind)
    found = Forecast.of(traces, kind, errors, longer)
    _print_fit(found, traces)
    num_steps = max(len(trace.rates) for trace in traces)
    lengths = horizons(longer, keys.tolerance)
    curves = {times: named(Clock(times * num_steps, steps_per_epoch), lr) for times in lengths}
    unseen = [name for name, rates in curves[1].items() if rates.sum() < _recorded(traces)]
    if unseen:
        print(f"left out {', '.join(unseen)}: sum of rates below that of any loss in the fit")
    rows = {
        name: [found.predict(curves[times][name]) for times in lengths]
        for name in curves[1]
        if name not in unseen
    }
    if not any(predictions[0].is_loss for predictions in rows.values()):
        raise RunError(
            "the law holds for no named schedule with this base rate; give runs of named schedules"
        )
    rows = dict(sorted(rows.items(), key=lambda row: (not row[1][0].is_loss, row[1][0].value)))
    print("\n".join(_table(rows, num_steps)))
    folder = run_folder.create(root / "forecasts", run_folder.timestamp())
    run_folder.write_json(folder / "forecast.json", _as_json(jobs, errors, found, rows, num_steps))
    print(f"data     {folder / 'forecast.json'}")
    if keys.optimize:
        _write_best(folder, found, num_steps, lr, jobs[0])
    return 0


def _completed(folders: Sequence[str]) -> list[Job]:
    """Return the completed runs, and name the others."""
    jobs = read_all(folders)
    for job in jobs:
        if not job.is_completed:
            print(printable(f"ignored  {job.folder}: {job.status}, not completed"))
    return [job for job in jobs if job.is_completed]


def _chosen(traces: Sequence[Trace], name: str) -> tuple[Kind, list[HeldOut]]:
    """Return the law of `forecast.law`, or the better one, and its errors on held-out stretches."""
    if name == "auto":
        kind, by_law = fits.best_kind(traces)
    else:
        kind = KINDS[name]
        by_law = {name: fits.held_out(traces, kind.shaped)}
    for each in by_law[kind.name]:
        print(printable(f"held out {each.name}: {each.error:.2%} off, bias {each.bias:+.2%}"))
    means = (
        f"{name} {np.mean([each.error for each in errors]):.2%} off"
        for name, errors in by_law.items()
    )
    print(f"law      {kind.name}; mean of the held-out stretches: {', '.join(means)}")
    return kind, by_law[kind.name]


def _print_fit(found: Forecast, traces: Sequence[Trace]) -> None:
    """Print the law's numbers, its errors on schedules that were left out, and the noise."""
    print(f"fit      {found.fitted.law.says()}")
    if found.longer is not None:
        print(f"longer   {found.longer.fitted.law.says()}")
    if found.has_left_out:
        off = np.mean([abs(each.bias) for each in found.errors])
        print(f"left out each schedule in turn: its final loss is {off:.2%} off on average")
    spread = fits.seed_noise(traces)
    if spread is not None:
        print(f"noise    the final losses of a schedule's seeds have a deviation of {spread:.2%}")


def _traces(jobs: Sequence[Job]) -> tuple[list[Trace], float, int]:
    """Return the runs' traces, their base rate and the updates of an epoch."""
    if len(jobs) < 2:
        raise ConfigError(f"runs must hold at least two completed runs, got {len(jobs)}")
    first = jobs[0]
    for job in jobs:
        if job.settings(*_FREE) != first.settings(*_FREE):
            raise ConfigError(
                f"runs must differ only in schedule, seed and backend, got {job.folder}, which "
                f"differs from {first.folder} in other keys"
            )
        if len(job.trace["loss"]) < _FEWEST_STEPS:
            raise ConfigError(
                f"runs must have at least {_FEWEST_STEPS} updates, got {job.folder} with "
                f"{len(job.trace['loss'])}"
            )
        if not (np.isfinite(job.trace["loss"]) & (job.trace["loss"] > 0)).all():
            raise ConfigError(f"runs must have losses above 0, got others in {job.folder}")
    steps_per_epoch = int(first.epochs["step"][0])
    block = fits.block_length(min(len(job.trace["loss"]) for job in jobs), steps_per_epoch)
    lr = float(first.config["optimizer"]["lr"])
    traces = [
        Trace(job.folder.name, job.trace["learning_rate"], job.trace["loss"], block, lr, job.block)
        for job in jobs
    ]
    _say_same_rates(jobs, traces)
    if len({trace.key for trace in traces}) < 2:
        raise ConfigError("runs must have at least two schedules, got the same rates in all")
    if not any((np.diff(trace.rates) < 0).any() for trace in traces):
        raise ConfigError(
            "runs must have a schedule with a falling rate, got none: they cannot tell what a "
            "decrease of the rate gains; add schedule=linear"
        )
    return traces, lr, steps_per_epoch


def _say_same_rates(jobs: Sequence[Job], traces: Sequence[Trace]) -> None:
    """Name each schedule whose rates are those of another one, as `step` before its first step."""
    known: dict[bytes, tuple[Job, list[Any]]] = {}
    for job, trace in zip(jobs, traces, strict=True):
        first, schedules = known.setdefault(trace.key, (job, []))
        if job.config["schedule"] not in schedules:
            schedules.append(job.config["schedule"])
            if len(schedules) > 1:
                line = f"same     {job.folder.name} has the rates of {first.folder.name}"
                print(printable(f"{line}: the fit has both as one schedule"))


def _recorded(traces: Sequence[Trace]) -> float:
    """Return S1, the sum of the rates, from which on a run's losses were fitted."""
    return min(float(trace.rates[: trace.edges[0]].sum()) for trace in traces)


def _check(errors: Sequence[HeldOut], tolerance: float) -> None:
    """Refuse a fit that does not predict a held-out stretch."""
    worst = max(errors, key=lambda each: each.error)
    if not worst.error <= tolerance:
        raise RunError(
            f"the law does not predict the last quarter of {worst.name} from its beginning and the "
            f"other runs: it is {worst.error:.1%} off, forecast.tolerance is {tolerance:.1%}; give "
            f"longer runs, or runs of other schedules"
        )


def horizons(longer: Sequence[HeldOut], tolerance: float) -> tuple[int, ...]:
    """Return the lengths to predict, over the recorded one: only 1 if the law without its shape
    does not predict a held-out stretch."""
    worst = max(longer, key=lambda each: each.error)
    if worst.error <= tolerance:
        return _TIMES
    print(
        f"no longer runs are predicted: without its shape the law is {worst.error:.1%} off on the "
        f"last quarter of {worst.name}, forecast.tolerance is {tolerance:.1%}"
    )
    return _TIMES[:1]


def named(clock: Clock, lr: float) -> dict[str, np.ndarray]:
    """Return the rates of every schedule of conf/schedule/ that needs no other key, for a run of
    this length.  # name -> float64[T]"""
    curves: dict[str, np.ndarray] = {}
    for name in choices("schedule"):
        values = with_schedule_defaults({"schedule": defaults("schedule", name)})["schedule"]
        try:
            schedule = TypeAdapter(Schedule).validate_python(values)
            if not isinstance(schedule, Plateau) and name != "range_test":
                rates = table(schedule, clock, lr)
                if np.isfinite(rates).all():
                    curves[name] = rates
        except ValueError:
            continue  # it needs a key, or the losses of the run
    return curves


def _table(rows: Mapping[str, Sequence[Prediction]], num_steps: int) -> list[str]:
    width = max(map(len, rows))
    lengths = _TIMES[: len(next(iter(rows.values())))]
    heads = [f"{times * num_steps} steps" for times in lengths]
    lines = [f"{'schedule':{width}}" + "".join(f"  {head:<26}" for head in heads).rstrip()]
    for name, predictions in rows.items():
        cells = "".join(f"  {_cell(each):<26}" for each in predictions)
        lines.append(f"{name:{width}}{cells}".rstrip())
    if not all(each.is_loss for predictions in rows.values() for each in predictions):
        lines.append(f"{_BELOW}: the law does not hold there")
    best, *others = [predictions[0] for predictions in rows.values() if predictions[0].is_loss]
    apart = sum(other.low > best.high for other in others)
    lines.append(
        f"training loss at the end, 80 % intervals; {apart} of {len(others)} schedules lie apart "
        f"from the first by more than their intervals"
    )
    return lines


def _cell(prediction: Prediction) -> str:
    if not prediction.is_loss:
        return _BELOW
    value, low, high = map(show_metric, (prediction.value, prediction.low, prediction.high))
    return f"{value} ({low} to {high})"


def _as_json(
    jobs: Sequence[Job],
    held: Sequence[HeldOut],
    found: Forecast,
    rows: Mapping[str, Sequence[Prediction]],
    num_steps: int,
) -> dict[str, Any]:
    return {
        "runs": [str(job.folder) for job in jobs],
        **{
            key: {"name": each.fitted.law.kind.name, **each.fitted.law.numbers}
            for key, each in (("law", found), ("law_of_longer_runs", found.longer))
            if each is not None
        },
        "held_out": [vars(each) for each in held],
        "left_out": [vars(each) for each in found.errors] if found.has_left_out else [],
        "forecasts": [
            {"schedule": name, "steps": times * num_steps, **vars(prediction)}
            for name, predictions in rows.items()
            for times, prediction in zip(_TIMES, predictions, strict=False)
            if prediction.is_loss
        ],
    }


def _write_best(folder: Path, found: Forecast, num_steps: int, lr: float, job: Job) -> None:
    """Search the shape that the law likes best, and write it as a choice of `schedule`."""
    ends = [round(factor, 4) for factor in fits.best_shape(found.fitted.law, num_steps, lr)]
    starts = [1.0, *ends]
    share = f"{100 / len(ends):g}%"
    phases = [
        {"for": share, "name": "ramp", "from": a, "to": b, "edge": "left"}
        for a, b in zip(starts, ends, strict=False)
    ]
    phases[-1]["for"] = "rest"
    schedule = {"name": "sequence", "clock": "own", "phases": phases}
    values = with_schedule_defaults({"schedule": schedule})["schedule"]
    curve = table(TypeAdapter(Schedule).validate_python(values), Clock(num_steps, num_steps), lr)
    predicted = found.predict(curve)
    if not predicted.is_loss:
        print(f"best     none: the law falls below 0 for the factors {ends}, so it does not hold")
        return
    (folder / "schedule").mkdir()
    path = folder / "schedule" / "forecast.yaml"
    run_folder.write_text(path, OmegaConf.to_yaml(OmegaConf.create(schedule)))
    shape = "a constant rate" if set(ends) == {1.0} else f"factors {ends}"
    print(f"best     {path}: {show_metric(predicted.value)} by the law, {shape}")
    own = ("schedule", "output.", "seed=", "tune", "search=", "data.fold=", "race.")
    others = [override for override in job.overrides if not override.startswith(own)]
    command = command_line(["--config-dir", str(folder), "schedule=forecast", *others])
    print(f"to try   {command}")
