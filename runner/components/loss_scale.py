"""The dynamic scale of the loss in float16 (trainer.precision=16-mixed).

Small gradients are 0 in float16, so the loss is multiplied by a scale s before the backward pass,
and the gradient of the whole update is divided by s, in float32, before it is clipped. If an entry
of the gradient is then NaN or infinite, the update is skipped and s is halved. After INTERVAL
updates in a row that were not skipped, s is doubled.

torch.amp.GradScaler with its defaults, which Lightning uses; Keras's LossScaleOptimizer is another
rule: s begins at 2^15. A skipped update counts as an update of the run: schedules go on, as they do
with GradScaler, and so do the optimizer's counts for bias corrections, which GradScaler stops.
Weights, slots and running statistics keep their values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SLOT = "loss_scale"  # the slot of a state with the fields of LossScale; and the column of trace.csv
INTERVAL = 2000  # updates in a row without a skipped one, after which the scale grows
MOST = 2.0**127  # the largest power of two in float32


@dataclass(frozen=True)
class LossScale:
    """The state of the rule."""

    scale: float = 2.0**16
    num_finite: int = 0  # updates since the scale has changed
    num_skipped: int = 0  # in the whole run

    def after(self, is_finite: bool) -> "LossScale":
        """Return the state after an update with a finite gradient, or after a skipped one."""
        if not is_finite:
            return LossScale(self.scale / 2, 0, self.num_skipped + 1)
        if self.num_finite + 1 == INTERVAL:
            return replace(self, scale=min(2 * self.scale, MOST), num_finite=0)
        return replace(self, num_finite=self.num_finite + 1)

    def slot(self) -> dict[str, np.ndarray]:
        return {name: np.array(float(value)) for name, value in vars(self).items()}


def split(
    slots: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Mapping[str, Any]], LossScale]:
    """Return the optimizer's slots, and the state of the scale; that of a run's start without
    one."""
    others, saved = {k: v for k, v in slots.items() if k != SLOT}, slots.get(SLOT)
    if saved is None:
        return others, LossScale()
    counts = (int(saved[name]) for name in ("num_finite", "num_skipped"))
    return others, LossScale(float(saved["scale"]), *counts)
