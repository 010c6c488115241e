"""The overrides that train a run: its folder keeps them while the run is killed, resumed, extended
and moved to another backend."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config.conf_folder import defaults, without_part_defaults
from runner.errors import ConfigError
from runner.run.run_folder import read_json
from runner.section import value_at
from runner.text.quoting import override

_ROWS, _ALL_ROWS = "trainer.batch_size", "trainer.global_batch_size"


def overrides_of(folder: Path) -> tuple[list[str], str | None]:
    """Return (overrides, --config-dir) of a run's last session; ([], None) if no file has them.
    environment.json is written before the training, result.json only after it. Older versions
    wrote them into result.json alone."""
    for name in ("environment.json", "result.json"):
        try:
            values = read_json(folder / name)
            found = [values, *values.get("resumed", [])][-1]
            overrides, config_dir = found.get("overrides"), found.get("config_dir")
        except (ConfigError, AttributeError, TypeError):
            continue
        if isinstance(overrides, list):
            return [*map(str, overrides)], None if config_dir is None else str(config_dir)
    return [], None


def updated(
    overrides: Sequence[str],
    saved: Mapping[str, Any],
    values: Mapping[str, Any],
    changed: Collection[str],
    on_extend: str | None = None,
    config_dir: str | None = None,
) -> list[str]:
    """Return the overrides that train a run of the config `values`, which had `overrides` with the
    config `saved`. `changed` are the keys that the user has changed, `on_extend` is how the
    schedules have changed with the run's length. Keys of schedules that have their defaults are not
    listed, unless an experiment or a file of `config_dir` may set them.

    >>> updated(["seed=1", "epochs=2"], {"epochs": 2}, {"epochs": 3}, ["epochs"])
    ['seed=1', 'epochs=3']
    """
    lines = [*overrides]
    for key in changed:
        lines = _replaced(lines, key, [override(key, value_at(values, key))])
    if any(line.startswith("resume=") for line in lines):  # a branch has the rest from there
        return (
            lines
            if on_extend is None
            else _replaced(lines, "schedule.on_extend", [override("schedule.on_extend", on_extend)])
        )
    rows = value_at(values, _ALL_ROWS)
    if rows != value_at(saved, _ALL_ROWS):
        lines = _replaced(_replaced(lines, _ROWS, []), _ALL_ROWS, [override(_ALL_ROWS, rows)])
    for key in ("optimizer.groups", "optimizer.schedules"):  # on_extend changes these and schedule
        value = value_at(values, key)
        if value != value_at(saved, key):
            lines = _replaced(lines, key, [override(key, without_part_defaults(value))])
    may_be_set = config_dir is not None or any(line.startswith("experiment=") for line in lines)
    return _with_schedule(lines, saved["schedule"], values["schedule"], may_be_set)


def _with_schedule(
    lines: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any], may_be_set: bool
) -> list[str]:
    """Replace the schedule; with `may_be_set`, a file may set keys of it to other values than those
    of conf/schedule."""
    if before == after:
        return [*lines]
    choices = [line.partition("=")[2] for line in lines if line.startswith("schedule=")]
    if before["name"] == after["name"] == "plateau" and choices in ([], ["plateau"]):
        # its other keys stay; those of another choice's `of` would be merged with the new ones
        changed = [name for name in after if after[name] != before[name]]
        for name in changed:
            key = f"schedule.{name}"
            lines = _replaced(lines, key, [override(key, without_part_defaults(after[name]))])
        return [*lines]
    known = {} if may_be_set else defaults("schedule", after["name"])
    keys = [
        override(f"schedule.{name}", without_part_defaults(value))
        for name, value in after.items()
        if name != "name" and (name not in known or known[name] != value)
    ]
    return _replaced(lines, "schedule", [override("schedule", after["name"]), *keys])


def _replaced(lines: Sequence[str], key: str, by: Sequence[str]) -> list[str]:
    """Replace the overrides of a key and of the keys below it, in place of the first of them."""
    names = [line.partition("=")[0].lstrip("+") for line in lines]
    is_of_key = [name == key or name.startswith(f"{key}.") for name in names]
    first = is_of_key.index(True) if True in is_of_key else len(lines)
    before, after = lines[:first], zip(lines[first:], is_of_key[first:], strict=True)
    return [*before, *by, *(line for line, is_one in after if not is_one)]
