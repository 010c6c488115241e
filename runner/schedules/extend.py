"""A schedule that goes by the run's length, for a run that becomes longer or shorter: what it is
from then on, written as a schedule of known parts, so that the config still says every rate of the
run, those that are past included."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

How = Literal["keep", "rescale", "append"]
HOW: tuple[How, ...] = get_args(How)


def extended(schedule: Mapping[str, Any], how: How, step: int, before: int) -> dict[str, Any]:
    """The keys of a schedule, as a config has them, for a run of `before` updates that is at update
    `step` and becomes a run of `after`; eta_T is the schedule's value in a run of T updates.

    keep: eta(t) = eta_before(t): what ends has ended, and holds its end.
    rescale: eta(t) = eta_before(t) for t < step, eta_after(t) from there on: what was said of a
    share of the run is one of the longer run; the rate may jump.
    append: eta(t) = eta_before(t) for t < before, then eta_(after - before)(t - before): the same
    once more.
    """
    if schedule["name"] == "plateau":  # its factor stays what it has become
        return {**schedule, "of": extended(schedule["of"], how, step, before)}
    kept = {"name": "sequence", "clock": "own", "phases": [{"for": f"{before}steps", **schedule}]}
    if how == "keep":
        return kept
    if how == "append":
        return {**kept, "phases": [*kept["phases"], {"for": "rest", **schedule}]}
    past = {"for": f"{step}steps", **kept}
    return {"name": "sequence", "clock": "global", "phases": [past, {"for": "rest", **schedule}]}
