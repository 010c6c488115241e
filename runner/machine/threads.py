"""Number of threads that a run uses.

`trainer.threads=auto` is a function of the config, the network and the machine, never of a
measurement: sums of float32 depend on the number of threads, so a number that depended on the
machine's load would give other weights every time.
"""

import os
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from runner.components.layers import Network, Node
from runner.errors import ConfigError, show

# The first work of one operation, in FLOP, that pays for a thread of its own: 0.6 ms of one core.
# Below it the threads wait for each other longer than they compute, and far longer where another
# process takes a core (benchmarks/README.md).
WORTH_A_THREAD = 2**25
# A user's limit on the threads of a process; `auto` stays within all that are set, on every
# backend.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
# The limit as the first process of a command found it: launchers such as joblib set the variables
# for their workers, and a job must choose what it would choose alone.
_INHERITED = "TWINRUN_THREAD_LIMIT"


def resolve(asked: Literal["auto"] | int, net: Network, batch_size: int) -> int:
    """The number of threads: what was asked for, or as many as one operation's work pays for,
    within the cores that this process may use and the environment's limit."""
    if asked != "auto":
        return asked
    return min([_paid_for(net, batch_size), *limits().values()])


def remark(asked: Literal["auto"] | int, number: int, net: Network, batch_size: int) -> str | None:
    """Remark on the number of threads, if the user should know of it."""
    if number > cores():
        said = f"{number} threads are more than the cores here ({cores()}) and wait for each other"
        return f"warning: {said}; trainer.threads=auto takes fewer"
    if asked == "auto" and number < _paid_for(net, batch_size):
        said = " ".join(f"{name}={value}" for name, value in limits().items() if value == number)
        return f"threads  {number}, by {said} of the environment; trainer.threads=N overrides it"
    return None


def _paid_for(net: Network, batch_size: int) -> int:
    return max(1, min(cores(), int(work(net, batch_size) // WORTH_A_THREAD)))


def work(net: Network, batch_size: int) -> float:
    """Mean work of one product of matrices in a forward pass, in FLOP, each weighted by its own
    work: the work of the operation in which an average FLOP is done.

    A product with a kernel [..., in, out] is 2 B P size FLOP, for B rows and P positions (steps, or
    pixels of the output) of each; attention's scores and their products with the values are 2 B T^2
    D each.
    """
    flops = (
        np.array([of_one for node in net.walk() for of_one in _products(node)], dtype=np.float64)
        * 2
        * batch_size
    )
    return float((flops**2).sum() / flops.sum()) if len(flops) else 0.0


def _products(node: Node) -> list[int]:
    """Multiplications of each product of a layer, for one row."""
    num_positions = int(np.prod(node.output_shape[:-1]))
    found = [
        num_positions * int(np.prod(variable.shape))
        for variable in node.variables
        if variable.decays
    ]
    if node.spec.layer == "attention":
        found += 2 * [num_positions**2 * node.output_shape[-1]]
    return found


@cache
def cores() -> int:
    """Physical cores that this process may use: the processors of its affinity, two threads of one
    core counted once, within the quota of its control group."""
    if not hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        import psutil

        return int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    found = len({_siblings(processor) for processor in os.sched_getaffinity(0)})
    quota = _quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return found if quota is None else max(1, min(found, quota))


def _siblings(processor: int) -> str:
    """The processors of the same core, as the system writes them."""
    return _read(
        Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
    ) or str(processor)


def _quota(root: Path, own: Path) -> int | None:
    """Whole processors of the least quota of this process's control groups; None where there is
    none. Version 2 writes "QUOTA PERIOD" or "max PERIOD" into cpu.max, version 1 two files, with -1
    for no quota."""
    found = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        for place in (group, *group.parents):
            numbers = [
                _read(root / ("cpu" if controllers else "") / place / name) for name in names
            ]
            quota, _, period = " ".join(numbers).partition(" ")
            if quota.strip().isdigit() and period.strip().isdigit():
                found.append(int(quota) // int(period))
    return min(found, default=None)


def _read(path: Path) -> str:
    """Return a file's text; an empty one if there is no file."""
    try:
        return path.read_text()
    except OSError:
        return ""


def limits() -> dict[str, int]:
    """The environment's limits on threads: variable -> its number, of those that are set."""
    if _INHERITED in os.environ:
        said = (part.partition("=") for part in os.environ[_INHERITED].split(",") if part)
        return {name: int(value) for name, _, value in said}
    found = {name: _number(name, os.environ[name]) for name in VARIABLES if os.environ.get(name)}
    return {name: number for name, number in found.items() if number}  # 0: as many as there are


def keep_limits() -> None:
    """Record the limits for the processes that this one starts."""
    os.environ[_INHERITED] = ",".join(f"{name}={value}" for name, value in limits().items())


def _number(name: str, value: str) -> int:
    first = value.split(",")[0].strip()  # OpenMP takes a number for each level of nesting
    if not first.isdecimal():
        raise ConfigError(
            f"the environment's {name} must be a number of threads, got {show(value)}"
        )
    return int(first)
