"""Read conf/, the folder of all choices and defaults."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_RUNNER = Path(__file__).resolve().parents[1]
# conf/ is inside runner/ in a wheel, beside it in a checkout
CONF = _RUNNER / "conf" if (_RUNNER / "conf").is_dir() else _RUNNER.parent / "conf"


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
    """The defaults in conf/GROUP/NAME.yaml; empty if the file does not exist. The group of
    conf/config.yaml is ""."""
    file = CONF / group / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not file.is_file():
        return {}
    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    return {key: value for key, value in values.items() if value != "???"}


def with_schedule_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of conf/schedule/NAME.yaml in the parts of `schedule` and of
    `optimizer.schedules`."""
    filled, optimizer = dict(values), values.get("optimizer")
    if isinstance(values.get("schedule"), dict):
        filled["schedule"] = _fill_parts(values["schedule"])
    if isinstance(optimizer, dict) and isinstance(optimizer.get("schedules"), dict):
        filled["optimizer"] = {**optimizer, "schedules": _fill_parts(optimizer["schedules"])}
    return filled


def _fill_parts(schedule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: [_fill(part) for part in value] if isinstance(value, list) else _fill(value)
        for key, value in schedule.items()
    }


def _fill(part: Any) -> Any:
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        return part
    return _fill_parts({**defaults("schedule", part["name"]), **part})
