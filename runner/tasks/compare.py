"""task=compare: compare existing runs."""

from collections.abc import Sequence
from os.path import isdir, isfile  # False for a name that no file system allows
from pathlib import Path

from runner.config.schema import Answer
from runner.errors import ConfigError
from runner.report import comparison, ledger
from runner.report.jobs import Job, inside, read
from runner.report.ledger import Condition, Entry
from runner.report.workloads import Rules
from runner.run import run_folder


def compare(
    folders: Sequence[str] | None,
    root: Path,
    where: Sequence[str] | None = None,
    keys: Answer | None = None,
) -> int:
    """Compare the runs in a new folder below root/comparisons. Each of `folders` is a run's folder,
    or contains runs, like a multirun's; None: all runs below root. The runs must meet the
    conditions `where`."""
    conditions = ledger.conditions(where)
    if folders is None:
        jobs = _jobs(_selected(ledger.read(root), conditions))
    else:
        jobs = read_all(folders, conditions)
    return comparison.compare(new_folder(root), jobs, len(jobs), wanted=wanted(keys))


def wanted(keys: Answer | None) -> comparison.Wanted:
    """Return what the keys answer.* ask for."""
    if keys is None:
        return comparison.Wanted()
    rules = Rules(keys.target, keys.relax)
    if not keys.test:
        return comparison.Wanted(keys.margin, rules=rules)
    from runner.tasks.evaluate import on_test_split

    return comparison.Wanted(keys.margin, on_test_split, rules=rules)


def new_folder(root: Path) -> Path:
    return run_folder.create(root / "comparisons", run_folder.timestamp())


def read_all(folders: Sequence[str], where: Sequence[Condition] = ()) -> list[Job]:
    """Read the runs that meet the conditions. Raises ConfigError if there are none, or one is there
    twice."""
    runs = [path for folder in folders for path in _runs(Path(folder))]
    duplicate = next(
        (path for i, path in enumerate(runs) if path.resolve() in {p.resolve() for p in runs[:i]}),
        None,
    )
    if duplicate is not None:
        raise ConfigError(f"runs holds {duplicate} twice")
    return _jobs(_selected([ledger.entry(path) for path in runs], where) if where else runs)


def _selected(rows: Sequence[Entry], where: Sequence[Condition]) -> list[Path]:
    selected = ledger.select(rows, where)
    if not selected:
        raise ConfigError(f"where must select some of the {len(rows)} runs, got none")
    return [row.folder for row in selected]


def _jobs(runs: Sequence[Path]) -> list[Job]:
    jobs = read(runs)
    if not any(job.is_completed for job in jobs):
        raise ConfigError(f"runs must hold a completed run, got {len(jobs)} others")
    return jobs


def _runs(folder: Path) -> list[Path]:
    if isfile(folder / "result.json"):
        return [folder]
    runs = inside(folder) if isdir(folder) else []
    if not runs:
        raise ConfigError(f"runs must be folders of runs, got {folder}, which holds no result.json")
    return runs
