"""Text that a stranger wrote, in every medium that a report has."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import one_line, printable
from runner.report import rates
from runner.report.markdown import as_markdown
from runner.tasks.compare import compare
from runner.text import escape
from runner.text.console import Console, tree
from tests.command_line import forked
from tests.run_folders import write_run

HOSTILE = {
    "script": "model.name=<!--<script>alert(1)</script>",
    "terminal": "model.name=\x1b[2J\x1b]0;owned\x07\x9b31m",
    "newline": "model.name=a\nwinner   mine\r\n| 1 | mine |",
    "markdown": "model.name=a|b `c` ![x](http://example.com/x.png) <img src=x onerror=alert(1)>",
    "mathtext": "model.name=$^$ 100$\\frac$",
    "direction": "model.name=\u202etxt.exe",
    "surrogate": "model.name=\udc80 模型",
    "formula": "=1+1",
    "template": "model.name=${title} $bokeh @{x}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_medium_acts_on_it(text: str) -> None:
    for spell in (printable, escape.markdown, escape.html, escape.picture, escape.csv):
        assert all(character.isprintable() for character in spell(text))
        spell(text).encode()
    assert not re.search(r"[<>\"']", escape.html(text).replace("&#x27;", ""))
    assert not re.search(r"<[A-Za-z/!?]|[|`]|\]\(", escape.markdown(text))
    assert not re.search(r"[<>]", escape.script({"label": text}))
    assert json.loads(escape.script({"label": text})) == {"label": text}
    assert not escape.csv(text).startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize(
    "text",
    [
        "schedule=constant",
        "model.layers=[{units: 8}]",
        "p < 0.0001",
        "模型",
        "a_b*c",
        "क्\u200dष",
        "表\u3000一",
    ],
)
def test_plain_text_stays_as_it_is(text: str) -> None:
    """Show it unchanged on a terminal and in CSV, and in Markdown but for a star."""
    assert printable(text) == escape.csv(text) == text
    assert escape.markdown(text) == text.replace("*", "&#42;")


def test_what_is_escaped_says_what_it_was() -> None:
    assert printable("\x1b[2J\n\u202e") == r"\x1b[2J\n\u202e"
    assert printable("0.1\xa0\u200b") == r"0.1\xa0\u200b"  # a reader sees neither
    assert one_line("\x1b[1mNo\x1b[0m\n such \x1b[38;5;4mlayer") == "No such layer"
    assert escape.markdown("<b>|[a](b)") == "&lt;b>&#124;[a&#93;(b)"
    assert escape.csv("=1+1") == "'=1+1"
    assert escape.picture("a$b") == r"a\$b"
    assert escape.picture("abcdef", most=4) == "abc…"
    assert (
        as_markdown([("a", "b"), ("|", "c")], escape.markdown).splitlines()[-1]
        == "| &#124; | c   |"
    )


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Compare runs whose result.json a stranger wrote, with errors, schedules and metrics in it.
    Return the output and the files."""
    here = tmp_path_factory.mktemp("hostile")
    for i, text in enumerate(HOSTILE.values()):
        for seed in (0, 1):
            overrides = [text, f"trainer.max_epochs={i + 2}"]
            write_run(
                here / "runs", [f"trainer.max_epochs={i + 2}"], seed, 0.5 + seed / 10 + i / 100,
                overrides=overrides, schedule=text,
                metrics={"val/loss": 0.5 + seed / 10 + i / 100, f"val/{text}": 0.5},
            )  # fmt: skip
        write_run(here / "runs", ["schedule=cosine"], 10 + i, None, error=text, overrides=[text])
    (done,) = forked(here, ("task=compare", "runs=[runs]"))
    assert (done.status, done.err) == (1, "")
    return done.out, here / done.folder


def test_nothing_reaches_the_terminal_but_printable_lines(reports: tuple[str, Path]) -> None:
    out, _ = reports
    assert all(line.isprintable() for line in out.splitlines())
    assert not [
        line for line in out.splitlines() if line.startswith(("winner   mine", "| 1 | mine"))
    ]


def test_markdown_has_no_html_no_image_and_no_more_columns(reports: tuple[str, Path]) -> None:
    text = (reports[1] / "comparison.md").read_text()
    assert not re.search(r"<[A-Za-z/!?]", text)
    assert "](" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({row.count("|") for row in rows}) == 1


def test_csv_has_no_formula_and_a_row_a_job(reports: tuple[str, Path]) -> None:
    with (reports[1] / "comparison.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + 3 * len(HOSTILE)
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert all(cell.isprintable() for cell in cells)


def test_the_page_s_scripts_are_ours_alone(reports: tuple[str, Path]) -> None:
    """An HTML parser finds the three scripts, the last of them whole, and no image."""
    from html.parser import HTMLParser

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append(tag)

    page = (reports[1] / "comparison.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.tags.count("script") == 3
    assert "img" not in tags.tags
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    labels = [group["label"] for group in json.loads(data[1])["groups"]]
    # BokehJS shows them as text: tests/report/test_page.py
    assert any("<!--<script>" in label for label in labels)


def test_answer_json_keeps_the_text_as_it_was(reports: tuple[str, Path]) -> None:
    groups = json.loads((reports[1] / "answer.json").read_text())["groups"]
    assert HOSTILE["script"] in {group["overrides"][0] for group in groups}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_a_run_says_is_printable(text: str) -> None:
    """Values of a stranger's config, as a line and in the tree of print_config."""
    terminal = io.StringIO()
    console = Console(terminal)
    console.say(f"changed  model.name {text} -> mlp")
    drawn = tree({"model": {"name": text, text: [text]}}).splitlines()
    assert len(terminal.getvalue().splitlines()) == 1
    lines = [*terminal.getvalue().splitlines(), *drawn]
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith("winner")]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_a_model_s_name_with_dollars_is_drawn_as_it_is(tmp_path: Path, backend: str) -> None:
    """Between two dollars matplotlib reads mathematics; `^` alone is none, which ended a multirun
    after its training."""
    names = (
        "-m",
        f"backend={backend}",
        "model.name='a$b','100$^$','模型'",
        "trainer.max_steps=2",
        "device=cpu",
    )
    (done,) = forked(tmp_path, names)
    assert (done.status, done.err) == (0, "")
    folder = tmp_path / done.folder
    assert (folder / "comparison.png").stat().st_size > 1000
    assert len(list(folder.glob("*/curves.png"))) == 3


@pytest.mark.slow
def test_pictures_of_schedules_take_any_name(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """One pair of axes, and a gallery."""
    tables = {
        f"{text} {i}": np.linspace(1, 0, 9) for i, text in enumerate([*HOSTILE.values(), "_hidden"])
    }
    few = dict(list(tables.items())[-3:])
    for name, each in (("few", few), ("gallery", tables)):
        rates.draw(tmp_path / f"{name}.png", each, 1.0)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    # Files that earlier tests in this process left open give ResourceWarnings, at any time.
    drawing = [str(each.message) for each in recwarn if each.category is not ResourceWarning]
    assert drawing == []


# Runs that cannot be read, beside runs that can


DAMAGE: dict[str, tuple[str, str | None]] = {
    "an empty result": ("result.json", ""),
    "a list": ("result.json", "[]"),
    "a wrong value": ("result.json", '{"status": null}'),
    "an empty config": ("config.yaml", ""),
    "no config": ("config.yaml", None),
    "an empty trace": ("trace.csv", ""),
    "words": ("trace.csv", "step,learning_rate,loss\na,b,c\n"),
    "no trace": ("trace.csv", None),
    "no rows": ("metrics.csv", "epoch,step,train/loss,val/loss,seconds\n"),
}


def test_a_damaged_run_is_told_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damaged runs of a third setting beside two whole ones; each is one line with its file."""
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs", ["schedule=constant"], seed, 0.5 + seed / 10)
        write_run(tmp_path / "runs", ["schedule=linear"], seed, 0.6 + seed**2 / 10)
    broken = {}
    for seed, (file, text) in enumerate(DAMAGE.values()):
        folder = write_run(tmp_path / "runs", ["schedule=cosine"], seed, 0.4)
        broken[folder.name] = file
        if text is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(text)
    assert compare([str(tmp_path / "runs")], tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    for name, file in broken.items():
        (line,) = [line for line in lines if line.startswith(f"damaged: {name} ")]
        assert file in line
    assert "6 of 15 jobs completed" in lines
    assert any(line.startswith("winner   schedule=constant") for line in lines)
    # the two without a config cannot be told to belong to it
    assert any(line.startswith("  schedule=cosine_0: 7 of 7 seeds failed") for line in lines)


def test_the_result_of_an_older_version_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing keys are read from the config or unknown; data.json has no hash of the values."""
    for seed in (0, 1, 2):
        for schedule, last in (("constant", 0.5 + seed / 10), ("linear", 0.6 + seed**2 / 10)):
            folder = write_run(tmp_path / "runs", [f"schedule={schedule}"], seed, last)
            result: dict[str, Any] = json.loads((folder / "result.json").read_text())
            for key in ("seed", "seconds", "weights_sha256", "backend"):
                del result[key]
            (folder / "result.json").write_text(json.dumps(result))
    assert compare([str(tmp_path / "runs")], tmp_path) == 0
    assert "6 of 6 jobs completed" in capsys.readouterr().out
