"""A wrong command line: exit status 2, a short sentence that names the key, nothing written,
nothing trained.

command_line_errors.txt is the catalogue: `$` and what follows `python -m runner`, below it all that
stderr says; lists that recur are written once, at its top.
"""

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from runner import dispatcher
from runner.__main__ import main
from runner.config.schema import parse
from runner.errors import ConfigError, closest, nearest, show
from tests.rows import slow_but, slow_rows

CATALOGUE = Path(__file__).with_name("command_line_errors.txt")
REPOSITORY = Path(__file__).resolve().parents[2]


def cases() -> list[tuple[str, str]]:
    """(command line, stderr) of every entry."""
    lines = [
        line
        for line in CATALOGUE.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    lists = dict(line[1:].split(" ", 1) for line in lines if line.startswith("@"))
    lines = [
        re.sub(r"<(\w+)>", lambda name: lists.get(name[1], name[0]), line)
        for line in lines
        if line[0] != "@"
    ]
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    ends = [*starts[1:], len(lines)]
    return [(lines[i][2:], "\n".join(lines[i + 1 : j])) for i, j in zip(starts, ends, strict=True)]


CASES = cases()


class OnlyCpu:
    """A backend that has a CPU and trains nothing."""

    def devices(self) -> list[str]:
        return ["cpu"]

    def can_use_threads(self, num: int) -> bool:
        return True

    def train(self, *_: Any) -> None:
        raise AssertionError("a wrong config must not come as far as training")


def arguments(line: str) -> list[str]:
    given = shlex.split(line)
    return given if "output.root=" in line else [*given, "output.root=out"]


def status_of_main() -> Any:
    try:
        return main()
    except SystemExit as end:  # argparse's way, for options
        return end.code


def named(line: str) -> str:
    """The key that the last override is about."""
    last = shlex.split(line)[-1].lstrip("+~-")
    return last.partition("=")[0].partition("[")[0]


def test_the_catalogue_is_long_and_says_nothing_twice() -> None:
    assert len(CASES) > 200
    assert len({line for line, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("line", "said"),
    [  # every fourth by default
        pytest.param(line, said, id=line, marks=[pytest.mark.slow] if i % 4 else [])
        for i, (line, said) in enumerate(CASES)
    ],
)
def test_a_wrong_command_line_is_refused_in_exactly_these_words(
    line: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatcher, "load", lambda name, lean=False: OnlyCpu())
    monkeypatch.setattr(sys, "argv", ["runner", *arguments(line)])
    status = status_of_main()
    out, err = capfd.readouterr()
    assert err.strip() == said
    assert status == 2
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_every_sentence_is_short_and_names_the_key() -> None:
    for line, said in CASES:
        assert len(said.splitlines()) <= 3, line
        assert "Traceback" not in said, line
        assert "Hydra" not in said, line
        assert "omegaconf" not in said.lower(), line
        key = named(line).removeprefix("model.")
        if line.startswith(("--cfg job", "schedule.name", "~layer_defaults")):
            continue  # what is wrong follows from the key, and is named instead
        group, _, last = key.rpartition(".")
        assert last in said or group in said, line


@pytest.mark.parametrize(
    "line",
    slow_but(
        [
            "optimzer=adam",
            "optimizer.lr=-1",
            "schedule=cosin",
            "trainer.monitor=val/los",
            "--multirn",
        ],
        "trainer.monitor=val/los",
    ),
)
def test_a_process_of_its_own_says_the_same(line: str, tmp_path: Path) -> None:
    said = dict(CASES)[line]
    command = [sys.executable, "-m", "runner", *arguments(line)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (2, "", said)
    assert list(tmp_path.iterdir()) == []


LONG = "a" * 300  # no file system takes it
DEEP = "/".join(["b" * 250] * 16)  # Linux takes it as a folder, but no run's files in it
TOO_LONG = {
    f"resume={LONG}": f"resume must be the folder of a run, got {LONG}, which holds no config.yaml",
    f"run={LONG}": f"run must be the folder of a run, got {LONG}, which holds no config.yaml",
    f"task=compare runs=[{LONG}]": (
        f"runs must be folders of runs, got {LONG}, which holds no result.json"
    ),
    f"output.root={LONG}": (
        f"output.root must be a folder that can be written to; {LONG}/runs: File name too long"
    ),
    **{
        f"{task} output.root=new/{LONG}": (
            f"output.root must be a folder that can be written to; new/{LONG}/{folder}: "
            f"File name too long"
        )
        for task, folder in (
            ("task=train", "runs"),
            ("-m seed=0,1", "multiruns"),
            ("task=preview", "previews"),
            ("-m task=preview schedule=cosine,linear", "previews"),
            ("task=describe", "descriptions"),
            ("task=find_lr", "find_lr"),
            ("-m task=find_lr seed=0,1", "find_lr"),
        )
    },
    f"-m seed=0,1 output.root=new output.multirun=new/{LONG}": (
        f"output.multirun must be a folder that can be written to; new/{LONG}: File name too long"
    ),
    f"-m seed=0,1 output.root=new output.multirun=new/{DEEP}": (
        f"output.multirun must be a folder that can be written to; new/{DEEP[:53]}...: "
        f"File name too long"
    ),
    f"data=csv data.path={LONG}": (
        f"data.path must be a file, got {LONG}, which cannot be opened: File name too long"
    ),
}


@pytest.mark.parametrize(
    ("line", "said"), TOO_LONG.items(), ids=[line.partition("/")[0][:50] for line in TOO_LONG]
)
def test_a_name_that_is_too_long_is_said_of_its_key(
    line: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    test_a_wrong_command_line_is_refused_in_exactly_these_words(
        line, f"error: {said}", tmp_path, monkeypatch, capfd
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            (),
            "takes one of install=SHELL, uninstall=SHELL, query=SHELL and nothing else, "
            "got nothing",
        ),
        (("install=nosh",), "install must be one of bash, fish, zsh, got nosh"),
        (("uninstall=",), 'uninstall must be one of bash, fish, zsh, got ""'),
        (
            ("query=bash",),
            "query=bash needs the environment variable COMP_LINE, which the shell sets; "
            "install=bash prints the script that does so",
        ),
    ],
)
def test_shell_completion_is_refused_in_one_line_where_it_lacks_what_it_needs(
    given: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Hydra would end with a traceback."""
    monkeypatch.delenv("COMP_LINE", raising=False)
    monkeypatch.setattr(sys, "argv", ["runner", "--shell-completion", *given])
    assert main() == 2
    assert capfd.readouterr() == ("", f"error: --shell-completion {said}\n")


@pytest.mark.parametrize(
    ("options", "said"),
    slow_rows(
        [
            (("--info", "config"), "Config search path"),
            (("--cfg", "job", "--package", "_global_"), "\ntrainer:"),
            (("--cfg", "hydra"), "hydra:"),
            (("--hydra-help",), "--shell-completion"),
            (("--shell-completion", "install=bash"), "COMP_LINE"),
            (("-sc", "query=bash"), "schedule=cosine schedule=cosine_restarts\n"),
            (("-sc", "query=bash", "data.path='a b"), ""),  # a quote that is still open
        ],
        [(("-sc", "query=bash"), "schedule=cosine schedule=cosine_restarts\n")],
    ),
)
def test_hydra_s_own_options_show_what_they_are_for(options: tuple[str, ...], said: str) -> None:
    """The shell completes the line in COMP_LINE."""
    options, line = (options[:2], options[2]) if len(options) == 3 else (options, "schedule=cos")
    command = [sys.executable, "-m", "runner", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COMP_LINE": f"twinrun {line}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_a_launcher_whose_scheduler_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = (
        "error: hydra/launcher=submitit_slurm needs Slurm, got no srun on the PATH; "
        "hydra/launcher=submitit_local runs the jobs on this machine"
    )
    line = "-m hydra/launcher=submitit_slurm seed=0,1"
    test_a_wrong_command_line_is_refused_in_exactly_these_words(
        line, said, tmp_path, monkeypatch, capfd
    )


@pytest.mark.parametrize("name", ["config.yaml", "hydra/config.yaml"])
def test_a_file_of_config_dir_that_would_change_nothing_is_refused(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("seed: 3\n")
    monkeypatch.setattr(sys, "argv", ["runner", "--config-dir", str(tmp_path), "task=preview"])
    assert main() == 2
    assert capfd.readouterr() == (
        "",
        f"error: --config-dir must not contain {name}, got {file}; move it to "
        f"experiment/NAME.yaml and select it with experiment=NAME\n",
    )


def test_a_file_of_config_dir_in_place_of_a_base_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other choices than the one that is chosen would change."""
    file = tmp_path / "schedule" / "_warmup.yaml"
    file.parent.mkdir()
    file.write_text("warmup: 5%\n")
    monkeypatch.setattr(sys, "argv", ["runner", "--config-dir", str(tmp_path), "task=preview"])
    assert main() == 2
    assert capfd.readouterr() == (
        "",
        f"error: --config-dir must not contain schedule/_warmup.yaml, got {file}; rename it: "
        f"choices of conf/ use a file of that name\n",
    )


def test_version_names_the_program_first_and_imports_no_framework(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["runner", "--version"])
    before = {*sys.modules}
    assert main() == 0
    found = dict(part.split(" ") for part in capfd.readouterr().out.strip().split(", "))
    assert next(iter(found)) == "twinrun"
    assert found["hydra-core"] == version("hydra-core")
    assert {"torch", "tensorflow"} & ({*sys.modules} - before) == set()


def test_a_hint_ignores_case_and_takes_the_beginning_of_a_name() -> None:
    options = ["adam", "sgd", "exponential"]
    assert closest("SGD", options) == "sgd"
    assert closest("exp", options) == "exponential"
    assert closest("", options) is None
    assert closest("zzz", options) is None
    assert nearest("adm", options) == "; did you mean adam?"
    assert nearest("zzz", options) == ""


def test_a_value_is_shown_as_yaml_spells_it_and_at_most_60_characters_long() -> None:
    assert [show(value) for value in (None, True, False, "", 0.1, [1, 2])] == [
        "null",
        "true",
        "false",
        '""',
        "0.1",
        "[1, 2]",
    ]
    assert len(show("x" * 1000)) == 60


def test_a_config_that_is_no_mapping_of_groups_is_refused_with_the_first_missing_key_named() -> (
    None
):
    with pytest.raises(ConfigError, match=r"^task is missing; it needs a value$"):
        parse({})
