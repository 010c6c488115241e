"""A file of --config-dir that is no good is told in one line, with its name and the line."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runner.cli.compose import compose
from runner.config.schema import parse as config
from runner.config.yaml_files import dump, parse, read_text, values
from runner.errors import ConfigError

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
BROKEN = [
    ("a: [1, 2", "line 2: did not find expected ',' or ']'"),
    ("a: 1\n\tb: 2\n", "line 2: found a tab character"),
    ("a: 1\nb: 2\na: 3\n", "line 3: the key a is repeated"),
    ("x:\n  a: 1\n  a: 3\n", "line 3: the key a is repeated"),
    ("a: \x07\n", "control characters are not allowed"),
    ("just text", "must hold KEY: VALUE, got just text"),
    ("- 1\n- 2\n", "must hold KEY: VALUE"),
    ("a: &a [1, *a]\n", "line 1: the value contains itself"),
    ("a: *nowhere\n", "line 1: found undefined alias"),
    (BOMB, "more than 20000 values"),
    ("a: " + "[" * 100_000, "line 1: values nest deeper than 60 levels"),
    ("a: " + "{a: " * 61 + "1" + "}" * 61, "line 1: values nest deeper than 60 levels"),
    (
        "a: !!python/object/apply:os.mkdir [canary]\n",
        "could not determine a constructor for the tag",
    ),
    ("a: ${\n", "no viable alternative"),
    ("a: !!float\n", "a value after !!int or !!float is empty"),
    ("a: 1\n? [b, c]\n: 2\n", "line 2: a key must be a text, got a list"),
    ("? \n: 2\n", "a key must be a text, got null"),
]


@pytest.mark.parametrize(("text", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_what_is_wrong_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, Path("mine.yaml"))
    assert str(error.value).startswith("mine.yaml")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 200


def test_what_is_right_is_what_omegaconf_reads() -> None:
    text = "a: &a {b: 1e-3, c: [1, null, yes]}\nd: *a\ne: ${a.b}\n"
    assert parse(text, Path("mine.yaml")) == OmegaConf.create(text)
    assert parse("# nothing\n", Path("mine.yaml")) == {}


HEADER = "# @package _global_\n"
# a file's text -> the message; Hydra's own words name no key, or nothing is said at all
EXPERIMENTS = [
    (HEADER + "1: 1\n", "a key of the config must be text, got 1"),
    (HEADER + "true: 1\n", "a key of the config must be text, got true"),
    (
        HEADER + "'optimizer.lr': 1\n",
        "optimizer.lr is a single key that contains a dot; in a file, write lr below optimizer",
    ),
    ("seed: 1\n", "experiment: the first line of its file must be '# @package _global_'"),
    (
        HEADER + "optimizer: [1]\n",
        (
            "experiment/mine.yaml has a list where the config has a group of keys, or a group "
            "where the config has a list"
        ),
    ),
    (
        HEADER + "defaults:\n  - /optimizer: ${seed}\n",
        "a defaults list cannot contain ${...}; name the choice itself",
    ),
    (
        HEADER + "hydra:\n  sweeper:\n    n_trials: 2\n",
        "unknown key hydra.sweeper.n_trials: the chosen launcher or sweeper does not have it",
    ),
]


@pytest.mark.parametrize(("text", "said"), EXPERIMENTS, ids=[said for _, said in EXPERIMENTS])
def test_an_experiment_that_means_nothing_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        config(compose(["experiment=mine"], str(tmp_path)))
    assert str(error.value) == said


def test_an_item_past_the_end_of_a_list_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^model\.layers\[99\] is past the end of its list$"):
        compose(["model.layers.99.units=5"])


def test_text_is_utf8_of_a_regular_file_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("\ufeffname: ü\n".encode())
    assert read_text(path) == "name: ü\n"
    path.write_bytes(b"a: 1\nname: \xfc\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml, line 2: the text must be UTF-8$"):
        read_text(path)
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match=r"must have at most 1048576 bytes$"):
        read_text(path)
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: a plain open would wait for ever
    with pytest.raises(ConfigError, match=r"pipe must be a regular YAML file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"nowhere cannot be read: No such file"):
        read_text(tmp_path / "nowhere")


def test_yaml_is_read_and_written_as_omegaconf_does() -> None:
    """A canary of omegaconf._utils: its own reader and writer are the reference."""
    shared = [1]
    written = {
        "texts": ["1e-3", "yes", "2020-01-01", "0x1f", "1_000", "nan", "", " a", "x: y", "#", "~"],
        "long": "a" * 200 + " b" * 60,
        "ü": {"float": 1e-3, "inf": float("inf"), "none": None, "empty": [[], {}], "${x}": "${x}"},
        "twice": [shared, shared],
        "tuple": (1, 2),
        "path": Path("a"),
    }
    text = OmegaConf.to_yaml(OmegaConf.create(written))
    assert dump(written) == text
    plain = {key: value for key, value in written.items() if key != "path"}
    assert dump(plain) == OmegaConf.to_yaml(OmegaConf.create(plain))
    text = "a: 1e-3\nb: 2020-01-01\nc: 1:30\nd: yes\ne: &e {f: 010}\ng: {<<: *e, h: .5e+3}\ni: *e\n"
    assert parse(text, Path("mine.yaml")) == OmegaConf.create(text)
    escaped = {"texts": ["😀 a", "a\x85b", "\r\n", "\x07"], "a\rb": 1}
    assert values(dump(escaped), Path("mine.yaml")) == escaped
    with pytest.raises(ConfigError, match=r"line 1: a key must be a text, got null$"):
        values("null: 1\n", Path("mine.yaml"))
