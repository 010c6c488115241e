"""The program that recomputes the numbers of a comparison is independent, and notices a wrong one.
Other tests run it on multiruns."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runner.tasks.compare import compare as compare_task
from tests.report import independent
from tests.report.independent import check
from tests.run_folders import write_run


def test_it_imports_nothing_of_the_project() -> None:
    tree = ast.parse(Path(independent.__file__).read_text("utf-8"))
    names = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    ]
    assert {"numpy", "scipy"} < {*names}
    assert not [name for name in names if name.startswith(("runner", "backends", "tests"))]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Four schedules on six seeds, and one that diverged; an accuracy, which counts rows."""
    here, draw = tmp_path_factory.mktemp("written"), np.random.default_rng(0)
    for i, name in enumerate(("constant", "linear", "cosine", "step")):
        for seed in range(6):
            correct = 200 + 4 * i + 2 * seed + round(float(draw.normal(0, 3)))
            own = {"monitor": "val/accuracy"}
            write_run(here / "runs", [f"schedule={name}"], seed, correct / 256, **own)
    for seed in range(6):
        last = float("nan") if seed == 2 else 0.1
        write_run(here / "runs", ["schedule=wsd"], seed, last, monitor="val/accuracy")
    compare_task([str(here / "runs")], here)
    (folder,) = (here / "comparisons").iterdir()
    return folder, sorted((here / "runs").iterdir())


def test_numbers_of_a_count_with_a_diverged_run_are_the_same(
    written: tuple[Path, list[Path]],
) -> None:
    assert check(*written) == []


def change_answer(text: str) -> str:
    answer = json.loads(text)
    answer["groups"][1]["p"] *= 1.00001
    return json.dumps(answer)


def test_random_sign_flips_are_the_same_up_to_the_noise_of_the_draws(tmp_path: Path) -> None:
    """Fourteen seeds have more signs than are written out. Four standard errors of 9,999 and of
    20,000 draws are at most 0.05; another 0.1 is no noise."""
    draw = np.random.default_rng(0)
    for seed in range(14):
        first = float(draw.normal(0.5, 0.01))
        for name, value in (
            ("constant", first),
            ("linear", first + float(draw.normal(0.002, 0.01))),
        ):
            write_run(tmp_path / "runs", [f"schedule={name}"], seed, value)
    compare_task([str(tmp_path / "runs")], tmp_path)
    (folder,) = (tmp_path / "comparisons").iterdir()
    runs = sorted((tmp_path / "runs").iterdir())
    assert check(folder, runs) == []
    answer = json.loads((folder / "answer.json").read_text())
    answer["groups"][1]["p_signs_raw"] += 0.1
    (folder / "answer.json").write_text(json.dumps(answer))
    (wrong, *_) = check(folder, runs)
    assert "p_signs_raw" in wrong


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("answer.json", change_answer, "answer.json.groups[1].p: "),
        ("comparison.md", lambda text: text.replace(" of 6 ", " of 7 "), "better on: '"),
        ("comparison.md", lambda text: text.replace("(p = 0.0062)", "(p = 0.0063)"), "noise ('p"),
    ],
)
def test_a_number_that_is_changed_is_named(
    written: tuple[Path, list[Path]], name: str, change: Callable[[str], str], said: str
) -> None:
    folder, runs = written
    path = folder / name
    before = path.read_text()
    path.write_text(change(before))
    wrong = check(folder, runs)
    path.write_text(before)
    assert wrong
    assert all(said in line for line in wrong)
