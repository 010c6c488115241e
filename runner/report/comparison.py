"""Report several runs: which is best and whether that is more than noise, as a table, a page and a
picture."""

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import RunError, printable
from runner.report import answer, page, parity, pictures
from runner.report.answer import Answer, Ranked, answers
from runner.report.curves import MOST_POINTS
from runner.report.jobs import Group, Job, inside, read
from runner.report.markdown import as_markdown
from runner.run.run_folder import held, points, turn
from runner.text import escape


def write(folder: Path, num_jobs: int) -> int:
    """The comparison of a multirun, in its folder; 0 if all of its `num_jobs` completed, else 1.

    Jobs that other commands are training are named and left out; they are no reason to end with 1.
    Of several commands one writes at a time, and the last one sees all jobs.
    """
    with turn(folder):
        others = held(folder)
        found = [path for path in inside(folder) if path.name not in others]
        if not found and not others:
            raise RunError(f"no job of {folder} left a result")
        num_jobs = max(num_jobs, len(found) + len(others))
        jobs = read(found)
        status = compare(folder, jobs, num_jobs) if jobs else 0
        for name, who in others.items():
            print(f"training: {name} in {who}")
        is_whole = len(jobs) + len(others) == num_jobs and all(job.is_completed for job in jobs)
        return 0 if others and is_whole else status


def compare(folder: Path, jobs: Sequence[Job], num_jobs: int) -> int:
    """comparison.csv, .md, .html, .png and answer.json of these jobs, and their last lines on the
    terminal. Jobs that measure different things get an answer each: comparison_2.html, ..."""
    _write_csv(folder / "comparison.csv", jobs, _metrics(jobs))
    completed = [job for job in jobs if job.is_completed]
    found, same = answers(jobs), parity.table(completed)
    text = _text(found, same, escape.markdown)
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{_text(found, same, printable)}\n")
    for job in jobs:
        if not job.is_completed:
            _say(f"{job.status}: {job.folder.name}  {job.result.get('error', '')}".rstrip())
    diverged = [job for job in completed if job.has_diverged]
    for job in diverged:
        metric = job.monitor
        _say(f"diverged: {job.folder.name}  {metric} is {job.last(metric)} after the last epoch")
    known = f", {len(diverged)} of them diverged" if diverged else ""
    _say(f"{len(completed)} of {num_jobs} jobs completed{known}")
    _say(f"folder   {folder}")
    for i, each in enumerate(found, start=1):
        if len(found) > 1:
            _say(f"answer   {each.title}")
        _write_answer(folder, each, same, "" if i == 1 else f"_{i}")
    return 0 if len(completed) == num_jobs else 1


def _write_answer(folder: Path, found: Answer, same: Sequence[parity.Parity], suffix: str) -> None:
    """answer.json, and of what is ranked a picture, a page and the commands to copy."""
    answer.write(folder / f"answer{suffix}.json", found)
    if not found.ranked:
        return
    picture, html = (folder / f"comparison{suffix}{end}" for end in (".png", ".html"))
    _draw(picture, found)
    again = answer.command(found.best.group)
    page.write(html, found, again, table_of(found), same)
    _say(f"picture  {picture}")
    _say(f"page     {html}")
    _say(f"to test  {answer.command_to_test(found.best.group)}")
    _say(f"winner   {found.winner()}")
    _say(f"to copy  {again}")


def _say(line: str) -> None:
    print(printable(line))


def _metrics(jobs: Iterable[Job]) -> list[str]:
    return list(dict.fromkeys(name for job in jobs for name in job.metrics))


def table_of(found: Answer) -> list[tuple[str, ...]]:
    """A header, then a row a ranked group, best first; every cell as it is, not escaped."""
    names = _metrics(job for ranked in found.ranked for job in ranked.group.completed)
    others = [name for name in names if name.startswith("val/") and name != found.metric]
    header = (
        "rank",
        "overrides",
        "seeds",
        found.metric,
        "sd",
        "95 % interval",
        "from the best",
        "p",
        "more seeds",
        *others,
        f"steps to {found.target:.4g}",
        "seconds",
        "rate at its best",
    )
    return [header, *(_cells(ranked, others) for ranked in found.ranked)]


def _cells(ranked: Ranked, others: Sequence[str]) -> tuple[str, ...]:
    known, against = ranked.summary, ranked.against_best
    p, more_seeds = (against.p, against.more_seeds) if against else (None, None)
    return (
        str(ranked.rank),
        ranked.group.label,
        str(known.num),
        f"{known.mean:.4f}",
        "" if known.sd is None else f"{known.sd:.4f}",
        "" if known.interval is None else f"{known.interval[0]:.4f} to {known.interval[1]:.4f}",
        "" if against is None or not against.num else f"{against.difference:+.4f}",
        "" if p is None else f"{p:.2g}",
        "" if more_seeds is None else str(more_seeds),
        *(f"{ranked.group.mean(name):.4f}" for name in others),
        "never" if math.isinf(ranked.steps) else f"{ranked.steps:.0f}",
        "" if math.isinf(ranked.seconds) else f"{ranked.seconds:.2f}",
        f"{ranked.rate_at_best:.3g}",
    )


def _text(
    found: Sequence[Answer], same: Sequence[parity.Parity], medium: Callable[[str], str]
) -> str:
    """comparison.md: the answers, their tables, and the parity of backends. `medium`: how text is
    escaped."""
    parts = []
    if len(found) > 1:
        parts.append(
            f"These runs measure {len(found)} different things, so they are not in one list."
        )
    for each in found:
        if len(found) > 1:
            parts.append(f"## {medium(each.title)}")
        parts += _parts(each, medium)
    if any(len(each.ranked) > 1 for each in found):
        parts.append(
            "Ranked by the monitored metric after the last epoch. p: Student's paired test over "
            "the seeds in common, corrected by Holm for all pairs; the deviation of a share of "
            "rows counts as one row at least. Steps and seconds of training: until the first epoch "
            "that is as good as the worst group's best one, medians. Rate at its best: of the last "
            "update before the best epoch's end."
        )
    if same:
        rows = [parity.HEADER, *(row.cells() for row in same)]
        parts.append(as_markdown(rows, medium))
    return "\n\n".join(parts)


def _parts(found: Answer, medium: Callable[[str], str]) -> list[str]:
    """Write one answer: its words, its table, and all rates that were tried."""
    parts = ["\n".join(map(medium, [*found.says(), *found.at_edges()]))]
    if found.ranked:
        parts.append(as_markdown(table_of(found), medium))
    whole = [group for group in found.tried if group not in found.unranked]
    if len(whole) > len(found.ranked):
        means = [(group.label, _mean_or_fate(group, found)) for group in found.tried]
        table = as_markdown([("overrides", found.metric), *means], medium)
        parts.append(f"All rates that were tried:\n\n{table}")
    return parts


def _mean_or_fate(group: Group, found: Answer) -> str:
    over = group if found.seeds is None else group.over(found.seeds)
    return answer.fate(group, found.metric) or f"{over.mean(found.metric):.4f}"


def _write_csv(path: Path, jobs: Sequence[Job], metrics: Sequence[str]) -> None:
    """A row a job; what is text in result.json is escaped, numbers are written as they are."""
    header = ["overrides", "backend", "schedule", "seed", *metrics, "seconds", "status"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(escape.csv, header))
        for job in jobs:
            result = job.result
            seed = job.seed if job.has_config else ""
            about = [" ".join(job.overrides), job.backend, result["schedule"], seed]
            values = [job.metrics.get(name, "") for name in metrics]
            row = [*about, *values, result["seconds"].get("train"), job.status]
            writer.writerow([escape.csv(v) if isinstance(v, str) else v for v in row])


def _draw(path: Path, found: Answer) -> None:
    """The rate and the monitored metric of every group over its steps; of several seeds the mean,
    and their range. The best groups have a colour and a name, the others are grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    rate, metric = figure.subplots(1, 2)
    for ranked in found.ranked[_NAMED:]:
        _draw_group(rate, metric, ranked, found.metric, color="0.8", label=None)
    for number, ranked in enumerate(found.ranked[:_NAMED]):
        label = escape.picture(f"{ranked.rank}. {ranked.group.label}", most=42)
        _draw_group(rate, metric, ranked, found.metric, color=f"C{number}", label=label)
    if len(found.ranked) > _NAMED:
        metric.plot([], [], color="0.8", label=f"{len(found.ranked) - _NAMED} more")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    metric.set_ylabel(escape.picture(found.metric))
    if found.is_logarithmic:
        pictures.use_log_scale(metric)
    for axes in (rate, metric):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    handles, labels = metric.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    title = escape.picture(f"best {found.metric}: {found.winner()}", most=160)
    figure.suptitle(title, fontsize="medium", wrap=True)
    pictures.save(figure, path)


_NAMED = 10  # groups with a colour of their own


def _draw_group(
    rate: Any, metric: Any, ranked: Ranked, name: str, color: str, label: str | None
) -> None:
    jobs = ranked.group.completed
    job = jobs[0]
    drawn = points(len(job.trace["step"]), MOST_POINTS)
    steps, rates = (job.trace[column][drawn] for column in ("step", "learning_rate"))
    rate.plot(steps, rates, drawstyle="steps-post", color=color)
    curves = [job.epochs[name] for job in jobs]
    if len({len(curve) for curve in curves}) == 1:
        steps = job.epochs["step"]
        metric.plot(steps, np.mean(curves, axis=0), color=color, label=label)
        if len(curves) > 1:
            low, high = np.min(curves, axis=0), np.max(curves, axis=0)
            metric.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
