"""resume=FOLDER: a run resumes from a checkpoint in its folder, with its saved config, on either
backend.

Order, masks and rates are functions of the step, so a checkpoint is all that a resumed run needs:
it makes the same updates as an uninterrupted one.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.types import Override

from runner.components import averages, loss_scale
from runner.components.optimizers import Custom
from runner.config import times
from runner.config.given import Given
from runner.config.schema import Config, global_batch_size, marked, num_processes, parse
from runner.data.dataset import changed
from runner.data.order import begun
from runner.errors import ConfigError, RunError, nearest, show
from runner.plan import Plan, fixes_threads, plan
from runner.run import callbacks, checkpoint, trunk
from runner.run.recorded import overrides_of, updated
from runner.run.run_folder import read_json, records
from runner.run.saved import config_of, data_of, refuse_links, set_keys
from runner.run.time_limit import has_ended, trained_seconds
from runner.schedules.extend import HOW, extended
from runner.section import value_at
from runner.spec import TrainState

CHANGEABLE = marked("on_resume")  # all other keys determine the numbers of the run
ON_EXTEND = "schedule.on_extend"
_NOTHING = Given()
_LENGTH = {"trainer.max_epochs", "trainer.max_steps"}


@dataclass(frozen=True)
class Resumed:
    """A run that resumes: its state, and the keys that have changed."""

    folder: Path
    values: dict[str, Any]  # the config from now on
    changes: dict[str, tuple[Any, Any]]  # key -> before, after
    state: TrainState
    numbers: dict[str, Any]  # the checkpoint's state.json
    notes: Sequence[str]  # for the user
    is_completed: bool  # from the result.json of its folder
    overrides: list[str]  # that train the run as it is from now on
    config_dir: str | None
    given: Given = _NOTHING

    def is_over(self, total_steps: int) -> bool:
        """Return whether the checkpoint is that of the last update, so that only the final files of
        the run are missing."""
        if self.numbers["stopped_early"] and "trainer.early_stopping_patience" not in self.changes:
            return True
        if callbacks.has_ended(self.numbers) and "callbacks" not in self.changes:
            return True
        if has_ended(self.numbers) and "trainer.max_time" not in self.changes:
            return True
        return self.state.step == total_steps and not _LENGTH & set(self.changes)

    @property
    def config(self) -> Config:
        return self.given.bind(parse(self.values))


def resume(folder: Path, overrides: Sequence[Override], given: Given = _NOTHING) -> Resumed:
    """Read and check a run that is to resume, in Python with the objects that it was given. Writes
    nothing."""
    saved = {**config_of(folder, "resume"), "resume": None, "run": None, "task": "train"}
    saved["trusted_modules"] = given.modules()
    refuse_links(folder, "resume")
    task = next((o.value() for o in overrides if o.key_or_group == "task"), "train")
    if task != "train":
        raise ConfigError(f"resume=FOLDER needs task=train, got task={show(task)}")
    on_extend = next((o.value() for o in overrides if o.key_or_group == ON_EXTEND), None)
    key_overrides = [
        override
        for override in overrides
        if override.key_or_group not in ("resume", "task", ON_EXTEND)
    ]
    values = set_keys(saved, key_overrides, (*CHANGEABLE, ON_EXTEND))
    parse(values)  # refuses a wrong value before it is used
    changes = {
        key: (value_at(saved, key), after)
        for key in CHANGEABLE
        if (after := value_at(values, key)) != value_at(saved, key)
    }
    which = values["checkpoint"] if "checkpoint" in changes else None
    state, numbers, damaged = (
        checkpoint.read_newest(folder) if which is None else (*checkpoint.read(folder, which), ())
    )
    notes = [f"warning: {error}; resuming from step {state.step}" for error in damaged]
    values["checkpoint"] = saved["checkpoint"]
    if {"devices", "num_nodes"} & set(changes) and values["trainer"]["global_batch_size"] is None:
        rows = global_batch_size(saved)  # the updates stay the same
        values["trainer"] = {**values["trainer"], "global_batch_size": rows}
    if _LENGTH & set(changes):
        values, more = _extend(saved, values, state.step, on_extend, given)
        notes += more
    elif on_extend is not None:
        raise ConfigError(
            f"{ON_EXTEND} has no effect if the run's length does not change; set "
            f"{' or '.join(sorted(_LENGTH))} too"
        )
    recorded, config_dir = overrides_of(folder)
    of_run = [key for key in changes if key not in ("checkpoint", "print_config")]
    lines = updated(recorded, saved, values, of_run, on_extend, config_dir)
    is_completed = _is_completed(folder)
    return Resumed(
        folder, values, changes, state, numbers, notes, is_completed, lines, config_dir, given
    )


def _is_completed(folder: Path) -> bool:
    """Return whether result.json says so. If the file is missing or damaged, the run writes a new
    one."""
    try:
        return read_json(folder / "result.json").get("status") == "completed"
    except ConfigError:
        return False


def branch(resumed: Resumed, folder: Path) -> Resumed:
    """Branch a run: copy its files, up to the checkpoint, to another folder. The run itself does
    not change."""
    source, step = resumed.folder, resumed.state.step
    shutil.copy2(source / "config.yaml", folder / "config.yaml")
    trunk.copy(source, folder, step, checkpoint.best_saved(source, step, resumed.numbers["best"]))
    return replace(resumed, folder=folder)


def check(resumed: Resumed, prepared: Plan, start: TrainState) -> None:
    """Refuse to resume if it would not be the same run (other data, another network, damaged
    records), or if nothing is left to train. `start` is the run's first state, for its names and
    shapes."""
    folder, step = resumed.folder, resumed.state.step
    difference = changed(data_of(folder), prepared.data.description())
    if difference is not None:
        raise ConfigError(f"resume: the data is not what {folder} was trained on: {difference}")
    for kind in ("weights", "buffers"):
        _check_shapes(folder, kind, getattr(resumed.state, kind), getattr(start, kind))
    is_own = isinstance(prepared.config.optimizer, Custom)
    if is_own and "backend" in resumed.changes:
        before, after = resumed.changes["backend"]
        raise ConfigError(
            f"resume: backend must stay {before} with optimizer=custom, whose state is of that "
            f"framework, got {after}"
        )
    _check_processes(resumed, prepared)
    # the optimizer of the user's own checks its slots itself
    for slot in {} if is_own else {**start.slots, **loss_scale.split(resumed.state.slots)[0]}:
        saved_slot, new_slot = resumed.state.slots.get(slot, {}), start.slots.get(slot, {})
        _check_shapes(folder, f"slot {slot}", saved_slot, new_slot)
    total, is_over = prepared.order.total_steps, resumed.is_over(prepared.order.total_steps)
    if not is_over:
        records(folder, step, prepared.order.epochs)
    elif not resumed.is_completed:  # the run was stopped after its last checkpoint
        return
    if is_over or "trainer.max_time" in resumed.changes:
        _check_time(resumed, prepared.config.trainer.max_time)
    if is_over and step < total and callbacks.has_ended(resumed.numbers):
        raise ConfigError(
            f"resume: {folder} stopped early at step {step}; to train longer, change the "
            f"early_stopping of callbacks"
        )
    if is_over and step < total:
        patience = show(prepared.config.trainer.early_stopping_patience)
        raise ConfigError(
            f"resume: {folder} stopped early at step {step}; to train longer, increase "
            f"trainer.early_stopping_patience, now {patience}"
        )
    if step >= total:
        trainer = prepared.config.trainer
        key = "max_steps" if trainer.max_steps == total else "max_epochs"
        raise ConfigError(
            f"resume: {folder} is at step {step} of {total}, nothing is left; to train longer, "
            f"increase trainer.{key}, now {show(getattr(trainer, key))}"
        )


def _check_processes(resumed: Resumed, prepared: Plan) -> None:
    """Refuse another number of processes if batch norm has the statistics of each of them."""
    changed = {key: before for key, (before, _) in resumed.changes.items()}
    now, before = (num_processes(resumed.values | own) for own in ({}, changed))
    if now != before and prepared.has_own_statistics:
        raise ConfigError(
            f"resume: the number of processes, devices times num_nodes, must stay {before} with "
            f"trainer.sync_batchnorm=false, where batch norm has the statistics of each, got {now}"
        )


def _check_time(resumed: Resumed, max_time: str | None) -> None:
    """Refuse a run that has trained for all of `trainer.max_time`."""
    spent = trained_seconds(resumed.numbers)
    if max_time is not None and spent >= times.seconds(max_time):
        raise ConfigError(
            f"resume: {resumed.folder} has trained for {times.clock(spent)} (h:mm:ss) at step "
            f"{resumed.state.step}, all of trainer.max_time={max_time}; to train longer, increase "
            f"trainer.max_time"
        )


def with_saved_choices(resumed: Resumed, prepared: Plan) -> tuple[Plan, Resumed]:
    """Return the plan with what `auto` chose before the checkpoint, and any note for the user."""
    return with_saved_threads(resumed, with_saved_compile(resumed, prepared))


def with_saved_threads(resumed: Resumed, prepared: Plan) -> tuple[Plan, Resumed]:
    """Return the plan with the checkpoint's number of threads, and a note on it for the user.
    `trainer.threads` can be changed."""
    planned, saved = prepared.model.threads, resumed.numbers.get("threads")
    if {"trainer.threads", "devices", "num_nodes"} & set(resumed.changes) or saved == planned:
        return prepared, resumed
    if fixes_threads(prepared.config):
        return prepared, resumed
    if saved is None:
        note = (
            f"threads  {planned} from now on: the checkpoint is from an older version and does not "
            f"record the number"
        )
        return prepared, replace(resumed, notes=[*resumed.notes, note])
    note = f"threads  {saved} as before; trainer.threads=auto would use {planned} here"
    with_threads = replace(prepared, model=replace(prepared.model, threads=saved))
    return with_threads, replace(resumed, notes=[*resumed.notes, note])


def with_saved_compile(resumed: Resumed, prepared: Plan) -> Plan:
    """Return the plan with what trainer.compile=auto chose before the checkpoint, on the same
    backend."""
    if "backend" in resumed.changes:
        return prepared
    return replace(prepared, compiled_before=resumed.numbers.get("compiles"))


def _check_sizes(before: Plan, after: Plan, step: int) -> None:
    """Refuse another length if the updates so far would have had other rows with it."""
    old, new = before.order, after.order
    is_changing = old.changes_size or new.changes_size
    if is_changing and begun(old, step) != begun(new, step):
        raise ConfigError(
            f"trainer.batch_size has parts in percent of the run's length, which changes from "
            f"{old.total_steps} to {new.total_steps} steps, and the first {step} would have had "
            f"other sizes; set checkpoint to one before the first change, or start a new run"
        )


def _extend(
    saved: Mapping[str, Any], values: dict[str, Any], step: int, how: Any, given: Given
) -> tuple[dict[str, Any], Sequence[str]]:
    """Return the config of a run with another length, and notes for the user. A schedule that
    depends on the run's length would have had other values from the beginning, so `how` must say
    which values it has from now on."""
    saved = {
        **values,
        "trainer": {
            **values["trainer"],
            **{n: saved["trainer"][n] for n in ("max_epochs", "max_steps")},
        },
    }
    before, plain = (plan(given.bind(parse(v))) for v in (saved, values))
    lengths = before.order.total_steps, plain.order.total_steps
    _check_sizes(before, plain, step)
    averages.check_extended(plain.config.optimizer, before.clock, plain.clock, step)
    ways = [way for way in HOW if way != "append" or lengths[1] > lengths[0]]
    if how is not None and how not in ways:
        raise ConfigError(
            f"{ON_EXTEND} must be one of {', '.join(ways)}, got {show(how)}{nearest(how, ways)}"
        )
    old, new = _tables(before), _tables(plain)
    changed_names = [name for name in old if not np.array_equal(old[name][:step], new[name][:step])]
    if lengths[1] <= step or (how is None and not changed_names):
        return values, ()
    configs = {
        way: _with_schedules(values, partial(extended, how=way, step=step, before=lengths[0]))
        for way in ways
    }
    if how is not None:
        rate = _tables(plan(given.bind(parse(configs[how]))))["schedule"][step]
        return configs[how], [
            f"{ON_EXTEND.rpartition('.')[2]} {how}: the rate is {rate:.3g} from step {step} on"
        ]
    plans = {way: plan(given.bind(parse(configs[way]))) for way in ways}
    tables = {way: _tables(prepared)[changed_names[0]] for way, prepared in plans.items()}
    choices = ", ".join(
        f"{way} ({table[step]:.3g} to {table[-1]:.3g})" for way, table in tables.items()
    )
    raise ConfigError(
        f"{changed_names[0]} depends on the run's length, which changes from {lengths[0]} to "
        f"{lengths[1]} steps;\n"
        f"  choose its values from step {step} on: {ON_EXTEND}={choices}"
    )


def _tables(prepared: Plan) -> dict[str, np.ndarray]:
    """Return the tables of everything that is scheduled, by key."""
    others = {
        f"optimizer.schedules.{name}": values for name, values in prepared.hyperparameters.items()
    }
    groups = {
        f"optimizer.groups[{i}].schedule": prepared.group_rates[entry.match]
        for i, entry in prepared.scheduled_groups()
    }
    return {"schedule": prepared.rates(), **groups, **others}


def _with_schedules(values: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The config with each of its schedules changed."""
    optimizer = values["optimizer"]
    schedules = {name: change(schedule) for name, schedule in optimizer["schedules"].items()}
    groups = [
        {**entry, "schedule": change(entry["schedule"])} if entry.get("schedule") else entry
        for entry in optimizer["groups"]
    ]
    return {
        **values,
        "schedule": change(values["schedule"]),
        "optimizer": {**optimizer, "groups": groups, "schedules": schedules},
    }


def _check_shapes(
    folder: Path, kind: str, saved: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    for name in {**expected, **saved}:
        a, b = (
            f"{v[name].dtype}{list(v[name].shape)}" if name in v else "nothing"
            for v in (saved, expected)
        )
        if a != b:
            raise RunError(
                f"the checkpoint of {folder} does not fit its config: {kind} {name} is {a}, "
                f"expected {b}"
            )
