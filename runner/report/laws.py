"""Laws of the training loss as a functional of the learning rates.

    L(t) = (L0 + A S1(t)^-alpha - B sum of d(k) G(k, t) over k <= t) M(S1(t))

S1(t) is the sum of h(eta(i)) for i <= t, the way that the rates eta(i) make, and
d(k) = eta(k - 1) - eta(k) a decrease of the rate. Its gain G goes from 0 to 1 after it; the laws
differ in G. Rates that rise at the beginning of a run count in S1, but not in d.

h(eta) = eta (1 + kappa) / (1 + kappa eta / lr), so h(lr) = lr for the base rate lr. The papers have
kappa = 0, where the way is the sum of the rates. For kappa > 0 it saturates: twice the rate makes
less than twice the way. Adam at a high rate does so.

M(S1) = exp(sum of c(j) exp(-(log S1 - z(j))^2 / (2 w^2))), with J places z(j) at equal distances w,
is the shape: what a power law leaves of the dependence on S1. J is 0 in the papers, where M = 1.
It tells nothing of an S1 that no run has reached.

annealing    Tissue et al. 2024, "Scaling Law with Learning Rate Annealing", equation 1:
             G(k, t) = 1 - exp(-(t - k + 1) / tau). Their lambda is exp(-1 / tau), and their C is
             B (1 - lambda).
multi_power  Luo et al. 2025, "A Multi-Power Law for Loss Curve Prediction Across Learning Rate
             Schedules": G(k, t) = 1 - (1 + C eta(k)^-gamma S_k(t))^-beta, where S_k(t) is the sum
             of the rates from update k to t.

All numbers of a law but c are >= 0. Letters: n blocks of updates, m cells of updates, K decreases,
J bumps of the shape, p numbers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

_CELLS = 96  # the most decreases of a run that are told apart; neighbours are merged
_RATES = 2048  # the most rates of a run that are told apart; those of a cell have their mean
_BUMPS = 6  # of a shape
_TINY = 1e-12
LEAST = 1e-12  # of a loss in a fit's unit, for its logarithm


@dataclass(frozen=True)
class Unit:
    """The units of a fit: rates are divided by `lr`, updates by `num_steps`, losses by `loss`."""

    lr: float
    num_steps: int
    loss: float


@dataclass(frozen=True)
class Path:
    """A run's rates as the laws read them: at the middle of each block, in a fit's units."""

    middles: np.ndarray  # updates  # float64[n]
    cells: np.ndarray  # the last update of each cell  # int64[m]
    rates: np.ndarray  # the mean rate of a cell  # float64[m]
    shares: np.ndarray  # the cell's updates, over those of the unit  # float64[m]
    drops: np.ndarray  # d  # float64[K]
    log_rates: np.ndarray  # log eta after the decrease  # float64[K]
    gone: np.ndarray  # S_k, 0 before the decrease  # float64[n, K]
    ages: np.ndarray  # updates since the decrease, 0 before it  # float64[n, K]

    def travelled(self, kappa: float) -> tuple[np.ndarray, np.ndarray]:
        """Return S1 and its derivative by log kappa.  # float64[n] each"""
        below = 1 + kappa * self.rates
        way = self.rates * (1 + kappa) / below
        slope = kappa * self.rates * (1 - self.rates) / below**2
        sums = (
            np.interp(self.middles, self.cells, np.cumsum(each * self.shares))
            for each in (way, slope)
        )
        found, by_kappa = sums
        return np.maximum(found, _TINY), by_kappa

    @staticmethod
    def of(rates: np.ndarray, edges: np.ndarray, unit: Unit) -> "Path":
        """Read rates at the blocks between edges.  # rates [T], edges [n + 1]"""
        eta, middles = rates / unit.lr, (edges[:-1] + edges[1:] - 1) / 2
        steps = np.arange(len(eta))
        begins = np.arange(0, len(eta), -(-len(eta) // _RATES))
        sizes = np.diff(begins, append=len(eta))
        own = begins + sizes - 1, np.add.reduceat(eta, begins) / sizes, sizes / unit.num_steps
        sums = np.cumsum(eta) / unit.num_steps
        drops = -np.diff(eta, prepend=eta[0])
        falls = np.flatnonzero(drops > _TINY)
        drops[: falls[0] if len(falls) else None] = 0.0  # the warm-up
        at = np.flatnonzero(np.abs(drops) > _TINY)
        if not len(at):
            none = np.zeros((len(middles), 0))
            return Path(middles, *own, np.zeros(0), np.zeros(0), none, none)
        merged = np.arange(0, len(at), -(-len(at) // _CELLS))
        weights = np.abs(drops[at])

        def mean(values: np.ndarray) -> np.ndarray:
            added: np.ndarray = np.add.reduceat(weights * values, merged)
            return added / np.add.reduceat(weights, merged)

        plain = np.interp(middles, steps, sums)[:, None]
        return Path(
            middles,
            *own,
            np.add.reduceat(drops[at], merged),
            np.log(np.maximum(mean(eta[at]), _TINY)),
            np.maximum(plain - mean(sums[at] - eta[at] / unit.num_steps), 0.0),
            np.maximum(middles[:, None] - mean(steps[at] - 1.0), 0.0) / unit.num_steps,
        )


# G and its derivatives by the logarithms of its numbers  # float64[n, K] each
_Gain = Callable[[np.ndarray, Path], tuple[np.ndarray, list[np.ndarray]]]


def _annealing(numbers: np.ndarray, path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """G = 1 - exp(-age / tau)."""
    ages = path.ages / numbers[0]
    left = np.exp(-ages)
    return 1 - left, [-ages * left]


def _multi_power(numbers: np.ndarray, path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """G = 1 - (1 + x)^-beta with x = C eta^-gamma S_k."""
    scale, beta, gamma = numbers
    x = scale * np.exp(-gamma * path.log_rates) * path.gone
    log = np.log1p(x)
    left = np.exp(-beta * log)
    by_x = beta * left * x / (1 + x)
    return 1 - left, [by_x, beta * left * log, -gamma * path.log_rates * by_x]


@dataclass(frozen=True)
class Kind:
    """One of the laws: its gain G with the limits of its numbers, in a fit's units."""

    name: str
    gain: _Gain
    limits: tuple[tuple[float, float], ...]
    starts: tuple[tuple[float, ...], ...]
    num_bumps: int = 0  # of the shape

    @property
    def shaped(self) -> "Kind":
        """The law with a shape."""
        return replace(self, num_bumps=_BUMPS)


KINDS: Mapping[str, Kind] = {
    "annealing": Kind("annealing", _annealing, ((1e-3, 1.0),), ((0.02,), (0.15,))),
    "multi_power": Kind(
        "multi_power",
        _multi_power,
        ((1e-2, 1e6), (0.02, 5.0), (1e-3, 2.0)),
        ((30.0, 0.5, 0.1), (3.0, 1.5, 0.5), (1e3, 0.2, 0.9)),
    ),
}
# limits of A, alpha, B and kappa, and where kappa begins
_COMMON = ((1e-7, 1e3), (0.02, 5.0), (1e-11, 1e3), (1e-4, 1e3))
_KAPPAS = (0.1, 5.0)
_NUM_COMMON = 1 + len(_COMMON)  # with L0
_FIRST, _LAST = math.log(0.05), 0.0  # log S1 of the first and the last bump, in a fit's unit


def bounds(kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of a point: L0, the logarithms of A, alpha, B, kappa and the numbers of G,
    and c.  # float64[p] each"""
    low, high = np.log([*_COMMON, *kind.limits]).T
    bump = np.ones(kind.num_bumps)
    return np.concatenate([[0.0], low, -bump]), np.concatenate([[np.inf], high, bump])


def starts(kind: Kind, lowest: float) -> list[np.ndarray]:
    """Return points to begin a fit at, for runs whose lowest loss is this one.  # [p] each"""
    return [
        np.concatenate(
            [
                [0.7 * lowest],
                np.log([0.3 * lowest, alpha, 0.3 * lowest, kappa, *gain]),
                np.zeros(kind.num_bumps),
            ]
        )
        for alpha in (0.3, 1.0)
        for kappa in _KAPPAS
        for gain in kind.starts
    ]


def evaluate(kind: Kind, point: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each block in the fit's unit, and its derivatives by the point.

    Shapes: [n], [n, p]
    """
    floor, (scale, alpha, drop, kappa) = point[0], np.exp(point[1:_NUM_COMMON])
    ends = _NUM_COMMON + len(kind.limits)
    numbers, bumps = np.exp(point[_NUM_COMMON:ends]), point[ends:]
    travelled, by_kappa = path.travelled(kappa)
    power = scale * travelled**-alpha
    gain, slopes = kind.gain(numbers, path)
    fallen = drop * (gain @ path.drops)
    columns = [
        np.ones(len(power)),
        power,
        -alpha * np.log(travelled) * power,
        -fallen,
        -alpha * power / travelled * by_kappa,
        *(-drop * (slope @ path.drops) for slope in slopes),
    ]
    losses, derivatives = floor + power - fallen, np.stack(columns, axis=1)
    if not len(bumps):
        return losses, derivatives
    places, width = np.linspace(_FIRST, _LAST, len(bumps), retstep=True)
    z = (np.log(travelled)[:, None] - places) / width
    bases = np.exp(-(z**2) / 2)
    shape = np.exp(bases @ bumps)
    losses = losses * shape
    derivatives = derivatives * shape[:, None]
    by_log = (-z * bases / width) @ bumps  # of log M by log S1
    derivatives[:, _NUM_COMMON - 1] += losses * by_log * by_kappa / travelled
    return losses, np.column_stack([derivatives, losses[:, None] * bases])


@dataclass(frozen=True)
class Law:
    """A law with its numbers."""

    kind: Kind
    point: np.ndarray  # in the fit's units  # float64[p]
    unit: Unit
    block: int  # updates over which the losses are means

    def losses(self, rates: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Return the loss in the middle of each block of updates.  # float64[n]"""
        return self.unit.loss * self._evaluate(rates, edges)

    def logs(self, rates: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Return the logarithms of `losses`; that of LEAST units where the law falls below it.

        Shape: float64[n]
        """
        found = np.maximum(self._evaluate(rates, edges), LEAST)
        return np.asarray(np.log(self.unit.loss) + np.log(found))

    def _evaluate(self, rates: np.ndarray, edges: np.ndarray) -> np.ndarray:
        return evaluate(self.kind, self.point, Path.of(rates, edges, self.unit))[0]

    def final(self, rates: np.ndarray) -> float:
        """Return the loss in the last block of a run with these rates."""
        edges = np.array([len(rates) - self.block, len(rates)])
        return float(self.losses(rates, edges)[0])

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers in units of the rate itself and of updates, by the papers' letters."""
        ends = _NUM_COMMON + len(self.kind.limits)
        scale, alpha, drop, kappa, *gain = np.exp(self.point[1:ends]).tolist()
        distance, loss = self.unit.lr * self.unit.num_steps, self.unit.loss
        per_rate = loss * drop / self.unit.lr  # B
        found = {"L0": loss * float(self.point[0]), "A": loss * scale * distance**alpha}
        found |= {"alpha": alpha, "kappa": kappa}
        found |= {f"c{j}": float(bump) for j, bump in enumerate(self.point[ends:], start=1)}
        if self.kind.name == "annealing":
            memory = gain[0] * self.unit.num_steps
            return {**found, "C": -per_rate * math.expm1(-1 / memory), "tau": memory}
        factor, beta, gamma = gain
        factor *= self.unit.lr**gamma / distance
        return {**found, "B": per_rate, "C": factor, "beta": beta, "gamma": gamma}

    def says(self) -> str:
        """Return the law in one line."""
        numbers = {name: f"{value:.4g}" for name, value in self.numbers.items()}
        begin = "L = {L0} + {A} S1^-{alpha} - ".format(**numbers)
        end = ", kappa {kappa}".format(**numbers)
        if self.kind.num_bumps:
            end += ", times a shape"
        if self.kind.name == "annealing":
            return begin + "{C} S2, memory {tau} updates".format(**numbers) + end
        return begin + "{B} sum d (1 - (1 + {C} eta^-{gamma} S)^-{beta})".format(**numbers) + end
