"""task=compare: the comparison of runs that exist."""

from collections.abc import Sequence
from os.path import isdir, isfile  # False for a name that no file system takes
from pathlib import Path

from runner.errors import ConfigError
from runner.report import comparison
from runner.report.jobs import inside, read
from runner.run import run_folder


def compare(folders: Sequence[str], root: Path) -> int:
    """Each a run's folder, or one that holds runs, as a multirun's does. Into a new folder below
    root/comparisons."""
    found = [path for said in folders for path in _runs(Path(said))]
    twice = next(
        (
            path
            for i, path in enumerate(found)
            if path.resolve() in {p.resolve() for p in found[:i]}
        ),
        None,
    )
    if twice is not None:
        raise ConfigError(f"runs holds {twice} twice")
    jobs = read(found)
    if not any(job.is_completed for job in jobs):
        raise ConfigError(f"runs must hold a completed run, got {len(jobs)} others")
    return comparison.compare(
        run_folder.create(root / "comparisons", run_folder.timestamp()), jobs, len(jobs)
    )


def _runs(folder: Path) -> list[Path]:
    if isfile(folder / "result.json"):
        return [folder]
    found = inside(folder) if isdir(folder) else []
    if not found:
        raise ConfigError(f"runs must be folders of runs, got {folder}, which holds no result.json")
    return found
