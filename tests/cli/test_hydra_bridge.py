"""Canaries of Hydra's internals that the bridge uses. A failure names the release that changed
them."""

from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from runner.cli import hydra_bridge
from runner.cli.commands import execute
from runner.cli.compose import compose, to_values
from runner.config import yaml_files

RELEASE = f"Hydra {hydra.__version__}"


def test_it_composes_and_puts_values_upon_what_was_composed() -> None:
    own, part = hydra_bridge.load(None, ["schedule=cosine"])
    assert own.schedule.name == "cosine", RELEASE
    assert part.runtime.choices["schedule"] == "cosine", RELEASE
    hydra_bridge.apply(OverridesParser.create().parse_overrides(["++seed=7"]), own)
    assert own.seed == 7, RELEASE


def test_its_options_are_those_that_are_looked_at() -> None:
    options = vars(hydra_bridge.argument_parser().parse_args([]))
    looked_at = {
        "help",
        "schema",
        "hydra_help",
        "cfg",
        "info",
        "shell_completion",
        "config_dir",
        "config_name",
        "config_path",
    }
    known = {
        *looked_at,
        "experimental_rerun",
        "multirun",
        "run",
        "overrides",
        "package",
        "resolve",
        "version",
        "json",
    }
    assert set(options) <= known, (
        f"{RELEASE} has options of which nobody has decided whether they are taken"
    )


def test_shell_completion_offers_the_choices_and_no_base(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", "runner optimizer=")
    monkeypatch.setenv("COMP_POINT", "17")
    parsed = hydra_bridge.argument_parser().parse_args(["--shell-completion", "query=bash"])
    hydra_bridge.show(parsed, None, OmegaConf.create())
    names = (
        "adadelta adafactor adagrad adam adamax adamw ademamix custom lamb lars lion "
        "module muon nadam prodigy rmsprop schedule_free_adamw schedule_free_sgd sgd"
    )
    offered = capsys.readouterr().out.split()
    assert offered == [f"optimizer={name}" for name in names.split()], RELEASE


@pytest.mark.parametrize("line", ["schedule=plateau", "data=npz data.path=x data.fold=1"])
def test_the_config_that_is_shown_is_the_one_that_runs(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra itself refuses keys that no file has, and cannot read a name such as ünï."""
    GlobalHydra.instance().clear()
    keys = ["optimizer.schedules.beta1.name=ramp", "output.root=ünï", "seed=3"]
    assert execute(["--cfg", "job", "--resolve", *line.split(), *keys]) == 0
    shown = yaml_files.parse(capsys.readouterr().out, Path("shown"))
    assert to_values(shown) == compose([*line.split(), *keys]), RELEASE


def test_a_launcher_is_given_each_job_s_overrides(tmp_path: Path) -> None:
    seen: list[tuple[list[str], int]] = []

    def task(overrides: list[str], number: int) -> None:
        seen.append((overrides, number))

    part = hydra_bridge.load(None, ["hydra/launcher=basic"]).hydra
    hydra_bridge.launch(part, tmp_path, ["seed=3,4", "schedule=cosine"], task)
    assert seen == [(["seed=3", "schedule=cosine"], 0), (["seed=4", "schedule=cosine"], 1)], RELEASE
    assert OmegaConf.load(f"{tmp_path}/multirun.yaml").hydra.overrides.task == [
        "seed=3,4",
        "schedule=cosine",
    ]
