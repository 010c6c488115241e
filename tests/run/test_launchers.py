"""Processes that a launcher has started: how they are found, and how they train one run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.errors import ConfigError
from runner.run import agents, outside
from runner.run.channel import decode, encode
from runner.run.run_folder import read_columns, read_json
from tests.command_line import REPOSITORY, forked
from tests.warm import until

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2",
    "SLURM_NNODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip
CHIEF = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}


def tf_config(kind: str, index: int, cluster: Any = CHIEF) -> dict[str, str]:
    task = {"type": kind, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCH, ("torchrun", 3, 4, "a", None)),
        ({**TORCH, "GROUP_WORLD_SIZE": "2"}, ("torchrun", 3, 4, "a", 2)),
        ({**TORCH, "LOCAL_WORLD_SIZE": "1", **SLURM}, ("torchrun", 3, 4, "a", 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (SLURM, ("srun", 1, 2, "gpu07", 2)),
        ({**SLURM, "MASTER_ADDR": "10.0.0.1"}, ("srun", 1, 2, "10.0.0.1", 2)),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        # a batch script, which is one process of a job of two tasks
        ({**SLURM, "SLURM_STEP_ID": "", "ENVIRONMENT": "BATCH"}, None),
        ({**SLURM, "SLURM_STEP_ID": "4294967291"}, None),
        (tf_config("chief", 0), ("TF_CONFIG", 0, 3, "a", None)),
        (tf_config("worker", 1), ("TF_CONFIG", 2, 3, "a", None)),
        (tf_config("worker", 0, {"worker": ["a:1"]}), None),
        ({"TF_CONFIG": "{}"}, None),
    ],
)  # fmt: skip
def test_the_processes_of_a_run_are_found_by_the_environment(
    environment: Mapping[str, str], expected: Any
) -> None:
    found = outside.find(environment)
    assert expected == (
        found and (found.launcher, found.rank, found.size, found.host, found.num_nodes)
    )


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "RANK and WORLD_SIZE are set, as torchrun sets them, but not MASTER_ADDR and "
            "MASTER_PORT; set all of them or none",
        ),
        (
            {**TORCH, "RANK": "x"},
            "RANK must be an integer >= 0, as torchrun sets it, got x",
        ),
        (
            {**TORCH, "RANK": "4"},
            "torchrun has started 4 processes (WORLD_SIZE), so that a rank must be < 4, got 4",
        ),
        (
            {**SLURM, "SLURM_STEP_NODELIST": ""},
            "SLURM_PROCID and SLURM_NTASKS are set, as srun sets them, but not "
            "SLURM_STEP_NODELIST; set it, or MASTER_ADDR to the address of rank 0",
        ),
        (
            {"TF_CONFIG": "x"},
            'TF_CONFIG must be {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": '
            '"worker", "index": 0}}, got x',
        ),
        (
            tf_config("ps", 0, {"worker": ["a:1"], "ps": ["b:1"]}),
            "TF_CONFIG must have no tasks but chief and worker, which train, got ps",
        ),
        (
            tf_config("worker", 2, {"worker": ["a:1", "b:1"]}),
            "TF_CONFIG must have HOST:PORT for each task and an index of one of them, got "
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": ...',
        ),
    ],
)  # fmt: skip
def test_an_environment_that_no_launcher_sets_is_one_line(
    environment: Mapping[str, str], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        outside.find(environment)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("environment", "overrides", "says"),
    [
        (
            {**TORCH, "GROUP_WORLD_SIZE": "2"},
            [],
            "devices=1 x num_nodes=1 is 1 process, but torchrun has started 4 (WORLD_SIZE) on 2 "
            "nodes; set devices=2 num_nodes=2",
        ),
        (
            SLURM,
            ["devices=2"],
            "devices=2 x num_nodes=1 is 2 processes, but srun has started 2 (SLURM_NTASKS) on 2 "
            "nodes; set devices=1 num_nodes=2",
        ),
        (
            tf_config("chief", 0),
            ["num_nodes=2"],
            "devices=1 x num_nodes=2 is 2 processes, but TF_CONFIG has started 3 (cluster); start "
            "equally many on each node",
        ),
        (tf_config("chief", 0), ["num_nodes=3"], None),
    ],
)
def test_another_number_of_processes_is_refused(
    environment: Mapping[str, str], overrides: list[str], says: str | None
) -> None:
    found, config = outside.find(environment), parse(compose(overrides))
    assert found is not None
    if says is None:
        found.check(config)
        return
    with pytest.raises(ConfigError) as caught:
        found.check(config)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"), ("a-1,b", "a-1"), ("n[07-09,12]", "n07"), ("n[3,5],m1", "n3"),
        ("r[1-2]-eth,x", "r1-eth"), ("", ""), ("127.0.0.1,127.0.0.2", "127.0.0.1"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert outside.first_host(nodes) == first


def test_a_message_has_numbers_texts_and_arrays_and_no_objects() -> None:
    arrays = {"w": np.arange(6.0).reshape(2, 3), "i": np.arange(2, dtype=np.int32)}
    kind, values, nothing, number = decode(encode(("begin", arrays, None, 0.1)))
    assert (kind, nothing, number) == ("begin", None, 0.1)
    for name, array in arrays.items():
        assert values[name].dtype == array.dtype
        np.testing.assert_array_equal(values[name], array)
    for message in ([object()], np.array([object()])):
        with pytest.raises((TypeError, ValueError)):
            encode(message)


def _found(rank: int, job: str = "7") -> outside.Outside:
    return outside.Outside("srun", "SLURM_NTASKS", rank, 2, "127.0.0.1", job)


def test_rank_0_knows_its_own_processes_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run has the same ports here, and a program that says nothing is connected."""
    job = f"{os.getpid()}"
    ports = agents._ports(_found(0, job))
    monkeypatch.setattr(agents, "_ports", lambda found: ports)
    monkeypatch.setattr(agents, "_JOIN_SECONDS", 0.5)
    leader = agents.Leader(_found(0, job))
    try:
        port = leader._listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            with pytest.raises(agents.RunError, match=r"^rank 1 of 2 did not reach rank 0 at 127"):
                agents._connect(_found(1, job + "0"))
            channel = agents._connect(_found(1, job))
        leader.end(3)
        assert channel.receive() == ["end", 3]
    finally:
        leader._listener.close()


RUN = ("trainer.precision=float64", "trainer.global_batch_size=71", "device=cpu")


def _start(folder: Path, environment: Mapping[str, str], *arguments: str) -> Any:
    """Start one process of a run, in a folder of its own."""
    folder.mkdir()
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    with (folder / "out").open("w") as out:
        return subprocess.Popen(
            arguments,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def _free_ports(num: int) -> list[int]:
    sockets = [socket.socket() for _ in range(num)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _both(launcher: str, rank: int, ports: list[int]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the environment of a process of two nodes on two loopback addresses, and the start of
    its command."""
    program = (sys.executable, "-m", "runner")
    if launcher == "TF_CONFIG":
        workers = [f"127.0.0.{i + 1}:{port}" for i, port in enumerate(ports)]
        return tf_config("worker", rank, {"worker": workers}), program
    if launcher == "srun":
        nodes = {"SLURM_STEP_NODELIST": "127.0.0.2,127.0.0.1", "SLURM_JOB_ID": str(ports[0])}
        return {**SLURM, **nodes, "SLURM_PROCID": str(rank)}, program
    begin = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}")
    where = ("--nproc-per-node=1", "--master-addr=127.0.0.2", f"--master-port={ports[0]}")
    return {}, (*begin, *where, "-m", "runner")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
@pytest.mark.parametrize(
    ("launcher", "backend"), [("torchrun", "lightning"), ("srun", "keras"), ("TF_CONFIG", "keras")]
)
def test_processes_on_two_nodes_train_as_one_does(
    tmp_path: Path, launcher: str, backend: str
) -> None:
    """Each has a folder of its own, as without a shared home; only rank 0 writes in it. The losses
    differ by rounding: the sums over rows are added in another order."""
    ports = _free_ports(2)
    run = (f"backend={backend}", *RUN, "trainer.max_epochs=1")
    processes = []
    for rank in (0, 1):
        environment, command = _both(launcher, rank, ports)
        folder = tmp_path / str(rank)
        processes.append(_start(folder, environment, *command, *run, "num_nodes=2"))
    (tmp_path / "one").mkdir()
    done = forked(tmp_path / "one", run)[0]
    outputs = [(tmp_path / name / "out").read_text for name in "01"]
    assert [process.wait(120) for process in processes] == [0, 0], outputs[0]() + outputs[1]()
    (folder,) = (tmp_path / "0" / "outputs" / "runs").iterdir()
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["out"]
    losses = [
        read_columns(f / "trace.csv")["loss"] for f in (folder, tmp_path / "one" / done.folder)
    ]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-12)


@pytest.fixture
def networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, that a virtual cable joins."""
    names = (f"twinrun{os.getpid()}a", f"twinrun{os.getpid()}b")

    def ip(*arguments: str) -> bool:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0

    if sys.platform != "linux" or shutil.which("ip") is None or not ip("netns", "add", names[0]):
        pytest.skip("this user cannot make network namespaces")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "netns", names[1])
        ends = ("cable", "veth0")
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", end)
            assert ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.mark.slow
def test_torchrun_on_two_networks_has_the_bits_of_one_process(
    tmp_path: Path, networks: tuple[str, str]
) -> None:
    """Neither reaches the other's loopback address. Two parts of 32 rows are a batch of 64."""
    line = ("backend=keras", "device=cpu", "trainer.precision=exact", "trainer.max_steps=20")
    begin = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1")
    begin += ("--master-addr=10.77.0.1", "--master-port=29500")
    processes = [
        _start(
            tmp_path / str(rank),
            {},
            *("ip", "netns", "exec", networks[rank], *begin, f"--node-rank={rank}"),
            *("-m", "runner", *line, "num_nodes=2"),
        )
        for rank in (0, 1)
    ]
    (tmp_path / "one").mkdir()
    (one,) = forked(tmp_path / "one", (*line, "trainer.batch_size=64"))
    said = [(tmp_path / name / "out").read_text for name in "01"]
    assert [process.wait(200) for process in processes] == [0, 0], said[0]() + said[1]()
    (folder,) = (tmp_path / "0" / "outputs" / "runs").iterdir()
    results = [read_json(f / "result.json") for f in (folder, tmp_path / "one" / one.folder)]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_a_node_that_is_killed_ends_the_run_with_its_rank(tmp_path: Path) -> None:
    ports, processes = _free_ports(2), []
    steps = ("trainer.max_epochs=9999", "trainer.checkpoint_every=5steps", "num_nodes=2")
    for rank in (0, 1):
        environment, command = _both("srun", rank, ports)
        processes.append(_start(tmp_path / str(rank), environment, *command, *RUN, *steps))
    until(lambda: any(tmp_path.glob("0/outputs/runs/*/checkpoints/last")))
    processes[1].send_signal(signal.SIGKILL)
    assert processes[0].wait(30) == 1
    (folder,) = tmp_path.glob("0/outputs/runs/*")
    last = (tmp_path / "0" / "out").read_text().splitlines()[-1]
    assert last == (
        "error: rank 1 was lost: the connection to it has ended; the other processes were ended; "
        f"to continue: resume={folder.relative_to(tmp_path / '0')}"
    )
    num_rows = (folder / "trace.csv").read_bytes().count(b"\n")
    longer = f"trainer.max_steps={num_rows + 60}"
    done = forked(tmp_path / "0", (f"resume={folder}", "num_nodes=1", longer))[0]
    assert done.status == 0, done.err
    assert read_json(folder / "result.json")["status"] == "completed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_a_multirun_on_two_nodes_ends_with_a_signal_and_goes_on(tmp_path: Path) -> None:
    """Slurm sends SIGTERM to all tasks and queues the script again: four jobs, four folders, one
    comparison, written by rank 0."""
    folder = tmp_path / "outputs" / "multiruns" / "m"
    where = (f"output.root={tmp_path / 'outputs'}", f"output.multirun={folder}")
    sweep = ("-m", "seed=0,1", "schedule=cosine,linear", "trainer.max_epochs=6", "num_nodes=2")

    def started(name: str) -> list[Any]:
        ports = _free_ports(2)
        both = [_both("srun", rank, ports) for rank in (0, 1)]
        return [
            _start(tmp_path / f"{name}_{rank}", environment, *command, *RUN, *sweep, *where)
            for rank, (environment, command) in enumerate(both)
        ]

    processes = started("first")
    until(lambda: any(folder.glob("*/checkpoints/last")))
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in processes] == [143, 143]
    last = (tmp_path / "first_0" / "out").read_text().splitlines()[-1]
    assert last.startswith("resume   python -m runner ")
    processes = started("again")
    said = (tmp_path / "again_0" / "out").read_text
    assert [process.wait(120) for process in processes] == [0, 0], said()
    assert "4 of 4 jobs completed" in said()
    jobs = [read_json(path) for path in folder.glob("*/result.json")]
    assert [job["status"] for job in jobs] == ["completed"] * 4
    assert any(job["resumed_from"] for job in jobs)
    assert len((folder / "comparison.csv").read_text().splitlines()) == 1 + 4
