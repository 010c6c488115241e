"""Report several runs: which is best, and whether that is more than noise, as a table, a page and a
picture."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import RunError, printable
from runner.report import answer, page, parity, pictures, profile_page, raced, workloads
from runner.report.answer import Answer, Ranked, answers
from runner.report.board import Board
from runner.report.choice import WinnersValue
from runner.report.curves import MOST_POINTS
from runner.report.front import Front
from runner.report.jobs import Group, Job, inside, read
from runner.report.markdown import as_markdown
from runner.report.raced import Course
from runner.report.tested import Evaluate, with_test
from runner.report.workloads import Rules
from runner.run.run_folder import exclusive_access, jobs_in_training, points
from runner.text import escape
from runner.text.numbers import show_metric


@dataclass(frozen=True)
class Wanted:
    """The parts of a comparison besides its ranking."""

    margin: float | None = None  # answer.margin
    evaluate: Evaluate | None = None  # answer.test: evaluates a run on the test split
    course: Course | None = None  # race.budget: only its runs are compared, by its tests
    rules: Rules | None = None  # answer.target and .relax; None: nothing is ranked over workloads
    front: Front | None = None  # of a search with several objectives


_NOTHING = Wanted()


def write(folder: Path, num_jobs: int, wanted: Wanted = _NOTHING) -> int:
    """Write a multirun's comparison into its folder. Return 0 if all of its `num_jobs` completed,
    else 1.

    Jobs that other commands are training are named and left out; they do not make the status 1.
    Only one command writes at a time, so the last one sees all jobs.
    """
    with exclusive_access(folder):
        others = jobs_in_training(folder)
        folders = [path for path in inside(folder) if path.name not in others]
        if wanted.course is not None:
            others = {}
            tuning = [job.folder for job in read(folders) if job.has_config and job.is_for_tuning]
            folders = [*wanted.course.folders, *tuning]
        if not folders and not others:
            raise RunError(f"no job of {folder} wrote a result")
        num_jobs = max(num_jobs, len(folders) + len(others))
        jobs = read(folders)
        status = compare(folder, jobs, num_jobs, wanted=wanted) if jobs else 0
        for name, process in others.items():
            print(f"training: {name} in {process}")
        is_over = all(job.status in ("completed", "pruned") for job in jobs)
        is_whole = len(jobs) + len(others) == num_jobs and is_over
        return 0 if others and is_whole else status


def compare(
    folder: Path,
    jobs: Sequence[Job],
    num_jobs: int,
    verdicts: Sequence[Answer] | None = None,
    say: Callable[[str], None] = print,
    wanted: Wanted = _NOTHING,
) -> int:
    """Write comparison.csv, .md, .html, .png and answer.json of these jobs, and print a summary.
    Jobs that measure different things get separate answers: comparison_2.html, ...

    `verdicts` are the answers if they are known. `say` gets the lines of the summary.
    """
    _write_csv(folder / "comparison.csv", jobs, _metrics(jobs))
    completed = [job for job in jobs if job.is_completed]
    pruned = [job for job in jobs if job.status == "pruned"]  # by a search
    ended = [job for job in jobs if job not in pruned]
    if verdicts is None and wanted.course is not None and len(completed) > 0:
        verdicts = raced.answers(jobs, wanted.margin, wanted.course)
    verdicts = answers(ended, wanted.margin) if verdicts is None else verdicts
    if wanted.evaluate is not None:
        verdicts = [with_test(verdict, wanted.evaluate) for verdict in verdicts]
    if wanted.front is not None and verdicts:
        verdicts = [replace(verdicts[0], front=wanted.front), *verdicts[1:]]

    board = None
    if wanted.rules is not None and wanted.course is None:
        board = workloads.board(ended, wanted.rules)
    parity_rows = parity.table(completed)
    text = _text(verdicts, parity_rows, escape.markdown, board)
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    say(f"\n{_text(verdicts, parity_rows, printable, board)}\n")

    def say_line(line: str) -> None:
        say(printable(line))

    _say_ends(jobs, num_jobs, say_line)
    say_line(f"folder   {folder}")
    if board is not None and board.entrants:
        say_line(f"answer   over {len(board.workloads)} workloads")
        profile_page.draw(folder / "profiles.png", board)
        say_line(f"picture  {folder / 'profiles.png'}")
        say_line(f"winner   {board.remark()}")
    for i, verdict in enumerate(verdicts, start=1):
        if len(verdicts) > 1 or board is not None:
            say_line(f"answer   {verdict.title}")
        suffix, over = ("", board) if i == 1 else (f"_{i}", None)
        _write_answer(folder, verdict, parity_rows, suffix, say_line, over)
    return 0 if len(completed) + len(pruned) == num_jobs else 1


def _say_ends(jobs: Sequence[Job], num_jobs: int, say_line: Callable[[str], None]) -> None:
    """Name the jobs that did not complete and those that diverged, and count the others."""
    completed = [job for job in jobs if job.is_completed]
    pruned = [job for job in jobs if job.status == "pruned"]
    for job in jobs:
        if job.status not in ("completed", "pruned"):
            say_line(f"{job.status}: {job.folder.name}  {job.result.get('error', '')}".rstrip())
    diverged = [job for job in completed if job.has_diverged]
    for job in diverged:
        metric = job.monitor
        say_line(
            f"diverged: {job.folder.name}  {metric} is {job.last(metric)} after the last epoch"
        )
    known = f", {len(diverged)} of them diverged" if diverged else ""
    ended_early = f", {len(pruned)} pruned" if pruned else ""
    say_line(f"{len(completed)} of {num_jobs} jobs completed{ended_early}{known}")


def _write_answer(
    folder: Path,
    verdict: Answer,
    parity_rows: Sequence[parity.Parity],
    suffix: str,
    say_line: Callable[[str], None],
    board: Board | None,
) -> None:
    """Write answer.json; if there are ranked groups, also a picture and a page, and print the
    commands to copy. The first answer's files also have that over the workloads."""
    entry = board.entry() if board is not None else None
    answer.write(folder / f"answer{suffix}.json", verdict, entry)
    if not verdict.ranked:
        return
    picture, html = (folder / f"comparison{suffix}{end}" for end in (".png", ".html"))
    _draw(picture, verdict)
    command = answer.command(verdict.best.group)
    over = profile_page.html(board) if board is not None else ""
    page.write(html, verdict, command, table_of(verdict), parity_rows, over)
    say_line(f"picture  {picture}")
    say_line(f"page     {html}")
    say_line(f"to test  {answer.command_to_test(verdict.best.group)}")
    say_line(f"winner   {verdict.winner()}")
    for number, line in _commands_of_front(verdict):
        say_line(f"trial {number:<2} {line}")
    say_line(f"to copy  {command}")


def _commands_of_front(verdict: Answer) -> Iterator[tuple[int, str]]:
    """Yield each trial of the Pareto front and the command that trains it again."""
    groups = {job.folder: group for group in verdict.tried for job in group.jobs}
    for point in verdict.front.points if verdict.front else ():
        group = next((groups[path] for path in point.folders if path in groups), None)
        if group is not None:
            yield point.trial, answer.command(group)


def _metrics(jobs: Iterable[Job]) -> list[str]:
    return list(dict.fromkeys(name for job in jobs for name in job.metrics))


def table_of(verdict: Answer) -> list[tuple[str, ...]]:
    """Return a header and one row per ranked group, best first. The cells are not escaped."""
    names = _metrics(job for ranked in verdict.ranked for job in ranked.group.completed)
    others = [name for name in names if name.startswith("val/") and name != verdict.metric]
    value = verdict.chosen_value
    header = (
        "rank",
        "overrides",
        "seeds",
        verdict.metric,
        "sd",
        "95 % interval",
        *(["allowing for the choice"] if value else []),
        "from the best",
        "its 95 % interval",
        "better on",
        "raw p",
        "p",
        "p by signs",
        "more seeds",
        *others,
        f"steps to {verdict.target:.4g}",
        *([f"rows to {verdict.target:.4g}"] if verdict.has_several_sizes else []),
        "seconds",
        "rate at its best",
    )
    return [
        header,
        *(_cells(ranked, others, verdict.has_several_sizes, value) for ranked in verdict.ranked),
    ]


def _cells(
    ranked: Ranked, others: Sequence[str], has_rows: bool, value: WinnersValue | None
) -> tuple[str, ...]:
    summary, against = ranked.summary, ranked.against_best
    numbers = [ranked.steps, *([ranked.rows] if has_rows else [])]
    p, more_seeds = (against.p, against.more_seeds) if against else (None, None)
    return (
        str(ranked.rank),
        ranked.group.label,
        str(summary.num),
        show_metric(summary.mean),
        "" if summary.sd is None else show_metric(summary.sd),
        "" if summary.interval is None else " to ".join(map(show_metric, summary.interval)),
        *([_of_winner(ranked, value)] if value else []),
        "" if against is None or not against.num else show_metric(against.difference, "+"),
        "" if against is None or against.interval is None else _range(against.interval),
        "" if against is None or not against.num else f"{ranked.better_on} of {against.num}",
        "" if against is None or against.p_raw is None else f"{against.p_raw:.2g}",
        "" if p is None else f"{p:.2g}",
        "" if against is None or against.p_signs is None else f"{against.p_signs:.2g}",
        "" if more_seeds is None else str(more_seeds),
        *(show_metric(ranked.group.mean(name)) for name in others),
        *("never" if math.isinf(n) else f"{n:.0f}" for n in numbers),
        "" if math.isinf(ranked.seconds) else f"{ranked.seconds:.2f}",
        f"{ranked.rate_at_best:.3g}",
    )


def _of_winner(ranked: Ranked, value: WinnersValue) -> str:
    """Format the interval of the winner that allows for its choice; others have none."""
    return " to ".join(map(show_metric, value.interval)) if ranked.rank == 1 else ""


def _range(interval: tuple[float, float]) -> str:
    return " to ".join(show_metric(value, "+") for value in interval)


def _text(
    verdicts: Sequence[Answer],
    parity_rows: Sequence[parity.Parity],
    escaped: Callable[[str], str],
    board: Board | None,
) -> str:
    """Format comparison.md: the answers, their tables, and the parity of backends. `escaped`
    escapes text for the medium."""
    parts = [] if board is None else _board_parts(board, escaped)
    if len(verdicts) > 1:
        parts.append(
            f"These runs measure {len(verdicts)} different things, so they are not in one list."
        )
    for verdict in verdicts:
        if len(verdicts) > 1 or board is not None:
            parts.append(f"## {escaped(verdict.title)}")
        parts += _parts(verdict, escaped)
    if any(len(verdict.ranked) > 1 for verdict in verdicts):
        tests = raced.TESTS if any(verdict.race for verdict in verdicts) else _TESTS
        choice = f"{_CHOICE} " if any(verdict.chosen_value for verdict in verdicts) else ""
        parts.append(
            f"Ranked by the monitored metric after the last epoch. {tests}; the standard deviation "
            f"of a metric that counts rows is at least one row. {choice}Steps and seconds: "
            f"training until the first epoch that is as good as the best epoch of the worst group; "
            f"medians over the seeds. Rate at its best: the rate of the last update in the best "
            f"epoch."
        )
    if parity_rows:
        rows = [parity.HEADER, *(row.cells() for row in parity_rows)]
        parts.append(as_markdown(rows, escaped))
    return "\n\n".join(parts)


def _board_parts(board: Board, escaped: Callable[[str], str]) -> list[str]:
    """Format the answer over the workloads."""
    parts = ["## Over all workloads", escaped(" ".join(board.verdict()))]
    parts += ["\n".join(map(escaped, board.apart))] if board.apart else []
    parts += [as_markdown(table, escaped) for table in board.tables()]
    return [*parts, *map(escaped, board.notes())]


_CHOICE = "Allowing for the choice: the 95 % interval of the best of those not told from it."
_TESTS = (
    "p: Student's paired test over the seeds in common, with Holm's correction for all pairs (raw "
    "p: without it); p by signs: a sign-flip permutation test with the same correction"
)


def _parts(verdict: Answer, escaped: Callable[[str], str]) -> list[str]:
    """Format one answer: its sentences, its table, and all values that tune=lr has tried."""
    parts = [escaped(" ".join(verdict.verdict()))] if verdict.verdict() else []
    parts.append("\n".join(map(escaped, [*verdict.sentences(), *verdict.at_edges()])))
    if verdict.ranked:
        parts.append(as_markdown(table_of(verdict), escaped))
    if verdict.front:
        parts.append(as_markdown(verdict.front.table(), escaped))
    if verdict.tuning:
        means = [(group.label, _mean_or_fate(group, verdict.metric)) for group in verdict.tuning]
        table = as_markdown([("overrides", verdict.metric), *means], escaped)
        parts.append(f"On the tuning seeds:\n\n{table}")
    return parts


def _mean_or_fate(group: Group, metric: str) -> str:
    return answer.fate(group, metric) or show_metric(group.mean(metric))


def _write_csv(path: Path, jobs: Sequence[Job], metrics: Sequence[str]) -> None:
    """Write one row per job. Text from result.json is escaped, numbers are not."""
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


def _draw(path: Path, verdict: Answer) -> None:
    """Draw the rate and the monitored metric of every group over its steps; for several seeds, the
    mean and the range. The best groups have a colour and a name, the others are grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    rate, metric = figure.subplots(1, 2, sharex=True)
    for ranked in verdict.ranked[_NAMED:]:
        _draw_group(rate, metric, ranked, verdict.metric, color="0.8", label=None)
    for number, ranked in enumerate(verdict.ranked[:_NAMED]):
        label = escape.picture(f"{ranked.rank}. {ranked.group.label}", most=42)
        _draw_group(rate, metric, ranked, verdict.metric, color=f"C{number}", label=label)
    if len(verdict.ranked) > _NAMED:
        metric.plot([], [], color="0.8", label=f"{len(verdict.ranked) - _NAMED} more")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    metric.set_ylabel(escape.picture(verdict.metric))
    if verdict.is_logarithmic:
        pictures.use_log_scale(metric)
    for axes in (rate, metric):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    pictures.use_whole_ticks(rate)
    handles, labels = metric.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    title = escape.picture(f"best {verdict.metric}: {verdict.winner()}", most=160)
    figure.suptitle(title, fontsize="medium", wrap=True)
    pictures.save(figure, path)


_NAMED = 10  # groups with their own colour


def _draw_group(
    rate: Any, metric: Any, ranked: Ranked, name: str, color: str, label: str | None
) -> None:
    jobs = ranked.group.completed
    job = jobs[0]
    selected = points(len(job.trace["step"]), MOST_POINTS)
    steps, rates = (job.trace[column][selected] for column in ("step", "learning_rate"))
    rate.plot(steps, rates, drawstyle="steps-post", color=color)
    curves = [job.epochs[name] for job in jobs]
    if len({len(curve) for curve in curves}) == 1:
        steps = job.epochs["step"]
        mark = "o" if len(steps) == 1 else None  # one epoch is a point
        metric.plot(steps, np.mean(curves, axis=0), marker=mark, color=color, label=label)
        if len(curves) > 1:
            low, high = np.min(curves, axis=0), np.max(curves, axis=0)
            if mark:
                metric.vlines(steps, low, high, color=color, alpha=0.5)
            metric.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
