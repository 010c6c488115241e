"""The law of the training loss as a functional of the learning rates, fitted to recorded runs.

Tissue et al. 2024, "Scaling Law with Learning Rate Annealing", equation 1:

    L(t) = L0 + A S1(t)^-alpha - C S2(t)
    S1(t) = sum of eta(i) for i <= t
    S2(t) = sum of m(i) for i <= t,  m(i) = lambda m(i - 1) + eta(i - 1) - eta(i),  m(0) = 0

S1 is the distance that was travelled, S2 the area of the annealing. L0, A and C are >= 0; alpha > 0
and 0 < lambda < 1, here as the memory tau = 1 / (1 - lambda) in updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BLOCKS = 64  # the most means of losses of a run that the law is fitted to
_SHORTEST = 8  # updates of a block
_FEWEST_EPOCHS = 12  # of a run with blocks of whole epochs
_SKIPPED = 0.05  # of a run at its beginning, which the law does not describe
_HELD_OUT = 0.75  # where the stretch of a run begins that a fit must predict
_RESAMPLES = 24
# the quantile of a normal distribution that bounds 80 % on both sides
_Z = 1.2816


@dataclass(frozen=True)
class Trace:
    """A recorded run: the rate and the loss of every update.  # float64[T] each"""

    name: str
    rates: np.ndarray
    losses: np.ndarray
    block: int  # updates of a block

    @property
    def edges(self) -> np.ndarray:
        """The first updates of the blocks, and the end of the last one.  # int64[n + 1]"""
        total = len(self.rates)
        first = max(self.block, round(_SKIPPED * total))
        num = (total - first) // self.block
        return total - self.block * np.arange(num, -1, -1)


def block_length(num_steps: int, steps_per_epoch: int) -> int:
    """Choose the updates of a block. The mean loss of whole epochs has no noise from the choice of
    the rows; a run with few epochs has shorter blocks."""
    shortest = max(_SHORTEST, -(-num_steps // _BLOCKS))
    if num_steps < _FEWEST_EPOCHS * steps_per_epoch:
        return shortest
    return steps_per_epoch * -(-shortest // steps_per_epoch)


@dataclass(frozen=True)
class Law:
    """The law with its five numbers."""

    floor: float  # L0
    scale: float  # A
    alpha: float
    gain: float  # C
    memory: float  # tau
    block: int  # updates over which the losses are means

    def losses(self, rates: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Return the mean loss of each block of updates.  # float64[n]"""
        columns = _columns(rates, edges, self.alpha, self.memory)
        predicted: np.ndarray = columns @ [self.floor, self.scale, self.gain]
        return predicted

    def final(self, rates: np.ndarray) -> float:
        """Return the mean loss of the last block of a run with these rates."""
        edges = np.array([len(rates) - self.block, len(rates)])
        return float(self.losses(rates, edges)[0])


@dataclass(frozen=True)
class HeldOut:
    """The error with which the other runs and a run's beginning predict its last quarter."""

    name: str
    error: float  # mean of |predicted / recorded - 1| over the blocks
    bias: float  # predicted / recorded - 1, of the mean over the blocks


@dataclass(frozen=True)
class Prediction:
    value: float
    low: float  # 80 % interval
    high: float


def _columns(rates: np.ndarray, edges: np.ndarray, alpha: float, memory: float) -> np.ndarray:
    """Return what L0, A and C multiply, averaged over blocks.  # float64[n, 3]"""
    from scipy.signal import lfilter

    travelled = np.cumsum(rates)
    steps = -np.diff(rates, prepend=rates[0])
    annealed = np.cumsum(lfilter([1.0], [1.0, -(1.0 - 1.0 / memory)], steps))
    powers = np.maximum(travelled, 1e-300) ** -alpha
    return np.stack(
        [np.ones(len(edges) - 1), _means(powers, edges), -_means(annealed, edges)], axis=1
    )


def _means(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    sums = np.add.reduceat(values[: edges[-1]], edges[:-1])
    means: np.ndarray = sums / np.diff(edges)
    return means


# a run's rates, the edges of its blocks, and their mean losses
Blocks = tuple[np.ndarray, np.ndarray, np.ndarray]


def blocks(trace: Trace, share: float = 1.0) -> Blocks:
    """Return the blocks of the first `share` of a run."""
    edges = trace.edges
    kept = edges[: max(3, round(share * (len(edges) - 1))) + 1]
    return trace.rates, kept, _means(trace.losses, kept)


def fit(runs: Sequence[Blocks], start: Law | None = None) -> Law:
    """Fit the law to blocks by least squares of relative errors: L0, A and C exactly (non-negative
    least squares), alpha and tau by Nelder and Mead's simplex from several starts, or from
    `start`."""
    from scipy.optimize import minimize, nnls

    longest = max(len(rates) for rates, _, _ in runs)
    targets = np.concatenate([losses for _, _, losses in runs])

    def solve(alpha: float, memory: float) -> tuple[np.ndarray, float]:
        columns = np.concatenate([_columns(r, edges, alpha, memory) for r, edges, _ in runs])
        scaled = columns / targets[:, None]
        norms = np.maximum(np.abs(scaled).max(axis=0), 1e-300)
        solution, residual = nnls(scaled / norms, np.ones(len(targets)))
        return solution / norms, residual

    def numbers(point: np.ndarray) -> tuple[float, float]:
        limits = np.clip(point, np.log([0.02, 2.0]), np.log([3.0, float(longest)]))
        alpha, memory = np.exp(limits)
        return float(alpha), float(memory)

    starts = [(a, longest / m) for a in (0.2, 0.8) for m in (50, 8)]
    if start is not None:
        starts = [(start.alpha, start.memory)]
    found = [
        minimize(
            lambda point: solve(*numbers(point))[1],
            np.log(first),
            method="Nelder-Mead",
            options={"xatol": 1e-2, "fatol": 1e-6, "maxfev": 60},
        )
        for first in starts
    ]
    alpha, memory = numbers(min(found, key=lambda each: each.fun).x)
    (floor, scale, gain), _ = solve(alpha, memory)
    block = int(runs[0][1][-1] - runs[0][1][-2])
    return Law(float(floor), float(scale), alpha, float(gain), memory, block)


def held_out(traces: Sequence[Trace]) -> list[HeldOut]:
    """Predict the last quarter of each run by the other runs and the run's own beginning."""
    errors = []
    for i, trace in enumerate(traces):
        known = [blocks(each, _HELD_OUT if i == j else 1.0) for j, each in enumerate(traces)]
        law, (rates, edges, losses) = fit(known), blocks(trace)
        begin = len(known[i][2])
        predicted = law.losses(rates, edges)[begin:]
        ratios = predicted / losses[begin:] - 1
        bias = predicted.mean() / losses[begin:].mean() - 1
        errors.append(HeldOut(trace.name, float(np.abs(ratios).mean()), float(bias)))
    return errors


def resampled(traces: Sequence[Trace], law: Law, seed: int = 0) -> list[Law]:
    """Fit the law again to the fitted losses with relative residuals that are drawn in runs of four
    neighbouring blocks: neighbours are not independent (a moving-block bootstrap)."""
    random, laws, known = np.random.default_rng(seed), [], [blocks(each) for each in traces]
    fitted = [law.losses(rates, edges) for rates, edges, _ in known]
    for _ in range(_RESAMPLES):
        drawn = []
        for (rates, edges, losses), mean in zip(known, fitted, strict=True):
            residuals = losses / np.maximum(mean, 1e-300) - 1
            begins = random.integers(0, len(losses), -(-len(losses) // 4))
            rows = (begins[:, None] + np.arange(4)).ravel()[: len(losses)] % len(losses)
            drawn.append((rates, edges, np.maximum(mean * (1 + residuals[rows]), 1e-12)))
        laws.append(fit(drawn, law))
    return laws


def predict(
    rates: np.ndarray, law: Law, laws: Sequence[Law], errors: Sequence[HeldOut], times: float
) -> Prediction:
    """Predict the final loss of a run with these rates, with an 80 % interval. Its variance is that
    of the resampled fits, plus the mean square of the held-out errors, which grows with each
    doubling of the horizon, `times` the recorded one."""
    value = law.final(rates)
    spread = float(np.std([each.final(rates) for each in laws]))
    missed = float(np.sqrt(np.mean([each.bias**2 for each in errors])))
    model = abs(value) * missed * (1 + max(0.0, np.log2(times)))
    half = _Z * float(np.hypot(spread, model))
    return Prediction(value, value - half, value + half)


def best_shape(law: Law, num_steps: int, lr: float, num_phases: int = 8) -> list[float]:
    """Search the shape with the lowest final loss by the law: the factors at the ends of equal
    phases, between which the rate is linear. They fall from 1 and stay above 0.  # [num_phases]"""
    from scipy.optimize import minimize

    positions = np.linspace(0, 1, num_phases + 1)
    u = np.arange(num_steps) / num_steps

    def factors(point: np.ndarray) -> np.ndarray:
        shares = 1 / (1 + np.exp(-np.clip(point, -30, 30)))  # each in 0 ... 1, so they fall
        return np.concatenate([[1.0], np.cumprod(shares)])

    def loss(point: np.ndarray) -> float:
        return law.final(lr * np.interp(u, positions, factors(point)))

    options = {"maxfev": 1500, "xtol": 1e-3, "ftol": 1e-7}
    starts = (np.full(num_phases, 3.0), np.linspace(4.0, -2.0, num_phases))
    found = [minimize(loss, start, method="Powell", options=options) for start in starts]
    return [float(value) for value in factors(min(found, key=lambda each: each.fun).x)[1:]]
