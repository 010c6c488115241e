"""Files and compositions of conf/, which no test changes, read once: Hydra takes 0.15 s for a
composition, and a third of it for the files. The processes of a session share the compositions."""

import hashlib
import os
import pickle
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult

from runner.cli import hydra_bridge
from runner.cli.hydra_bridge import Composition
from runner.config.conf_folder import CONF

SESSION = "TWINRUN_TEST_SESSION"  # the variable that names the session's folder

_load = hydra_bridge.load
_read = ConfigRepository.load_config
_files: dict[str, bytes] = {}  # pickled: that is copied in a sixth of the time of deepcopy
_GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}


@cache
def _composed(choices: tuple[str, ...]) -> bytes:
    if (folder := os.environ.get(SESSION)) is None:
        return pickle.dumps(_load(None, choices))
    path = Path(folder) / hashlib.sha256(repr(choices).encode()).hexdigest()
    if path.exists():
        return path.read_bytes()
    made = pickle.dumps(_load(None, choices))
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(made)
    part.replace(path)  # whole or not at all
    return made


def load(config_dir: str | None, overrides: Sequence[str]) -> Composition:
    """hydra_bridge.load; a folder of --config-dir is read anew each time."""
    if config_dir is not None:
        return _load(config_dir, overrides)
    composition: Composition = pickle.loads(_composed(tuple(overrides)))
    return composition


def read(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
    """ConfigRepository.load_config, where conf/ and Hydra's own folder are all that it reads."""
    if any(source.provider == "command-line" for source in repository.get_sources()):
        return _read(repository, config_path)
    if config_path not in _files:
        _files[config_path] = pickle.dumps(_read(repository, config_path))
    result: ConfigResult | None = pickle.loads(_files[config_path])
    return result


def install() -> None:
    hydra_bridge.load = load
    ConfigRepository.load_config = read


def ahead(arguments: Sequence[str]) -> None:
    """Compose what these arguments choose, for the processes that are forked from this one."""
    if "-m" not in arguments:
        with suppress(Exception):  # a wrong choice: the command itself says so
            _composed(tuple(a for a in arguments if a.partition("=")[0] in _GROUPS))
