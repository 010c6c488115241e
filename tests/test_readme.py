"""Every command of the README runs, in the order of the page, as a reader would paste it into one
folder.

The language of a code block says how: `bash` as it stands; `setup` makes environments, which
.ci/run does with the very same line, so here only what it ends with; `tests` is a part of this
suite; `benchmark` in its shortest form; `console` shows a command and what it says; `python` with
FOLDER being the last run's.
"""

import re
import textwrap
from pathlib import Path

import pytest

from tests.command_line import REPOSITORY
from tests.pages import execute

# all commands of a page, one after another, on a slow or busy machine
pytestmark = pytest.mark.timeout(1800)

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


DATA = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
SCHEDULES = (REPOSITORY / "docs" / "schedules.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", page, flags=re.MULTILINE | re.DOTALL)
    assert found, f"the page has no block of {language}"
    return [textwrap.dedent(text) for text in found]


def test_ci_runs_the_second_command_as_it_stands() -> None:
    train, test = (text.strip() for text in blocks("bash setup"))
    assert test in (REPOSITORY / ".ci" / "run").read_text().replace("pip install -q", "pip install")
    assert train.split(" && ")[:2] == test.split(" && ")[:2]
    assert test.split(" && ")[2:] == [
        'pip install -c constraints.txt -e ".[test]"',
        "python -m pytest",
    ]
    assert train.split(" && ")[2:] == [
        "pip install -c constraints.txt -e .",
        "python -m runner schedule=exponential",
    ]


def test_the_tests_it_names_are_there() -> None:
    for text in blocks("bash tests"):
        command, place = text.rsplit(maxsplit=1)
        assert command == "python -m pytest"
        assert (REPOSITORY / place).exists()


@pytest.mark.slow
def test_every_command_runs_and_its_python_too(tmp_path: Path) -> None:
    first = blocks("bash setup")[0].split(" && ")[-1]
    for script in [first, *blocks("bash")]:
        done = execute(script, tmp_path, is_forked=script != first)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    last = sorted((tmp_path / "outputs" / "runs").iterdir())[-1]
    for code in blocks("python"):
        done = execute('python -c "$0"', tmp_path, code.replace("FOLDER", str(last)))
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_data_page_runs_and_its_predictions_are_right(tmp_path: Path) -> None:
    """Predict about 3 * 120 + 20 * 3 by the run and its export, up to the noise of 5 and the
    remaining training error."""
    for script in blocks("bash", DATA):
        done = execute(script, tmp_path)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    text, code, _ = blocks("python", DATA)  # a test of exports runs the last one
    done = execute('python -c "$0"', tmp_path, text)
    assert done.returncode == 0, done.stderr
    done = execute('python -c "$0"', tmp_path, code.replace("FOLDER", str(run)))
    assert done.returncode == 0, done.stderr
    found = [float(number) for number in re.findall(r"\[\[([\d.]+)", done.stdout)]
    assert found == pytest.approx([420, 420], abs=20)
    assert "['area', 'rooms'] -> price" in done.stdout


@pytest.mark.slow
def test_every_command_of_the_schedules_page_runs(tmp_path: Path) -> None:
    for script in blocks("bash", SCHEDULES):
        done = execute(script, tmp_path)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        assert "warning" not in done.stdout.split("picture")[0] or "glob" in script


def test_the_schedules_page_names_every_schedule_and_every_key() -> None:
    """The keys are those of conf/schedule/, without `name` and the keys that warm-up stands for."""
    from runner.config.conf_folder import choices
    from runner.config.remarks import remarks

    for name in choices("schedule"):
        assert f"`{name}`" in SCHEDULES or f"schedule={name}" in SCHEDULES, name
        row = next(
            (line for line in SCHEDULES.splitlines() if line.startswith(f"| `{name}` |")), None
        )
        if row is not None:
            keys = {key for key in remarks("schedule", name) if "." not in key}
            keys -= {"name", "defaults"}
            keys -= {"warmup", "warmup_shape", "warmup_edge"} if "warm-up" in row else set()
            missing = [key for key in keys if not re.search(rf"`{key}`", row)]
            assert not missing, (name, missing)


def test_what_it_shows_a_command_to_say_is_what_it_says(tmp_path: Path) -> None:
    for text in blocks("console"):
        command, said = text.split("\n", 1)
        done = execute(command.removeprefix("$ "), tmp_path)
        assert done.stdout + done.stderr == said


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    (text,) = blocks("bash benchmark")
    done = execute(
        f"{text.strip()} --models mlp --epochs mlp=2 --repeats 1 --json {tmp_path / 'found.json'}",
        REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found.json").stat().st_size > 0


def test_its_pictures_and_pages_are_there() -> None:
    for folder, page in ((REPOSITORY, README), (REPOSITORY / "docs", SCHEDULES)):
        for place in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (folder / place).is_file(), place
