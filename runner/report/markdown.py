"""Format tables as Markdown that is also readable on a terminal."""

from collections.abc import Callable, Sequence


def as_markdown(rows: Sequence[Sequence[str]], escape: Callable[[str], str]) -> str:
    """Format a header and rows, with aligned columns. `escape` escapes a cell for the medium."""
    rows = [[escape(cell) for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    header, *body = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([header, "|" + "".join(f" {'-' * width} |" for width in widths), *body])
