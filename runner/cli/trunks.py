"""Shared trunks of a race: updates that several schedules have in common are made once.

Two runs of a seed that differ only in the schedule or the length make the same updates while their
rates are the same, as WSD schedules with decays of different lengths do. The second one branches
from a checkpoint of the first one, and ends bit-identical to a run from the beginning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from runner.components import averages
from runner.components.optimizers import Custom
from runner.config.schema import Config, sha256
from runner.data.order import begun
from runner.errors import ConfigError
from runner.plan import Plan, plan, replanned

Settings = tuple[str, ...]  # the overrides of a schedule, without the seed
_MAY_DIFFER = ("max_epochs", "max_steps")  # of trainer, besides the schedule


@dataclass(frozen=True)
class Branch:
    """The run that another one branches from."""

    parent: Settings
    step: int  # the checkpoint of the parent


@dataclass(frozen=True)
class Trunks:
    """The trunks that each pair of schedules has in common: (first, second) -> updates."""

    steps: Mapping[tuple[Settings, Settings], int] = field(default_factory=dict)
    plans: Mapping[Settings, Plan] = field(default_factory=dict, repr=False)

    @property
    def planned(self) -> Plan | None:
        """The plan of the first schedule that can be planned."""
        return next(iter(self.plans.values()), None)

    def branches(self, schedules: Sequence[Settings]) -> dict[Settings, Branch]:
        """Return the branch of each schedule that has a trunk in common with an earlier one: the
        longest; of equal ones, the first one's."""
        found = {}
        for i, schedule in enumerate(schedules):
            shared = [(self.steps.get((other, schedule), 0), other) for other in schedules[:i]]
            step, parent = max(shared, key=lambda each: each[0], default=(0, ()))
            if step:
                found[schedule] = Branch(parent, step)
        return found


def waves(
    schedules: Sequence[Settings], branches: Mapping[Settings, Branch]
) -> list[list[Settings]]:
    """Divide schedules into those that may be trained together: a run follows its parent."""
    found: list[list[Settings]] = []
    depths: dict[Settings, int] = {}
    for schedule in schedules:  # a parent comes first
        branch = branches.get(schedule)
        depths[schedule] = 0 if branch is None else depths[branch.parent] + 1
        found += [[] for _ in range(depths[schedule] + 1 - len(found))]
        found[depths[schedule]].append(schedule)
    return found


def kept(branches: Mapping[Settings, Branch]) -> dict[Settings, frozenset[int]]:
    """Return the steps of the checkpoints that each parent keeps."""
    steps: dict[Settings, frozenset[int]] = {}
    for branch in branches.values():
        steps[branch.parent] = steps.get(branch.parent, frozenset()) | {branch.step}
    return steps


def find(configs: Mapping[Settings, tuple[Config, Mapping[str, Any]]], known: list[Plan]) -> Trunks:
    """Return the trunks of schedules, by a config of each and its plain values; both of one seed.

    `known` has the plans of the command, and gets new ones. A schedule that cannot be planned has
    none: its run will say why.
    """
    plans: dict[str, list[tuple[Settings, Plan]]] = {}
    all_plans: dict[Settings, Plan] = {}
    for schedule, (config, values) in configs.items():
        try:
            prepared = _planned(config, known)
        except ConfigError:
            continue
        all_plans[schedule] = prepared
        if _can_branch(prepared):
            plans.setdefault(_hash_of_others(values), []).append((schedule, prepared))
    return Trunks(
        {
            (first, second): step
            for alike in plans.values()
            for (first, a), (second, b) in combinations(alike, 2)
            if (step := common_steps(a, b))
        },
        all_plans,
    )


def _planned(config: Config, known: list[Plan]) -> Plan:
    """Return the plan of a config: the known one, or a new one, on the data of another run."""
    for each in known:
        if each.config == config:
            return each
    like = next((each for each in known if _share_data(each.config, config)), None)
    known.append(plan(config) if like is None else replanned(like, config))
    return known[-1]


def _share_data(a: Config, b: Config) -> bool:
    """Return whether two runs have the same rows in the same form, which the model chooses."""
    of_a, of_b = ((each.data, each.model, each.trainer.largest_batch) for each in (a, b))
    return of_a == of_b


def _hash_of_others(values: Mapping[str, Any]) -> str:
    """Hash everything but the schedule and the length."""
    trainer = {key: value for key, value in values["trainer"].items() if key not in _MAY_DIFFER}
    return sha256({**values, "trainer": trainer}, "schedule", "seed")


def _can_branch(prepared: Plan) -> bool:
    """Return whether a checkpoint of another run has all that a run needs to go on: not where code
    of the user's own, a tracker or a clock has a state of its own, or a rate depends on losses."""
    config = prepared.config
    return not (
        prepared.plateau is not None
        or prepared.data.stream is not None
        or isinstance(config.optimizer, Custom)
        or not prepared.built.is_repeatable
        or averages.name(config.optimizer) is not None
        or config.callbacks
        or config.trackers
        or config.debug is not None
        or config.trainer.max_time is not None
        or config.num_processes > 1
    )


def common_steps(a: Plan, b: Plan) -> int:
    """Return the number of updates that two runs have in common, at which both write a checkpoint;
    0: none. Both go on after it."""
    tables, others = dict(a.tables()), dict(b.tables())
    periods = a.checkpoints(), b.checkpoints()
    choices = [(each.compiles, each.model.threads) for each in (a, b)]  # of keys that are auto
    if tables.keys() != others.keys() or None in periods or choices[0] != choices[1]:
        return 0
    step = min(a.order.total_steps, b.order.total_steps) - 1
    for name, values in tables.items():
        num = min(len(values), len(others[name]))
        differs = np.flatnonzero(np.asarray(values[:num]) != np.asarray(others[name][:num]))
        step = min([step, *differs[:1].tolist()])
    while step > 0:
        before = min(each.begin(each.number(step)) for each in periods if each is not None)
        if before == step:
            break
        step = before
    return step if step > 0 and begun(a.order, step) == begun(b.order, step) else 0
