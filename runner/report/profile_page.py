"""Draw the performance profiles of several workloads: a picture, and a part of the page."""

from collections.abc import Sequence
from pathlib import Path

from runner.report import pictures
from runner.report.board import Board, Entrant
from runner.report.page import style_of, table_html
from runner.report.profiles import R_MAX, stairs
from runner.text import escape

_WIDTH, _HEIGHT = 640, 300  # of the axes in the page
_LEFT, _BELOW, _ABOVE = 46, 44, 12  # margins
_TICKS = (1, 2, 3, 4)
_SHARES = (0.0, 0.5, 1.0)


def draw(path: Path, board: Board) -> None:
    """Draw the profile of every group. Equal lines lie on each other, the best one above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, each in enumerate(board.entrants):
        look, order = style_of(i), len(board.entrants) - i
        x, y = zip(*stairs(each.ratios), strict=True)
        label = escape.picture(f"{each.rank}. {each.label}: {each.score:.2f}", most=50)
        axes.plot(x, y, color=look["colour"], linestyle=look["dash"], label=label, zorder=order)
    axes.set_xlim(1, R_MAX)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("tau: cost relative to the least one of the workload")
    axes.set_ylabel("share of workloads within tau")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    title = f"{len(board.workloads)} workloads: {board.remark()}"
    figure.suptitle(escape.picture(title, most=160), fontsize="medium", wrap=True)
    pictures.save(figure, path)


def html(board: Board) -> str:
    """Format the answer over the workloads for the page."""
    lines = "".join(f"<p>{escape.html(line)}</p>" for line in [*board.verdict(), *board.apart])
    start = f'<h1>Over all workloads</h1><div class="answer">{lines}</div>'
    if not board.entrants:
        return start
    names = ("scores", "workloads")
    tables = [table_html(name, rows) for name, rows in zip(names, board.tables(), strict=True)]
    notes = "".join(f"<p>{escape.html(note)}</p>" for note in board.notes())
    return f"{start}{_picture(board.entrants)}{''.join(tables)}{notes}"


def _picture(entrants: Sequence[Entrant]) -> str:
    """Draw the profiles as SVG, with a legend."""
    legend = "".join(_name(each, **style_of(i)) for i, each in enumerate(entrants))
    lines = [_line(each, **style_of(i)) for i, each in enumerate(entrants)]
    width, height = _LEFT + _WIDTH + 12, _ABOVE + _HEIGHT + _BELOW
    return (
        f'<h2>Performance profiles</h2><div class="legend">{legend}</div>'
        f'<svg id="profiles" role="img" aria-label="Share of workloads within tau times the least '
        f'cost; the numbers are in the tables" viewBox="0 0 {width} {height}" width="100%" '
        f'style="max-width: {width}px">{_axes()}{"".join(reversed(lines))}</svg>'
    )


def _name(each: Entrant, colour: str, dash: str) -> str:
    swatch = f'<span class="swatch {dash}" style="border-color: {colour}"></span>'
    return f"<span>{swatch} {each.rank}. {escape.html(each.label)}</span>"


_DASHES = {"solid": "none", "dashed": "10 6", "dotted": "2 5", "dashdot": "10 5 2 5"}


def _line(each: Entrant, colour: str, dash: str) -> str:
    points = " ".join(f"{_x(tau):.1f},{_y(share):.1f}" for tau, share in stairs(each.ratios))
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="3" '
        f'stroke-dasharray="{_DASHES[dash]}"><title>{escape.html(each.label)}</title></polyline>'
    )


def _axes() -> str:
    """Draw the axes with their ticks and names."""
    ticks = "".join(
        f'<text x="{_x(tau)}" y="{_y(0) + 18}" text-anchor="middle">{tau}</text>' for tau in _TICKS
    )
    shares = "".join(
        f'<text x="{_LEFT - 8}" y="{_y(share) + 5}" text-anchor="end">{share:g}</text>'
        f'<line class="zero" x1="{_LEFT}" x2="{_x(R_MAX)}" y1="{_y(share)}" y2="{_y(share)}"/>'
        for share in _SHARES
    )
    name = "tau: cost relative to the least one of the workload"
    where = f'x="{_x((1 + R_MAX) / 2)}" y="{_y(0) + 38}"'
    return f'{ticks}{shares}<text {where} text-anchor="middle">{name}</text>'


def _x(tau: float) -> float:
    return _LEFT + _WIDTH * (tau - 1) / (R_MAX - 1)


def _y(share: float) -> float:
    return _ABOVE + _HEIGHT * (1 - share)
