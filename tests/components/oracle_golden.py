"""python -m tests.components.oracle_golden: what optimizers of other packages do with the problems
of test_optimizer_oracles.py.

Writes oracle_golden.json, which the tests compare with, so that they do not need the packages:
pip install schedulefree==1.4.1 prodigyopt==1.1.2 pytorch-optimizer==4.1.0.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.spec import Weights
from tests.optimizer_steps import drawn

GOLDEN = Path(__file__).with_name("oracle_golden.json")
NUM_SETS, NUM_STEPS = 6, 8
RATES = [0.01, 0.02, 0.005, 0.0, 0.013, 0.01, 0.03, 0.002]
NAMES = ("a/kernel", "b/bias")


def problem(seed: int) -> tuple[Weights, list[Weights]]:
    """The first weights and the gradients."""
    weights, *gradients = (
        {name: values[name] for name in NAMES} for values in drawn(seed, 1 + NUM_STEPS)
    )
    return weights, gradients


def keys(name: str, seed: int) -> dict[str, float]:
    """The hyperparameters of a set, by their names in this project."""
    rng = np.random.default_rng([seed, 2])
    drawn = {
        "beta1": rng.uniform(0.5, 0.95),
        "weight_decay": rng.uniform(0.0, 0.3) * (seed % 2),
        "beta2": rng.uniform(0.9, 0.999),
        "eps": rng.uniform(1e-8, 1e-3),
        "r": rng.uniform(0.0, 2.0),
        "weight_lr_power": rng.uniform(0.0, 2.0),
        "beta3": rng.uniform(0.99, 0.9999),
        "alpha": rng.uniform(1.0, 10.0),
        "d0": 10 ** rng.uniform(-6, -3),
        "d_coef": rng.uniform(0.5, 2.0),
        "growth_rate": rng.uniform(1.02, 2.0),
    }
    return {name: drawn[name] for name in KEYS[name]}


KEYS: Mapping[str, tuple[str, ...]] = {
    "schedule_free_sgd": ("beta1", "weight_decay", "r", "weight_lr_power"),
    "schedule_free_adamw": ("beta1", "beta2", "eps", "weight_decay", "r", "weight_lr_power"),
    "ademamix": ("beta1", "beta2", "beta3", "alpha", "eps", "weight_decay"),
    "prodigy": ("beta1", "beta2", "eps", "weight_decay", "d0", "d_coef", "growth_rate"),
}


def schedule_free_sgd(p: Any, k: Mapping[str, float]) -> Any:
    from schedulefree import SGDScheduleFree

    return SGDScheduleFree(
        p, momentum=k["beta1"], weight_decay=k["weight_decay"], r=k["r"],
        weight_lr_power=k["weight_lr_power"],
    )  # fmt: skip


def schedule_free_adamw(p: Any, k: Mapping[str, float]) -> Any:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(
        p, betas=(k["beta1"], k["beta2"]), eps=k["eps"], weight_decay=k["weight_decay"],
        r=k["r"], weight_lr_power=k["weight_lr_power"],
    )  # fmt: skip


def ademamix(p: Any, k: Mapping[str, float]) -> Any:
    from pytorch_optimizer import AdEMAMix

    return AdEMAMix(
        p, betas=(k["beta1"], k["beta2"], k["beta3"]), alpha=k["alpha"], eps=k["eps"],
        weight_decay=k["weight_decay"], weight_decouple=True,
    )  # fmt: skip


def prodigy(p: Any, k: Mapping[str, float]) -> Any:
    from prodigyopt import Prodigy

    return Prodigy(
        p, betas=(k["beta1"], k["beta2"]), eps=k["eps"], weight_decay=k["weight_decay"],
        d0=k["d0"], d_coef=k["d_coef"], growth_rate=k["growth_rate"],
    )  # fmt: skip


ORACLES: Mapping[str, Callable[[Any, Mapping[str, float]], Any]] = {
    "schedule_free_sgd": schedule_free_sgd,
    "schedule_free_adamw": schedule_free_adamw,
    "ademamix": ademamix,
    "prodigy": prodigy,
}
# the modules that they are in
PACKAGES: Mapping[str, str] = {
    "schedule_free_sgd": "schedulefree",
    "schedule_free_adamw": "schedulefree",
    "ademamix": "pytorch_optimizer",
    "prodigy": "prodigyopt",
}


def rates(name: str) -> list[float]:
    """Prodigy's rate is a factor of its own estimate, usually 1."""
    return [rate * 50 for rate in RATES] if name == "prodigy" else RATES


def trained(name: str, seed: int) -> dict[str, list[float]]:
    """Return the weights for evaluation after the last update."""
    import torch

    weights, gradients = problem(seed)
    parameters = {
        key: torch.nn.Parameter(torch.from_numpy(value.copy())) for key, value in weights.items()
    }
    native = ORACLES[name]([*parameters.values()], keys(name, seed))
    is_averaged = name.startswith("schedule_free")
    if is_averaged:
        native.train()
    for values, rate in zip(gradients, rates(name), strict=True):
        native.param_groups[0]["lr"] = rate
        for key, p in parameters.items():
            p.grad = torch.from_numpy(values[key].copy())
        native.step()
    if is_averaged:
        native.eval()
    return {key: p.detach().flatten().tolist() for key, p in parameters.items()}


def main() -> None:
    golden = {name: [trained(name, seed) for seed in range(NUM_SETS)] for name in ORACLES}
    GOLDEN.write_text(json.dumps(golden, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
