"""hydra/launcher=pool: jobs side by side, with the results and the output of one after another."""

import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep

import pytest

from runner.cli import pool
from runner.cli.compose import compose
from runner.cli.pool import Pool
from runner.config.schema import Config, parse
from runner.errors import ConfigError
from runner.machine import threads
from tests.command_line import forked

pytestmark = pytest.mark.skipif(not pool.can_fork(), reason="forks processes")


class Task:
    """Calls a function of the job's number."""

    is_prepared = False

    def __init__(self, work: Callable[[int], float | None]) -> None:
        self._work = work

    def prepare(self) -> None:
        self.is_prepared = True

    def __call__(self, overrides: list[str], number: int) -> float | None:
        assert self.is_prepared
        assert overrides == [f"seed={number}"]
        return self._work(number)


def run(work: Callable[[int], float | None], num: int, size: int = 2) -> list[pool.Ended]:
    with Pool(size) as workers:
        return workers.run(Task(work), [[f"seed={5 + i}"] for i in range(num)], 5)


def test_the_output_of_jobs_comes_in_their_order_and_in_one_piece(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def work(number: int) -> float:
        if number == 5:  # ends after the next one
            while not (tmp_path / "6").exists():
                sleep(0.001)
        print(f"out {number}")
        os.write(2, f"err {number}\n".encode())
        (tmp_path / str(number)).touch()
        return number / 2

    assert [ended.value for ended in run(work, 5)] == [2.5, 3, 3.5, 4, 4.5]
    said = capfd.readouterr()
    assert said.out == "".join(f"out {number}\n" for number in range(5, 10))
    assert said.err == "".join(f"err {number}\n" for number in range(5, 10))


@pytest.mark.parametrize("killed", [{6}, {5, 6}])
def test_a_job_whose_process_is_killed_does_not_end_the_others(
    killed: set[int], capfd: pytest.CaptureFixture[str]
) -> None:
    def work(number: int) -> float:
        print(f"out {number}", flush=True)
        if number in killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    values = [ended.value for ended in run(work, 4)]
    assert values == [None if number in killed else number for number in range(5, 9)]
    said = capfd.readouterr()
    assert said.out == "".join(f"out {number}\n" for number in range(5, 9))
    assert said.err.splitlines() == [
        f"job {number}: its process was killed, perhaps because memory ran out"
        for number in sorted(killed)
    ]


class Times:
    """Multiplies a job's number. Its processes tell who they are."""

    def __init__(self, factor: int) -> None:
        self._factor = factor

    def prepare(self) -> None:
        pass

    def __call__(self, overrides: list[str], number: int) -> float | None:
        print(os.getpid())
        return self._factor * number


def test_the_same_processes_train_the_next_jobs(capfd: pytest.CaptureFixture[str]) -> None:
    """Give them another task, which comes to them pickled."""
    with Pool(1) as workers:
        for factor in (1, 3):
            ended = workers.run(Times(factor), [[], []], 4)
            assert [each.value for each in ended] == [4 * factor, 5 * factor]
    assert len(set(capfd.readouterr().out.split())) == 1


def test_jobs_of_several_threads_wait_until_as_many_cores_are_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)

    def work(number: int) -> float:
        threads.wait_for_cores(4 if number % 2 else 2)  # 4: all that there are
        began = monotonic()
        sleep(0.01)
        (tmp_path / str(number)).write_text(f"{began} {monotonic()}")
        return 0

    run(work, 6)
    spans = [tuple(map(float, file.read_text().split())) for file in tmp_path.iterdir()]
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_an_error_of_a_job_is_that_of_the_job() -> None:
    def work(number: int) -> float:
        if number == 5:
            raise ConfigError("seed is wrong")
        return 1

    first, second = run(work, 2)
    assert isinstance(first.error, ConfigError)
    assert str(first.error) == "seed is wrong"
    assert second == pool.Ended(1)


def config(*overrides: str) -> Config:
    return parse(compose(overrides))


def test_auto_goes_by_cores_memory_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(pool, "_free_memory", lambda: 100 * 2**30)
    monkeypatch.setattr(pool, "_has_accelerator", lambda device: device == "cuda")
    assert pool.num_jobs("auto", [config()]) == 8
    assert pool.num_jobs("auto", [config(), config("devices=3", "device=cpu")]) == 2
    assert pool.num_jobs("auto", [config(), config("device=cuda")]) == 1
    assert pool.num_jobs(3, [config("device=cuda")]) == 3
    monkeypatch.setattr(pool, "_free_memory", lambda: 3 * 2**30 + 1)
    assert pool.num_jobs("auto", [config()]) == 3


def test_nothing_is_forked_where_frameworks_do_not_bear_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pool.num_jobs("auto", [config()]) == 1
    with pytest.raises(ConfigError, match=r"^hydra\.launcher\.n_jobs must be auto or 1 on darwin"):
        pool.num_jobs(2, [config()])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_a_multirun_is_the_same_side_by_side_and_one_after_another(
    backend: str, tmp_path: Path
) -> None:
    line = (f"backend={backend}", "-m", "seed=0,1,2", "trainer.max_steps=50", "device=cpu")
    said = []
    for num_jobs in (1, 2):
        folder = f"outputs/of_{num_jobs}"
        more = (f"hydra.launcher.n_jobs={num_jobs}", f"output.multirun={folder}")
        (done,) = forked(tmp_path, (*line, *more))
        assert done.status == 0, done.err
        kept = [text for text in done.out.split("\n\n")[0].splitlines() if folder not in text]
        said.append([text for text in kept if not text.startswith("completed")])
    assert said[0] == said[1]
    results = [
        sorted((tmp_path / "outputs" / f"of_{num}").glob("*/checkpoints/last/weights.safetensors"))
        for num in (1, 2)
    ]
    assert len(results[0]) == 3
    for one, other in zip(*results, strict=True):
        assert one.read_bytes() == other.read_bytes()
