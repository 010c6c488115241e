"""Quote values, overrides and commands so that they can be copied and are read back unchanged.

Two parsers read them: the shell, and Hydra's override grammar.
https://hydra.cc/docs/advanced/override_grammar/basic/
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

# text that needs no quotes in Hydra's grammar, unless it is a number or another literal
_PLAIN = re.compile(r"[A-Za-z0-9_./@%+-]+(:[A-Za-z0-9_./@%+-]+)*", re.ASCII)
_LITERALS = frozenset({"null", "true", "false", "inf", "nan", "+inf", "-inf", "+nan", "-nan"})


def spell(value: Any) -> str:
    """Write a plain value as the right side of an override; text is quoted if Hydra would read it
    differently.

    >>> spell("a=1"), spell([1, "b c"]), spell(None)
    ("'a=1'", "[1,'b c']", 'null')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        # Hydra allows no quotes around a mapping's keys.
        return "{" + ",".join(f"{key}:{spell(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(spell, value)) + "]"
    return _quoted(value) if isinstance(value, str) else str(value)


def override(key: str, value: Any) -> str:
    """Write `KEY=VALUE` so that Hydra reads this value back."""
    return f"{key}={spell(value)}"


def command_line(arguments: Sequence[str]) -> str:
    """Write `python -m runner ARGUMENTS` for a shell; the arguments are in Hydra's grammar."""
    return shlex.join(["python", "-m", "runner", *arguments])


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _LITERALS and not _is_number(text):
        return text
    # Hydra reads \' as a quote, and two backslashes before a quote as one backslash.
    escaped = re.sub(r"(\\*)('|\Z)", lambda run: run[1] * 2 + (r"\'" if run[2] else ""), text)
    return f"'{escaped}'"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
