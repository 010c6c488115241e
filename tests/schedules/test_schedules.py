"""The seven schedules: values worked by hand, and what holds for all of them."""

import tracemalloc
from math import cos, pi, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from runner import rates
from runner.schedules import Clock, Schedule, table
from runner.schedules.named import Exponential
from runner.schedules.ramps import progress

SCHEDULE: TypeAdapter[Any] = TypeAdapter(Schedule)

# Of values that are at most 1 and come from a handful of float64 operations: some roundings of
# 1.1e-16 each.
ROUNDING = 1e-15


def schedule(name: str, **keys: Any) -> Any:
    """Make a schedule. Without other keys it has no warm-up, begins at the left edge, and lasts the
    whole run."""
    ends: dict[str, Any] = (
        {"duration": "100%", "edge": "left"} if name in ("linear", "polynomial", "cosine") else {}
    )
    ends |= {"exponent": 1.0} if name == "cosine" else {}
    usual = {"warmup": "0%", "warmup_shape": "linear", "warmup_edge": "right", **ends}
    return SCHEDULE.validate_python({"name": name, **usual, **keys})


def values(made: Any, num: int, total: int, lr: float = 1.0) -> np.ndarray:
    """eta(t) for t = 0 ... num-1 in a run of `total` steps, in epochs of 5."""
    return made.rates(np.arange(num), Clock(total, 5), lr)


HALF, QUARTER = 0.5, 0.25
# 0.854, 0.146: an eighth of a turn from either end
COSINE_1, COSINE_3 = (1 + cos(pi / 4)) / 2, (1 - cos(pi / 4)) / 2

# name, keys, steps of the run -> the rates of the first updates, some of them past the run's end;
# the base rate is 1
BY_HAND: list[tuple[str, dict[str, Any], int, list[float]]] = [
    ("constant", {}, 2, [1, 1, 1, 1]),
    (
        "exponential",
        {"decay_rate": 0.25, "decay_steps": 2, "staircase": False},
        3,
        [1, HALF, QUARTER, 1 / 8, 1 / 16],
    ),
    (
        "exponential",
        {"decay_rate": 0.5, "decay_steps": 2, "staircase": True},
        3,
        [1, 1, HALF, HALF, QUARTER, QUARTER],
    ),
    ("exponential", {"decay_rate": 2.0, "decay_steps": 1, "staircase": False}, 3, [1, 2, 4, 8]),
    ("step", {"decay_rate": 0.5, "step_size": 3}, 5, [1, 1, 1, HALF, HALF, HALF, QUARTER]),
    ("step", {"decay_rate": 0.5, "step_size": 1}, 2, [1, HALF, QUARTER, 1 / 8]),
    ("linear", {"final_lr": 0.0}, 4, [1, 0.75, HALF, QUARTER, 0, 0, 0]),
    ("linear", {"final_lr": 0.2}, 4, [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
    ("linear", {"final_lr": 3.0}, 2, [1, 2, 3, 3]),
    ("linear", {"final_lr": 0.0, "edge": "right"}, 4, [0.75, HALF, QUARTER, 0, 0]),
    ("linear", {"final_lr": 0.0, "edge": "inner"}, 4, [0.8, 0.6, 0.4, 0.2, 0, 0]),
    ("linear", {"final_lr": 0.0, "edge": "both"}, 4, [1, 2 / 3, 1 / 3, 0, 0]),
    ("linear", {"final_lr": 0.0, "duration": "2steps"}, 4, [1, HALF, 0, 0, 0]),
    ("linear", {"final_lr": 0.0, "duration": "1epochs"}, 9, [1, 0.8, 0.6, 0.4, 0.2, 0, 0]),
    ("linear", {"final_lr": 0.5, "duration": "0%"}, 3, [HALF, HALF, HALF]),
    ("polynomial", {"power": 2.0, "final_lr": 0.0}, 4, [1, 9 / 16, QUARTER, 1 / 16, 0, 0]),
    ("polynomial", {"power": 2.0, "final_lr": 0.2}, 4, [1, 0.65, 0.4, 0.25, 0.2, 0.2]),
    ("polynomial", {"power": 0.5, "final_lr": 0.0}, 4, [1, sqrt(3) / 2, sqrt(0.5), HALF, 0, 0]),
    ("cosine", {"final_lr": 0.0}, 4, [1, COSINE_1, HALF, COSINE_3, 0, 0, 0]),
    ("cosine", {"final_lr": 0.5}, 2, [1, 0.75, HALF, HALF]),
    ("cosine", {"final_lr": 0.5, "exponent": 2.0}, 2, [1, 0.625, HALF, HALF]),
    (
        "piecewise",
        {"boundaries": ["3steps", "50%"], "factors": [1.0, 0.5, 0.1]},
        10,
        [1, 1, 1, HALF, HALF, 0.1, 0.1],
    ),
    (
        "piecewise",
        {"boundaries": ["0steps", "2steps", "2steps"], "factors": [9.0, 3.0, 8.0, 0.0]},
        4,
        [3, 3, 0, 0],
    ),
    ("piecewise", {"boundaries": [], "factors": [0.5]}, 2, [HALF, HALF, HALF]),
    # Warm-up over 4 steps: each edge, each shape, each kind of schedule behind it.
    ("constant", {"warmup": "4steps", "warmup_edge": "left"}, 6, [0, QUARTER, HALF, 0.75, 1, 1, 1]),
    (
        "constant",
        {"warmup": "4steps", "warmup_edge": "right"},
        6,
        [QUARTER, HALF, 0.75, 1, 1, 1, 1],
    ),
    ("constant", {"warmup": "4steps", "warmup_edge": "inner"}, 6, [0.2, 0.4, 0.6, 0.8, 1, 1, 1]),
    ("constant", {"warmup": "4steps", "warmup_edge": "both"}, 6, [0, 1 / 3, 2 / 3, 1, 1, 1, 1]),
    (
        "constant",
        {"warmup": "4steps", "warmup_shape": "cosine"},
        6,
        [COSINE_3, HALF, COSINE_1, 1, 1, 1],
    ),
    ("constant", {"warmup": "1steps", "warmup_edge": "both"}, 6, [1, 1]),
    ("constant", {"warmup": "100%"}, 2, [HALF, 1, 1]),
    (
        "linear",
        {"final_lr": 0.0, "warmup": "50%"},
        8,
        [QUARTER, HALF, 0.75, 1, 1, 0.75, HALF, QUARTER, 0, 0],
    ),
    (
        "linear",
        {"final_lr": 0.5, "warmup": "4steps", "duration": "4steps"},
        8,
        [QUARTER, HALF, 0.75, 1, HALF, HALF],
    ),
    (
        "linear",
        {"final_lr": 0.5, "warmup": "4steps", "duration": "2steps"},
        8,
        [QUARTER, HALF, 0.75, 1, HALF, HALF],
    ),
    (
        "polynomial",
        {"power": 2.0, "final_lr": 0.0, "warmup": "2steps"},
        4,
        [HALF, 1, 1, QUARTER, 0],
    ),
    (
        "cosine",
        {"final_lr": 0.0, "warmup": "2steps"},
        6,
        [HALF, 1, 1, COSINE_1, HALF, COSINE_3, 0, 0],
    ),
    (
        "exponential",
        {"decay_rate": 0.25, "decay_steps": 2, "staircase": False, "warmup": "2steps"},
        6,
        [HALF, 1, 1, HALF, QUARTER],
    ),
    (
        "step",
        {"decay_rate": 0.5, "step_size": 2, "warmup": "2steps"},
        6,
        [HALF, 1, 1, 1, HALF, HALF, QUARTER],
    ),
    # The boundaries of piecewise count from step 0: the one at 1 has passed when the warm-up ends.
    (
        "piecewise",
        {"boundaries": ["1steps"], "factors": [1.0, 0.5], "warmup": "2steps"},
        6,
        [HALF, 1, HALF, HALF],
    ),
]


@pytest.mark.parametrize(("name", "keys", "total", "expected"), BY_HAND)
def test_rates_worked_by_hand(
    name: str, keys: dict[str, Any], total: int, expected: list[float]
) -> None:
    found = values(schedule(name, **keys), len(expected), total)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * max(expected))


def test_the_base_rate_scales_factors_but_not_final_lr() -> None:
    linear = values(schedule("linear", final_lr=0.1), 3, total=2, lr=0.3)
    np.testing.assert_allclose(linear, [0.3, 0.2, 0.1], rtol=0, atol=ROUNDING)
    step = values(schedule("step", decay_rate=0.1, step_size=1), 2, total=2, lr=0.3)
    np.testing.assert_allclose(step, [0.3, 0.03], rtol=0, atol=ROUNDING)


def test_the_chapter_s_curves() -> None:
    """0.001 * 0.9 ** (t // 10000); 0.001 to 0.00001 over 10,000 steps; 0.001 * (1 - t / T) ** (1 /
    2)."""
    steps = [0, 1, 5000, 9999, 10000, 20000, 29999]
    exponential = rates("experiment=chapter_exponential", total_steps=30000)[steps]
    np.testing.assert_allclose(exponential, [1e-3] * 4 + [9e-4, 8.1e-4, 8.1e-4], rtol=1e-15)
    linear = rates("experiment=chapter_linear", total_steps=30000)[steps]
    # To 1e-18: one rounding of numbers near 0.001.
    np.testing.assert_allclose(
        linear, [1e-3, 9.99901e-4, 5.05e-4, 1.0099e-5, 1e-5, 1e-5, 1e-5], rtol=0, atol=1e-18
    )
    step = rates("experiment=chapter_step", total_steps=4)
    np.testing.assert_allclose(step, [1e-3, 1e-3 * sqrt(3) / 2, 1e-3 * sqrt(0.5), 5e-4], rtol=1e-15)
    assert (rates("experiment=chapter_constant", total_steps=5) == 1e-3).all()


def test_the_rate_of_image_digits_falls_by_a_tenth_every_40_updates() -> None:
    found = rates("experiment=image_digits", total_steps=800)
    # two roundings: of the power and of the product
    np.testing.assert_allclose(found, 1e-3 * 0.9 ** (np.arange(800) // 40), rtol=4.4e-16)


@pytest.mark.parametrize("edge", ["left", "right", "inner", "both"])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 10])
def test_progress_rises_within_0_and_1_and_is_over_after_the_phase(
    edge: Any, num_steps: int
) -> None:
    u = progress(np.arange(num_steps + 3), num_steps, edge)
    assert u.dtype == np.float64
    assert (np.diff(u) >= 0).all()
    assert u.min() >= 0
    assert (u[num_steps:] == 1).all()


NAMES = ["constant", "exponential", "linear", "step", "polynomial", "cosine", "piecewise"]
DURATIONS = st.one_of(
    st.integers(0, 60).map(lambda n: f"{n}steps"),
    st.integers(0, 120).map(lambda n: f"{n}%"),
    st.integers(0, 8).map(lambda n: f"{n}epochs"),
)
EDGES = st.sampled_from(["left", "right", "inner", "both"])
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "warmup": DURATIONS,
    "warmup_shape": st.sampled_from(["linear", "cosine"]),
    "warmup_edge": EDGES,
    "decay_rate": st.floats(0.01, 1.5),
    "decay_steps": st.integers(1, 60),
    "staircase": st.booleans(),
    "step_size": st.integers(1, 60),
    "power": st.floats(0.1, 5),
    "exponent": st.just(1.0),
    "final_lr": st.floats(0, 2),
    "duration": DURATIONS,
    "edge": EDGES,
}


@st.composite
def any_schedule(draw: st.DrawFn, names: tuple[str, ...] = tuple(NAMES)) -> Any:
    name = draw(st.sampled_from(names))
    own = set(type(schedule_of(name)).model_fields) - {"name"}
    keys = {key: draw(KEYS[key]) for key in sorted(own & KEYS.keys())}
    if name == "piecewise":
        steps = sorted(draw(st.lists(st.integers(0, 60), max_size=4)))
        keys["boundaries"] = [f"{step}steps" for step in steps]
        keys["factors"] = draw(
            st.lists(st.floats(0, 2), min_size=len(steps) + 1, max_size=len(steps) + 1)
        )
    return SCHEDULE.validate_python({"name": name, **keys})


def schedule_of(name: str) -> Any:
    """Any one of this name."""
    needed = {
        "exponential": {"decay_rate": 0.9, "decay_steps": 10, "staircase": False},
        "linear": {"final_lr": 0.0},
        "step": {"decay_rate": 0.1, "step_size": 10},
        "polynomial": {"power": 2.0, "final_lr": 0.0},
        "cosine": {"final_lr": 0.0},
        "piecewise": {"boundaries": [], "factors": [1.0]},
    }
    return schedule(name, **needed.get(name, {}))


TOTALS, RATES = st.integers(1, 60), st.floats(1e-6, 2)


@given(made=any_schedule(), total=TOTALS, lr=RATES)
def test_every_rate_is_finite_and_not_negative(made: Any, total: int, lr: float) -> None:
    found = values(made, total + 20, total, lr)
    assert found.dtype == np.float64
    assert found.shape == (total + 20,)
    assert np.isfinite(found).all()
    assert (found >= 0).all()


@given(
    made=any_schedule(), total=TOTALS, lr=RATES, start=st.integers(0, 30), num=st.integers(0, 30)
)
def test_a_slice_of_steps_gives_the_slice_of_the_table(
    made: Any, total: int, lr: float, start: int, num: int
) -> None:
    clock = Clock(total, 5)
    whole = made.rates(np.arange(60), clock, lr)
    assert (
        made.rates(np.arange(start, start + num), clock, lr) == whole[start : start + num]
    ).all()
    assert (table(made, clock, lr) == made.rates(np.arange(total), clock, lr)).all()


@given(made=any_schedule(("linear", "polynomial", "cosine")), total=TOTALS, lr=RATES)
def test_a_schedule_that_ends_then_holds_its_final_rate(made: Any, total: int, lr: float) -> None:
    clock = Clock(total, 5)
    end = max(clock.steps(made.duration), clock.steps(made.warmup))
    after = made.rates(np.arange(end, end + 50), clock, lr)
    assert (after == after[0]).all()
    # (1 - u) lr + u final, u = 1, and (lr - final) * 0 + final: exact but for cos(pi), which is
    # exactly -1 too.
    assert after[0] == made.final_lr


@given(made=any_schedule(("linear", "polynomial", "cosine")), total=TOTALS, lr=RATES)
def test_a_schedule_that_ends_stays_between_the_rates_it_joins(
    made: Any, total: int, lr: float
) -> None:
    found = values(made, total + 20, total, lr)
    # 4e-16 of the larger: (lr - final) + final need not round back to lr.
    assert found.max() <= max(lr, made.final_lr) * (1 + 4e-16)
    if made.warmup.startswith("0"):
        assert found.min() >= min(lr, made.final_lr) - 4e-16 * max(lr, made.final_lr)


@given(made=any_schedule(), total=TOTALS, lr=RATES)
def test_a_warm_up_rises_to_at_most_the_base_rate(made: Any, total: int, lr: float) -> None:
    clock = Clock(total, 5)
    rise = made.rates(np.arange(clock.steps(made.warmup)), clock, lr)
    assert (np.diff(rise) >= 0).all()
    assert (rise <= lr).all()


def test_boundaries_that_fall_are_refused() -> None:
    falling = schedule("piecewise", boundaries=["50%", "2steps"], factors=[1.0, 0.5, 0.1])
    with pytest.raises(ValueError, match=r"boundaries must increase, got \[5, 2\] steps"):
        values(falling, 3, total=10)


def test_ten_million_steps_take_little_more_memory_than_their_table() -> None:
    made: Exponential = schedule(
        "exponential", decay_rate=0.9, decay_steps=10000, staircase=False, warmup="1%"
    )
    num = 10**7
    tracemalloc.start()
    try:
        found = table(made, Clock(num, num), 1e-3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.nbytes == 8 * num
    assert peak <= 100e6  # the table itself is 80 MB
    # 990 periods of 0.9 after the warm-up: 1e-3 * exp(990 ln 0.9), one step short of it.
    assert found[-1] == pytest.approx(1e-3 * 0.9 ** (9_899_999 / 10000), rel=1e-12)
