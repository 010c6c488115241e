"""task=find_lr: the range test's arithmetic by hand, and the task through the command line."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner import dispatcher
from runner.__main__ import main
from runner.cli.compose import compose
from runner.components.optimizers import Matching
from runner.config.schema import parse
from runner.report import range_test
from runner.tasks import find_lr
from runner.tasks.find_lr import _at_edges
from tests.command_line import BACKENDS, Running, forked
from tests.training import prepare, train


def test_the_smoothed_loss_by_hand() -> None:
    """beta = 1/2: s = 2, 3, 1.5 of losses 4, 4, 0; over 1 - 1/2, 1 - 1/4, 1 - 1/8."""
    np.testing.assert_allclose(
        range_test.smooth(np.array([4.0, 4.0, 0.0]), 0.5), [4.0, 4.0, 1.5 / 0.875], rtol=1e-15
    )
    np.testing.assert_array_equal(
        range_test.smooth(np.array([3.0, 1.0, 2.0]), 0.0), [3.0, 1.0, 2.0]
    )


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([4.0, 2.0, 7.9, 8.1], 3),
        ([4.0, 2.0, 8.0, 8.0], None),
        ([1.0, np.nan, 1.0], 1),
        ([1.0, 0.5, np.inf], 2),
    ],
)
def test_where_the_test_ends(losses: list[float], expected: int | None) -> None:
    """Above four times the least so far, or no number."""
    values = np.array(losses)
    assert range_test.end(values, values, 4.0) == expected


def test_the_suggestion_by_hand() -> None:
    """Rates 10^-5 ... 10^0; the loss falls slowly, fastest around 10^-2, least at 10^-1, then
    rises."""
    rates = 10.0 ** np.arange(-5, 1)
    found = range_test.suggest(rates, np.array([5.0, 4.9, 4.5, 3.0, 1.0, 9.0]))
    # central differences, in units of ln 10: -0.1, -0.25, -0.95, -1.75, 3.0
    assert found == range_test.Suggestion(steepest=1e-2, minimum=1e-1, tenth=pytest.approx(1e-2))
    assert range_test.Suggestion(0.01234, 0.2, 0.02).lr == 0.012


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
def test_nothing_is_suggested_where_the_loss_does_not_fall(losses: list[float]) -> None:
    assert range_test.suggest(np.geomspace(1e-4, 1, 4), np.array(losses)) is None


def test_groups_are_tested_at_the_rate_of_the_test_times_their_factors() -> None:
    """The groups' own schedules would have other rates."""
    groups = "optimizer.groups=[{match: dense_0, lr_factor: 0.5, schedule: {name: cosine}}]"
    made = parse(find_lr.as_range_test(compose([groups])))
    assert made.optimizer.groups == [Matching(match="dense_0", lr_factor=0.5)]
    assert made.schedule.name == "range_test"


FOUND = ("task=find_lr", "trainer.precision=float64", "device=cpu")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """The output and the folder, for two optimizers at once on each backend."""
    here = tmp_path_factory.mktemp("found")
    each = forked(
        here, *(("-m", *FOUND, f"backend={backend}", "optimizer=adam,sgd") for backend in BACKENDS)
    )
    assert [done.status for done in each] == [0, 0], each
    return {backend: (done.out, here) for backend, done in zip(BACKENDS, each, strict=True)}


def folders(found: dict[str, tuple[str, Path]], backend: str) -> list[Path]:
    out, here = found[backend]
    return [
        here / line.removeprefix("folder   ")
        for line in out.splitlines()
        if line.startswith("folder")
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_says_the_override_to_copy_and_leaves_its_trace_and_picture(
    found: dict[str, tuple[str, Path]], backend: str
) -> None:
    out, _ = found[backend]
    assert len(folders(found, backend)) == 2
    for folder in folders(found, backend):
        assert folder.parts[-3:-1] == ("outputs", "find_lr")
        assert {file.name for file in folder.iterdir()} == {
            "config.yaml", "find_lr.json", "find_lr.png", "run.log", "trace.csv",
        }  # fmt: skip
        assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")
        told = json.loads((folder / "find_lr.json").read_text())
        assert f"suggestion  optimizer.lr={told['suggestion']['lr']:g}" in out
        trace = np.genfromtxt(folder / "trace.csv", delimiter=",", names=True)
        # geometric from 1e-6 to 10 over 100 updates: a factor of 10^(7 / 99) a step; 1e-12: powers
        # of float64
        np.testing.assert_allclose(
            trace["learning_rate"], 1e-6 * 10 ** (7 / 99 * trace["step"]), rtol=1e-12
        )
        assert len(trace) == told["steps"]
        smoothed = range_test.smooth(trace["loss"], 0.9)
        np.testing.assert_allclose(trace["smoothed_loss"], smoothed, rtol=1e-15)


def test_both_backends_suggest_the_same(found: dict[str, tuple[str, Path]]) -> None:
    """float64: the same update is steepest; near the end, where the loss explodes, roundings
    grow."""
    for one, other in zip(folders(found, "lightning"), folders(found, "keras"), strict=True):
        a, b = (
            json.loads((folder / "find_lr.json").read_text())["suggestion"]
            for folder in (one, other)
        )
        assert a == b


@pytest.mark.parametrize(("optimizer", "job"), [("adam", 0), ("sgd", 1)])
def test_training_at_the_suggestion_is_better_than_at_a_tenth_or_ten_times_of_it(
    found: dict[str, tuple[str, Path]], optimizer: str, job: int
) -> None:
    """The mean loss of the last 20 of 100 updates on digits."""
    lr = json.loads((folders(found, "lightning")[job] / "find_lr.json").read_text())["suggestion"][
        "lr"
    ]

    def loss(rate: float) -> float:
        trained = train(
            "lightning",
            [f"optimizer={optimizer}", f"optimizer.lr={rate!r}", "trainer.max_steps=100"],
        )
        return float(np.nan_to_num(trained.losses[-20:].mean(), nan=np.inf))

    assert loss(lr) < min(loss(lr / 10), loss(lr * 10))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("find_lr.max_lr=1e-4",),
            "the loss did not rise up to find_lr.max_lr=0.0001, so the suggestion may be too low; "
            "raise find_lr.max_lr",
        ),
        ((), None),
    ],
)
def test_a_suggestion_at_the_end_of_the_range_comes_with_what_to_do(
    tmp_path: Path, given: tuple[str, ...], said: str | None
) -> None:
    """The best rate of the digits' network, 0.04, is well within the default range, 1e-6 to 10."""
    (done,) = forked(tmp_path, ("task=find_lr", "device=cpu", *given))
    assert (done.status, done.err) == (0, "")
    warnings = [line for line in done.out.splitlines() if line.startswith("warning: ")]
    assert warnings == ([] if said is None else [f"warning: {said}"])


def test_a_loss_that_falls_fastest_at_the_start_comes_with_what_to_do() -> None:
    """The losses are made by hand: real ones at such rates depend on the processor's rounding."""
    rates, losses = np.geomspace(0.1, 10, 50), 1 / (1 + np.arange(50.0))
    suggestion = range_test.suggest(rates, losses)
    assert suggestion is not None
    tested = parse(compose(["find_lr.min_lr=0.1"])).find_lr
    assert [*_at_edges(tested, suggestion, rates, rose=True)] == [
        "the loss fell fastest at the start, from find_lr.min_lr=0.1, so the suggestion may be "
        "too high; lower find_lr.min_lr"
    ]


def test_an_error_of_the_framework_is_one_line_and_its_traceback_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Memory that is not enough, which a test cannot bring about."""

    class Full:
        def devices(self) -> list[str]:
            return ["cpu"]

        def can_use_threads(self, num: int) -> bool:
            return True

        def train(self, *_: Any) -> None:
            raise MemoryError("17 GiB")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatcher, "load", lambda name: Full())
    monkeypatch.setattr(sys, "argv", ["runner", "task=find_lr", "trainer.batch_size=9"])
    assert main() == 1
    out, err = capfd.readouterr()
    assert err == ""
    failed, log = out.splitlines()
    assert failed.startswith("failed: ")
    assert "trainer.batch_size=9" in failed
    assert "MemoryError: 17 GiB" in Path(log.removeprefix("traceback in ")).read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files")
def test_a_folder_that_cannot_be_made_is_the_only_thing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["runner", "-m", "task=find_lr", "seed=0,1", "output.root=/proc/x"]
    )
    assert main() == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        "error: output.root must be a folder that can be written to; /proc/x/find_lr: "
        "No such file or directory\n"
    )


@pytest.mark.slow
def test_what_fails_and_what_is_interrupted_say_so(tmp_path: Path) -> None:
    """The very first update throws the weights away."""
    (done,) = forked(
        tmp_path,
        ("task=find_lr", "find_lr.min_lr=1e5", "find_lr.max_lr=1e6", "optimizer=sgd", "device=cpu"),
    )
    assert (done.status, done.err) == (1, "")
    assert "failed: the loss does not fall" in done.out
    endless = ("task=find_lr", "find_lr.num_steps=10000000", "find_lr.max_lr=1e-5", "device=cpu")
    with Running(tmp_path, *endless) as running:
        running.until(lambda: len([*tmp_path.glob("outputs/find_lr/*")]) >= 2)
        time.sleep(1.0)
        ended = running.end(signal.SIGTERM)
    assert ended.status == 143
    assert "interrupted after" in ended.out


def test_its_keys_are_no_part_of_what_a_run_is() -> None:
    from runner.cli.compose import compose
    from runner.config.schema import sha256

    assert sha256(compose([])) == sha256(compose(["find_lr.num_steps=50"]))
    config: Any = prepare([]).config
    assert config.find_lr.num_steps == 100
