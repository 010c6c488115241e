"""Read conf/, the folder of all choices and defaults."""

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.config import yaml_files

_RUNNER = Path(__file__).resolve().parents[1]
# conf/ is inside runner/ in a wheel, beside it in a checkout
CONF = _RUNNER / "conf" if (_RUNNER / "conf").is_dir() else _RUNNER.parent / "conf"

CALLBACKS = "trainer/callback"  # the folder with the defaults of named callbacks


def groups(config_dir: str | None = None) -> list[str]:
    """List the groups of conf/ and of the folder of --config-dir."""
    return sorted(
        {file.parent.name for folder in _folders(config_dir) for file in folder.glob("*/*.yaml")}
    )


def choices(group: str, config_dir: str | None = None) -> list[str]:
    """List the choices of a group. A file whose name starts with _ is a shared base, not a
    choice."""
    return sorted(
        {
            file.stem
            for folder in _folders(config_dir)
            for file in (folder / group).glob("*.yaml")
            if file.is_file() and not file.stem.startswith("_")
        }
    )


def _folders(config_dir: str | None) -> list[Path]:
    return [CONF, Path(config_dir)] if config_dir else [CONF]


@cache
def defaults(group: str, name: str) -> dict[str, Any]:
    """The defaults of a choice of conf/, including those of its bases; empty if there is no such
    choice. The group of conf/config.yaml is ""."""
    if not re.fullmatch(r"(?!_)\w+", name) or not (CONF / group / f"{name}.yaml").is_file():
        return {}
    return {key: value for key, value in _merged(group, name).items() if value != "???"}


@cache
def shared(group: str, base: str) -> Collection[str]:
    """The keys of a base of conf/."""
    return _merged(group, base).keys()


def _merged(group: str, name: str) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(OmegaConf.merge(*map(_read, files(group, name))))
    values.pop("defaults", None)
    return dict(values)


@cache
def _read(file: Path) -> DictConfig:
    return yaml_files.of_own(file.read_text("utf-8"))


@cache
def files(group: str, name: str) -> tuple[Path, ...]:
    """The files of conf/ that make up a choice, in Hydra's merge order: its own file, and the files
    of the same folder in its defaults list."""
    file = CONF / group / f"{name}.yaml"
    entries = [entry for entry in _read(file).get("defaults", ()) if isinstance(entry, str)]
    if "_self_" not in entries:  # Hydra's default: the file's own keys come last
        entries.append("_self_")
    return tuple(
        path
        for entry in entries
        for path in ((file,) if entry == "_self_" else files(group, entry))
    )


def bases(group: str) -> list[str]:
    """The bases of a group of conf/: files with keys that several of its choices share."""
    return sorted(file.stem for file in (CONF / group).glob("_*.yaml"))


def with_schedule_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of conf/schedule/NAME.yaml in the parts of `schedule`, and in the
    schedules of `optimizer.schedules` and of `optimizer.groups`."""
    filled, optimizer = dict(values), values.get("optimizer")
    if isinstance(values.get("schedule"), dict):
        filled["schedule"] = _fill_parts(values["schedule"])
    if isinstance(optimizer, dict):
        filled["optimizer"] = dict(optimizer)
        if isinstance(optimizer.get("schedules"), dict):
            filled["optimizer"]["schedules"] = _fill_parts(optimizer["schedules"])
        if isinstance(optimizer.get("groups"), list):
            filled["optimizer"]["groups"] = [_fill_entry(item) for item in optimizer["groups"]]
    return filled


def without_part_defaults(value: Any) -> Any:
    """Leave out the keys that have the defaults of conf/schedule/NAME.yaml in schedules that are in
    lists: the phases of a sequence, the groups of an optimizer. `with_schedule_defaults` fills them
    in again. A schedule that is in no list keeps its keys, since Hydra merges it with another."""
    if isinstance(value, list):
        return [_shortened(part) for part in value]
    if isinstance(value, Mapping):
        return {key: without_part_defaults(part) for key, part in value.items()}
    return value


def _shortened(part: Any) -> Any:
    if isinstance(part, list):
        return [_shortened(each) for each in part]
    if not isinstance(part, Mapping):
        return part
    known = defaults("schedule", str(part.get("name")))
    return {
        key: _shortened(value)
        for key, value in part.items()
        if key == "name" or key not in known or known[key] != value
    }


def with_callback_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of conf/trainer/callback/NAME.yaml in the entries of `callbacks`; a name
    becomes a section."""
    entries = values.get("callbacks")
    if not isinstance(entries, list):
        return dict(values)
    sections = [{"callback": e} if isinstance(e, str) else e for e in entries]
    filled = [
        {**defaults(CALLBACKS, section["callback"]), **section}
        if isinstance(section, dict) and isinstance(section.get("callback"), str)
        else section
        for section in sections
    ]
    return {**values, "callbacks": filled}


def _fill_entry(entry: Any) -> Any:
    if not isinstance(entry, dict) or "schedule" not in entry:
        return entry
    return {**entry, "schedule": _fill(entry["schedule"])}


def _fill_parts(schedule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: [_fill(part) for part in value] if isinstance(value, list) else _fill(value)
        for key, value in schedule.items()
    }


def _fill(part: Any) -> Any:
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        return part
    return _fill_parts({**defaults("schedule", part["name"]), **part})
