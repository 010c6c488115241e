"""Spell text that a user or a stranger wrote so that each medium shows it and none acts on it.
On a terminal `errors.printable` does.

Labels, names and errors come from result.json and config.yaml, which anybody may have written.
Every function takes any text and returns a single line.
"""

import html as _html
import json
import re
from typing import Any

from runner.errors import printable


def markdown(text: str) -> str:
    """Plain text of Markdown, inside a table's cell too: no HTML, image, link, code or new column.

    CommonMark starts HTML with `<` before a letter, `/`, `!` or `?`; other `<` stay. GitHub's
    tables split at every `|` without a backslash, so it becomes an entity, as do the others.
    """
    line = printable(text)
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line)
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    line = re.sub(r"\](?=[(\[:])", "&#93;", line)
    line = re.sub(r"\\(?=[!-/:-@\[-`{-~])", "&#92;", line)
    return re.sub(r"[|`*~]|^\s{0,3}[#>](?=\s)", lambda found: _entity(found[0]), line)


def html(text: str) -> str:
    """Text of an HTML element or of a quoted attribute."""
    return _html.escape(printable(text))


def script(value: Any) -> str:
    """JSON inside a <script>: `<!--<script` and `</script` end or change it, so no `<` is left."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def plotly(text: str) -> str:
    """Plotly reads tags such as <b> and <a> in every text that it draws, and entities."""
    return _html.escape(printable(text), quote=False)


def picture(text: str, most: int | None = None) -> str:
    """Matplotlib reads text between two dollars as mathematics; `most`: of longer text the
    beginning is drawn."""
    line = printable(text)
    if most is not None and len(line) > most:
        line = f"{line[: most - 1]}…"
    return line.replace("$", r"\$")


def csv(text: str) -> str:
    """A spreadsheet takes a cell that begins with = + - or @ for a formula; after a quote it is
    text (OWASP, "CSV injection"). Numbers are written as numbers and do not come here."""
    line = printable(text)
    return f"'{line}" if line.lstrip().startswith(("=", "+", "-", "@")) else line


def _entity(text: str) -> str:
    return text[:-1] + f"&#{ord(text[-1])};"
