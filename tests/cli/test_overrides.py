"""Jobs' folders are named by what varies, in characters that need no quotes anywhere."""

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.overrides import job_names, jobs, parse_overrides
from runner.text.quoting import override

NAMES = [
    (["seed=0", "seed=1"], ["seed-0", "seed-1"]),
    (["schedule=cosine,x=1,lr=1", "schedule=step,x=1,lr=1"], ["schedule-cosine", "schedule-step"]),
    (["optimizer.lr=1e-3", "optimizer.lr=1e+30"], ["optimizer.lr-1e-3", "optimizer.lr-1e+30"]),
    (["a=1,output.root=x", "a=2,output.root=x"], ["a-1", "a-2"]),
    (["seed=3"], ["seed-3"]),  # none differs
    (["output.root=x"], ["defaults"]),
    (
        ["trainer.monitor=val/loss", "trainer.monitor=val/los"],
        ["trainer.monitor-val-loss", "trainer.monitor-val-los"],
    ),
    (["model.name='ü, x'", "model.name=y"], ["model.name-x", "model.name-y"]),
    (["+a=1", "++a=2"], ["a-1", "a-2"]),
]


@pytest.mark.parametrize(("each", "names"), NAMES, ids=[names[0] for _, names in NAMES])
def test_a_job_is_named_by_the_keys_that_differ(each: list[str], names: list[str]) -> None:
    assert job_names([re.split(r",(?=[\w.]+=)", job) for job in each]) == names


@given(
    st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=5),
    st.integers(0, 10**6),
)
def test_a_name_needs_no_quotes_and_keeps_the_seed_and_the_rate(
    said: list[tuple[str, str]], seed: int
) -> None:
    first = [f"key{i}={value}" for i, (_, value) in enumerate(said)]
    each = [
        [*first, f"seed={seed}", "optimizer.lr=0.001"],
        [*(f"{o}x" for o in first), f"seed={seed + 1}", "optimizer.lr=0.002"],
    ]
    names = job_names(each)
    assert len(set(names)) == 2
    for name, seed_of, rate in zip(names, (seed, seed + 1), ("0.001", "0.002"), strict=True):
        assert shlex.quote(name) == name
        assert override("run", f"a/{name}") == f"run=a/{name}"
        assert len(name) <= 120
        assert f"seed-{seed_of}" in name
        assert f"optimizer.lr-{rate}" in name


def test_text_that_hydra_s_grammar_does_not_know_needs_no_quotes() -> None:
    values = [o.value() for o in parse_overrides(["output.root=ünï", "data.path=a~b^c", "seed=1"])]
    assert values == ["ünï", "a~b^c", 1]
    (listed,) = parse_overrides(["where=[steps<100, backend:keras,3,größe>2]"])
    assert listed.value() == ["steps<100", "backend:keras", 3, "größe>2"]


def test_jobs_are_every_combination_in_order() -> None:
    assert jobs(["seed=0,1", "schedule=step", "x=a,'b,c'"], True) == [
        ["seed=0", "schedule=step", "x=a"],
        ["seed=0", "schedule=step", "x='b,c'"],
        ["seed=1", "schedule=step", "x=a"],
        ["seed=1", "schedule=step", "x='b,c'"],
    ]
