"""Every schedule of conf/schedule: values worked by hand, and what holds for all of them and for
what is made of them."""

from fractions import Fraction
from math import cos, pi, sqrt, tanh
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import rates
from runner.cli.compose import CONF, compose
from runner.config.schema import parse
from runner.schedules import Clock, table
from runner.schedules.combined import ALL
from runner.schedules.dialects import DIALECTS
from runner.schedules.units import half_up
from tests.schedules.drawn import ANY, DURATIONS, ENDS, KEYS, SAID, keys_of, made
from tests.training import prepare

# Of values that are at most 1 and come from a handful of float64 operations: some roundings of
# 1.1e-16 each.
ROUNDING = 2e-15

FILES = sorted(file.stem for file in (CONF / "schedule").glob("[!_]*.yaml"))
NAMES = [
    name
    for kind in ALL
    if kind not in DIALECTS
    for name in get_args(kind.model_fields["name"].annotation)
]


def test_every_schedule_has_its_file_and_is_drawn() -> None:
    assert set(NAMES) <= set(FILES)
    assert set(NAMES) == {*KEYS, "piecewise", "sequence", "repeat", "product", "clip", "custom"}


def test_a_run_counts_its_rows_and_tokens_for_the_power_scheduler() -> None:
    """Updates of 2 x 8 windows of 16 tokens, 256 tokens an update: 4.6 * 16 * (256 t)^-0.51, below
    1 from update 18 on. Rows that are no tokens count as one."""
    power = ["schedule=power_tokens", "schedule.decay=0%", "optimizer.lr=1"]
    batch = ["trainer.batch_size=8", "trainer.accumulate_grad_batches=2", "trainer.max_steps=40"]
    text = ["data=python_docs", "data.context=16", "model=gpt"]
    t = np.arange(1, 40)
    for data, tokens in ((text, 16), ([], 1)):
        expected = np.minimum(1, 4.6 * 16 * (16 * tokens * t) ** -0.51)
        overrides = [*power, *batch, *data]
        found = prepare(overrides).rates()
        np.testing.assert_allclose(found, [1, *expected], rtol=1e-14)  # roundings of float64
        said = " ".join(overrides)
        assert np.array_equal(rates(said, total_steps=40, tokens_per_row=tokens), found)


def said(*overrides: str) -> Any:
    """As on the command line."""
    return parse(compose(overrides)).schedule


def values(schedule: Any, num: int, total: int, lr: float = 1.0) -> np.ndarray:
    """eta(t) for t = 0 ... num-1 in a run of `total` steps, in epochs of 5."""
    return schedule.rates(np.arange(num), Clock(total, 5), lr)


C = {n: (1 + cos(pi * n)) / 2 for n in (0.25, 0.5, 0.75)}  # 0.854, 0.5, 0.146
HALF, QUARTER = 0.5, 0.25
NO_WARMUP = "schedule.warmup=0%"

# overrides, steps of the run -> the first rates at base rate 1
BY_HAND: list[tuple[list[str], int, list[float]]] = [
    (["schedule=cosine_restarts", "schedule.period=2steps"], 6, [1, HALF, 1, HALF, 1, HALF, 1]),
    (
        ["schedule=cosine_restarts", "schedule.period=2steps", "schedule.growth=2",
            "schedule.decay=0.5"],
        6,
        [1, HALF, HALF, C[0.25] / 2, QUARTER, C[0.75] / 2, QUARTER],
    ),
    (
        ["schedule=cosine_restarts", "schedule.period=2steps", "schedule.decay=0.5",
            "schedule.final_lr=0.2"],
        6,
        [1, 0.6, 0.6, 0.4, 0.4, 0.3],
    ),
    # Cycles of 1.5 steps begin at half_up(0, 1.5, 3, 4.5, 6): 0, 2, 3, 5, 6.
    (["schedule=cosine_restarts", "schedule.period=15%"], 10, [1, HALF, 1, 1, HALF, 1, 1, HALF]),
    (["schedule=inverse_time", "schedule.decay_steps=2"], 6, [1, 2 / 3, HALF, 0.4, 1 / 3]),
    (["schedule=inverse_time", "schedule.decay_steps=2", "schedule.staircase=true"], 6,
        [1, 1, HALF, HALF, 1 / 3]),
    (
        ["schedule=inverse_sqrt", "schedule.scale=1steps", "schedule.warmup=2steps"],
        9,
        [HALF, 1, 1, sqrt(1 / 2), sqrt(1 / 3), HALF],
    ),
    (["schedule=power", "schedule.scale=1steps", "schedule.power=2"], 9,
        [1, QUARTER, 1 / 9, 1 / 16]),
    (["schedule=inverse", "schedule.scale=2steps", "schedule.power=1"], 9, [1, 2 / 3, HALF, 0.4]),
    # d = 4, W = 4: min((t + 1)^-0.5, (t + 1) / 8) / 2
    (
        ["schedule=noam", "schedule.model_size=4", "schedule.warmup=4steps"],
        20,
        [1 / 16, 1 / 8, 3 / 16, QUARTER, sqrt(1 / 20), sqrt(1 / 24)],
    ),
    # R = 3 of 9 steps: up over t = 0, 1, 2, down over t = 2 ... 8
    (
        ["schedule=one_cycle", "schedule.rise=3steps", "schedule.shape=linear",
            "schedule.initial_factor=0.4",
         "schedule.final_factor=0.1"],
        9,
        [0.4, 0.7, 1, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.1, 0.1],
    ),
    # Degenerate phases: a rise of nothing, of everything, a run of one step.
    (
        ["schedule=one_cycle", "schedule.rise=1steps", "schedule.shape=linear",
            "schedule.final_factor=0"],
        3,
        [1, HALF, 0, 0],
    ),
    (
        ["schedule=one_cycle", "schedule.rise=100%", "schedule.shape=linear",
            "schedule.initial_factor=0"],
        3,
        [0, HALF, 1, 1, 1],
    ),
    (["schedule=one_cycle", "schedule.rise=0%", "schedule.final_factor=0.5"], 1, [HALF, HALF]),
    (
        ["schedule=cyclic", "schedule.min_lr=0.2", "schedule.up=2steps", "schedule.down=4steps"],
        20,
        [0.2, 0.6, 1, 0.8, 0.6, 0.4, 0.2, 0.6, 1, 0.8],
    ),
    (
        ["schedule=cyclic", "schedule.min_lr=0.2", "schedule.up=1steps", "schedule.down=1steps",
         "schedule.mode=triangular2"],
        20,
        [0.2, 1, 0.2, 0.6, 0.2, 0.4, 0.2, 0.3],
    ),
    (
        ["schedule=cyclic", "schedule.min_lr=0", "schedule.up=1steps", "schedule.down=1steps",
         "schedule.mode=exp_range", "schedule.decay_rate=0.5"],
        20,
        [0, HALF, 0, 1 / 8, 0, 1 / 32],
    ),
    (
        ["schedule=wsd", "schedule.warmup=2steps", "schedule.decay=4steps",
            "schedule.decay_shape=linear"],
        8,
        [HALF, 1, 1, 1, 1, 0.75, HALF, QUARTER, 0, 0],
    ),
    (
        ["schedule=wsd", "schedule.decay=4steps", "schedule.final_lr=0.5"],
        5,
        [1, 1, 0.75, 1 - sqrt(HALF) / 2, 1 - sqrt(0.75) / 2, HALF, HALF],
    ),
    (["schedule=wsd", "schedule.decay=50%", "schedule.decay_shape=cosine"], 4, [1, 1, 1, HALF, 0]),
    # A decay as long as all that is left after the warm-up, and longer.
    (
        ["schedule=wsd", "schedule.warmup=2steps", "schedule.decay=100%",
            "schedule.decay_shape=linear"],
        4,
        [HALF, 1, 1, HALF, 0],
    ),
    (
        ["schedule=tri_stage", "schedule.warmup=2steps", "schedule.hold=1steps",
            "schedule.decay=2steps",
         "schedule.initial_factor=0.5", "schedule.final_factor=0.25"],
        5,
        [HALF, 0.75, 1, 1, HALF, QUARTER, QUARTER],
    ),
    # d = 1/2: z / (1/2 + z/2)
    (["schedule=rex"], 4, [1, 0.75 / 0.875, 0.5 / 0.75, 0.25 / 0.625, 0, 0]),
    (["schedule=rex", "schedule.bend=0"], 4, [1, 0.75, HALF, QUARTER, 0]),
    (["schedule=tanh", "schedule.lower=-2", "schedule.upper=2"], 2,
        [(1 + tanh(2)) / 2, HALF, (1 - tanh(2)) / 2]),
    (
        ["schedule=range_test", "schedule.initial_lr=1e-3", "schedule.final_lr=10"],
        5,
        [1e-3, 1e-2, 0.1, 1, 10, 10],
    ),
    (
        ["schedule=range_test", "schedule.initial_lr=1", "schedule.final_lr=3",
            "schedule.shape=linear"],
        3,
        [1, 2, 3, 3],
    ),
    (["schedule=hold", "schedule.factor=0.5"], 2, [HALF, HALF, HALF]),
    (["schedule=ramp"], 4, [QUARTER, HALF, 0.75, 1, 1]),
    (["schedule=ramp", "schedule.edge=left", "schedule.shape=polynomial"], 4,
        [0, 7 / 16, 0.75, 15 / 16, 1]),
    (["schedule=ramp", "schedule.edge=left", "schedule.shape=late"], 4,
        [0, 1 / 16, QUARTER, 9 / 16, 1]),
    (["schedule=ramp", "schedule.from=1", "schedule.to=0.25", "schedule.shape=geometric"], 2,
        [HALF, QUARTER, QUARTER]),
    # Phases of 2.5 steps each begin at half_up(0, 2.5, 5): 0, 3, 5.
    (
        ["schedule=sequence",
         (
             "schedule.phases=[{for: 25%, name: hold},{for: 25%, name: hold, factor: 0.5},{for: "
             "rest, name: ramp, from: 1}]"
         )],
        10,
        [1, 1, 1, HALF, HALF, 1, 1, 1],
    ),
    # Units mixed: 1 step, 1 epoch of 5, the rest of 10, and the last fifth.
    (
        ["schedule=sequence",
         "schedule.phases=[{for: 1steps, name: hold, factor: 0.1},{for: 1epochs, name: "
             "hold, factor: 0.2},"
         "{for: rest, name: hold, factor: 0.3},{for: 20%, name: ramp, from: 1, to: 0, edge: "
             "left}]"],
        10,
        [0.1, *[0.2] * 5, 0.3, 0.3, 1, HALF, 0, 0],
    ),
    # On the global clock a phase shows what it is at that time of the run.
    (
        ["schedule=sequence", "schedule.clock=global",
         "schedule.phases=[{for: 2steps, name: hold},{for: rest, name: linear}]"],
        4,
        [1, 1, HALF, QUARTER, 0],
    ),
    (
        ["schedule=repeat", "schedule.period=2steps", "schedule.growth=2", "schedule.decay=0.5",
         "schedule.of={name: linear, final_lr: 0.0}"],
        10,
        [1, HALF, HALF, 0.375, QUARTER, 1 / 8, QUARTER, 7 / 32],
    ),
    (
        ["schedule=repeat", "schedule.period=2steps", "schedule.decay=0.5", "schedule.floor_lr=0.2",
         "schedule.of={name: linear, final_lr: 0.2}"],
        10,
        [1, 0.6, 0.6, 0.4, 0.4, 0.3],
    ),
    (
        ["schedule=product",
            "schedule.of=[{name: linear},{name: step, step_size: 2, decay_rate: 0.5}]"],
        4,
        [1, 0.75, QUARTER, 1 / 8, 0],
    ),
    (
        ["schedule=clip", "schedule.of={name: linear}", "schedule.min_lr=0.3",
            "schedule.max_lr=0.8"],
        4,
        [0.8, 0.75, HALF, 0.3, 0.3],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "total", "expected"), BY_HAND, ids=[" ".join(line) for line, _, _ in BY_HAND]
)
def test_rates_worked_by_hand(overrides: list[str], total: int, expected: list[float]) -> None:
    found = values(said(*overrides), len(expected), total)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * max(expected))


def test_the_worked_examples_are_what_their_files_say() -> None:
    """Each from another schedule; 1e-15: roundings of values near 1."""
    t = np.arange(1000)
    pairs = {
        "warmup_cosine": np.where(
            t < 50, (t + 1) / 50, 1e-4 + (1 - 1e-4) * (1 + np.cos(pi * (t - 50) / 950)) / 2
        ),
        "wsd_sqrt": rates("schedule=wsd schedule.warmup=10% schedule.decay=30%", 1000, 1.0),
        "triangular2": 1e-4 + (1 - 1e-4) * (1 - np.abs(t % 250 - 125) / 125) * 0.5 ** (t // 250),
    }
    for name, expected in pairs.items():
        np.testing.assert_allclose(
            rates(f"schedule={name}", 1000, 1.0), expected, rtol=0, atol=1e-15, err_msg=name
        )
    sgdr = rates("schedule=sgdr", 1500, 1.0)
    assert list(np.flatnonzero(sgdr == 1)) == [0, 100, 300, 700]  # 6.6667 % of 1500 is 100.0005


def test_cosine_restarts_and_triangular2_are_repetitions() -> None:
    """1e-15: roundings of values near 1."""
    restarts = rates(
        "schedule=cosine_restarts schedule.period=10% schedule.growth=2 schedule.decay=0.7",
        300,
        1.0,
    )
    cosines = rates(
        (
            "schedule=repeat schedule.period=10% schedule.growth=2 schedule.decay=0.7 "
            "'schedule.of={name: cosine}'"
        ),
        300,
        1.0,
    )
    np.testing.assert_allclose(restarts, cosines, rtol=0, atol=1e-15)
    cyclic = rates(
        (
            "schedule=cyclic schedule.min_lr=0.1 schedule.up=6steps schedule.down=6steps "
            "schedule.mode=triangular2"
        ),
        300,
        1.0,
    )
    phases = (
        "[{for: 6steps, name: ramp, from: 0.1, to: 1, edge: left}, {for: rest, name: ramp, "
        "from: 1, to: 0.1, edge: left}]"
    )
    ramps = rates(
        "schedule=repeat schedule.period=12steps schedule.decay=0.5 schedule.floor_lr=0.1 "
        f"'schedule.of={{name: sequence, phases: {phases}}}'",
        300,
        1.0,
    )
    np.testing.assert_allclose(cyclic, ramps, rtol=0, atol=1e-15)


TOTALS, BASE = st.integers(1, 60), st.floats(1e-6, 2)


@given(schedule=ANY, total=TOTALS, lr=BASE)
def test_every_rate_is_finite_and_not_negative(schedule: Any, total: int, lr: float) -> None:
    found = values(schedule, total + 20, total, lr)
    assert found.dtype == np.float64
    assert found.shape == (total + 20,)
    assert np.isfinite(found).all()
    # a product of what a decay left below its floor by a rounding may be as much below 0
    assert (found >= -1e-15 * np.abs(found).max()).all()


@given(schedule=ANY, total=TOTALS, lr=BASE, start=st.integers(0, 30), num=st.integers(0, 30))
def test_the_value_at_a_step_does_not_depend_on_where_evaluation_starts_nor_how_it_is_cut(
    schedule: Any, total: int, lr: float, start: int, num: int
) -> None:
    clock = Clock(total, 5)
    whole = schedule.rates(np.arange(60), clock, lr)
    assert (
        schedule.rates(np.arange(start, start + num), clock, lr) == whole[start : start + num]
    ).all()
    alone = [schedule.rates(np.array([t]), clock, lr)[0] for t in range(0, 60, 7)]
    assert (alone == whole[::7]).all()
    backwards = schedule.rates(np.arange(60)[::-1], clock, lr)
    assert (backwards[::-1] == whole).all()
    assert (table(schedule, clock, lr) == schedule.rates(np.arange(total), clock, lr)).all()


@given(data=st.data(), total=TOTALS, lr=BASE, name=st.sampled_from(sorted(ENDS)))
def test_what_ends_holds_its_last_value(
    data: st.DataObject, total: int, lr: float, name: str
) -> None:
    schedule, clock = made(data.draw(keys_of(name))), Clock(total, 5)
    end = max(1, *schedule.spans(clock).values())
    after = schedule.rates(np.arange(end, end + 50), clock, lr)
    assert (after == after[0]).all()


@given(said=SAID, total=TOTALS, lr=BASE)
def test_a_sequence_of_one_is_its_part(said: dict[str, Any], total: int, lr: float) -> None:
    for share in ("rest", "100%"):
        one = made({"name": "sequence", "clock": "own", "phases": [{"for": share, **said}]})
        np.testing.assert_array_equal(
            values(one, total, total, lr), values(made(said), total, total, lr)
        )


@given(said=SAID, total=TOTALS, lr=BASE)
def test_a_product_of_one_a_wide_clip_and_one_long_cycle_change_nothing(
    said: dict[str, Any], total: int, lr: float
) -> None:
    plain = values(made(said), total, total, lr)
    product = made({"name": "product", "of": [said]})
    # two roundings: eta / eta0 * eta0; 1e-300: of rates so small that their quotient is none
    np.testing.assert_allclose(values(product, total, total, lr), plain, rtol=4e-16, atol=1e-300)
    clip = made({"name": "clip", "of": said, "min_lr": 0.0, "max_lr": None})
    np.testing.assert_array_equal(values(clip, total, total, lr), np.maximum(plain, 0))
    once = {"period": "100%", "growth": 1.0, "decay": 0.5, "floor_lr": 0.0}
    np.testing.assert_array_equal(
        values(made({"name": "repeat", "of": said, **once}), total, total, lr), plain
    )


@given(
    shares=st.lists(DURATIONS, min_size=1, max_size=6),
    rest=st.integers(0, 6),
    total=st.integers(1, 1000),
)
def test_phases_add_up(shares: list[str], rest: int, total: int) -> None:
    """Each boundary is at most half a step from the exact sum, and with a rest that is left the
    last one is T."""
    clock = Clock(total, 5)
    exact = [clock.exact(share) for share in shares]
    found = clock.boundaries(shares)
    assert found[0] == 0
    for i, boundary in enumerate(found):
        assert abs(boundary - sum(exact[:i], Fraction(0))) <= Fraction(1, 2)
    assert found == sorted(found)
    with_rest = clock.boundaries([*shares[:rest], "rest", *shares[rest:]])
    assert with_rest[-1] == max(total, half_up(sum(exact, Fraction(0))))
