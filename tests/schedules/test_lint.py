"""The linter says what is probably not meant, once, with the key; it is silent about what is
usual."""

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.errors import ConfigError
from runner.plan import plan
from runner.schedules import Clock, table
from runner.schedules.lint import Finding, findings

RUN = 800  # steps of the default run: 20 epochs of 40


def found(*overrides: str, total: int = RUN, dtype: str = "float32") -> list[Finding]:
    config = parse(compose(overrides))
    clock = Clock(total, 40)
    rates = table(config.schedule, clock, config.optimizer.lr)
    patience = config.trainer.early_stopping_patience
    return findings(config.schedule, clock, rates, config.optimizer.lr, np.dtype(dtype), patience)


# overrides -> the one thing that is said
SAID = [
    (
        ["schedule=linear", "schedule.duration=1000steps"],
        (
            "schedule.duration: extends to step 1000, but the run has only 800 steps; the last "
            "rate is 0.000201"
        ),
    ),
    (
        ["schedule=wsd", "schedule.duration=30epochs", "schedule.decay=10%"],
        (
            "schedule.decay: nothing changes before step 1120, but the run has only 800 steps; "
            "the rate is always 0.001"
        ),
    ),
    (
        ["schedule=cosine", "schedule.warmup=900steps"],
        (
            "schedule.warmup: the warm-up ends at step 900, but the run has only 800 steps; the "
            "rate only reaches 0.000889"
        ),
    ),
    (
        ["schedule=exponential", "schedule.decay_steps=10000", "schedule.staircase=true"],
        (
            "schedule.decay_steps: nothing changes before step 10000, but the run has only 800 "
            "steps; the rate is always 0.001"
        ),
    ),
    (
        ["schedule=plateau", "schedule.metric=train/loss"],
        (
            "schedule.metric: train/loss is measured on the training rows; a validation metric "
            "(val/...) is usual"
        ),
    ),
    # 20 epochs: the first is best, 18 are bad, so that the 20th could lower what nothing uses any
    # more
    (
        ["schedule=plateau", "schedule.patience=18"],
        (
            "schedule.patience: the rate cannot fall before the end of epoch 20, but the run has "
            "20 epochs; the factor stays 1"
        ),
    ),
    (  # a warning of what is inside names its key
        ["schedule=plateau", "schedule.of={name: linear, duration: 1000steps}"],
        (
            "schedule.of.duration: extends to step 1000, but the run has only 800 steps; the "
            "last rate is 0.000201"
        ),
    ),
    (
        ["schedule=plateau", "trainer.early_stopping_patience=11"],
        "trainer.early_stopping_patience: the run stops before schedule.patience lowers the "
        "rate, after 11 epochs without improvement",
    ),
    (
        ["schedule=step", "schedule.step_size=300", "trainer.early_stopping_patience=5"],
        (
            "trainer.early_stopping_patience: the run may stop at step 240, before the rate "
            "first falls at step 300"
        ),
    ),
    (
        ["schedule=step", "schedule.step_size=800"],
        None,  # the run's last update is 799: found below
    ),
    (
        ["schedule=piecewise", "schedule.boundaries=[50%,900steps]"],
        (
            "schedule.boundaries[1]: extends to step 900, but the run has only 800 steps; the "
            "last rate is 0.0001"
        ),
    ),
    (
        ["schedule=constant", "schedule.warmup=5%", "schedule.warmup_edge=left"],
        (
            "schedule=constant: the first update has the rate 0 and is wasted; "
            "set schedule.warmup_edge=right"
        ),
    ),
    (
        ["schedule=cyclic", "schedule.min_lr=0"],
        (
            "schedule=cyclic: the first update has the rate 0 and is wasted; set "
            "schedule.min_lr above 0"
        ),
    ),
    (
        ["schedule=linear", "schedule.final_lr=0.01"],
        "schedule.final_lr: 0.01 is above optimizer.lr, 0.001, so the rate rises to the end",
    ),
    (
        ["schedule=cyclic", "schedule.up=300steps", "schedule.down=300steps"],
        "schedule=cyclic: the rate rises at the end, from step 600 on, to 0.000697",
    ),
    (
        [
            "schedule=exponential",
            "schedule.decay_rate=1e-6",
            "schedule.decay_steps=100",
            "schedule.staircase=true",
        ],
        (
            "schedule: from update 600 on, some rates are below 1.2e-38, the smallest normal "
            "number of float32"
        ),
    ),
    (
        ["schedule=noam"],
        (
            "optimizer.lr: the largest rate is 4.94e-06; noam multiplies by optimizer.lr, which "
            "is 1.0 in the paper, got 0.001"
        ),
    ),
]


@pytest.mark.parametrize(("overrides", "text"), SAID, ids=[" ".join(line) for line, _ in SAID])
def test_what_is_probably_not_meant_is_said_in_one_line(
    overrides: list[str], text: str | None
) -> None:
    expected = (
        "schedule.step_size: nothing changes before step 800, but the run has only 800 steps; "
        "the rate is always 0.001"
    )
    assert found(*overrides) == [Finding(text or expected)]


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule=plateau", "schedule.patience=17"],
        ["schedule=plateau", "trainer.early_stopping_patience=12"],
        ["schedule=step", "schedule.step_size=240", "trainer.early_stopping_patience=5"],
        ["schedule=cosine", "trainer.early_stopping_patience=1"],
    ],
)
def test_what_waits_long_enough_is_not_warned_of(overrides: list[str]) -> None:
    """The earliest that each may mean, one less than in the cases above."""
    assert found(*overrides) == []


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (
            "name: cosine, warmup: 900steps",
            "optimizer.groups[1].schedule.warmup: the warm-up ends at step 900, but the run has "
            "only 800 steps; the rate only reaches 0.000889",
        ),
        (
            "name: hold, factor: 0",
            "optimizer.groups[1].schedule=hold: every update of the run has the rate 0",
        ),
        # the weights begin to train later
        ("name: sequence, phases: [{for: 9%, name: hold, factor: 0}, {for: rest, name: hold}]", ""),
    ],
)
def test_the_schedule_of_a_group_is_warned_of_with_its_key(schedule: str, text: str) -> None:
    entries = f"[{{match: '*/bias'}}, {{match: dense_0, schedule: {{{schedule}}}}}]"
    warnings = plan(parse(compose([f"optimizer.groups={entries}"]))).check_schedule()
    assert warnings == ([text] if text else [])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["schedule=piecewise", "schedule.factors=[0,0,0]"],
            "schedule=piecewise: every update of the run has the rate 0",
        ),
        (
            ["schedule=exponential", "schedule.decay_rate=10", "schedule.decay_steps=10"],
            (
                "schedule=exponential: update 416 has the rate 3.98e+38, which is not a valid rate "
                "in float32"
            ),
        ),
        (
            ["schedule=exponential", "schedule.decay_rate=10", "schedule.decay_steps=1"],
            (
                "schedule=exponential: update 42 has the rate 1e+39, which is not a valid rate "
                "in float32"
            ),
        ),
    ],
)
def test_a_run_that_could_learn_nothing_is_an_error(overrides: list[str], text: str) -> None:
    assert found(*overrides) == [Finding(text, is_error=True)]
    with pytest.raises(ConfigError) as refused:
        plan(parse(compose(overrides))).check_schedule()
    assert str(refused.value) == text


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule=constant"],
        ["schedule=cosine", "schedule.warmup=5%"],
        ["schedule=linear", "schedule.duration=50%"],
        ["schedule=one_cycle"],
        ["schedule=wsd", "schedule.warmup=10%"],
        ["schedule=cosine_restarts"],
        ["schedule=cyclic"],
        ["schedule=exponential"],
        ["schedule=range_test"],
        ["schedule=sequence"],
        ["schedule=noam", "optimizer.lr=1.0"],
    ],
    ids=" ".join,
)
def test_what_is_usual_is_passed_in_silence(overrides: list[str]) -> None:
    assert found(*overrides) == []


def test_a_run_of_one_step_is_passed_in_silence_but_for_what_does_not_fit_into_it() -> None:
    assert found("schedule=cosine", total=1) == []
    assert [
        finding.is_error
        for finding in found("schedule=exponential", "schedule.warmup=2steps", total=1)
    ] == [False]


def test_float64_holds_smaller_rates() -> None:
    tiny = [
        "schedule=exponential",
        "schedule.decay_rate=1e-6",
        "schedule.decay_steps=100",
        "schedule.staircase=true",
    ]
    assert found(*tiny, dtype="float64") == []


def test_strict_makes_a_warning_an_error() -> None:
    overrides = ["schedule=linear", "schedule.final_lr=0.01"]
    assert len(plan(parse(compose(overrides))).check_schedule()) == 1
    with pytest.raises(ConfigError, match=r"^schedule\.final_lr: 0\.01 is above optimizer\.lr"):
        plan(parse(compose([*overrides, "trainer.strict=true"]))).check_schedule()
