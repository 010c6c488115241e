"""An average of the weights over the updates, kept beside the weights that are trained.

After update t: a += share[t] (w - a); a = the average, w = the weights. With share 1, a = w to the
bit.

- `optimizer.ema`, an exponential average with the decay d: share 1 at the first update and 1 - d
  from then on, so a = d a + (1 - d) w, and a = w after the first update, as in
  torch.optim.swa_utils.AveragedModel with get_ema_avg_fn(d) and in Keras's `use_ema`. Polyak and
  Juditsky (1992).
- `optimizer.swa`, the mean of the weights at the end of each epoch in the last part of the run
  (stochastic weight averaging): share 1 / n at the n-th of them, 0 between them, and 1 before the
  first, so a = w until then. An epoch that the end of the run cuts short counts too. Izmailov et
  al. (2018), algorithm 1; torch.optim.swa_utils.AveragedModel.

- `optimizer.lawa`, the mean of the weights at the end of each of the latest k epochs (latest weight
  averaging): share 1 / min(n, k) at the end of epoch n, 0 between the ends, and 1 up to the first
  one, so a = w until then. At the end of an epoch, the mean runs over w, e_1, ... e_m-1: a = w,
  then a += (e_i - a) / (i + 1), with m = 1 / share and e_i the weights at the end of the epoch i
  before. Only whole epochs count. Kaddour (2022), "Stop wasting my time!", section 2.

The average is a slot of the state, AVERAGE_WEIGHTS, and so is each e_i, EARLIER_WEIGHTS; training
does not depend on them. The average has no running statistics of its own: with it, batch norm uses
those of the trained weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from runner.components.optimizers import AVERAGE_WEIGHTS, EARLIER_WEIGHTS
from runner.errors import ConfigError
from runner.schedules.units import Clock, half_up

Which = Literal["auto", "plain", "average"]
KINDS = ("ema", "swa", "lawa")  # keys of the optimizer


def name(optimizer: Any) -> str | None:
    """Return the name of the average in the columns of metrics.csv; None without one."""
    return next((key for key in KINDS if getattr(optimizer, key) is not None), None)


def check_choice(optimizer: Any, which: Which, folder: Any) -> None:
    """Refuse the average of a run that has none."""
    if which == "average" and name(optimizer) is None:
        raise ConfigError(
            f"weights must be auto or plain for {folder}, which was trained with "
            f"{' and '.join(f'optimizer.{key}=null' for key in KINDS)}, got average"
        )


def check(optimizer: Any, clock: Clock) -> None:
    """Refuse two averages, an average of weights that are not those for evaluation, and a last part
    that is longer than the run."""
    check_second(optimizer, optimizer.has_own_average)
    shares(optimizer, clock)


def check_second(optimizer: Any, has_own_average: bool) -> None:
    """Refuse a second average."""
    key = name(optimizer)
    if key is not None and has_own_average:
        raise ConfigError(
            f"optimizer.{key} must be null with optimizer={optimizer.name}, whose weights for "
            f"evaluation are an average already, got {getattr(optimizer, key)}"
        )
    given = {each: getattr(optimizer, each) for each in KINDS}
    for other, value in given.items():
        if value is not None and other != key:
            raise ConfigError(
                f"optimizer.{other} must be null with optimizer.{key}={given[str(key)]}, got "
                f"{value}; a run has one average of its weights"
            )


def shares(optimizer: Any, clock: Clock) -> np.ndarray | None:
    """Return the share of the weights in their average at every update; None without one. Raises
    ConfigError if the last part of the run is longer than the run.  # float64[T]"""
    if optimizer.ema is not None:
        values = np.full(clock.total_steps, 1 - optimizer.ema)
        values[:1] = 1.0
        return values
    if optimizer.swa is not None:
        return _of_last_part(optimizer.swa, clock)
    if optimizer.lawa is not None:
        ends = np.array(clock.epochs.ends(clock.total_steps), dtype=np.int64)
        return _of_ends(ends, clock.total_steps, optimizer.lawa)
    return None


def _of_last_part(last_part: str, clock: Clock) -> np.ndarray:
    total = clock.total_steps
    length = half_up(total - clock.before(Fraction(total), last_part))
    if not 0 < length <= total:
        raise ConfigError(
            f"optimizer.swa must be from 1 to the {total} updates of the run, got {last_part}, "
            f"which is {length}"
        )
    # updates made, in the last part
    ends = [end for end in clock.epochs.ends(total) if total - length < end < total]
    return _of_ends(np.array([*ends, total]), total, total)


def _of_ends(counts: np.ndarray, total_steps: int, most: int) -> np.ndarray:
    """Return the shares of the mean of the weights after `counts` updates, of the latest `most`."""
    ends, values = counts - 1, np.zeros(total_steps)
    values[: min(ends, default=total_steps)] = 1.0
    values[ends] = 1 / np.minimum(np.arange(1, len(ends) + 1), most)
    return values


def num_averaged(share: float) -> int:
    """Return m, the number of weights in the mean, for a share above 0 of `optimizer.lawa`."""
    return round(1 / share)


def check_extended(optimizer: Any, before: Clock, after: Clock, step: int) -> None:
    """Refuse to resume from `step` with another length if the average would not become the one that
    the run would have had with this length from its start."""
    if optimizer.lawa is not None:  # its ends do not depend on the length
        return
    old, new = (shares(optimizer, clock) for clock in (before, after))
    if old is None or new is None or len(new) <= step or new[step] == 1:
        return
    if np.array_equal(_coefficients(old[:step]), _coefficients(new[:step])):
        return
    first = int(np.flatnonzero(new < 1)[0])
    raise ConfigError(
        f"optimizer.swa={optimizer.swa} averages the weights from step {first} on if the run has "
        f"{after.total_steps} steps, and the checkpoint of step {step} has another average; set "
        f"checkpoint to one before step {first}, or train for more steps"
    )


def _coefficients(values: np.ndarray) -> np.ndarray:
    """Return the coefficient of the weights after each update in their average after the last."""
    kept = np.cumprod((1 - values)[::-1])[::-1]
    return values * np.append(kept[1:], 1.0)


def initial_slots(
    optimizer: Any, weights: Mapping[str, np.ndarray]
) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the slots of the average before the first update."""
    return {slot: dict(weights) for slot in slots(optimizer)}


def slots(optimizer: Any) -> list[str]:
    """Return the names of the average's slots: itself, then e_1, e_2, ..."""
    if name(optimizer) is None:
        return []
    num_earlier = 0 if optimizer.lawa is None else optimizer.lawa - 1
    return [AVERAGE_WEIGHTS, *(f"{EARLIER_WEIGHTS}{i}" for i in range(1, num_earlier + 1))]


def is_slot(slot: str) -> bool:
    """Return whether a slot of the state is one of the average's."""
    return slot == AVERAGE_WEIGHTS or slot.startswith(EARLIER_WEIGHTS)


def num_slots(optimizer: Any) -> int:
    """Return the number of slots of an optimizer and its average."""
    return len(optimizer.slots()) + len(slots(optimizer))


def chosen(state: Any, which: Which) -> Any:
    """Return a state with the weights for evaluation: those that were trained (`plain`), or their
    average, which is also the choice of `auto` if there is one."""
    average = state.slots.get(AVERAGE_WEIGHTS, {})
    return state if which == "plain" else replace(state, weights={**state.weights, **average})
