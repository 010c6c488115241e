"""optimizer.lr=auto: a number stands in its place until runner.tasks.auto_lr has found one."""

import math
from collections.abc import Mapping
from typing import Any

from runner.section import value_at

AUTO = "auto"


def with_stand_in(values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the composed config with a number in place of optimizer.lr=auto, and whether it was
    auto. The number is the middle of the range test, sqrt(find_lr.min_lr find_lr.max_lr)."""
    if value_at(values, "optimizer.lr") != AUTO:
        return values, False
    low, high = (value_at(values, f"find_lr.{key}") for key in ("min_lr", "max_lr"))
    if not all(isinstance(end, float) and 0 < end < math.inf for end in (low, high)):
        return with_lr(values, 1e-3), True  # the section find_lr is refused
    return with_lr(values, math.sqrt(low * high)), True


def with_lr(values: Mapping[str, Any], lr: float) -> dict[str, Any]:
    """Return the composed config with a base rate."""
    return {**values, "optimizer": {**values["optimizer"], "lr": lr}}
