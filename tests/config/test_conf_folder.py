"""The choices of conf/ and the bases that they share; Hydra says what each choice composes to."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runner.cli import hydra_bridge
from runner.cli.compose import CONF, compose
from runner.config import yaml_files
from runner.config.conf_folder import bases, choices, defaults, files
from runner.config.remarks import remarks
from runner.errors import ConfigError
from tests.test_isolation import OPTIONS

BELOW = ("data", "layer_defaults", "loss", "optimizer", "schedule", "trainer")  # their own name
BASES = [
    ("experiment", "_chapter"),
    ("optimizer", "_common"),
    ("schedule", "_ending"),
    ("schedule", "_warmup"),
]


def test_conf_is_read_as_omegaconf_reads_it_and_repeats_no_key() -> None:
    """The quick reader takes the last of two equal keys, where OmegaConf's raises an error."""
    paths = sorted(CONF.rglob("*.yaml"))
    assert paths
    for path in paths:
        expected = OmegaConf.to_container(OmegaConf.load(path))  # refuses a repeated key
        assert repr(OmegaConf.to_container(yaml_files.of_own(path.read_text("utf-8")))) == repr(
            expected
        ), path


@pytest.mark.parametrize(("group", "choice"), [of for of in OPTIONS if of[0] in BELOW])
def test_the_defaults_of_a_choice_are_what_hydra_composes(group: str, choice: str) -> None:
    composed = OmegaConf.to_container(hydra_bridge.load(None, [f"{group}={choice}"]).own[group])
    assert isinstance(composed, dict)
    has_default = {key: value for key, value in composed.items() if value != "???"}
    assert list(defaults(group, choice).items()) == list(has_default.items())


@pytest.mark.parametrize(("group", "base"), BASES)
def test_a_base_is_no_choice_and_has_no_defaults_of_its_own(group: str, base: str) -> None:
    assert bases(group) == [name for of, name in BASES if of == group]
    assert base not in choices(group)
    assert defaults(group, base) == {}


def test_every_base_is_shared_and_stands_alone_with_its_keys() -> None:
    """Several choices read it, and no file of conf/ sets a key that a base read after it sets
    again."""
    for group, base in BASES:
        file = CONF / group / f"{base}.yaml"
        assert sum(file in files(group, choice) for choice in choices(group)) > 1
    for group, choice in OPTIONS:
        own = CONF / group / f"{choice}.yaml"
        order = files(group, choice)
        later = {key for file in order[order.index(own) + 1 :] for key in OmegaConf.load(file)}
        assert set(OmegaConf.load(own)) & (later - {"defaults"}) == set(), (group, choice)


def test_a_remark_follows_the_defaults_list() -> None:
    assert remarks("schedule", "cosine")["warmup_shape"] == ("linear", "linear, cosine")
    # a value of the choice's own, the remark of the choice that it begins with
    assert remarks("schedule", "sgdr")["growth"] == (
        "2.0",
        "length of a cycle relative to the one before",
    )


NEED_FILES = ("speech_digits", "speech_transcription")
EXPERIMENTS = [choice for choice in choices("experiment") if choice not in NEED_FILES]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_another_schedule_replaces_that_of_an_experiment_with_its_keys(experiment: str) -> None:
    plain, replaced = compose([]), compose([f"experiment={experiment}", "schedule=constant"])
    assert replaced["schedule"] == plain["schedule"]
    assert replaced["optimizer"] == compose([f"experiment={experiment}"])["optimizer"]


MINE = [
    (
        "defaults: [linear, _self_]\nfinal_lr: 1e-4\nwarmup: 3%\n",
        {"name": "linear", "final_lr": 1e-4, "duration": "100%", "edge": "left", "warmup": "3%"},
    ),
    (
        "defaults: [_warmup, _self_]\nname: step\ndecay_rate: 0.2\nstep_size: 7\nwarmup: 3%\n",
        {"warmup": "3%", "name": "step", "decay_rate": 0.2, "step_size": 7},
    ),
    (
        "defaults: [_self_, _warmup]\nname: step\ndecay_rate: 0.2\nstep_size: 7\n",
        {"name": "step", "decay_rate": 0.2, "step_size": 7, "warmup": "0%"},
    ),
]


@pytest.mark.parametrize(("text", "values"), MINE)
def test_a_file_of_the_user_s_begins_with_a_choice_or_a_base(
    text: str, values: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule/mine.yaml").write_text(text)
    warmup = {"warmup_shape": "linear", "warmup_edge": "right"}
    assert compose(["schedule=mine"], str(tmp_path))["schedule"] == {**values, **warmup}


def test_a_key_of_the_user_s_that_a_base_would_set_again_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "schedule/mine.yaml"
    file.parent.mkdir()
    file.write_text("defaults: [_self_, _ending]\nname: linear\nfinal_lr: 0.0\nwarmup: 3%\n")
    with pytest.raises(ConfigError) as error:
        compose(["schedule=mine"], str(tmp_path))
    assert str(error.value) == (
        f"{file}: warmup has no effect, because the defaults list has _ending after _self_; "
        f"write defaults: [_ending, _self_]"
    )
