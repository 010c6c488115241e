"""Learning-rate schedules: pure functions of the step, one clock, one table of rates.

t counts applied optimizer updates from 0, across gradient accumulation and devices; eta(t) is the rate that update t uses.
"""

import numpy as np

from runner.schedules.named import Schedule
from runner.schedules.units import Clock, Duration

__all__ = ["Clock", "Duration", "Schedule", "table"]


def table(schedule: Schedule, clock: Clock, lr: float) -> np.ndarray:
    """The rate of every update of a run.  # float64[T]

    Evaluated once, in float64, by the closed form; a backend casts it once to the run's dtype and only looks it up.
    """
    rates = schedule.rates(np.arange(clock.total_steps), clock, lr)
    return np.ascontiguousarray(rates, dtype=np.float64)
