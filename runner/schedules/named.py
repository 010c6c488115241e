"""The named schedules: eta(t), the rate that update t uses, as closed forms in float64.

Symbols: eta0 = `optimizer.lr`; t = number of applied updates, from 0; T = all updates of the run; W
= warm-up in steps; tau = t - W, the steps after the warm-up; N = steps from the end of the warm-up
to the end of `duration`; u = progress of that phase (ramps.py); eta_f = `final_lr`. Keys ending in
`_lr` are absolute rates, keys ending in `_steps` are counts; every other value is a factor of eta0,
a number without a unit, or a duration.

During the warm-up, t < W, every schedule is eta0 * rise(u(t)), with the shape `warmup_shape` and
the edge `warmup_edge`.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from runner.schedules import ramps
from runner.schedules.curve import Curve
from runner.schedules.cycles import cycles
from runner.schedules.ramps import Array, Edge, Shape, between, progress
from runner.schedules.units import Clock, Duration, Length, half_up
from runner.section import Count, NonNegative, Positive, Probability
from runner.section import Fraction as BelowOne


class _Warmed(Curve):
    warmup: Duration
    warmup_shape: Shape
    warmup_edge: Edge

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        num_warmup = clock.steps(self.warmup)
        eta = np.broadcast_to(
            self.after_warmup(np.maximum(t - num_warmup, 0), num_warmup, clock, lr), t.shape
        )
        if num_warmup == 0:
            return eta
        rise = ramps.rise(self.warmup_shape, progress(t, num_warmup, self.warmup_edge))
        return np.where(t < num_warmup, self.peak(num_warmup, clock, lr) * rise, eta)

    def peak(self, num_warmup: int, clock: Clock, lr: float) -> float:
        """The rate to which the warm-up rises."""
        return lr

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        raise AssertionError("each schedule has its own closed form")

    def spans(self, clock: Clock) -> dict[str, int]:
        return {"warmup": clock.steps(self.warmup)}


class _Ending(_Warmed):
    """A schedule from eta0 to `final_lr`. It ends after `duration`, counted from step 0, and then
    holds `final_lr`."""

    duration: Duration
    edge: Edge
    final_lr: NonNegative

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        u = progress(tau, max(clock.steps(self.duration) - num_warmup, 0), self.edge)
        return between(lr, self.final_lr, self.fall(u))

    def fall(self, u: Array) -> Array:
        """g(u), from 1 to 0: eta = eta_f + (eta0 - eta_f) g."""
        raise AssertionError("each schedule has its own")

    def spans(self, clock: Clock) -> dict[str, int]:
        return {**super().spans(clock), "duration": clock.steps(self.duration)}


class Constant(_Warmed):
    """eta(t) = eta0.

    torch: no scheduler (ConstantLR is not constant: it applies a factor for the first `total_iters`
    steps). Hugging Face: constant, constant_with_warmup. Composer: ConstantScheduler,
    ConstantWithWarmupScheduler.
    """

    name: Literal["constant"]

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        return np.full(tau.shape, lr)


class _Periodic(_Warmed):
    """A decay by periods of `decay_steps`, which has steps of this length with `staircase`."""

    decay_rate: NonNegative  # first, as in the YAML: messages list the keys in this order
    decay_steps: Count
    staircase: bool

    def periods(self, tau: Array) -> Array:
        """Return tau / s, or floor(tau / s) with `staircase`."""
        return tau // self.decay_steps if self.staircase else tau / self.decay_steps

    def spans(self, clock: Clock) -> dict[str, int]:
        warmup = super().spans(clock)
        return (
            {**warmup, "decay_steps": warmup["warmup"] + self.decay_steps}
            if self.staircase
            else warmup
        )


class Exponential(_Periodic):
    """eta(t) = eta0 * r^(tau / s), or eta0 * r^floor(tau / s) with `staircase`; r = `decay_rate`, s
    = `decay_steps`.

    Keras: ExponentialDecay(eta0, decay_steps=s, decay_rate=r, staircase). torch:
    ExponentialLR(gamma = r^(1/s)). Optax: exponential_decay(eta0, s, r).
    """

    name: Literal["exponential"]
    decay_rate: Positive

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        return lr * np.power(self.decay_rate, self.periods(tau), dtype=np.float64)


class Linear(_Ending):
    """eta(t) = eta0 + u * (eta_f - eta0).

    torch: LinearLR(start_factor=1, end_factor=eta_f/eta0, total_iters=N). Keras: PolynomialDecay
    with power 1. Optax: linear_schedule(eta0, eta_f, N). Hugging Face: linear.
    """

    name: Literal["linear"]

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        u = progress(tau, max(clock.steps(self.duration) - num_warmup, 0), self.edge)
        return (1 - u) * lr + u * self.final_lr


class Step(_Warmed):
    """eta(t) = eta0 * r^floor(tau / s); r = `decay_rate`, s = `step_size` in steps.

    torch: StepLR(step_size=s, gamma=r). timm: StepLRScheduler(decay_t=s, decay_rate=r). Paddle:
    StepDecay.
    """

    name: Literal["step"]
    decay_rate: Positive
    step_size: Count

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        return lr * np.power(self.decay_rate, tau // self.step_size, dtype=np.float64)

    def spans(self, clock: Clock) -> dict[str, int]:
        warmup = super().spans(clock)
        return {**warmup, "step_size": warmup["warmup"] + self.step_size}


class Polynomial(_Ending):
    """eta(t) = (eta0 - eta_f) * (1 - u)^p + eta_f; p = `power`.

    torch: PolynomialLR(total_iters=N, power=p), eta_f = 0. Keras: PolynomialDecay(eta0, N, eta_f,
    p), cycle=False. Optax: polynomial_schedule(eta0, eta_f, p, N).
    """

    name: Literal["polynomial"]
    power: Positive

    def fall(self, u: Array) -> Array:
        return ramps.polynomial(u, self.power)


class Cosine(_Ending):
    """eta(t) = eta_f + (eta0 - eta_f) * ((1 + cos(pi u)) / 2)^p; p = `exponent`.

    Loshchilov and Hutter, SGDR (2017), equation 5, one cycle, has p = 1. torch:
    CosineAnnealingLR(T_max=N, eta_min=eta_f) up to N; after that torch's rate rises again, while
    this one stays. Keras: CosineDecay(eta0, N, alpha=eta_f/eta0). Optax:
    cosine_decay_schedule(eta0, N, alpha=eta_f/eta0, exponent=p). Hugging Face: cosine,
    cosine_with_min_lr.
    """

    name: Literal["cosine"]
    exponent: Positive

    def fall(self, u: Array) -> Array:
        fall = ramps.cosine(u)
        return fall if self.exponent == 1 else np.power(fall, self.exponent)


class CosineRestarts(_Warmed):
    """eta(t) = eta_f + (eta0 - eta_f) d^i (1 + cos(pi k / P_i)) / 2 at step k of cycle i = 0, 1,
    ...

    Cycle i + 1 begins at b_(i+1) = half_up(P (1 + g + ... + g^i)) steps after the warm-up, P =
    `period`, g = `growth`; P_i = b_(i+1) - b_i; d = `decay`, eta_f = `final_lr`.

    Loshchilov and Hutter, SGDR (2017), equation 5. torch: CosineAnnealingWarmRestarts(T_0=P,
    T_mult=g, eta_min=eta_f). Keras: CosineDecayRestarts(eta0, P, t_mul=g, m_mul=d,
    alpha=eta_f/eta0); if g is not a whole number, a cycle in Keras may begin between two steps,
    while this one rounds. Optax: sgdr_decay_schedule.
    """

    name: Literal["cosine_restarts"]
    period: Length
    growth: Annotated[float, Field(ge=1)]
    decay: Annotated[float, Field(gt=0, le=1)]
    final_lr: NonNegative

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        cycle = cycles(clock.period(self.period), self.growth).at(tau)
        fall = np.power(self.decay, cycle.number, dtype=np.float64) * ramps.cosine(
            cycle.step / cycle.length
        )
        return between(lr, self.final_lr, fall)

    def spans(self, clock: Clock) -> dict[str, int]:
        warmup = super().spans(clock)
        return {**warmup, "period": warmup["warmup"] + half_up(clock.period(self.period))}

    def joints(self, clock: Clock) -> list[int]:
        warmup = clock.steps(self.warmup)
        return [
            warmup + b
            for b in cycles(clock.period(self.period), self.growth).begins(
                clock.total_steps - warmup
            )
        ]


class Piecewise(_Warmed):
    """eta(t) = eta0 * f_i, i = the number of `boundaries` b with t >= b; `factors` f has one item
    more than `boundaries`.

    Boundaries are counted from step 0, warm-up included. torch: MultiStepLR(milestones, gamma) with
    factors 1, gamma, gamma^2, ... Optax: piecewise_constant_schedule. Keras's
    PiecewiseConstantDecay switches one step later (t > b).
    """

    name: Literal["piecewise"]
    boundaries: list[Duration]
    factors: list[NonNegative]

    @model_validator(mode="after")
    def _fits(self) -> "Piecewise":
        if len(self.factors) != len(self.boundaries) + 1:
            raise ValueError(
                f"one more item in factors than in boundaries, got {len(self.factors)} and "
                f"{len(self.boundaries)}"
            )
        return self

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        boundaries = [clock.steps(boundary) for boundary in self.boundaries]
        if boundaries != sorted(boundaries):
            raise ValueError(f"boundaries must increase, got {boundaries} steps")
        interval = np.searchsorted(boundaries, tau + num_warmup, side="right")
        return lr * np.asarray(self.factors, dtype=np.float64)[interval]

    def spans(self, clock: Clock) -> dict[str, int]:
        boundaries = {
            f"boundaries[{i}]": clock.steps(boundary) for i, boundary in enumerate(self.boundaries)
        }
        return {**super().spans(clock), **boundaries}


class InverseTime(_Periodic):
    """eta(t) = eta0 / (1 + r tau / s), with `staircase` floor(tau / s); r = `decay_rate`, s =
    `decay_steps`.

    Robbins and Monro (1951) for a decay as 1/t. Keras: InverseTimeDecay(eta0, s, r, staircase).
    Paddle: InverseTimeDecay with s = 1.
    """

    name: Literal["inverse_time"]

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        return lr / (1 + self.decay_rate * self.periods(tau))


class InverseSqrt(_Warmed):
    """eta(t) = eta0 (1 + tau / c)^(-1/2), c = `scale` in steps.

    Zhai et al., Scaling Vision Transformers (2022), reciprocal square root. Hugging Face:
    inverse_sqrt with timescale c (by default W). fairseq: inverse_sqrt, c = W.
    """

    name: Literal["inverse_sqrt"]
    scale: Length

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        return lr / np.sqrt(1 + tau / _scale(self.scale, clock))


class Power(_Warmed):
    """eta(t) = eta0 (1 + tau / c)^(-p), c = `scale` in steps, p = `power`. p = 1/2 is inverse_sqrt,
    p = 1 is inverse_time.

    Shen et al., Power Scheduler (2024), for the power law. NeMo: InverseSquareRootAnnealing is p =
    1/2.
    """

    name: Literal["power"]
    scale: Length
    power: Positive

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        return lr * np.power(1 + tau / _scale(self.scale, clock), -self.power)


class Noam(Curve):
    """eta(t) = eta0 d^(-1/2) min((t + 1)^(-1/2), (t + 1) W^(-3/2)); d = `model_size`, W = `warmup`,
    at least one step.

    Vaswani et al., Attention is all you need (2017), equation 3, has eta0 = 1 and counts t + 1 from
    1; set optimizer.lr=1.0 for it. Paddle: NoamDecay(d, W, eta0); its first update has the rate 0.
    NeMo: NoamAnnealing.
    """

    name: Literal["noam"]
    model_size: Count
    warmup: Duration

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        num_warmup = max(1, clock.steps(self.warmup))
        rise, fall = (t + 1) * float(num_warmup) ** -1.5, np.power(t + 1.0, -0.5)
        return lr * self.model_size**-0.5 * np.minimum(fall, rise)

    def spans(self, clock: Clock) -> dict[str, int]:
        return {"warmup": clock.steps(self.warmup)}


class OneCycle(Curve):
    """eta(t) rises from eta0 f_1 to eta0 over t = 0 ... p, p = R - 1, falls to eta0 f_2 at t = N -
    1, and stays there.

    N = `duration`, R = `rise` in steps (a percentage refers to N), f_1 = `initial_factor`, f_2 =
    `final_factor`; rise and fall have the shape `shape`. If R is not whole, the peak lies between
    two steps.

    Smith and Topin, Super-convergence (2018). torch: OneCycleLR(max_lr=eta0, total_steps=N,
    pct_start=R/N, div_factor=1/f_1, final_div_factor=f_1/f_2, anneal_strategy="cos" or "linear").
    To cycle the momentum too, use `optimizer.schedules`. Unlike torch, a rise over no steps or all
    steps is allowed.
    """

    name: Literal["one_cycle"]
    initial_factor: Probability
    final_factor: Probability
    rise: Duration
    shape: Shape
    duration: Duration

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        end = max(1, clock.steps(self.duration)) - 1
        return lr * one_cycle(
            np.minimum(t, end),
            self._peak(clock),
            end,
            (self.initial_factor, 1.0, self.final_factor),
            getattr(ramps, self.shape),
        )

    def _peak(self, clock: Clock) -> float:
        return float(clock.within(clock.steps(self.duration), 0).exact(self.rise) - 1)

    def spans(self, clock: Clock) -> dict[str, int]:
        return {"duration": clock.steps(self.duration)}

    def joints(self, clock: Clock) -> list[int]:
        return [max(0, round(self._peak(clock))), *super().joints(clock)]


def one_cycle(
    t: Array, peak: float, end: float, values: tuple[float, float, float], fall: ramps.Fall
) -> Array:
    """Rise from values[0] at t = 0 to values[1] at t = peak, fall to values[2] at t = end, then
    hold. `fall` is the shape g(u), from 1 to 0."""
    initial, high, final = values
    up = np.clip(t / peak, 0.0, 1.0) if peak > 0 else np.ones(t.shape)
    down = np.clip((t - peak) / (end - peak), 0.0, 1.0) if end > peak else np.zeros(t.shape)
    return np.where(t <= peak, between(initial, high, fall(up)), between(high, final, fall(down)))


class Cyclic(Curve):
    """eta(t) = eta_m + (eta0 - eta_m) s(t) x; x rises from 0 to 1 over U = `up` steps and falls to
    0 over D = `down` steps.

    eta_m = `min_lr`; cycle c = floor(t / (U + D)); s = 1 in `mode` triangular, 2^(-c) in
    triangular2, r^t in exp_range with r = `decay_rate`.

    Smith, Cyclical learning rates (2017). torch: CyclicLR(base_lr=eta_m, max_lr=eta0, U, D, mode,
    gamma=r).
    """

    name: Literal["cyclic"]
    min_lr: NonNegative
    up: Length
    down: Length
    mode: Literal["triangular", "triangular2", "exp_range"]
    decay_rate: Positive

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        top, end = self._turns(clock)
        number, k = np.divmod(t, end)
        x = np.where(k <= top, k / top, (end - k) / (end - top))
        return self.min_lr + (lr - self.min_lr) * x * self._scale(number, t)

    def _turns(self, clock: Clock) -> tuple[int, int]:
        """U and U + D in steps; rise and fall take at least one step each."""
        _, top, end = clock.boundaries([self.up, self.down])
        top = max(top, 1)
        return top, max(end, top + 1)

    def _scale(self, number: Array, t: Array) -> Array | float:
        if self.mode == "triangular":
            return 1.0
        return (
            np.exp2(-1.0 * number)
            if self.mode == "triangular2"
            else np.power(self.decay_rate, 1.0 * t)
        )

    def spans(self, clock: Clock) -> dict[str, int]:
        top, end = self._turns(clock)
        return {"up": top, "down": end}

    def joints(self, clock: Clock) -> list[int]:
        top, end = self._turns(clock)
        begins = range(0, clock.total_steps + 1, end)
        return [step for begin in begins for step in (begin, begin + top)]


class WSD(_Warmed):
    """Warmup-stable-decay: eta0 from W to S = max(W, half_up(N - D)), then from eta0 to eta_f over
    the last D steps.

    N = `duration`, D = `decay`. The decay is eta_f + (eta0 - eta_f) g(u); `decay_shape` is linear,
    g = 1 - u; cosine, g = (1 + cos(pi u)) / 2; or 1-sqrt, g = 1 - sqrt(u). `edge` applies to the
    decay.

    Hu et al., MiniCPM (2024); Haegele et al. (2024), equation 2, for 1-sqrt. Hugging Face:
    warmup_stable_decay. torchtitan: edge=left, with one more step of decay. Zhai et al. (2022) call
    it cooldown; others call it trapezoid.
    """

    name: Literal["wsd"]
    decay: Duration
    decay_shape: Literal["linear", "cosine", "1-sqrt"]
    final_lr: NonNegative
    duration: Duration
    edge: Edge

    def after_warmup(self, tau: Array, num_warmup: int, clock: Clock, lr: float) -> Array:
        stay, end = self._decay(clock)
        u = np.where(
            tau + num_warmup < stay, 0.0, progress(tau + num_warmup - stay, end - stay, self.edge)
        )
        if self.decay_shape == "1-sqrt":
            fall = ramps.late(u, 0.5)
        else:
            fall = ramps.linear(u) if self.decay_shape == "linear" else ramps.cosine(u)
        return between(
            self.before_decay(np.minimum(tau + num_warmup, stay), clock, lr), self.final_lr, fall
        )

    def before_decay(self, t: Array, clock: Clock, lr: float) -> Array | float:
        """The rate between the warm-up and the decay."""
        return lr

    def _decay(self, clock: Clock) -> tuple[int, int]:
        """The steps where the decay begins and ends."""
        begin = half_up(clock.before(clock.exact(self.duration), self.decay))
        return max(clock.steps(self.warmup), begin), clock.steps(self.duration)

    def spans(self, clock: Clock) -> dict[str, int]:
        begin, end = self._decay(clock)
        return {**super().spans(clock), "decay": begin, "duration": end}


class PowerTokens(WSD):
    """eta(t) = min(eta0, a B n^b), n = t B s: the tokens before update t. B = rows of an update
    (micro-batches included), s = tokens of a row (1 for rows that are not sequences of tokens),
    a = `amplitude`, b = `exponent`. Over the last D steps, from this rate at S = max(W, half_up(N -
    D)) to eta_f, as in wsd. The warm-up rises to the rate of update W.

    The same keys fit other batch sizes and lengths of the run, since B and n are in the formula.

    Shen et al., Power Scheduler (2024): eta0 = 0.02, a = 4.6, b = -0.51, found for language models
    whose rates and first weights scale with the width.
    """

    name: Literal["power_tokens"]  # type: ignore[assignment]
    amplitude: Positive
    exponent: Annotated[float, Field(lt=0)]

    def before_decay(self, t: Array, clock: Clock, lr: float) -> Array | float:
        if not clock.epochs.are_equal:
            raise ValueError(
                "name: power_tokens needs one number of rows of all updates, and "
                "trainer.batch_size changes"
            )
        num_tokens = np.maximum(t, 0.5) * clock.rows_per_step * clock.tokens_per_row
        power = self.amplitude * clock.rows_per_step * np.power(num_tokens, self.exponent)
        return np.where(t > 0, np.minimum(lr, power), lr)

    def peak(self, num_warmup: int, clock: Clock, lr: float) -> float:
        return float(self.before_decay(np.array(num_warmup), clock, lr))


class TriStage(Curve):
    """Rises from eta0 f_1 to eta0 over W = `warmup`, is eta0 over H = `hold`, and falls as eta0
    f_2^u over D = `decay`; then eta0 f_2.

    f_1 = `initial_factor`, f_2 = `final_factor`. The rise is linear with `warmup_edge`, the fall
    geometric with `edge`. The boundaries of the stages are rounded, so that the stages add up.

    Park et al., SpecAugment (2019), section 4.2. fairseq: tri_stage with phase_ratio,
    init_lr_scale, final_lr_scale.
    """

    name: Literal["tri_stage"]
    initial_factor: Probability
    final_factor: Positive
    warmup: Duration
    hold: Duration
    decay: Duration
    warmup_edge: Edge
    edge: Edge

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        _, top, begin, end = clock.boundaries([self.warmup, self.hold, self.decay])
        up = between(self.initial_factor, 1.0, 1 - progress(t, top, self.warmup_edge))
        down = ramps.geometric(
            progress(np.maximum(t - begin, 0), end - begin, self.edge), 1.0, self.final_factor
        )
        return lr * np.where(t < top, up, np.where(t < begin, 1.0, down))

    def spans(self, clock: Clock) -> dict[str, int]:
        _, top, begin, end = clock.boundaries([self.warmup, self.hold, self.decay])
        return {"warmup": top, "hold": begin, "decay": end}


class Rex(_Ending):
    """eta(t) = eta_f + (eta0 - eta_f) z / ((1 - d) + d z), z = 1 - u; d = `bend` in [0, 1).

    Chen, Wolfe and Kyrillidis, REX (2022), with d = 1/2. d = 0 is linear; a larger d falls later.
    """

    name: Literal["rex"]
    bend: BelowOne

    def fall(self, u: Array) -> Array:
        return ramps.rex(u, self.bend)


class Tanh(_Ending):
    """eta(t) = eta_f + (eta0 - eta_f) (1 - tanh(a (1 - u) + b u)) / 2; a = `lower`, b = `upper`.

    Hsueh, Li and Wu, Stochastic gradient descent with hyperbolic-tangent decay (2019). timm:
    TanhLRScheduler(N, lb=a, ub=b, lr_min=eta_f), except that its update 0 uses exactly eta0. This
    one begins slightly below eta0 and ends slightly above eta_f.
    """

    name: Literal["tanh"]
    lower: float
    upper: float

    def fall(self, u: Array) -> Array:
        return ramps.tanh(u, self.lower, self.upper)


class RangeTest(Curve):
    """eta(t) = eta_a (eta_b / eta_a)^u, or with `shape` linear eta_a + (eta_b - eta_a) u.
    `optimizer.lr` is not used.

    eta_a = `initial_lr`, eta_b = `final_lr`; u is the progress over `duration` with `edge`. For an
    LR range test, Smith (2017), section 3.3: compare the loss at each rate (task=find_lr).
    Lightning: Tuner.lr_find, with u = (t + 1) / N.
    """

    name: Literal["range_test"]
    initial_lr: Positive
    final_lr: Positive
    shape: Literal["geometric", "linear"]
    duration: Duration
    edge: Edge

    def rates(self, t: Array, clock: Clock, lr: float) -> Array:
        u = progress(t, clock.steps(self.duration), self.edge)
        if self.shape == "geometric":
            return ramps.geometric(u, self.initial_lr, self.final_lr)
        return (1 - u) * self.initial_lr + u * self.final_lr

    def spans(self, clock: Clock) -> dict[str, int]:
        return {"duration": clock.steps(self.duration)}


def _scale(duration: str, clock: Clock) -> float:
    """The scale in steps. It is not rounded, since it is only a divisor."""
    return float(clock.exact(duration))


NAMED = (
    Constant, Exponential, Linear, Step, Polynomial, Cosine, CosineRestarts, Piecewise, InverseTime,
    InverseSqrt, Power,
    Noam, OneCycle, Cyclic, WSD, PowerTokens, TriStage, Rex, Tanh, RangeTest,
)  # fmt: skip
