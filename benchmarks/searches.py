"""Compare what a sampler of a search finds with what random search finds in as many trials.

    python -m benchmarks.searches [--sampler gp] [--trials 20] [--repetitions 10]

A repetition searches the space of search=schedule twice, by the sampler and at random, each with
the repetition's number as the sampler's seed, without pruning. A trial is a small run on digits.
Prints the best validation loss of each (mean over the repetitions), and the mean difference with
its 95 % interval (Student's t, paired by repetition): below 0 the sampler is better.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from scipy import stats

from benchmarks.report import layout
from runner import RunError, train
from runner.cli.overrides import parse_overrides
from runner.cli.search import Search
from runner.cli.space import Space, space
from runner.config.conf_folder import CONF
from runner.run.study import Objective, Settings

SAMPLERS = ("tpe", "cmaes", "gp", "quasi_random")
KEYS = ("data=digits", "model=linear", "trainer.max_steps=120", "trainer.batch_size=128")
HEADER = ("sampler", "trials", "repetitions", "its best", "best at random", "difference")


def main() -> int:
    arguments = _parser().parse_args()
    searched = _space()
    best: dict[str, list[float]] = {arguments.sampler: [], "random": []}
    for number in range(arguments.repetitions):
        for name, found in best.items():
            found.append(_best(searched, name, number, arguments.trials))
        print(f"repetition {number + 1}", file=sys.stderr, flush=True)
    print(layout([HEADER, _row(arguments.sampler, arguments.trials, *best.values())], True))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What a sampler finds, against random search.")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=10)
    return parser


def _space() -> Space:
    """Return the space of search=schedule: categories, floats, integers and conditions."""
    sweeper: Any = OmegaConf.to_container(OmegaConf.load(CONF / "search" / "schedule.yaml"))
    sweeper = sweeper["hydra"]["sweeper"]

    def parsed(ranges: Mapping[str, Any]) -> Any:
        return parse_overrides([f"{key}={value}" for key, value in ranges.items()], None)

    conditions = {text: parsed(ranges) for text, ranges in sweeper["conditions"].items()}
    return space(parsed(sweeper["params"]), conditions, set())


def _best(searched: Space, name: str, number: int, num_trials: int) -> float:
    """Return the smallest validation loss that a search finds."""
    options: Any = OmegaConf.load(CONF / "hydra" / "sweeper" / "sampler" / f"{name}.yaml")
    with tempfile.TemporaryDirectory() as root:
        objectives = (Objective("val/loss", maximizes=False),)
        settings = Settings(Path(root), objectives, {"name": "none"})
        search = Search(searched, settings, {**options, "seed": number}, num_trials, KEYS, ())
        search.open()
        losses = []
        while (trial := search.draw()) is not None:
            (overrides,) = search.overrides(trial.chosen)
            losses.append(_loss([*overrides, "device=cpu", f"output.root={root}"]))
            search.tell(trial, [[losses[-1]]], is_pruned=False)
    return min(losses)


def _loss(overrides: Sequence[str]) -> float:
    """Return the validation loss after a run; infinite if it diverged."""
    try:
        value = float(train(list(overrides), quiet=True).metrics["val/loss"][-1])
    except RunError:
        return math.inf
    return value if math.isfinite(value) else math.inf


def _row(name: str, num_trials: int, own: Sequence[float], other: Sequence[float]) -> Sequence[str]:
    differences = np.subtract(own, other)
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return (
        *(name, str(num_trials), str(len(own)), f"{np.mean(own):.4f}", f"{np.mean(other):.4f}"),
        f"{np.mean(differences):+.4f} ({low:+.4f} to {high:+.4f})",
    )


if __name__ == "__main__":
    sys.exit(main())
