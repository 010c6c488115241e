"""Adapt a schedule that depends on the run's length to a run that becomes longer or shorter. The
result is a composed schedule, so that the config still describes all rates of the run, past ones
included."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

How = Literal["keep", "rescale", "append"]
HOW: tuple[How, ...] = get_args(How)


def extended(schedule: Mapping[str, Any], how: How, step: int, before: int) -> dict[str, Any]:
    """The config keys of the schedule for a run of `before` updates that is at update `step` and
    becomes a run of `after` updates. eta_T is the schedule in a run of T updates.

    keep: eta(t) = eta_before(t); a schedule that has ended holds its last rate.
    rescale: eta(t) = eta_before(t) for t < step, then eta_after(t): percentages refer to the new
    length, and the rate may jump.
    append: eta(t) = eta_before(t) for t < before, then eta_(after - before)(t - before): the
    schedule is repeated.
    """
    if schedule["name"] == "plateau":  # keeps its current factor
        return {**schedule, "of": extended(schedule["of"], how, step, before)}
    kept = {"name": "sequence", "clock": "own", "phases": [{"for": f"{before}steps", **schedule}]}
    if how == "keep":
        return kept
    if how == "append":
        return {**kept, "phases": [*kept["phases"], {"for": "rest", **schedule}]}
    past = {"for": f"{step}steps", **kept}
    return {"name": "sequence", "clock": "global", "phases": [past, {"for": "rest", **schedule}]}
