"""Evaluate an LR range test, in which the rate rises geometrically: smooth the losses, find the
end, suggest a rate."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def smooth(losses: Array, beta: float) -> Array:
    """s_t = beta s_(t-1) + (1 - beta) l_t with s_(-1) = 0, divided by 1 - beta^(t+1) as a bias
    correction: Adam's first moment of the loss, as in fastai's lr_find.
    # float64[n] -> float64[n]"""
    smoothed, s = np.empty(len(losses)), 0.0
    for t, loss in enumerate(losses):
        s = beta * s + (1 - beta) * loss
        smoothed[t] = s / (1 - beta ** (t + 1))
    return smoothed


def end(losses: Array, smoothed: Array, factor: float) -> int | None:
    """Return the first update with a loss that is not finite, or with a smoothed loss above
    `factor` times the smallest one so far; None if there is none."""
    with np.errstate(invalid="ignore"):
        worse = smoothed > factor * np.minimum.accumulate(smoothed)
    bad = np.flatnonzero(~np.isfinite(losses) | worse)
    return int(bad[0]) if len(bad) else None


def two_digits(rate: float) -> float:
    """Round a rate to two digits."""
    return float(f"{rate:.1e}")


@dataclass(frozen=True)
class Suggestion:
    steepest: float  # the rate at which the smoothed loss falls fastest over ln(rate)
    minimum: float  # the rate at which the smoothed loss is smallest
    tenth: float  # a tenth of `minimum`

    @property
    def lr(self) -> float:
        """The rate `steepest`, rounded to two digits."""
        return two_digits(self.steepest)


def first_read(rates: Array) -> float:
    """Return the first rate that is read: the means of the tenth before it are of few losses."""
    return float(rates[len(rates) // 10])


def suggest(rates: Array, smoothed: Array) -> Suggestion | None:
    """Suggest a rate from the updates up to the smallest smoothed loss; None if the loss does not
    fall on the way there.

    The slope is ds / d ln(rate), by central differences (numpy.gradient). The first tenth of the
    updates is ignored, since its means are over few losses. Smith (2017), section 3.3, reads the
    rate off a plot; Lightning's Tuner.lr_find takes the steepest slope of the raw losses.
    """
    skipped, smallest = len(smoothed) // 10, int(np.argmin(smoothed))
    if smallest - skipped < 2:
        return None
    slope = np.gradient(smoothed, np.log(rates))[skipped : smallest + 1]
    if not slope.min() < 0:
        return None
    steepest = float(rates[skipped + int(np.argmin(slope))])
    return Suggestion(steepest, float(rates[smallest]), float(rates[smallest]) / 10)
