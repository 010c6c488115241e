"""Learning-rate schedules: pure functions of the step, evaluated once into a table of rates.

t counts applied optimizer updates from 0, across gradient accumulation and devices. eta(t) is the
rate that update t uses.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Union

import numpy as np

from runner.schedules.combined import ALL, AnyCurve
from runner.schedules.curve import Curve
from runner.schedules.plateau import Plateau
from runner.schedules.units import Clock, Duration, Length
from runner.section import OneOf

__all__ = ["AnyCurve", "Clock", "Curve", "Duration", "Length", "Plateau", "Schedule", "table"]

if TYPE_CHECKING:
    Schedule = Curve
else:
    Schedule = Annotated[Union[(*ALL, Plateau)], OneOf("name")]

_BLOCK = 2**15  # steps per evaluation, so that intermediate arrays fit into the processor's cache


def table(schedule: Curve, clock: Clock, lr: float) -> np.ndarray:
    """Compute the rate of every update of a run.  # float64[T]

    The closed form is evaluated once, in float64. A backend casts the table once to the run's dtype
    and then only looks up rates.
    """
    rates = np.empty(clock.total_steps)

    def fill(begin: int) -> None:
        t = np.arange(begin, min(begin + _BLOCK, clock.total_steps))
        with np.errstate(over="ignore", invalid="ignore"):  # lint.py reports these values
            rates[begin : begin + len(t)] = schedule.rates(t, clock, lr)

    starts = range(0, clock.total_steps, _BLOCK)
    if len(starts) < 8:
        deque(map(fill, starts), maxlen=0)
    # NumPy releases the GIL, and each thread writes its own part of the table
    else:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            deque(pool.map(fill, starts), maxlen=0)
    return rates
