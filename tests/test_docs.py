"""The pages of docs/: their links, their commands, the reference made from what it describes."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from runner.cli.compose import compose
from tests.command_line import REPOSITORY
from tests.pages import execute
from tests.test_readme import blocks

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(DOCS))
        return importlib.import_module("reference")


def test_the_reference_has_every_key_and_every_choice(reference: ModuleType) -> None:
    pages = reference.pages()
    for name, value in compose([]).items():
        sections = {"trainer", "tracker", "answer", "race", "output", "find_lr", "clean"}
        inside = value if name in {*sections, "forecast"} else {}
        for key in [f"{name}.{inner}" for inner in inside] or [name]:
            if key not in ("layer_defaults", "tune"):  # tune.name, tune.factors
                assert f"## `{key}`\n" in pages["keys.md"], key
    for group in ("schedule", "optimizer", "data", "loss"):
        for file in (REPOSITORY / "conf" / group).glob("[!_]*.yaml"):
            assert f"## `{group}={file.stem}`\n" in pages[f"{group}.md"]
    assert "- `negative_slope`: a number >= 0; default `0.01`. slope of leaky" in pages["layers.md"]
    assert "- `optimizer.beta1`: a number >= 0 and < 1; default `0.9`" in pages["optimizer.md"]


def test_every_link_of_a_page_leads_to_a_file_of_the_repository(reference: ModuleType) -> None:
    """Pages that the build of the site makes are not in the repository, which is read too."""
    made = {f"reference/{name}" for name in reference.pages()}
    for page in DOCS.glob("*.md"):
        for place in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert place not in made, (page.name, place)
            assert (DOCS / place).is_file(), (page.name, place)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["tutorial.md", "howto.md", "twins.md", "experiments.md", "search.md"]
)
def test_every_command_of_a_page_runs(page: str, tmp_path: Path) -> None:
    for script in blocks("bash", (DOCS / page).read_text("utf-8")):
        done = execute(script, tmp_path)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_python_page_runs(tmp_path: Path) -> None:
    code = "\n".join(blocks("python", (DOCS / "python.md").read_text("utf-8")))
    done = execute('python -c "$0"', tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 jobs completed" in done.stdout


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra docs brings it")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "trainer.batch_size" in (tmp_path / "site" / "searchindex.js").read_text("utf-8")
