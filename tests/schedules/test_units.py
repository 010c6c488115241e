"""Durations and the clock."""

from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from runner.schedules import Clock, Duration
from runner.schedules.units import Length, Periods

DURATION: TypeAdapter[str] = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("0steps", 0),
        ("500steps", 500),
        ("500.0steps", 500),
        ("0epochs", 0),
        ("3epochs", 120),
        ("0.5epochs", 20),
        ("0.51epochs", 20),  # 20.4
        ("0%", 0),
        ("10%", 20),
        ("100%", 200),
        ("0.25%", 1),  # 0.5 goes up
        ("0.2%", 0),  # 0.4
        ("150%", 300),  # longer than the run is allowed: the run then ends on the way
    ],
)
def test_a_duration_in_steps_of_a_run_of_200_steps_in_epochs_of_40(
    duration: str, steps: int
) -> None:
    assert Clock(total_steps=200, steps_per_epoch=40).steps(duration) == steps


@given(total=st.integers(1, 10**9))
def test_all_of_a_run_is_all_its_steps(total: int) -> None:
    assert Clock(total, total).steps("100%") == total


@given(total=st.integers(1, 10**6), percent=st.integers(0, 100))
def test_a_percentage_is_at_most_half_a_step_away_from_the_exact_one(
    total: int, percent: int
) -> None:
    exact = Fraction(total * percent, 100)
    assert abs(Clock(total, total).steps(f"{percent}%") - exact) <= Fraction(1, 2)


def test_a_percentage_is_rounded_half_up_exactly() -> None:
    totals = range(1, 2000)
    exact = [floor(Fraction(total, 2) + Fraction(1, 2)) for total in totals]
    assert [Clock(total, total).steps("50%") for total in totals] == exact


@given(epochs=st.integers(0, 1000), per_epoch=st.integers(1, 10**5))
def test_whole_epochs_are_exact(epochs: int, per_epoch: int) -> None:
    assert Clock(10, per_epoch).steps(f"{epochs}epochs") == epochs * per_epoch


@pytest.mark.parametrize("spelled", ["0%", "100%", "12.5%", "500steps", "3epochs", "0.5epochs"])
def test_a_duration_is_kept_as_it_was_written(spelled: str) -> None:
    assert DURATION.validate_python(spelled) == spelled


@pytest.mark.parametrize(
    "spelled",
    [
        "", "%", "steps", "5", "5step", "5epoch", "5 steps", " 5steps", "5steps ", "5steps\n",
        "-5steps", "+5steps",
        "1e3steps", "5%%", "5,5%", ".5%", "5.%", "nan%", "inf%", "5Steps", "5steps3epochs",
        "0x5steps", "5ep",
    ],
)  # fmt: skip
def test_other_spellings_are_refused_with_the_right_ones_named(spelled: str) -> None:
    with pytest.raises(ValidationError, match="a duration such as 500steps, 3epochs or 10%"):
        DURATION.validate_python(spelled)


def test_a_part_of_a_step_is_refused() -> None:
    with pytest.raises(ValidationError, match="a whole number of steps, such as 500steps"):
        DURATION.validate_python("2.5steps")


@pytest.mark.parametrize("value", [5, 0.1, None, True, ["5steps"]])
def test_a_number_without_its_unit_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(value)


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([], [0]),
        (["30steps", "50%", "1epochs"], [0, 30, 130, 170]),
        (["30steps", "rest", "25%"], [0, 30, 150, 200]),
        (["rest"], [0, 200]),
        (["rest", "40steps"], [0, 160, 200]),
        (["40steps", "rest"], [0, 40, 200]),
        (["100%", "rest"], [0, 200, 200]),
        (["150%", "rest"], [0, 300, 300]),  # nothing is left
        (["99.9%", "rest"], [0, 200, 200]),  # 199.8
        # 0.4, 0.8, 1.2: the sums are rounded
        (["0.2%", "0.2%", "0.2%", "rest"], [0, 0, 1, 1, 200]),
    ],
)
def test_the_boundaries_of_phases_in_200_steps_with_epochs_of_40(
    durations: list[str], expected: list[int]
) -> None:
    assert Clock(200, 40).boundaries(durations) == expected


def test_the_clock_of_a_part_keeps_the_epoch() -> None:
    part = Clock(200, 40).within(50, 10)
    assert (part.steps("100%"), part.steps("1epochs")) == (50, 40)


# epochs of 8, 4 and then 2 updates
CHANGING = Clock(20, 2, starts=(0, 8, 12))


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        (["1epochs", "1epochs", "rest"], [0, 8, 12, 20]),
        (["0.5epochs", "1epochs", "rest"], [0, 4, 10, 20]),
        (["10steps", "1epochs", "rest"], [0, 10, 13, 20]),  # half of one, half of the next
        (["rest", "5epochs"], [0, 8, 20]),  # 4, and four times 2
        (["10%", "3epochs"], [0, 2, 15]),  # from a quarter of the first to that of the fourth
        (["rest", "99epochs"], [0, 0, 20]),
    ],
)
def test_epochs_of_several_lengths_are_those_from_there_on(
    durations: list[str], expected: list[int]
) -> None:
    assert CHANGING.boundaries(durations)[: len(expected)] == expected


def test_epochs_of_several_lengths_in_a_part_of_a_run() -> None:
    assert CHANGING.steps("2epochs") == 12
    assert CHANGING.within(10, 8).steps("2epochs") == 6
    assert CHANGING.epochs.every(2) == Periods(4, (0, 12))
    with pytest.raises(ValueError, match="period must be in steps or %"):
        CHANGING.period("1epochs")
    with pytest.raises(ValueError, match="durations must be in steps or %"):
        CHANGING.within(5, None).steps("1epochs")


@pytest.mark.parametrize("spelled", ["1steps", "0.5%", "0.1epochs", "2epochs", "100%"])
def test_a_length_is_kept_as_it_was_written(spelled: str) -> None:
    assert TypeAdapter(Length).validate_python(spelled) == spelled


@pytest.mark.parametrize("spelled", ["0steps", "0%", "0.0epochs"])
def test_a_length_of_0_is_refused(spelled: str) -> None:
    with pytest.raises(
        ValidationError, match="a duration above 0, such as 500steps, 3epochs or 10%"
    ):
        TypeAdapter(Length).validate_python(spelled)
