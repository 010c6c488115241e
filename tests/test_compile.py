"""trainer.compile=true: the same numbers, the time that it took said, and a refusal where it cannot
be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.errors import ConfigError
from runner.plan import plan
from runner.run.resume import with_saved_compile
from runner.run.run_folder import read_json
from tests.command_line import BACKENDS, together
from tests.training import differences, train

# with masks, and 80 rows left for an epoch's last update: two shapes
MODEL = [
    "model.layers=[{layer: dense, units: 16},{layer: activation, function: gelu},{layer: "
    "dropout, rate: 0.3},"
    "{layer: dense, units: outputs}]",
    "trainer.batch_size=100",
    "trainer.max_epochs=2",
    "schedule=cosine",
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_run_is_the_same_run(backend: str) -> None:
    """1e-12: what the compiler fuses rounds otherwise in the last bits of float64."""
    overrides = [*MODEL, "trainer.precision=float64"]
    found = differences(
        train(backend, overrides), train(backend, [*overrides, "trainer.compile=true"])
    )
    assert max(found.values()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_so_is_one_with_convolutions_and_batch_norm(backend: str) -> None:
    overrides = [
        "model=cnn",
        "data.images=true",
        "trainer.max_steps=41",
        "trainer.precision=float64",
    ]
    found = differences(
        train(backend, overrides), train(backend, [*overrides, "trainer.compile=true"])
    )
    assert max(found.values()) < 1e-11  # batch norm divides by small variances


@pytest.mark.slow
def test_the_time_that_it_took_is_told(tmp_path: Path) -> None:
    for done in together(
        tmp_path, *((f"backend={backend}", *MODEL, "trainer.compile=true") for backend in BACKENDS)
    ):
        assert "s of it compiling)" in done.out
        seconds = read_json(tmp_path / done.folder / "result.json")["seconds"]
        assert 0.05 < seconds["compile"] < seconds["train"]


CHOICES = [
    ("keras", "model=transformer trainer.max_steps=5000", True),
    ("keras", "model=transformer trainer.max_steps=4999", False),
    ("keras", "model=transformer trainer.max_steps=5000 trainer.precision=exact", False),
    ("keras", "model=transformer trainer.max_steps=5000 devices=2", False),
    ("keras", "model=cnn data.images=true trainer.max_steps=100000", False),
    ("keras", "model=mlp trainer.max_steps=100000", False),  # XLA compiles it in any case
    ("lightning", "model=transformer trainer.max_steps=40000", True),
    ("lightning", "model=transformer trainer.max_steps=39999", False),
    ("lightning", "model=mlp trainer.max_steps=100000", False),
    ("witness", "trainer.precision=exact trainer.max_steps=100000", False),
]


@pytest.mark.parametrize(("backend", "overrides", "expected"), CHOICES)
def test_auto_goes_by_the_model_and_the_updates(
    backend: str, overrides: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "sh")  # some program that there is
    common = ["device=cpu", "trainer.max_epochs=null", f"backend={backend}"]
    prepared = plan(parse(compose([*common, *overrides.split(), "trainer.compile=auto"])))
    assert prepared.compiles is expected
    assert prepared.run_spec().compile is expected


def test_a_checkpoint_keeps_the_choice_of_auto() -> None:
    overrides = ["model=transformer", "device=cpu", "trainer.compile=auto", "backend=keras"]
    prepared = plan(parse(compose(overrides)))
    assert not prepared.compiles
    resumed: Any = SimpleNamespace(changes={}, numbers={"compiles": True})
    assert with_saved_compile(resumed, prepared).compiles
    resumed.changes["backend"] = ("lightning", "keras")
    assert not with_saved_compile(resumed, prepared).compiles


def test_it_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"trainer.compile=true is not supported with trainer.precision=exact"
    ):
        plan(parse(compose(["trainer.compile=true", "trainer.precision=exact"])))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        ConfigError,
        match=r"needs a C\+\+ compiler: install g\+\+ or clang\+\+, or set CXX",
    ):
        plan(parse(compose(["trainer.compile=true"])))
    plan(parse(compose(["trainer.compile=true", "backend=keras"])))  # XLA brings its own
