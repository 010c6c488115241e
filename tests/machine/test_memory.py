"""Sizes that no machine holds are refused in one line, with nothing written and before anything is
allocated."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from runner import dispatcher
from runner.__main__ import main
from runner.errors import ConfigError, memory_errors
from runner.machine import memory
from tests.command_line import Finished, forked
from tests.training import prepare

OUT = "{layer: dense, units: outputs}"
NESTED = "{layer: dense, units: 64}"
for _ in range(60):
    NESTED = f"{{layer: residual, layers: [{NESTED}]}}"

# overrides -> the error
TOO_LARGE = {
    "units": (
        [f"model.layers=[{{layer: dense, units: 999999999999}},{OUT}]"],
        (
            r"model\.layers must fit into this machine's \S+ GiB of memory, got \d+ weights; "
            r"the largest is dense_0/kernel, 64 x 999999999999"
        ),
    ),
    "flattened": (
        [
            "data.images=true",
            (
                f"model.layers=[{{layer: conv2d, filters: 9999999999, kernel_size: 3}},{{layer: "
                f"flatten}},{OUT}]"
            ),
        ],
        r"model\.layers must fit into .*, got \d+ weights; .* dense_0/kernel, 639999999936 x 10",
    ),
    "pool": (
        [
            "data.images=true",
            (
                f"model.layers=[{{layer: max_pool, pool_size: 9999999999, padding: "
                f"same}},{{layer: flatten}},{OUT}]"
            ),
        ],
        (
            r"model\.layers must fit into .*, got \d+ values per row at max_pool_0, with 32 rows "
            r"per batch \(trainer\.batch_size\)"
        ),
    ),
    "epochs": (
        ["trainer.max_epochs=999999999999999"],
        (
            r"trainer\.max_steps and trainer\.max_epochs must give a table of rates that fits "
            r"into .*, got \d+ updates"
        ),
    ),
    "digits": (["seed=" + "9" * 5000], "seed contains a number of more than 4300 digits"),
    "metrics": (
        ["metrics=[" + "accuracy," * 100 + "accuracy]"],
        r"metrics must be auto or must have at most 100 items, got \['accuracy', .*",
    ),
    "nested": (
        [f"model.layers=[{NESTED},{OUT}]"],
        "the config is nested too deeply",
    ),
    "deeper": (
        ["model.layers=" + "[" * 400 + "]" * 400],
        "(model.layers|the config) is nested too deeply",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_size_that_no_machine_holds_is_refused(name: str, tmp_path: Path) -> None:
    overrides, said = TOO_LARGE[name]
    (done,) = forked(tmp_path, tuple(overrides))
    assert re.fullmatch(f"error: {said}", done.err.strip()), done.err[:300]
    assert (done.status, done.out) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "least"),
    [
        # 9,610 weights of 4 bytes, their gradients and Adam's two slots
        (["model=mlp"], 4 * 4 * (64 * 128 + 128 + 128 * 10 + 10)),
        (["model=mlp", "trainer.precision=float64"], 2 * 4 * 4 * (64 * 128 + 128 + 128 * 10 + 10)),
        (["model=mlp", "optimizer=sgd"], 2 * 4 * (64 * 128 + 128 + 128 * 10 + 10)),
        # 32 rows of 128 values are more than the 2 x 650 weights of a linear model
        (
            [
                f"model.layers=[{{layer: reshape, shape: [1, 64]}},{{layer: flatten}},{OUT}]",
                "optimizer=sgd",
            ],
            4 * 32 * 64,
        ),
        (["model=linear", "trainer.max_epochs=1000"], 8 * 1000 * 40),
    ],
)
def test_the_least_memory_is_that_of_the_largest_thing(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], least: int
) -> None:
    monkeypatch.setattr(memory, "memory", lambda: least)
    prepare(overrides)
    monkeypatch.setattr(memory, "memory", lambda: least - 1)
    with pytest.raises(ConfigError, match="of memory"):
        prepare(overrides)


class Full:
    """A backend without memory, which a test cannot bring about."""

    def can_use_threads(self, num: int) -> bool:
        return True

    def train(self, *_: Any) -> None:
        raise MemoryError("17 GiB")

    predict = measure = export = train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "said"),
    [
        (["task=evaluate"], ""),
        (["task=export", "format=torch"], ""),
        (["task=predict", "data.path=rows.csv"], " in task=predict"),
    ],
)
def test_memory_that_runs_out_in_a_task_is_one_line(
    task: list[str],
    said: str,
    finished: dict[str, Finished],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished["lightning"].path, tmp_path / "run", symlinks=True)
    columns = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    (tmp_path / "rows.csv").write_text(f"{','.join(columns)}\n{','.join('0' * 64)}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatcher, "load", lambda *_, **__: Full())
    monkeypatch.setattr(sys, "argv", ["runner", *task, "run=run"])
    assert main() == 1
    out, err = capfd.readouterr()
    advice = (
        "split data.path into files of fewer rows"
        if said
        else "end other programs or use a machine with more memory"
    )
    assert (out, err) == ("", f"error: out of memory{said} (MemoryError); {advice}\n")


def test_memory_that_runs_out_before_a_job_trains_is_one_line_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.tasks.train.plan", full)
    monkeypatch.setattr(sys, "argv", ["runner", "-m", "seed=0,1"])
    assert main() == 1
    said = "out of memory (MemoryError); end other programs or use a machine with more memory"
    assert capfd.readouterr().err == f"error: {said}\n" * 2
    results = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/*/*/result.json")]
    assert [result["error"] for result in results] == [said] * 2


def test_other_errors_are_not_called_out_of_memory() -> None:
    with pytest.raises(ValueError, match="5 GiB"), memory_errors():
        raise ValueError("5 GiB")
