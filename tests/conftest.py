"""Settings of all tests, and runs that more than one module looks at."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from runner import dispatcher
from runner.spec import About
from tests import composed
from tests.command_line import BACKENDS, ONE_THREAD, SHORT, Finished, forked
from tests.rows import slow_but

# Before any framework is imported: two workers on two cores, each with two threads that wait for
# each other, take tens of times as long.
os.environ.update(ONE_THREAD)

# The processes of this session share compositions, and the programs that XLA compiles, which are
# half of a short run on Keras. The workers find the folder in the environment.
if composed.SESSION not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="twinrun_tests_", ignore_cleanup_errors=True)
    os.environ[composed.SESSION] = _folder.name
    os.environ["TWINRUN_CACHE"] = f"{_folder.name}/cache"  # not the user's
    os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={_folder.name}/xla"


# Files that take longest, for the workers to begin with: the last one would keep one of them while
# the other is done.
_LONG = (
    "test_readme",
    "test_docs",
    "test_keras",
    "test_sweeps",
    "test_command_line",
    "test_comparison",
    "test_parity",
    "test_command_line_errors",
    "test_real_data",
    "test_extend",
    "test_resume",
    "test_isolation",
    "test_same_bits",
    "test_run_folders",
    "test_trust",
    "test_multirun",
    "test_faults",
    "test_many_runs",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run all tests, of every mark")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--long"):
        return
    if any(word.startswith("-m") for word in config.invocation_params.args):
        raise pytest.UsageError("--long runs the tests of all marks; leave -m out")
    config.option.markexpr = ""  # in place of that of pyproject.toml


# Imports and the collection make a million objects that stay. The garbage collector is off until
# they are there, and never looks at them again: a short training takes half the time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


composed.install()


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


@contextmanager
def _with_one_thread(about: About) -> Iterator[None]:
    """TensorFlow keeps the number of threads that it first computes with. Tests train in this
    process with one, whichever test computes first.

    The garbage collector, which Keras calls for every new model, never looks at the framework's
    own objects again: that took 0.3 s of a second's training."""
    module = f"backends.{about.name}.backend"
    was_there = module in sys.modules
    yield
    if module in sys.modules and not was_there:
        gc.collect()
        gc.freeze()
    if tensorflow := sys.modules.get("tensorflow"):
        with suppress(RuntimeError):  # it has computed already
            tensorflow.config.threading.set_intra_op_parallelism_threads(1)
            tensorflow.config.threading.set_inter_op_parallelism_threads(1)


dispatcher.importing = _with_one_thread


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same for modules of tests that import TensorFlow directly, and after tests that called
    the command line in this process, which has tuned the import. A fixture would come too late:
    fixtures of a module or the session, which may train, are set up first."""
    dispatcher.importing = _with_one_thread
    with _with_one_thread(dispatcher.BACKENDS["keras"]):
        pass


@pytest.fixture(params=slow_but(BACKENDS, "lightning"))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def here(tmp_path: Path, backend: str, request: pytest.FixtureRequest) -> Path:
    """A folder with mine.py: the entry of the test module's MODULE for the backend."""
    (tmp_path / "mine.py").write_text(request.module.MODULE[backend])
    return tmp_path
