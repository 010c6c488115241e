"""The command line: run the command, turn errors into exit statuses."""
# ruff: noqa: E402

import gc

gc.disable()  # until the command is chosen: imports make many objects and free none

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from runner.cli import (
    commands,
    process,
    startup,  # noqa: F401  # records when the process began
)
from runner.cli.overrides import explained
from runner.errors import ConfigError, RunError, few_lines, memory_errors
from runner.machine import programs
from runner.run import outside
from runner.text.console import steady


@steady
def main() -> int:
    """Run the command line of this process.

    Returns 0 on success; 1 if the run failed; 2 if the config is wrong, and then nothing was
    written; 128 + n after signal n.
    """
    process.tune()
    signal.signal(signal.SIGTERM, _exit)  # until training installs its own handler
    return process.in_one_chunk(partial(_status, _run))


def _run() -> int:
    """Run the command; under torchrun, srun or TF_CONFIG as one of their processes."""
    programs.check()
    found = outside.find(os.environ)
    if found is None:
        return _execute()
    from runner.run import agents

    return agents.together(found, partial(_status, _execute), commands.follow)


def _execute() -> int:
    return commands.execute(sys.argv[1:])


def _status(command: Callable[[], int]) -> int:
    """Run a command. Print its error, and return the exit status."""
    try:
        with memory_errors():
            return command()
    except ConfigError as error:
        return _fail(error, 2)
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        return _fail(explained(error), 2)
    except RunError as error:
        return _fail(error, 1)
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror}", 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _fail(error: object, status: int) -> int:
    print(few_lines(f"error: {error}"), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
