"""Recompute the numbers of a comparison from the folders of its runs.

    python tests/report/independent.py outputs/multiruns/FOLDER [RUN ...]

This program imports nothing of runner/, only NumPy and SciPy. It reads config.yaml, result.json,
data.json, metrics.csv, trace.csv and test.json of the runs, which are those in the folder if none
are named, and computes what docs/statistics.md defines. It prints the numbers of answer.json and
of comparison.md that are not the same; the exit status is 1 if there are some.

Of the sentences it checks the numbers. Not covered: runs without a result, the same settings on two
backends, updates of different sizes. `answer.margin`, `.relax` and `.target` are read from
answer.json, and the seeds that a race was given from multirun.yaml.
"""

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from itertools import combinations, pairwise, product
from pathlib import Path
from statistics import median, median_high
from typing import Any

import numpy as np
import yaml
from scipy import integrate, optimize, stats

LEVEL = 0.05
NOT_OF_GROUPS = (
    *("seed=", "data.fold=", "output.", "backend=", "trusted_modules="),
    *("answer.", "race."),
)
Block = int | tuple[int, int]  # a seed, or a seed and a fold


@dataclass(frozen=True)
class Run:
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load((self.folder / "config.yaml").read_text("utf-8"))
        return loaded

    def json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        loaded: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return loaded

    @cached_property
    def result(self) -> dict[str, Any]:
        return self.json("result.json")

    @cached_property
    def data(self) -> dict[str, Any]:
        return self.json("data.json")

    def table(self, name: str) -> dict[str, list[float]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = rows[0] if rows else {}
        return {key: [float(row[key]) if row[key] else math.nan for row in rows] for key in columns}

    @cached_property
    def epochs(self) -> dict[str, list[float]]:
        return self.table("metrics.csv")

    @property
    def overrides(self) -> list[str]:
        return [str(item) for item in self.result["overrides"]]

    @property
    def settings(self) -> tuple[str, ...]:
        return tuple(item for item in self.overrides if not item.startswith(NOT_OF_GROUPS))

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def block(self) -> Block:
        fold = self.config["data"].get("fold")
        return self.seed if fold is None else (self.seed, int(fold))

    @property
    def metric(self) -> str:
        return str(self.config["trainer"]["monitor"])

    @property
    def sign(self) -> int:
        """1 if a small metric is good, else -1."""
        return 1 if self.config["trainer"]["monitor_mode"] == "min" else -1

    @property
    def is_completed(self) -> bool:
        return bool(self.result["status"] == "completed")

    def last(self, metric: str) -> float:
        """The metric in the last row of metrics.csv; NaN if the run did not complete."""
        return self.epochs[metric][-1] if self.is_completed else math.nan

    @property
    def has_diverged(self) -> bool:
        if self.is_completed:
            return not math.isfinite(self.last(self.metric))
        error = str(self.result.get("error", ""))
        return re.search(r"the loss of update \d+ is (nan|-?inf)", error) is not None

    @property
    def is_for_tuning(self) -> bool:
        return self.seed in ((self.config.get("tune") or {}).get("seeds") or ())

    @property
    def meaning(self) -> str:
        """The key of an answer: runs of other data, losses or metrics have another one."""
        known = self.data.get("folds_sha256") or self.data.get("values_sha256")
        loss = self.config["loss"] if self.metric.endswith("/loss") else None
        return json.dumps([known or self.data.get("sha256"), self.metric, self.sign, loss])

    @property
    def resolution(self) -> float:
        split, _, name = self.metric.partition("/")
        counts = name == "accuracy" or name.startswith("top_")
        return 1 / self.data["rows"][split] if counts else 0.0

    def first_epoch(self, target: float) -> int | None:
        """The first epoch whose metric reaches the target."""
        curve = self.epochs[self.metric]
        return next((i for i, v in enumerate(curve) if self.sign * v <= self.sign * target), None)

    def seconds_until(self, epoch: int | None) -> float:
        if epoch is None or self.result.get("resumed_from") is not None:
            return math.inf
        return self.epochs["seconds"][epoch] - (self.result["seconds"].get("startup") or 0.0)

    def rate_at_best(self) -> float:
        """The rate of the last update in the best epoch."""
        return self.table("trace.csv")["learning_rate"][self.result["best"]["step"] - 1]


@dataclass(frozen=True)
class Group:
    label: str
    runs: list[Run]

    def values(self, metric: str | None = None) -> dict[Block, float]:
        found = {run.block: run.last(metric or run.metric) for run in self.runs}
        return {block: value for block, value in found.items() if math.isfinite(value)}

    def over(self, blocks: Sequence[Block]) -> "Group":
        return Group(self.label, [run for run in self.runs if run.block in blocks])

    def row(self, blocks: Sequence[Block], metric: str | None = None) -> np.ndarray:
        values = self.values(metric)
        return np.array([values[block] for block in blocks])

    @property
    def diverged(self) -> int:
        return sum(run.has_diverged for run in self.runs)

    @property
    def is_whole(self) -> bool:
        return len(self.values()) == len(self.runs)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in seed and fold, labelled by the overrides that not all runs have."""
    divided: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        divided.setdefault(run.settings, []).append(run)
    shared = set.intersection(*(set(run.overrides) for run in runs)) if len(divided) > 1 else set()
    return [
        Group(" ".join(item for item in own if item not in shared) or "defaults", members)
        for own, members in divided.items()
    ]


# Student's paired tests, Holm, sign flips

EXACT = 13  # values: of more, the signs are random
NUM_FLIPS = 20_000


def up_to_draws(p: float, given: float | None, num: int) -> float:
    """Return the program's p, of 9,999 draws, if it differs from ours, of `num` draws, by at most
    four standard errors of twice a tail; else ours."""
    share = max(p / 2, 1 / num)
    error = 2 * math.sqrt(share * (1 - share) * (1 / num + 1 / 9_999))
    return p if given is None or abs(p - given) > 4 * error else given


@dataclass(frozen=True)
class Pair:
    """The test of a - b over the same seeds."""

    a: np.ndarray
    b: np.ndarray
    resolution: float

    @property
    def differences(self) -> np.ndarray:
        return np.asarray(self.a - self.b)

    @property
    def error(self) -> float | None:
        """The standard error of the mean difference, of a deviation of at least the resolution."""
        if len(self.a) < 2:
            return None
        sd = float(self.differences.std(ddof=1))
        if self.resolution:
            sd = max(sd, self.resolution)
        elif sd <= np.finfo(np.float32).eps * np.abs([self.a, self.b]).max():
            return None
        return sd / math.sqrt(len(self.a))

    @property
    def p(self) -> float | None:
        if len(self.a) > 1 and not self.differences.any():
            return 1.0
        if self.error is None:
            return None
        t = float(self.differences.mean()) / self.error
        return float(2 * stats.t.sf(abs(t), len(self.a) - 1))

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.error is None:
            return None
        mean = self.differences.mean()
        low, high = stats.t.interval(1 - LEVEL, len(self.a) - 1, loc=mean, scale=self.error)
        return float(low), float(high)

    def p_within(self, margin: float | None) -> float | None:
        """Two one-sided tests that the mean is above -margin and below it."""
        if margin is None or len(self.a) < 2:
            return None
        if self.error is None:
            return None if self.differences.any() else 0.0
        mean, df = float(self.differences.mean()), len(self.a) - 1
        above = stats.t.sf((mean + margin) / self.error, df)
        below = stats.t.cdf((mean - margin) / self.error, df)
        return float(max(above, below))

    def p_signs(self, given: float | None) -> float | None:
        """All sign flips of up to 13 differences, written out, and random ones of more; `given` is
        what the program found by random ones."""
        num = len(self.a)
        if num < 2:
            return None
        if num > EXACT:
            signs = np.random.default_rng(2).choice((-1, 1), (NUM_FLIPS, num))
        else:
            signs = np.array([*product((1, -1), repeat=num)])
        means = signs @ self.differences / num
        own = self.differences.mean()
        slack = 1e-12 * max(1e-300, float(np.abs(self.differences).max()))
        tails = (np.mean(means >= own - slack), np.mean(means <= own + slack))
        p = min(1.0, 2 * float(min(tails)))
        return p if num <= EXACT else up_to_draws(p, given, NUM_FLIPS)

    def more_seeds(self, p: float | None, num_tests: int) -> int | None:
        """Further seeds with which such a difference is found with a probability of 0.8."""
        if p is None or self.error is None:
            return None
        if p < LEVEL:
            return 0
        effect = abs(float(self.differences.mean())) / self.error / math.sqrt(len(self.a))

        def power(num: int) -> float:
            critical = stats.t.ppf(1 - LEVEL / num_tests / 2, num - 1)
            tails = stats.nct(num - 1, effect * math.sqrt(num))
            return float(tails.sf(critical) + np.nan_to_num(tails.cdf(-critical)))

        if not effect or power(10_000) < 0.8:
            return None
        low, high = 2, 10_000
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if power(middle) < 0.8 else (low, middle)
        return max(1, low - len(self.a))


def holm(raw: Mapping[Any, float], num: int | None = None) -> dict[Any, float]:
    order, most = sorted(raw, key=lambda key: raw[key]), len(raw) if num is None else num
    scaled = [min(1.0, (most - i) * raw[key]) for i, key in enumerate(order)]
    return dict(zip(order, np.maximum.accumulate(scaled).tolist(), strict=True))


def shares_best(rows: np.ndarray, sign: int, resolution: float) -> np.ndarray:
    """The posterior probabilities that each group has the best mean, by 200,000 draws of the
    multivariate t distribution; ties share a draw.  # rows [G, n]"""
    num = rows.shape[1]
    draw = np.random.default_rng(1)
    cov = np.atleast_2d(np.cov(rows)) + np.eye(len(rows)) * resolution**2 / 2
    shift = draw.multivariate_normal(np.zeros(len(rows)), cov / num, 200_000, method="eigh")
    shift *= np.sqrt((num - 1) / draw.chisquare(num - 1, (len(shift), 1)))
    means = -sign * (rows.mean(axis=1) + shift)
    top = means.max(axis=1, keepdims=True)
    wins = means >= top - 1e-9 * np.abs(top)
    return np.asarray((wins / wins.sum(axis=1, keepdims=True)).mean(axis=0))


# One answer


@dataclass(frozen=True)
class Answer:
    """The expected answer of runs that measure the same; `given` is answer.json."""

    runs: list[Run]
    given: Mapping[str, Any]

    @cached_property
    def groups(self) -> list[Group]:
        return grouped(self.runs)

    @cached_property
    def tried(self) -> list[Group]:
        return list(self._part(False))

    @cached_property
    def tuning(self) -> list[Group]:
        return list(self._part(True))

    def _part(self, is_for_tuning: bool) -> Iterator[Group]:
        for group in self.groups:
            own = [run for run in group.runs if run.is_for_tuning == is_for_tuning]
            if own:
                yield Group(group.label, own)

    @cached_property
    def seeds(self) -> list[Block]:
        """The seeds that all compared groups have."""
        common = set.intersection(*(set(group.values()) for group in self._rankable()))
        return sorted(common, key=lambda block: block if isinstance(block, tuple) else (block, -1))

    def _rankable(self) -> list[Group]:
        """Groups that finished every seed, or all with a value if there are none. While they have
        fewer than two seeds in common, the one that shares the fewest with the others goes."""
        whole = [group for group in self.tried if group.is_whole]
        kept = whole or [group for group in self.tried if group.values()]
        while len(kept) > 2 and len(set.intersection(*(set(g.values()) for g in kept))) < 2:
            shared = {
                group.label: sum(len(group.values().keys() & other.values()) for other in kept)
                for group in kept
            }
            kept.remove(min(kept, key=lambda group: shared[group.label]))
        return kept

    @cached_property
    def ranked(self) -> list[Group]:
        sign = self.runs[0].sign
        kept = [group.over(self.seeds) for group in self._rankable()]
        return sorted(kept, key=lambda group: sign * float(group.row(self.seeds).mean()))

    @cached_property
    def resolution(self) -> float:
        return max(run.resolution for run in self.runs)

    @cached_property
    def pairs(self) -> dict[tuple[str, str], Pair]:
        """Both orders of each pair."""
        rows = {group.label: group.row(self.seeds) for group in self.ranked}
        return {
            (a, b): Pair(rows[a], rows[b], self.resolution)
            for a, b in product(rows, repeat=2)
            if a != b
        }

    def corrected(self, p: Callable[[Pair], float | None]) -> dict[tuple[str, str], float]:
        """Holm's correction for all pairs that have a p, by (better, worse)."""
        labels = [group.label for group in self.ranked]
        raw = {pair: p(self.pairs[pair]) for pair in combinations(labels, 2)}
        return holm({pair: value for pair, value in raw.items() if value is not None})

    @property
    def best(self) -> Group:
        return self.ranked[0]

    def is_same_run(self, group: Group) -> bool:
        hashes, best = (
            {run.block: run.result["weights_sha256"] for run in each.runs}
            for each in (group, self.best)
        )
        return group is not self.best and hashes == best and None not in hashes.values()

    @cached_property
    def p(self) -> dict[tuple[str, str], float]:
        return self.corrected(lambda pair: pair.p)

    def entries(self) -> list[dict[str, Any]]:
        """The entries of the groups, as in answer.json."""
        margin, sign = self.given["margin"], self.runs[0].sign
        within = self.corrected(lambda pair: pair.p_within(margin))
        given = {each["label"]: each.get("p_signs_raw") for each in self.given["groups"]}
        flips = {
            g.label: self.pairs[g.label, self.best.label].p_signs(given[g.label])
            for g in self.ranked[1:]
        }
        num_pairs = len(self.ranked) * (len(self.ranked) - 1) // 2
        by_signs = holm({key: p for key, p in flips.items() if p is not None}, num_pairs)
        rows = np.stack([group.row(self.seeds) for group in self.ranked])
        is_known = len(rows) > 1 and all(
            (self.best.label, g.label) in self.p for g in self.ranked[1:]
        )
        shares = shares_best(rows, sign, self.resolution).tolist() if is_known else [None] * 99
        found = []
        for i, group in enumerate(self.ranked):
            own, place = rows[i], (self.best.label, group.label)
            pair = self.pairs[group.label, self.best.label] if i else None
            entry = {
                "rank": i + 1,
                "seeds": self.seeds,
                "mean": own.mean(),
                "interval": _of_mean(own),
                "difference": pair and pair.differences.mean(),
                "difference_interval": pair and pair.interval,
                "p_raw": pair and pair.p,
                "p": self.p.get(place),
                "p_signs_raw": flips.get(group.label),
                "p_signs": by_signs.get(group.label),
                "p_equivalent": within.get(place),
                "better_on": pair and int((sign * pair.differences < 0).sum()),
                "probability_best": shares[i],
                "is_same_run": self.is_same_run(group),
            }
            found.append({"label": group.label, **entry, **self._fates(group.label)})
        ranked = {group.label for group in self.ranked}
        rest = [group for group in self.tried if group.label not in ranked]
        return [*found, *({"label": g.label, "rank": None, **self._fates(g.label)} for g in rest)]

    def _fates(self, label: str) -> dict[str, int]:
        whole = next(group for group in self.tried if group.label == label)
        failed = len(whole.runs) - len(whole.values()) - whole.diverged
        return {"diverged": whole.diverged, "failed": failed}

    def expected(self) -> dict[str, Any]:
        others = [self.p.get((self.best.label, group.label)) for group in self.ranked[1:]]
        return {
            "metric": self.runs[0].metric,
            "winner": self.best.label,
            "is_real": bool(others) and all(p is not None and p < LEVEL for p in others),
            "seeds": self.seeds,
            "comparisons": len(self.ranked) * (len(self.ranked) - 1) // 2,
            "winner_value": self.winner_value(),
            "groups": self.entries(),
            **({"test": self.test()} if self.given.get("test") else {}),
        }

    def winner_value(self) -> dict[str, Any] | None:
        """The mean of the best group, with the luck of its choice among those that are not told
        from it and the interval that allows for this; None for one seed."""
        close = [
            group
            for group in self.ranked[1:]
            if self.p.get((self.best.label, group.label), 1.0) >= LEVEL
            and not self.is_same_run(group)
        ]
        rows = np.stack([group.row(self.seeds) for group in (self.best, *close)])
        num_groups, num = rows.shape
        if num < 2:
            return None
        own, shared = 0.0, 1.0
        if num_groups > 1:
            own = float((_residuals(rows) ** 2).sum()) / (num_groups - 1) / (num - 1)
            whole = float(rows.var(axis=1, ddof=1).mean())
            shared = min(max(1 - own / whole, 0.0), 1.0) if whole > 0 else 1.0
        near, far = ends_of_choice(num_groups, num, shared)
        mean, error = float(rows[0].mean()), float(rows[0].std(ddof=1)) / math.sqrt(num)
        sign = self.runs[0].sign
        interval = sorted((mean - sign * near * error, mean + sign * far * error))
        draws = stats.norm.expect(lambda x: num_groups * x * stats.norm.cdf(x) ** (num_groups - 1))
        luck = draws * math.sqrt(own / num)
        return {"mean": mean, "interval": interval, "luck": luck, "groups": num_groups}

    def test(self) -> dict[str, Any]:
        """The test split's numbers of the best group and of the next one that is no copy of it."""
        two = [group for group in self.ranked if not self.is_same_run(group)][:2]
        name = "test/" + self.runs[0].metric.partition("/")[2]
        rows = [np.array([run.json("test.json")[name] for run in group.runs]) for group in two]
        rows = [
            own[np.argsort([self.seeds.index(run.block) for run in group.runs])]
            for own, group in zip(rows, two, strict=True)
        ]
        counts = name.endswith("accuracy")
        resolution = 1 / self.runs[0].data["rows"]["test"] if counts else 0.0
        pair = Pair(rows[1], rows[0], resolution) if len(rows) > 1 else None
        lead = None if pair is None else float(pair.differences.mean()) * self.runs[0].sign
        return {
            "metric": name,
            "groups": [
                {"label": g.label, "seeds": len(own), "mean": own.mean(), "interval": _of_mean(own)}
                for g, own in zip(two, rows, strict=True)
            ],
            "difference": pair and pair.differences.mean(),
            "difference_interval": pair and pair.interval,
            "p": pair and pair.p,
            "agrees": None if lead is None else lead >= 0,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table in comparison.md: a number, a text, several numbers, or None."""
        sign, run = self.runs[0].sign, self.runs[0]
        bests = [
            median_high(sign * float(each.result["best"]["value"]) for each in group.runs)
            for group in self.ranked
        ]
        target = sign * max(bests)
        found = []
        for group, entry in zip(self.ranked, self.entries(), strict=False):
            own = group.row(self.seeds)
            pair = None if group is self.best else self.pairs[group.label, self.best.label]
            p = self.p.get((self.best.label, group.label))
            reached = [each.first_epoch(target) for each in group.runs]
            steps = [
                math.inf if i is None else each.epochs["step"][i]
                for i, each in zip(reached, group.runs, strict=True)
            ]
            seconds = [each.seconds_until(i) for i, each in zip(reached, group.runs, strict=True)]
            names = [n for n in run.epochs if n.startswith("val/") and n != run.metric]
            found.append(
                {
                    "rank": entry["rank"],
                    "seeds": len(own),
                    run.metric: own.mean(),
                    "sd": own.std(ddof=1) if len(own) > 1 else None,
                    "95 % interval": entry["interval"],
                    "from the best": entry["difference"],
                    "its 95 % interval": entry["difference_interval"],
                    "better on": pair and (entry["better_on"], len(own)),
                    "raw p": entry["p_raw"],
                    "p": entry["p"],
                    "p by signs": entry["p_signs"],
                    "more seeds": pair and pair.more_seeds(p, len(self.p)),
                    **{name: group.row(self.seeds, name).mean() for name in names},
                    f"steps to {target:.4g}": median(steps),
                    "seconds": _finite(median(seconds)),
                    "rate at its best": median(each.rate_at_best() for each in group.runs),
                }
            )
        return found

    def tuning_rows(self) -> list[dict[str, Any]]:
        """The table of the tuning seeds. A group with a failed run has words in place of a mean."""
        return [
            {self.runs[0].metric: np.mean([*group.values().values()]) if group.is_whole else "..."}
            for group in self.tuning
        ]

    def wrong_choices(self) -> list[str]:
        """Groups that are compared though another value of the tuned keys has a better mean on the
        tuning seeds."""
        sign = self.runs[0].sign
        families: dict[str, list[tuple[float, str]]] = {}
        for group in self.tuning:
            value = sign * float(np.mean([*group.values().values()])) if group.is_whole else np.inf
            families.setdefault(_without_tuned(group), []).append((value, group.label))
        chosen = {
            min(found, key=lambda each: each[0])[1]
            for found in families.values()
            if any(math.isfinite(value) for value, _ in found)
        }
        return sorted({group.label for group in self.tried} ^ chosen) if self.tuning else []


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _of_mean(row: np.ndarray) -> tuple[float, float] | None:
    """Student's 95 % interval of a mean."""
    if len(row) < 2:
        return None
    error = row.std(ddof=1) / math.sqrt(len(row))
    half = stats.t.ppf(1 - LEVEL / 2, len(row) - 1) * error
    return float(row.mean() - half), float(row.mean() + half)


def _without_tuned(group: Group) -> str:
    keys = group.runs[0].config["tune"]["keys"]
    return " ".join(
        item for item in group.runs[0].settings if item.partition("=")[0].lstrip("+") not in keys
    )


# The value of a winner that was chosen


def ends_of_choice(num_groups: int, num: int, shared: float) -> tuple[float, float]:
    """The reach of the interval to the better and to the worse side, in standard errors, by
    quadrature over the seeds' common noise and the estimate of the deviation."""
    df = num - 1
    if num_groups == 1:
        return (float(stats.t.ppf(1 - LEVEL / 2, df)),) * 2
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    levels = (np.arange(4000) + 0.5) / 4000
    u = np.sqrt(stats.chi2.ppf(levels, df) / df)[:, None]
    own = math.sqrt(max(1 - shared, 1e-12))

    def above(t: float) -> float:
        """The probability that Student's statistic of the luckiest of equal groups exceeds t."""
        beyond = 1 - stats.norm.cdf((t * u - math.sqrt(shared) * z) / own) ** num_groups
        return float((beyond @ weights).mean())

    def reaches(level: float) -> tuple[float, float]:
        far = optimize.brentq(lambda t: above(t) - level, 0, 1e4, xtol=1e-4)
        return float(stats.t.ppf(1 - level, df)), float(far)

    def missed(level: float) -> float:
        near, far = reaches(level)
        return level + max(1 - above(-near), float(stats.t.sf(far, df)))

    level = LEVEL / 2
    if missed(level) < LEVEL:
        level = optimize.brentq(lambda a: missed(a) - LEVEL, level, LEVEL, xtol=1e-5)
    return reaches(level)


# A race: tests at every look

PRIOR = {math.sqrt(2): 0.9, 16.0: 0.1}  # deviation of a half-normal lead -> weight
OWN = 0.1  # weight of the test with a pair's own variance
NOISY = 6.0  # a schedule with more than so many times the median variance has no common one
FIRST_LOOK = 3


def e_value(t: float, num: int, df: int) -> float:
    """The likelihood ratio of a lead to none, which is that of Student's t: its density with a
    noncentrality of delta sqrt(n), averaged over the prior of delta, over the central one."""

    def integrand(delta: float, scale: float) -> float:
        ratio = stats.nct.pdf(t, df, delta * math.sqrt(num)) / stats.t.pdf(t, df)
        return 2 * float(stats.norm.pdf(delta, 0, scale)) * float(ratio)

    found = 0.0
    for scale, weight in PRIOR.items():
        peak = min(max(t, 0.0) / math.sqrt(num), 6 * scale)
        ends = sorted({0.0, peak, min(peak + 3, 8 * scale), 8 * scale})
        parts = [
            integrate.quad(integrand, low, high, args=(scale,), epsrel=1e-8)[0]
            for low, high in pairwise(ends)
        ]
        found += weight * sum(parts)
    return found


def radius(squares: float, num: int, df: int, level: float) -> float:
    """The half width of a confidence sequence: the Bayes factor of a normal prior of the mean in
    deviations (Goenen et al. 2005) reaches 1 / level there."""

    def bayes_factor(t: float) -> float:
        found = 0.0
        for scale, weight in PRIOR.items():
            spread = 1 + num * scale**2
            ratio = (1 + t**2 / df) / (1 + t**2 / (df * spread))
            found += weight * spread**-0.5 * ratio ** ((df + 1) / 2)
        return found

    if bayes_factor(1e9) < 1 / level:
        return math.inf
    log_t = optimize.brentq(lambda x: math.log(bayes_factor(math.exp(x)) * level), -30, 20.7)
    return math.exp(log_t) * math.sqrt(squares / df / num)


@dataclass
class Race:
    """The race of `rows`, which have a value for each seed in the order of the race; a lower value
    is better."""

    rows: dict[str, list[float]]
    resolution: float

    def __post_init__(self) -> None:
        self.p: dict[str, float] = {}
        self.dropped: dict[str, tuple[int, str, float]] = {}  # seeds, by, p
        first = np.array([row[:FIRST_LOOK] for row in self.rows.values()])
        squares = (_residuals(first) ** 2).sum(axis=1)
        limit = NOISY * max(float(np.sort(squares)[(len(squares) - 1) // 2]), self.resolution**2)
        names = [*self.rows]
        self.noisy = {name for name, own in zip(names, squares, strict=True) if own > limit}
        self.first = _residuals(
            np.array(
                [row[:FIRST_LOOK] for name, row in self.rows.items() if name not in self.noisy]
            )
        )

    def run(self, num_seeds: int) -> None:
        """Look after each seed from the third on."""
        num = len(self.rows)
        for seeds in range(FIRST_LOOK, num_seeds + 1):
            left = [name for name in self.rows if name not in self.dropped]
            factor, new = len(left) * (num - 1), {}
            largest = max(abs(v) for name in left for v in self.rows[name][:seeds])
            for name in left if len(left) > 1 else []:
                evidence = {
                    other: self._evidence(name, other, seeds, largest)
                    for other in left
                    if other != name
                }
                by = max(evidence, key=lambda other: evidence[other])
                p = min(1.0, factor / evidence[by]) if evidence[by] else 1.0
                self.p[name] = min(p, self.p.get(name, 1.0))
                if p < LEVEL:
                    new[name] = seeds, by, p
            self.dropped |= new

    def tests(self, a: str, b: str, seeds: int, largest: float) -> list[tuple[float, float, int]]:
        """Weight, sum of squares and degrees of freedom of the two tests of a pair."""
        differences = np.subtract(self.rows[a][:seeds], self.rows[b][:seeds])
        least = max(self.resolution, float(np.finfo(np.float32).eps) * largest) ** 2
        df = seeds - 1
        own = max(float(differences.var()) * seeds, df * least)
        if len(self.first) < 3:
            return [(1.0, own, df)]
        of_first = float(differences[:FIRST_LOOK].var()) * FIRST_LOOK
        others = max(2 * float((self.first**2).sum()) - of_first, 0.0)
        all_df = (len(self.first) - 2) * (FIRST_LOOK - 1) + df
        both = max(others + float(differences.var()) * seeds, all_df * own / df)
        common = math.inf if {a, b} & self.noisy else both
        return [(1 - OWN, common, all_df), (OWN, own, df)]

    def _evidence(self, worse: str, better: str, seeds: int, largest: float) -> float:
        total = float(np.subtract(self.rows[worse][:seeds], self.rows[better][:seeds]).sum())
        found = [
            weight * e_value(total / seeds / math.sqrt(squares / df / seeds), seeds, df)
            for weight, squares, df in self.tests(worse, better, seeds, largest)
            if math.isfinite(squares)
        ]
        return max(found)

    def interval(self, a: str, b: str) -> tuple[float, float] | None:
        """The confidence sequence of a - b over the seeds that both have."""
        seeds = min(len(self.rows[a]), len(self.rows[b]))
        own = np.subtract(self.rows[a][:seeds], self.rows[b][:seeds])
        largest = float(np.abs([self.rows[a][:seeds], self.rows[b][:seeds]]).max())
        half = min(
            radius(squares, seeds, df, LEVEL * weight)
            for weight, squares, df in self.tests(a, b, seeds, largest)
        )
        mean = float(own.mean())
        return (mean - half, mean + half) if math.isfinite(half) else None


def _residuals(table: np.ndarray) -> np.ndarray:
    """Subtract the means of rows and columns."""
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0)
    return np.asarray(table - rows - columns + table.mean())


def raced(answer: Answer, num_given: int) -> dict[str, Any]:
    """The expected entries of a race without failed runs, for which so many seeds were given."""
    given, sign = answer.given["race"], answer.runs[0].sign
    groups = {group.label: group for group in answer.tried}
    rows = {
        label: [sign * group.values()[seed] for seed in given["seeds"] if seed in group.values()]
        for label, group in groups.items()
    }
    weights = {
        label: tuple(run.result["weights_sha256"] for run in group.runs)
        for label, group in groups.items()
    }
    copies = [b for a, b in combinations(groups, 2) if weights[a] == weights[b]]
    assert not copies, "schedules with the same weights are not covered"
    race = Race(rows, answer.resolution)
    race.run(len(given["seeds"]))
    best = answer.given["winner"]
    entries = []
    for label, row in rows.items():
        interval = None if label == best else race.interval(label, best)
        if interval is not None and sign < 0:
            interval = -interval[1], -interval[0]
        common = list(zip(row, rows[best], strict=False))
        own = np.array(row)
        half = radius(float(own.var()) * len(own), len(own), len(own) - 1, LEVEL)
        mean = sign * float(own.mean())
        entries.append(
            {
                "label": label,
                "seeds": sorted(groups[label].values()),
                "mean": mean,
                "interval": (mean - half, mean + half) if math.isfinite(half) else None,
                "difference": None
                if label == best
                else sign * float(np.mean([a - b for a, b in common])),
                "difference_interval": interval,
                "p_raw": None,
                "p": None if label == best else race.p[label],
                "better_on": None if label == best else sum(a < b for a, b in common),
            }
        )
    return {
        "groups": entries,
        "race": {
            "dropped": [
                {"label": label, "seeds": seeds, "by": by, "p": p}
                for label, (seeds, by, p) in race.dropped.items()
            ],
            "left": [label for label in rows if label not in race.dropped],
            "cost": cost_of_race(answer, num_given),
        },
    }


def cost_of_race(answer: Answer, num_given: int) -> dict[str, int]:
    """Runs and updates, and those of a fixed design: as many seeds of every schedule as the command
    has or the race took, each at the mean updates of the schedule's runs."""
    steps = [[run.result["steps"] for run in group.runs] for group in answer.tried]
    runs = [run for group in answer.tried for run in group.runs]
    shared = sum(run.json("trunk.json").get("step", 0) for run in runs)
    fixed = max(num_given, len(answer.given["race"]["seeds"]))
    return {
        "runs": len(runs),
        "tuning_runs": sum(len(group.runs) for group in answer.tuning),
        "updates": sum(map(sum, steps)) - shared,
        "shared_updates": shared,
        "fixed_seeds": fixed,
        "fixed_runs": fixed * len(steps),
        "fixed_updates": round(sum(fixed * float(np.mean(own)) for own in steps)),
    }


def seeds_of_command(folder: Path, runs: Sequence[Run]) -> int:
    """The number of seeds in the command of a race, which the multirun or runs of it have saved; 0
    if it has none."""
    saved = yaml.safe_load((folder / "multirun.yaml").read_text("utf-8"))
    commands = [run.json("environment.json").get("command", []) for run in runs]
    return max(
        (
            len(item.split(","))
            for command in (saved["hydra"]["overrides"]["task"], *commands)
            for item in command
            if item.startswith("seed=") and any(key.startswith("race.budget=") for key in command)
        ),
        default=0,
    )


# Several workloads

TAU_MAX = 4.0


@dataclass(frozen=True)
class Field:
    """The runs of one workload: [entrant][seed]."""

    label: str
    seeds: list[Block]
    runs: dict[str, list[Run]]
    target: float | None  # answer.target
    relax: float

    def final(self, run: Run) -> float:
        value = run.sign * run.last(run.metric)
        return value if math.isfinite(value) else math.inf

    def bound(self, runs: Mapping[str, Sequence[Run]]) -> float:
        """The target, as a loss."""
        first = next(iter(runs.values()))[0]
        if self.target is not None:
            return first.sign * self.target
        base = min(median_high(map(self.final, own)) for own in runs.values())
        return base + self.relax * abs(base)

    def cost(self, run: Run, bound: float, in_seconds: bool = False) -> float:
        if math.isinf(self.final(run)) or not math.isfinite(bound):
            return math.inf
        epoch = run.first_epoch(run.sign * bound)
        if in_seconds:
            return run.seconds_until(epoch)
        return math.inf if epoch is None else run.epochs["step"][epoch]

    def credits(self, runs: Mapping[str, Sequence[Run]]) -> dict[str, list[float]]:
        """The credit of each run among those of its seed."""
        bound = self.bound(runs)
        costs = {label: [self.cost(run, bound) for run in own] for label, own in runs.items()}
        least = [min(column) for column in zip(*costs.values(), strict=True)]
        return {
            label: [_credit(cost, low) for cost, low in zip(own, least, strict=True)]
            for label, own in costs.items()
        }

    def medians(self, in_seconds: bool = False) -> dict[str, float]:
        bound = self.bound(self.runs)
        return {
            label: float(np.median([self.cost(run, bound, in_seconds) for run in own]))
            for label, own in self.runs.items()
        }


def _credit(cost: float, least: float) -> float:
    return 0.0 if math.isinf(cost) else max(0.0, (TAU_MAX - cost / least) / (TAU_MAX - 1))


def _is_of_comparison(item: str) -> bool:
    return item.startswith((*NOT_OF_GROUPS, "tune", "search", "hydra"))


def fields(runs: Sequence[Run], given: Mapping[str, Any]) -> list[Field]:
    """Divide the runs by workload, and those of each by the overrides that do not belong to it."""
    runs = [run for run in runs if not run.is_for_tuning]
    by_workload: dict[str, list[Run]] = {}
    for run in runs:
        model = json.dumps([run.meaning, run.config["model"]], sort_keys=True)
        by_workload.setdefault(model, []).append(run)
    tuned = {key for run in runs for key in (run.config.get("tune") or {}).get("keys", ())}
    items = {
        run.folder: {
            item.partition("=")[0]: item
            for item in run.overrides
            if not _is_of_comparison(item) and item.partition("=")[0] not in tuned
        }
        for run in runs
    }
    keys = list(dict.fromkeys(key for own in items.values() for key in own))
    varied = [key for key in keys if len({own.get(key) for own in items.values()}) > 1]
    own_keys = {
        key
        for key in varied
        if all(len({items[r.folder].get(key) for r in own}) == 1 for own in by_workload.values())
    }
    known = {each["label"]: each for each in given["workloads"]}
    entrants = [group["label"] for group in given["groups"]]
    found = []
    for own in by_workload.values():
        place = items[own[0].folder]
        label = " ".join(place[key] for key in place if key in own_keys)
        label = (
            label or f"data={own[0].config['data']['name']} model={own[0].config['model']['name']}"
        )
        divided: dict[str, dict[Block, Run]] = {}
        for run in own:
            mine = items[run.folder]
            name = " ".join(v for k, v in mine.items() if k in varied and k not in own_keys)
            divided.setdefault(name, {})[run.block] = run
        seeds = sorted(set.intersection(*(set(each) for each in divided.values())))
        rows = {name: [divided[name][seed] for seed in seeds] for name in entrants}
        goal = known[label]
        target = goal["target"] if goal["is_given"] else None
        found.append(Field(label, seeds, rows, target, given["relax"]))
    return found


def over_workloads(runs: Sequence[Run], given: Mapping[str, Any]) -> dict[str, Any]:
    """The expected entry `workloads` of answer.json."""
    own = fields(runs, given)
    entrants = [group["label"] for group in given["groups"]]
    first, num_pairs = entrants[0], len(entrants) * (len(entrants) - 1) // 2
    costs = [field.medians() for field in own]
    ratios = {name: [each[name] / min(each.values()) for each in costs] for name in entrants}
    score = {
        name: float(np.mean([_credit(c[name], min(c.values())) for c in costs]))
        for name in entrants
    }
    found = {group["label"]: group["p_raw"] for group in given["groups"]}
    raw = {name: p_of_lead(own, first, name, found[name]) for name in entrants[1:]}
    p = holm(raw, num_pairs)
    seconds = [field.medians(in_seconds=True) for field in own]
    by_time = {
        name: float(np.mean([_credit(s[name], min(s.values())) for s in seconds]))
        for name in entrants
    }
    credits = [field.credits(field.runs) for field in own]
    return {
        "groups": [
            {
                "label": name,
                "rank": 1 + sum(other > score[name] + 1e-8 for other in score.values()),
                "score": score[name],
                "seed_score": float(np.mean([np.mean(each[name]) for each in credits])),
                "interval": jeffreys([each[name] for each in credits]),
                "seconds_score": by_time[name],
                "ratios": [_finite(ratio) for ratio in ratios[name]],
                "p_raw": raw.get(name),
                "p": p.get(name),
            }
            for name in entrants
        ],
        "workloads": [
            {
                "label": field.label,
                "seeds": field.seeds,
                "target": next(iter(field.runs.values()))[0].sign * field.bound(field.runs),
                "costs": {name: _finite(cost) for name, cost in each.items()},
                "seconds": {name: _finite(time) for name, time in times.items()},
            }
            for field, each, times in zip(own, costs, seconds, strict=True)
        ],
    }


def jeffreys(rows: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """The interval of a proportion for as many runs as the variance within workloads stands for
    (Korn and Graubard 1998)."""
    if min(map(len, rows)) < 2:
        return None
    num, free = sum(map(len, rows)), sum(len(row) - 1 for row in rows)
    mean = float(np.mean([np.mean(row) for row in rows]))
    variance = sum(float(np.var(row, ddof=1)) / len(row) for row in rows) / len(rows) ** 2
    size = float(num)
    if variance > 0:
        unsure = (stats.t.ppf(0.975, num - 1) / stats.t.ppf(0.975, free)) ** 2
        size = min(size, mean * (1 - mean) / variance * unsure)
    low, high = stats.beta(mean * size + 0.5, (1 - mean) * size + 0.5).ppf([0.025, 0.975])
    return (min(low, mean) if mean > 0 else 0.0, max(high, mean) if mean < 1 else 1.0)


NUM_EXCHANGES = 2_000


def p_of_lead(own: Sequence[Field], a: str, b: str, given: float | None) -> float:
    """All exchanges of the runs of a and b on each seed of each workload, written out, and random
    ones above 13 seeds; `given` is what the program found by random ones."""
    places = [(field, i) for field in own for i in range(len(field.seeds))]
    leads, is_exact = [], len(places) <= EXACT
    drawn = np.random.default_rng(3).random((NUM_EXCHANGES, len(places))) < 0.5
    drawn[0] = False
    for flips in product((False, True), repeat=len(places)) if is_exact else drawn:
        swaps = dict(zip([(field.label, i) for field, i in places], flips, strict=True))
        lead = 0.0
        for field in own:
            runs = {name: [*each] for name, each in field.runs.items()}
            for i in range(len(field.seeds)):
                if swaps[field.label, i]:
                    runs[a][i], runs[b][i] = runs[b][i], runs[a][i]
            credits = field.credits(runs)
            lead += (float(np.mean(credits[a])) - float(np.mean(credits[b]))) / len(own)
        leads.append(lead)
    if leads[0] <= 1e-9:
        return 1.0
    ahead = sum(lead >= leads[0] - 1e-9 for lead in leads)
    behind = sum(lead <= leads[0] + 1e-9 for lead in leads)
    p = min(1.0, 2 * min(ahead, behind) / len(leads))
    return p if is_exact else up_to_draws(p, given, NUM_EXCHANGES)


# Comparison of what is expected with what is written

# Three standard errors of the program's 20,000 draws and of the 200,000 here
OF_DRAWS = {"probability_best": 3 * math.sqrt(0.25 / 20_000 + 0.25 / 200_000)}
# The ends of the winner's interval are quantiles of 100,000 draws, of a statistic with heavy tails
OF_QUANTILES = 0.03  # of its width


def different(expected: Any, found: Any, place: str) -> Iterator[str]:
    """Yield the places where numbers differ. Keys that are not expected are not looked at."""
    if isinstance(expected, Mapping):
        for key, value in expected.items():
            if key == "winner_value" and value is not None:
                value, found = _without_noise(value, found)
            yield from different(value, found.get(key, "missing"), f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        found = [] if found is None else found
        if not isinstance(found, list) or len(expected) != len(found):
            yield f"{place}: {found}, expected {expected}"
            return
        for i, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            yield from different(ours, theirs, f"{place}[{i}]")
    elif isinstance(expected, bool | str | None) or isinstance(found, bool | str | None):
        if expected != found:
            yield f"{place}: {found}, expected {expected}"
    else:
        # sums in another order; p of differences that cancel, and quadrature in a race
        slack = OF_DRAWS.get(place.rpartition(".")[2], 0.0)
        if not math.isclose(expected, found, rel_tol=1e-6, abs_tol=max(slack, 1e-9)):
            yield f"{place}: {found}, expected {expected}"


def _without_noise(
    value: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Replace the expected interval by the one that is found, if it is the same up to the noise of
    quantiles."""
    low, high = value["interval"]
    given = (found.get("winner_value") or {}).get("interval") or (math.inf, math.inf)
    slack = OF_QUANTILES * (high - low)
    is_same = all(abs(a - b) <= slack for a, b in zip(value["interval"], given, strict=True))
    return ({**value, "interval": given} if is_same else value), found


def tables(path: Path) -> list[list[dict[str, str]]]:
    """The tables of a Markdown page, as rows by column."""
    found: list[list[list[str]]] = [[]]
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [
        [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]] for lines in found if lines
    ]


NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")


def is_printed(cell: str, value: Any) -> bool:
    """Return whether a cell shows a value to its last digit."""
    if value is None:
        return cell == ""
    if isinstance(value, str):
        return True
    if isinstance(value, tuple):
        parts = NUMBER.findall(cell)
        return len(parts) == len(value) and all(map(is_printed, parts, value))
    if math.isinf(value):
        return cell == "never"
    cell = cell.replace(",", "")
    number, _, exponent = cell.lower().partition("e")
    digits = len(number.partition(".")[2])
    unit = 10.0 ** (int(exponent or 0) - digits)
    return math.isclose(float(cell), value, rel_tol=1e-9, abs_tol=0.5000001 * unit)


def wrong_cells(expected: Sequence[Mapping[str, Any]], table: Any, place: str) -> Iterator[str]:
    if len(expected) != len(table):
        yield f"{place}: {len(table)} rows, expected {len(expected)}"
        return
    for i, (row, cells) in enumerate(zip(expected, table, strict=True)):
        for name, value in row.items():
            if name not in cells:
                yield f"{place} has no column {name}"
            elif not is_printed(cells[name], value):
                yield f"{place}, row {i + 1}, {name}: {cells[name]!r}, expected {value}"


# A sentence: how it begins, how it ends (or not), and the numbers between in their order
Sentence = tuple[str, str, Sequence[float | None]]


def wrong_sentences(expected: Sequence[Sentence], text: str, place: str) -> Iterator[str]:
    """Yield the sentences that are missing or have other numbers. A None may be left out."""
    for begin, end, values in expected:
        _, found, rest = text.partition(begin)
        if not found:
            yield f"{place}: nothing begins with {begin!r}"
            continue
        between = rest.partition("\n")[0].partition(end)[0] if end else rest.partition("\n")[0]
        known = tuple(value for value in values if value is not None)
        if not is_printed(between, known):
            yield f"{place}: {begin}{between!r}, expected {known}"


def _printed_p(p: float | None) -> float | None:
    """A p below 0.0001 is printed as p < 0.0001."""
    return None if p is None else max(p, 1e-4)


def sentences(answer: Answer, expected: Mapping[str, Any]) -> list[Sentence]:
    """The sentences of one answer that have numbers."""
    best, *others = [entry for entry in expected["groups"] if entry["rank"]]
    name, num = best["label"], len(answer.seeds)
    has = "has a" if not others else "has the best"
    ends = (95, *best["interval"], num) if best["interval"] else ()
    found: list[Sentence] = []
    if ends and name != "defaults":
        found.append((f"{name} {has} {expected['metric']}, ", ")", (best["mean"], *ends)))
    tested = [each for each in others if not each["is_same_run"] and each["difference_interval"]]
    if not expected["is_real"]:
        found += [_of_other(answer, each, num) for each in tested if each["p"] is not None]
    elif tested:
        worst = _printed_p(max(each["p"] for each in others))
        found.append(("beyond the seeds' noise (", ")", (worst,)))
    value = answer.given["winner_value"]  # whose interval has the noise of the program's draws
    if value is not None and value["groups"] > 1:
        numbers = (value["groups"], value["luck"], 95, *value["interval"])
        found.append((f"these runs chose {name} among ", "", numbers))
    found += [*_of_signs(others, expected["comparisons"], num), *_of_folds(answer)]
    return [*found, *(_of_test(expected["test"]) if expected.get("test") else ())]


def _of_other(answer: Answer, entry: Mapping[str, Any], num: int) -> Sentence:
    """The sentence of a group that is compared with the best one."""
    margin, p, within = answer.given["margin"], _printed_p(entry["p"]), entry["p_equivalent"]
    is_real, is_within = entry["p"] < LEVEL, within is not None and within < LEVEL
    by = abs(entry["difference"]) or None
    numbers = [by, 95, *entry["difference_interval"], entry["better_on"], num]
    pair = answer.pairs[entry["label"], answer.best.label]
    if is_within and not is_real:
        tail = [margin, _printed_p(within)]
    elif is_real:
        tail = [p, margin if is_within else None]
    else:
        tail = [p, pair.more_seeds(entry["p"], len(answer.p))]
    return f"  {entry['label']}: ", " of two one-sided" if is_within else "", [*numbers, *tail]


def _of_signs(others: Sequence[Mapping[str, Any]], num_pairs: int, num: int) -> Iterator[Sentence]:
    """The sentence of the sign flips, if they agree with all differences beyond the noise, or
    cannot."""
    real = [each for each in others if each["p"] is not None and each["p"] < LEVEL]
    flips = [each["p_signs"] for each in real if each["p_signs"] is not None]
    least = min(1.0, num_pairs * 2 / min(2**num, 10_000))
    if flips and max(flips) < LEVEL:
        yield "differences are normal, agrees (", ")", (_printed_p(max(flips)),)
    elif flips and least >= LEVEL:
        yield "cannot show this with ", " seeds", (num,)
        yield "its smallest possible ", "", (_printed_p(least),)


def _of_folds(answer: Answer) -> Iterator[Sentence]:
    """The deviations of the best group between folds and between the seeds of a fold: one-way
    analysis of variance with random effects."""
    values = {b: v for b, v in answer.best.values().items() if isinstance(b, tuple)}
    seeds, folds = ({block[i] for block in values} for i in (0, 1))
    is_whole = len(values) == len(seeds) * len(folds)
    if len(answer.ranked) < 2 or min(len(seeds), len(folds)) < 2 or not is_whole:
        return
    rows = [[values[seed, fold] for seed in seeds] for fold in folds]
    within = float(np.mean([np.var(row, ddof=1) for row in rows]))
    between = float(np.var([np.mean(row) for row in rows], ddof=1)) - within / len(seeds)
    numbers = (math.sqrt(max(between, 0.0)), math.sqrt(within))
    yield f"standard deviation of the best group's {answer.runs[0].metric}: ", "", numbers


def _of_test(test: Mapping[str, Any]) -> list[Sentence]:
    """The sentences on the test split."""
    known = [each for each in test["groups"] if each["interval"]]
    found: list[Sentence] = []
    for each in known:
        numbers = (each["mean"], 95, *each["interval"], each["seeds"])
        found.append((f"  {each['label']}: {test['metric']} ", "", numbers))
    if test["difference_interval"]:
        sign = -1 if test["difference"] < 0 else 1
        ends = sorted(sign * end for end in test["difference_interval"])
        begin = "here by " if test["agrees"] else "is ahead by "
        lead = (abs(test["difference"]), 95, *ends, _printed_p(test["p"]))
        found.append((begin, "", lead))
    return found


def sentences_of_race(expected: Mapping[str, Any], margin: float | None) -> list[Sentence]:
    """The sentences of a race that have numbers; with a margin, only those of dropped schedules."""
    race, (best, *others) = expected["race"], expected["groups"]
    cost, dropped = race["cost"], {each["label"]: each for each in race["dropped"]}
    found: list[Sentence] = [
        (f"{best['label']} has the best ", "", (best["mean"], len(best["seeds"]))),
        ("cost: ", " runs", (cost["runs"],)),
        ("a fixed design, ", " of every", (cost["fixed_seeds"],)),
        ("every schedule, costs ", " updates", (cost["fixed_runs"], cost["fixed_updates"])),
    ]
    for each in others:
        drop = dropped.get(each["label"])
        ends = (95, *each["difference_interval"]) if each["difference_interval"] else ()
        numbers = [abs(each["difference"]), *ends]
        begin, end = f"  {each['label']}: ", ""
        if drop is None:
            numbers.append(_printed_p(each["p"]))
        elif drop["by"] == best["label"]:
            numbers += [drop["seeds"], _printed_p(drop["p"])]
        else:  # the label of the rival may have numbers
            numbers, end = [*numbers, drop["seeds"]], " because of"
        if drop is not None or margin is None:
            found.append((begin, end, numbers))
    return found


def sentences_over(expected: Mapping[str, Any]) -> list[Sentence]:
    """The first sentence over several workloads, if one group leads."""
    best, *others = expected["groups"]
    num = len(expected["workloads"])
    if not best["score"] or any(each["rank"] == 1 for each in others):
        return []
    ratios = [ratio for ratio in best["ratios"] if ratio is not None]
    seed_by_seed = (best["seed_score"], 95, *best["interval"]) if best["interval"] else ()
    numbers = (best["score"], 1, *seed_by_seed, len(ratios), sum(ratio <= 1 for ratio in ratios))
    begin = f"Over {num} workloads, {best['label']} has the best score, "
    return [(begin, ". ", numbers)]


def check(folder: Path, runs: Sequence[Path] = ()) -> list[str]:
    """Return the numbers of a comparison's folder that differ from those of its runs."""
    found = sorted(runs or {path.parent for path in folder.glob("[!.]*/result.json")})
    divided: dict[str, list[Run]] = {}
    for run in map(Run, found):
        divided.setdefault(run.meaning, []).append(run)
    all_tables, wrong = tables(folder / "comparison.md"), list[str]()
    main = [table for table in all_tables if "from the best" in table[0]]
    tuned = [table for table in all_tables if [*table[0]][:1] == ["overrides"]]
    text = unescape((folder / "comparison.md").read_text("utf-8"))
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[-len(divided) :]
    for i, own in enumerate(divided.values()):
        name = "answer.json" if i == 0 else f"answer_{i + 1}.json"
        given = json.loads((folder / name).read_text("utf-8"))
        answer = Answer(own, given)
        if given["race"]:
            expected = raced(answer, seeds_of_command(folder, own))
            order = [group["label"] for group in given["groups"]]
            expected["groups"].sort(key=lambda group: order.index(group["label"]))
            # those that one look drops, and those that are left, are in the order of the command
            dropped = [each["label"] for each in given["race"]["dropped"]]
            expected["race"]["dropped"].sort(key=lambda each: dropped.index(each["label"]))
            expected["race"]["left"].sort(key=given["race"]["left"].index)
            wrong += different(expected, given, name)
            wrong += wrong_sentences(
                sentences_of_race(expected, given["margin"]), parts[i], "comparison.md"
            )
            continue
        expected = answer.expected()
        wrong += different(expected, given, name)
        wrong += wrong_sentences(sentences(answer, expected), parts[i], "comparison.md")
        wrong += wrong_cells(answer.rows(), main[i], f"comparison.md, table {i + 1}")
        wrong += [f"{label}: not the best on the tuning seeds" for label in answer.wrong_choices()]
        if answer.tuning:
            wrong += wrong_cells(answer.tuning_rows(), tuned.pop(0), "comparison.md, tuning")
    first = json.loads((folder / "answer.json").read_text("utf-8"))
    if first["workloads"]:
        every = [run for own in divided.values() for run in own]
        expected = over_workloads(every, first["workloads"])
        wrong += different(expected, first["workloads"], "workloads")
        wrong += wrong_cells(*_score_table(expected, all_tables), "comparison.md, workloads")
        wrong += wrong_cells(*_cost_table(expected, all_tables), "comparison.md, costs")
        wrong += wrong_sentences(sentences_over(expected), text, "comparison.md, workloads")
    return wrong


def _score_table(
    expected: Mapping[str, Any], all_tables: Sequence[Any]
) -> tuple[list[dict[str, Any]], Any]:
    (table,) = [table for table in all_tables if "seed by seed" in table[0]]
    num = len(expected["workloads"])

    def within(group: Mapping[str, Any], tau: float) -> tuple[int, int]:
        ratios = group["ratios"]
        return sum(ratio is not None and ratio <= tau for ratio in ratios), num

    rows = [
        {
            "rank": group["rank"],
            "score": group["score"],
            "seed by seed": group["seed_score"],
            "95 % interval": group["interval"],
            "raw p": group["p_raw"],
            "p": group["p"],
            "reached": within(group, math.inf),
            "least cost on": within(group, 1.0),
            "within 2 times": within(group, 2.0),
            "score by seconds": group["seconds_score"],
        }
        for group in expected["groups"]
    ]
    return rows, table


def _cost_table(
    expected: Mapping[str, Any], all_tables: Sequence[Any]
) -> tuple[list[dict[str, Any]], Any]:
    (table,) = [table for table in all_tables if [*table[0]][:1] == ["workload"]]
    rows = []
    for each in expected["workloads"]:
        pairs = {name: (cost, each["seconds"][name]) for name, cost in each["costs"].items()}
        cells = {
            name: math.inf if cost is None else (cost,) if seconds is None else (cost, seconds)
            for name, (cost, seconds) in pairs.items()
        }
        target = (each["target"],) if math.isfinite(each["target"]) else "none"
        rows.append({"target": target, "seeds": len(each["seeds"]), **cells})
    return rows, table


if __name__ == "__main__":
    lines = check(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    print("\n".join(lines) or "all numbers are the same")
    sys.exit(bool(lines))
