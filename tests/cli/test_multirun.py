"""`-m`: a job per combination, each in its folder; a failed one does not stop the others; then the
comparison."""

import csv
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.command_line import BACKENDS, Done, forked, mlp, weights_sha256
from tests.rows import slow_but
from tests.training import first, prepare


class Jobs(NamedTuple):
    done: Done
    path: Path

    def results(self) -> dict[str, dict[str, Any]]:
        """result.json of every job, by its folder's name."""
        return {
            file.parent.name: json.loads(file.read_text())
            for file in self.path.glob("*/result.json")
        }

    def comparison(self) -> list[dict[str, str]]:
        with (self.path / "comparison.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def trace(job: Path) -> dict[str, np.ndarray]:
    rows = np.loadtxt(job / "trace.csv", delimiter=",", skiprows=1)
    return dict(zip(("step", "learning_rate", "loss"), rows.T, strict=True))


# Schedules and seeds; val/los is no metric, which shows when a job is planned and not before

METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
SWEEP = (
    "schedule=constant,exponential",
    "seed=0,1",
    "trainer.monitor=val/loss,val/los",
    "trainer.max_steps=20",
    "device=cpu",
)


@pytest.fixture(scope="module", params=slow_but(BACKENDS))
def sweeps(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Jobs]:
    """The backend and its jobs. `mixed` has jobs on both backends."""
    here = tmp_path_factory.mktemp("sweeps")
    (done,) = forked(here, ("-m", f"backend={request.param}", *SWEEP))
    return request.param, Jobs(done, here / done.folder)


def sweep_name(backend: str, schedule: str, seed: int, monitor: str) -> str:
    """A job's overrides as its folder's name: a slash becomes a dash."""
    return f"schedule-{schedule}_seed-{seed}_trainer.monitor-val-{monitor}"


def test_each_job_has_a_folder_named_by_its_overrides(
    sweeps: tuple[str, Jobs],
) -> None:
    backend, (_, path) = sweeps
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_2)?", path.name)
    assert path.parent.parts[-2:] == ("outputs", "multiruns")
    expected = {
        sweep_name(backend, schedule, seed, monitor)
        for schedule in ("constant", "exponential")
        for seed in (0, 1)
        for monitor in ("loss", "los")
    }
    assert {folder.name for folder in path.iterdir() if folder.is_dir()} == expected


def test_a_refused_job_does_not_stop_the_others_and_shows_in_the_exit_status(
    sweeps: tuple[str, Jobs],
) -> None:
    backend, jobs = sweeps
    assert jobs.done.status == 1
    assert {name: found["status"] for name, found in jobs.results().items()} == {
        sweep_name(backend, schedule, seed, monitor): "completed" if monitor == "loss" else "failed"
        for schedule in ("constant", "exponential")
        for seed in (0, 1)
        for monitor in ("loss", "los")
    }
    assert jobs.done.err.count("error: trainer.monitor must be one of train/loss") == 4
    assert len(jobs.done.err.splitlines()) == 4
    assert "4 of 8 jobs completed" in jobs.done.out


def test_a_job_leaves_what_a_run_leaves(sweeps: tuple[str, Jobs]) -> None:
    """Its rates are those of its schedule, eta(t) = 0.001 * 0.9^(t / 100); eps: one ulp of
    float32."""
    backend, jobs = sweeps
    job = jobs.path / sweep_name(backend, "exponential", 1, "loss")
    records = {
        "config.yaml",
        "environment.json",
        "trace.csv",
        "metrics.csv",
        "result.json",
        "curves.png",
        "run.log",
    }
    assert records | {"checkpoints"} <= {file.name for file in job.iterdir()}
    expected = 0.001 * 0.9 ** (np.arange(20) / 100)
    np.testing.assert_allclose(
        trace(job)["learning_rate"], expected, rtol=float(np.finfo(np.float32).eps)
    )


def test_a_seed_makes_another_run_and_the_schedule_another(
    sweeps: tuple[str, Jobs],
) -> None:
    completed = [found for found in sweeps[1].results().values() if found["status"] == "completed"]
    assert len({found["weights_sha256"] for found in completed}) == 4
    assert len({found["config_sha256"] for found in completed}) == 4


def test_the_comparison_has_a_row_a_job_with_its_metrics(
    sweeps: tuple[str, Jobs],
) -> None:
    backend, jobs = sweeps
    rows, results = (
        jobs.comparison(),
        {" ".join(found["overrides"]): found for found in jobs.results().values()},
    )
    assert list(rows[0]) == [
        "overrides",
        "backend",
        "schedule",
        "seed",
        *METRICS,
        "seconds",
        "status",
    ]
    assert {row["overrides"] for row in rows} == set(results)
    assert len(rows) == 8
    for row in rows:
        found = results[row["overrides"]]
        assert (row["backend"], row["schedule"], row["status"]) == (
            backend,
            found["schedule"],
            found["status"],
        )
        if row["status"] == "completed":
            assert f"seed={row['seed']}" in row["overrides"].split()
            assert {name: float(row[name]) for name in METRICS} == found["metrics"]
            assert float(row["seconds"]) == found["seconds"]["train"]
        else:
            assert {row[name] for name in METRICS} == {""}


def test_the_comparison_says_every_job_s_seed(sweeps: tuple[str, Jobs]) -> None:
    assert sorted(row["seed"] for row in sweeps[1].comparison()) == ["0"] * 4 + ["1"] * 4


def test_the_table_groups_over_seeds_with_their_mean(sweeps: tuple[str, Jobs]) -> None:
    """In the files and on the terminal: one line a schedule, the mean of two validation losses to 4
    digits."""
    backend, jobs = sweeps
    text = (jobs.path / "comparison.md").read_text()
    assert text.strip() in jobs.done.out
    lines = [line for line in text.splitlines() if line.startswith("|") and "schedule=" in line]
    assert len(lines) == 2
    for schedule in ("constant", "exponential"):
        (line,) = [line for line in lines if f"schedule={schedule}" in line]
        results = jobs.results()
        losses = [
            results[sweep_name(backend, schedule, seed, "loss")]["metrics"]["val/loss"]
            for seed in (0, 1)
        ]
        assert f"{sum(losses) / 2:.4f}" in line
        assert "seed=" not in line


def test_the_comparison_has_a_picture(sweeps: tuple[str, Jobs]) -> None:
    from matplotlib.image import imread

    assert min(imread(sweeps[1].path / "comparison.png").shape[:2]) > 300


# Both backends in one multirun. The first rate is 0: update 0 changes nothing; then 1e30 ends in
# NaN, and 1e-3 trains

START = (
    "optimizer.lr=1e-3,1e30", "schedule.warmup=1steps", "schedule.warmup_edge=left",
    "trainer.max_steps=20",
    "trainer.checkpoint_every=1steps", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Jobs]:
    """`backends`: jobs on both; beside it `long`, in a folder with a long name, over two seeds."""
    here = tmp_path_factory.mktemp("mixed")
    root = here / ("W" * 150)
    backends = ("-m", "backend=lightning,keras", *START)
    long = ("-m", f"output.root={root}", "seed=0,1", "trainer.max_steps=2", "device=cpu")
    each = forked(here, backends, long)
    return {
        name: Jobs(done, here / done.folder)
        for name, done in zip(("backends", "long"), each, strict=True)
    }


def by_backend(jobs: Jobs, lr: str) -> dict[str, Path]:
    """The jobs with this rate."""
    return {
        backend: next(jobs.path.glob(f"backend-{backend}_optimizer.lr-{lr}"))
        for backend in BACKENDS
    }


DIVERGING, TRAINING = "1e+30", "0.001"


@pytest.mark.slow
def test_a_diverging_job_fails_with_the_update_named_and_the_others_go_on(
    mixed: dict[str, Jobs],
) -> None:
    """Update 0 has rate 0, update 1 throws the weights to 1e30, whose outputs overflow float32 in
    update 2."""
    jobs = mixed["backends"]
    assert jobs.done.status == 1
    results = {
        path.name: json.loads((path / "result.json").read_text())
        for path in by_backend(jobs, DIVERGING).values()
    }
    assert [found["status"] for found in results.values()] == ["failed"] * 2
    assert jobs.done.out.count("failed: RunError: the loss of update 2 is nan; ") == 2
    for path in by_backend(jobs, DIVERGING).values():
        assert "Traceback" in (path / "run.log").read_text()
    assert "Traceback" not in jobs.done.out + jobs.done.err
    for path in by_backend(jobs, TRAINING).values():
        assert json.loads((path / "result.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_a_failed_run_s_result_has_the_keys_of_the_contract(mixed: dict[str, Jobs]) -> None:
    keys = {
        "status",
        "backend",
        "schedule",
        "steps",
        "epochs",
        "metrics",
        "best",
        "seconds",
        "num_parameters",
    }
    for path in by_backend(mixed["backends"], DIVERGING).values():
        assert keys <= set(json.loads((path / "result.json").read_text()))


@pytest.mark.slow
def test_both_backends_start_from_the_same_bits(mixed: dict[str, Jobs]) -> None:
    """After one update of rate 0 the weights are those that the core drew; the checkpoint before
    the loss that was no number is still there."""
    drawn = first(prepare([])).weights
    for path in by_backend(mixed["backends"], DIVERGING).values():
        weights = load_file(path / "checkpoints" / "1" / "weights.safetensors")
        assert weights.keys() == drawn.keys()
        for name, value in weights.items():
            np.testing.assert_array_equal(value, drawn[name])


def test_a_completed_job_s_hash_is_that_of_its_last_weights(mixed: dict[str, Jobs]) -> None:
    for path in by_backend(mixed["backends"], TRAINING).values():
        weights = load_file(path / "checkpoints" / "last" / "weights.safetensors")
        assert json.loads((path / "result.json").read_text())["weights_sha256"] == weights_sha256(
            weights
        )


def test_the_first_loss_is_numpys(mixed: dict[str, Jobs]) -> None:
    """Of the drawn weights on the first 32 rows of the run's order. 1e-6: the run's is in
    float32."""
    prepared = prepare([])
    rows = prepared.order.chunk(0, 1).rows
    z, y = mlp(first(prepared).weights, prepared.data.train.x[rows]), prepared.data.train.y[rows]
    expected = np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(32), y])
    for path in by_backend(mixed["backends"], DIVERGING).values():
        assert trace(path)["learning_rate"][0] == 0
        assert trace(path)["loss"][0] == pytest.approx(expected, rel=1e-6)


def test_a_multirun_with_a_long_output_root_completes(mixed: dict[str, Jobs]) -> None:
    assert mixed["long"].done.status == 0
    assert sorted(found["seed"] for found in mixed["long"].results().values()) == [0, 1]


def test_the_comparison_tells_jobs_apart_where_a_value_is_long(mixed: dict[str, Jobs]) -> None:
    """Two seeds are one group of two, however long the overrides before them."""
    rows = mixed["long"].comparison()
    assert sorted(re.findall(r"seed=\d", " ".join(row["overrides"] for row in rows))) == [
        "seed=0",
        "seed=1",
    ]
    lines = (mixed["long"].path / "comparison.md").read_text().splitlines()
    _, _, group = (line for line in lines if line.startswith("|"))
    assert group.split("|")[3].strip() == "2"


def test_nothing_but_the_run_s_own_lines_reaches_the_terminal(mixed: dict[str, Jobs]) -> None:
    assert mixed["long"].done.err == ""


# The four chapter experiments, whole: 10 epochs, and with batches of one row 12,800 updates

NUM_STEPS = 12_800
T = np.arange(NUM_STEPS)
CHAPTER = {
    "chapter_constant": np.full(NUM_STEPS, 0.001),
    "chapter_exponential": 0.001 * 0.9 ** (T // 10_000),
    "chapter_linear": np.where(T < 10_000, 0.001 + T / 10_000 * (0.00001 - 0.001), 0.00001),
    "chapter_step": 0.001 * (1 - T / NUM_STEPS) ** (1 / 2),
}


@pytest.fixture(scope="module", params=slow_but(BACKENDS))
def chapters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    here = tmp_path_factory.mktemp("chapters")
    experiments = f"experiment={','.join(CHAPTER)}"
    options = ("trainer.batch_size=1", "device=cpu")
    (done,) = forked(here, ("-m", f"backend={request.param}", experiments, *options))
    return Jobs(done, here / done.folder)


def chapter(chapters: Jobs, experiment: str) -> Path:
    (path,) = chapters.path.glob(f"*experiment-{experiment}")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("experiment", CHAPTER)
def test_a_chapter_s_experiment_trains_at_the_rates_of_its_formula(
    chapters: Jobs, experiment: str
) -> None:
    """eta0 = 0.001. constant; eta0 0.9^floor(t / 10000); from eta0 to 0.00001 over 10,000 steps,
    then that; and eta0 (1 - t / T)^(1 / 2)."""
    path = chapter(chapters, experiment)
    found = json.loads((path / "result.json").read_text())
    assert (found["status"], found["steps"], found["epochs"]) == ("completed", NUM_STEPS, 10)
    # Dense 128 and Dense 10 on 64 pixels
    assert found["num_parameters"] == 64 * 128 + 128 + 128 * 10 + 10
    # one ulp of float32: the formula's terms may be added in another order before they are rounded
    # once
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(trace(path)["learning_rate"], CHAPTER[experiment], rtol=eps, atol=0)


def test_the_exponential_chapter_is_the_constant_one_until_its_stair(chapters: Jobs) -> None:
    """The same bits for 10,000 updates, since a job does not depend on those before it; then
    another run."""
    constant, stairs = (
        trace(chapter(chapters, f"chapter_{name}")) for name in ("constant", "exponential")
    )
    np.testing.assert_array_equal(stairs["loss"][:10_001], constant["loss"][:10_001])
    assert not np.array_equal(stairs["loss"][10_001:], constant["loss"][10_001:])


def test_a_multirun_whose_jobs_all_complete_exits_with_0(chapters: Jobs) -> None:
    done = chapters.done
    assert (done.status, done.err) == (0, "")
    assert "4 of 4 jobs completed" in done.out
    assert all(found["metrics"]["val/accuracy"] > 0.9 for found in chapters.results().values())
