"""The evaluation of the validation rows during a run. Several processes share it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from runner.data import Split
from runner.evaluation import Results, joined, results, values
from runner.plan import Plan
from runner.spec import Divided, Live, World


class Sharing(ABC):
    """The model of rank 0 of several processes, if all of them evaluate together."""

    @abstractmethod
    def results(self) -> Results:
        """Measure the validation rows, each process its share."""


def split(plan: Plan) -> Split:
    """Return the validation rows that a run evaluates: with debug=fast, those of one batch."""
    val = plan.data.val
    return val.head(plan.model.batch_size) if plan.config.debug == "fast" else val


def validate(plan: Plan, live: Live) -> dict[str, float]:
    """Return the loss and the metrics of the validation rows, by column of metrics.csv; none
    without such rows."""
    rows = split(plan)
    if not len(rows):
        return {}
    if isinstance(live, Sharing):
        found = live.results()
    else:
        found = results(plan, rows, live.predict, live.measure)
    return values(plan, rows, found, "val/")


def own_results(plan: Plan, live: Live, world: World) -> Results:
    """Measure the validation rows that this process evaluates. If the processes divide the weights,
    it makes as many forward passes as the one with the most rows."""
    rows = split(plan)
    found = results(plan, rows, live.predict, live.measure, plan.share(rows, world))
    if plan.config.strategy == "fsdp":
        num_passes = [plan.num_passes(rows, share) for share in _shares(plan, world)]
        cast(Divided, live).take_part(max(num_passes) - num_passes[world.rank])
    return found


def of_all(plan: Plan, world: World, parts: Sequence[Results]) -> Results:
    """Put together the results of all processes, by rank."""
    return joined(parts, _shares(plan, world))


def _shares(plan: Plan, world: World) -> list[np.ndarray]:
    """Return the validation rows that each process evaluates, by rank.  # int64[n] each"""
    worlds = [replace(world, rank=rank) for rank in range(world.size)]
    return [plan.share(split(plan), each) for each in worlds]
