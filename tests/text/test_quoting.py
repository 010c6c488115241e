"""Commands printed for copying are read back unchanged, by the shell and by Hydra."""

import shlex
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.text.quoting import command_line, override, spell

PARSER = OverridesParser.create()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("key"), inner, max_size=1),
    max_leaves=5,
)


def read_back(argument: str) -> Any:
    (parsed,) = PARSER.parse_overrides([argument])
    assert not parsed.is_sweep_override()
    return parsed.value()


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_hydra_reads_any_value_back_from_its_spelling(value: Any) -> None:
    assert repr(read_back(override("key", value))) == repr(value)


@pytest.mark.parametrize(
    "text",
    [
        "ü1",
        "a=1",
        "a,b",
        "it's",
        "a\\",
        "\\'",
        "1e-3",
        "null",
        "Nan",
        "",
        " ",
        "a: b",
        "-m",
        "$(touch x)",
    ],
)
def test_so_does_the_shell_the_whole_command(text: str) -> None:
    python, option, runner, *arguments = shlex.split(command_line([override("run", text)]))
    assert (python, option, runner) == ("python", "-m", "runner")
    assert [read_back(argument) for argument in arguments] == [text]


@pytest.mark.parametrize(
    "text", ["outputs/runs/2026-11-24_10-15-00_linear_keras", "val/loss", "5%", "cuda:0"]
)
def test_what_needs_no_quotes_gets_none(text: str) -> None:
    assert command_line([f"run={spell(text)}"]) == f"python -m runner run={text}"
