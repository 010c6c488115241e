"""The schedules give the curves that torch, Keras and Optax compute themselves
(tests/golden/README.md)."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from runner.schedules import Clock
from runner.schedules.named import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Piecewise,
    Polynomial,
    Step,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

# Of the curve's peak. float64: room for the libraries' own recursions over some hundred steps
# (torch multiplies rates up step by step). Keras computes in float32, whose spacing is 1.2e-7
# relative, in a few operations.
TOLERANCE = {"torch": 1e-9, "keras": 2e-6, "optax": 1e-9}


class Same(NamedTuple):
    """The same schedule here; compared for t < `until`."""

    schedule: Any
    lr: float
    until: int | None = None


def keys(num_warmup: int = 0) -> dict[str, Any]:
    """The keys of every schedule; the libraries' warm-ups start at 0 and reach the rate after the
    last of their steps."""
    return {"warmup": f"{num_warmup}steps", "warmup_shape": "linear", "warmup_edge": "left"}


def ending(num_steps: int, num_warmup: int = 0) -> dict[str, Any]:
    return {"duration": f"{num_steps}steps", "edge": "left", **keys(num_warmup)}


def exponential(rate: float, steps: int, staircase: bool, num_warmup: int = 0) -> Exponential:
    return Exponential(
        name="exponential",
        decay_rate=rate,
        decay_steps=steps,
        staircase=staircase,
        **keys(num_warmup),
    )


def linear(final_lr: float, num_steps: int) -> Linear:
    return Linear(name="linear", final_lr=final_lr, **ending(num_steps))


def polynomial(power: float, final_lr: float, num_steps: int) -> Polynomial:
    return Polynomial(name="polynomial", power=power, final_lr=final_lr, **ending(num_steps))


def cosine(final_lr: float, num_steps: int, num_warmup: int = 0, exponent: float = 1.0) -> Cosine:
    return Cosine(
        name="cosine", final_lr=final_lr, exponent=exponent, **ending(num_steps, num_warmup)
    )


def piecewise(boundaries: Sequence[int], factors: Sequence[float]) -> Piecewise:
    return Piecewise(
        name="piecewise",
        boundaries=[f"{b}steps" for b in boundaries],
        factors=list(factors),
        **keys(),
    )


def torch_exponential(lr: float, *, gamma: float) -> Same:
    return Same(exponential(gamma, 1, staircase=False), lr)


def torch_step(lr: float, *, step_size: int, gamma: float) -> Same:
    return Same(Step(name="step", decay_rate=gamma, step_size=step_size, **keys()), lr)


def torch_multi_step(lr: float, *, milestones: list[int], gamma: float) -> Same:
    return Same(piecewise(sorted(milestones), [gamma**i for i in range(len(milestones) + 1)]), lr)


def torch_constant(lr: float, *, factor: float = 1 / 3, total_iters: int = 5) -> Same | None:
    return (
        Same(piecewise([total_iters], [factor, 1.0]), lr) if total_iters else None
    )  # 0: torch keeps the factor for ever


def torch_linear(
    lr: float, *, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
) -> Same:
    return Same(linear(lr * end_factor, total_iters), lr * start_factor)


def torch_polynomial(lr: float, *, total_iters: int, power: float) -> Same:
    return Same(polynomial(power, 0.0, total_iters), lr)


def torch_cosine(lr: float, *, T_max: int, eta_min: float) -> Same:  # noqa: N803  # torch's names
    return Same(cosine(eta_min, T_max), lr, until=T_max + 1)


def keras_exponential(
    _: None,
    *,
    initial_learning_rate: float,
    decay_steps: int,
    decay_rate: float,
    staircase: bool = False,
) -> Same:
    return Same(exponential(decay_rate, decay_steps, staircase), initial_learning_rate)


def keras_polynomial(
    _: None,
    *,
    initial_learning_rate: float,
    decay_steps: int,
    end_learning_rate: float = 1e-4,
    power: float = 1.0,
    cycle: bool = False,
) -> Same | None:
    return (
        None
        if cycle
        else Same(polynomial(power, end_learning_rate, decay_steps), initial_learning_rate)
    )


def keras_cosine(
    _: None,
    *,
    initial_learning_rate: float,
    decay_steps: int,
    alpha: float = 0.0,
    warmup_target: float | None = None,
    warmup_steps: int = 0,
) -> Same | None:
    if warmup_target is None:
        return Same(cosine(alpha * initial_learning_rate, decay_steps), initial_learning_rate)
    if initial_learning_rate and warmup_steps:
        return None
    return Same(
        cosine(alpha * warmup_target, warmup_steps + decay_steps, warmup_steps), warmup_target
    )


def keras_piecewise(_: None, *, boundaries: list[int], values: list[float]) -> Same:
    return Same(
        piecewise([b + 1 for b in boundaries], [value / values[0] for value in values]), values[0]
    )


def optax_constant(_: None, *, value: float) -> Same:
    return Same(Constant(name="constant", **keys()), value)


def optax_linear(
    _: None,
    *,
    init_value: float,
    end_value: float,
    transition_steps: int,
    transition_begin: int = 0,
) -> Same | None:
    return None if transition_begin else Same(linear(end_value, transition_steps), init_value)


def optax_polynomial(
    _: None,
    *,
    init_value: float,
    end_value: float,
    power: float,
    transition_steps: int,
    transition_begin: int = 0,
) -> Same | None:
    if transition_begin or not transition_steps:  # 0 steps: Optax stays at its first value
        return None
    return Same(polynomial(float(power), end_value, transition_steps), init_value)


def optax_exponential(
    _: None,
    *,
    init_value: float,
    transition_steps: int,
    decay_rate: float,
    staircase: bool = False,
    **more: Any,
) -> Same | None:
    if more.get("transition_begin") or "end_value" in more:
        return None
    return Same(exponential(decay_rate, transition_steps, staircase), init_value)


def optax_cosine(
    _: None, *, init_value: float, decay_steps: int, alpha: float = 0.0, exponent: float = 1.0
) -> Same | None:
    return Same(cosine(alpha * init_value, decay_steps, exponent=exponent), init_value)


def optax_piecewise(
    _: None, *, init_value: float, boundaries_and_scales: Mapping[str, float] | None = None
) -> Same | None:
    scales = sorted(
        (int(boundary), scale) for boundary, scale in (boundaries_and_scales or {}).items()
    )
    factors = accumulate((scale for _, scale in scales), mul, initial=1.0)
    return Same(piecewise([boundary for boundary, _ in scales], list(factors)), init_value)


def optax_warmup_constant(
    _: None, *, init_value: float, peak_value: float, warmup_steps: int
) -> Same | None:
    return None if init_value else Same(Constant(name="constant", **keys(warmup_steps)), peak_value)


def optax_warmup_cosine(
    _: None,
    *,
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    exponent: float = 1.0,
) -> Same | None:
    if init_value and warmup_steps:
        return None
    return Same(cosine(end_value, decay_steps, warmup_steps, exponent), peak_value)


def optax_warmup_exponential(
    _: None,
    *,
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: float,
    staircase: bool = False,
    **more: Any,
) -> Same | None:
    if (init_value and warmup_steps) or more.get("transition_begin") or "end_value" in more:
        return None
    return Same(exponential(decay_rate, transition_steps, staircase, warmup_steps), peak_value)


# (library, its name) -> how it is said here (None: it cannot be), and how many of its nine curves
# can be, counted by eye
SAID_HERE: dict[tuple[str, str], tuple[Callable[..., Same | None], int]] = {
    ("torch", "ExponentialLR"): (torch_exponential, 9),
    ("torch", "StepLR"): (torch_step, 9),
    ("torch", "MultiStepLR"): (torch_multi_step, 9),
    ("torch", "ConstantLR"): (torch_constant, 8),
    ("torch", "LinearLR"): (torch_linear, 9),
    ("torch", "PolynomialLR"): (torch_polynomial, 9),
    ("torch", "CosineAnnealingLR"): (torch_cosine, 9),
    ("keras", "ExponentialDecay"): (keras_exponential, 9),
    ("keras", "PolynomialDecay"): (keras_polynomial, 5),
    ("keras", "CosineDecay"): (keras_cosine, 6),
    ("keras", "PiecewiseConstantDecay"): (keras_piecewise, 9),
    ("optax", "constant_schedule"): (optax_constant, 9),
    ("optax", "linear_schedule"): (optax_linear, 5),
    ("optax", "polynomial_schedule"): (optax_polynomial, 5),
    ("optax", "exponential_decay"): (optax_exponential, 3),
    ("optax", "cosine_decay_schedule"): (optax_cosine, 9),
    ("optax", "piecewise_constant_schedule"): (optax_piecewise, 9),
    ("optax", "warmup_constant_schedule"): (optax_warmup_constant, 4),
    ("optax", "warmup_cosine_decay_schedule"): (optax_warmup_cosine, 3),
    ("optax", "warmup_exponential_decay_schedule"): (optax_warmup_exponential, 2),
}


def curves() -> list[tuple[str, dict[str, Any], Same]]:
    """(library, curve, what says the same here) of every curve that can be said here."""
    found = []
    for library in TOLERANCE:
        for curve in json.loads((GOLDEN / f"{library}.json").read_text(encoding="utf-8"))["curves"]:
            say = SAID_HERE.get((library, curve["name"]))
            same = say and say[0](curve["base_lr"] if library == "torch" else None, **curve["args"])
            if same:
                found.append((library, curve, same))
    return found


CURVES = curves()


@pytest.mark.parametrize(
    ("library", "curve", "same"), CURVES, ids=[curve["id"] for _, curve, _ in CURVES]
)
def test_the_curve_is_the_library_s_at_every_step_and_past_the_end(
    library: str, curve: dict[str, Any], same: Same
) -> None:
    expected = np.array(curve["lrs"], dtype=np.float64)
    total = curve["total_steps"]
    assert len(expected) == total + 10
    rates = same.schedule.rates(np.arange(total + 10), Clock(total, total), same.lr)
    difference = np.abs(rates - expected)[: same.until]
    assert len(difference) > min(total, 1)
    assert difference.max() <= TOLERANCE[library] * expected.max()


def test_as_many_curves_are_compared_as_can_be_said_here() -> None:
    compared = Counter((library, curve["name"]) for library, curve, _ in CURVES)
    assert compared == {name: number for name, (_, number) in SAID_HERE.items()}
    assert compared.total() == 140


def test_a_curve_that_is_a_little_off_would_be_noticed() -> None:
    library, curve, same = next(
        entry for entry in CURVES if entry[1]["id"] == "torch/PolynomialLR/fixed-2"
    )
    total = curve["total_steps"]
    late = same.schedule.rates(np.arange(total + 10) + 1, Clock(total, total), same.lr)
    assert np.abs(late - curve["lrs"]).max() > 1000 * TOLERANCE[library] * max(curve["lrs"])
