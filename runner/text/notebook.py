"""HTML and Markdown for a notebook's cells. All text is escaped: a run's folder from elsewhere may
hold any."""

import base64
from collections.abc import Sequence
from pathlib import Path

from runner.text import escape

_LARGEST = 2_000_000  # bytes of a picture in a cell


def html(
    heading: str,
    lines: Sequence[str],
    rows: Sequence[Sequence[str]],
    picture: Path | None = None,
    command: str | None = None,
) -> str:
    """Return a heading, lines of text, a table (its first row is the header), a picture and a
    command to copy."""
    parts = [
        f"<b>{escape.html(heading)}</b>",
        *(f"<div>{escape.html(line)}</div>" for line in lines),
    ]
    if rows:
        header, *body = rows
        cells = [_row("th", header), *(_row("td", row) for row in body)]
        table = f"<table>{''.join(cells)}</table>"
        parts.append(f'<div style="overflow-x: auto">{table}</div>')
    if picture is not None and picture.is_file() and picture.stat().st_size <= _LARGEST:
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        parts.append(f'<img style="max-width: 100%" src="data:image/png;base64,{data}">')
    if command is not None:
        parts.append(f'<pre style="white-space: pre-wrap">{escape.html(command)}</pre>')
    return f"<div>{''.join(parts)}</div>"


def markdown(heading: str, lines: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the same as Markdown, without the picture."""
    parts = [f"**{escape.markdown(heading)}**", *map(escape.markdown, lines)]
    if rows:
        header, *body = rows
        table = [_line(header), _line(["---"] * len(header)), *map(_line, body)]
        parts.append("\n".join(table))
    return "\n\n".join(parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    inner = "".join(f"<{tag}>{escape.html(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell if cell == '---' else escape.markdown(cell) for cell in cells)} |"
