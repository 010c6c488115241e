"""resume=FOLDER: a run goes on from a checkpoint in its own folder, with its saved config, on either backend.

Order, masks and rates are functions of the step, so that a checkpoint is all that a continuation needs: what is trained is
what would have been trained without the interruption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.types import Override

from runner import checkpoint
from runner.compose import set_keys
from runner.config import Config, parse
from runner.errors import ConfigError, RunError, show
from runner.plan import Plan, plan
from runner.run_folder import read_json
from runner.saved import config_of
from runner.spec import TrainState

# What may be another than before; all else fixes the numbers of the run.
CHANGEABLE = (
    "backend",
    "device",
    "checkpoint",
    "print_config",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.steps_per_call",
    "trainer.checkpoint_every",
    "trainer.early_stopping_patience",
    "trainer.early_stopping_min_delta",
    "trainer.strict",
)


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on, and what was said to be another than before."""

    folder: Path
    values: dict[str, Any]  # the config from now on
    changes: dict[str, tuple[Any, Any]]  # key -> before, after
    state: TrainState
    numbers: dict[str, Any]  # the checkpoint's state.json
    notes: Sequence[str]  # for the user

    @property
    def config(self) -> Config:
        return parse(self.values)


def resume(folder: Path, overrides: Sequence[Override]) -> Resumed:
    """Read and checked; nothing is written."""
    saved = {**config_of(folder, "resume"), "resume": None, "run": None, "task": "train"}
    said = [override for override in overrides if override.key_or_group not in ("resume", "task")]
    values = set_keys(saved, said, CHANGEABLE)
    changes = {key: (_at(saved, key), after) for key in CHANGEABLE if (after := _at(values, key)) != _at(saved, key)}
    which = values["checkpoint"] if "checkpoint" in changes else None
    state, numbers, damaged = checkpoint.read_newest(folder) if which is None else (*checkpoint.read(folder, which), ())
    notes = [f"warning: {error}; going on from step {state.step}" for error in damaged]
    return Resumed(folder, {**values, "checkpoint": saved["checkpoint"]}, changes, state, numbers, notes)


def check(resumed: Resumed, prepared: Plan, start: TrainState) -> None:
    """Refuse what would not be the same run: other data, another network, rates that were others, nothing left to do.
    `start` is the first state, for its names and shapes."""
    folder, step = resumed.folder, resumed.state.step
    found = prepared.data.description()["sha256"]
    if (expected := read_json(folder / "data.json")["sha256"]) != found:
        raise ConfigError(f"resume: the data is not what {folder} was trained on: SHA-256 {found}, then {expected}")
    for kind in ("weights", "buffers"):
        _fits(folder, kind, getattr(resumed.state, kind), getattr(start, kind))
    for slot in {**start.slots, **resumed.state.slots}:
        _fits(folder, f"slot {slot}", resumed.state.slots.get(slot, {}), start.slots.get(slot, {}))
    if resumed.numbers["stopped_early"] and "trainer.early_stopping_patience" not in resumed.changes:
        patience = show(prepared.config.trainer.early_stopping_patience)
        raise ConfigError(
            f"resume: {folder} has ended early at step {step}; trainer.early_stopping_patience, now {patience}, can be changed"
        )
    total = prepared.order.total_steps
    if step >= total:
        raise ConfigError(
            f"resume: {folder} is at step {step} of {total}, nothing is left; a larger trainer.max_epochs or "
            "trainer.max_steps makes it longer"
        )
    longer = {"trainer.max_epochs", "trainer.max_steps"} & set(resumed.changes)
    if longer:
        _check_rates(sorted(longer)[0], resumed, prepared)


def _check_rates(key: str, resumed: Resumed, prepared: Plan) -> None:
    """A schedule that knows the run's length would have had other rates from the beginning."""
    before = plan(parse({**resumed.values, "trainer": {**resumed.values["trainer"], **_limits(resumed)}}))
    tables = [
        {"schedule": p.rates(), **{f"optimizer.schedules.{n}": v for n, v in p.hyperparameters.items()}}
        for p in (before, prepared)
    ]
    num = min(before.order.total_steps, prepared.order.total_steps)
    for name, old in tables[0].items():
        different = np.flatnonzero(old[:num] != tables[1][name][:num])
        if len(different):
            raise ConfigError(
                f"{key} cannot be {show(resumed.changes[key][1])}: {name} goes by the run's length, {before.order.total_steps} "
                f"steps; for {prepared.order.total_steps} its value would have been another from step {different[0]} on"
            )


def _limits(resumed: Resumed) -> dict[str, Any]:
    """The run's end as it was before."""
    names = ("max_epochs", "max_steps")
    return {name: resumed.changes[key][0] for name in names if (key := f"trainer.{name}") in resumed.changes}


def _fits(folder: Path, kind: str, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    for name in {**expected, **found}:
        a, b = (f"{v[name].dtype}{list(v[name].shape)}" if name in v else "nothing" for v in (found, expected))
        if a != b:
            raise RunError(f"the checkpoint of {folder} does not fit its config: {kind} {name} is {a}, expected {b}")


def _at(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
