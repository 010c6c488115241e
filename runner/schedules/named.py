"""The named schedules: eta(t), the rate that update t uses, as closed forms in float64.

Symbols: eta0 = `optimizer.lr`; t = applied updates so far, from 0; W = warm-up in steps; tau = t - W, the schedule's own
clock after its warm-up; N = steps from the end of the warm-up to the end of `duration`; u = progress of that phase
(ramps.py). A key that ends in `_lr` is an absolute rate, every other value is a factor of eta0 or a count of steps.

During the warm-up, t < W, every schedule is eta0 * rise(u(t)), with the rise `warmup_shape` and the edge `warmup_edge`.
"""

from typing import Annotated, Literal, Union

import numpy as np
from pydantic import Field, model_validator

from runner.schedules.ramps import RISE, Array, Edge, Shape, progress
from runner.schedules.units import Clock, Duration
from runner.section import Count, NonNegative, Positive, Section


class _Schedule(Section):
    warmup: Duration
    warmup_shape: Shape
    warmup_edge: Edge

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        """eta(t) for an array of steps t  # int64[n] -> float64[n]"""
        num_warmup = clock.steps(self.warmup)
        eta = np.broadcast_to(self.after_warmup(np.maximum(t - num_warmup, 0), num_warmup, clock, lr), t.shape)
        if num_warmup == 0:
            return eta
        rise = lr * RISE[self.warmup_shape](progress(t, num_warmup, self.warmup_edge))
        return np.where(t < num_warmup, rise, eta)

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        raise AssertionError("each schedule has its own closed form")


class _Ending(_Schedule):
    """A schedule that reaches its last value when `duration` (counted from step 0) is over, and then holds it."""

    duration: Duration
    edge: Edge

    def progress(self, tau: Array, num_warmup: int, clock: Clock) -> Array:
        return progress(tau, max(clock.steps(self.duration) - num_warmup, 0), self.edge)


class Constant(_Schedule):
    """eta(t) = eta0.

    torch: no scheduler at all; its ConstantLR is not constant (a factor for the first `total_iters` steps).
    """

    name: Literal["constant"]

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        return np.full(tau.shape, lr)


class Exponential(_Schedule):
    """eta(t) = eta0 * r^(tau / s), or eta0 * r^floor(tau / s) with `staircase`; r = `decay_rate`, s = `decay_steps`.

    Keras: ExponentialDecay(eta0, decay_steps=s, decay_rate=r, staircase). torch: ExponentialLR(gamma = r^(1/s)).
    """

    name: Literal["exponential"]
    decay_rate: Positive
    decay_steps: Count
    staircase: bool

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        periods = tau // self.decay_steps if self.staircase else tau / self.decay_steps
        return lr * np.power(self.decay_rate, periods, dtype=np.float64)


class Linear(_Ending):
    """eta(t) = eta0 + u * (eta_f - eta0), eta_f = `final_lr`.

    torch: LinearLR(start_factor=1, end_factor=eta_f/eta0, total_iters=N). Keras: PolynomialDecay with power 1.
    """

    name: Literal["linear"]
    final_lr: NonNegative

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        u = self.progress(tau, num_warmup, clock)
        return (1 - u) * lr + u * self.final_lr


class Step(_Schedule):
    """eta(t) = eta0 * r^floor(tau / s); r = `decay_rate`, s = `step_size` in steps. torch: StepLR(step_size=s, gamma=r)."""

    name: Literal["step"]
    decay_rate: Positive
    step_size: Count

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        return lr * np.power(self.decay_rate, tau // self.step_size, dtype=np.float64)


class Polynomial(_Ending):
    """eta(t) = (eta0 - eta_f) * (1 - u)^p + eta_f; p = `power`, eta_f = `final_lr`.

    torch: PolynomialLR(total_iters=N, power=p), eta_f = 0. Keras: PolynomialDecay(eta0, N, eta_f, p), cycle=False.
    """

    name: Literal["polynomial"]
    power: Positive
    final_lr: NonNegative

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        fall = np.power(1 - self.progress(tau, num_warmup, clock), self.power)
        return (lr - self.final_lr) * fall + self.final_lr


class Cosine(_Ending):
    """eta(t) = eta_f + (eta0 - eta_f) * (1 + cos(pi u)) / 2, eta_f = `final_lr`.

    Loshchilov and Hutter, SGDR (2017), equation 5, one cycle. torch: CosineAnnealingLR(T_max=N, eta_min=eta_f) up to its
    end, where torch climbs again and this holds. Keras: CosineDecay(eta0, N, alpha=eta_f/eta0).
    """

    name: Literal["cosine"]
    final_lr: NonNegative

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        fall = 1 - RISE["cosine"](self.progress(tau, num_warmup, clock))
        return (lr - self.final_lr) * fall + self.final_lr


class Piecewise(_Schedule):
    """eta(t) = eta0 * f_i, i = the number of `boundaries` b with t >= b; one more of `factors` f than boundaries.

    Boundaries are counted from step 0, warm-up included. torch: MultiStepLR(milestones, gamma) with factors 1, gamma,
    gamma^2, ... Keras's PiecewiseConstantDecay switches one step later (t > b).
    """

    name: Literal["piecewise"]
    boundaries: list[Duration]
    factors: list[NonNegative]

    @model_validator(mode="after")
    def _fits(self) -> "Piecewise":
        if len(self.factors) != len(self.boundaries) + 1:
            raise ValueError(
                f"one more of factors than of boundaries, got {len(self.factors)} and {len(self.boundaries)}"
            )
        return self

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        boundaries = [clock.steps(boundary) for boundary in self.boundaries]
        if boundaries != sorted(boundaries):
            raise ValueError(f"boundaries must rise, got {boundaries} steps")
        interval = np.searchsorted(boundaries, tau + num_warmup, side="right")
        return lr * np.asarray(self.factors, dtype=np.float64)[interval]


Schedule = Annotated[
    Union[Constant, Exponential, Linear, Step, Polynomial, Cosine, Piecewise], Field(discriminator="name")
]
