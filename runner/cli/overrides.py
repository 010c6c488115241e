"""Read KEY=VALUE overrides, expand them to jobs, and explain wrong ones."""

import hashlib
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from os.path import isdir  # False for a name that no file system accepts
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    QuotedString,
    RangeSweep,
    ValueType,
)
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from runner.config import trust
from runner.config.conf_folder import CONF, choices, files
from runner.errors import ConfigError, closest, nearest, show
from runner.text.quoting import spell
from runner.user_code import renamed

TASKS = sorted(file.stem for file in (CONF / "task").glob("*.yaml"))


def jobs(
    overrides: Sequence[str], multirun: bool, config_dir: str | None = None
) -> list[list[str]]:
    """Expand to the overrides of the run, or of every job of a multirun."""
    parsed = parse_overrides(overrides, config_dir)
    if not multirun:
        return [list(overrides)]
    if any(
        override.key_or_group == "task" and override.value() == "preview" for override in parsed
    ):
        overrides = [_globbed(override) for override in parsed]
        parsed = parse_overrides(overrides, config_dir)
    if is_search(parsed):  # the study chooses the values; here is one of each
        return [[_first(override) for override in parsed]]
    for override in parsed:
        if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
            raise ConfigError(
                f"{show(override.input_line)} is not a list of values; write "
                f"{override.key_or_group}=a,b or range(...)"
            )
    return [list(job) for job in product(*map(_values, parsed))]


def is_search(overrides: Iterable[Override]) -> bool:
    """Tell whether a search chooses the values of the jobs: search=NAME or its sweeper."""
    return any(
        override.key_or_group == "search"
        or (override.key_or_group == "hydra/sweeper" and override.value() != "basic")
        for override in overrides
    )


def _values(override: Override) -> list[str]:
    """Split an override into one per value, as Hydra's sweeper does."""
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def without_hydra(overrides: Sequence[str]) -> list[str]:
    """Drop the overrides of hydra.*."""
    return [override for override in overrides if not override.lstrip("+~").startswith("hydra")]


def without_seed(job: Sequence[str]) -> tuple[str, ...]:
    """Return what a job's overrides have besides the seed and hydra.*."""
    own = without_hydra(job)
    return tuple(item for item in own if not item.lstrip("+").startswith("seed="))


def _first(override: Override) -> str:
    """Replace a range, `optimizer.lr=interval(1e-4,1e-1)`, by its first value."""
    if not override.is_sweep_override():
        return override.input_line or ""
    value, key = override.value(), override.get_key_element()
    if isinstance(value, IntervalSweep):
        return f"{key}={value.start}"
    first = next(iter(override.sweep_string_iterator()), None)
    if first is None:
        raise ConfigError(f"{override.input_line} has no values")
    return f"{key}={first}"


def _globbed(override: Override) -> str:
    """Replace a glob, `schedule=glob(*)`, by a list of the choices that have no missing key."""
    group, value = override.key_or_group, override.value()
    if not isinstance(value, Glob) or not isdir(CONF / group):
        return override.input_line or ""
    names = [
        name
        for name in choices(group)
        if not any("???" in file.read_text(encoding="utf-8") for file in files(group, name))
    ]
    chosen = value.filter(names)
    if not chosen:
        raise ConfigError(f"{override.input_line} matches none of {', '.join(names)}")
    return f"{group}={','.join(chosen)}"


# limits of Python's integer parser and recursion depth
_LONG_NUMBER = f"a number of more than {sys.get_int_max_str_digits()} digits"
_NESTED = "is nested too deeply"


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def parse_overrides(overrides: Sequence[str], config_dir: str | None = None) -> list[Override]:
    """Parse overrides with Hydra; refuse a repeated key, and a choice that does not exist."""
    parsed = [parse_override(argument) for argument in overrides]
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
                f"{show(override.get_key_element())} cannot be set; write GROUP=CHOICE for a "
                f"choice, KEY=VALUE for a value"
            )
        if key == "hydra.searchpath":  # pkg://NAME would import NAME
            raise ConfigError(
                "hydra.searchpath is not supported; use --config-dir to add a folder of choices"
            )
        if override.is_hydra_override() and override.is_sweep_override():
            raise ConfigError(f"{show(key)} must have one value, got {show(override.input_line)}")
        _check_choice(override, config_dir)
        _check_name(override)
    return parsed


def parse_override(argument: str) -> Override:
    """Parse one override. A value that Hydra's grammar rejects, but that contains none of its
    special characters, is text: output.root=ünï, where=[steps<100,backend:keras]."""
    parser = OverridesParser.create()
    try:
        return parser.parse_overrides([argument])[0]
    except ValueError:
        raise ConfigError(f"{_key(argument)} contains {_LONG_NUMBER}") from None
    except RecursionError:
        raise ConfigError(f"{_key(argument)} {_NESTED}") from None
    except HydraException as error:
        key, sign, value = argument.partition("=")
        if not sign and (task := closest(argument, TASKS)):
            raise ConfigError(
                f"{show(argument)} is not KEY=VALUE; did you mean task={task}?"
            ) from None
        if sign and (spelled := _as_text(value)):
            with suppress(HydraException):
                return parser.parse_overrides([f"{key}={spelled}"])[0]
        raise explained(error) from None


def plain_text(override: str) -> str:
    """Return the value of an override as text, without the quotes of a text that has them."""
    value = parse_override(override).value()
    return value.text if isinstance(value, QuotedString) else str(value)


def _as_text(value: str) -> str | None:
    """Quote what Hydra's grammar rejects, a text or the texts of a list; None for a value with
    special characters."""
    is_list = value[:1] == "[" and value[-1:] == "]"
    items = [item.strip(" ") for item in value[1:-1].split(",")] if is_list else [value]
    if not value or any(set("\"'\\,()[]{}$=") & set(item) for item in items):
        return None
    spelled = ",".join(map(_item, items))
    return f"[{spelled}]" if is_list else spelled


def _item(text: str) -> str:
    """Quote a text, unless Hydra's grammar accepts it."""
    try:
        OverridesParser.create().parse_overrides([f"key={text}"])
    except HydraException:
        return spell(text)
    return text


def with_force_add(override: Override) -> str:
    """Turn `a.b=c` into `++a.b=c`. Hydra then accepts unknown keys, and the schema refuses them
    with a better message."""
    line = override.input_line or ""
    return f"++{line}" if is_value(override) and override.type == OverrideType.CHANGE else line


def is_value(override: Override) -> bool:
    """Return whether an override sets a key of a run's config, not a choice or hydra.*."""
    key = override.key_or_group
    is_own = not isdir(CONF / key) and not key.startswith("hydra")
    return is_own and override.type != OverrideType.DEL


def _check_choice(override: Override, config_dir: str | None) -> None:
    """Refuse a choice that does not exist in its group. Hydra's own message depends on the kind of
    group, and an optional group gets none."""
    group, choice = override.key_or_group, override.value()
    if group.startswith("hydra/") and override.type == OverrideType.CHANGE:
        trust.check_choice(group, choice)
    folders = [CONF / group, *([Path(config_dir) / group] if config_dir else [])]
    folders = [folder for folder in folders if isdir(folder)]
    if not folders or group.startswith("hydra/") or override.type == OverrideType.DEL:
        return
    if override.type != OverrideType.CHANGE:
        raise ConfigError(f"{group} is a group of choices: write {group}=CHOICE, without +")
    lists = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP)
    chosen = [*override.sweep_iterator()] if override.value_type in lists else [choice]
    options = choices(group, config_dir)
    for choice in chosen:
        is_range = isinstance(choice, Glob | IntervalSweep | RangeSweep)
        if not is_range and not isinstance(choice, dict) and choice not in options:
            if choice == "python" and group in ("schedule", "data"):
                raise ConfigError(renamed(group))
            allowed = options[0] if len(options) == 1 else f"one of {', '.join(options)}"
            raise ConfigError(
                f"{group} must be {allowed}, got {show(choice)}{nearest(choice, options)}"
            )


def _check_name(override: Override) -> None:
    """Refuse `schedule.name=cosine`, which would keep the other keys of the previous choice."""
    group, _, key = override.key_or_group.rpartition(".")
    if key == "name" and group in ("data", "loss", "optimizer", "schedule"):
        choice = "CHOICE" if override.is_sweep_override() else show(override.value())
        raise ConfigError(
            f"{override.key_or_group} cannot be set by itself; write {group}={choice}, which sets "
            f"all keys of the choice"
        )


# choice of a Hydra plugin -> the extra that installs it
_EXTRAS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
}


def explained(error: Exception) -> ConfigError:
    """Turn an error of Hydra into a ConfigError that names the key."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").removesuffix(".yaml").rpartition("/")
        options = [option for option in error.options if not option.startswith("_")]
        extra = _EXTRAS.get(choice) if group.startswith("hydra/") else None
        hint = (
            f"; install it with pip install 'twinrun[{extra}]'"
            if extra
            else nearest(choice, options)
        )
        allowed = ", ".join(options)
        return ConfigError(f"{group} must be one of {allowed}, got {choice}{hint}")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{show(error.override)} is not a valid KEY=VALUE; write a list item as KEY.0, and "
            f"quote special characters"
        )
    if isinstance(error, RecursionError):
        return ConfigError(f"the config {_NESTED}")
    if "integer string conversion" in str(error):
        return ConfigError(f"a file of the config contains {_LONG_NUMBER}")
    cause = error.__cause__ or error.__context__ or error
    # an entry of a defaults list
    if isinstance(cause, OmegaConfBaseException) and cause.full_key == "_dummy_":
        return ConfigError("a defaults list cannot contain ${...}; name the choice itself")
    if isinstance(cause, IndexError) or isinstance(getattr(cause, "__cause__", None), IndexError):
        return ConfigError(f"{getattr(cause, 'full_key', 'a key')} is past the end of its list")
    file = re.match(r"In '(.*)': \w+ raised while composing config:\s+Cannot merge", str(error))
    if file:
        return ConfigError(
            f"{file[1]}.yaml has a list where the config has a group of keys, or a group where "
            f"the config has a list"
        )
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:  # Hydra does not name it
        value = str(error).removeprefix("Error merging override ").partition("=")[2]
        kinds: dict[Any, str] = {list: "a list", dict: "a group of keys"}
        kind = kinds.get(cause.object_type)
        if kind and value:
            return ConfigError(f"{cause.full_key} must be {kind}, got {show(value)}")
        if isinstance(cause, ConfigKeyError) and cause.full_key.startswith("hydra."):
            return ConfigError(
                f"unknown key {cause.full_key}: the chosen launcher or sweeper does not have it"
            )
        return ConfigError(f"{cause.full_key}: {first_line(cause)}")
    return ConfigError(first_line(error))


def first_line(error: Exception) -> str:
    """The first line of an error; also the second if the first ends with a colon."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first


_LONGEST_NAME = 120
_NEVER_CUT = ("seed", "optimizer.lr")


def job_names(
    overrides_per_job: Sequence[Sequence[str]], searched: Collection[str] = ()
) -> list[str]:
    """Name the folder of each job of a multirun, `KEY-VALUE_KEY-VALUE`.

    The name has the keys that differ between the jobs (all keys if none differs) and the `searched`
    keys. It needs no quotes in a shell or in Hydra's grammar. result.json has the overrides
    themselves."""
    values = [
        dict(_key_and_value(override) for override in overrides) for overrides in overrides_per_job
    ]
    keys = list(dict.fromkeys(key for job in values for key in job))
    keys = [key for key in keys if not key.startswith(("output.", "hydra", "search", "resume"))]
    varying = [k for k in keys if k in searched or len({job.get(k) for job in values}) > 1]
    return [_name({k: job[k] for k in varying or keys if k in job}) for job in values]


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def _name(job: Mapping[str, str]) -> str:
    """Join the parts. A name that is too long is cut, except for the seed and the rate, and a hash
    makes it unique."""
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
