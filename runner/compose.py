"""Command line -> composed configs, through Hydra, with every error in our own words before Hydra acts on anything."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from runner.config import Config, parse
from runner.errors import ConfigError, nearest

_HERE = Path(__file__).resolve().parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # in a wheel; in a checkout


def compose(overrides: Sequence[str], config_dir: str | None = None, config_name: str = "config") -> dict[str, Any]:
    """The composed config as plain values, checked in nothing but its composition."""
    parsed = _parse_overrides(overrides)
    GlobalHydra.instance().clear()
    search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose(config_name, [*map(_forced, parsed), *search])
            return to_values(composed)
    except MissingConfigException as error:
        raise ConfigError(_missing(error, parsed)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from None


def to_values(composed: DictConfig) -> dict[str, Any]:
    """Interpolations resolved; a value that is still `???` is named."""
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; it needs a value") from None
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from None
    return {key: value for key, value in values.items() if key != "hydra"}


def check_jobs(overrides: Sequence[str], config_dir: str | None, multirun: bool) -> list[Config]:
    """The config of the run, or of every job of a multirun, all checked before the first one starts."""
    parsed = _parse_overrides(overrides)
    if multirun:
        batches = BasicSweeper.split_arguments(parsed, None)
        jobs = [list(job) for job in chain.from_iterable(batches)]
    else:
        jobs = [list(overrides)]
    return [parse(compose(job, config_dir)) for job in jobs]


def _parse_overrides(overrides: Sequence[str]) -> list[Override]:
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(_first_line(error)) from None
    seen: set[str] = set()
    for override in parsed:
        if override.key_or_group in seen:
            raise ConfigError(f"{override.key_or_group} is given twice on the command line")
        seen.add(override.key_or_group)
    return parsed


def _forced(override: Override) -> str:
    """`a.b=c` as `++a.b=c`: Hydra then takes unknown keys too, and the schema refuses them in its own words."""
    line = override.input_line or ""
    is_value = override.type == OverrideType.CHANGE and not _is_group(override.key_or_group)
    if not is_value or override.key_or_group.startswith("hydra"):
        return line
    return "++" + line


def _is_group(key: str) -> bool:
    stored = ConfigStore.instance().repo
    return (CONF / key).is_dir() or key in stored or key.startswith("hydra/")


def _missing(error: MissingConfigException, overrides: Sequence[Override]) -> str:
    name = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, choice = name.rpartition("/")
    options = list(error.options or [])
    if not group or not options:
        return _first_line(error)
    return f"{group} must be one of {', '.join(options)}, got {choice}{nearest(choice, options)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def show(values: Mapping[str, Any]) -> str:
    """As YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))
