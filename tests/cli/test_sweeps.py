"""Several runs of one command: tune=lr, race.budget, going on with a multirun that was stopped."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from runner.run.run_folder import read_json
from runner.text.quoting import override
from tests.command_line import BACKENDS, Running, begun, ended, forked, start, together
from tests.report.independent import check
from tests.rows import slow_but
from tests.warm import until

# tune=lr


@pytest.mark.slow
def test_rates_are_chosen_on_some_seeds_and_schedules_compared_on_others(tmp_path: Path) -> None:
    """Two rates of two schedules on seeds 2 and 3, more where the best is at an edge, then each
    schedule at the rate with the least mean on seeds 0 and 1, by two commands together."""
    sweep = ("-m", "schedule=constant,linear", "seed=0,1", "model=linear", "trainer.max_steps=9")
    tune = ("tune=lr", "tune.factors=[1,100]", "optimizer.lr=2e-3", "output.multirun=outputs/m/a")
    both = forked(tmp_path, *[(*sweep, *tune, "device=cpu")] * 2)
    assert [(each.status, each.err) for each in both] == [(0, "")] * 2
    folder = tmp_path / "outputs/m/a"
    name = re.compile(r"schedule-(.*)_optimizer\.lr-(.*)_seed-(\d)")
    values: dict[str, dict[str, dict[str, float]]] = {}
    for path in folder.glob("*/result.json"):
        schedule, rate, seed = name.fullmatch(path.parent.name).groups()  # type: ignore[union-attr]
        of_seed = values.setdefault(schedule, {}).setdefault(rate, {})
        of_seed[seed] = read_json(path)["metrics"]["val/loss"]
    assert {*values} == {"constant", "linear"}
    for schedule, tried in values.items():
        best = min(tried, key=lambda rate: sum(tried[rate][seed] for seed in "23"))
        rates = sorted(tried, key=float)
        assert {"0.002", "0.2"} < set(rates) <= {"2e-05", "0.002", "0.2", "20.0"}
        assert best not in (rates[0], rates[-1])
        assert {rate: set(seeds) for rate, seeds in tried.items() if set(seeds) != set("23")} == {
            best: set("0123")
        }
        for done in both:
            assert f"chosen   schedule={schedule}: optimizer.lr={best}, val/loss" in done.out
    assert check(folder) == []


# race.budget


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_race_reuses_runs_and_a_killed_one_goes_on_to_the_same_decisions(
    tmp_path: Path, backend: str
) -> None:
    """The first seed of all three schedules is there before. A killed race is one that lacks some
    of its runs: the last seed's are removed."""
    sweep = ("-m", "schedule=constant,linear,cosine", f"backend={backend}", "model=linear")
    sweep += ("trainer.max_steps=40", "optimizer.lr=0.01", "device=cpu")
    sweep += ("output.multirun=outputs/m/a",)
    (before,) = forked(tmp_path, (*sweep, "seed=0"))
    assert before.status == 0
    race = (*sweep, "seed=0,1,2,3,4,5", "race.budget=auto")
    folder, answers = tmp_path / "outputs/m/a", []
    for num_reused in (3, None):
        (done,) = forked(tmp_path, race)
        assert (done.status, done.err) == (0, "")
        answers.append(read_json(folder / "answer.json"))
        cost = answers[-1]["race"]["cost"]
        assert num_reused in (cost.pop("reused"), None)
        assert any(line.startswith("cost: ") for line in answers[-1].pop("says"))
        runs = [path.parent for path in folder.glob("*/result.json")]
        assert cost["runs"] == len(runs) <= 18
        assert cost["updates"] == 40 * len(runs)
        assert check(folder) == []  # all numbers, from the runs alone
        last = answers[-1]["race"]["seeds"][-1]
        for path in folder.glob(f"*seed-{last}"):
            shutil.rmtree(path)
    first, second = answers
    assert first == second
    assert first["race"]["dropped"]
    assert first["winner"] == "schedule=constant"
    assert all(group["p"] < 0.05 for group in first["groups"] if group["rank"] != 1)
    (compared,) = forked(tmp_path, ("task=compare", "runs=[outputs/m/a]"))
    assert "warning: a race (race.budget) chose how many of these runs there are" in compared.out


# output.multirun

ONE_AFTER_ANOTHER = ("-m", "hydra.launcher.n_jobs=1")  # in the command's own process
LONG = ("-m", "schedule=constant,cosine", "seed=0,1", "trainer.max_epochs=25", "device=cpu")


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.parent.name: read_json(path)["weights_sha256"] for path in folder.glob("*/result.json")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "number"),
    [
        ("lightning", signal.SIGKILL),
        ("keras", signal.SIGTERM),
    ],
)
def test_a_multirun_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path, backend: str, number: int
) -> None:
    """Stopped in its second job or later: what is completed is left alone, what is half done goes
    on in its folder."""
    sweep = (*LONG, f"backend={backend}")
    (whole,) = forked(tmp_path, sweep)
    assert whole.status == 0
    again = (*sweep, "output.multirun=outputs/multiruns/mine")
    folder = tmp_path / "outputs" / "multiruns" / "mine"
    with Running(tmp_path, *again, ONE_AFTER_ANOTHER[1]) as running:
        running.until(  # the second job has a checkpoint, and a job has ended
            lambda: (
                any(folder.glob("*seed-1*/checkpoints/[0-9]*"))
                and any(folder.glob("*/result.json"))
            )
        )
        assert running.end(number).status == 128 + number
    before = {
        path: path.stat().st_mtime_ns
        for path in folder.glob("*/result.json")
        if read_json(path)["status"] == "completed"
    }
    assert 1 <= len(before) < 4
    (done,) = forked(tmp_path, again)
    assert (done.status, done.err) == (0, "")
    assert done.out.count(" is already completed\n") == len(before)
    assert done.out.count("resume   ") == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert hashes(folder) == hashes(tmp_path / whole.folder)
    assert "4 of 4 jobs completed" in done.out


@pytest.mark.slow
def test_one_that_is_completed_is_only_compared_again(tmp_path: Path) -> None:
    short = ("-m", "seed=0,1", "trainer.max_steps=20", "device=cpu", "output.multirun=outputs/here")
    first, second = forked(tmp_path, short)[0], forked(tmp_path, short)[0]
    assert (first.status, second.status) == (0, 0)
    assert second.out.count(" is already completed\n") == 2
    assert "completed: 20 steps" not in second.out
    assert second.out.splitlines()[-1] == first.out.splitlines()[-1]


# Two commands with one output.multirun

SHARED = ("-m", "seed=0,1,2,3", "device=cpu", "output.multirun=outputs/shared")


def once_each(folder: Path, num: int, steps: int, said: str) -> None:
    """Every job has one folder, was trained once and from update 0 to the last."""
    jobs = [path for path in folder.iterdir() if path.is_dir()]
    assert len(jobs) == num
    assert len(hashes(folder)) == num
    for job in jobs:
        assert read_json(job / "result.json")["status"] == "completed"
        assert read_json(job / "result.json")["resumed_from"] is None
        rows = (job / "trace.csv").read_text().splitlines()[1:]
        assert [int(row.split(",")[0]) for row in rows] == [*range(steps)]
        assert not [*job.glob(".*")]
    assert said.count(f"completed: {steps} steps") == num


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_two_commands_started_at_once_train_each_job_once(tmp_path: Path, backend: str) -> None:
    """They share the jobs; whoever ends last compares all four."""
    command = (*SHARED, f"backend={backend}", "trainer.max_steps=200")
    first, second = forked(tmp_path, command, command)
    assert [(done.status, done.err) for done in (first, second)] == [(0, "")] * 2
    said = first.out + second.out
    once_each(tmp_path / "outputs" / "shared", 4, 200, said)
    assert "4 of 4 jobs completed" in said
    assert (
        len(re.findall(r"^job \d: .* is skipped: process \d+ trains it$", said, re.MULTILINE)) >= 1
    )


@pytest.mark.slow
def test_a_command_beside_another_takes_what_is_left_and_says_who_has_the_rest(
    tmp_path: Path,
) -> None:
    """The first is in its only job, which the second has too; a note in that job's folder stays."""
    folder = tmp_path / "outputs" / "shared"
    out, err = tmp_path / "out", tmp_path / "err"
    long = (*ONE_AFTER_ANOTHER, "seed=0", "device=cpu", *SHARED[3:], "trainer.max_epochs=30")
    child = begun(tmp_path, *long, out=out, err=err)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/checkpoints/last")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    (job,) = (path for path in folder.iterdir() if path.is_dir())
    (job / "note.txt").write_text("mine")
    os.kill(child, signal.SIGSTOP)  # so that it is still there however slow this machine is
    try:
        (refused,) = forked(tmp_path, (override("resume", str(job)),))
        (second,) = forked(tmp_path, (*ONE_AFTER_ANOTHER, "seed=0,1", *long[3:]))
    finally:
        os.kill(child, signal.SIGCONT)
    assert ended(child, err) == 0
    assert refused.status == 2
    assert (
        refused.err
        == f"error: resume: {job} is in use, another process trains in it: process {child}\n"
    )
    assert (second.status, second.err) == (0, "")
    assert f"job 0: seed-0 is skipped: process {child} trains it\n" in second.out
    assert f"training: {job.name} in process {child}\n" in second.out
    assert "1 of 2 jobs completed" in second.out
    assert (job / "note.txt").read_text() == "mine"
    once_each(folder, 2, 1200, second.out + out.read_text())


@pytest.mark.slow
def test_a_command_takes_over_what_another_held_when_it_was_killed(tmp_path: Path) -> None:
    """The second looks again after its own jobs; the job goes on from its checkpoint to the bits of
    one that was never interrupted."""
    command = (*ONE_AFTER_ANOTHER, "device=cpu", "trainer.max_epochs=30")
    (whole,) = forked(tmp_path, (*command, "seed=0,1"))
    folder = tmp_path / "outputs" / "shared"
    shared = (*command, "output.multirun=outputs/shared")
    first_files, (out, err) = (tmp_path / "1", tmp_path / "2"), (tmp_path / "3", tmp_path / "4")
    out.touch()
    first = begun(tmp_path, *shared, "seed=0", out=first_files[0], err=first_files[1])
    until(lambda: any(folder.glob("*/checkpoints/last")))
    os.kill(first, signal.SIGSTOP)
    try:
        second = begun(tmp_path, *shared, "seed=0,1", out=out, err=err)
        until(lambda: f"job 0: seed-0 is skipped: process {first} trains it\n" in out.read_text())
    finally:
        os.kill(first, signal.SIGKILL)  # it stays a zombie, which trains nothing either
    assert ended(second, err) == 0
    assert ended(first, first_files[1]) == 128 + signal.SIGKILL
    said = out.read_text()
    assert "job 0: seed-0 is taken over: the process that trained it was killed\n" in said
    assert said.count("job 1: ") == 1
    assert "2 of 2 jobs completed" in said
    assert err.read_text() == ""
    found, expected = (hashes(path).values() for path in (folder, tmp_path / whole.folder))
    assert sorted(found) == sorted(expected)


# The command that goes on, which is printed for copying


@pytest.mark.slow
@pytest.mark.parametrize(
    ("many", "ends"), [((), "completed: "), (("-m", "seed=0,1"), "2 of 2 jobs completed")]
)
def test_what_was_interrupted_goes_on_by_the_command_that_it_prints(
    tmp_path: Path, many: tuple[str, ...], ends: str
) -> None:
    """Below a folder whose name both Hydra and the shell would read otherwise without quotes."""
    out, err = tmp_path / "out", tmp_path / "err"
    more = ("device=cpu", "trainer.max_epochs=40", override("output.root", "a=1, 'ü' $x"))
    child = begun(tmp_path, *many, *more, out=out, err=err)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/*/**/checkpoints/last")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child, signal.SIGTERM)
    assert ended(child, err) == 143
    resumable = len(list(tmp_path.glob("*/*/**/checkpoints/last")))
    (printed,) = [
        line
        for line in out.read_text().splitlines()
        if line.startswith("resume   python -m runner ")
    ]
    (done,) = forked(tmp_path, tuple(shlex.split(printed)[4:]))
    assert (done.status, done.err) == (0, "")
    assert ends in done.out
    assert done.out.count("resume   ") == resumable  # jobs side by side have all begun
    assert not (tmp_path / "outputs").exists()


# hydra/launcher=joblib, ray

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
on_ray = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("ray"), reason="the extra ray is not installed"),
]


@pytest.mark.parametrize(
    ("backend", "launcher"),
    [
        pytest.param("keras", JOBLIB, id="joblib", marks=pytest.mark.slow),
        pytest.param("lightning", ("hydra/launcher=ray",), id="ray", marks=on_ray),
    ],
)
def test_jobs_side_by_side_are_those_of_one_after_another(
    tmp_path: Path, backend: str, launcher: tuple[str, ...]
) -> None:
    """One of them diverges: it is named and shows in the exit status, the others have the hashes
    that they have in turn."""
    sweep = (
        "-m",
        f"backend={backend}",
        "optimizer.lr=1e-3,3e-3,1e30",
        "trainer.max_steps=40",
        "device=cpu",
    )
    found = []
    for said in ((), launcher):
        (done,) = together(tmp_path, (*sweep, *said))
        assert done.status == 1
        assert "2 of 3 jobs completed" in done.out
        assert "failed: " in done.out
        found.append(hashes(tmp_path / done.folder))
    assert found[0] == found[1]
    assert sum(value is not None for value in found[0].values()) == 2


# A signal to the command whose jobs are processes of their own

ALIKE = pytest.mark.slow


@pytest.mark.skipif(sys.platform == "win32", reason="its signals are POSIX's")
@pytest.mark.parametrize(
    ("launcher", "number", "backend"),
    [
        pytest.param(JOBLIB, signal.SIGTERM, "lightning", marks=pytest.mark.slow),
        pytest.param((), signal.SIGINT, "keras", marks=ALIKE),
        pytest.param((), signal.SIGKILL, "lightning", marks=ALIKE),
        pytest.param(("hydra/launcher=submitit_local",), signal.SIGTERM, "lightning", marks=ALIKE),
    ],
)
def test_jobs_end_with_their_command_and_save(
    tmp_path: Path, launcher: tuple[str, ...], number: signal.Signals, backend: str
) -> None:
    """All that each has trained is in its checkpoint; none goes on, and no process stays. They go
    on to the same command's end.

    5 s is what a run takes on two cores of its own; this machine may be shared by ten.
    """
    sweep = (
        "-m",
        f"backend={backend}",
        "seed=0,1",
        "device=cpu",
        "output.multirun=outputs/m",
        *launcher,
    )
    process = start(tmp_path, *sweep, "trainer.max_epochs=5000")
    folder = tmp_path / "outputs" / "m"
    deadline = time.monotonic() + 200
    while len(list(folder.glob("*/checkpoints/last"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert psutil.wait_procs(children, timeout=50)[1] == []
    assert "Traceback" not in out + err
    jobs = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    assert len(jobs) == 2
    for job in jobs:
        result = read_json(job / "result.json")
        assert result["status"] == "interrupted"
        assert result["steps"] == len((job / "trace.csv").read_text().splitlines()) - 1
        assert read_json(job / "checkpoints" / "last" / "state.json")["step"] == result["steps"]
    assert not [*folder.glob(".end.*")]


@pytest.mark.slow
def test_a_job_s_process_that_is_killed_ends_the_command_in_one_line(tmp_path: Path) -> None:
    sweep = (
        "-m",
        "seed=0,1",
        "trainer.max_epochs=5000",
        "device=cpu",
        "output.multirun=outputs/m",
        *JOBLIB,
    )
    process = start(tmp_path, *sweep)
    deadline = time.monotonic() + 200
    while not (found := list(tmp_path.glob("outputs/m/*/checkpoints/last"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(read_json(found[0].parents[1] / ".owner")["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    said = (
        "the process of a job was killed, perhaps because memory ran out; the other jobs ended "
        "with it"
    )
    assert err == f"error: {said}\n"
    assert out.splitlines()[-1].startswith("resume   python -m runner -m seed=0,1 ")


def test_a_command_sees_a_signal_that_the_system_gives_to_another_of_its_threads(
    tmp_path: Path,
) -> None:
    """The kernel may give a signal to any thread that does not block it, such as one of BLAS."""
    code = """
import signal, sys, threading, time
from pathlib import Path
from runner.run.signals import launching
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
try:
    with launching(Path(sys.argv[1]), lambda: False) as launch:
        signal.pthread_kill(other.ident, signal.SIGINT)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.01)
finally:
    print(launch.ended, list(Path(sys.argv[1]).iterdir()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "2 []\n", "")


def test_a_job_whose_command_is_gone_is_asked_to_end_and_its_process_ends_after_it(
    tmp_path: Path,
) -> None:
    code = """
import time
from runner.run import signals
with signals.job() as ended:
    assert ended is None
    with signals.Signals() as running:
        print("here", flush=True)
        while running.received is None:
            time.sleep(0.01)
        print(int(running.received), flush=True)
time.sleep(60)
"""
    command = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    began = psutil.Process(command.pid).create_time()
    environment = {**os.environ, "TWINRUN_MULTIRUN": f"{command.pid}:{began!r}:{tmp_path / 'end'}"}
    job = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "here\n"
    command.kill()  # and not waited for: a zombie trains nothing either
    assert job.stdout.readline() == "15\n"
    assert job.wait(timeout=30) == 143
    command.wait()


# hydra/launcher=submitit_local, as on a Slurm cluster


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The jobs' own processes."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "submitit.core._submit" in child.cmdline()]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "num"), [("lightning", 2), ("keras", 1)])
def test_a_job_that_the_scheduler_takes_off_is_queued_again_and_goes_on_to_the_same_bits(
    tmp_path: Path, backend: str, num: int
) -> None:
    """SIGUSR2 is what submitit has Slurm send before it takes a job's place; the job saves, with
    all its processes, and is started again from there."""
    sweep = (
        "-m",
        f"backend={backend}",
        "schedule=cosine",
        "seed=0,1",
        "trainer.max_epochs=150",
        "device=cpu",
        f"devices={num}",
    )
    (whole,) = forked(tmp_path, sweep)
    process = start(tmp_path, *sweep, "hydra/launcher=submitit_local")
    deadline = time.monotonic() + 120
    multirun = tmp_path / whole.folder
    # two of them of the first command
    while len(list(multirun.parent.glob("*/*seed-*/checkpoints/last"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for job in children_of(process):
        job.send_signal(signal.SIGUSR2)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert "2 of 2 jobs completed" in out
    (folder,) = set(multirun.parent.iterdir()) - {multirun}
    assert hashes(folder) == hashes(multirun)
    assert all(read_json(path)["resumed_from"] for path in folder.glob("*/result.json"))
    assert len(list(folder.glob("*seed-*"))) == 2


# search=optuna_lr

needs_optuna = pytest.mark.skipif(
    find_spec("optuna") is None or int(version("optuna").split(".")[0]) < 4,
    reason="the extra optuna is not installed",
)


@pytest.mark.slow
@needs_optuna
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_search_makes_the_monitored_metric_better_and_ends_with_the_comparison(
    tmp_path: Path, mode: str
) -> None:
    """Six trials; the first of the diverging range ends at infinity and is no reason to stop. What
    Optuna calls the best is as good as what the comparison calls the winner. The terminal shows
    none of Optuna's own lines, the warning of an experimental option among them."""
    monitored = {"min": "val/loss", "max": "val/accuracy"}[mode]
    (done,) = forked(
        tmp_path,
        (
            "-m", "search=optuna_lr", "optimizer=sgd", "optimizer.lr=tag(log, interval(1e-3, 1e9))",
            "device=cpu",
            "trainer.max_epochs=2", f"trainer.monitor={monitored}", f"trainer.monitor_mode={mode}",
            "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.multivariate=false",
        ),
    )  # fmt: skip
    assert all(line.startswith("error: ") for line in done.err.splitlines()), done.err
    folder = tmp_path / done.folder
    results = [read_json(path) for path in folder.glob("*/result.json")]
    completed = [result for result in results if result["status"] == "completed"]
    assert len(results) == 6
    assert len(completed) >= 2
    assert done.status == int(len(completed) < 6)
    assert f"{len(completed)} of 6 jobs completed" in done.out
    values = [result["metrics"][monitored] for result in completed]
    best = max(values) if mode == "max" else min(values)
    found = read_json(folder / "search.json")["best"]
    assert found["value"] == best
    winner = next(line for line in done.out.splitlines() if line.startswith("winner "))
    as_good = [result["overrides"] for result in completed if result["metrics"][monitored] == best]
    rate = f"optimizer.lr={float(format(found['values']['optimizer.lr'], '.6g'))!r}"
    assert any(rate in said for said in as_good)
    assert any(f"{override} " in winner for said in as_good for override in said)
    assert "search=" not in done.out.splitlines()[-1]


@pytest.mark.slow
@needs_optuna
def test_a_search_that_tries_a_value_twice_completes(tmp_path: Path) -> None:
    """Three trials of two values have two folders; Hydra's own sweeper is no search."""
    short = ("trainer.max_steps=2", "device=cpu")
    searched, swept = forked(
        tmp_path,
        ("-m", "search=optuna_lr", "hydra.sweeper.n_trials=3", "optimizer.lr=0.1,0.2", *short),
        ("-m", "hydra/sweeper=basic", "optimizer.lr=0.1,0.2", *short),
    )
    for done in (searched, swept):
        assert (done.status, done.err) == (0, "")
        assert "2 of 2 jobs completed" in done.out.splitlines()
