"""Real data for the slow tests, which `.ci/run` fetches: files of the packages in real_data.txt, in
the folder that REAL_DATA names; and programs.

Without REAL_DATA these tests are skipped; with it, what is missing fails.
"""

import os
import shutil
from pathlib import Path

import pytest


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
