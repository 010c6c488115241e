"""Remarks of conf/: the words beside a key in its YAML file, for the reference and for editors."""

import re
from collections.abc import Iterable, Iterator
from functools import cache

from runner.config.conf_folder import files


@cache
def remarks(group: str, name: str) -> dict[str, tuple[str, str]]:
    """Dotted key -> (default, remark) of a choice of conf/, as its files write them. A key that a
    file sets without a remark keeps that of its base. conf/config.yaml is in no group, ""."""
    found: dict[str, tuple[str, str]] = {}
    for file in files(group, name):
        path: list[tuple[int, str]] = []
        for indent, key, value, words in _lines(file.read_text(encoding="utf-8").splitlines()):
            while path and path[-1][0] >= indent:
                path.pop()
            path.append((indent, key))
            dotted = ".".join(name for _, name in path)
            found[dotted] = (value, words or found.get(dotted, ("", ""))[1])
    return found


def _lines(lines: Iterable[str]) -> Iterator[tuple[int, str, str, str]]:
    for line in lines:
        match = re.match(r"( *)(\w+):(?: +([^#]*?))?(?: +# (.*))?$", line)
        if match:
            yield len(match[1]), match[2], (match[3] or "").strip(), (match[4] or "").strip()
