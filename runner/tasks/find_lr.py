"""task=find_lr: the LR range test. Train with a rate that rises until the loss rises, and suggest a
rate. The trained state is not kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner import dispatcher
from runner.config.schema import Config, FindLR, parse
from runner.data.order import Chunk
from runner.errors import ConfigError
from runner.machine import devices
from runner.plan import Plan, plan
from runner.report import lr_range as picture
from runner.report.range_test import Suggestion, end, first_read, smooth, suggest
from runner.run import first_weights, other_process, run_folder
from runner.run.failure import why_failed
from runner.run.signals import Signals
from runner.spec import Backend, Live, Report, TrainState, first_state
from runner.text.console import Console, capture, log_traceback

_STEPS_PER_CALL = 10  # few, so that the test ends soon after the loss has risen


@dataclass(frozen=True)
class Tested:
    """The updates of a range test before the loss rose."""

    rates: np.ndarray  # float64[n]
    losses: np.ndarray  # float64[n]
    smoothed: np.ndarray  # float64[n]
    rose_at: int | None  # the update at which the loss rose; None if it did not
    suggestion: Suggestion | None  # None if the loss does not fall

    def draw(self, path: Path) -> Path | None:
        """Draw find_lr.png into a folder. Return its path, None if there is nothing to draw."""
        if not len(self.rates):
            return None
        file = path / "find_lr.png"
        picture.draw(file, self.rates, self.losses, self.smoothed, self.suggestion)
        return file

    def json(self) -> dict[str, Any]:
        """Return the content of find_lr.json."""
        found = self.suggestion
        entry = None if found is None else {**vars(found), "lr": found.lr}
        return {"suggestion": entry, "steps": len(self.rates)}


def check(values: Mapping[str, Any]) -> None:
    """Refuse a config that cannot be trained or written. Writes nothing."""
    config = plan(parse(as_range_test(values))).config
    root = Path(config.output.root) / "find_lr"
    run_folder.check(root, "output.root", root)


def find_lr(request: tuple[Mapping[str, Any], str | None]) -> int:
    """Run the test of a composed config, below a heading that is printed once its folder is made.
    Return 1 if the loss never falls, else 0."""
    values, heading = request
    config = parse(as_range_test(values))
    with capture() as (console, captured), Signals() as signals:
        prepared = plan(config)
        backend = dispatcher.load(config.backend)
        devices.resolve(config.device_name, backend.devices())
        if backend.can_use_threads(prepared.model.threads):
            root = Path(config.output.root) / "find_lr"
            path = run_folder.create(root, f"{run_folder.timestamp()}_{config.backend}")
            if heading is not None:
                console.say(heading)
            captured.into(path / "run.log")
            run_folder.write_config(path, values)
            for warning in prepared.data.warnings:
                console.say(f"warning: {warning}")
            start = first_state(
                prepared.network, config.optimizer, prepared.model.dtype, config.seed
            )
            start = first_weights.load(start, prepared, backend)[0]
            try:
                tested = train(prepared, backend, start, console, signals)
            except Exception as error:
                log_traceback()
                console.say(f"failed: {why_failed(error, config)}")
                console.say(f"traceback in {path / 'run.log'}")
                return 1
            if signals.received:
                console.say(f"interrupted after {len(tested.rates)} updates: nothing is suggested")
                return 128 + signals.received
            return _report(config, path, tested, console)
    return other_process.run(find_lr, request, prepared.model.threads)


def as_range_test(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the composed config with the range test's schedule, also for groups of weights, and
    its length."""
    section = parse(values).find_lr
    if section.max_lr <= section.min_lr:
        raise ConfigError(
            f"find_lr.max_lr must be above find_lr.min_lr, {section.min_lr:g}, got "
            f"{section.max_lr:g}"
        )
    rates = {
        "initial_lr": section.min_lr,
        "final_lr": section.max_lr,
        "shape": "geometric",
        "duration": "100%",
        "edge": "both",
    }
    trainer: dict[str, Any] = {
        "max_epochs": None,
        "max_steps": section.num_steps,
        "early_stopping_patience": None,
    }
    if values["trainer"]["steps_per_call"] == "auto":
        trainer["steps_per_call"] = _STEPS_PER_CALL
    # all weights are tested at the rate of the test, times their factors
    groups = [{**entry, "schedule": None} for entry in values["optimizer"]["groups"]]
    return {
        **values,
        "debug": None,
        "schedule": {"name": "range_test", **rates},
        "optimizer": {**values["optimizer"], "groups": groups},
        "trainer": {**values["trainer"], **trainer},
    }


def train(
    prepared: Plan, backend: Backend, start: TrainState, console: Console, signals: Signals
) -> Tested:
    """Make the updates of a planned range test until the loss has risen."""
    config, order, spec = prepared.config, prepared.order, prepared.run_spec()
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
        seen.append(
            (report.applied["learning_rate"].astype(np.float64), report.losses.astype(np.float64))
        )
        console.advance(
            chunk.first_step + chunk.num_steps,
            f"rate {seen[-1][0][-1]:.3g}  loss {seen[-1][1][-1]:.4g}",
        )
        losses = np.concatenate([losses for _, losses in seen])
        return (
            end(losses, smooth(losses, config.find_lr.smoothing), config.find_lr.stop_factor)
            is None
            and not signals.received
        )

    with console.progress(order.total_steps, 0):
        backend.train(spec, start, prepared.chunks(0, None, adapt=False), on_chunk)
    rates, losses = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    smoothed = smooth(losses, config.find_lr.smoothing)
    rose_at = end(losses, smoothed, config.find_lr.stop_factor)
    num = len(losses) if rose_at is None else rose_at
    suggestion = suggest(rates[:num], smoothed[:num]) if num else None
    return Tested(rates[:num], losses[:num], smoothed[:num], rose_at, suggestion)


def _report(config: Config, path: Path, tested: Tested, console: Console) -> int:
    """Write the files of a range test and print its result. Return the exit status."""
    rates, suggestion = tested.rates, tested.suggestion
    _write(path, tested)
    rose = "" if tested.rose_at is None else f"; the loss rose at update {tested.rose_at}"
    console.say(
        f"range test: {len(rates)} updates at rates from {config.find_lr.min_lr:g} to "
        f"{rates[-1] if len(rates) else 0:.3g}{rose}"
    )
    drawn = tested.draw(path)
    if suggestion is None:
        console.say(
            "failed: the loss does not fall; find_lr.min_lr may be too high or "
            "find_lr.num_steps too small"
        )
    else:
        console.say(
            f"steepest slope at {suggestion.steepest:.3g}; a tenth of the rate at the minimum is "
            f"{suggestion.tenth:.3g}"
        )
        console.say(f"suggestion  optimizer.lr={suggestion.lr:g}")
        rose_at = tested.rose_at
        for warning in _at_edges(config.find_lr, suggestion, rates, rose=rose_at is not None):
            console.say(f"warning: {warning}")
    console.say(f"folder   {path}")
    if drawn is not None:
        console.say(f"picture  {drawn}")
    return int(suggestion is None)


def _at_edges(
    tested: FindLR, suggestion: Suggestion, rates: np.ndarray, rose: bool
) -> Iterator[str]:
    """Warn if a better rate may lie beyond the range that was tested."""
    if not rose:
        yield (
            f"the loss did not rise up to find_lr.max_lr={tested.max_lr:g}, so the suggestion may "
            f"be too low; raise find_lr.max_lr"
        )
    if suggestion.steepest == first_read(rates):
        yield (
            f"the loss fell fastest at the start, from find_lr.min_lr={tested.min_lr:g}, so the "
            f"suggestion may be too high; lower find_lr.min_lr"
        )


def _write(path: Path, tested: Tested) -> None:
    """Write trace.csv and find_lr.json of a range test into its folder."""
    columns = (tested.rates, tested.losses, tested.smoothed)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    lines = [f"{step},{rate!r},{loss!r},{mean!r}\n" for step, (rate, loss, mean) in enumerate(rows)]
    (path / "trace.csv").write_text(
        "step,learning_rate,loss,smoothed_loss\n" + "".join(lines), encoding="utf-8"
    )
    run_folder.write_json(path / "find_lr.json", tested.json())
