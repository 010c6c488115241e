"""conf/: where the choices and every default lie."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_RUNNER = Path(__file__).resolve().parents[1]
# in a wheel; in a checkout
CONF = _RUNNER / "conf" if (_RUNNER / "conf").is_dir() else _RUNNER.parent / "conf"


def groups(config_dir: str | None = None) -> list[str]:
    """The groups of conf/ and of a folder of the user's own."""
    return sorted(
        {file.parent.name for folder in _folders(config_dir) for file in folder.glob("*/*.yaml")}
    )


def choices(group: str, config_dir: str | None = None) -> list[str]:
    """The choices of a group. A name that begins with _ is a base of choices, and none itself."""
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
    """The keys of conf/GROUP/NAME.yaml that have a default; none where there is no such choice.
    conf/config.yaml is in no group, ""."""
    file = CONF / group / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not file.is_file():
        return {}
    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    return {key: value for key, value in values.items() if value != "???"}


def with_schedules_whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a schedule, and those of `optimizer.schedules`, with what
    conf/schedule/NAME.yaml says where they say nothing."""
    whole, optimizer = dict(values), values.get("optimizer")
    if isinstance(values.get("schedule"), dict):
        whole["schedule"] = _parts_whole(values["schedule"])
    if isinstance(optimizer, dict) and isinstance(optimizer.get("schedules"), dict):
        whole["optimizer"] = {**optimizer, "schedules": _parts_whole(optimizer["schedules"])}
    return whole


def _parts_whole(schedule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: [_whole(part) for part in value] if isinstance(value, list) else _whole(value)
        for key, value in schedule.items()
    }


def _whole(part: Any) -> Any:
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        return part
    return _parts_whole({**defaults("schedule", part["name"]), **part})
