"""Real data for the slow tests, which `.ci/run` fetches: files of the packages in real_data.txt, in
the folder that REAL_DATA names; programs; and what the tests claim of them.

Without REAL_DATA these tests are skipped; with it, what is missing fails.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from runner.run.run_folder import read_columns
from tests.command_line import BACKENDS, forked

SEEDS = range(5)


def real_file(path: str) -> Path:
    """The path of a file of a package, "sktime/datasets/..."."""
    root = os.environ.get("REAL_DATA")
    if root is None:
        pytest.skip("REAL_DATA names no folder with the packages of tests/real_data.txt")
    file = Path(root, path).resolve()
    assert file.is_file(), f"{file} is missing; .ci/run fetches it"
    return file


def program(name: str) -> str:
    """The path of an installed program."""
    path = shutil.which(name)
    if path is None and "REAL_DATA" not in os.environ:
        pytest.skip(f"{name} is not installed")
    assert path is not None, f"{name} is missing; .ci/run installs it"
    return path


def assert_no_worse(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Scores, of which larger ones are better, are no worse within two standard errors of the
    difference of the means over five seeds; where all seeds agree, within one row in a hundred, or
    a hundredth of an error."""
    error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / len(SEEDS))
    least = 0.01 * max(1.0, abs(theirs.mean()))
    assert ours.mean() >= theirs.mean() - max(2 * error, least), (ours, theirs)


def equal_losses(here: Path, *keys: str) -> None:
    """In float64, both backends have the same losses up to the order of sums."""
    losses = []
    for backend in BACKENDS:
        exact = ("trainer.precision=float64", f"backend={backend}", "trainer.max_epochs=2")
        (done,) = forked(here, (*keys, "device=cpu", *exact))
        assert (done.status, done.err) == (0, "")
        losses.append(read_columns(here / done.folder / "metrics.csv")["train/loss"])
    np.testing.assert_allclose(*losses, rtol=1e-12)
