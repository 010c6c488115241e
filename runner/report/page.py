"""comparison.html: the answer with curves to hover and zoom and a table to sort, one file that
needs no network."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from runner.report import parity
from runner.report.answer import Answer, Ranked
from runner.run.run_folder import points
from runner.text import escape

# Okabe and Ito (2008): told apart with any colour vision, and on a light as on a dark ground; then
# again, dashed
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a6d3b", "#7a7a7a")
_DASHES = ("solid", "dash", "dot", "dashdot")


def write(
    path: Path,
    found: Answer,
    command: str,
    table: Sequence[Sequence[str]],
    same: Sequence[parity.Parity],
) -> None:
    """`table` has a header and a row a group, as comparison.md has; `command` trains the best
    one."""
    from plotly.offline import get_plotlyjs

    lines = found.says()
    style = [_style(i) for i in range(len(found.ranked))]
    data = {
        "metric": escape.plotly(found.metric),
        "logarithmic": found.is_logarithmic,
        "groups": [
            {"label": escape.plotly(ranked.group.label), **look, **_curves(ranked, found.metric)}
            for ranked, look in zip(found.ranked, style, strict=True)
        ],
    }
    template = Template(files("runner.report").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape.html(f"{found.metric}: {found.winner()}"),
        answer="".join(f"<p>{escape.html(line.strip())}</p>" for line in lines),
        command=escape.html(command),
        lines="".join(
            _choice(i, ranked, look)
            for i, (ranked, look) in enumerate(zip(found.ranked, style, strict=True))
        ),
        table=_table("groups", table),
        parity=_table("parity", [parity.HEADER, *(row.cells() for row in same)], "Backends")
        if same
        else "",
        data=escape.script(data),
        plotly=get_plotlyjs(),
    )
    path.write_text(page, encoding="utf-8")


def _style(i: int) -> dict[str, str]:
    return {
        "colour": _COLOURS[i % len(_COLOURS)],
        "dash": _DASHES[i // len(_COLOURS) % len(_DASHES)],
    }


def _curves(ranked: Ranked, metric: str) -> dict[str, Any]:
    """The first seed's rates, and the metric's mean over the seeds with their range."""
    jobs = ranked.group.completed
    job, curves = jobs[0], [job.epochs[metric] for job in jobs]
    num = min(map(len, curves))
    values = np.stack([curve[:num] for curve in curves])
    rate = _thinned(job.trace["step"], job.trace["learning_rate"])
    return {
        "rate": rate,
        "mean": _thinned(job.epochs["step"][:num], values.mean(axis=0)),
        "low": _thinned(job.epochs["step"][:num], values.min(axis=0))["y"]
        if len(curves) > 1
        else None,
        "high": _thinned(job.epochs["step"][:num], values.max(axis=0))["y"]
        if len(curves) > 1
        else None,
    }


def _thinned(x: np.ndarray, y: np.ndarray) -> dict[str, list[float | None]]:
    drawn = points(len(x), 2000)
    return {"x": _numbers(x[drawn]), "y": _numbers(y[drawn])}


def _numbers(values: np.ndarray) -> list[float | None]:
    """JSON has no NaN."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _choice(i: int, ranked: Ranked, look: Mapping[str, str]) -> str:
    """The legend is of checkboxes: they are reached by keyboard, and read aloud."""
    swatch = f'<span class="swatch {look["dash"]}" style="border-color: {look["colour"]}"></span>'
    label = escape.html(ranked.group.label)
    return (
        f'<label><input type="checkbox" data-group="{i}" checked> {swatch} {ranked.rank}. '
        f"{label}</label>"
    )


def _table(name: str, rows: Sequence[Sequence[str]], caption: str = "") -> str:
    header, *body = rows
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape.html(cell)}</button></th>'
        for cell in header
    )
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape.html(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    title = f"<caption>{escape.html(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f"<table "
        f'id="{name}">{title}<thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
    )
