"""What came of several runs: which is best and whether that is more than noise, as a table, a page and a picture."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runner.errors import RunError
from runner.multirun import held
from runner.quoting import command_line, override
from runner.report import page, parity
from runner.report.answer import Answer, Ranked, answer
from runner.report.curves import MOST_POINTS
from runner.report.jobs import Group, Job, inside, read
from runner.report.markdown import as_markdown
from runner.run_folder import points, turn


def write(folder: Path, num_jobs: int) -> int:
    """The comparison of a multirun, in its folder; 0 if all of its `num_jobs` completed, else 1.

    Jobs that other commands are training are named and left out; they are no reason to end with 1. Of several commands
    one writes at a time, and the last one sees all jobs.
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
    """comparison.csv, .md, .html and .png of these jobs, and their last lines on the terminal."""
    metrics = list(dict.fromkeys(name for job in jobs for name in job.result["metrics"]))
    _write_csv(folder / "comparison.csv", jobs, metrics)
    completed = [job for job in jobs if job.is_completed]
    found = answer(completed)
    same = parity.table(completed)
    text = _text(found, same, metrics)
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n")
    for job in jobs:
        if not job.is_completed:
            print(f"{job.result['status']}: {job.folder.name}  {job.result.get('error', '')}".rstrip())
    print(f"{len(completed)} of {num_jobs} jobs completed")
    print(f"folder   {folder}")
    if found is not None:
        _draw(folder / "comparison.png", found)
        again = command(found.best.group)
        page.write(folder / "comparison.html", found, again, table_of(found, metrics), same)
        print(f"picture  {folder / 'comparison.png'}")
        print(f"page     {folder / 'comparison.html'}")
        tested = ["task=evaluate", override("run", str(found.best.group.jobs[0].folder))]
        print(f"to test  {command_line(tested)}")
        print(f"winner   {found.winner()}")
        print(f"to copy  {again}")
    return 0 if len(completed) == num_jobs else 1


def command(group: Group) -> str:
    """What trains it again."""
    said = group.to_copy()
    branched = any(override.startswith("resume=") for override in said)  # in a folder of its own, as it was
    return command_line([*(["-m"] if branched else []), *said])


def table_of(found: Answer, metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """A header, then a row a group, best first."""
    others = [name for name in metrics if name.startswith("val/") and name != found.metric]
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
        "" if against is None else f"{against.difference:+.4f}",
        "" if p is None else f"{p:.2g}",
        "" if more_seeds is None else str(more_seeds),
        *(f"{ranked.group.mean(name):.4f}" for name in others),
        "never" if math.isinf(ranked.steps) else f"{ranked.steps:.0f}",
        "" if math.isinf(ranked.seconds) else f"{ranked.seconds:.2f}",
        f"{ranked.rate_at_best:.3g}",
    )


def _text(found: Answer | None, same: Sequence[parity.Parity], metrics: Sequence[str]) -> str:
    """comparison.md: the answer, its table, and the parity of backends."""
    if found is None:
        return "No completed job has the metric that it monitors."
    parts = ["\n".join([*found.says(), *found.at_edges()]), as_markdown(table_of(found, metrics))]
    if len(found.tried) > len(found.ranked):
        means = [(group.label, f"{group.mean(found.metric):.4f}") for group in found.tried]
        parts.append("All rates that were tried:\n\n" + as_markdown([("overrides", found.metric), *means]))
    if len(found.ranked) > 1:
        parts.append(
            f"Ranked by {found.metric} after the last epoch. p: Student's paired test over the seeds in common, corrected by "
            "Holm for all pairs. Steps and seconds of training: until the first epoch that is as good as the worst group's "
            "best one, medians. Rate at its best: of the last update before the best epoch's end."
        )
    if same:
        parts.append(as_markdown([parity.HEADER, *(row.cells() for row in same)]))
    return "\n\n".join(parts)


def _write_csv(path: Path, jobs: Sequence[Job], metrics: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["overrides", "backend", "schedule", "seed", *metrics, "seconds", "status"])
        for job in jobs:
            result = job.result
            values = [result["metrics"].get(name, "") for name in metrics]
            about = [job.backend, result["schedule"], job.seed]
            writer.writerow([" ".join(job.overrides), *about, *values, result["seconds"]["train"], result["status"]])


def _draw(path: Path, found: Answer) -> None:
    """The rate and the monitored metric of every group over its steps; of several seeds the mean, and their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    rate, metric = figure.subplots(1, 2)
    for ranked in found.ranked:
        job, label = ranked.group.jobs[0], ranked.group.label
        label = f"{ranked.rank}. {label if len(label) <= 40 else f'{label[:39]}…'}"
        drawn = points(len(job.trace["step"]), MOST_POINTS)
        steps, rates = (job.trace[name][drawn] for name in ("step", "learning_rate"))
        (line,) = rate.plot(steps, rates, drawstyle="steps-post", label=label)
        curves = [job.epochs[found.metric] for job in ranked.group.jobs]
        if len({len(curve) for curve in curves}) == 1:
            steps, color = job.epochs["step"], line.get_color()
            metric.plot(steps, np.mean(curves, axis=0), color=color, label=label)
            if len(curves) > 1:
                low, high = np.min(curves, axis=0), np.max(curves, axis=0)
                metric.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    metric.set_ylabel(found.metric)
    if found.is_logarithmic:
        metric.set_yscale("log")
    for axes in (rate, metric):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    metric.legend(fontsize="small")
    figure.suptitle(f"best {found.metric}: {found.winner()}", fontsize="medium", wrap=True)
    figure.savefig(path, dpi=110)
