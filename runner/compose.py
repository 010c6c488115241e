"""Command line -> composed configs, through Hydra, with every error in our own words before Hydra acts on anything."""

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from runner import trust
from runner.errors import ConfigError, nearest, show

_HERE = Path(__file__).resolve().parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # in a wheel; in a checkout


SEARCHES = ("search", "hydra/sweeper")  # what says who chooses a multirun's values


def compose(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """The composed config as plain values, checked in nothing but its composition and in what Hydra would run of it."""
    return to_values(composed(overrides, config_dir))


def compose_each(jobs: Sequence[Sequence[str]], config_dir: str | None = None) -> list[dict[str, Any]]:
    """The same of several jobs."""
    known: Known = {}
    return [to_values(composed(overrides, config_dir, known)) for overrides in jobs]


Known = dict[tuple[str, ...], DictConfig]  # what was composed from these choices of groups, before any value


def composed(overrides: Sequence[str], config_dir: str | None = None, known: Known | None = None) -> DictConfig:
    """The whole of it, Hydra's own part included. Jobs of the same groups' choices, which Hydra takes most of its time for,
    share `known`."""
    parsed = parse_overrides(overrides, config_dir)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line} gives several values, which needs -m (--multirun); a list is [a,b]"
            )
    search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []

    def choose(choices: list[str]) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose("config", [*choices, *search], return_hydra_config=True)

    try:
        whole = _with_values(parsed, {} if known is None else known, choose)
        trust.check(OmegaConf.to_container(whole))  # type: ignore[arg-type]
        return whole
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error) from None
    except RecursionError:
        raise ConfigError(f"the config {NESTED}") from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ConfigError(f"a file of the config holds {_LONG_NUMBER}") from None


def _with_values(parsed: Sequence[Override], known: Known, choose: Callable[[list[str]], DictConfig]) -> DictConfig:
    """As `choose`, Hydra's composition, would make it of all overrides: of those that choose from groups it does, once; the
    values are put upon a copy, as Hydra puts them upon what it has composed."""
    forced = OverridesParser.create().parse_overrides([*map(_forced, parsed)])
    values = [override for override in forced if override.is_force_add() and override.package is None]
    choices = tuple(override.input_line or "" for override in forced if override not in values)
    if choices not in known:
        known[choices] = choose([*choices])
    whole = deepcopy(known[choices])
    ConfigLoaderImpl._apply_overrides_to_config(values, whole)
    return whole


class ComposeOnce(Callback):  # type: ignore[misc]
    """Of a multirun Hydra composes every job twice, from all files each time; with this it does as _with_values."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.config_loader = _Loader(hydra.config_loader.config_search_path)


class _Loader(ConfigLoaderImpl):  # type: ignore[misc]
    def __init__(self, config_search_path: Any) -> None:
        super().__init__(config_search_path)
        self._known: Known = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        parsed = OverridesParser.create().parse_overrides(sweep_overrides)
        load = super().load_sweep_config
        whole = _with_values(parsed, self._known, lambda choices: load(master_config, choices))
        own = [override for override in parsed if not override.is_hydra_override()]
        names = whole.hydra.job.config.override_dirname
        whole.hydra.overrides.task = [override.input_line for override in own]
        whole.hydra.job.override_dirname = get_overrides_dirname(own, names.exclude_keys, names.item_sep, names.kv_sep)
        return whole


def to_values(whole: DictConfig) -> dict[str, Any]:
    """Interpolations resolved, Hydra's own part left out; a value that is still `???` is named."""
    own = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    try:
        values: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; it needs a value") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_first_line(error)}") from None
    return with_schedules_whole({key: value for key, value in values.items() if key != "hydra"})


def with_schedules_whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a schedule, and those of `optimizer.schedules`, with what conf/schedule/NAME.yaml says where they say
    nothing."""
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
    return _parts_whole({**_defaults(part["name"]), **part})


@cache
def _defaults(name: str) -> dict[str, Any]:
    file = CONF / "schedule" / f"{name}.yaml"
    values: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    return {key: value for key, value in values.items() if value != "???"}


def jobs(overrides: Sequence[str], multirun: bool, config_dir: str | None = None) -> list[list[str]]:
    """The overrides of the run, or of every job of a multirun."""
    parsed = parse_overrides(overrides, config_dir)
    if not multirun:
        return [list(overrides)]
    if any(override.key_or_group == "task" and override.value() == "preview" for override in parsed):
        overrides = [_globbed(override) for override in parsed]
        parsed = parse_overrides(overrides, config_dir)
    if any(
        override.key_or_group in SEARCHES for override in parsed
    ):  # a range is for the sweeper; its ends are looked at
        parsed = parse_overrides([_ends(override) for override in parsed], config_dir)
    for override in parsed:
        if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
            raise ConfigError(
                f"{override.input_line} is no list of values; write {override.key_or_group}=a,b or range(...)"
            )
    return [list(job) for job in chain.from_iterable(BasicSweeper.split_arguments(parsed, None))]


def _ends(override: Override) -> str:
    """`optimizer.lr=interval(1e-4,1e-1)` as the list of the two."""
    found = override.value()
    if override.value_type != ValueType.INTERVAL_SWEEP:
        return override.input_line or ""
    return f"{override.key_or_group}={found.start},{found.end}"


def _globbed(override: Override) -> str:
    """`schedule=glob(*)` as the list of the choices that need nothing else said."""
    group, value = override.key_or_group, override.value()
    if not isinstance(value, Glob) or not (CONF / group).is_dir():
        return override.input_line or ""
    names = [
        file.stem for file in sorted((CONF / group).glob("*.yaml")) if "???" not in file.read_text(encoding="utf-8")
    ]
    chosen = value.filter(names)
    if not chosen:
        raise ConfigError(f"{override.input_line} fits none of {', '.join(names)}")
    return f"{group}={','.join(chosen)}"


# Python reads no longer integer, and follows no deeper nesting
_LONG_NUMBER = f"a number of more than {sys.get_int_max_str_digits()} digits"
NESTED = "holds more lists or groups in one another than can be read"


def _longest(overrides: Sequence[str]) -> str:
    """The key of the longest override."""
    return max(overrides, key=len).partition("=")[0].lstrip("+~")


def parse_overrides(overrides: Sequence[str], config_dir: str | None = None) -> list[Override]:
    """Hydra's overrides; a key given twice is refused, and a choice that its group does not have."""
    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise explained(error) from None
    except ValueError:
        raise ConfigError(f"{_longest(overrides)} holds {_LONG_NUMBER}") from None
    except RecursionError:
        raise ConfigError(f"{_longest(overrides)} {NESTED}") from None
    seen: set[str] = set()
    for override in parsed:
        if not override.key_or_group:
            raise ConfigError(f"{override.input_line} is not KEY=VALUE")
        if override.key_or_group in seen:
            raise ConfigError(f"{override.key_or_group} is given twice on the command line")
        seen.add(override.key_or_group)
        if override.key_or_group == "hydra.searchpath":  # pkg://NAME imports NAME
            raise ConfigError("hydra.searchpath is not taken; --config-dir adds a folder of choices")
        _check_choice(override, config_dir)
        _check_name(override)
    return parsed


def rates(overrides: str, total_steps: int, lr: float | None = None, steps_per_epoch: int | None = None) -> np.ndarray:
    """The table that a run would train with: eta(t) for t = 0 ... total_steps - 1.  # float64[total_steps]

    `overrides` as on the command line: "schedule=cosine schedule.warmup=5%". `lr` is `optimizer.lr`; an epoch is
    `steps_per_epoch` updates, by default the whole run.
    """
    from runner import schedules
    from runner.config import parse

    base = [] if lr is None else [f"optimizer.lr={lr!r}"]
    config = parse(compose([*shlex.split(overrides), *base]))
    clock = schedules.Clock(total_steps, steps_per_epoch or total_steps)
    return schedules.table(config.schedule, clock, config.optimizer.lr)


def _forced(override: Override) -> str:
    """`a.b=c` as `++a.b=c`: Hydra then takes unknown keys too, and the schema refuses them in its own words."""
    line, key = override.input_line or "", override.key_or_group
    is_value = override.type == OverrideType.CHANGE and not (CONF / key).is_dir() and not key.startswith("hydra")
    return f"++{line}" if is_value else line


def opened(argument: str) -> str:
    """An override of a schedule's key, or of `args`, as one that may also add it: they are not all in YAML."""
    return f"++{argument}" if re.match(r"(schedule|optimizer\.schedules|data\.args)\.", argument) else argument


def _check_choice(override: Override, config_dir: str | None) -> None:
    """Hydra's words for a group's wrong value differ with its kind, and for an optional group there are none."""
    group, places = override.key_or_group, [CONF, *([Path(config_dir)] if config_dir else [])]
    if (
        override.type == OverrideType.DEL
        or override.is_sweep_override()
        or not any((place / group).is_dir() for place in places)
    ):
        return
    if override.type != OverrideType.CHANGE:
        raise ConfigError(f"{group} is a group of choices: write it without +, {group}=CHOICE")
    options = sorted({file.stem for place in places for file in (place / group).glob("*.yaml")})
    choice = override.value()
    if not isinstance(choice, dict) and choice not in options:
        allowed = options[0] if len(options) == 1 else f"one of {', '.join(options)}"
        raise ConfigError(f"{group} must be {allowed}, got {show(choice)}{nearest(choice, options)}")


def _check_name(override: Override) -> None:
    """`schedule.name=cosine` would leave the other keys those of another choice."""
    group, _, key = override.key_or_group.rpartition(".")
    if key == "name" and group in ("data", "loss", "optimizer", "schedule"):
        said = "CHOICE" if override.is_sweep_override() else show(override.value())
        raise ConfigError(f"{override.key_or_group} goes with the other keys of its choice: write {group}={said}")


# Hydra's plugins by the choices that they bring, and the extras that install them
_EXTRAS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
    "optuna": "optuna",
}


def explained(error: Exception) -> ConfigError:
    """What Hydra says, in our words where it is short of them."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").removesuffix(".yaml").rpartition("/")
        extra = _EXTRAS.get(choice) if group.startswith("hydra/") else None
        hint = f"; pip install 'twinrun[{extra}]' brings it" if extra else nearest(choice, error.options)
        found = f"got {choice}{hint}"
        return ConfigError(f"{group} must be one of {', '.join(error.options)}, {found}")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override} cannot be read as KEY=VALUE; a list's item is KEY.0, other signs need quotes"
        )
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.object_type in (list, dict):  # it says neither what nor why
        said = str(error).removeprefix("Error merging override ")
        there = "a list" if cause.object_type is list else "a group of keys"
        return ConfigError(f"{cause.full_key} must be {there}, got {said.partition('=')[2]}")
    return ConfigError(_first_line(error))


def _first_line(error: Exception) -> str:
    """And the next, where the first only says that it comes."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first


def set_keys(values: Mapping[str, Any], overrides: Sequence[Override], allowed: Sequence[str]) -> dict[str, Any]:
    """A finished run's config with the overrides of a task upon it; only the `allowed` keys may differ."""
    changed = deepcopy(dict(values))
    for override in overrides:
        key = override.key_or_group
        if key not in allowed:
            raise ConfigError(
                f"{key} cannot be set for a finished run{nearest(key, allowed)}; {', '.join(allowed)} can"
            )
        *groups, last = key.split(".")
        place = changed
        for group in groups:
            place = place[group]
        place[last] = override.value()
    return changed
