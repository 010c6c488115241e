"""task=preview: show the rates of a run before training, as a table and a picture. It imports no
framework."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from runner.config.schema import Config
from runner.data.order import begun
from runner.plan import Plan, plan
from runner.report import rates as picture
from runner.run import run_folder
from runner.schedules.units import Periods

_ROWS = 24  # the most rows in the table of turning points


def preview(configs: Sequence[Config], overrides: Sequence[Sequence[str]] | None) -> int:
    """Print one schedule's turning points, or for a multirun's `overrides` one line per job; then
    draw the picture."""
    plans = [plan(config) for config in configs]
    names = [plans[0].config.schedule.name] if overrides is None else _names(overrides)
    lines = [
        f"warning: {warning}" if overrides is None else f"warning: {name}: {warning}"
        for name, prepared in zip(names, plans, strict=True)
        for warning in prepared.check_schedule()
    ]
    lines += _turning_points(plans[0]) if overrides is None else _summaries(names, plans)
    root = Path(configs[0].output.root) / "previews"
    folder = run_folder.create(
        root, f"{run_folder.timestamp()}_{names[0] if len(names) == 1 else 'schedules'}"
    )
    print("\n".join(lines))  # nothing is printed of a preview that is refused
    path = folder / "rates.png"
    tables = dict(_curves(names, plans))
    picture.draw(path, tables, configs[0].optimizer.lr)
    print(f"picture  {path}")
    return 0


def _names(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Name each job by its overrides, without those that all jobs share."""
    shared = set.intersection(*map(set, overrides))
    return [
        ", ".join(o.removeprefix("schedule=") for o in job if o not in shared) or "defaults"
        for job in overrides
    ]


def _curves(names: Sequence[str], plans: Sequence[Plan]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the rates of each job, and of its groups with a schedule of their own, with names."""
    for name, prepared in zip(names, plans, strict=True):
        yield name, prepared.rates()
        for match, rates in _of_groups(prepared).items():
            yield f"{name} {match}", rates


def _of_groups(prepared: Plan) -> dict[str, np.ndarray]:
    """Return the rates of each entry of optimizer.groups that has a schedule, with its lr_factor
    and without layer_decay."""
    return {
        entry.match: prepared.group_rates[entry.match] * entry.lr_factor
        for _, entry in prepared.scheduled_groups()
    }


def _turning_points(prepared: Plan) -> list[str]:
    """Format one row per step at which a part of the schedule, or of that of a group, begins or
    ends."""
    rates, clock, config = prepared.rates(), prepared.clock, prepared.config
    total, epochs = clock.total_steps, clock.epochs
    columns = {"rate": rates, **_of_groups(prepared)}
    widths = [max(11, len(name)) for name in columns]
    lines = [
        f"schedule {config.schedule.name}  optimizer.lr {config.optimizer.lr:g}  "
        f"{total} steps = {_epoch(epochs, total):g} epochs"
        + (f" of {epochs.length}" if epochs.are_equal else ""),
        *_sizes(prepared),
        f"{'step':>10}  {'epoch':>8}  {'of run':>7}  {_row(columns, widths)}",
    ]
    steps = _steps(prepared)
    for step in steps[:_ROWS]:
        numbers = _row((f"{values[step]:.6g}" for values in columns.values()), widths)
        lines.append(f"{step:>10}  {_epoch(epochs, step):>8.2f}  {step / total:>7.1%}  {numbers}")
    if len(steps) > _ROWS:
        lines.append(f"{'...':>10}  and {len(steps) - _ROWS} more turning points")
    for name, values in columns.items():
        of = "" if name == "rate" else f" of {name}"
        lines.append(
            f"sum of rates{of} {values.sum():.6g}  mean {values.mean():.6g}  "
            f"largest {values.max():.6g}"
        )
    return lines


def _epoch(epochs: Periods, step: int) -> float:
    return float(epochs.coordinate(Fraction(step)))


def _sizes(prepared: Plan) -> list[str]:
    """Format the batch sizes of a run in which they change, each with its first step."""
    order = prepared.order
    if not order.changes_size:
        return []
    parts, last = [], 0
    for step, _, _, size in begun(order, order.total_steps):
        if size != last:
            parts.append(f"{size} from step {step}")
        last = size
    return [f"trainer.batch_size {', '.join(parts)}"]


def _row(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(map(str.ljust, cells, widths)).rstrip()


def _steps(prepared: Plan) -> list[int]:
    """Return the first, the last and the middle step, both sides of every joint, and the steps with
    the largest and the smallest rate of each schedule."""
    total, steps = prepared.clock.total_steps, set()
    schedules = [prepared.config.schedule, *(e.schedule for _, e in prepared.scheduled_groups())]
    for schedule, rates in zip(
        schedules, [prepared.rates(), *prepared.group_rates.values()], strict=True
    ):
        joints = schedule.joints(prepared.clock)
        steps |= {0, total - 1, total // 2, int(rates.argmax()), int(rates.argmin())}
        steps |= {step for joint in joints for step in (joint - 1, joint)}
    return sorted(step for step in steps if 0 <= step < total)


def _summaries(names: Sequence[str], plans: Sequence[Plan]) -> list[str]:
    curves = dict(_curves(names, plans))
    width = max(map(len, curves))
    columns = (f"{'first':>11}", f"{'largest':>11}", f"{'at step':>8}", f"{'last':>11}")
    lines = ["  ".join((" " * width, f"{'steps':>8}", *columns, "sum of rates"))]
    for name, rates in curves.items():
        numbers = (
            f"{rates[0]:>11.6g}  {rates.max():>11.6g}  {rates.argmax():>8}  {rates[-1]:>11.6g}"
        )
        lines.append(f"{name:{width}}  {len(rates):>8}  {numbers}  {rates.sum():.6g}")
    return lines
