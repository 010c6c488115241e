"""Spell a value, an override or a whole command so that it is read back unchanged.

Two readers take what the program prints for copying: the shell, and Hydra's grammar of overrides.
https://hydra.cc/docs/advanced/override_grammar/basic/
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

# Hydra reads such text without quotes, if it is no number and no other literal.
_PLAIN = re.compile(r"[A-Za-z0-9_./@%+-]+(:[A-Za-z0-9_./@%+-]+)*", re.ASCII)
_LITERALS = frozenset({"null", "true", "false", "inf", "nan", "+inf", "-inf", "+nan", "-nan"})


def spell(value: Any) -> str:
    """A plain value as an override's right side: text is quoted where Hydra would not take it as
    that text.

    >>> spell("a=1"), spell([1, "b c"]), spell(None)
    ("'a=1'", "[1,'b c']", 'null')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        # Hydra takes no quotes around a mapping's keys.
        return "{" + ",".join(f"{key}:{spell(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(spell, value)) + "]"
    return _quoted(value) if isinstance(value, str) else str(value)


def override(key: str, value: Any) -> str:
    """`KEY=VALUE`, which Hydra reads back as this value."""
    return f"{key}={spell(value)}"


def command_line(arguments: Sequence[str]) -> str:
    """`python -m runner ARGUMENTS` for a shell; each argument is already in Hydra's spelling."""
    return shlex.join(["python", "-m", "runner", *arguments])


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _LITERALS and not _is_number(text):
        return text
    # Hydra reads \' as a quote, and pairs of backslashes before a quote as one each.
    escaped = re.sub(r"(\\*)('|\Z)", lambda run: run[1] * 2 + (r"\'" if run[2] else ""), text)
    return f"'{escaped}'"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
