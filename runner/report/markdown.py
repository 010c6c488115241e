"""Tables as Markdown that reads well on a terminal too."""

from collections.abc import Sequence


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A header, then rows; columns of equal width."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    header, *body = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([header, "|" + "".join(f" {'-' * width} |" for width in widths), *body])
