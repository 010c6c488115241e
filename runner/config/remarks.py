"""The remarks in conf/: comments beside the keys of YAML files, for the reference and for
editors."""

import re
from collections.abc import Iterable, Iterator
from functools import cache

from pydantic import BaseModel

from runner.components.layers import Layer
from runner.config.conf_folder import CALLBACKS, files
from runner.config.explain import sections
from runner.config.schema import Clean, Config, FindLR, Forecast, Output, Trainer
from runner.data.augment import Augment
from runner.section import keys


@cache
def remarks(group: str, name: str) -> dict[str, tuple[str, str]]:
    """Map the dotted keys of a choice of conf/ to (default, remark), as written in its files. A key
    without a remark keeps the remark of its base. The group of conf/config.yaml is ""."""
    entries: dict[str, tuple[str, str]] = {}
    for file in files(group, name):
        path: list[tuple[int, str]] = []
        for indent, key, value, words in _lines(file.read_text(encoding="utf-8").splitlines()):
            while path and path[-1][0] >= indent:
                path.pop()
            path.append((indent, key))
            dotted = ".".join(name for _, name in path)
            entries[dotted] = (value, words or entries.get(dotted, ("", ""))[1])
    return entries


@cache
def of_sections() -> dict[type[BaseModel], dict[str, str]]:
    """Map each class of the schema to its keys' remarks; keys without a remark are left out."""
    by_class: dict[type[BaseModel], dict[str, str]] = {
        Config: _words("", "config"),
        Output: _words("", "config", "output."),
        FindLR: _words("", "config", "find_lr."),
        Forecast: _words("", "config", "forecast."),
        Clean: _words("", "config", "clean."),
        Trainer: _words("trainer", "default"),
        Augment: _words("data", "digits", "augment."),
    }
    for kind, section in sections(Layer).items():
        by_class[section] = _words("layer_defaults", "default", f"{kind}.")
    for group, field in keys(Config).items():
        for kind, section in sections(field.rebuild_annotation()).items():
            folder = CALLBACKS if group == "callbacks" else group
            by_class[section] = _words(folder, kind)
    return by_class


def _words(group: str, name: str, prefix: str = "") -> dict[str, str]:
    return {
        key.removeprefix(prefix): words
        for key, (_, words) in remarks(group, name).items()
        if words and key.startswith(prefix)
    }


def _lines(lines: Iterable[str]) -> Iterator[tuple[int, str, str, str]]:
    for line in lines:
        match = re.match(r"( *)(\w+):(?: +([^#]*?))?(?: +# (.*))?$", line)
        if match:
            yield len(match[1]), match[2], (match[3] or "").strip(), (match[4] or "").strip()
