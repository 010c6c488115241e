"""task=card: what a card says is what the folder's files say."""

import json
import sys
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.tasks.card import card
from tests.run_folders import write_run

DATA = {
    "classes": ["a|b", "<b>c"],
    "features": [],
    "input_shape": [8, 8, 1],
    "num_targets": 1,
    "x_scaling": None,
    "y_scaling": None,
    "x_range": None,
    "sha256": "da7a",
}
MADE_WITH = {"python": "3.11", "platform": "Linux", "packages": {"numpy": "2"}, "device": "cpu"}
HASHES = {f"{name}_sha256": f"{name} hash" for name in ("weights", "slots", "losses", "data")}


def certified(folder: Path) -> Path:
    (folder / "certificate.json").write_text(json.dumps({"steps": 80, **HASHES}))
    (folder / "environment.json").write_text(json.dumps({**MADE_WITH, "command": ["secret"]}))
    return folder


def test_a_model_card_has_the_claim_the_config_the_hashes_and_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_run(tmp_path, ["schedule=cosine"], 3, 0.25, data=DATA)
    folder = certified(made.rename(tmp_path / "run"))
    (folder / "test.json").write_text('{"test/loss": 0.3125, "rows": 9, "checkpoint": 80}')
    monkeypatch.setattr(sys, "argv", ["runner", "task=card", f"run={folder}"])
    assert main() == 0
    found = json.loads((folder / "card.json").read_text())
    assert found["claim"] == [
        "schedule=cosine on lightning, seed 3, reached val/loss 0.2500 after 80 updates.",
        "On the test split, it reached test/loss 0.3125.",
    ]
    assert capsys.readouterr().out.splitlines()[:2] == found["claim"]
    assert (found["kind"], found["seeds"], found["metrics"]) == ("model", [3], {"val/loss": 0.25})
    assert found["config"]["schedule"]["name"] == "cosine"
    assert HASHES.items() <= found["hashes"].items()
    assert found["rates"] == pytest.approx(
        {"first": 1e-3, "largest": 1e-3, "last": 1e-3, "sum": 0.08}
    )
    assert found["verify"] == "python -m runner task=verify run=."
    assert found["made_with"] == MADE_WITH
    page = (folder / "card.md").read_text()
    for text in ("# Model card", *found["claim"], *HASHES.values(), "task=verify run=."):
        assert text in page


def test_the_command_of_a_card_trains_one_run(tmp_path: Path) -> None:
    """Keys that need -m, which a run of a race or of tune=lr was started with, are not in it."""
    own = ["schedule=cosine", "race.budget=auto", "tune=lr", "answer.margin=0.1"]
    folder = write_run(tmp_path, own, 3, 0.25, data=DATA)
    card(folder)
    command = json.loads((folder / "card.json").read_text())["command"]
    assert command == "python -m runner schedule=cosine seed=3"


def test_a_card_names_the_checkpoint_that_was_tested_if_the_run_went_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [], 3, 0.25, data=DATA)
    (folder / "test.json").write_text('{"test/loss": 0.3125, "rows": 9, "checkpoint": 40}')
    card(folder)
    tested = "On the test split, its checkpoint of update 40 reached test/loss 0.3125."
    assert json.loads((folder / "card.json").read_text())["claim"][1] == tested


def test_a_schedule_card_has_the_answer_and_the_hashes_of_all_jobs(tmp_path: Path) -> None:
    certified(write_run(tmp_path, ["schedule=cosine"], 0, 0.5))
    write_run(tmp_path, ["schedule=linear"], 0, None)
    groups = [{"rank": 1, "label": "schedule=cosine", "seeds": [0], "mean": 0.5, "p": None}]
    says = ["schedule=cosine has the best val/loss", "  one | <script>alert(1)</script>"]
    answer = {"metric": "val/loss", "says": says, "groups": groups, "is_real": False}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    assert card(tmp_path) == 0
    found = json.loads((tmp_path / "card.json").read_text())
    assert (found["kind"], found["is_real"], found["groups"]) == ("schedule", False, groups)
    assert found["claim"] == [sentence.strip() for sentence in says]
    assert [(job["folder"], job["status"], job["is_certified"]) for job in found["jobs"]] == [
        ("schedule=cosine_0", "completed", True),
        ("schedule=linear_0", "failed", False),
    ]
    assert found["jobs"][0]["verify"] == (
        "python -m runner task=verify 'run='\"'\"'schedule=cosine_0'\"'\"''"
    )
    assert HASHES.items() <= found["jobs"][0]["hashes"].items()
    page = (tmp_path / "card.md").read_text()
    assert "<script>" not in page
    assert "| 1    | schedule=cosine | 0     | 0.5" in page


def test_a_run_without_a_certificate_says_so_and_a_failed_one_claims_nothing(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path, ["schedule=cosine"], 0, None, data=DATA)
    assert card(folder) == 0
    found = json.loads((folder / "card.json").read_text())
    assert found["claim"] == ["schedule=cosine on lightning, seed 0: failed after 80 updates"]
    assert (found["verify"], found["is_certified"]) == (None, False)
    assert "Not certified" in (folder / "card.md").read_text()


def test_no_other_key_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answer.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["runner", "task=card", f"run={tmp_path}", "backend=keras"])
    assert main() == 2
    assert capsys.readouterr().err == "error: task=card accepts only run and push, got backend\n"
