"""The jobs of a multirun: where they go, which of them are done already, and the grid of a tuned rate."""

import glob
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from runner import run_folder
from runner.compose import to_values
from runner.config import Config, Tune, sha256
from runner.errors import ConfigError
from runner.saved import config_of


def folder(config: Config) -> Path:
    """A new one, or the one that output.multirun names: its completed jobs are not trained again."""
    root, said = Path(config.output.root), config.output.multirun
    if said is None:
        return run_folder.create(root / "multiruns", run_folder.timestamp())
    path = Path(said)
    if not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"output.multirun must be a folder below output.root, {root}, got {said}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output.multirun must be a folder that can be written to; {path}: {error.strerror}"
        ) from None
    return path


@dataclass(frozen=True)
class Earlier:
    """The folder of a job of an earlier start of the same multirun."""

    path: Path
    is_completed: bool
    has_checkpoint: bool


def earlier(parent: Path, name: str, config_sha256: str) -> Earlier | None:
    """By the job's name, and by its config: names may be cut short."""
    for path in sorted(parent.glob(f"{glob.escape(name)}*")):
        if (path / "config.yaml").is_file() and sha256(config_of(path)) == config_sha256:
            result = path / "result.json"
            completed = result.is_file() and run_folder.read_json(result)["status"] == "completed"
            return Earlier(path, completed, any((path / "checkpoints").glob("[0-9]*")))
    return None


def objective(composed: Any) -> float | None:
    """What a search makes small: the monitored metric after a job's last epoch, its sign turned where more is better;
    infinity where the job did not get there. None where there is no search."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or str(hydra.sweeper["_target_"]).endswith(".BasicSweeper"):
        return None
    name = run_folder.job_name([said.lstrip("+") for said in hydra.overrides.task])
    found = earlier(Path(hydra.sweep.dir), name, sha256(to_values(composed)))
    if found is None or not found.is_completed:
        return math.inf
    trainer = composed.trainer
    value = float(run_folder.read_json(found.path / "result.json")["metrics"][trainer.monitor])
    return -value if trainer.monitor_mode == "max" else value


def tuned(said: Sequence[Override], tune: Tune, each: Sequence[Config]) -> list[str]:
    """With tune=lr: the overrides with the base rate as a list, those of tune.factors times what it would be."""
    rates = {config.optimizer.lr for config in each}
    if len(rates) > 1:
        raise ConfigError(
            f"tune=lr takes one base rate, got {len(rates)}: optimizer or optimizer.lr has several values"
        )
    (base,) = rates
    values = [float(f"{base * factor:.3g}") for factor in sorted(tune.factors)]
    kept = [override.input_line or "" for override in said if override.key_or_group != "optimizer.lr"]
    return [*kept, f"optimizer.lr={','.join(map(repr, values))}"]
