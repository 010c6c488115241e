"""Compositions of conf/, which no test changes, made once per process: Hydra takes 0.1 s for
one."""

import pickle
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from omegaconf import DictConfig

from runner.cli import hydra_bridge
from runner.config.conf_folder import CONF

_load = hydra_bridge.load
_GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}


@cache
def _composed(choices: tuple[str, ...]) -> bytes:
    """Pickled: that is copied in a sixth of the time that deepcopy takes."""
    return pickle.dumps(_load(None, choices))


def load(config_dir: str | None, overrides: Sequence[str]) -> DictConfig:
    """hydra_bridge.load; a folder of --config-dir is read anew each time."""
    if config_dir is not None:
        return _load(config_dir, overrides)
    config: DictConfig = pickle.loads(_composed(tuple(overrides)))
    return config


def install() -> None:
    hydra_bridge.load = load


def ahead(arguments: Sequence[str]) -> None:
    """Compose what these arguments choose, for the processes that are forked from this one."""
    if "-m" not in arguments:
        with suppress(Exception):  # a wrong choice: the command itself says so
            _composed(tuple(a for a in arguments if a.partition("=")[0] in _GROUPS))
