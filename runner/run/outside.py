"""Find the processes that torchrun, Slurm's srun or a TF_CONFIG has started for a run."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runner.config.schema import Config
from runner.errors import ConfigError, show

_SPECIAL_STEPS = 4_294_000_000  # Slurm's numbers of a batch script, an interactive shell, ...


@dataclass(frozen=True)
class Outside:
    """The processes of a run, as a launcher's environment variables tell them."""

    launcher: str
    variable: str  # the environment variable with the number of processes
    rank: int
    size: int
    host: str  # the address of rank 0
    identity: str  # equal in all processes of the run, and in no other run of these machines
    num_nodes: int | None = None  # None: the launcher does not say
    addresses: tuple[str, ...] = ()  # HOST:PORT of each process, if the launcher gives them

    @property
    def token(self) -> str:
        """Return a text by which processes of the same run know each other."""
        return hashlib.sha256(f"{self.launcher} {self.identity} {self.size}".encode()).hexdigest()

    def check(self, config: Config) -> None:
        """Refuse a config of another number of processes."""
        num_nodes = config.num_nodes if self.num_nodes is None else self.num_nodes
        if (config.num_processes, config.num_nodes) == (self.size, num_nodes):
            return
        places = "" if self.num_nodes is None else f" on {_count(self.num_nodes, 'node')}"
        fits = self.size % num_nodes == 0
        repair = (
            f"set devices={self.size // num_nodes} num_nodes={num_nodes}"
            if fits
            else "start equally many on each node"
        )
        raise ConfigError(
            f"devices={config.devices} x num_nodes={config.num_nodes} is "
            f"{_count(config.num_processes, 'process')}, but {self.launcher} has started "
            f"{self.size} ({self.variable}){places}; {repair}"
        )


def _count(num: int, what: str) -> str:
    return f"{num} {what}" if num == 1 else f"{num} {what}{'es' if what[-1] == 's' else 's'}"


def find(environment: Mapping[str, str]) -> Outside | None:
    """Return the processes of the run, if there are several; None if this process is the only one.
    torchrun comes before TF_CONFIG, which a platform may set for all programs, and before Slurm,
    which may have started torchrun."""
    for launcher in (_torchrun, _tf_config, _slurm):
        found = launcher(environment)
        if found is not None:
            return found if found.size > 1 else None
    return None


def check_alone(config: Config) -> None:
    """Refuse several nodes for a command that no launcher has started."""
    if config.num_nodes > 1:
        raise ConfigError(
            f"num_nodes={config.num_nodes} needs a launcher that starts the processes of all "
            f"nodes (torchrun, srun or TF_CONFIG), and none has started this one"
        )


def _torchrun(environment: Mapping[str, str]) -> Outside | None:
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return None
    number = _numbers("torchrun", environment)
    rank, size = number("RANK"), number("WORLD_SIZE")
    if size == 1:
        return Outside("torchrun", "WORLD_SIZE", 0, 1, "", "")
    missing = [key for key in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(key)]
    if missing:
        raise ConfigError(
            f"RANK and WORLD_SIZE are set, as torchrun sets them, but not {' and '.join(missing)}; "
            f"set all of them or none"
        )
    host, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    identity = f"{environment.get('TORCHELASTIC_RUN_ID', '')} {host}:{port}"
    per_node = number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else 0
    nodes = number("GROUP_WORLD_SIZE") if "GROUP_WORLD_SIZE" in environment else 0
    num_nodes = nodes or (size // per_node if per_node else None)
    return _checked(Outside("torchrun", "WORLD_SIZE", rank, size, host, identity, num_nodes))


def _slurm(environment: Mapping[str, str]) -> Outside | None:
    """Read srun's variables. A batch script has them too, but is one process."""
    step = environment.get("SLURM_STEP_ID", "")
    is_step = step.isdigit() and int(step) < _SPECIAL_STEPS
    is_script = not is_step and (bool(step) or environment.get("ENVIRONMENT") == "BATCH")
    if is_script or not {"SLURM_PROCID", "SLURM_NTASKS"} <= environment.keys():
        return None
    number = _numbers("srun", environment)
    variable = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    rank, size = number("SLURM_PROCID"), number(variable)
    nodes = [key for key in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES") if key in environment]
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    listed = next((environment[key] for key in names if environment.get(key)), "")
    host = environment.get("MASTER_ADDR") or first_host(listed)
    if size > 1 and not host:
        raise ConfigError(
            "SLURM_PROCID and SLURM_NTASKS are set, as srun sets them, but not "
            "SLURM_STEP_NODELIST; set it, or MASTER_ADDR to the address of rank 0"
        )
    identity = f"{environment.get('SLURM_JOB_ID', '')}.{step} {environment.get('MASTER_PORT', '')}"
    num_nodes = number(nodes[0]) if nodes else None
    return _checked(Outside("srun", variable, rank, size, host, identity, num_nodes))


def first_host(nodes: str) -> str:
    """Return the first host of a list of nodes of Slurm, such as node[07-09,12],login."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def _tf_config(environment: Mapping[str, str]) -> Outside | None:
    text = environment.get("TF_CONFIG")
    if not text:
        return None
    try:
        values = json.loads(text)
        cluster, task = values.get("cluster", {}), values.get("task", {})
        kind, index = str(task.get("type", "worker")), int(task.get("index", 0))
        roles = {role: [str(address) for address in cluster[role]] for role in cluster}
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            'TF_CONFIG must be {"cluster": {"worker": ["HOST:PORT", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}, got {show(text)}'
        ) from None
    wrong = sorted({*roles, *([kind] if roles else [])} - {"chief", "worker"})
    if wrong:
        raise ConfigError(
            f"TF_CONFIG must have no tasks but chief and worker, which train, got {wrong[0]}"
        )
    addresses = (*roles.get("chief", ()), *roles.get("worker", ()))
    if len(addresses) < 2:
        return None
    if any(":" not in address for address in addresses) or not 0 <= index < len(
        roles.get(kind, ())
    ):
        raise ConfigError(
            f"TF_CONFIG must have HOST:PORT for each task and an index of one of them, got "
            f"{show(text)}"
        )
    rank = index + (len(roles.get("chief", ())) if kind == "worker" else 0)
    host = addresses[0].rpartition(":")[0]
    identity = " ".join(addresses)
    return Outside(
        "TF_CONFIG", "cluster", rank, len(addresses), host, identity, None, tuple(addresses)
    )


def _numbers(launcher: str, environment: Mapping[str, str]) -> Callable[[str], int]:
    def number(key: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", environment[key]):
            raise ConfigError(
                f"{key} must be an integer >= 0, as {launcher} sets it, got "
                f"{show(environment[key])}"
            )
        return int(environment[key])

    return number


def _checked(found: Outside) -> Outside:
    if found.rank >= max(1, found.size):
        raise ConfigError(
            f"{found.launcher} has started {found.size} processes ({found.variable}), so that a "
            f"rank must be < {found.size}, got {found.rank}"
        )
    return found
