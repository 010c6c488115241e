"""torch.compile's programs on disk (runner.machine.programs). On Keras, these are XLA's.

torch's compiler has a cache of its own, below the folder of a variable. It compares everything that
a program depends on, but it fails a run if a library in the folder is damaged.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from runner.machine import programs
from runner.spec import RunSpec

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def kept(run: RunSpec) -> Iterator[None]:
    """Use the programs of earlier runs in the block, and keep new ones."""
    before = os.environ.get(_VARIABLE)
    if before is not None and not _is_default(Path(before)):  # the user's own
        yield
        return
    with programs.opened("lightning", _parts(run)) as folder:
        if folder is None:
            yield
            return
        os.environ[_VARIABLE] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before


def _is_default(folder: Path) -> bool:
    """Return whether a folder is torch's default, which torch writes into the variable."""
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_")


def _parts(run: RunSpec) -> Mapping[str, object]:
    """Return what the folder of a run's programs goes by. Runs with other programs may share it."""
    return {
        "torch": torch.version.git_version,
        "compiler": os.environ.get("CXX", ""),
        "threads": run.threads,
        "device": run.device,
        "weights": {name: each.shape for name, each in run.network.variables().items()},
        "loss": run.loss.name,
        "precision": run.precision,
    }
