"""Runs and answers in a notebook's cells, and the tutorial notebook."""

import shutil
from pathlib import Path

import pytest

from runner import compare, load_run
from tests.command_line import Finished

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"


def test_a_run_and_an_answer_show_their_numbers_and_pictures(
    finished: dict[str, Finished], tmp_path: Path
) -> None:
    """Text of a folder from elsewhere is escaped."""
    shutil.copytree(finished["lightning"].path, tmp_path / "<b>0", symlinks=True)
    run = load_run(tmp_path / "<b>0")
    shown = run._repr_html_()
    assert f"{run.result['metrics']['val/loss']:.4g}" in shown
    assert "completed: schedule=exponential, lightning, seed 0" in shown
    assert "data:image/png;base64," in shown
    assert "<b>0" not in shown
    assert f"| val/loss | {run.result['metrics']['val/loss']:.4g} |" in run._repr_markdown_()
    answer = compare([run])
    assert "data:image/png;base64," in answer._repr_html_()
    assert answer.command is not None
    assert f"{answer.table[0]['val/loss']}" in answer._repr_markdown_()


@pytest.mark.slow
def test_the_tutorial_notebook_runs(tmp_path: Path) -> None:
    """Every cell runs. A run of 60 epochs prints at most 20 lines of epochs."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    printed = "".join(out.text for out in cells[1].outputs if out.output_type == "stream")
    epochs = [line for line in printed.splitlines() if line.startswith("epoch ")]
    assert 10 <= len(epochs) <= 20
    shown = [out for cell in cells for out in cell.outputs if out.output_type == "execute_result"]
    assert sum("data:image/png;base64," in out.data.get("text/html", "") for out in shown) == 2
