"""The loss and the metrics of the rows of a split, the same for every backend.

Several processes can share the work: each of P measures every P-th batch, and one of them puts the
results back into the order of the rows. A batch has the rows that a backend predicts at once, so
that its outputs, and all that follows from them, have the bits that one process computes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runner.components import losses, metrics
from runner.data import Split
from runner.data.source import Batch
from runner.plan import Plan
from runner.spec import Measured

Predict = Callable[[Batch], np.ndarray]
Measure = Callable[..., Measured]  # Live.measure


class Results(NamedTuple):
    """Measurements of rows of a split, in their order."""

    by_row: Mapping[str, np.ndarray]  # the loss and the metrics of each row  # float64[n] each
    counts: Mapping[str, np.ndarray]  # sums over the rows, of metrics with `of_counts`
    outputs: np.ndarray | None  # float[n, C], if a metric needs those of all rows at once
    own: Mapping[str, np.ndarray]  # what code of the user's own computes  # float64[n] each
    numbers: Mapping[str, float]  # what code of the user's own measures over all rows


def evaluate(
    plan: Plan, split: Split, predict: Predict, measure: Measure, prefix: str
) -> dict[str, float]:
    """Return the loss and the metrics of a split, by column of metrics.csv with `prefix` instead of
    `val/`."""
    return values(plan, split, results(plan, split, predict, measure), prefix)


def results(
    plan: Plan,
    split: Split,
    predict: Predict,
    measure: Measure,
    share: np.ndarray | None = None,
) -> Results:
    """Measure all rows of a split, or those that `World.share` has for one process.  # int64[n]"""
    if share is not None and not len(share):
        return Results({}, {}, None, {}, {})
    measured = Measured({})
    if plan.is_measured_by_backend:
        more = {} if share is None else {"numbers": plan.block_numbers(split, share)}
        measured = measure(plan.batches(split, share), plan.keeps_outputs, **more)
    of_counts, of_all = _not_by_row(plan)
    by_row: dict[str, list[np.ndarray]] = {}
    counts: dict[str, Any] = {}
    kept = []
    for outputs, y in _outputs(plan, split, predict, measured, share):
        for name, each in rows(plan, outputs, y).items():
            by_row.setdefault(name, []).append(each)
        for name, metric in of_counts.items():
            counts[name] = counts.get(name, 0) + metrics.measure(name, metric, outputs, y)
        kept += [outputs] if of_all else []
    return Results(
        {name: np.concatenate(blocks) for name, blocks in by_row.items()},
        counts,
        np.concatenate(kept) if kept else None,
        measured.rows,
        measured.numbers,
    )


def _not_by_row(plan: Plan) -> tuple[dict[str, metrics.Metric], dict[str, metrics.Metric]]:
    """Return the metrics with counts that add up, and those of all rows at once."""
    others = {name: metric for name, metric in plan.metrics.items() if not metric.by_row}
    of_counts = {name: metric for name, metric in others.items() if metric.of_counts}
    return of_counts, {name: metric for name, metric in others.items() if name not in of_counts}


def _outputs(
    plan: Plan, split: Split, predict: Predict, measured: Measured, share: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield outputs and targets of blocks of rows."""
    if not plan.is_measured_by_backend:
        yield from plan.output_blocks(split, predict, share)
    elif measured.outputs is not None:
        yield measured.outputs, split.y if share is None else split.y[share]


def joined(parts: Sequence[Results], shares: Sequence[np.ndarray]) -> Results:
    """Put the results of several processes into the order of the split's rows. `shares` has the
    rows of each; those of own code over all rows cannot be put together."""
    num = sum(map(len, shares))
    own_rows = [share for share in shares if len(share)]
    parts = [part for part, share in zip(parts, shares, strict=True) if len(share)]

    def in_order(arrays: Sequence[Any]) -> np.ndarray:
        whole = np.empty((num, *arrays[0].shape[1:]), arrays[0].dtype)
        for share, array in zip(own_rows, arrays, strict=True):
            whole[share] = array
        return whole

    first = parts[0]
    return Results(
        {name: in_order([part.by_row[name] for part in parts]) for name in first.by_row},
        {name: np.sum([part.counts[name] for part in parts], 0) for name in first.counts},
        None if first.outputs is None else in_order([part.outputs for part in parts]),
        {name: in_order([part.own[name] for part in parts]) for name in first.own},
        {},
    )


def values(plan: Plan, split: Split, found: Results, prefix: str) -> dict[str, float]:
    """Return the loss and the metrics of a split from the results of all of its rows, by column as
    `evaluate` does."""
    of_counts, of_all = _not_by_row(plan)
    means = metrics.Means()
    by_row = {f"{prefix}{name}": each for name, each in found.by_row.items()}
    add_rows(means, by_row, split.weight)
    means.add({_column(name, prefix): each for name, each in found.own.items()})
    known: dict[str, float] = {}
    if found.outputs is not None:
        z, y = _in_data_units(plan, found.outputs, split.y[:])
        for name, metric in of_all.items():
            known[f"{prefix}{name}"] = float(metrics.measure(name, metric, z, y, split.weight))
    for name, total in found.counts.items():
        rate = of_counts[name].of_counts
        assert rate is not None
        known[f"{prefix}{name}"] = rate(total)
    known |= {_column(name, prefix): number for name, number in found.numbers.items()}
    known |= means.result()
    for name, metric in plan.metrics.items():
        if f"{prefix}{name}" in known:
            known[f"{prefix}{name}"] = metric.of_mean(known[f"{prefix}{name}"])
    columns = [_column(name, prefix) for name in (*plan.train_columns(), *plan.val_columns())]
    return {column: known[column] for column in columns if column in known}


def _column(name: str, prefix: str) -> str:
    """Return the name of a validation column for another split."""
    return name if prefix == "val/" else f"{prefix}{name.removeprefix('val/')}"


def rows(plan: Plan, outputs: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return the loss of each row, with targets as in training, and every metric that has a value
    for each row, with targets in the data's units. The backend computes the loss of own code."""
    values = {}
    if not losses.is_own(plan.loss):
        targets = losses.targets(plan.loss, y, np.dtype(np.float64))
        values["loss"] = losses.values(plan.loss, outputs, targets, plan.model.batch_size)
    z, y = _in_data_units(plan, outputs, y)
    by_row = {name: metric for name, metric in plan.metrics.items() if metric.by_row}
    return values | {name: metrics.measure(name, metric, z, y) for name, metric in by_row.items()}


def add_rows(
    means: metrics.Means, by_row: Mapping[str, np.ndarray], weights: np.ndarray | None
) -> None:
    """Add the loss and the metrics of rows. The loss is a mean over rows of w l, the metrics are
    means with the weights w (runner.data.weights)."""
    if weights is None:
        means.add(by_row)
        return
    losses_of = {
        name: v * weights for name, v in by_row.items() if name.rpartition("/")[2] == "loss"
    }
    means.add(losses_of)
    means.add({name: v for name, v in by_row.items() if name not in losses_of}, weights)


def _in_data_units(plan: Plan, outputs: np.ndarray, y: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return outputs and targets in the data's units; several outputs as the model returns them,
    with the targets that its loss gets."""
    y = losses.targets(plan.loss, y, np.dtype(np.float64))
    if plan.network.outputs is not None:
        return plan.network.outputs.unpack(outputs), y
    if plan.data.y_scaling is None or not plan.metrics:
        return outputs, y
    invert = plan.data.y_scaling.invert
    return invert(outputs.astype(np.float64)), invert(y.astype(np.float64))
