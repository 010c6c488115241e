"""The command line: compose, check, hand over to the task."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser

from runner import run_folder
from runner.compose import CONF, check_jobs, to_values
from runner.config import parse
from runner.errors import ConfigError, RunError


def main() -> int:
    import hydra

    started = _process_start()
    arguments = get_args_parser().parse_args()
    asks = arguments.help or arguments.hydra_help or arguments.cfg or arguments.info
    statuses: list[int] = []
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; the words are ours
    extra: list[str] = []
    try:
        if not (asks or arguments.shell_completion):
            jobs = check_jobs(arguments.overrides, arguments.config_dir, bool(arguments.multirun))
            if arguments.multirun:
                parent = Path(jobs[0].output.root) / "multiruns"
                extra = [f"hydra.sweep.dir={run_folder.create(parent, run_folder.timestamp())}"]
        sys.argv += extra

        @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
        def job(composed: Any) -> None:
            statuses.append(_run(composed, _process_start() if not statuses else time.time()))

        job()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    del started
    return max(statuses, default=0)


def _run(composed: Any, started: float) -> int:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    values = to_values(composed)
    config, hydra_config = parse(values), HydraConfig.get()
    from runner.tasks.train import train

    if hydra_config.mode == RunMode.MULTIRUN:
        return train(config, values, Path(hydra_config.sweep.dir), run_folder.job_name(hydra_config.overrides.task), started)
    return train(config, values, Path(config.output.root) / "runs", None, started)


def _process_start() -> float:
    """Seconds since the epoch at which this process began."""
    import psutil

    return float(psutil.Process().create_time())


if __name__ == "__main__":
    sys.exit(main())
