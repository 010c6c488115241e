"""Earlier runs of a race are copied, not trained again, if nothing that they depend on differs."""

import json
import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runner.cli import earlier
from runner.cli.compose import compose
from runner.cli.earlier import Earlier
from runner.config.schema import parse, sha256
from runner.plan import plan
from runner.report.jobs import read
from runner.run.run_folder import read_json
from tests.command_line import forked

COMMON = ("trainer.max_epochs=2", "device=cpu")


def test_a_race_uses_earlier_runs_of_the_same_data_packages_and_config(tmp_path: Path) -> None:
    """Four earlier runs have the race's config. One is of other packages, one of other data."""
    rows = [f"{i},{i % 7},{(3 * i) % 11}" for i in range(120)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    data = ("data=csv", "data.path=t.csv", "data.target=y", "schedule=constant,linear")
    (first,) = forked(tmp_path, ("-m", *COMMON, *data, "seed=0,1"))
    assert (first.status, first.err) == (0, "")
    before = tmp_path / first.folder
    path = before / "schedule-constant_seed-1" / "environment.json"
    path.write_text(json.dumps({**read_json(path), "packages": {"numpy": "1.0"}}))
    path = before / "schedule-linear_seed-1" / "data.json"
    path.write_text(json.dumps({**read_json(path), "sha256": "0" * 64}))
    (race,) = forked(tmp_path, ("-m", *data, *COMMON, "seed=0,1,2", "race.budget=auto"))
    assert (race.status, race.err) == (0, "")
    folder = tmp_path / race.folder
    assert race.out.count(" is a copy of ") == 2
    assert "earlier  schedule-linear_seed-0 is a copy of " in race.out
    assert read_json(folder / "answer.json")["race"]["cost"]["reused"] == 2
    taken = folder / "schedule-linear_seed-0"
    old, new = read([before / taken.name, taken])
    for key in ("weights_sha256", "metrics", "best", "steps", "config_sha256"):
        assert old.result[key] == new.result[key]
    assert new.overrides == [*data[:3], "schedule=linear", *COMMON, "race.budget=auto", "seed=0"]
    shutil.rmtree(before)  # the race has all files of its own
    (again,) = forked(tmp_path, ("task=evaluate", f"run={taken.relative_to(tmp_path)}"))
    assert (again.status, again.err) == (0, "")


def test_a_race_looks_at_the_newest_copies_of_a_config_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each damaged one would cost the start of the race 25 ms."""
    looked_at = []
    monkeypatch.setattr(earlier, "_is_whole", lambda path, _: bool(looked_at.append(path)))
    monkeypatch.setattr(Earlier, "_is_same", lambda *_: True)
    values = compose(["data=iris"])
    for i in range(20):
        path = tmp_path / "runs" / f"{i:02}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"status": "completed", "config_sha256": sha256(values)}))
    runs = Earlier(tmp_path, plan(parse(values)))
    assert runs.take(tmp_path / "race", "job", values, []) is None
    assert [path.name for path in looked_at] == [f"{i:02}" for i in range(19, 9, -1)]


def test_a_race_copies_whole_runs_and_nothing_else_of_their_folders(tmp_path: Path) -> None:
    """Five of six earlier runs are damaged, each in another file; the sixth was used by tasks. A
    copy that a kill has cut off is in the race's folder. Runs with a tracker are trained."""
    lines = ("-m", *COMMON, "data=iris", "schedule=constant,linear", "seed=0,1,2")
    (first,) = forked(tmp_path, lines)
    before = tmp_path / first.folder
    runs = sorted(path for path in before.iterdir() if path.is_dir())
    (runs[0] / "metrics.csv").unlink()
    for run, name in zip(
        runs[1:5],
        ("trace.csv", "result.json", "checkpoints/last/weights.safetensors", "config.yaml"),
        strict=True,
    ):
        (run / name).write_bytes((run / name).read_bytes()[:90])
    for name in ("predictions_2.csv", "test.json", "model.onnx"):
        (runs[5] / name).write_text("{}")
    cut_off = tmp_path / "outputs/multiruns/race" / f".{runs[5].name}.1"
    shutil.copytree(runs[5], cut_off)
    (cut_off / "trace.csv").unlink()
    race = (*lines, "race.budget=auto", "output.multirun=outputs/multiruns/race")
    done, tracked = forked(tmp_path, race, (*lines, "race.budget=auto", "logger=tensorboard"))
    assert (done.status, done.err) == (0, "")
    assert done.out.count(" is a copy of ") == 1
    assert "6 of 6 jobs completed" in done.out
    taken = tmp_path / done.folder / runs[5].name
    assert not cut_off.exists()
    assert sorted(os.listdir(taken)) == sorted(os.listdir(taken.with_name(runs[0].name)))
    config = OmegaConf.load(taken / "config.yaml")
    assert config.race.budget == "auto"  # a later task=compare warns of its seeds by it
    assert (tracked.status, tracked.out.count(" is a copy of ")) == (0, 0)
