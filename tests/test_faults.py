"""The short pass over tests/faults, on both backends, each in a process of its own that forks the runs."""

import subprocess
import sys

import pytest

from tests.command_line import BACKENDS, REPOSITORY

FAULTS = ("kill", "end", "end_twice", "cut", "flip", "race")


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_run_survives(backend: str) -> None:
    """Full and read-only disks need the right to mount; where it is missing they say so and are left out."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--backend", backend],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for fault in FAULTS:
        (line,) = [line for line in done.stdout.splitlines() if f"  {fault}: " in line and "survived" in line]
        survived, _, tried = line.rpartition(": ")[2].split()[:3]
        assert survived == tried
