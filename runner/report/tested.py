"""Evaluate the best two groups of a comparison on the test split, over all their seeds. A group
with the same runs as the best one is not the second."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import ConfigError, RunError, one_line
from runner.report.answer import Answer, describe, p_in_words
from runner.report.jobs import Block, Group
from runner.report.statistics import Paired, Summary, compare, summary

# a run's folder -> the metrics of the test split
Evaluate = Callable[[Path], Mapping[str, float]]


@dataclass(frozen=True)
class Tested:
    """The metric of the winner and the runner-up on the test split."""

    metric: str
    groups: list[tuple[str, Summary]]  # label, values over the seeds
    against: Paired | None  # runner-up - winner
    agrees: bool | None  # whether the winner of the validation is not worse here; None: it is alone

    def sentences(self, answer: Answer) -> list[str]:
        """Return the results in words, one sentence per line."""
        lines = [
            "on the test split, over all their seeds:",
            *(f"  {label}: {self.metric} {describe(values)}" for label, values in self.groups),
        ]
        if self.against is None:
            return lines
        (winner, _), (second, _) = self.groups
        p, interval = self.against.p, self.against.interval
        if interval is not None and self.against.difference < 0:  # of the lead, which is positive
            interval = -interval[1], -interval[0]
        details = [] if interval is None else ["95 % interval {:.4g} to {:.4g}".format(*interval)]
        details += [] if p is None else [p_in_words(p)]
        known = f" ({', '.join(details)})" if details else ""
        by = f"by {abs(self.against.difference):.4g}{known}"
        if self.agrees:
            lines.append(f"validation and test agree: {winner} is ahead on both, here {by}")
        else:
            lines.append(f"validation and test disagree: on the test split {second} is ahead {by}")
        return lines

    def entry(self) -> dict[str, Any]:
        """Return the entry of answer.json."""
        against = self.against
        return {
            "metric": self.metric,
            "groups": [
                {"label": label, "seeds": each.num, "mean": each.mean, "interval": each.interval}
                for label, each in self.groups
            ],
            "difference": against.difference if against else None,
            "difference_interval": against.interval if against else None,
            "p": against.p if against else None,
            "agrees": self.agrees,
        }


def with_test(verdict: Answer, evaluate: Evaluate) -> Answer:
    """Return the answer with the results on the test split, or with the reason why there are none.
    The runs are those of the winner and the runner-up."""
    if not verdict.ranked:
        return verdict
    try:
        return replace(verdict, tested=_tested(verdict, evaluate))
    except (ConfigError, RunError, OSError) as error:
        return replace(verdict, untested=f"answer.test: no results, {one_line(error)}")


def _tested(verdict: Answer, evaluate: Evaluate) -> Tested:
    name = "test/" + verdict.metric.partition("/")[2]
    groups = [ranked.group for ranked in verdict.ranked if not ranked.is_same_run][:2]
    values = {group.label: _values(group, name, evaluate) for group in groups}
    summaries = [(label, summary([*each.values()])) for label, each in values.items()]
    against = agrees = None
    if len(groups) > 1:
        second, first = groups[1].label, groups[0].label
        resolution = max(job.resolution(name) for group in groups for job in group.completed)
        tests = compare({second: values[second], first: values[first]}, resolution)
        against = tests[second, first]
        agrees = against.difference * (1 if verdict.mode == "min" else -1) >= 0
    return Tested(name, summaries, against, agrees)


def _values(group: Group, name: str, evaluate: Evaluate) -> dict[Block, float]:
    metrics = {job.block: evaluate(job.folder) for job in group.completed}
    return {block: _value(each, name) for block, each in metrics.items()}


def _value(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        names: Sequence[str] = sorted(metrics)
        raise ConfigError(f"the test split has {', '.join(names)}, not {name}")
    return float(metrics[name])
