"""The rule by which a metric has stalled: torch's, by hand."""

import pytest

from runner.schedules.stall import Mode, Stall, Watch


def test_the_rule_by_hand() -> None:
    """patience 1, cooldown 2: 3 is best, 3 and 4 are bad: stalled. Two epochs do not count, then 5
    and 6 are bad again."""
    rule = Stall("min", patience=1, cooldown=2)
    watch, seen = Watch(), []
    for value in (3.0, 3.0, 4.0, 9.0, 9.0, 5.0, 6.0, 2.0):
        watch, stalled = rule.after(watch, value)
        seen.append((watch.best, watch.num_bad, watch.cooldown, stalled))
    assert seen == [
        (3.0, 0, 0, False), (3.0, 1, 0, False), (3.0, 0, 2, True), (3.0, 0, 1, False),
        (3.0, 0, 0, False),
        (3.0, 1, 0, False), (3.0, 0, 2, True), (2.0, 0, 1, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "best", "better", "worse"),
    [
        (Stall("min", 0, 0.1, relative=True), 10.0, 8.999, 9.0),
        (Stall("max", 0, 0.1, relative=True), 10.0, 11.001, 11.0),
        (Stall("min", 0, 0.5), 10.0, 9.499, 9.5),
        (Stall("max", 0, 0.5), 10.0, 10.501, 10.5),
        # of a best below 0 the relative bound lies on its other side, as in torch
        (Stall("min", 0, 0.1, relative=True), -10.0, -9.001, -9.0),
        (Stall("max", 0, 0.1, relative=True), -10.0, -10.999, -11.0),
        # without a threshold an equal value is no better
        (Stall("min", 0), 10.0, 9.999, 10.0),
        (Stall("max", 0), 10.0, 10.001, 10.0),
        (Stall("min", 0, relative=True), 10.0, 9.999, 10.0),
        (Stall("min", 0), 10.0, 9.999, float("nan")),
        (Stall("max", 0), 10.0, 10.001, float("nan")),
    ],
)
def test_what_is_better(rule: Stall, best: float, better: float, worse: float) -> None:
    assert rule.is_better(better, best)
    assert not rule.is_better(worse, best)
    assert rule.is_better(best, None)


def test_what_was_not_said_is_zero() -> None:
    """NaN is never the first best; a cooldown of 0 counts from the next epoch on, a watch starts
    without one."""
    assert not Stall("min", 0).is_better(float("nan"), None)
    rule, watch, seen = Stall("min", patience=0), Watch(), []
    for value in (1.0, float("nan"), 2.0, 2.0):
        watch, stalled = rule.after(watch, value)
        seen.append(stalled)
    assert seen == [False, True, True, True]
    assert Stall("max", 0).after(Watch(), float("nan")) == (Watch(), True)


def test_a_first_value_of_nan_counts_as_no_better() -> None:
    """torch's ReduceLROnPlateau: NaN is not below infinity, so the epoch is a bad one."""
    assert Stall("min", patience=0).after(Watch(), float("nan")) == (Watch(None, 0, 0), True)
    assert Stall("max", patience=1).after(Watch(), float("nan")) == (Watch(None, 1, 0), False)


def test_without_a_cooldown_every_epoch_after_a_stall_counts() -> None:
    """Values 1, 2, 2 at patience 0: the second and the third epoch are no better."""
    watch, stalled = Watch(), []
    for value in (1.0, 2.0, 2.0):
        watch, is_stalled = Stall("min", patience=0).after(watch, value)
        stalled.append(is_stalled)
    assert stalled == [False, True, True]


@pytest.mark.parametrize("patience", [0, 3, 300])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_metric_has_stalled_in_the_first_epoch_beyond_its_patience(
    mode: Mode, patience: int
) -> None:
    """Equal values after the first, and then a better one."""
    rule = Stall(mode, patience)
    watch, stalled = rule.after(Watch(), 0.0)
    assert (watch, stalled) == (Watch(0.0, 0, 0), False)
    for num_bad in range(1, patience + 1):
        watch, stalled = rule.after(watch, 0.0)
        assert (watch, stalled) == (Watch(0.0, num_bad, 0), False)
    better = -1.0 if mode == "min" else 1.0
    assert rule.after(watch, better) == (Watch(better, 0, 0), False)
    assert rule.after(watch, 0.0) == (Watch(0.0, 0, 0), True)


def test_the_epochs_of_a_cooldown_are_counted_down_whatever_their_values() -> None:
    """Five of them, better and worse ones; no epoch among them is a bad one."""
    rule, watch = Stall("min", patience=0, cooldown=5), Watch(3.0, 0, 5)
    for i, (value, best) in enumerate([(4, 3), (2, 2), (9, 2), (1, 1), (1, 1)], start=1):
        watch, stalled = rule.after(watch, float(value))
        assert (watch, stalled) == (Watch(float(best), 0, 5 - i), False)
    assert rule.after(watch, 1.0) == (Watch(1.0, 0, 5), True)
