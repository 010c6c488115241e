"""Write comparison.html: the answer, curves to hover and zoom, a table to sort. It is one file and
needs no network."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from runner.errors import printable
from runner.report import parity
from runner.report.answer import Answer, Ranked
from runner.run import strict_json
from runner.run.run_folder import points
from runner.text import escape

# The palette of Okabe and Ito (2008): distinct with any colour vision, on light and on dark
# backgrounds. After the last colour it repeats with dashed lines.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a6d3b", "#7a7a7a")
_DASHES = ("solid", "dashed", "dotted", "dashdot")


def write(
    path: Path,
    answer: Answer,
    command: str,
    table: Sequence[Sequence[str]],
    same: Sequence[parity.Parity],
    over: str = "",
) -> None:
    """Write the page. `table` has a header and one row per group, as in comparison.md; `command`
    trains the best group; `over` is the HTML of the answer over several workloads."""
    lines = [*answer.verdict(), *answer.sentences()]
    styles = [style_of(i) for i in range(len(answer.ranked))]
    data = {
        "metric": printable(answer.metric),
        "logarithmic": answer.is_logarithmic,
        "groups": [
            {"label": printable(ranked.group.label), **style, **_curves(ranked, answer.metric)}
            for ranked, style in zip(answer.ranked, styles, strict=True)
        ],
    }
    template = Template(files("runner.report").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape.html(f"{answer.metric}: {answer.winner()}"),
        answer="".join(f"<p>{escape.html(line.strip())}</p>" for line in lines),
        command=escape.html(command),
        lines="".join(
            _choice(i, ranked, style)
            for i, (ranked, style) in enumerate(zip(answer.ranked, styles, strict=True))
        ),
        over=over,
        heading=f"{escape.html(answer.title)}" if over else "Comparison",
        differences=_differences(answer, styles),
        table=table_html("groups", table),
        more=_more(answer, same),
        data=escape.script(data),
        bokeh=_bokeh(),
    )
    path.write_text(page, encoding="utf-8")


def _more(answer: Answer, same: Sequence[parity.Parity]) -> str:
    """Return the tables of the Pareto front and of the parity of backends, if there are some."""
    front = table_html("front", answer.front.table(), "Pareto front") if answer.front else ""
    rows = [parity.HEADER, *(row.cells() for row in same)]
    return front + (table_html("parity", rows, "Backends") if same else "")


def _bokeh() -> str:
    """Return BokehJS without its widgets, tables and formulas: 1.4 MB."""
    folder = files("bokeh").joinpath("server/static/js")
    parts = ("bokeh.min.js", "bokeh-api.min.js")
    return "\n".join(folder.joinpath(part).read_text(encoding="utf-8") for part in parts)


def style_of(i: int) -> dict[str, str]:
    return {
        "colour": _COLOURS[i % len(_COLOURS)],
        "dash": _DASHES[i // len(_COLOURS) % len(_DASHES)],
    }


def _curves(ranked: Ranked, metric: str) -> dict[str, Any]:
    """Return the rates of the first seed, and the metric's mean and range over the seeds."""
    jobs = ranked.group.completed
    job, curves = jobs[0], [job.epochs[metric] for job in jobs]
    num = min(map(len, curves))
    values = np.stack([curve[:num] for curve in curves])
    rate = _subsample(job.trace["step"], job.trace["learning_rate"])
    return {
        "rate": rate,
        "mean": _subsample(job.epochs["step"][:num], values.mean(axis=0)),
        "low": _subsample(job.epochs["step"][:num], values.min(axis=0))["y"]
        if len(curves) > 1
        else None,
        "high": _subsample(job.epochs["step"][:num], values.max(axis=0))["y"]
        if len(curves) > 1
        else None,
    }


def _subsample(x: np.ndarray, y: np.ndarray) -> dict[str, list[float | None]]:
    selected = points(len(x), 2000)
    return {"x": _numbers(x[selected]), "y": _numbers(y[selected])}


def _numbers(values: np.ndarray) -> list[float | None]:
    """Convert to JSON numbers; NaN and infinity, which JSON does not have, become null."""
    return [strict_json.finite(float(value)) for value in values]


def _choice(i: int, ranked: Ranked, style: Mapping[str, str]) -> str:
    """Format a legend entry as a checkbox, which works by keyboard and with screen readers."""
    swatch = f'<span class="swatch {style["dash"]}" style="border-color: {style["colour"]}"></span>'
    label = escape.html(ranked.group.label)
    return (
        f'<label><input type="checkbox" data-group="{i}" checked> {swatch} {ranked.rank}. '
        f"{label}</label>"
    )


_ROW = 46  # height of a row of the picture


def _differences(answer: Answer, styles: Sequence[Mapping[str, str]]) -> str:
    """Draw the difference of each group to the best one with its 95 % interval, as SVG; nothing if
    no interval is known."""
    shown = [
        (ranked.group.label, ranked.against_best.difference, ranked.against_best.interval, style)
        for ranked, style in zip(answer.ranked, styles, strict=True)
        if ranked.against_best is not None and ranked.against_best.interval is not None
    ]
    if not shown:
        return ""
    ends = [0.0, *(end for _, _, interval, _ in shown for end in interval)]
    low, width = min(ends), max(ends) - min(ends) or 1.0

    def x(value: float) -> str:
        return f"{2 + 96 * (value - low) / width:.2f}%"

    rows = []
    for i, (label, difference, (left, right), style) in enumerate(shown):
        y, colour = i * _ROW + 32, style["colour"]
        text = f"{label}: {difference:+.4g} ({left:+.4g} to {right:+.4g})"
        rows.append(
            f'<text x="2%" dx="8" y="{y - 14}">{escape.html(text)}</text>'
            f'<line x1="{x(left)}" x2="{x(right)}" y1="{y}" y2="{y}" stroke="{colour}"/>'
            f'<circle cx="{x(difference)}" cy="{y}" r="5" fill="{colour}"/>'
        )
    height = len(shown) * _ROW + 4
    return (
        "<h2>Difference to the best, with its 95 % interval</h2>"
        f'<svg id="differences" role="img" aria-label="Differences to the best group; the numbers '
        f'are in the table" width="100%" height="{height}">{"".join(rows)}'
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="{height}"/></svg>'
        f"<p>An interval that does not reach the dashed line, 0, is a difference beyond noise for "
        f"this pair alone; p in the table is corrected for all pairs.</p>"
    )


def table_html(name: str, rows: Sequence[Sequence[str]], caption: str = "") -> str:
    header, *body = rows
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape.html(cell)}</button></th>'
        for cell in header
    )
    names = [escape.html(cell) for cell in header]
    cells = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{name}">{escape.html(cell)}</td>'
            for name, cell in zip(names, row, strict=True)
        )
        + "</tr>"
        for row in body
    )
    title = f"<caption>{escape.html(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f"<table "
        f'id="{name}">{title}<thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
    )
