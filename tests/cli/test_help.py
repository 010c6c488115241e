"""--help fits a screen, and --schema takes what the program takes."""

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from runner.config.conf_folder import CONF
from tests.command_line import together
from tests.test_isolation import EXAMPLES, OPTIONS, composed

GROUPS = {"task", "backend", "data", "model", "loss", "optimizer", "schedule", "trainer"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("printed")
    (folder / "mine" / "schedule").mkdir(parents=True)
    (folder / "mine" / "schedule" / "my_own.yaml").write_text("name: constant\n")
    (folder / "mine" / "schedule" / "_base.yaml").write_text("name: constant\n")
    commands = {
        "help": ("--help",),
        "mine": ("--help", "--config-dir", "mine"),
        "schema": ("--schema",),
    }
    done = together(folder, *commands.values())
    assert [(each.status, each.err) for each in done] == [(0, "")] * 3
    assert sorted(path.name for path in folder.iterdir()) == ["mine"]
    return {name: each.out for name, each in zip(commands, done, strict=True)}


def test_help_fits_a_screen_and_shows_the_groups_first(printed: dict[str, str]) -> None:
    lines = printed["help"].splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    shown = [line.split(":")[0].strip() for line in lines if line.startswith("  ")]
    assert set(shown) >= GROUPS
    assert printed["help"].index("schedule:") < printed["help"].index("python -m runner")
    assert "--cfg job" in printed["help"]


def test_help_names_the_choices_of_a_folder_and_no_base(printed: dict[str, str]) -> None:
    assert "my_own" in printed["mine"]
    assert "my_own" not in printed["help"]
    assert " _" not in printed["help"] + printed["mine"]


@pytest.fixture(scope="module")
def schema(printed: dict[str, str]) -> Draft202012Validator:
    read: dict[str, Any] = json.loads(printed["schema"])
    Draft202012Validator.check_schema(read)
    return Draft202012Validator(read)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_the_schema_takes_every_choice(
    schema: Draft202012Validator, group: str, option: str
) -> None:
    assert list(schema.iter_errors(composed(group, option))) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": "one"},
        {"devices": 0},
        {"sede": 1},
        {"schedule": {"name": "cosin"}},
        {"schedule": {"name": "cosine", "decay_rate": 0.5}},
        {"schedule": {"decay_ratio": 0.5}},
        {"optimizer": {"name": "adam", "lr": -1e-3}},
        {"model": {"layers": [{"layer": "dens"}]}},
    ],
)
def test_the_schema_refuses_a_wrong_config(schema: Draft202012Validator, wrong: Any) -> None:
    assert list(schema.iter_errors(wrong))


def test_the_schema_takes_a_file_that_sets_some_keys(schema: Draft202012Validator) -> None:
    some = {"defaults": ["_self_"], "schedule": {"decay_rate": 0.5}, "trainer": {"max_epochs": 3}}
    assert list(schema.iter_errors(some)) == []


@pytest.mark.parametrize(
    ("section", "key", "file"),
    [
        ("", "seed", "config.yaml"),
        ("FindLR", "num_steps", "config.yaml"),
        ("Trainer", "batch_size", "trainer/default.yaml"),
        ("Cosine", "warmup_shape", "schedule/_warmup.yaml"),
        ("Cosine", "edge", "schedule/_ending.yaml"),
        ("CosineRestarts", "growth", "schedule/cosine_restarts.yaml"),
        ("Adam", "layer_decay", "optimizer/_common.yaml"),
        ("Table", "target", "data/_columns.yaml"),
        ("Tune", "factors", "tune/lr.yaml"),
        ("Activation", "negative_slope", "layer_defaults/default.yaml"),
    ],
)
def test_a_key_s_description_is_its_remark(
    schema: Draft202012Validator, section: str, key: str, file: str
) -> None:
    node = schema.schema["$defs"][section] if section else schema.schema
    (line,) = (
        line
        for line in (CONF / file).read_text("utf-8").splitlines()
        if line.lstrip().startswith(f"{key}: ")
    )
    assert node["properties"][key]["description"] == line.partition(" # ")[2]


def test_every_remark_of_conf_is_a_description(printed: dict[str, str]) -> None:
    """Remarks of examples are left out: they describe the example's values."""
    for file in sorted(CONF.glob("*/*.yaml")):
        aside = (file.parent.name, file.stem) in EXAMPLES
        if not aside and file.parent.name not in ("experiment", "model", "search"):
            for words in re.findall(r"^ *\w+:.*? # (.*)$", file.read_text("utf-8"), re.MULTILINE):
                assert f'"description": {json.dumps(words)}' in printed["schema"], (file, words)


def test_a_section_s_description_is_its_docstring(schema: Draft202012Validator) -> None:
    from runner.schedules.named import Cosine

    described = schema.schema["$defs"]["Cosine"]["description"]
    assert described.split() == str(Cosine.__doc__).split()
