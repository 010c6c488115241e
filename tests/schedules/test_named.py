"""The named schedules: each against its docstring's formula, one step at a time in plain Python,
with keys that leave no term at 0 or 1; where each says that something happens; its edges."""

from collections.abc import Callable
from math import cos, floor, inf, pi, sqrt, tanh
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from runner.schedules import Clock, named, ramps
from tests.schedules.drawn import made

LR, CLOCK = 0.3, Clock(20, 5)
NUM = 27  # past the run's end
WARMUP = {"warmup": "3steps", "warmup_shape": "linear", "warmup_edge": "right"}
COLD = {**WARMUP, "warmup": "0%"}
END = {"duration": "15steps", "edge": "left", "final_lr": 0.05}  # 12 steps after the warm-up

Formula = Callable[[int], float]


def warmed(formula: Formula, rise: Formula = lambda t: (t + 1) / 3) -> Formula:
    """The rise over three steps, then the schedule by its own clock."""
    return lambda t: LR * rise(t) if t < 3 else formula(t - 3)


def ending(fall: Callable[[float], float]) -> Formula:
    """From LR to 0.05 within 12 steps after the warm-up."""
    return warmed(lambda tau: 0.05 + (LR - 0.05) * fall(min(tau / 12, 1.0)))


def restarts(tau: int) -> float:
    """Cycles of 4, 8 and 16 steps, each 0.7 times the one before."""
    cycle = 0 if tau < 4 else 1 if tau < 12 else 2
    k, length = tau - (0, 4, 12)[cycle], (4, 8, 16)[cycle]
    return 0.05 + (LR - 0.05) * 0.7**cycle * (1 + cos(pi * k / length)) / 2


def one_cycle(fall: Callable[[float], float]) -> Formula:
    """Up over t = 0 ... 4 of 16 steps, down to t = 15: 0.1 to 1 to 0.02."""

    def rate(t: int) -> float:
        if t <= 4:
            return LR * (1 + (0.1 - 1) * fall(t / 4))
        return LR * (0.02 + (1 - 0.02) * fall(min((t - 4) / 11, 1.0)))

    return rate


def cyclic(scale: Callable[[int, int], float]) -> Formula:
    """Three steps up, two down, from 0.02."""

    def rate(t: int) -> float:
        number, k = divmod(t, 5)
        x = k / 3 if k <= 3 else (5 - k) / 2
        return 0.02 + (LR - 0.02) * scale(number, t) * x

    return rate


def wsd(fall: Callable[[float], float]) -> Formula:
    """Stay until step 9 of 15, then six steps of decay."""
    return warmed(lambda tau: LR if tau < 6 else 0.05 + (LR - 0.05) * fall(min((tau - 6) / 6, 1.0)))


def power_tokens(t: int) -> float:
    """Warm up to LR in three steps; from step 11 of 15, four steps of decay."""
    if t < 3:
        return LR * (t + 1) / 3
    held = min(LR, 0.9 / sqrt(min(t, 11)))
    return held if t < 11 else 0.05 + (held - 0.05) * (1 - min((t - 11) / 4, 1.0))


def tri_stage(t: int) -> float:
    """Three steps up, four of stay, five of decay."""
    if t < 3:
        return LR * (0.1 + 0.9 * (t + 1) / 3)
    return LR if t < 7 else LR * 0.2 ** min((t - 7) / 5, 1.0)


def factors(t: int) -> float:
    """Boundaries at 5 and 12 steps of the run."""
    return LR * (0.9 if t < 5 else 0.5 if t < 12 else 0.2)


def linear(u: float) -> float:
    return 1 - u


def cosine(u: float) -> float:
    return (1 + cos(pi * u)) / 2


DECAYS = {"decay_rate": 0.8, "decay_steps": 4}
CYCLE = {"min_lr": 0.02, "up": "3steps", "down": "2steps", "decay_rate": 0.9}
ONE = {"initial_factor": 0.1, "final_factor": 0.02, "rise": "5steps", "duration": "16steps"}
WSD = {**END, "decay": "6steps"}
RANGE = {"initial_lr": 0.01, "final_lr": 2.0, "duration": "10steps", "edge": "left"}

FORMULAS: list[tuple[str, dict[str, Any], Formula]] = [
    ("constant", WARMUP, warmed(lambda tau: LR)),
    ("constant", {**WARMUP, "warmup_shape": "cosine"},
        warmed(lambda tau: LR, lambda t: (1 - cos(pi * (t + 1) / 3)) / 2)),
    ("constant", {**WARMUP, "warmup_edge": "left"}, warmed(lambda tau: LR, lambda t: t / 3)),
    ("exponential", {**DECAYS, "staircase": False, **WARMUP},
        warmed(lambda tau: LR * 0.8 ** (tau / 4))),
    ("exponential", {**DECAYS, "staircase": True, **WARMUP},
        warmed(lambda tau: LR * 0.8 ** floor(tau / 4))),
    ("linear", {**END, **WARMUP}, ending(linear)),
    ("step", {"decay_rate": 0.8, "step_size": 4, **WARMUP},
        warmed(lambda tau: LR * 0.8 ** floor(tau / 4))),
    ("polynomial", {"power": 1.5, **END, **WARMUP}, ending(lambda u: (1 - u) ** 1.5)),
    ("cosine", {"exponent": 1.0, **END, **WARMUP}, ending(cosine)),
    ("cosine", {"exponent": 1.7, **END, **WARMUP}, ending(lambda u: cosine(u) ** 1.7)),
    ("cosine", {"exponent": 2.0, **END, **WARMUP}, ending(lambda u: cosine(u) ** 2)),
    ("cosine", {"exponent": 0.5, **END, **WARMUP}, ending(lambda u: sqrt(cosine(u)))),
    ("cosine_restarts",
        {"period": "4steps", "growth": 2.0, "decay": 0.7, "final_lr": 0.05, **WARMUP},
        warmed(restarts)),
    ("piecewise", {"boundaries": ["1epochs", "60%"], "factors": [0.9, 0.5, 0.2], **WARMUP},
        lambda t: LR * (t + 1) / 3 if t < 3 else factors(t)),
    ("piecewise", {"boundaries": ["1epochs", "60%"], "factors": [0.9, 0.5, 0.2], **COLD}, factors),
    ("inverse_time", {**DECAYS, "staircase": False, **WARMUP},
        warmed(lambda tau: LR / (1 + 0.8 * tau / 4))),
    ("inverse_time", {**DECAYS, "staircase": True, **WARMUP},
        warmed(lambda tau: LR / (1 + 0.8 * floor(tau / 4)))),
    ("inverse_sqrt", {"scale": "6steps", **WARMUP}, warmed(lambda tau: LR / sqrt(1 + tau / 6))),
    ("power", {"scale": "6steps", "power": 1.7, **WARMUP},
        warmed(lambda tau: LR * (1 + tau / 6) ** -1.7)),
    # one row of one token an update; 0.9 sqrt(1 / n) is below LR from n = 10 on
    ("power_tokens",
        {"amplitude": 0.9, "exponent": -0.5, "decay_shape": "linear", "decay": "4steps", **END,
         **WARMUP},
        power_tokens),
    ("noam", {"model_size": 9, "warmup": "6steps"},
        lambda t: LR / 3 * min((t + 1) ** -0.5, (t + 1) * 6**-1.5)),
    ("noam", {"model_size": 9, "warmup": "0%"}, lambda t: LR / 3 * (t + 1) ** -0.5),
    ("one_cycle", {"shape": "linear", **ONE}, one_cycle(linear)),
    ("one_cycle", {"shape": "cosine", **ONE}, one_cycle(cosine)),
    ("one_cycle", {"shape": "linear", **ONE, "rise": "30%", "duration": "10steps"},
        lambda t: LR * (0.1 + 0.9 * t / 2 if t <= 2 else 1 - 0.98 * min((t - 2) / 7, 1.0))),
    ("cyclic", {"mode": "triangular", **CYCLE}, cyclic(lambda number, t: 1.0)),
    ("cyclic", {"mode": "triangular", **CYCLE, "up": "2steps", "down": "4steps"},
        lambda t: 0.02 + (LR - 0.02) * (t % 6 / 2 if t % 6 <= 2 else (6 - t % 6) / 4)),
    ("cyclic", {"mode": "triangular2", **CYCLE}, cyclic(lambda number, t: 0.5**number)),
    ("cyclic", {"mode": "exp_range", **CYCLE}, cyclic(lambda number, t: 0.9**t)),
    ("wsd", {"decay_shape": "linear", **WSD, **WARMUP}, wsd(linear)),
    ("wsd", {"decay_shape": "cosine", **WSD, **WARMUP}, wsd(cosine)),
    ("wsd", {"decay_shape": "1-sqrt", **WSD, **WARMUP}, wsd(lambda u: 1 - sqrt(u))),
    ("wsd", {"decay_shape": "linear", **WSD, **WARMUP, "decay": "9steps"},
        warmed(lambda tau: LR if tau < 3 else LR - (LR - 0.05) * min((tau - 3) / 9, 1.0))),
    # with `right` the first step of the decay has gone a sixth of its way
    ("wsd", {"decay_shape": "linear", **WSD, **WARMUP, "edge": "right"},
        warmed(lambda tau: LR if tau < 6 else LR - (LR - 0.05) * min((tau - 5) / 6, 1.0))),
    ("tri_stage",
        {"initial_factor": 0.1, "final_factor": 0.2, "warmup": "3steps", "hold": "4steps",
         "decay": "5steps", "warmup_edge": "right", "edge": "left"}, tri_stage),
    # with `right` the first step of the fall has gone a tenth of its way
    ("tri_stage",
        {"initial_factor": 0.1, "final_factor": 0.2, "warmup": "3steps", "hold": "4steps",
         "decay": "10steps", "warmup_edge": "left", "edge": "right"},
        lambda t: LR * (0.1 + 0.9 * t / 3 if t < 3 else 0.2 ** min(max(t - 6, 0) / 10, 1.0))),
    # without a hold it has done so when the rise ends
    ("tri_stage",
        {"initial_factor": 0.1, "final_factor": 0.2, "warmup": "3steps", "hold": "0%",
         "decay": "10steps", "warmup_edge": "left", "edge": "right"},
        lambda t: LR * (0.1 + 0.9 * t / 3 if t < 3 else 0.2 ** min((t - 2) / 10, 1.0))),
    ("rex", {"bend": 0.7, **END, **WARMUP}, ending(lambda u: (1 - u) / (0.3 + 0.7 * (1 - u)))),
    ("tanh", {"lower": -3.0, "upper": 2.0, **END, **WARMUP},
        ending(lambda u: (1 - tanh(-3 * (1 - u) + 2 * u)) / 2)),
    ("range_test", {"shape": "geometric", **RANGE}, lambda t: 0.01 * 200 ** min(t / 10, 1.0)),
    ("range_test", {"shape": "linear", **RANGE}, lambda t: 0.01 + 1.99 * min(t / 10, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "keys", "formula"), FORMULAS, ids=[f"{i}-{it[0]}" for i, it in enumerate(FORMULAS)]
)
def test_rates_are_those_of_the_formula(name: str, keys: dict[str, Any], formula: Formula) -> None:
    """1e-14: a handful of roundings, and those of NumPy's cos, tanh and powers against libm's. No
    step divides by 0 or overflows, not even where the warm-up takes its place."""
    with np.errstate(all="raise"):
        found = made({"name": name, **keys}).rates(np.arange(NUM), CLOCK, LR)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [formula(t) for t in range(NUM)], rtol=1e-14, atol=1e-16)


def test_the_power_scheduler_depends_on_the_batch_and_the_tokens_alone() -> None:
    """Shen et al. (2024): min(0.02, 4.6 B n^-0.51) after n tokens, here 1,000 updates of 128 rows
    of 4,096 tokens: n = 524,288,000; and the same tokens in 500 updates of 256 rows, at twice the
    rate. A longer run has the same rates until its decay."""
    keys = {"amplitude": 4.6, "exponent": -0.51, "decay": "10%", "decay_shape": "linear"}
    schedule = made({"name": "power_tokens", **keys, **END, **COLD, "duration": "100%"})
    clocks = Clock(5000, 100, 128, 4096), Clock(2500, 50, 256, 4096), Clock(50000, 100, 128, 4096)
    rates = [
        float(schedule.rates(np.array([t]), clock, 0.02)[0])
        for t, clock in zip((1000, 500, 1000), clocks, strict=True)
    ]
    expected = 4.6 * 128 * 524_288_000**-0.51
    # some roundings of float64
    assert rates == pytest.approx([0.02, 0.02, 0.02], rel=1e-14)
    late = [
        float(schedule.rates(np.array([t]), clock, 1.0)[0])
        for t, clock in zip((1000, 500, 1000), clocks, strict=True)
    ]
    assert late == pytest.approx([expected, 2 * expected, expected], rel=1e-14)


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        # a warm-up of one step from the left edge
        ("constant", {**WARMUP, "warmup": "1steps", "warmup_edge": "left"}, [0, 0.3, 0.3]),
        # a warm-up as long as the duration, and longer: at the end at once
        ("linear", {**END, **WARMUP, "duration": "3steps"}, [0.1, 0.2, 0.3, 0.05, 0.05]),
        ("linear", {**END, **WARMUP, "duration": "1steps"}, [0.1, 0.2, 0.3, 0.05, 0.05]),
        ("rex", {"bend": 0.5, **END, **WARMUP, "duration": "1steps"}, [0.1, 0.2, 0.3, 0.05, 0.05]),
        # of `scale` 1 the step before the warm-up's end would divide by 0
        ("inverse_sqrt", {"scale": "1steps", **WARMUP}, [0.1, 0.2, 0.3, 0.3, 0.3 / sqrt(2)]),
        ("power", {"scale": "1steps", "power": 1.0, **WARMUP}, [0.1, 0.2, 0.3, 0.3, 0.15]),
        # a run of one step is at its end: no rise, no fall
        ("one_cycle", {**ONE, "shape": "linear", "duration": "0%", "rise": "0%"}, [0.006, 0.006]),
        ("one_cycle", {**ONE, "shape": "linear", "duration": "1steps", "rise": "100%"}, [0.3, 0.3]),
        ("one_cycle", {**ONE, "shape": "linear", "duration": "2steps", "rise": "100%"},
            [0.03, 0.3, 0.3]),
        # half a step up is a step, and so is half a step down behind it
        ("cyclic", {**CYCLE, "mode": "triangular", "up": "1%", "down": "1%"}, [0.02, 0.3, 0.02]),
        # a decay of the whole run begins where the warm-up ends
        ("wsd", {**WSD, **WARMUP, "decay": "100%", "decay_shape": "linear", "duration": "5steps"},
            [0.1, 0.2, 0.3, 0.3, 0.175, 0.05, 0.05]),
        # no decay at all: full rate, then the end
        ("wsd", {**WSD, **WARMUP, "decay": "0%", "decay_shape": "linear", "duration": "9steps"},
            [0.1, 0.2, *[0.3] * 7, 0.05, 0.05]),
    ],
)  # fmt: skip
def test_rates_at_the_edges_of_the_keys(
    name: str, keys: dict[str, Any], expected: list[float]
) -> None:
    """1e-15: roundings of values below 1."""
    with np.errstate(all="raise"):
        found = made({"name": name, **keys}).rates(np.arange(len(expected)), CLOCK, LR)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_a_warm_up_of_nothing_is_no_warm_up() -> None:
    """The rate of step 0 is the base rate, whatever the edge."""
    for edge in ("left", "right", "inner", "both"):
        cold = made({"name": "constant", **COLD, "warmup_edge": edge})
        assert (cold.rates(np.arange(5), CLOCK, LR) == LR).all()


# spans: key -> the step at which what it says has happened; joints: where one part hands over

SPANS: list[tuple[str, dict[str, Any], dict[str, int], list[int]]] = [
    ("constant", WARMUP, {"warmup": 3}, [3]),
    ("exponential", {**DECAYS, "staircase": False, **WARMUP}, {"warmup": 3}, [3]),
    ("exponential", {**DECAYS, "staircase": True, **WARMUP}, {"warmup": 3, "decay_steps": 7},
        [3, 7]),
    ("exponential", {**DECAYS, "decay_steps": 5, "staircase": True, **WARMUP},
        {"warmup": 3, "decay_steps": 8}, [3, 8]),
    ("inverse_time", {**DECAYS, "decay_steps": 5, "staircase": True, **WARMUP},
        {"warmup": 3, "decay_steps": 8}, [3, 8]),
    ("step", {"decay_rate": 0.8, "step_size": 5, **WARMUP}, {"warmup": 3, "step_size": 8}, [3, 8]),
    ("linear", {**END, **WARMUP}, {"warmup": 3, "duration": 15}, [3, 15]),
    ("linear", {**END, **WARMUP, "duration": "20steps"}, {"warmup": 3, "duration": 20}, [3, 20]),
    ("linear", {**END, **WARMUP, "duration": "21steps"}, {"warmup": 3, "duration": 21}, [3]),
    ("step", {"decay_rate": 0.8, "step_size": 4, **WARMUP}, {"warmup": 3, "step_size": 7}, [3, 7]),
    ("cosine_restarts",
        {"period": "4steps", "growth": 2.0, "decay": 0.7, "final_lr": 0.05, **WARMUP},
        {"warmup": 3, "period": 7}, [3, 7, 15]),
    ("cosine_restarts",
        {"period": "17steps", "growth": 1.0, "decay": 0.7, "final_lr": 0.05, **WARMUP},
        {"warmup": 3, "period": 20}, [3, 20]),
    ("cosine_restarts",
        {"period": "6steps", "growth": 1.0, "decay": 0.7, "final_lr": 0.05, **WARMUP},
        {"warmup": 3, "period": 9}, [3, 9, 15]),
    ("piecewise", {"boundaries": ["1epochs", "60%"], "factors": [0.9, 0.5, 0.2], **WARMUP},
        {"warmup": 3, "boundaries[0]": 5, "boundaries[1]": 12}, [3, 5, 12]),
    ("inverse_time", {**DECAYS, "staircase": False, **WARMUP}, {"warmup": 3}, [3]),
    ("inverse_time", {**DECAYS, "staircase": True, **WARMUP}, {"warmup": 3, "decay_steps": 7},
        [3, 7]),
    ("noam", {"model_size": 9, "warmup": "6steps"}, {"warmup": 6}, [6]),
    ("one_cycle", {"shape": "linear", **ONE}, {"duration": 16}, [4, 16]),
    ("one_cycle", {"shape": "linear", **ONE, "rise": "0%"}, {"duration": 16}, [0, 16]),
    ("cyclic", {"mode": "triangular", **CYCLE}, {"up": 3, "down": 5},
        [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]),
    ("wsd", {"decay_shape": "linear", **WSD, **WARMUP}, {"warmup": 3, "decay": 9, "duration": 15},
        [3, 9, 15]),
    ("tri_stage",
        {"initial_factor": 0.1, "final_factor": 0.2, "warmup": "3steps", "hold": "4steps",
         "decay": "5steps", "warmup_edge": "right", "edge": "left"},
        {"warmup": 3, "hold": 7, "decay": 12}, [3, 7, 12]),
    ("range_test", {"shape": "linear", **RANGE}, {"duration": 10}, [10]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "spans", "joints"), SPANS)
def test_a_schedule_says_at_which_steps_its_parts_end(
    name: str, keys: dict[str, Any], spans: dict[str, int], joints: list[int]
) -> None:
    schedule = made({"name": name, **keys})
    assert schedule.spans(CLOCK) == spans
    assert schedule.joints(CLOCK) == joints


@pytest.mark.parametrize(("total", "last"), [(20, 17), (21, 24)])
def test_the_joints_of_cycles_go_to_the_cycle_that_begins_in_the_run(total: int, last: int) -> None:
    """Cycles of 7 steps, 3 of them up: the one that begins at step 21 is none of a run of 20."""
    schedule = made({"name": "cyclic", "mode": "triangular", **CYCLE, "down": "4steps"})
    each = [step for begin in (0, 7, 14, 21) for step in (begin, begin + 3)]
    assert schedule.joints(Clock(total, 5)) == [step for step in each if step <= last]


def test_one_cycle_holds_its_ends() -> None:
    """From 2 up to 10 at t = 4, down to 5 at t = 8: before the peak, between and beyond."""
    found = named.one_cycle(np.arange(0, 13, 2), 4.0, 8.0, (2.0, 10.0, 5.0), ramps.linear)
    assert found.tolist() == [2.0, 6.0, 10.0, 7.5, 5.0, 5.0, 5.0]


# Ranges of the keys: the last value that is taken and the first that is not

RANGES: list[tuple[str, dict[str, Any], str, list[float], list[float]]] = [
    ("cosine_restarts",
        {"period": "4steps", "growth": 2.0, "decay": 0.7, "final_lr": 0.05, **WARMUP},
        "growth", [1.0, 3.0], [0.99, inf]),
    ("cosine_restarts",
        {"period": "4steps", "growth": 2.0, "decay": 0.7, "final_lr": 0.05, **WARMUP},
        "decay", [1e-9, 1.0], [0.0, 1.01]),
    ("linear", {**END, **WARMUP}, "final_lr", [0.0, 5.0], [-1e-9, inf]),
    ("rex", {"bend": 0.7, **END, **WARMUP}, "bend", [0.0, 0.99], [-0.1, 1.0]),
    ("tri_stage",
        {"initial_factor": 0.1, "final_factor": 0.2, "warmup": "3steps", "hold": "4steps",
         "decay": "5steps", "warmup_edge": "right", "edge": "left"},
        "final_factor", [1e-9, 2.0], [0.0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "key", "allowed", "refused"), RANGES)
def test_a_key_takes_the_values_of_its_range_alone(
    name: str, keys: dict[str, Any], key: str, allowed: list[float], refused: list[float]
) -> None:
    for value in allowed:
        assert getattr(made({"name": name, **keys, key: value}), key) == value
    for value in refused:
        with pytest.raises(ValidationError):
            made({"name": name, **keys, key: value})


def test_a_piecewise_schedule_has_one_factor_more_than_boundaries() -> None:
    said = {"name": "piecewise", "boundaries": ["2steps", "4steps"], **WARMUP}
    for num in (0, 1, 2, 4):
        expected = f"one more item in factors than in boundaries, got {num} and 2"
        with pytest.raises(ValidationError, match=expected):
            made({**said, "factors": [1.0] * num})
    assert made({**said, "factors": [1.0] * 3}).factors == [1.0] * 3
    one = made({**said, "boundaries": ["2steps"], "factors": [1.0, 0.5]})
    assert one.factors == [1.0, 0.5]


def test_boundaries_may_be_equal_and_must_not_fall() -> None:
    said = {"name": "piecewise", "factors": [1.0, 0.5, 0.2], **COLD}
    equal = made({**said, "boundaries": ["2steps", "2steps"]})
    assert equal.rates(np.arange(4), CLOCK, 1.0).tolist() == [1.0, 1.0, 0.2, 0.2]
    with pytest.raises(ValueError, match=r"^boundaries must increase, got \[4, 2\] steps$"):
        made({**said, "boundaries": ["4steps", "2steps"]}).rates(np.arange(4), CLOCK, 1.0)
