"""Escape untrusted text so that each medium shows it and does not interpret it.
`errors.printable` does it for a terminal.

Labels, names and errors come from result.json and config.yaml, which anybody may have written.
Every function takes any text and returns a single line.
"""

import html as _html
import json
import re
from typing import Any

from runner.errors import printable


def markdown(text: str) -> str:
    """Escape for Markdown, also inside a table cell: no HTML, image, link, code or new column.

    CommonMark starts HTML with `<` before a letter, `/`, `!` or `?`; other `<` stay. GitHub's
    tables split at every `|` without a backslash, so `|` becomes an entity like the others.
    """
    line = printable(text)
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line)
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    line = re.sub(r"\](?=[(\[:])", "&#93;", line)
    line = re.sub(r"\\(?=[!-/:-@\[-`{-~])", "&#92;", line)
    return re.sub(r"[|`*~]|^\s{0,3}[#>](?=\s)", lambda match: _entity(match[0]), line)


def html(text: str) -> str:
    """Escape for the text of an HTML element or a quoted attribute."""
    return _html.escape(printable(text))


def script(value: Any) -> str:
    """JSON for a <script>. `<!--<script` and `</script` would end it, so every `<` is escaped."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def picture(text: str, most: int | None = None) -> str:
    """Escape for Matplotlib, which reads text between two $ as mathematics. Text longer than `most`
    characters is cut."""
    line = printable(text)
    if most is not None and len(line) > most:
        line = f"{line[: most - 1]}…"
    return line.replace("$", r"\$")


def csv(text: str) -> str:
    """Escape for a CSV cell. Spreadsheets read a cell that begins with = + - or @ as a formula; a
    leading quote makes it text (OWASP, "CSV injection"). Not for numbers."""
    line = printable(text)
    return f"'{line}" if line.lstrip().startswith(("=", "+", "-", "@")) else line


def _entity(text: str) -> str:
    return text[:-1] + f"&#{ord(text[-1])};"
