"""KEY=VALUE: reading overrides, expanding them to jobs, and the words where one is wrong."""

import hashlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import product
from os.path import isdir  # False for a name that no file system takes
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    RangeSweep,
    ValueType,
)
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from runner.config import trust
from runner.config.conf_folder import CONF, choices
from runner.errors import ConfigError, closest, nearest, show
from runner.text.quoting import spell

TASKS = sorted(file.stem for file in (CONF / "task").glob("*.yaml"))
SEARCHES = ("search", "hydra/sweeper")  # what says who chooses a multirun's values


def jobs(
    overrides: Sequence[str], multirun: bool, config_dir: str | None = None
) -> list[list[str]]:
    """The overrides of the run, or of every job of a multirun."""
    parsed = parse_overrides(overrides, config_dir)
    if not multirun:
        return [list(overrides)]
    if any(
        override.key_or_group == "task" and override.value() == "preview" for override in parsed
    ):
        overrides = [_globbed(override) for override in parsed]
        parsed = parse_overrides(overrides, config_dir)
    if any(
        override.key_or_group in SEARCHES for override in parsed
    ):  # a range is for the sweeper; its ends are looked at
        parsed = parse_overrides([_ends(override) for override in parsed], config_dir)
    for override in parsed:
        if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
            raise ConfigError(
                f"{show(override.input_line)} is no list of values; write "
                f"{override.key_or_group}=a,b or range(...)"
            )
    return [list(job) for job in product(*map(_values, parsed))]


def _values(override: Override) -> list[str]:
    """An override for each of its values, as Hydra's sweeper splits it."""
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def without_hydra(overrides: Sequence[str]) -> list[str]:
    """Overrides of the config, without those of Hydra's own part."""
    return [override for override in overrides if not override.lstrip("+~").startswith("hydra")]


def _ends(override: Override) -> str:
    """`optimizer.lr=interval(1e-4,1e-1)` as the list of the two."""
    found = override.value()
    if override.value_type != ValueType.INTERVAL_SWEEP:
        return override.input_line or ""
    return f"{override.key_or_group}={found.start},{found.end}"


def _globbed(override: Override) -> str:
    """`schedule=glob(*)` as the list of the choices that need nothing else said."""
    group, value = override.key_or_group, override.value()
    if not isinstance(value, Glob) or not isdir(CONF / group):
        return override.input_line or ""
    names = [
        name
        for name in choices(group)
        if "???" not in (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    ]
    chosen = value.filter(names)
    if not chosen:
        raise ConfigError(f"{override.input_line} fits none of {', '.join(names)}")
    return f"{group}={','.join(chosen)}"


# Python reads no longer integer, and follows no deeper nesting
_LONG_NUMBER = f"a number of more than {sys.get_int_max_str_digits()} digits"
NESTED = "holds more lists or groups in one another than can be read"


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def parse_overrides(overrides: Sequence[str], config_dir: str | None = None) -> list[Override]:
    """Hydra's overrides; a key given twice is refused, and a choice that its group does not
    have."""
    parsed = [_parse(argument) for argument in overrides]
    seen: set[str] = set()
    for override in parsed:
        key = override.key_or_group
        if not key:
            raise ConfigError(f"{show(override.input_line)} is not KEY=VALUE")
        if key in seen:
            raise ConfigError(f"{show(key)} is given twice on the command line")
        seen.add(key)
        if key == "hydra" or override.package is not None:
            raise ConfigError(
                f"{show(override.get_key_element())} cannot be set; a choice is "
                f"GROUP=CHOICE, a value KEY=VALUE"
            )
        if key == "hydra.searchpath":  # pkg://NAME imports NAME
            raise ConfigError(
                "hydra.searchpath is not taken; --config-dir adds a folder of choices"
            )
        if override.is_hydra_override() and override.is_sweep_override():
            raise ConfigError(f"{show(key)} must have one value, got {show(override.input_line)}")
        _check_choice(override, config_dir)
        _check_name(override)
    return parsed


def _parse(argument: str) -> Override:
    """One override. A value that Hydra's grammar does not know and that has none of its signs is
    text, as in output.root=ünï."""
    parser = OverridesParser.create()
    try:
        return parser.parse_overrides([argument])[0]
    except ValueError:
        raise ConfigError(f"{_key(argument)} holds {_LONG_NUMBER}") from None
    except RecursionError:
        raise ConfigError(f"{_key(argument)} {NESTED}") from None
    except HydraException as error:
        key, sign, value = argument.partition("=")
        if not sign and (task := closest(argument, TASKS)):
            raise ConfigError(
                f"{show(argument)} is not KEY=VALUE; did you mean task={task}?"
            ) from None
        if sign and value and not set("\"'\\,()[]{}$=") & set(value):
            with suppress(HydraException):
                return parser.parse_overrides([f"{key}={spell(value)}"])[0]
        raise explained(error) from None


def forced(override: Override) -> str:
    """`a.b=c` as `++a.b=c`: Hydra then takes unknown keys too, and the schema refuses them in its
    own words."""
    line, key = override.input_line or "", override.key_or_group
    is_value = override.type == OverrideType.CHANGE and not isdir(CONF / key)
    is_value = is_value and not key.startswith("hydra")
    return f"++{line}" if is_value else line


def _check_choice(override: Override, config_dir: str | None) -> None:
    """Refuse a choice that its group does not have. Hydra's words for it differ with the group's
    kind, and for an optional group there are none."""
    group, choice = override.key_or_group, override.value()
    if group.startswith("hydra/") and override.type == OverrideType.CHANGE:
        trust.check_choice(group, choice)
    folders = [CONF / group, *([Path(config_dir) / group] if config_dir else [])]
    folders = [folder for folder in folders if isdir(folder)]
    if not folders or override.type == OverrideType.DEL:
        return
    if override.type != OverrideType.CHANGE:
        raise ConfigError(f"{group} is a group of choices: write it without +, {group}=CHOICE")
    lists = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP)
    found = [*override.sweep_iterator()] if override.value_type in lists else [choice]
    options = choices(group, config_dir)
    for choice in found:
        by_a_search = isinstance(choice, Glob | IntervalSweep | RangeSweep)
        if not by_a_search and not isinstance(choice, dict) and choice not in options:
            allowed = options[0] if len(options) == 1 else f"one of {', '.join(options)}"
            raise ConfigError(
                f"{group} must be {allowed}, got {show(choice)}{nearest(choice, options)}"
            )


def _check_name(override: Override) -> None:
    """`schedule.name=cosine` would leave the other keys those of another choice."""
    group, _, key = override.key_or_group.rpartition(".")
    if key == "name" and group in ("data", "loss", "optimizer", "schedule"):
        said = "CHOICE" if override.is_sweep_override() else show(override.value())
        raise ConfigError(
            f"{override.key_or_group} goes with the other keys of its choice: write {group}={said}"
        )


# Hydra's plugins by the choices that they bring, and the extras that install them
_EXTRAS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
    "optuna": "optuna",
}


def explained(error: Exception) -> ConfigError:
    """Turn an error of Hydra's into a ConfigError, in our words where Hydra names no key."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").removesuffix(".yaml").rpartition("/")
        extra = _EXTRAS.get(choice) if group.startswith("hydra/") else None
        hint = (
            f"; pip install 'twinrun[{extra}]' brings it"
            if extra
            else nearest(choice, error.options)
        )
        found = f"got {choice}{hint}"
        return ConfigError(f"{group} must be one of {', '.join(error.options)}, {found}")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{show(error.override)} cannot be read as KEY=VALUE; a list's item is KEY.0, "
            f"other signs need quotes"
        )
    if isinstance(error, RecursionError):
        return ConfigError(f"the config {NESTED}")
    if "integer string conversion" in str(error):
        return ConfigError(f"a file of the config holds {_LONG_NUMBER}")
    cause = error.__cause__ or error.__context__ or error
    # an entry of a defaults list
    if isinstance(cause, OmegaConfBaseException) and cause.full_key == "_dummy_":
        return ConfigError("a defaults list names its choices: ${...} is not taken there")
    if isinstance(cause, IndexError) or isinstance(getattr(cause, "__cause__", None), IndexError):
        return ConfigError(f"{getattr(cause, 'full_key', 'a key')} is past the end of its list")
    file = re.match(r"In '(.*)': \w+ raised while composing config:\s+Cannot merge", str(error))
    if file:
        return ConfigError(
            f"{file[1]}.yaml holds a list where the config has a group of keys, or a group "
            f"where it has a list"
        )
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:  # Hydra names no key
        said = str(error).removeprefix("Error merging override ").partition("=")[2]
        kinds: dict[Any, str] = {list: "a list", dict: "a group of keys"}
        kind = kinds.get(cause.object_type)
        if kind and said:
            return ConfigError(f"{cause.full_key} must be {kind}, got {show(said)}")
        if isinstance(cause, ConfigKeyError) and cause.full_key.startswith("hydra."):
            return ConfigError(
                f"{cause.full_key} is no key of the launcher or sweeper that is chosen"
            )
        return ConfigError(f"{cause.full_key}: {first_line(cause)}")
    return ConfigError(first_line(error))


def first_line(error: Exception) -> str:
    """Return the first line of an error, and the next where the first only announces it."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first


_LONGEST_NAME = 120
_NEVER_CUT = ("seed", "optimizer.lr")


def job_names(each: Sequence[Sequence[str]], searched: Collection[str] = ()) -> list[str]:
    """A folder's name for each job of a multirun, `KEY-VALUE_KEY-VALUE`: the keys that differ
    between the jobs (all of them if none does) and those that are `searched`. Its characters need
    no quotes, in a shell or in Hydra's grammar; the overrides themselves are in result.json."""
    said = [dict(_key_and_value(override) for override in overrides) for overrides in each]
    keys = list(dict.fromkeys(key for job in said for key in job))
    keys = [key for key in keys if not key.startswith(("output.", "hydra", "search", "resume"))]
    varying = [k for k in keys if k in searched or len({job.get(k) for job in said}) > 1]
    return [_name({k: job[k] for k in varying or keys if k in job}) for job in said]


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def _name(job: Mapping[str, str]) -> str:
    """Cut where it is too long, but never the seed or the rate; a hash then keeps it apart."""
    parts = {key: re.sub(r"[^\w.+%-]+", "-", value, flags=re.ASCII) for key, value in job.items()}
    parts = {key: f"{key}-{value.strip('-') or 'null'}" for key, value in parts.items()}
    whole = "_".join(part.replace("/", "-") for part in parts.values())
    if len(whole) <= _LONGEST_NAME:
        return whole or "defaults"
    kept = "_".join(parts[key][:40] for key in _NEVER_CUT if key in parts)
    digest = hashlib.sha256(repr(sorted(job.items())).encode()).hexdigest()[:8]
    rest = "_".join(part for key, part in parts.items() if key not in _NEVER_CUT)
    room = _LONGEST_NAME - len(kept) - len(digest) - 2
    return "_".join(filter(None, (rest[:room], digest, kept)))
