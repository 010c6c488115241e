"""The jobs of a multirun: where they go, which of them are done already, and the grid of a tuned rate."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override

from runner import run_folder
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
