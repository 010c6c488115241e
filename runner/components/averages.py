"""An average of the weights over the updates, kept beside the weights that are trained.

After update t: a += share[t] (w - a); a = the average, w = the weights. EMA with the decay d
(`optimizer.ema`) has share 1 at the first update and 1 - d from then on, so a = d a + (1 - d) w,
and a = w after the first update, as in torch.optim.swa_utils.AveragedModel with get_ema_avg_fn(d)
and in Keras's `use_ema`. Polyak and Juditsky (1992).

The average is a slot of the state, AVERAGE_WEIGHTS; training does not depend on it. It has no
running statistics of its own: with it, batch norm uses those of the trained weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from runner.components.optimizers import AVERAGE_WEIGHTS
from runner.errors import ConfigError

Which = Literal["auto", "plain", "average"]


def name(optimizer: Any) -> str | None:
    """Return the name of the average in the columns of metrics.csv; None without one."""
    return None if optimizer.ema is None else "ema"


def check_choice(optimizer: Any, which: Which, folder: Any) -> None:
    """Refuse the average of a run that has none."""
    if which == "average" and name(optimizer) is None:
        raise ConfigError(
            f"weights must be auto or plain for {folder}, which was trained with "
            f"optimizer.ema=null, got average"
        )


def check(optimizer: Any, has_own_average: bool) -> None:
    """Refuse an average of weights that are not those for evaluation."""
    if name(optimizer) is not None and has_own_average:
        raise ConfigError(
            f"optimizer.ema must be null with optimizer={optimizer.name}, whose weights for "
            f"evaluation are an average already, got {optimizer.ema}"
        )


def shares(optimizer: Any, num_steps: int) -> np.ndarray | None:
    """Return the share of the weights in their average at every update; None without one.
    # float64[T]"""
    if name(optimizer) is None:
        return None
    values = np.full(num_steps, 1 - optimizer.ema)
    values[:1] = 1.0
    return values


def initial_slots(
    optimizer: Any, weights: Mapping[str, np.ndarray]
) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the slot of the average before the first update."""
    return {} if name(optimizer) is None else {AVERAGE_WEIGHTS: dict(weights)}


def chosen(state: Any, which: Which) -> Any:
    """Return a state with the weights for evaluation: those that were trained (`plain`), or their
    average, which is also the choice of `auto` if there is one."""
    average = state.slots.get(AVERAGE_WEIGHTS, {})
    return state if which == "plain" else replace(state, weights={**state.weights, **average})
