"""What holds for all tests, and runs that more than one module looks at."""

import gc
import os
from collections.abc import Sequence
from copy import deepcopy
from functools import cache

import pytest
from omegaconf import DictConfig

from runner.cli import hydra_bridge
from tests.command_line import BACKENDS, ONE_THREAD, SHORT, Finished, forked

# Before any framework is imported: two workers on two cores, each with two threads that wait for
# each other, take tens of times as long.
os.environ.update(ONE_THREAD)


# Files that take longest, for the workers to begin with: the last one would keep one of them while
# the other is done.
_LONG = (
    "test_parity",
    "test_same_bits",
    "test_sweeps",
    "test_keras",
    "test_resume",
    "test_faults",
    "test_many_runs",
)


# Imports and the collection make a million objects that stay. The garbage collector is off until
# they are there, and never looks at them again: a short training takes half the time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


# Hydra takes 0.1 s to compose a set of choices from conf/, which no test changes. A process
# composes each set once; a folder of --config-dir is read anew each time.
_load = hydra_bridge.load


@cache
def _composed(choices: tuple[str, ...]) -> DictConfig:
    return _load(None, choices)


def _load_once(config_dir: str | None, overrides: Sequence[str]) -> DictConfig:
    if config_dir is not None:
        return _load(config_dir, overrides)
    return deepcopy(_composed(tuple(overrides)))


hydra_bridge.load = _load_once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: i for i, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(_LONG)))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """The short run on each backend; nobody writes into its folder."""
    here = tmp_path_factory.mktemp("finished")
    each = forked(here, *((f"backend={backend}", *SHORT) for backend in BACKENDS))
    return {
        backend: Finished(done, here / done.folder)
        for backend, done in zip(BACKENDS, each, strict=True)
    }
