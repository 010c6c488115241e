"""Spell text that a user or a stranger wrote so that each medium shows it and none acts on it.

Labels, names and errors come from result.json and config.yaml, which anybody may have written.
Every function takes any text and returns a single line.
"""

import html as _html
import json
import re
import unicodedata
from typing import Any

# Controls, surrogates and line separators, and the formats that turn the direction of reading
# (Unicode TR36, "bidirectional text spoofing").
_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def terminal(text: str) -> str:
    """Escape control characters as Python does: ESC becomes \\x1b, a newline \\n."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def markdown(text: str) -> str:
    """Plain text of Markdown, inside a table's cell too: no HTML, image, link, code or new column.

    CommonMark starts HTML with `<` before a letter, `/`, `!` or `?`; other `<` stay. GitHub's
    tables split at every `|` without a backslash, so it becomes an entity, as do the others.
    """
    line = terminal(text)
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line)
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    line = re.sub(r"\](?=[(\[:])", "&#93;", line)
    line = re.sub(r"\\(?=[!-/:-@\[-`{-~])", "&#92;", line)
    return re.sub(r"[|`*~]|^\s{0,3}[#>](?=\s)", lambda found: _entity(found[0]), line)


def html(text: str) -> str:
    """Text of an HTML element or of a quoted attribute."""
    return _html.escape(terminal(text))


def script(value: Any) -> str:
    """JSON inside a <script>: `<!--<script` and `</script` end or change it, so no `<` is left."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def plotly(text: str) -> str:
    """Plotly reads tags such as <b> and <a> in every text that it draws, and entities."""
    return _html.escape(terminal(text), quote=False)


def picture(text: str, most: int | None = None) -> str:
    """Matplotlib reads text between two dollars as mathematics; `most`: of longer text the
    beginning is drawn."""
    line = terminal(text)
    if most is not None and len(line) > most:
        line = f"{line[: most - 1]}…"
    return line.replace("$", r"\$")


def csv(text: str) -> str:
    """A spreadsheet takes a cell that begins with = + - or @ for a formula; after a quote it is
    text (OWASP, "CSV injection"). Numbers are written as numbers and do not come here."""
    line = terminal(text)
    return f"'{line}" if line.lstrip().startswith(("=", "+", "-", "@")) else line


def _visible(character: str) -> str:
    if unicodedata.category(character) in _CATEGORIES or _DIRECTIONS.match(character):
        return character.encode("unicode_escape").decode("ascii")
    return character


def _entity(text: str) -> str:
    return text[:-1] + f"&#{ord(text[-1])};"
