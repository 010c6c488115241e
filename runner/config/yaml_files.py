"""Read a user's YAML files strictly; errors name the file and the line."""

import os
import stat
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.errors import ConfigError, one_line, printable, show

try:
    from yaml import CSafeLoader as _Loader
except ImportError:
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

_MOST_BYTES = 2**20
_MOST_VALUES = 20_000
_DEEPEST = 60


def read_text(path: Path) -> str:
    """Read UTF-8 text from a regular file of at most 1 MiB."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} must be a regular YAML file")
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path} must have at most {_MOST_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: the text must be UTF-8") from None


def parse(text: str, path: Path) -> DictConfig:
    """Parse a mapping; interpolations are not resolved. Refuses duplicate keys, values that contain
    themselves, and values that are too large or nested too deeply."""
    try:
        _check_depth(text, path)
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return OmegaConf.create()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path} must hold KEY: VALUE, got {show(text.strip())}")
        _measure(node, path, {}, set())
        config = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{line}: {printable(str(error.problem or error.context))}"
        ) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(f"{path}: {one_line(error)}") from None
    except OmegaConfBaseException as error:  # its other lines are about OmegaConf's classes
        key = f" {error.full_key}:" if error.full_key else ""
        raise ConfigError(f"{path}:{key} {printable(str(error).partition(chr(10))[0])}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {one_line(error)}") from None
    assert isinstance(config, DictConfig)
    return config


def _check_depth(text: str, path: Path) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            line = event.start_mark.line + 1
            raise ConfigError(f"{path}, line {line}: values nest deeper than {_DEEPEST} levels")


def _measure(node: Any, path: Path, sizes: dict[int, int], above: set[int]) -> int:
    """Count the values of a node with all aliases expanded."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    line = node.start_mark.line + 1
    if id(node) in above:
        raise ConfigError(f"{path}, line {line}: the value contains itself")
    if id(node) in sizes:
        return sizes[id(node)]
    inner, seen = node.value, set()
    if isinstance(node, yaml.MappingNode):
        inner = [value for _, value in node.value]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}, line {line}: the key {show(key.value)} is repeated")
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
    size = 1 + sum(_measure(item, path, sizes, above | {id(node)}) for item in inner)
    if size > _MOST_VALUES:
        raise ConfigError(f"{path}, line {line}: more than {_MOST_VALUES} values")
    sizes[id(node)] = size
    return size
