"""The number of threads that a run uses.

`trainer.threads=auto` depends on the config, the network and the machine, never on a measurement.
float32 sums depend on the number of threads; if that depended on the machine's load, every run
would give other weights.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from runner.components.custom import CustomNetwork
from runner.components.layers import Network
from runner.errors import ConfigError, show
from runner.machine.work import products

# FLOP of an operation per thread: 0.6 ms of one core. With less work, threads wait for each other
# longer than they compute, and much longer if another process uses a core (docs/threads.md).
WORTH_A_THREAD = 2**25
# The user's limits on the threads of a process; `auto` respects all of them on every backend.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
# The limits at the start of the command. Launchers such as joblib set the variables above for their
# workers, but a job must use the same number of threads as a single run.
_INHERITED = "TWINRUN_THREAD_LIMIT"


def _do_not_wait(number: int) -> None:
    """Find all cores free."""


# Waits until this number of cores is free, for a run that has as many threads. The pool of a
# multirun, whose jobs share the cores, sets it in each of its processes.
wait_for_cores: Callable[[int], None] = _do_not_wait


def resolve(
    requested: Literal["auto"] | int, net: Network, batch_size: int, num_processes: int = 1
) -> int:
    """The number of threads. `auto`: one per WORTH_A_THREAD FLOP of an average operation, limited
    by the cores of this process, which `num_processes` of one run share, and by the environment."""
    if requested != "auto":
        return requested
    shared = max(1, cores() // num_processes)
    return min([_worthwhile(net, batch_size), shared, *limits().values()])


def reserve(num_threads: int, num_processes: int) -> int:
    """Wait until the cores for these threads of each process are free; return `num_threads`."""
    wait_for_cores(num_threads * num_processes)
    return num_threads


def remark(
    requested: Literal["auto"] | int, number: int, net: Network, batch_size: int
) -> str | None:
    """A line for the user if the number of threads is unexpected, else None."""
    if number > cores():
        text = f"{number} threads wait for each other on {cores()} cores"
        return f"warning: {text}; trainer.threads=auto uses fewer"
    if requested == "auto" and number < _worthwhile(net, batch_size):
        limit = " ".join(f"{name}={value}" for name, value in limits().items() if value == number)
        if limit:  # else the processes of the run share the cores
            return (
                f"threads  {number}, limited by {limit} in the environment; set trainer.threads=N"
            )
    return None


def _worthwhile(net: Network, batch_size: int) -> int:
    return max(1, min(cores(), int(work(net, batch_size) // WORTH_A_THREAD)))


def work(net: Network, batch_size: int) -> float:
    """The mean work of the matrix products in a forward pass, in FLOP, weighted by their work: the
    size of the operation that an average FLOP belongs to.

    A product with a kernel [..., in, out] takes 2 B P size FLOP for B rows with P positions each
    (steps of a sequence, or pixels of the output). Attention's scores and their products with the
    values take 2 B T^2 D each.
    """
    if isinstance(net, CustomNetwork):  # assumes that every kernel is used once per row
        numbers = [int(np.prod(v.shape)) for v in net.variables().values() if v.decays]
    else:
        numbers = [num for node in net.walk() for num in products(node)]
    flops = np.array(numbers, dtype=np.float64) * 2 * batch_size
    return float((flops**2).sum() / flops.sum()) if len(flops) else 0.0


@cache
def cores() -> int:
    """Count the physical cores that this process may use: those of its affinity (hyperthreads of
    one core count once), within the quota of its control groups."""
    if not hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        import psutil

        return int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    num_cores = len({_siblings(processor) for processor in os.sched_getaffinity(0)})
    quota = _quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return num_cores if quota is None else max(1, min(num_cores, quota))


def _siblings(processor: int) -> str:
    """The processors that share a core with this one, as the system writes them."""
    return _read(
        Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
    ) or str(processor)


def _quota(root: Path, own: Path) -> int | None:
    """The smallest CPU quota of this process's control groups, in whole processors; None without a
    quota. cgroup v2 has "QUOTA PERIOD" or "max PERIOD" in cpu.max; v1 has two files, with -1 for no
    quota."""
    quotas = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        for folder in (group, *group.parents):
            numbers = [
                _read(root / ("cpu" if controllers else "") / folder / name) for name in names
            ]
            quota, _, period = " ".join(numbers).partition(" ")
            if quota.strip().isdigit() and period.strip().isdigit():
                quotas.append(int(quota) // int(period))
    return min(quotas, default=None)


def _read(path: Path) -> str:
    """Read a file; empty text if it does not exist."""
    try:
        return path.read_text()
    except OSError:
        return ""


def limits() -> dict[str, int]:
    """The thread limits that the environment sets: variable -> number of threads."""
    if _INHERITED in os.environ:
        parts = (part.partition("=") for part in os.environ[_INHERITED].split(",") if part)
        return {name: int(value) for name, _, value in parts}
    numbers = {name: _number(name, os.environ[name]) for name in VARIABLES if os.environ.get(name)}
    return {name: number for name, number in numbers.items() if number}  # 0 means no limit


def keep_limits() -> None:
    """Record the limits in the environment, for the processes that this one starts."""
    os.environ[_INHERITED] = ",".join(f"{name}={value}" for name, value in limits().items())


def _number(name: str, value: str) -> int:
    first = value.split(",")[0].strip()  # OpenMP allows one number per nesting level
    if not first.isdecimal():
        raise ConfigError(
            f"the environment variable {name} must be a number of threads, got {show(value)}"
        )
    return int(first)
