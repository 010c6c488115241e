"""Fit a law of the training loss to recorded runs, check it on what was held out, and predict.

Runs of one seed have the same rows at the same updates, so their losses have noise in common. With
y the logarithm of the mean loss of block b of run r, which has seed s:

    y(r, b) = log L(r, b) + shared(s, b) + own(r, b)

The variances of both terms follow from the residuals, and the fit weighs the residuals by them
(generalized least squares; runs of one seed have correlated residuals in a block).
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runner.report.laws import KINDS, LEAST, Kind, Law, Path, Unit, bounds, evaluate, starts

_BLOCKS = 64  # the most means of losses of a run that the law is fitted to
_SHORTEST = 8  # updates of a block
_FEWEST_EPOCHS = 12  # of a run with blocks of whole epochs
_SKIPPED = 0.1  # of a run at its beginning, which the laws do not describe
_HELD_OUT = 0.75  # where the stretch of a run begins that a fit must predict
_RESAMPLES = 24
_NEIGHBOURS = 4  # blocks that are drawn together
_HUBER = 0.01  # residuals of the logarithm from here on count linearly, not squared
_ROUNDS = 2  # of estimates of the noise
_BUMP = 0.05  # standard deviation of c, the logarithm of a bump of the shape, before the fit
_PROBABILITY = 0.9  # below the upper end of an 80 % interval


@dataclass(frozen=True)
class Trace:
    """A recorded run: the rate and the loss of every update.  # float64[T] each"""

    name: str
    rates: np.ndarray
    losses: np.ndarray
    block: int  # updates of a block
    lr: float  # the base rate, of all runs
    seed: Hashable = 0  # runs of one seed have the same rows at each update

    @property
    def edges(self) -> np.ndarray:
        """The first updates of the blocks, and the end of the last one.  # int64[n + 1]"""
        total = len(self.rates)
        first = max(self.block, round(_SKIPPED * total))
        num = (total - first) // self.block
        return total - self.block * np.arange(num, -1, -1)

    @property
    def key(self) -> bytes:
        """Equal for runs with the same rates."""
        return self.rates.tobytes()


def block_length(num_steps: int, steps_per_epoch: int) -> int:
    """Choose the updates of a block. The mean loss of whole epochs has no noise from the choice of
    the rows; a run with few epochs has shorter blocks."""
    shortest = max(_SHORTEST, -(-num_steps // _BLOCKS))
    if num_steps < _FEWEST_EPOCHS * steps_per_epoch:
        return shortest
    return steps_per_epoch * -(-shortest // steps_per_epoch)


@dataclass(frozen=True)
class HeldOut:
    """The error with which a fit to other runs predicts a schedule, or its last quarter."""

    name: str
    error: float  # mean of |predicted / recorded - 1| over the blocks
    bias: float  # predicted / recorded - 1, of the mean over the blocks


@dataclass(frozen=True)
class Prediction:
    value: float
    low: float  # 80 % interval, cut off at 0
    high: float

    @property
    def is_loss(self) -> bool:
        """False where the law falls to 0 or below, which no training loss does."""
        return self.value > 0


@dataclass(frozen=True)
class Blocks:
    """Neighbouring blocks of a run: their edges, and the logarithms of their mean losses."""

    trace: Trace
    edges: np.ndarray  # int64[n + 1]
    logs: np.ndarray  # float64[n]

    @property
    def places(self) -> list[Hashable]:
        """The keys of the rows of each block: equal for runs with the same rows.  # [n]"""
        return [(self.trace.seed, len(self.trace.rates), int(edge)) for edge in self.edges[:-1]]

    @property
    def key(self) -> Hashable:
        """Equal for the same blocks of runs with the same rates."""
        return self.trace.key, len(self.edges), int(self.edges[0])


def blocks(trace: Trace, begin: float = 0.0, end: float = 1.0) -> Blocks:
    """Return the blocks of a run from one share of them to another."""
    edges = trace.edges
    first, last = (round(share * (len(edges) - 1)) for share in (begin, end))
    kept = edges[first : last + 1]
    sums = np.add.reduceat(trace.losses[: kept[-1]], kept[:-1])
    return Blocks(trace, kept, np.log(sums / np.diff(kept)))


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the logarithm of a block's loss, and the part that runs share."""

    own: float
    shared: float
    effects: Mapping[Hashable, float]  # place -> what its rows add to the logarithm

    def of(self, places: Iterable[Hashable]) -> np.ndarray:
        """Return what the rows of these blocks add; 0 where no run was seen.  # float64[n]"""
        return np.array([self.effects.get(place, 0.0) for place in places])


@dataclass(frozen=True)
class Fit:
    law: Law
    noise: Noise


class _Problem:
    """The residuals of a law in the blocks of several runs.

    N rows are the blocks of all runs, M places those that differ in seed or update.
    """

    def __init__(self, kind: Kind, runs: Sequence[Blocks], unit: Unit) -> None:
        self.kind, self.places = kind, list(dict.fromkeys(p for run in runs for p in run.places))
        numbers = {place: i for i, place in enumerate(self.places)}
        self.ids = np.array([numbers[place] for run in runs for place in run.places])  # [N]
        self.counts = np.bincount(self.ids)  # [M]
        self.logs = np.concatenate([run.logs for run in runs]) - np.log(unit.loss)  # [N]
        keys = [run.key for run in runs]
        distinct = dict(zip(keys, runs, strict=True))
        self.paths = [Path.of(run.trace.rates, run.edges, unit) for run in distinct.values()]
        ends = np.cumsum([0, *(len(run.logs) for run in distinct.values())])
        begins = dict(zip(distinct, ends[:-1], strict=True))
        self.rows = np.concatenate(  # of each block among those of the distinct runs
            [begins[key] + np.arange(len(run.logs)) for key, run in zip(keys, runs, strict=True)]
        )
        self.weights = np.zeros(len(self.places))  # 1 - own deviation / deviation of the mean
        self.own = _HUBER  # deviation of a residual, until the noise is known

    def raw(self, point: np.ndarray) -> np.ndarray:
        """Return log(predicted / recorded).  # float64[N]"""
        losses = np.concatenate([evaluate(self.kind, point, path)[0] for path in self.paths])
        return np.log(np.maximum(losses, LEAST))[self.rows] - self.logs

    def residuals(self, point: np.ndarray) -> np.ndarray:
        """Return the weighed residuals, and one for each bump: it is small a priori.  # [N + J]"""
        return np.append(self._weighed(self.raw(point)), self._prior(len(point)) @ point)

    def _prior(self, num: int) -> np.ndarray:
        """Return the rows of the bumps, which are the last numbers of a point.  # [J, p]"""
        rows = np.eye(num)[num - self.kind.num_bumps :]
        return np.asarray(self.own / _BUMP * rows)

    def slopes(self, point: np.ndarray) -> np.ndarray:
        """Return the derivatives of the residuals.  # float64[N + J, p]"""
        found = [evaluate(self.kind, point, path) for path in self.paths]
        losses = np.concatenate([loss for loss, _ in found])[:, None]
        relative = np.concatenate([slope for _, slope in found]) / np.maximum(losses, LEAST)
        own = self._weighed(np.where(losses > LEAST, relative, 0.0)[self.rows])
        return np.concatenate([own, self._prior(len(point))])

    def _weighed(self, values: np.ndarray) -> np.ndarray:
        """Reduce the mean of each place's rows: it has the shared noise.  # [N] or [N, p]"""
        columns = values.reshape(len(values), -1)
        means = np.stack([self._means(column) for column in columns.T], axis=1)
        return (columns - (self.weights[:, None] * means)[self.ids]).reshape(values.shape)

    def _means(self, values: np.ndarray) -> np.ndarray:
        means: np.ndarray = np.bincount(self.ids, values) / self.counts
        return means

    def noise(self, point: np.ndarray) -> Noise:
        """Estimate both variances by the residuals within and between places."""
        raw = self.raw(point)
        means, several = self._means(raw), self.counts > 1
        own, shared = max(float(raw.var()), 1e-12), 0.0  # where each place has one row
        if several.any():
            free = max(int((self.counts - 1).sum()) - len(point), 1)
            own = max(float(((raw - means[self.ids]) ** 2).sum()) / free, 1e-12)
            shared = max(float((means**2 - own / self.counts)[several].mean()), 0.0)
        shares = self.counts * shared / (own + self.counts * shared)
        return Noise(
            own**0.5, shared**0.5, dict(zip(self.places, (-shares * means).tolist(), strict=True))
        )

    def weigh(self, noise: Noise) -> None:
        """Take the correlation within a place from the noise."""
        whole = noise.own**2 + self.counts * noise.shared**2
        self.weights = 1 - noise.own / np.sqrt(whole)
        self.own = noise.own

    def solve(self, begins: Sequence[np.ndarray], rounds: int) -> np.ndarray:
        """Return the point with the least sum of Huber's losses, from the best of the begins."""
        from scipy.optimize import least_squares

        low, high = bounds(self.kind)
        found = [
            least_squares(
                self.residuals,
                np.clip(begin, low + 1e-6, high - 1e-6),
                jac=self.slopes,
                bounds=(low, high),
                x_scale="jac",
                loss="huber",
                f_scale=_HUBER,
                ftol=1e-6,
                xtol=1e-6,
                max_nfev=rounds,
            )
            for begin in begins
        ]
        ranked = sorted(found, key=lambda each: each.cost)
        if len(begins) > 2:
            return self.solve([each.x for each in ranked[:2]], 80)
        point: np.ndarray = ranked[0].x
        return point


def _unit(runs: Sequence[Blocks]) -> Unit:
    """Return the base rate, the most updates of a run, and the geometric mean of the losses."""
    num_steps = max(len(run.trace.rates) for run in runs)
    loss = float(np.exp(np.concatenate([run.logs for run in runs]).mean()))
    return Unit(runs[0].trace.lr, num_steps, loss)


def fit(runs: Sequence[Blocks], kind: Kind, start: Fit | None = None) -> Fit:
    """Fit a law to blocks by least squares of the logarithms with Huber's loss, from several
    starts, or from the numbers and the noise of `start`."""
    trace, unit = runs[0].trace, _unit(runs) if start is None else start.law.unit
    problem = _Problem(kind, runs, unit)
    if start is None:
        point = problem.solve(starts(kind, float(np.exp(problem.logs.min()))), 12)
        for _ in range(_ROUNDS):
            problem.weigh(problem.noise(point))
            point = problem.solve([point], 80)
    else:
        problem.weigh(start.noise)
        point = problem.solve([start.law.point], 20)
    return Fit(Law(kind, point, unit, trace.block), problem.noise(point))


def _missed(name: str, fitted: Fit, hidden: Sequence[Blocks]) -> HeldOut:
    """Compare the losses of hidden blocks with those that a fit predicts."""
    first = hidden[0]
    law = fitted.law.logs(first.trace.rates, first.edges)
    ratios = np.stack([np.exp(law + fitted.noise.of(run.places) - run.logs) for run in hidden])
    means = np.stack([np.exp(run.logs) for run in hidden])
    bias = float((ratios * means).sum() / means.sum() - 1)
    return HeldOut(name, float(np.abs(ratios.mean(axis=0) - 1).mean()), bias)


def _schedules(traces: Sequence[Trace]) -> list[list[Trace]]:
    """Divide runs by their rates."""
    divided: dict[bytes, list[Trace]] = {}
    for trace in traces:
        divided.setdefault(trace.key, []).append(trace)
    return list(divided.values())


def held_out(traces: Sequence[Trace], kind: Kind) -> list[HeldOut]:
    """Predict the last quarter of each schedule by the others and its own beginning."""
    errors = []
    for own in _schedules(traces):
        key = own[0].key
        known = [blocks(each, end=_HELD_OUT if each.key == key else 1.0) for each in traces]
        hidden = [blocks(each, begin=_HELD_OUT) for each in own]
        errors.append(_missed(own[0].name, fit(known, kind), hidden))
    return errors


def left_out(traces: Sequence[Trace], kind: Kind) -> list[HeldOut]:
    """Predict the last block of each schedule by the others; empty if there are only two."""
    divided = _schedules(traces)
    if len(divided) < 3:
        return []
    errors = []
    for own in divided:
        known = [blocks(each) for each in traces if each.key != own[0].key]
        last = [_last(each) for each in own]
        errors.append(_missed(own[0].name, fit(known, kind), last))
    return errors


def _last(trace: Trace) -> Blocks:
    """Return the last block."""
    whole = blocks(trace)
    return Blocks(trace, whole.edges[-2:], whole.logs[-1:])


def seed_noise(traces: Sequence[Trace]) -> float | None:
    """Return the standard deviation of the logarithm of the final loss between seeds of a schedule,
    pooled over the schedules; None if none has two. Runs of one seed count as their mean."""
    finals = []
    for own in _schedules(traces):
        by_seed: dict[Hashable, list[float]] = {}
        for each in own:
            by_seed.setdefault(each.seed, []).append(float(_last(each).logs[0]))
        finals.append([np.mean(logs) for logs in by_seed.values()])
    free = sum(len(own) - 1 for own in finals)
    squares = sum(float(np.var(own)) * len(own) for own in finals)
    return (squares / free) ** 0.5 if free else None


def best_kind(traces: Sequence[Trace]) -> tuple[Kind, dict[str, list[HeldOut]]]:
    """Return the law with the least mean error on what was held out, and the errors of each; both
    have a shape there."""
    errors = {name: held_out(traces, kind.shaped) for name, kind in KINDS.items()}
    best = min(errors, key=lambda name: np.mean([each.error for each in errors[name]]))
    return KINDS[best], errors


def resampled(traces: Sequence[Trace], fitted: Fit, seed: int = 0) -> list[Law]:
    """Fit the law again to the fitted losses with residuals that are drawn in runs of neighbouring
    blocks, the same for all runs: neighbours, and the runs of a seed, are not independent."""
    random, laws, known = np.random.default_rng(seed), [], [blocks(each) for each in traces]
    means = [fitted.law.logs(run.trace.rates, run.edges) for run in known]
    num = max(len(run.logs) for run in known)
    for _ in range(_RESAMPLES):
        begins = random.integers(0, num, -(-num // _NEIGHBOURS))
        rows = (begins[:, None] + np.arange(_NEIGHBOURS)).ravel()[:num]
        drawn = [
            replace(run, logs=mean + (run.logs - mean)[rows[: len(mean)] % len(mean)])
            for run, mean in zip(known, means, strict=True)
        ]
        laws.append(fit(drawn, fitted.law.kind, fitted).law)
    return laws


@dataclass(frozen=True)
class Forecast:
    """A fitted law with what its predictions are off by."""

    fitted: Fit
    laws: Sequence[Law]  # of the resampled residuals
    errors: Sequence[HeldOut]  # of left out schedules; with two schedules, of held-out stretches
    has_left_out: bool  # the errors are those of left out schedules
    seeds: Sequence[Hashable]
    longer: "Forecast | None" = None  # of the law without its shape; None: this has no shape

    @staticmethod
    def of(
        traces: Sequence[Trace], kind: Kind, held: Sequence[HeldOut], longer: Sequence[HeldOut]
    ) -> "Forecast":
        """Fit a law with its shape, and without it for runs that are longer than the recorded ones;
        `held` and `longer` are their errors on held-out stretches."""
        plain = Forecast._fitted(traces, kind, longer)
        return replace(Forecast._fitted(traces, kind.shaped, held), longer=plain)

    @staticmethod
    def _fitted(traces: Sequence[Trace], kind: Kind, held: Sequence[HeldOut]) -> "Forecast":
        fitted = fit([blocks(each) for each in traces], kind)
        errors, laws = left_out(traces, kind), resampled(traces, fitted)
        seeds = list(dict.fromkeys(each.seed for each in traces))
        return Forecast(fitted, laws, errors or held, bool(errors), seeds)

    def predict(self, rates: np.ndarray) -> Prediction:
        """Predict the final loss of a run with these rates, with an 80 % interval.

        The shape tells nothing of the way of a longer run, so the law without it predicts that. The
        variance is that of the resampled fits, plus the mean square of the errors, which grows
        with each doubling of the recorded length; Student's t has a degree of freedom for each
        error. A run of the recorded length has the rows of the recorded runs in its last block, and
        so the noise that runs share; of a longer one it is not known, and part of the variance.
        """
        if self.longer is not None and len(rates) > self.fitted.law.unit.num_steps:
            return self.longer.predict(rates)
        from scipy.special import stdtrit

        law, noise = self.fitted.law, self.fitted.noise
        last = len(rates) - law.block
        places = ((seed, len(rates), last) for seed in self.seeds)
        known = [noise.effects[place] for place in places if place in noise.effects]
        value = law.final(rates) * float(np.exp(np.mean(known) if known else 0.0))
        spread = float(np.std([each.final(rates) for each in self.laws]))
        missed = float(np.sqrt(np.mean([each.bias**2 for each in self.errors])))
        missed *= 1 + max(0.0, np.log2(len(rates) / law.unit.num_steps))
        rows = 0.0 if known else noise.shared
        half = stdtrit(len(self.errors), _PROBABILITY)
        half *= float(np.hypot(spread, abs(value) * np.hypot(missed, rows)))
        low = value - half
        return Prediction(value, float(max(low, 0.0) if value > 0 else low), float(value + half))


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
