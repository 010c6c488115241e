"""Simulate comparisons: how often their claims are wrong, and how often they find a difference.

    python -m benchmarks.answers --repeats 1000

Groups of simulated runs share the noise of a seed, with a standard deviation of 3, and have noise
of their own, so that the difference of two runs has a standard deviation of 1.
runner.report.statistics compares them, and runner.report.race races them, as with real runs.
docs/statistics.md has the figures.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import combinations, product

import numpy as np
from scipy import special

from runner.report.choice import winners_value
from runner.report.profiles import (
    Curve,
    Races,
    p_of_lead,
    ratios,
    scores,
    seed_intervals,
    seed_scores,
)
from runner.report.race import FIRST_LOOK, replay
from runner.report.statistics import LEVEL, Paired, by_signs, compare, holm, summary

_MARGIN = 2.0
_RATES = 5  # of each schedule, in the simulation of tune=lr
_RUN = 0.5**0.5  # standard deviation of a run's own noise
_OF_SEEDS = 3.0  # standard deviation of the noise that the runs of a seed share
# where the true means of schedules lie, in standard deviations of a run
RACES = {
    "8 schedules, each 2 from the next": 2.0 * np.arange(8),
    "one is 2 ahead of 7 equals": np.array([0.0, *[2.0] * 7]),
    "2 schedules, 2 apart": np.array([0.0, 2.0]),
    "5 schedules, each 1 from the next": np.arange(5.0),
}

# groups, workloads and seeds of a ranking over workloads
WORKLOADS = ((2, 2, 3), (2, 4, 3), (3, 3, 3), (3, 3, 5))

Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
NOISES: dict[str, Noise] = {
    "normal": lambda draw, shape: draw.normal(0, 0.5**0.5, shape),
    # Student's t with 3 degrees of freedom has a variance of 3
    "heavy tails": lambda draw, shape: draw.standard_t(3, shape) * (0.5 / 3) ** 0.5,
    "counts": lambda draw, shape: draw.normal(0, 0.5**0.5, shape),
}


def values_of(
    draw: np.random.Generator,
    noise: str,
    gaps: np.ndarray,
    num_seeds: int,
    of_seeds: float = _OF_SEEDS,
) -> np.ndarray:
    """Return the metric of each group and seed; "counts" are whole numbers of rows. The noise of a
    seed that groups share has the deviation `of_seeds`.

    # gaps [groups], result [groups, seeds]
    """
    own = NOISES[noise](draw, (len(gaps), num_seeds))
    values = gaps[:, None] + draw.normal(0, of_seeds, num_seeds) + own
    return np.round(values) if noise == "counts" else values


def tests(values: np.ndarray, noise: str) -> dict[tuple[str, str], Paired]:
    groups = {str(i): dict(enumerate(row.tolist())) for i, row in enumerate(values)}
    return compare(groups, 1.0 if noise == "counts" else 0.0, _MARGIN)


def against_best(values: np.ndarray, noise: str) -> list[Paired]:
    """Return the comparisons of the group with the least mean with all others."""
    best = str(values.mean(axis=1).argmin())
    return [paired for pair, paired in tests(values, noise).items() if best in pair]


def wrong(repeats: int, num_groups: int, num_seeds: int, noise: str) -> tuple[float, ...]:
    """Return the shares of repetitions with a wrong claim: a difference to the best where all are
    equal; a group within the margin where all others differ from the first by the margin; and the
    coverage of the interval of a difference."""
    draw = np.random.default_rng(0)
    told = within = covered = 0
    far = np.array([0.0, *[_MARGIN] * (num_groups - 1)])
    for _ in range(repeats):
        equal = values_of(draw, noise, np.zeros(num_groups), num_seeds)
        found = tests(equal, noise)
        best = str(equal.mean(axis=1).argmin())
        told += any(paired.is_real for pair, paired in found.items() if best in pair)
        interval = found["0", "1"].interval
        covered += interval is not None and interval[0] <= 0 <= interval[1]
        apart = tests(values_of(draw, noise, far, num_seeds), noise)
        within += any(paired.is_equivalent for pair, paired in apart.items() if "0" in pair)
    return told / repeats, within / repeats, covered / repeats


def by_sign_flips(
    repeats: int, num_groups: int, num_seeds: int, noise: str, lead: float
) -> tuple[float, float]:
    """Return the shares in which some group is told from the best by Student's test, and by the
    sign-flip test. The first group is better by `lead`; with 0, all are equal."""
    draw = np.random.default_rng(1)
    gaps = np.array([0.0, *[lead] * (num_groups - 1)])
    told = np.zeros(2)
    for _ in range(repeats):
        values = values_of(draw, noise, gaps, num_seeds)
        groups = {str(i): dict(enumerate(row.tolist())) for i, row in enumerate(values)}
        best = str(values.mean(axis=1).argmin())
        signs = by_signs(groups, best)
        told += [
            any(paired.is_real for paired in against_best(values, noise)),
            any(p < LEVEL for _, p in signs.values()),
        ]
    by_t, by_flips = (told / repeats).tolist()
    return by_t, by_flips


def tuned(repeats: int, num_schedules: int, num_seeds: int, lead: float) -> tuple[float, ...]:
    """Choose one of five equal rates for each schedule, then compare the schedules; the first is
    better by `lead`. Return figures for judging on the same seeds and on others: the share in which
    a winner is named; the winner's mean minus its true mean; the coverage of the first schedule's
    interval."""
    draw = np.random.default_rng(0)
    gaps = np.zeros((num_schedules, _RATES))
    gaps[0] -= lead
    figures = []
    for _ in range(repeats):
        tried = values_of(draw, "normal", gaps.ravel(), num_seeds)
        rates = tried.reshape(num_schedules, _RATES, num_seeds).mean(axis=2).argmin(axis=1)
        rows = np.arange(num_schedules) * _RATES + rates
        others = values_of(draw, "normal", gaps[:, 0], num_seeds)
        figures.append([*_judged(tried[rows], lead), *_judged(others, lead)])
    return tuple(np.mean(figures, axis=0).tolist())


def _judged(values: np.ndarray, lead: float) -> Iterator[float]:
    best = int(values.mean(axis=1).argmin())
    yield float(all(paired.is_real for paired in against_best(values, "normal")))
    yield float(values[best].mean()) + (lead if best == 0 else 0.0)
    low, high = summary(values[0].tolist()).interval or (np.inf, np.inf)
    yield float(low <= -lead <= high)


def _not_told_from(best: int, values: np.ndarray) -> list[int]:
    """Return the groups that Student's paired tests with Holm's correction do not tell from the
    best one, as runner.report.statistics.compare does it, without the other figures."""
    num_groups, num = values.shape
    differences = values[:, None] - values
    with np.errstate(invalid="ignore"):
        t = differences.mean(axis=-1) / differences.std(axis=-1, ddof=1) * num**0.5
    raw = 2 * special.stdtr(num - 1, -np.abs(t))
    p = holm({(str(a), str(b)): float(raw[a, b]) for a, b in combinations(range(num_groups), 2)})
    return [
        int(name)
        for pair, value in p.items()
        if str(best) in pair and value >= LEVEL
        for name in pair
        if name != str(best)
    ]


def value_of_winner(
    repeats: int, num_groups: int, num_seeds: int, noise: str, lead: float, of_seeds: float
) -> tuple[float, ...]:
    """Choose the best of the groups, of which the first is better by `lead`. Return the share in
    which the interval of the winner's mean contains its true mean, the same for the interval that
    allows for the choice, the mean of the winner minus its true mean, the same after the luck is
    taken out, and the mean width of the second interval over that of the first."""
    draw = np.random.default_rng(0)
    gaps = np.array([0.0, *[lead] * (num_groups - 1)])
    figures = []
    for _ in range(repeats):
        values = values_of(draw, noise, gaps, num_seeds, of_seeds)
        best = int(values.mean(axis=1).argmin())
        value = winners_value(values[[best, *_not_told_from(best, values)]], "min")
        plain = summary(values[best].tolist()).interval
        assert value is not None
        assert plain is not None
        true, (low, high) = gaps[best], value.interval
        figures.append(
            (
                plain[0] <= true <= plain[1],
                low <= true <= high,
                value.mean - true,
                value.mean + value.luck - true,
                (high - low) / (plain[1] - plain[0]),
            )
        )
    return tuple(np.mean(figures, axis=0).tolist())


def workloads(
    draw: np.random.Generator, num_groups: int, num_workloads: int, num_seeds: int, lead: float
) -> list[Races]:
    """Return simulated runs of 20 epochs: losses 0.2 + exp(-k epoch) with noise of 2 %, where the
    rate k is 0.2 with a deviation of 10 % between runs; the first group's is higher by `lead`."""
    epochs = np.arange(1.0, 21)
    found = []
    for _ in range(num_workloads):
        rates = 0.2 * (1 + 0.1 * draw.standard_normal((num_groups, num_seeds, 1)))
        rates[0] *= 1 + lead
        losses = 0.2 + np.exp(-rates * epochs)
        losses *= 1 + 0.02 * draw.standard_normal(losses.shape)
        curves = [[Curve(run, epochs, float(run[-1])) for run in group] for group in losses]
        found.append(Races(curves, None, 0.01))
    return found


def ranked(repeats: int, num_groups: int, num_workloads: int, num_seeds: int, lead: float) -> float:
    """Rank groups over workloads. Return the share in which a winner is named."""
    draw = np.random.default_rng(0)
    named = 0
    for _ in range(repeats):
        races = workloads(draw, num_groups, num_workloads, num_seeds, lead)
        all_ratios = ratios(np.stack([race.costs(race.runs)[0] for race in races]))
        best = int(scores(all_ratios).argmax())
        others = [other for other in range(num_groups) if other != best]
        raw = {(str(best), str(other)): p_of_lead(races, best, other) for other in others}
        found = holm(raw, num_groups * (num_groups - 1) // 2)
        named += max(found.values()) < LEVEL
    return named / repeats


def covered(
    repeats: int, num_groups: int, num_workloads: int, num_seeds: int, lead: float
) -> float:
    """Return the share in which the interval of the first group's score, seed by seed, contains its
    mean over other repetitions."""
    draw = np.random.default_rng(0)
    again = (workloads(draw, num_groups, num_workloads, num_seeds, lead) for _ in range(repeats))
    truth = np.mean([seed_scores(own, [race.runs for race in own])[0, 0] for own in again])
    held = 0
    for _ in range(repeats):
        races = workloads(draw, num_groups, num_workloads, num_seeds, lead)
        low, high = (seed_intervals(races) or [(0.0, 1.0)])[0]
        held += low - 1e-9 <= truth <= high + 1e-9
    return held / repeats


def raced(
    repeats: int, gaps: np.ndarray, noise: str, num_seeds: int, spread: float = 1.0
) -> tuple[float, float, float]:
    """Race schedules with a budget of `num_seeds` seeds of each. Return the mean number of runs,
    the share in which the best alone is left, and the share in which one that is as good as the
    best is dropped. The noise of the first schedule is multiplied by `spread`."""
    draw, num = np.random.default_rng(0), len(gaps)
    figures = []
    for _ in range(repeats):
        values = values_of(draw, noise, gaps * _RUN, num_seeds * num)
        values[0] += draw.normal(0, _RUN * (spread**2 - 1) ** 0.5, num_seeds * num)
        race, num_runs, _ = replay(values, num_seeds * num, 1.0 if noise == "counts" else 0.0)
        best = {i for i in range(num) if gaps[i] == gaps.min()}
        left = set(range(num)) - set(race.dropped)
        figures.append((num_runs, left == {0}, bool(best - left)))
    runs, named, wrong = np.mean(figures, axis=0).tolist()
    return runs, named, wrong


def fixed(repeats: int, gaps: np.ndarray, num_seeds: int, is_pooled: bool) -> float:
    """Return the share in which the first schedule is told from all others by Student's paired
    tests, or by tests with one variance for all pairs, after `num_seeds` seeds of each schedule."""
    draw, num = np.random.default_rng(0), len(gaps)
    named = 0
    for _ in range(repeats):
        values = values_of(draw, "normal", gaps * _RUN, num_seeds)
        p = _pooled(values) if is_pooled else _paired(values)
        named += int(values.mean(axis=1).argmin()) == 0 and all(
            p[0, other] < LEVEL for other in range(1, num)
        )
    return named / repeats


def _paired(values: np.ndarray) -> dict[tuple[int, int], float]:
    found = tests(values, "normal")
    return {(int(a), int(b)): paired.p or 0.0 for (a, b), paired in found.items()}


def _pooled(values: np.ndarray) -> dict[tuple[int, int], float]:
    """Return p of every pair, with Holm's correction, by the residual variance of schedules and
    seeds."""
    num, num_seeds = values.shape
    residuals = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    df = (num - 1) * (num_seeds - 1)
    error = np.sqrt(2 * (residuals**2).sum() / df / num_seeds)
    means = values.mean(axis=1)
    raw = {
        (str(a), str(b)): float(2 * special.stdtr(df, -abs(means[a] - means[b]) / error))
        for a, b in combinations(range(num), 2)
    }
    return {(int(a), int(b)): p for (a, b), p in holm(raw).items()}


def _seeds_for(repeats: int, gaps: np.ndarray, share: float, is_pooled: bool) -> int:
    """Return the least number of seeds with which a fixed design names the best as often."""
    low, high = 2, 40
    while low < high:
        middle = (low + high) // 2
        if fixed(repeats, gaps, middle, is_pooled) < share:
            low = middle + 1
        else:
            high = middle
    return low


def _print_races(repeats: int) -> None:
    print(f"\nraces, first look after {FIRST_LOOK} seeds; runs, and how often the best is named")
    print("| means | budget | race | fixed design | as often, paired | as often, one variance |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, gaps in RACES.items():
        for num_seeds in (10, 20):
            runs, named, _ = raced(repeats, gaps, "normal", num_seeds)
            of_fixed = fixed(repeats // 4, gaps, num_seeds, is_pooled=False)
            other = [_seeds_for(repeats // 4, gaps, named, pooled) for pooled in (False, True)]
            print(
                f"| {name} | {num_seeds} seeds | {runs:.1f} runs, {100 * named:.0f} % | "
                f"{num_seeds * len(gaps)} runs, {100 * of_fixed:.0f} % | "
                f"{' | '.join(f'{seeds * len(gaps)} runs' for seeds in other)} |",
                flush=True,
            )
    print("\nraces of equal schedules: how often one is dropped, %")
    print(f"| groups | budget | {' | '.join(NOISES)} | first has 5 times the noise |")
    print("| --- | --- | --- | --- | --- | --- |")
    for groups, num_seeds in product((2, 3, 5, 10), (10, 30)):
        gaps = np.zeros(groups)
        shares = [raced(repeats, gaps, noise, num_seeds)[2] for noise in NOISES]
        shares.append(raced(repeats, gaps, "normal", num_seeds, spread=5.0)[2])
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        print(f"| {groups} | {num_seeds} seeds | {cells} |", flush=True)


def _print_signs(repeats: int) -> None:
    print("\nStudent's test, sign flips: a difference where all are equal; with a lead of 1.5, %")
    print("| groups | seeds | noise | equal | lead |")
    print("| --- | --- | --- | --- | --- |")
    for groups, seeds, noise in product((2, 5), (5, 10), NOISES):
        shares = [by_sign_flips(repeats, groups, seeds, noise, lead) for lead in (0.0, 1.5)]
        cells = " | ".join(f"{100 * t:.1f}, {100 * flips:.1f}" for t, flips in shares)
        print(f"| {groups} | {seeds} | {noise} | {cells} |", flush=True)


def _print_values(repeats: int) -> None:
    print("\nthe winner's value: coverage, that of the interval that allows for the choice, %;")
    print("bias, and without the luck; width over that of the plain interval")
    print("| seeds' noise | groups | seeds | noise | lead | coverage | bias | width |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    cells = product((0.0, _OF_SEEDS), (2, 5, 10), (3, 5, 10), ("normal", "heavy tails"), (0.0, 2.0))
    for of_seeds, groups, seeds, noise, lead in cells:
        plain, allowing, bias, without, width = value_of_winner(
            repeats, groups, seeds, noise, lead, of_seeds
        )
        print(
            f"| {of_seeds:g} | {groups} | {seeds} | {noise} | {lead:g} | {100 * plain:.1f}, "
            f"{100 * allowing:.1f} | {bias:+.2f}, {without:+.2f} | {width:.2f} |",
            flush=True,
        )


def _print_workloads(repeats: int) -> None:
    print("\nover workloads: a winner named where all are equal, with a lead of 30 %, %")
    print("| groups | workloads | seeds | named, equal | named, lead |")
    print("| --- | --- | --- | --- | --- |")
    for groups, num, seeds in WORKLOADS:
        shares = [ranked(repeats, groups, num, seeds, lead) for lead in (0.0, 0.3)]
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        print(f"| {groups} | {num} | {seeds} | {cells} |", flush=True)
    print("\ncoverage of the score's interval, %: all equal, the first 10 % and 30 % faster")
    print("| groups | workloads | seeds | equal | 10 % | 30 % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (groups, num), seeds in product(((2, 2), (3, 4), (5, 4)), (3, 5, 10)):
        shares = [covered(5 * repeats, groups, num, seeds, lead) for lead in (0.0, 0.1, 0.3)]
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        print(f"| {groups} | {num} | {seeds} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--groups", type=int, nargs="*", default=[2, 5, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--only-races", action="store_true")
    parser.add_argument("--only-workloads", action="store_true")
    parser.add_argument("--only-signs", action="store_true")
    parser.add_argument("--only-values", action="store_true")
    options = parser.parse_args()
    if options.only_signs:
        return _print_signs(options.repeats)
    if options.only_values:
        return _print_values(options.repeats)
    if options.only_workloads:
        return _print_workloads(options.repeats)
    if not options.only_races:
        _print_comparisons(options)
        _print_signs(options.repeats)
        _print_values(options.repeats)
        _print_workloads(options.repeats // 5)
    _print_races(options.repeats)
    return None


def _print_comparisons(options: argparse.Namespace) -> None:
    print(f"{options.repeats} repetitions; shares in %")
    print("| groups | seeds | noise | wrong difference | wrong equivalence | coverage |")
    print("| --- | --- | --- | --- | --- | --- |")
    for groups, seeds, noise in product(options.groups, options.seeds, NOISES):
        shares = wrong(options.repeats, groups, seeds, noise)
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        print(f"| {groups} | {seeds} | {noise} | {cells} |", flush=True)
    print("\nfour schedules at five rates: judged on the same seeds, on others")
    print("| seeds | lead | winner named | winner's bias | coverage |")
    print("| --- | --- | --- | --- | --- |")
    for seeds, lead in product(options.seeds, (0.0, 2.0)):
        same, other = np.split(np.array(tuned(options.repeats, 4, seeds, lead)), 2)
        named, bias, coverage = zip(same, other, strict=True)
        print(
            f"| {seeds} | {lead:g} | {100 * named[0]:.1f}, {100 * named[1]:.1f} | "
            f"{bias[0]:+.2f}, {bias[1]:+.2f} | {100 * coverage[0]:.1f}, {100 * coverage[1]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
