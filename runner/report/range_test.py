"""Reading an LR range test: the loss while the rate rises geometrically, and the rates that it
speaks for."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def smooth(losses: Array, beta: float) -> Array:
    """s_t = beta s_(t-1) + (1 - beta) l_t with s_(-1) = 0, over its bias 1 - beta^(t+1): Adam's
    first moment of the loss,
    as in fastai's lr_find.  # float64[n] -> float64[n]"""
    smoothed, s = np.empty(len(losses)), 0.0
    for t, loss in enumerate(losses):
        s = beta * s + (1 - beta) * loss
        smoothed[t] = s / (1 - beta ** (t + 1))
    return smoothed


def end(losses: Array, smoothed: Array, factor: float) -> int | None:
    """The first update whose loss is not finite, or whose smoothed one is above `factor` times the
    least before it."""
    with np.errstate(invalid="ignore"):
        worse = smoothed > factor * np.minimum.accumulate(smoothed)
    bad = np.flatnonzero(~np.isfinite(losses) | worse)
    return int(bad[0]) if len(bad) else None


@dataclass(frozen=True)
class Suggestion:
    steepest: float  # the rate at which the smoothed loss falls fastest over ln(rate)
    minimum: float  # the rate at which it is least
    tenth: float  # of the rate at the minimum

    @property
    def lr(self) -> float:
        """The steepest, to two digits."""
        return float(f"{self.steepest:.1e}")


def suggest(rates: Array, smoothed: Array) -> Suggestion | None:
    """Suggest a rate from the updates up to the least smoothed loss; None if the loss does not fall
    on the way there.

    The slope is ds / d ln(rate), by central differences (numpy.gradient). The first tenth of the
    updates is left out: few losses are in its means. Smith (2017), section 3.3, reads the same off
    by eye; Lightning's Tuner.lr_find takes the steepest slope of the raw losses.
    """
    skipped, least = len(smoothed) // 10, int(np.argmin(smoothed))
    if least - skipped < 2:
        return None
    slope = np.gradient(smoothed, np.log(rates))[skipped : least + 1]
    if not slope.min() < 0:
        return None
    steepest = float(rates[skipped + int(np.argmin(slope))])
    return Suggestion(steepest, float(rates[least]), float(rates[least]) / 10)
