"""Other libraries' schedules at their degenerate arguments: 0 steps, factors of 0 and 1, equal
boundaries, no decay.

Every combination of the values below, against the installed library: its numbers, or refused where
it fails. Values that a class here refuses though the library takes them (a milestone of -1) are not
among them.
"""

import importlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from runner.schedules import Clock
from tests.schedules.drawn import made
from tests.schedules.test_peers import EXACT, FLOAT32

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

LR, NUM = 0.1, 12
WARMUPS, TOTALS = [0, 1, 3, 20], [0, 1, 3, 12]
FACTORS = [0.0, 0.2, 1.0, 1.5]
Edges = Mapping[str, Mapping[str, Sequence[Any]]]

TORCH: Edges = {
    "ConstantLR": {"factor": FACTORS[1:], "total_iters": [0, 1, 2]},
    "LinearLR": {"start_factor": FACTORS, "end_factor": FACTORS, "total_iters": [0, 1, 3]},
    "StepLR": {"step_size": [1, 3], "gamma": [0.0, 1.0, 2.0, -0.5]},
    "MultiStepLR": {"milestones": [[], [0], [0, 0], [3, 3], [5, 2]],
        "gamma": [0.0, 1.0, 2.0, -0.5]},
    "ExponentialLR": {"gamma": [0.0, 1.0, -0.5, 2.0]},
    "PolynomialLR": {"total_iters": [0, 1, 3], "power": [0.0, 1.0, -1.0]},
    "CosineAnnealingLR": {"T_max": [1, 2, 3], "eta_min": [0.0, 0.1, 0.2]},
    "CosineAnnealingWarmRestarts": {"T_0": [0, 1, 2], "T_mult": [0, 1, 2],
        "eta_min": [0.0, 0.1, 0.2]},
    "CyclicLR": {
        "base_lr": [0.0, 0.1], "max_lr": [0.0, 0.1], "step_size_up": [1, 2],
        "step_size_down": [None, 0, 1],
        "mode": ["triangular", "triangular2", "exp_range"], "gamma": [0.0, 1.0],
        "cycle_momentum": [False],
    },
    "OneCycleLR": {
        "max_lr": [0.1], "total_steps": [1, 2, 5, 12], "pct_start": [0.0, 0.1, 0.5, 1.0],
        "div_factor": [1.0],
        "anneal_strategy": ["cos", "linear"], "three_phase": [False, True],
        "cycle_momentum": [False],
    },
}  # fmt: skip
KERAS: Edges = {
    "ExponentialDecay": {"decay_steps": [1, 3], "decay_rate": [0.0, 1.0, 2.0],
        "staircase": [False, True]},
    "InverseTimeDecay": {"decay_steps": [1, 3], "decay_rate": [0.0, 1.0],
        "staircase": [False, True]},
    "PiecewiseConstantDecay": {"boundaries": [[], [0], [3], [3, 3]],
        "values": [[0.1], [0.1, 0.0], [0.1, 0.2, 0.3]]},
    "PolynomialDecay": {"decay_steps": [1, 3], "end_learning_rate": [0.0, 0.2], "power": [0.0, 2.0],
        "cycle": [False, True]},
    "CosineDecay": {"decay_steps": [1, 3], "alpha": [0.0, 2.0], "warmup_target": [None, 0.0, 0.2],
        "warmup_steps": [0, 3]},
    "CosineDecayRestarts": {"first_decay_steps": [1, 3], "t_mul": [1.0, 2.0], "m_mul": [0.0, 1.0],
        "alpha": [0.0, 1.0]},
}  # fmt: skip
HUGGING_FACE: Edges = {
    "constant_with_warmup": {"num_warmup_steps": WARMUPS},
    "linear": {"num_warmup_steps": WARMUPS, "num_training_steps": TOTALS},
    "cosine": {"num_warmup_steps": WARMUPS, "num_training_steps": TOTALS,
        "num_cycles": [0, 0.5, 1.0]},
    "cosine_with_restarts": {"num_warmup_steps": WARMUPS, "num_training_steps": TOTALS,
        "num_cycles": [0, 1, 2]},
    "polynomial": {
        "num_warmup_steps": WARMUPS, "num_training_steps": TOTALS, "lr_end": [0.0, 0.05, 0.1],
        "power": [0.0, 1.0],
    },
    "inverse_sqrt": {"num_warmup_steps": WARMUPS, "timescale": [None, 1]},
    "cosine_with_min_lr": {
        "num_warmup_steps": WARMUPS, "num_training_steps": TOTALS, "min_lr": [None, 0.0, 0.2],
        "min_lr_rate": [None, 0.0, 1.0],
    },
    "warmup_stable_decay": {
        "num_warmup_steps": WARMUPS, "num_decay_steps": [0, 5], "num_training_steps": [3, 12],
        "num_stable_steps": [None, 0],
        "decay_type": ["linear", "1-sqrt"], "min_lr_ratio": [0.0, 1.0],
    },
}  # fmt: skip


def combinations(edges: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*edges.values()):
        yield {key: value for key, value in zip(edges, values, strict=True) if value is not None}


def stepped(make: Callable[[Any], Any], num: int) -> list[float]:
    """The rate of each update; torch's and transformers' schedulers raise here where they divide by
    0."""
    torch = importlib.import_module("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)
    scheduler, found = make(optimizer), []
    for step in range(num):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step < num - 1:
            scheduler.step()
    return found


def by_torch(name: str, args: dict[str, Any]) -> list[float]:
    kind = getattr(importlib.import_module("torch").optim.lr_scheduler, name)
    return stepped(lambda optimizer: kind(optimizer, **args), args.get("total_steps", NUM))


def by_keras(name: str, args: dict[str, Any]) -> list[float]:
    kind = getattr(importlib.import_module("keras").optimizers.schedules, name)
    schedule = kind(**args, **({} if "boundaries" in args else {"initial_learning_rate": LR}))
    return [float(schedule(np.int64(step))) for step in range(NUM)]


def by_transformers(name: str, args: dict[str, Any]) -> list[float]:
    get, rest = importlib.import_module("transformers").get_scheduler, dict(args)
    common = {key: rest.pop(key, None) for key in ("num_warmup_steps", "num_training_steps")}
    return stepped(
        lambda optimizer: get(name, optimizer, **common, scheduler_specific_kwargs=rest or None),
        NUM,
    )


LIBRARIES = {
    "from_torch": (TORCH, by_torch, EXACT),
    "from_keras": (KERAS, by_keras, FLOAT32),
    "from_huggingface": (HUGGING_FACE, by_transformers, EXACT),
}


def ours(library: str, name: str, args: dict[str, Any], num: int) -> np.ndarray | None:
    try:
        schedule = made({"name": library, "class": name, "args": args, "tick": "step"})
        rates = schedule.rates(np.arange(num), Clock(num, num), LR)
    except ValueError:
        return None
    return rates if np.isfinite(rates).all() else None  # lint.py refuses the others


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "name"), [(k, name) for k, (edges, *_) in LIBRARIES.items() for name in edges]
)
def test_degenerate_arguments_give_the_library_s_numbers_or_are_refused(
    library: str, name: str
) -> None:
    edges, theirs, tolerance = LIBRARIES[library]
    for args in combinations(edges[name]):
        try:
            expected: list[float] | None = theirs(name, args)
        except (ValueError, ZeroDivisionError, IndexError):
            expected = None
        found = ours(library, name, args, len(expected or range(NUM)))
        assert (found is None) == (expected is None), (args, found, expected)
        if found is not None:
            assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), (
                args,
                found,
                expected,
            )


@pytest.mark.parametrize("milestone", [0, 3])
@pytest.mark.parametrize("name", ["ConstantLR", "LinearLR", "PolynomialLR"])
def test_a_part_of_no_steps_behind_a_milestone_is_torch_s(name: str, milestone: int) -> None:
    """torch enters a part at its milestone by the closed form, which divides by the part's number
    of steps."""
    schedulers = importlib.import_module("torch").optim.lr_scheduler
    parts = [("ExponentialLR", {"gamma": 0.5}), (name, {"total_iters": 0})]
    said = [{"class": part, "args": args} for part, args in parts]
    found = ours("from_torch", "SequentialLR", {"schedulers": said, "milestones": [milestone]}, NUM)

    def make(optimizer: Any) -> Any:
        return schedulers.SequentialLR(
            optimizer,
            [getattr(schedulers, part)(optimizer, **args) for part, args in parts],
            [milestone],
        )

    if milestone and name != "ConstantLR":
        with pytest.raises(ZeroDivisionError):
            stepped(make, NUM)
        assert found is None
    else:
        np.testing.assert_allclose(found, stepped(make, NUM), rtol=EXACT)
