"""Runs that more than one module looks at."""

import pytest

from tests.command_line import BACKENDS, SHORT, Finished, together


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """The short run on each backend; nobody writes into its folder."""
    here = tmp_path_factory.mktemp("finished")
    each = together(here, *((f"backend={backend}", *SHORT) for backend in BACKENDS))
    return {backend: Finished(done, here / done.folder) for backend, done in zip(BACKENDS, each, strict=True)}
